"""What benchmarks/serving.py measures: a real Tandem on generated photos, and the processes it consists of."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from backend.background_process import free_port
from backend.commands.servers import web_arguments
from backend.settings import Settings

CLASS_NAMES = ("heath", "moor", "dune", "wood")
LABEL_CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="choice" toName="image">'
    + "".join(f'<Choice value="{name}"/>' for name in CLASS_NAMES)
    + "</Choices></View>"
)
CREATED_AT = "2026-01-01T00:00:00Z"
IDENTITY = "1.1767225600"
PHOTO_SIZE = (640, 480)
N_DRAWN = 24
TIMEOUT_S = 300.0


def draw_photo(seed: int) -> bytes:
    """Return a JPEG with detail at every scale, so that decoding has its usual work."""
    generator = np.random.default_rng(seed)
    layers = []
    for side in (4, 16, 64, 240):
        noise = generator.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8)
        layers.append(np.asarray(Image.fromarray(noise).resize(PHOTO_SIZE, Image.Resampling.BICUBIC), np.float32))
    mixed = np.average(layers, axis=0, weights=(4, 3, 2, 1)).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(mixed).save(file, format="JPEG", quality=90)
    return file.getvalue()


def commented(photo: bytes, number: int) -> bytes:
    """Return the photo with a number as its comment: other bytes, the same work."""
    comment = str(number).encode()
    return photo[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + photo[2:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Photos:
    """Photos in a folder that Label Studio would serve as local files; no two have the same bytes."""

    root: Path

    def write(self, n_photos: int) -> None:
        (self.root / "photos").mkdir(parents=True)
        drawn = [draw_photo(seed) for seed in range(N_DRAWN)]
        for number in range(1, n_photos + 1):
            self.path(number).write_bytes(commented(drawn[number % N_DRAWN], number))

    def path(self, number: int) -> Path:
        return self.root / "photos" / f"{number}.jpg"

    def task(self, number: int) -> dict[str, Any]:
        return {"id": number, "data": {"image": f"/data/local-files/?d=photos/{number}.jpg"}}

    def body(self, number: int) -> bytes:
        """Return what Label Studio sends to ask for one task."""
        params = {"login": None, "password": None, "context": None}
        asked = {"tasks": [self.task(number)], "project": IDENTITY, "label_config": LABEL_CONFIG, "params": params}
        return json.dumps(asked).encode()


def write_weights(backbone: str, path: Path) -> None:
    """Write random weights: as fast as learned ones, and treated like them."""
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(backbone, weights=None).state_dict(), path)


class Tandem:
    """A running ``tandem serve``."""

    def __init__(self, folder: Path, photos: Photos, backbone: str) -> None:
        self.folder = folder
        self.photos = photos
        self.variables = {
            "LABEL_STUDIO_URL": "http://label-studio.invalid",
            "LOCAL_FILES_ROOT": str(photos.root),
            "MODEL_DIR": str(folder),
            "HOST": "127.0.0.1",
            "PORT": str(free_port()),
            "BACKBONE": backbone,
            "WEIGHTS": str(folder / "weights.pt"),
            "FINETUNE_MIN_LABELS": "1000000",
            "PUSH_PREDICTIONS": "false",
            "LOG_LEVEL": "WARNING",
        }
        self.port = int(self.variables["PORT"])
        self.url = f"http://127.0.0.1:{self.port}"

    def settings(self, **changed: object) -> Settings:
        values = {name.lower(): value for name, value in self.variables.items()} | changed
        return Settings(**values)  # type: ignore[arg-type]

    def environment(self, **changed: str) -> dict[str, str]:
        return {**os.environ, **self.variables, **changed}  # noqa: TID251 - handed on to a child

    @contextmanager
    def serving(self) -> Iterator[int]:
        """Run all of Tandem; lend the supervisor's process id."""
        arguments = (sys.executable, "-m", "backend", "serve")
        with running(arguments, self.environment(), self.port) as pid:
            yield pid

    def learn(self, n_photos: int, n_labelled: int | None = None) -> None:
        """Tell of photos and the labels of the first of them, and wait until all are embedded and learned from."""
        project = {"id": 1, "created_at": CREATED_AT, "title": "Benchmark", "label_config": LABEL_CONFIG}
        numbers = range(1, n_photos + 1)
        tasks = [self.photos.task(number) for number in numbers]
        self._tell({"action": "TASKS_CREATED", "project": project, "tasks": tasks})
        wait_for(lambda: bool(self._project()["n_embedded"] == n_photos), "all photos embedded")
        for task in tasks[:n_labelled]:
            chosen = {"choices": [CLASS_NAMES[task["id"] % len(CLASS_NAMES)]]}
            region = {"from_name": "choice", "to_name": "image", "type": "choices", "value": chosen}
            annotation = {"id": task["id"], "task": task["id"], "result": [region], "updated_at": CREATED_AT}
            self._tell({"action": "ANNOTATION_CREATED", "project": project, "task": task, "annotation": annotation})
        wait_for(lambda: not self._unfinished() and bool(self._project()["active_version"]), "a version")

    def fine_tune(self) -> int:
        """Start a fine-tuning and return its job's id, once batches are trained on."""
        answer = requests.post(f"{self.url}/api/projects/1/train", json={"kind": "finetune"}, timeout=30)
        answer.raise_for_status()
        job_id = int(answer.json()["id"])

        def is_training() -> bool:
            job = next(job for job in self._jobs() if job["id"] == job_id)
            if job["status"] not in ("queued", "running"):
                raise SystemExit(f"the fine-tuning has ended: {job['reason']}")
            return bool(job["progress"]["unit"] == "batches" and job["progress"]["done"] > 0)

        wait_for(is_training, "a fine-tuning under way")
        return job_id

    def cancel(self, job_id: int) -> None:
        requests.delete(f"{self.url}/api/jobs/{job_id}", timeout=30).raise_for_status()

    def _tell(self, event: dict[str, Any]) -> None:
        requests.post(f"{self.url}/webhook", json=event, timeout=30).raise_for_status()

    def _project(self) -> dict[str, Any]:
        return dict(requests.get(f"{self.url}/api/projects/1", timeout=30).json())

    def _jobs(self) -> list[dict[str, Any]]:
        return list(requests.get(f"{self.url}/api/projects/1/jobs", timeout=30).json())

    def _unfinished(self) -> list[dict[str, Any]]:
        return [job for job in self._jobs() if job["status"] in ("queued", "running")]


@contextmanager
def serving_tandem(backbone: str, n_photos: int) -> Iterator[tuple[Tandem, int]]:
    """Run all of Tandem in a folder of its own that goes in the end; lend it and the supervisor's process id."""
    with tempfile.TemporaryDirectory() as folder:
        photos = Photos(root=Path(folder) / "files")
        photos.write(n_photos)
        model_dir = Path(folder) / "tandem"
        model_dir.mkdir()
        write_weights(backbone, model_dir / "weights.pt")
        tandem = Tandem(model_dir, photos, backbone)
        with tandem.serving() as supervisor:
            yield tandem, supervisor


@contextmanager
def web_server(settings: Settings, environment: dict[str, str], application: str | None = None) -> Iterator[int]:
    """Run Tandem's web server, or another application under its settings; lend the process id of gunicorn's master."""
    arguments = web_arguments(settings) if application is None else web_arguments(settings, application)
    folder = str(Path(__file__).parent)
    with running((*arguments, "--pythonpath", folder), environment, settings.port) as pid:
        yield pid


@contextmanager
def running(arguments: tuple[str, ...], environment: dict[str, str], port: int) -> Iterator[int]:
    with subprocess.Popen(arguments, env=environment) as process:
        try:
            wait_for(lambda: is_listening(port) or process.poll() is not None, f"port {port}")
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def is_listening(port: int) -> bool:
    try:
        requests.get(f"http://127.0.0.1:{port}/health", timeout=2)
    except requests.RequestException:
        return False
    return True


def wait_for(question: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not question():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"not within {TIMEOUT_S:.0f} s: {what}")
        time.sleep(0.1)


def descendants(pid: int) -> list[int]:
    """Return the process ids of children, their children and so on."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def training_process(supervisor: int) -> int:
    """Return the process of the fine-tuning: the only one with the lowest priority."""
    idle = [pid for pid in descendants(supervisor) if os.sched_getscheduler(pid) in (os.SCHED_BATCH, os.SCHED_IDLE)]
    if len(idle) != 1:
        raise SystemExit(f"one process with the lowest priority was expected, there are {len(idle)}")
    return idle[0]


def web_master(supervisor: int) -> int:
    """Return gunicorn's master process."""
    for pid in descendants(supervisor):
        if b"gunicorn" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise SystemExit("no web server was found below tandem serve")


def memory_mb(pid: int) -> tuple[float, float]:
    """Return a process's proportional share of memory, and what it shares with none."""
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    kilobytes = {name.rstrip(":"): int(value) for name, value, *_ in lines}
    return kilobytes["Pss"] / 1024, (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) / 1024


def processor_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
