"""The command ``tandem``."""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from backend.commands import backups, doctor, folders, projects, reviews, servers
from backend.errors import ConfigurationError, InvalidRequest, TandemError
from backend.terminal import messages

app = typer.Typer(
    name="tandem",
    help="Image backend for Label Studio: learns from labels in the background and returns calibrated suggestions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for group in (servers, doctor, projects, reviews, folders, backups):
    app.add_typer(group.commands)


def main() -> None:
    """Run the command line, turning errors into one line and an exit status."""
    try:
        app()
    except TandemError as error:
        messages.print(f"[red]tandem:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigurationError | InvalidRequest) else 1)
