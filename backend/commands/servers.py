"""Starting Tandem."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.commands.context import make_container, start
from backend.errors import ConfigurationError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from backend.settings import Settings
    from backend.supervisor import Command


MAX_CONNECTIONS = 600
"""Of each web process: with its files and threads below 1024, a usual limit on open files."""

commands = typer.Typer()


@commands.command()
def serve(
    worker: Annotated[bool, typer.Option("--worker/--no-worker", help="Run the worker too.")] = True,
) -> None:
    """Run the web server and the worker."""
    from backend.processes import COUNTS_VARIABLE, counts_folder
    from backend.supervisor import Command, Supervisor

    settings = start("serve")
    commands = [_embedder_command(), Command(name="web", arguments=web_arguments(settings))]
    if worker:
        # the web process tells what the worker counts, too
        commands.append(_worker_command(metrics=False))
    with counts_folder(settings.model_dir) as folder:
        raise typer.Exit(Supervisor(commands, {COUNTS_VARIABLE: str(folder)}).run())


@commands.command()
def worker(
    embedder: Annotated[bool, typer.Option("--embedder/--no-embedder", help="Run the embedding process too.")] = True,
    metrics: Annotated[bool, typer.Option("--metrics/--no-metrics", help="Serve metrics on METRICS_PORT.")] = True,
) -> None:
    """Run the worker alone: several machines may run one each on a shared PostgreSQL database."""
    settings = start("worker")
    from backend.processes import COUNTS_VARIABLE, counts_folder, exit_with_parent
    from backend.supervisor import Supervisor, wrong_settings_told

    if embedder:
        commands = [_embedder_command(), _worker_command(metrics=metrics)]
        with counts_folder(settings.model_dir) as folder:
            raise typer.Exit(Supervisor(commands, {COUNTS_VARIABLE: str(folder)}).run())
    exit_with_parent()
    with wrong_settings_told():
        container = make_container(settings)
        running = container.worker()
        if metrics and settings.metrics_port:
            serve_metrics(settings.metrics_host, settings.metrics_port, container.worker_metrics)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: running.stop())
    if not running.run():
        # A thread that waits for the world cannot be ended; it would keep this process from it.
        os._exit(0)


@commands.command()
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


def serve_metrics(host: str, port: int, metrics: CollectorRegistry) -> None:
    """Answer Prometheus from now on, in threads of this process.

    Raises:
        ConfigurationError: nothing can listen there.
    """
    from prometheus_client import start_http_server

    try:
        start_http_server(port, host, metrics)
    except OSError as error:
        raise ConfigurationError(
            f"METRICS_PORT={port} of {host} cannot be listened on ({error.strerror}): "
            "give this worker another one, or the option --no-metrics"
        ) from error


def _embedder_command() -> Command:
    from backend.supervisor import Command

    return Command(
        name="embedder",
        arguments=(sys.executable, "-m", "backend.embedder"),
        ends_last=True,
        # threads that spin while they wait for each other take the cores from web and worker
        environment={"OMP_WAIT_POLICY": "PASSIVE"},
    )


def _worker_command(*, metrics: bool) -> Command:
    from backend.supervisor import Command

    options = ("--no-embedder",) if metrics else ("--no-embedder", "--no-metrics")
    return Command(name="worker", arguments=(sys.executable, "-m", "backend", "worker", *options))


def web_arguments(settings: Settings, application: str = "backend.gunicorn_hooks:application()") -> tuple[str, ...]:
    """Return the command line of the web server; ``application`` is what it serves."""
    from backend.admission import n_threads

    return (
        *(
            sys.executable,
            "-m",
            "gunicorn",
            application,
            "--config",
            "python:backend.gunicorn_hooks",
        ),
        *("--bind", _bound(settings.host, settings.port)),
        *(("--bind", _bound(settings.metrics_host, settings.metrics_port)) if settings.metrics_port else ()),
        *("--workers", str(settings.workers), "--worker-class", "gthread"),
        *("--threads", str(n_threads(settings.threads))),
        *("--worker-connections", str(MAX_CONNECTIONS), "--backlog", str(MAX_CONNECTIONS)),
        *("--timeout", "120", "--graceful-timeout", "20", "--keep-alive", "30"),
        # without it gunicorn opens a socket in the home folder, which may be read-only
        "--no-control-socket",
    )


def _bound(host: str, port: int) -> str:
    """Return what gunicorn is to listen on; an IPv6 address may stand in brackets."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
