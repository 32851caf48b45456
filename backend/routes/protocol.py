"""What Label Studio calls. Every endpoint but ``/predict`` answers in milliseconds, whatever else goes on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, request
from pydantic_core import to_json

from backend.domain import Job, JobKind, JobStatus, Suggestion
from backend.errors import NotFound
from backend.label_studio.payloads import (
    JobStatusRequest,
    PredictRequest,
    SetupRequest,
    encode_predict_response,
    encode_setup_response,
    encode_versions,
    parse_event,
    parse_training_request,
)
from backend.measurements import Counting, labelled, predict_durations, suggestions

if TYPE_CHECKING:
    from backend.bootstrap import Container

Json = dict[str, Any]


def protocol_blueprint(container: Container) -> Blueprint:
    """Return the endpoints of Label Studio's machine learning protocol."""
    routes = Blueprint("protocol", __name__)

    @routes.get("/")
    @routes.get("/health")
    def health() -> Json:
        return {"status": "UP", "model_class": "Tandem"}

    @routes.post("/setup")
    def setup() -> Json:
        return encode_setup_response(container.ingestion.setup(SetupRequest.parse(request.get_data())))

    @routes.post("/predict")
    def predict() -> Response:
        return Response(answer_predict(container, request.get_data()), mimetype="application/json")

    @routes.post("/webhook")
    def webhook() -> Json:
        return _accept(container.ingestion.handle(parse_event(request.get_data())))

    @routes.route("/versions", methods=["GET", "POST"])
    def versions() -> Json:
        projects = container.projects.all()
        return encode_versions([overview.active.name for overview in projects if overview.active])

    return routes


def answer_predict(container: Container, body: bytes) -> bytes:
    """Return the JSON that answers ``POST /predict``.

    Raises:
        InvalidRequest: the body is none that Label Studio sends.
        Overloaded: too many ask at once.
    """
    started_s = time.perf_counter()
    asked = PredictRequest.parse(body)
    with container.admission:
        answer = container.prediction.predict(asked.project, asked.tasks)
    response = to_json(encode_predict_response(answer.results, answer.schema))
    n_suggested = sum(isinstance(result, Suggestion) for result in answer.results)
    images = "unknown" if answer.n_unknown_images else "known"
    with Counting():
        labelled(suggestions, "made").inc(n_suggested)
        labelled(suggestions, "none").inc(len(answer.results) - n_suggested)
        labelled(predict_durations, images).observe(time.perf_counter() - started_s)
    return response


def older_protocol_blueprint(container: Container) -> Blueprint:
    """Return what versions of Label Studio before 1.23 call besides."""
    routes = Blueprint("older_protocol", __name__)

    @routes.post("/train")
    def train() -> Json:
        return _accept(container.ingestion.handle(parse_training_request(request.get_data())))

    @routes.get("/is_training")
    def is_training() -> Json:
        trainings = {JobKind.HEAD, JobKind.FINETUNE}
        return {"is_training": any(trainings & set(overview.running) for overview in container.projects.all())}

    @routes.post("/job_status")
    def job_status() -> Json:
        job_id = JobStatusRequest.parse(request.get_data())
        if job_id is None:
            raise NotFound("the body names no job of ours")
        job = container.projects.job(job_id)
        return {
            "job_status": job.status.value,
            "error": job.reason if job.status is JobStatus.FAILED else None,
            "created_at": job.created_at.isoformat(),
            "finished_at": job.finished_at and job.finished_at.isoformat(),
        }

    return routes


def _accept(job: Job | None) -> Json:
    return {"status": "accepted"} | ({"job": job.id} if job else {})
