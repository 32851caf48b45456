"""The command ``tandem``."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from backend.domain import Job, JobStatus, Suggestion, VersionKind
from backend.errors import ConfigurationError, InvalidRequest, TandemError
from backend.logs import configure_logs
from backend.settings import Settings, load_settings
from backend.terminal import messages, output, progress_bar, show

if TYPE_CHECKING:
    from backend.bootstrap import Container
    from backend.supervisor import Command

app = typer.Typer(
    name="tandem",
    help="Image backend for Label Studio: learns from labels in the background and returns calibrated suggestions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

FolderArgument = Annotated[Path, typer.Argument(help="A sub-folder per class, or labels.csv with columns file,labels.")]
ProjectArgument = Annotated[int, typer.Argument(help="The project, by Tandem's id (tandem status lists them).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the job to end.")]
SIMULATED_STRATEGIES = ["random", "tandem"]


def main() -> None:
    """Run the command line, turning errors into one line and an exit status."""
    try:
        app()
    except TandemError as error:
        messages.print(f"[red]tandem:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigurationError | InvalidRequest) else 1)


@app.command()
def serve(
    worker: Annotated[bool, typer.Option("--worker/--no-worker", help="Run the worker too.")] = True,
) -> None:
    """Run the web server and the worker."""
    from backend.supervisor import Command, Supervisor

    settings = start("serve")
    commands = [_embedder_command(), Command(name="web", arguments=web_arguments(settings))]
    if worker:
        commands.append(_worker_command())
    Supervisor(commands).run()


@app.command()
def worker(
    embedder: Annotated[bool, typer.Option("--embedder/--no-embedder", help="Run the embedding process too.")] = True,
) -> None:
    """Run the worker alone: several machines may run one each on a shared PostgreSQL database."""
    settings = start("worker")
    if embedder:
        from backend.supervisor import Supervisor

        Supervisor([_embedder_command(), _worker_command()]).run()
        return
    from backend.processes import exit_with_parent

    exit_with_parent()
    running = make_container(settings).worker()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: running.stop())
    running.run()


@app.command()
def sync(project: ProjectArgument, wait: WaitOption = True, as_json: JsonOption = False) -> None:
    """Bring in from Label Studio what events missed."""
    container = make_container(start())
    show_job(container, container.projects.sync(project), wait, as_json)


@app.command()
def train(
    project: ProjectArgument,
    kind: Annotated[VersionKind, typer.Option(help="What to train.")] = VersionKind.HEAD,
    wait: WaitOption = True,
    as_json: JsonOption = False,
) -> None:
    """Train a version now, without waiting for the policy."""
    container = make_container(start())
    show_job(container, container.projects.train(project, kind), wait, as_json)


@app.command()
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


@app.command()
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


@app.command()
def rollback(project: ProjectArgument, version: str, as_json: JsonOption = False) -> None:
    """Make an earlier version active again."""
    from backend.routes.api import encode_version

    active = make_container(start()).training.rollback(project, version)
    show([encode_version(active)] if as_json else [{"active": active.name}], as_json)


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Show all projects, their versions and what goes on."""
    from backend.routes.api import encode_project

    encoded = [encode_project(overview) for overview in make_container(start()).projects.all()]
    if not as_json:
        encoded = [
            {key: each[key] for key in ("id", "title", "n_tasks", "n_labels", "n_embedded", "active_version")}
            | {
                "accuracy": each["metrics"] and round(each["metrics"]["accuracy"], 3),
                "running": ", ".join(each["jobs"]["running"]),
                "next": each["policy"]["reason"],
                "problems": "; ".join(filter(None, [each["label_config"]["problem"], *each["problems"]])),
            }
            for each in encoded
        ]
    show(encoded, as_json)


@app.command()
def suspects(
    project: ProjectArgument,
    limit: Annotated[int, typer.Option(min=1, help="How many to show at most.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """List the labels that are probably wrong, the most probable first, and say how far annotators agree."""
    from backend.routes.api import encode_label_review

    review = make_container(start()).review.suspects(project)
    encoded = encode_label_review(review, limit)
    if as_json:
        show(encoded, as_json=True)
        return
    if encoded["suspects"]:
        show([each | {"confidence": round(each["confidence"], 3)} for each in encoded["suspects"]], as_json=False)
    output.print(f"{len(review.suspects)} of {review.n_checked} labels are suspect")
    agreement = review.agreement
    if agreement.share is not None:
        output.print(
            f"annotators agree on {agreement.share:.0%} of the {agreement.n_tasks} tasks that several answered"
        )


@app.command()
def forecast(project: ProjectArgument, as_json: JsonOption = False) -> None:
    """Say what more labels would bring."""
    from backend.routes.api import encode_forecast

    expected = make_container(start()).review.forecast(project)
    if as_json:
        show(encode_forecast(expected), as_json=True)
    else:
        output.print(expected.sentence)


@app.command()
def fit(
    folder: FolderArgument,
    pool: Annotated[Path | None, typer.Option(help="A folder of unlabelled images, which help.")] = None,
    test: Annotated[
        Path | None, typer.Option(help="A folder like FOLDER to measure on; a fifth of it otherwise.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides what is random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Learn from a folder of images without any Label Studio, and say what the result is worth."""
    settings = start("fit")
    from backend.processes import one_linear_algebra_thread
    from backend.services.folders import TEST_FOLD, FolderSettings, fit_folder, image_files, read_folder

    labelled = read_folder(folder)
    test_part = read_folder(test, labelled.schema) if test else labelled.part(labelled.folds == TEST_FOLD)
    train_part = labelled if test else labelled.part(labelled.folds != TEST_FOLD)
    folder_settings = FolderSettings(
        backbone=settings.backbone,
        weights=settings.weights,
        image_views=settings.image_views,
        device=settings.device,
        finetune_min_labels=settings.finetune_min_labels,
        max_image_pixels=settings.max_image_pixels,
        seed=seed,
    )
    one_linear_algebra_thread()
    with progress_bar() as on_progress:
        result = fit_folder(train_part, image_files(pool) if pool else [], test_part, folder_settings, on_progress)
    encoded = {
        "metrics": asdict(result.metrics),
        "uncalibrated": {"ece": result.uncalibrated_ece, "log_loss": result.uncalibrated_log_loss},
        "kind": result.kind.value,
        "n_labels": result.n_labels,
        "n_test": result.n_test,
        "class_names": list(result.class_names),
        "method": result.method,
        "seconds": asdict(result.seconds),
    }
    if as_json:
        show(encoded, as_json=True)
    else:
        rows = asdict(result.metrics) | {"uncalibrated ece": result.uncalibrated_ece}
        show([{"measure": name, "value": round(value, 4)} for name, value in rows.items()], as_json=False)
        output.print(f"{result.kind.value} on {result.n_labels} labels, {result.seconds.total:.1f} s")
        if result.note:
            messages.print(f"[yellow]{escape(result.note)}[/yellow]")


@app.command()
def simulate(
    folder: FolderArgument,
    strategies: Annotated[
        list[str], typer.Option(help="What to compare with random: repeated, or separated by commas.")
    ] = SIMULATED_STRATEGIES,
    seeds: Annotated[int, typer.Option(min=1, help="How many replays of each strategy.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Labels until there is a new model.")] = 5,
    test_share: Annotated[float, typer.Option(min=0.05, max=0.95, help="Share of the images to measure on.")] = 0.3,
    budgets: Annotated[
        list[str] | None, typer.Option(help="Numbers of labels to compare at: repeated, or separated by commas.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--output", help="A JSON file to write.")] = None,
    figure: Annotated[Path | None, typer.Option(help="A .png, .svg or .pdf file to draw the curves into.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay the labelling of a labelled folder: how many labels each query strategy would have taken."""
    settings = start("simulate")
    check_files(json_file, figure)
    from backend.processes import one_linear_algebra_thread
    from backend.services.folders import read_folder
    from backend.services.simulation import SimulationSettings, simulate_labelling
    from model.query_report import accuracy_rows, draw, saving_rows

    simulation_settings = SimulationSettings(
        backbone=settings.backbone,
        weights=settings.weights,
        image_views=settings.image_views,
        device=settings.device,
        max_image_pixels=settings.max_image_pixels,
        strategies=listed(strategies),
        n_seeds=seeds,
        batch_size=batch_size,
        test_share=test_share,
        budgets=as_numbers(listed(budgets or [])),
    )
    labelled = read_folder(folder)
    one_linear_algebra_thread()
    with progress_bar() as on_progress:
        result = simulate_labelling(
            folder.resolve().name, labelled.schema, labelled.paths, labelled.labelled, simulation_settings, on_progress
        )
    if as_json:
        show(asdict(result), as_json=True)
    else:
        show(accuracy_rows(result.curves), as_json=False)
        show(saving_rows(result.curves), as_json=False)
        output.print(
            f"accuracy in % on {result.n_test} held-out images of {result.n_images}, "
            f"mean of {seeds} replays with a new model every {batch_size} labels"
        )
    if result.note:
        messages.print(f"[yellow]{escape(result.note)}[/yellow]")
    if json_file:
        json_file.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    if figure and find_spec("matplotlib"):
        draw(result.curves, figure)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo's servers keep their data.")] = Path("demo-data"),
    stop: Annotated[bool, typer.Option("--stop", help="Stop the servers that an earlier demo left running.")] = False,
) -> None:
    """Start a real Label Studio and Tandem, and watch suggestions get better while an annotator labels."""
    from backend.demo import run_demo, stop_demo

    if stop:
        stop_demo(folder)
    else:
        run_demo(folder)


# --- what the commands share ------------------------------------------------------------------------------------


def start(name: str | None = None) -> Settings:
    """Read the settings and switch logs on: all of them for servers, only problems for other commands."""
    settings = load_settings()
    configure_logs(settings.log_level if name in ("serve", "worker") else "WARNING")
    return settings


def listed(values: list[str]) -> list[str]:
    """Return the values of an option that may be repeated, and hold several separated by commas."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def as_numbers(values: list[str]) -> list[int]:
    """Return whole numbers.

    Raises:
        InvalidRequest: one of them is none.
    """
    for value in values:
        if not value.isdecimal():
            raise InvalidRequest(f"{value!r} is not a number of labels")
    return [int(value) for value in values]


def check_files(json_file: Path | None, figure: Path | None) -> None:
    """Find out before the work whether its results can be written, and say so if there will be no figure.

    Raises:
        InvalidRequest: the files cannot be written.
    """
    for path in (json_file, figure):
        if path and (path.is_dir() or not path.parent.is_dir()):
            raise InvalidRequest(f"{path} cannot be written: it is a folder, or the folder around it does not exist")
    if figure and figure.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InvalidRequest(f"{figure} is neither a .png, .svg nor .pdf file")
    if figure and not find_spec("matplotlib"):
        messages.print(
            "there will be no figure without matplotlib: pip install 'tandem-label-studio[plots]'", markup=False
        )


def make_container(settings: Settings) -> Container:
    """Wire everything together; imported here, so that ``tandem --help`` answers at once."""
    from backend.bootstrap import Container

    return Container(settings)


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


def _embedder_command() -> Command:
    from backend.supervisor import Command

    return Command(
        name="embedder",
        arguments=(sys.executable, "-m", "backend.embedder"),
        # threads that spin while they wait for each other take the cores from web and worker
        environment={"OMP_WAIT_POLICY": "PASSIVE"},
    )


def _worker_command() -> Command:
    from backend.supervisor import Command

    return Command(name="worker", arguments=(sys.executable, "-m", "backend", "worker", "--no-embedder"))


def web_arguments(settings: Settings) -> tuple[str, ...]:
    """Return the command line of the web server."""
    return (
        *(sys.executable, "-m", "gunicorn", "backend.app:create_app()", "--config", "python:backend.gunicorn_hooks"),
        *("--bind", f"{settings.host}:{settings.port}"),
        *("--workers", str(settings.workers), "--worker-class", "gthread", "--threads", str(settings.threads)),
        *("--timeout", "120", "--graceful-timeout", "20", "--keep-alive", "30"),
        # without it gunicorn opens a socket in the home folder, which may be read-only
        "--no-control-socket",
    )
