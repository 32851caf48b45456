"""The stores in SQL: SQLite by default, PostgreSQL for several machines."""

from backend.adapters.database.engine import SqlDatabase

__all__ = ["SqlDatabase"]
