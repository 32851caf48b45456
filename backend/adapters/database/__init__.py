"""The stores in SQL: SQLite by default, PostgreSQL for several machines."""

from backend.adapters.database.sql_database import SqlDatabase

__all__ = ["SqlDatabase"]
