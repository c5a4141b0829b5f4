"""What a GPU does: supervisor, Celery task, heartbeat, engine, stages, models."""
