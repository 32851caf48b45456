"""Statements that both databases have, but SQLAlchemy only per dialect, and rows many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Table
from sqlalchemy.dialects import postgresql, sqlite

AnyRow = Row[*tuple[Any, ...]]

MAX_IDS_PER_STATEMENT = 10_000
"""Both databases limit the parameters of a statement: SQLite to 32766, PostgreSQL to 65535."""


def insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return the database's own INSERT: ``ON CONFLICT`` reads the same in both, but SQLAlchemy has it per dialect."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def replace(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, all with the same columns; a row whose key is there already takes the place of the old one."""
    if not rows:
        return
    statement = insert(connection, table)
    keys = [column.name for column in table.primary_key]
    replaced = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=replaced), rows)


def chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the ids in pieces small enough for one statement."""
    for start in range(0, len(ids), MAX_IDS_PER_STATEMENT):
        yield ids[start : start + MAX_IDS_PER_STATEMENT]
