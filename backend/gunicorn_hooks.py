"""What gunicorn's master process does beside its own work; gunicorn reads this module as its configuration."""

from __future__ import annotations

from backend.processes import exit_with_parent


def on_starting(server: object) -> None:  # noqa: ARG001 - gunicorn passes itself
    """End with the supervisor, even if that was killed: nothing may go on holding the port."""
    exit_with_parent()
