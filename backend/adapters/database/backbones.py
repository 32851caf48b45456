"""What is known of pretrained backbones, in SQL."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update

from backend.adapters.database.tables import backbone_table


class SqlBackboneStore:
    """Backbones on one connection; see ``backend.ports.BackboneStore``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def categories(self, digest: str) -> tuple[str, ...]:
        """Return what the classifier that a backbone was pretrained with tells apart; nothing where none is known."""
        categories = select(backbone_table.c.categories).where(backbone_table.c.digest == digest)
        return self._connection.scalar(categories) or ()

    def save_categories(self, digest: str, categories: tuple[str, ...]) -> None:
        """Store what the classifier that a backbone was pretrained with tells apart."""
        known = update(backbone_table).where(backbone_table.c.digest == digest).values(categories=categories)
        if self._connection.execute(known).rowcount == 0:
            self._connection.execute(insert(backbone_table).values(digest=digest, categories=categories))
