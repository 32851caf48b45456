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


def upgrade(connection: Connection) -> None:
    """Apply the missing revisions inside the caller's write transaction, which keeps other processes out.

    Raises:
        ConfigurationError: the database is at a revision that this Tandem does not know.
    """
    revision = current_revision(connection)
    if revision == HEAD_REVISION:
        return
    # Not at the top: Alembic takes longer to import than all else that a start with a current schema does.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise ConfigurationError(
            f"the database is at revision {revision!r}, this Tandem knows up to {HEAD_REVISION!r}: "
            "a newer Tandem made it, use that one"
        )
    command.upgrade(config, "head")
