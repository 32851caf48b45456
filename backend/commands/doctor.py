"""Looking for faults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from backend.commands.context import JsonOption, make_container, start
from backend.errors import ConfigurationError
from backend.services.diagnosis.findings import Check, Finding, Status, failed, ok
from backend.terminal import output, show

MARKS = {Status.OK: "✓", Status.WARNING: "!", Status.FAILED: "✗", Status.SKIPPED: "-"}
STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "bold red", Status.SKIPPED: "dim"}

commands = typer.Typer()


@commands.command()
def doctor(
    as_json: JsonOption = False,
    read_only: Annotated[
        bool,
        typer.Option("--read-only", help="Do not make Label Studio send an event by saving a project as it is."),
    ] = False,
) -> None:
    """Look for faults between Label Studio, Tandem and this machine, and say what to do.

    Exits with 1 if something failed.
    """
    findings = examine(may_write=not read_only)
    found = list(findings if as_json else print_each(findings))
    if as_json:
        show(encode(found), as_json=True)
    else:
        counts = {status: sum(finding.status is status for finding in found) for status in Status}
        output.print(", ".join(f"{n} {status.value}" for status, n in counts.items() if n))
    if any(finding.status is Status.FAILED for finding in found):
        raise typer.Exit(1)


def examine(*, may_write: bool) -> Iterator[Finding]:
    """Make each check; settings that cannot be used end it."""
    try:
        examination = make_container(start()).examination
    except ConfigurationError as error:
        yield failed(Check.SETTINGS, str(error), "correct what the message names")
        return
    yield ok(Check.SETTINGS, "all of them can be understood")
    yield from examination.run(may_write=may_write)


def print_each(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Print each finding as soon as it is there, and hand it on."""
    project = None
    for finding in findings:
        if finding.project != project:
            project = finding.project
            output.print(f"\nproject {project}", style="bold")
        line = Text(f"{MARKS[finding.status]} ", style=STYLES[finding.status])
        line.append(f"{finding.check.value:17}", style="bold").append(finding.found, style="default")
        output.print(line, soft_wrap=True, highlight=False)
        if finding.remedy:
            output.print(Text(f"{'':19}→ {finding.remedy}", style="cyan"), soft_wrap=True, highlight=False)
        yield finding


def encode(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return findings as scripts see them; docs/doctor.md describes the form."""
    checks = [asdict(finding) for finding in findings]
    return {"ok": not any(check["status"] is Status.FAILED for check in checks), "checks": checks}
