"""What operators and their tools ask: whether Tandem is ready, and its metrics."""

from __future__ import annotations

import logging
import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog
from flask import Blueprint, Flask, Response, g, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest, make_wsgi_app

from backend.measurements import counting, request_durations

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from backend.bootstrap import Container

Json = dict[str, Any]

log = structlog.get_logger()


def operations_blueprint(container: Container, *, with_metrics: bool) -> Blueprint:
    """Return ``/ready``, and ``/metrics`` unless that has a port of its own."""
    routes = Blueprint("operations", __name__)

    @routes.get("/ready")
    def ready() -> tuple[Json, int]:
        readiness = container.monitoring.readiness()
        if readiness.reasons:
            return {"status": "not ready", "reasons": readiness.reasons, "embedder": readiness.embedder.value}, 503
        return {"status": "ready", "embedder": readiness.embedder.value}, 200

    if with_metrics:

        @routes.get("/metrics")
        def metrics() -> Response:
            return Response(generate_latest(container.web_metrics), content_type=CONTENT_TYPE_LATEST)

    return routes


def observe_requests(app: Flask) -> None:
    """Name, count and log every request of an application, whoever answers it and how."""

    @app.before_request
    def start() -> None:
        g.started_s = time.perf_counter()
        g.request_id = _request_id(request.headers.get("X-Request-ID", ""))
        named = request.view_args or {}
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(
            request=g.request_id,
            **{name: named[f"{name}_id"] for name in ("project", "job") if f"{name}_id" in named},
        )

    @app.after_request
    def end(response: Response) -> Response:
        duration_s = time.perf_counter() - g.started_s
        # not the path: everybody may invent those, and each would become a time series
        route = request.url_rule.rule if request.url_rule else "unknown"
        method = request.method if request.url_rule else "any"
        with counting():
            request_durations.labels(method, route, response.status_code).observe(duration_s)
        response.headers["X-Request-ID"] = g.request_id
        log.log(
            _level(response.status_code),
            "request answered",
            method=request.method,
            path=request.path,
            status=response.status_code,
            duration_s=round(duration_s, 4),
        )
        return response


def _request_id(given: str) -> str:
    """Return what a proxy before us calls the request, unless that is no id, so that both logs can be put together."""
    return given if re.fullmatch(r"[A-Za-z0-9._:/+=@-]{1,128}", given) else uuid4().hex


def _level(status: int) -> int:
    """Return how much a request matters: those that went well are many."""
    if status < HTTPStatus.BAD_REQUEST:
        return logging.DEBUG
    return logging.INFO if status < HTTPStatus.INTERNAL_SERVER_ERROR else logging.WARNING


class MetricsPort:
    """Metrics for whoever comes in by one port, the application for all others."""

    def __init__(self, application: WSGIApplication, container: Container, port: int) -> None:
        self._application = application
        self._metrics: WSGIApplication = make_wsgi_app(container.web_metrics)
        self._port = str(port)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        """Answer a request."""
        # the port that the connection came in by, not one that the client names
        answering = self._metrics if environ.get("SERVER_PORT") == self._port else self._application
        return answering(environ, start_response)
