"""What is checked, and what a check says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check ended; ``FAILED``: something does not work, ``WARNING``: it works, but not as well as it could."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


class Check(StrEnum):
    """Every check, by the name that people and scripts see; docs/doctor.md says what each looks at."""

    SETTINGS = "settings"
    MODEL_DIR = "model folder"
    DISK = "disk"
    DATABASE = "database"
    ARTIFACTS = "artifacts"
    GPU = "gpu"
    EMBEDDER = "embedder"
    WEIGHTS = "weights"
    WEB_SERVER = "web server"
    WORKER = "worker"
    LABEL_STUDIO_URL = "label studio url"
    LABEL_STUDIO = "label studio"
    VERSIONS = "versions"
    CLOCK = "clock"
    API_KEY = "api key"
    PUBLIC_URL = "public url"
    BACKEND_ADDRESS = "backend address"
    WEBHOOK_ADDRESS = "webhook address"
    PROJECTS = "projects"
    PROJECT = "project"
    CONNECTION = "connection"
    WEBHOOK = "webhook"
    EVENTS = "events"
    LABEL_CONFIG = "label config"
    IMAGES = "images"
    JOBS = "jobs"
    MODEL_VERSION = "model version"
    SAMPLING = "sampling"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found, and in one line what to do about it; ``project`` is Tandem's id, where it is about one."""

    check: Check
    status: Status
    found: str
    remedy: str = ""
    project: int | None = None


def ok(check: Check, found: str, *, project: int | None = None) -> Finding:
    """Return that all is well."""
    return Finding(check=check, status=Status.OK, found=found, project=project)


def warning(check: Check, found: str, remedy: str, *, project: int | None = None) -> Finding:
    """Return that it works, but not as well as it could."""
    return Finding(check=check, status=Status.WARNING, found=found, remedy=remedy, project=project)


def failed(check: Check, found: str, remedy: str, *, project: int | None = None) -> Finding:
    """Return that something does not work."""
    return Finding(check=check, status=Status.FAILED, found=found, remedy=remedy, project=project)


def skipped(check: Check, found: str, *, project: int | None = None) -> Finding:
    """Return why a check was not made."""
    return Finding(check=check, status=Status.SKIPPED, found=found, project=project)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What the settings and the surroundings say; no secret is among it."""

    tandem_version: str
    torch_version: str
    label_studio_url: str | None
    has_api_key: bool
    public_url: str | None
    own_url: str
    uses_basic_auth: bool
    device: str
    backbone: str
    weights: str
    pushes_predictions: bool
    in_container: bool
