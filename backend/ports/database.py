"""Where the stores live: transactions, snapshots, and all rows out and in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from backend.domain import ModelVersion, Project, ProjectIdentity, Task
from backend.ports.stores import Stores


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What requests for suggestions need of a project: its active version, if any, and the known tasks asked for."""

    project: Project
    active: ModelVersion | None
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseDump:
    """The rows of each table, one JSON object a line, at a revision of the schema; each is read once."""

    revision: str
    tables: Mapping[str, Iterable[bytes]]


class Database(Protocol):
    """Where the stores live."""

    def transaction(self) -> AbstractContextManager[Stores]:
        """Open a write transaction: durable when the block ends, undone when it raises."""

    def snapshot(self) -> AbstractContextManager[Stores]:
        """Open a consistent view for reading; writing in it is an error."""

    def check_schema(self) -> None:
        """Make sure that the database can be read, and that its schema is the one that this code was written for.

        Raises:
            StoreUnavailable: it cannot be read.
            ConfigurationError: its schema is another one.
            NotFound: it has none yet.
        """

    def find(self, identity: ProjectIdentity, task_ids: Sequence[int]) -> Found | None:
        """Return what there is of a project and these tasks, each as it is when it is read; quicker than a snapshot."""

    def dump(self) -> AbstractContextManager[DatabaseDump]:
        """Open all rows of one moment for reading."""

    def check_restorable(self, revision: str) -> None:
        """Make sure that rows of this revision can be restored, and that none are lost by that.

        Raises:
            Conflict: there are projects already.
            ConfigurationError: a newer Tandem made the rows.
        """

    def restore(self, dump: DatabaseDump) -> int:
        """Fill an empty database with the rows of a dump, all or none, and return how many.

        Raises:
            Conflict: there are projects already.
            ConfigurationError: a newer Tandem made the rows.
            InvalidRequest: a table or row that cannot be one of ours.
        """

    def close(self) -> None:
        """Close all connections; who goes on opens new ones."""
