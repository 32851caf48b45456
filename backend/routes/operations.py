"""What operators and their tools ask: whether Tandem is ready, and its metrics."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import structlog
from flask import Blueprint, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest, make_wsgi_app

from backend.measurements import Counting, labelled, request_durations

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


class Observed:
    """Names, counts and logs every request of an application, whoever answers it and how.

    Around the application, because what Flask does around each of its own hooks takes longer than all of this.
    """

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        started_s = time.perf_counter()
        request_id = _request_id(environ.get("HTTP_X_REQUEST_ID", ""))
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request=request_id)

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
            _note(environ, int(status[:3]), time.perf_counter() - started_s)
            headers.append(("X-Request-ID", request_id))
            return start_response(status, headers, *error)

        return self._application(environ, start)


def _note(environ: WSGIEnvironment, status: int, duration_s: float) -> None:
    asked: Request | None = environ.get("werkzeug.request")
    # not the path: everybody may invent those, and each would become a time series
    rule = asked.url_rule if asked else None
    method = environ["REQUEST_METHOD"]
    counted = (method, rule.rule, str(status)) if rule else ("any", "unknown", str(status))
    with Counting():
        labelled(request_durations, *counted).observe(duration_s)
    level = _level(status)
    if log.is_enabled_for(level):
        path = asked.path if asked else ""
        log.log(level, "request answered", method=method, path=path, status=status, duration_s=round(duration_s, 4))


def _request_id(given: str) -> str:
    """Return what a proxy before us calls the request, unless that is no id, so that both logs can be put together."""
    if given and re.fullmatch(r"[A-Za-z0-9._:/+=@-]{1,128}", given):
        return given
    # Nothing depends on that nobody can guess it; to ask the system for randomness is to wait behind other threads.
    return f"{random.getrandbits(128):032x}"


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

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        # the port that the connection came in by, not one that the client names
        answering = self._metrics if environ.get("SERVER_PORT") == self._port else self._application
        return answering(environ, start_response)
