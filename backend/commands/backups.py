"""Backup and restore."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from backend.commands.context import JsonOption, make_container, start
from backend.terminal import output, show

if TYPE_CHECKING:
    from backend.services.backup import Contents

commands = typer.Typer()


@commands.command()
def backup(file: Path, as_json: JsonOption = False) -> None:
    """Write database, versions, features and webhook secret into one file; servers may go on meanwhile."""
    show_contents("written to", file, make_container(start()).backup().write(file), as_json)


@commands.command()
def restore(file: Path, as_json: JsonOption = False) -> None:
    """Put a backup back, into an empty place only; start no server before it is done."""
    show_contents("restored from", file, make_container(start()).backup(empty=True).restore(file), as_json)


def show_contents(done: str, file: Path, contents: Contents, as_json: bool) -> None:
    """Print how much a backup holds."""
    if as_json:
        encoded = {"rows": contents.n_rows, "artifacts": contents.n_artifacts, "backbones": contents.n_backbones}
        show(encoded | {"bytes": contents.n_bytes}, as_json=True)
    else:
        counts = (
            f"{contents.n_rows} rows, {contents.n_artifacts} artifacts, features of {contents.n_backbones} backbones"
        )
        output.print(f"{counts} {done} {file} ({contents.n_bytes / 2**20:.1f} MiB)", markup=False)
