"""What commands print: tables or JSON on standard output, progress and messages on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

output = Console()
messages = Console(stderr=True)


def show(rows: Any, as_json: bool) -> None:
    """Print JSON, or a table of rows that share their keys."""
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        return
    if not rows:
        output.print("nothing yet")
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*(column.replace("_", " ") for column in columns))
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    output.print(table)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar on a terminal's standard error; call what is given with step, done and total.

    It starts anew with each step.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as progress:
        bar = progress.add_task("starting", total=None)

        def on_progress(step: str, done: int, total: int) -> None:
            if step != progress.tasks[bar].description:
                progress.reset(bar, description=step)
            progress.update(bar, completed=done, total=total or None)

        yield on_progress


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):
        return escape(", ".join(map(str, value)))
    return "" if value is None else escape(str(value))
