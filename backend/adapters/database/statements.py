"""Statements that both databases have, but SQLAlchemy only per dialect, and rows many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, Table
from sqlalchemy.dialects import postgresql, sqlite

AnyRow = Row[*tuple[Any, ...]]

MAX_IDS_PER_STATEMENT = 10_000
"""Both databases limit the parameters of a statement: SQLite to 32766, PostgreSQL to 65535."""


def insert(dialect: str, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return the database's own INSERT: ``ON CONFLICT`` reads the same in both, but SQLAlchemy has it per dialect."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def replace(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, all with the same columns; a row whose key is there already takes the place of the old one."""
    if rows:
        connection.execute(_replacing(connection.dialect.name, table, tuple(rows[0])), rows)


@cache
def _replacing(dialect: str, table: Table, names: tuple[str, ...]) -> sqlite.Insert | postgresql.Insert:
    """Put the statement together once: that takes much longer than to execute it."""
    statement = insert(dialect, table)
    excluded = statement.excluded
    keys = [column.name for column in table.primary_key]
    return statement.on_conflict_do_update(
        index_elements=keys, set_={name: excluded[name] for name in names if name not in keys}
    )


def chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the ids in pieces small enough for one statement."""
    for start in range(0, len(ids), MAX_IDS_PER_STATEMENT):
        yield ids[start : start + MAX_IDS_PER_STATEMENT]
