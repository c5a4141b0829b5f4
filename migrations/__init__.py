"""Alembic environment and schema versions (shipped in the wheel)."""
