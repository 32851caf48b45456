"""Projects, their versions and jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.commands.context import JsonOption, ProjectArgument, make_container, start
from backend.domain import Job, JobStatus, Suggestion, VersionKind
from backend.errors import InvalidRequest
from backend.terminal import output, progress_bar, show

if TYPE_CHECKING:
    from backend.bootstrap import Container


WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the job to end.")]

commands = typer.Typer()


@commands.command()
def status(as_json: JsonOption = False) -> None:
    """Show all projects, their versions and what goes on."""
    from backend.routes.api import encode_project

    encoded = [encode_project(overview) for overview in make_container(start()).projects.all()]
    if as_json or not encoded:
        show(encoded, as_json)
        return
    show([_numbers(each) for each in encoded], as_json=False)
    # Sentences in a column beside the numbers would leave neither enough room.
    show(
        [{"id": each["id"], "what": what, "in words": words} for each in encoded for what, words in _sentences(each)],
        as_json=False,
    )


@commands.command()
def sync(project: ProjectArgument, wait: WaitOption = True, as_json: JsonOption = False) -> None:
    """Bring in from Label Studio what events missed."""
    container = make_container(start())
    show_job(container, container.projects.sync(project), wait, as_json)


@commands.command()
def train(
    project: ProjectArgument,
    kind: Annotated[VersionKind, typer.Option(help="What to train.")] = VersionKind.HEAD,
    wait: WaitOption = True,
    as_json: JsonOption = False,
) -> None:
    """Train a version now, without waiting for the policy."""
    container = make_container(start())
    show_job(container, container.projects.train(project, kind), wait, as_json)


@commands.command()
def predict(project: ProjectArgument, images: list[Path], as_json: JsonOption = False) -> None:
    """Suggest labels for image files with the active version of a project."""
    container = make_container(start())
    for path in images:
        if not path.is_file():
            raise InvalidRequest(f"{path} is not a file")
    suggestions = container.prediction.predict_files(project, images, container.embedder)
    rows: list[dict[str, Any]] = [
        {"file": str(path), "labels": list(each.class_names), "score": round(each.score, 4), "version": each.version}
        if isinstance(each, Suggestion)
        else {"file": str(path), "labels": [], "score": None, "reason": each.reason}
        for path, each in zip(images, suggestions, strict=True)
    ]
    show(rows, as_json)


@commands.command()
def versions(project: ProjectArgument, as_json: JsonOption = False) -> None:
    """List the versions of a project with what they are worth, newest first."""
    from backend.routes.api import encode_version

    encoded = [encode_version(version) for version in make_container(start()).projects.versions(project)]
    if not as_json:
        encoded = [
            {key: version[key] for key in ("version", "kind", "status", "n_labels")}
            | {key: round(version["metrics"][key], 3) for key in ("accuracy", "macro_f1", "log_loss", "ece")}
            | {"reason": version["reason"]}
            for version in encoded
        ]
    show(encoded, as_json)


@commands.command()
def rollback(project: ProjectArgument, version: str, as_json: JsonOption = False) -> None:
    """Make an earlier version active again."""
    from backend.routes.api import encode_version

    active = make_container(start()).promoting.rollback(project, version)
    show([encode_version(active)] if as_json else [{"active": active.name}], as_json)


@commands.command()
def forget(
    project: ProjectArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether this is meant.")] = False,
) -> None:
    """Remove all that Tandem keeps of a project, as when it was deleted in Label Studio."""
    projects = make_container(start()).projects
    known = projects.get(project)
    what = f"project {project} {known.project.title!r}: {known.n_tasks} tasks, {known.n_labels} labels, all versions"
    if not yes:
        typer.confirm(f"Forget {what}?", abort=True)
    projects.forget(project)
    output.print(f"forgotten: {what}", markup=False)


def show_job(container: Container, job: Job, wait: bool, as_json: bool) -> None:
    """Print a job; with ``wait``, follow it to its end and exit with 1 if it did not succeed."""
    from backend.routes.api import encode_job

    if wait:
        job = _follow(container, job)
    if as_json:
        show(encode_job(job, container.clock.now()), as_json=True)
    else:
        outcome = f"{job.kind.value} job {job.id}: {job.status.value}" + (f", {job.reason}" if job.reason else "")
        output.print(outcome, markup=False)
    if job.status in (JobStatus.FAILED, JobStatus.CANCELLED):
        raise typer.Exit(1)


def _follow(container: Container, job: Job) -> Job:
    with progress_bar() as on_progress:
        while job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
            on_progress(f"{job.kind.value} ({job.status.value})", job.progress.done, job.progress.total)
            time.sleep(0.3)
            job = container.projects.job(job.id)
    return job


def _numbers(project: dict[str, Any]) -> dict[str, Any]:
    accuracy = project["metrics"] and round(project["metrics"]["accuracy"], 3)
    return {
        "id": project["id"],
        "title": project["title"],
        "tasks": project["n_tasks"],
        "labels": project["n_labels"],
        "embedded": project["n_embedded"],
        "active version": project["active_version"],
        "accuracy": accuracy,
        "running": project["jobs"]["running"],
    }


def _sentences(project: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is to say about a project in words, and what each is about."""
    yield "next", project["policy"]["reason"]
    if project["pretrained"]:
        known = project["pretrained"]["classes"].items()
        yield "pretrained", "; ".join(f"{name}: {', '.join(categories)}" for name, categories in known)
    for problem in filter(None, [project["label_config"]["problem"], *project["problems"]]):
        yield "problem", problem
