"""The two servers of the demo: both outlive it, with everything they keep in one folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from backend.background_process import BackgroundProcess, ServerFailed, free_port
from backend.demo.annotator import DemoFailed
from backend.local_label_studio import HOST, LocalLabelStudio
from backend.settings import Settings

START_TIMEOUT_S = 180.0
REQUEST_TIMEOUT_S = 30.0
LABEL_STUDIO_PORT = 8080
TANDEM_PORT = 9090
# The best of the small ones where no pretrained weights can be had.
BACKBONE = "resnet18"
# What somebody may want to try the demo with; all other settings are the demo's own.
KEPT_SETTINGS = {"backbone", "weights", "device", "log_level"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TandemServer:
    """A running Tandem as scripts see it: its API, its log."""

    url: str
    process: BackgroundProcess
    _session: requests.Session = field(default_factory=requests.Session, repr=False)

    def get(self, path: str) -> Any:
        """Return the JSON that Tandem answers.

        Raises:
            DemoFailed: no answer, or an error.
        """
        self._session.trust_env = False
        try:
            answer = self._session.get(self.url + path, timeout=REQUEST_TIMEOUT_S)
        except requests.RequestException as error:
            raise DemoFailed(f"Tandem did not answer GET {path}: {error}. {self.process.log_tail()}") from error
        if not answer.ok:
            raise DemoFailed(f"Tandem refused GET {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()

    @property
    def is_untrained(self) -> bool:
        """Whether the log says that there were no pretrained weights to be had."""
        return "untrained network" in self.process.log_file.read_text(encoding="utf-8", errors="replace")


def label_studio_in(folder: Path, cache_dir: Path, report: Callable[[str], None]) -> LocalLabelStudio:
    """Describe the demo's Label Studio; it is not started yet."""
    return LocalLabelStudio(
        folder / "label-studio", cache_dir=cache_dir, preferred_port=LABEL_STUDIO_PORT, report=report
    )


def tandem_process(folder: Path) -> BackgroundProcess:
    """Describe the process of the demo's Tandem."""
    return BackgroundProcess(folder=folder.absolute(), name="tandem")


def start_tandem(folder: Path, label_studio: LocalLabelStudio, report: Callable[[str], None]) -> TandemServer:
    """Start Tandem for a Label Studio, anew where one runs already, so that the newest code and settings count.

    Raises:
        ServerFailed: with the end of the log.
    """
    process = tandem_process(folder)
    process.stop()
    process.log_file.unlink(missing_ok=True)
    port = free_port(HOST, TANDEM_PORT)
    url = f"http://{HOST}:{port}"
    settings = {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.token,
        "PUBLIC_URL": url,
        "HOST": HOST,
        "PORT": str(port),
        "MODEL_DIR": str(folder.absolute() / "tandem"),
        "BACKBONE": BACKBONE,
        "TRAIN_QUIET_S": "0.5",
        "TRAIN_MAX_WAIT_S": "5",
    }
    process.start([sys.executable, "-m", "backend", "serve"], tandem_environment(settings))
    server = TandemServer(url=url, process=process)
    started_s = time.monotonic()
    while not _is_healthy(url):
        process.check_alive()
        elapsed_s = time.monotonic() - started_s
        if elapsed_s > START_TIMEOUT_S:
            process.stop()
            raise ServerFailed(f"Tandem is not healthy after {START_TIMEOUT_S:.0f} s. {process.log_tail()}")
        report(f"Tandem starts ({elapsed_s:.0f} s)")
        time.sleep(0.2)
    return server


def tandem_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with these settings; of others of Tandem's only KEPT_SETTINGS stay, and win."""
    inherited = os.environ  # noqa: TID251 - handed on to a child, no setting of ours is read
    foreign = set(Settings.model_fields) - KEPT_SETTINGS
    kept = {name: value for name, value in inherited.items() if name.lower() not in foreign}
    return dict(settings) | kept


def stop_servers(folder: Path, cache_dir: Path) -> list[str]:
    """Stop what runs of the demo's servers; return their names."""
    label_studio = label_studio_in(folder, cache_dir, lambda _: None)
    stopped = {"Tandem": tandem_process(folder).stop(), "Label Studio": label_studio.stop()}
    return [name for name, was_running in stopped.items() if was_running]


def _is_healthy(url: str) -> bool:
    try:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(f"{url}/health", timeout=2).ok
    except requests.RequestException:
        return False
