"""The schema's history, and how a database is brought to its end."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from backend.errors import ConfigurationError

HEAD_REVISION = "0004"


def current_revision(connection: Connection) -> str | None:
    """Return the revision a database is at, or ``None`` for a new one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def drop_revision(connection: Connection) -> None:
    """Forget the revision of a database that has no table any more."""
    connection.execute(text("DROP TABLE alembic_version"))


def known_revisions() -> set[str]:
    """Return all revisions that this Tandem can make a database of."""
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory(str(Path(__file__).parent)).walk_revisions()}


def upgrade(connection: Connection, target: str = HEAD_REVISION) -> None:
    """Apply the missing revisions inside the caller's write transaction, which keeps other processes out.

    Raises:
        ConfigurationError: the database is at a revision that this Tandem does not know.
    """
    revision = current_revision(connection)
    if revision == target:
        return
    # Not at the top: Alembic takes longer to import than all else that a start with a current schema does.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    if revision is not None and revision not in known_revisions():
        raise ConfigurationError(
            f"the database is at revision {revision!r}, this Tandem knows up to {HEAD_REVISION!r}: "
            "a newer Tandem made it, use that one"
        )
    command.upgrade(config, target)
