"""The demo from end to end: two servers, a project of pictures, an annotator, and suggestions that get better."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from backend.demo.annotator import Annotator, DemoFailed, StoredSuggestion
from backend.demo.digits import CLASS_NAMES, draw_digits
from backend.demo.rounds import HEADING, Round, measure_round
from backend.demo.servers import TandemServer, label_studio_in, start_tandem, stop_servers
from backend.label_studio_installation import VERSION
from backend.local_label_studio import LocalLabelStudio

FOLDER = Path("demo-data")
CACHE_DIR = Path(".cache")
N_PICTURES = 300
ROUNDS = (10, 20, 40, 80, 120)
POLL_S = 0.5
STALL_TIMEOUT_S = 300.0

UNTRAINED = (
    "[yellow]no pretrained weights can be had here: the backbone is untrained, and the suggestions are worse[/yellow]"
)

Report = Callable[[str], None]


def run_demo(
    folder: Path = FOLDER,
    *,
    cache_dir: Path = CACHE_DIR,
    n_pictures: int = N_PICTURES,
    rounds: Sequence[int] = ROUNDS,
    console: Console | None = None,
) -> list[Round]:
    """Run the whole demo, telling what happens on the console, and leave both servers running.

    Args:
        folder: where both servers keep what they have; used again by the next demo.
        cache_dir: where the installed Label Studio is kept.
        n_pictures: how many tasks the project gets; more than the last of ``rounds``.
        rounds: after how many labels in all the suggestions are judged.
        console: where to tell; the terminal by default.

    Returns:
        What each round brought.

    Raises:
        ServerFailed: a server does not start; the message holds the end of its log.
        DemoFailed: the loop did not close; the message says at which step.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    if not rounds or max(rounds) >= n_pictures:
        raise DemoFailed(f"{n_pictures} pictures are too few for rounds of {list(rounds)} labels: some must stay open")
    with console.status("") as status:
        label_studio = label_studio_in(folder, cache_dir, status.update)
        label_studio.start()
        console.print(f"Label Studio {VERSION} runs at {label_studio.url}")
        tandem = start_tandem(folder, label_studio, status.update)
        console.print(f"Tandem runs at {tandem.url}")
        annotator = Annotator(label_studio.url, label_studio.token)
        title = f"Handwritten digits {datetime.now():%Y-%m-%d %H:%M:%S}"  # noqa: DTZ005 - for people who live here
        truth = _prepare_project(annotator, title, n_pictures, tandem, status.update)
        console.print(f"project {annotator.project_id}, “{title}”: {n_pictures} pictures, Tandem connected")
        loop = Loop(annotator, tandem, title, truth, status.update)
        loop.wait_until_embedded()
        if tandem.is_untrained:
            console.print(UNTRAINED)
        console.print(f"\n{HEADING}", style="dim")
        results = []
        for n_labels in sorted(rounds):
            results.append(loop.run_round(n_labels))
            console.print(results[-1])
    console.print(_farewell(label_studio, tandem, annotator.project_id))
    return results


def stop_demo(folder: Path = FOLDER, *, cache_dir: Path = CACHE_DIR, console: Console | None = None) -> None:
    """Stop the servers that a demo left running; what they keep stays for the next one."""
    stopped = stop_servers(folder, cache_dir)
    (console or Console(highlight=False, soft_wrap=True)).print(
        f"stopped: {' and '.join(stopped)}" if stopped else "nothing runs"
    )


def _prepare_project(
    annotator: Annotator, title: str, n_pictures: int, tandem: TandemServer, report: Report
) -> dict[int, str]:
    report("drawing pictures of handwritten digits")
    pictures = draw_digits(n_pictures)
    annotator.make_project(title, CLASS_NAMES)
    truth = annotator.upload(pictures, lambda done: report(f"uploading pictures: {done} of {n_pictures}"))
    report("connecting Tandem to the project")
    annotator.connect(tandem.url)
    return truth


class Loop:
    """Labels go in, and the suggestions that come out are judged."""

    def __init__(
        self, annotator: Annotator, tandem: TandemServer, title: str, truth: dict[int, str], report: Report
    ) -> None:
        self._annotator = annotator
        self._tandem = tandem
        self._title = title
        self._truth = truth
        self._report = report
        self._labelled: set[int] = set()

    def wait_until_embedded(self) -> None:
        """Wait until Tandem has looked at every picture once."""
        most = 0
        deadline_s = time.monotonic() + STALL_TIMEOUT_S
        while most < len(self._truth):
            project = self._find_project()
            n_embedded = project["n_embedded"] if project else 0
            if n_embedded > most:
                most = n_embedded
                deadline_s = time.monotonic() + STALL_TIMEOUT_S
            seen = f"{most} of {len(self._truth)}"
            self._report(f"Tandem looks at every picture once: {seen}")
            self._pause(deadline_s, f"Tandem has looked at {seen} pictures")

    def run_round(self, n_labels: int) -> Round:
        """Label until there are ``n_labels``, wait for the suggestions learned from them, and judge these."""
        while len(self._labelled) < n_labels:
            task_id = self._annotator.next_task()
            self._annotator.label(task_id, self._truth[task_id])
            self._labelled.add(task_id)
            self._report(f"the annotator labels what Tandem is least sure of: {len(self._labelled)} of {n_labels}")
        submitted_s = time.monotonic()
        version, suggestions = self._wait_for_suggestions()
        wait_s = time.monotonic() - submitted_s
        return measure_round(suggestions, self._truth, self._labelled, version=version, wait_s=wait_s)

    def _wait_for_suggestions(self) -> tuple[str, list[StoredSuggestion]]:
        deadline_s = time.monotonic() + STALL_TIMEOUT_S
        n_open = len(self._truth) - len(self._labelled)
        while True:
            version = self._settled_version()
            self._report("Tandem learns from the labels" if version is None else "Tandem stores new suggestions")
            stored = self._annotator.suggestions(version) if version else {}
            suggestions = [suggestion for task_id, suggestion in stored.items() if task_id not in self._labelled]
            if version and len(suggestions) == n_open:
                return version, suggestions
            self._pause(deadline_s, f"{len(suggestions)} of {n_open} tasks have a new suggestion")

    def _settled_version(self) -> str | None:
        """Return the active version once every label was learned from, even where the result was rejected."""
        project = self._find_project()
        if project is None or project["active_version"] is None:
            return None
        versions = self._tandem.get(f"/api/projects/{project['id']}/versions")
        learned = [version for version in versions if version["n_labels"] >= len(self._labelled)]
        if not learned or learned[0]["status"] == "candidate":
            return None
        return str(project["active_version"])

    def _pause(self, deadline_s: float, so_far: str) -> None:
        if time.monotonic() > deadline_s:
            raise DemoFailed(f"nothing more happened in {STALL_TIMEOUT_S:.0f} s: {so_far}. {self._state()}")
        time.sleep(POLL_S)

    def _find_project(self) -> dict[str, Any] | None:
        projects: list[dict[str, Any]] = self._tandem.get("/api/projects")
        return next((project for project in projects if project["title"] == self._title), None)

    def _state(self) -> str:
        log_tail = self._tandem.process.log_tail()
        project = self._find_project()
        if project is None:
            return f"Tandem does not know the project. {log_tail}"
        jobs = self._tandem.get(f"/api/projects/{project['id']}/jobs")
        reasons = [f"{job['kind']} {job['status']}: {job['reason']}" for job in jobs[:10] if job["reason"]]
        return "\n    ".join([f"Next: {project['policy']['reason']}", *project.get("problems", []), *reasons, log_tail])


def _farewell(label_studio: LocalLabelStudio, tandem: TandemServer, project_id: int) -> str:
    return f"""
Both servers keep running. Label on yourself: the next tasks carry suggestions, the least sure ones come first.

  [bold]Label Studio[/bold]  {label_studio.url}/projects/{project_id}/data
                user {label_studio.username}   password {label_studio.password}
  [bold]Tandem[/bold]        {tandem.url}/api/projects
                log {tandem.process.log_file}
  [bold]stop both[/bold]     make demo-stop
"""
