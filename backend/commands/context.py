"""What the commands share: their options, the settings, and everything wired together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from backend.logs import configure_logs, log_what_nobody_caught
from backend.settings import Settings, load_settings

if TYPE_CHECKING:
    from backend.bootstrap import Container

ProjectArgument = Annotated[
    int, typer.Argument(min=1, max=2**63 - 1, help="The project, by Tandem's id (tandem status lists them).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def start(name: str | None = None) -> Settings:
    """Read the settings and switch logs on: all of them for servers, only problems for other commands."""
    settings = load_settings()
    is_server = name in ("serve", "worker")
    configure_logs(settings.log_level if is_server else "WARNING", settings.log_format, process=name or "command")
    if is_server:
        log_what_nobody_caught()
    return settings


def make_container(settings: Settings) -> Container:
    """Wire everything together; imported here, so that ``tandem --help`` answers at once."""
    from backend.bootstrap import Container

    return Container(settings)
