"""Tests with real processes: the command line, supervisors, Celery workers, Redis."""
