"""All rows as JSON, one object a line: out of either database, into either."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Connection, column, func, insert, select, table, text
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError, StatementError

from backend.adapters.database.migrations import (
    HEAD_REVISION,
    current_revision,
    drop_revision,
    known_revisions,
    upgrade,
)
from backend.adapters.database.tables import Names, UtcDateTime, metadata, project_table
from backend.errors import ConfigurationError, Conflict, InvalidRequest

ROWS_PER_INSERT = 500


def dump_rows(connection: Connection, table_name: str) -> Iterator[bytes]:
    """Yield the rows of a table, in the order of its key."""
    dumped = metadata.tables[table_name]
    rows = connection.execution_options(yield_per=1000).execute(select(dumped).order_by(*dumped.primary_key))
    for row in rows.mappings():
        yield json.dumps({name: _encode(value) for name, value in row.items()}, ensure_ascii=False).encode() + b"\n"


def check_restorable(connection: Connection, revision: str) -> None:
    """Make sure that rows of a revision can be restored, and that none are lost by that.

    Raises:
        Conflict: there are projects already.
        ConfigurationError: a newer Tandem made the rows.
    """
    if revision not in known_revisions():
        raise ConfigurationError(
            f"the backup is of revision {revision!r} of the database, this Tandem knows up to {HEAD_REVISION!r}: "
            "a newer Tandem made it, use that one"
        )
    if current_revision(connection) is None:
        return
    n_projects = connection.scalar(select(func.count()).select_from(project_table))
    if n_projects:
        raise Conflict(
            f"the database has {n_projects} projects already: restore into an empty one (DATABASE_URL, or MODEL_DIR)"
        )


def load_rows(connection: Connection, revision: str, tables: Mapping[str, Iterable[bytes]]) -> int:
    """Make the tables as they were at a revision, fill them, and bring them up to date; return how many rows there are.

    Raises:
        Conflict: there are projects already.
        ConfigurationError: a newer Tandem made the rows.
        InvalidRequest: a table or row that cannot be one of ours.
    """
    check_restorable(connection, revision)
    if current_revision(connection) is not None:
        metadata.drop_all(connection)
        drop_revision(connection)
    upgrade(connection, revision)
    unknown = set(tables) - set(metadata.tables)
    if unknown:
        raise InvalidRequest(f"the backup has rows of a table {min(unknown)!r} that this Tandem does not know")
    n_rows = 0
    try:
        # In this order a row that others refer to comes before them.
        for known in metadata.sorted_tables:
            if known.name in tables:
                n_rows += _load_table(connection, known.name, tables[known.name])
    except (
        IntegrityError,
        DataError,
        ProgrammingError,
        StatementError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise InvalidRequest(f"the backup's rows do not fit into the database: {error}") from error
    if connection.dialect.name == "postgresql":
        # The rows brought their own ids; the next one comes after them.
        highest = "SELECT setval(pg_get_serial_sequence('job', 'id'), max(id)) FROM job HAVING max(id) IS NOT NULL"
        connection.execute(text(highest))
    upgrade(connection)
    return n_rows


def _load_table(connection: Connection, name: str, lines: Iterable[bytes]) -> int:
    types = {each.name: each.type for each in metadata.tables[name].columns}
    n_rows = 0
    remaining = iter(lines)
    while some := list(islice(remaining, ROWS_PER_INSERT)):
        rows: list[dict[str, Any]] = [
            {key: _decode(value, types.get(key)) for key, value in json.loads(line).items()} for line in some
        ]
        # Only the columns that there are: an earlier revision has fewer.
        target = table(name, *(column(key, types.get(key)) for key in rows[0]))
        connection.execute(insert(target), rows)
        n_rows += len(rows)
    return n_rows


def _encode(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def _decode(value: Any, kind: object) -> object:
    if value is None:
        return None
    if isinstance(kind, UtcDateTime):
        return datetime.fromisoformat(value)
    if isinstance(kind, Names):
        return tuple(str(each) for each in value)
    return value
