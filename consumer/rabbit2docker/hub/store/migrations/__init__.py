"""Schema migrations; Alembic runs those that a database lacks."""
