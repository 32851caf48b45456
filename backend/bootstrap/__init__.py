"""The composition root: the only place that decides which adapter stands behind which port."""

from backend.bootstrap.container import STORAGE_PATIENCE_S, Container

__all__ = ["STORAGE_PATIENCE_S", "Container"]
