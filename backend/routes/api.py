"""What people and scripts call: projects, versions and jobs as JSON under ``/api``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal, TypeVar

import structlog
from flask import Blueprint, Response, request
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from backend.domain import Job, ModelVersion, VersionKind
from backend.errors import InvalidRequest, NotFound
from backend.pretrained import PretrainedVersion
from backend.routes.drawings import reliability_svg
from backend.routes.reviews import Json, encode_forecast, encode_images, encode_label_review
from backend.services.projects import ProjectOverview, VersionDetail

if TYPE_CHECKING:
    from datetime import datetime

    from backend.bootstrap import Container
    from model.evaluation import Report
    from model.reports import VersionReport


class TrainRequest(BaseModel):
    """``POST /api/projects/{id}/train``."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["head", "finetune"] = "head"


class RollbackRequest(BaseModel):
    """``POST /api/projects/{id}/rollback``."""

    model_config = ConfigDict(extra="forbid")

    version: str


class ListRequest(BaseModel):
    """``GET /api/projects/{id}/suspects?limit=100``, and ``/pool``."""

    model_config = ConfigDict(extra="forbid")

    limit: PositiveInt = 100


Request = TypeVar("Request", bound=BaseModel)


def api_blueprint(container: Container) -> Blueprint:
    """Return the endpoints for people and scripts."""
    routes = Blueprint("api", __name__, url_prefix="/api")
    routes.before_request(_name_in_logs)

    @routes.get("/projects")
    def projects() -> list[Json]:
        return [encode_project(overview) for overview in container.projects.all()]

    @routes.get("/projects/<int:project_id>")
    def project(project_id: int) -> Json:
        return encode_project(container.projects.get(project_id))

    @routes.delete("/projects/<int:project_id>")
    def forget(project_id: int) -> tuple[str, int]:
        container.projects.forget(project_id)
        return "", 204

    @routes.get("/projects/<int:project_id>/jobs")
    def jobs(project_id: int) -> list[Json]:
        now = container.clock.now()
        return [encode_job(job, now) for job in container.projects.jobs(project_id)]

    @routes.post("/projects/<int:project_id>/train")
    def train(project_id: int) -> tuple[Json, int]:
        asked = _parse(TrainRequest)
        job = container.projects.train(project_id, VersionKind(asked.kind))
        return encode_job(job, container.clock.now()), 202

    @routes.post("/projects/<int:project_id>/sync")
    def sync(project_id: int) -> tuple[Json, int]:
        return encode_job(container.projects.sync(project_id), container.clock.now()), 202

    @routes.delete("/jobs/<int:job_id>")
    def cancel(job_id: int) -> Json:
        return encode_job(container.projects.cancel(job_id), container.clock.now())

    _add_versions(routes, container)
    _add_review(routes, container)
    return routes


def _name_in_logs() -> None:
    """Let the lines of a request name the project or job in its path."""
    named = request.view_args or {}
    ids = {name: named[f"{name}_id"] for name in ("project", "job") if f"{name}_id" in named}
    structlog.contextvars.bind_contextvars(**ids)


def _add_versions(routes: Blueprint, container: Container) -> None:
    @routes.get("/projects/<int:project_id>/versions")
    def versions(project_id: int) -> list[Json]:
        return [encode_version(version) for version in container.projects.versions(project_id)]

    @routes.get("/projects/<int:project_id>/versions/<version>")
    def version(project_id: int, version: str) -> Json:
        return encode_version_detail(container.projects.version(project_id, version))

    @routes.get("/projects/<int:project_id>/versions/<version>/reliability.svg")
    def reliability(project_id: int, version: str) -> Response:
        detail = container.projects.version(project_id, version)
        if detail.report is None:
            raise NotFound(f"{version} has no report: {detail.problem}")
        drawing = reliability_svg(detail.report.calibrated.reliability, detail.version.name)
        return Response(drawing, mimetype="image/svg+xml")

    @routes.post("/projects/<int:project_id>/rollback")
    def rollback(project_id: int) -> Json:
        return encode_version(container.promoting.rollback(project_id, _parse(RollbackRequest).version))


def _add_review(routes: Blueprint, container: Container) -> None:
    @routes.get("/projects/<int:project_id>/suspects")
    def suspects(project_id: int) -> Json:
        limit = _parse_query(ListRequest).limit
        return encode_label_review(container.review.suspects(project_id), limit)

    @routes.get("/projects/<int:project_id>/forecast")
    def forecast(project_id: int) -> Json:
        return encode_forecast(container.review.forecast(project_id))

    @routes.get("/projects/<int:project_id>/pool")
    def pool(project_id: int) -> Json:
        limit = _parse_query(ListRequest).limit
        return encode_images(container.survey.images(project_id), limit)


def _parse(model: type[Request]) -> Request:
    with _refusing():
        return model.model_validate_json(request.get_data() or b"{}")


def _parse_query(model: type[Request]) -> Request:
    with _refusing():
        return model.model_validate(request.args.to_dict())


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what pydantic finds wrong into an error that names the first field at fault."""
    try:
        yield
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(step) for step in problem["loc"]) or None
        raise InvalidRequest(problem["msg"], field=field) from None


def encode_project(overview: ProjectOverview) -> Json:
    """Return a project as the API shows it."""
    project = overview.project
    return {
        "id": project.id,
        "label_studio_id": project.identity.label_studio_id,
        "title": project.title,
        "class_names": list(project.schema.class_names) if project.schema else [],
        "label_config": {
            "supported": project.schema is not None,
            "problem": project.label_config.problem,
            "note": project.label_config.note,
        },
        "problems": list(project.problems),
        "n_tasks": overview.n_tasks,
        "n_labels": overview.n_labels,
        "n_embedded": overview.n_embedded,
        "n_unreadable": overview.n_unreadable,
        "active_version": overview.active.name if overview.active else None,
        "pretrained": encode_pretrained(overview.pretrained) if overview.pretrained else None,
        "pushed_version": project.pushed_version,
        "metrics": asdict(overview.active.metrics) if overview.active else None,
        "jobs": {
            "queued": [kind.value for kind in overview.queued],
            "running": [kind.value for kind in overview.running],
        },
        "policy": {
            "next": overview.decision.next.value if overview.decision.next else None,
            "reason": overview.decision.reason,
        },
        "last_event_at": _moment(project.event_at),
        "last_predict_at": _moment(project.predict_at),
        "last_sync_at": _moment(project.synced_at),
    }


def encode_pretrained(version: PretrainedVersion) -> Json:
    """Return, as the API shows it, by which of its categories the pretrained network knows which class."""
    return {
        "version": version.name,
        "classes": dict(zip(version.class_names, map(list, version.categories), strict=True)),
    }


def encode_version(version: ModelVersion) -> Json:
    """Return a version as the API shows it."""
    return {
        "version": version.name,
        "kind": version.kind.value,
        "status": version.status.value,
        "created_at": _moment(version.created_at),
        "n_labels": version.n_labels,
        "n_validation": version.n_validation,
        "class_names": list(version.class_names),
        "metrics": asdict(version.metrics),
        "reason": version.reason,
    }


def encode_version_detail(detail: VersionDetail) -> Json:
    """Return a version with its report as the API shows it; where it cannot be read, ``problem`` says why."""
    report = encode_report(detail.report) if detail.report else None
    return encode_version(detail.version) | {"report": report, "problem": detail.problem}


def encode_report(report: VersionReport) -> Json:
    """Return everything that is known of a version as the API shows it."""
    return {
        "uncalibrated": _figures(report.uncalibrated, report.class_names),
        "calibrated": _figures(report.calibrated, report.class_names),
        "temperature": report.temperature,
        "opinion_share": report.opinion_share,
        "thresholds": report.thresholds,
        "conformal": asdict(report.conformal) | asdict(report.conformal_report),
        "method": report.method,
        "seed": report.seed,
        "snapshot": report.snapshot,
        "pool": asdict(report.pool) if report.pool else None,
        "settings": {
            "backbone_digest": report.backbone_digest,
            "block_sizes": report.block_sizes,
            "candidates": report.candidates,
            "embedding": asdict(report.embedding) if report.embedding else None,
            "finetuning": report.finetuning,
        },
        "libraries": report.libraries,
        "timings_s": report.timings_s,
    }


def _figures(report: Report, class_names: tuple[str, ...]) -> Json:
    figures = asdict(report)
    per_class = zip(class_names, figures["per_class"], strict=True)
    return figures | {"per_class": [{"class_name": name} | each for name, each in per_class]}


def encode_job(job: Job, now: datetime) -> Json:
    """Return a job as the API shows it."""
    return {
        "id": job.id,
        "project_id": job.project_id,
        "kind": job.kind.value,
        "status": job.status.value,
        "progress": asdict(job.progress) | {"eta_s": job.eta_s(now)},
        "created_at": _moment(job.created_at),
        "started_at": _moment(job.started_at),
        "finished_at": _moment(job.finished_at),
        "attempts": job.attempts,
        "reason": job.reason,
    }


def _moment(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
