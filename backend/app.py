"""The web application: blueprints, and which error is which HTTP status."""

from __future__ import annotations

import re
from functools import partial

import structlog
from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import IntegerConverter, Map

from backend.bootstrap import STORAGE_PATIENCE_S, Container
from backend.errors import (
    Conflict,
    CrossSiteRequest,
    InvalidRequest,
    LabelStudioError,
    LabelStudioUnavailable,
    NotFound,
    Overloaded,
    RateLimited,
    StoreUnavailable,
    TandemError,
    Unauthorized,
)
from backend.logs import configure_logs
from backend.processes import one_linear_algebra_thread
from backend.routes.access import Access, Guarded
from backend.routes.api import api_blueprint
from backend.routes.openapi import openapi_blueprint
from backend.routes.operations import MetricsPort, Observed, operations_blueprint
from backend.routes.protocol import answer_predict, older_protocol_blueprint, protocol_blueprint
from backend.routes.shortcut import Shortcut
from backend.settings import Settings, load_settings

log = structlog.get_logger()

RETRY_AFTER_S = 2
STATUS_OF = {
    InvalidRequest: 400,
    Unauthorized: 401,
    CrossSiteRequest: 403,
    NotFound: 404,
    Conflict: 409,
    RateLimited: 429,
    LabelStudioUnavailable: 503,
    LabelStudioError: 502,
    StoreUnavailable: 503,
    Overloaded: 503,
    TandemError: 500,
}
"""The status of each error; of several that fit, the first one listed counts."""


class RowNumber(IntegerConverter):
    """What may stand for ``<int:…>`` in a path: a number that a database can hold; others lead nowhere."""

    def __init__(self, url_map: Map) -> None:
        super().__init__(url_map, max=2**63 - 1)


def create_app(settings: Settings | None = None) -> Flask:
    """Return the web application, ready to answer and to be forked; nothing heavy is loaded."""
    settings = settings or load_settings()
    configure_logs(settings.log_level, settings.log_format, process="web")
    one_linear_algebra_thread()
    container = Container(settings, storage_patience_s=STORAGE_PATIENCE_S)
    app = Flask("tandem")
    app.url_map.converters["int"] = RowNumber
    app.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes
    app.register_blueprint(protocol_blueprint(container))
    app.register_blueprint(older_protocol_blueprint(container))
    app.register_blueprint(api_blueprint(container))
    app.register_blueprint(openapi_blueprint())
    app.register_blueprint(operations_blueprint(container, with_metrics=settings.metrics_port is None))
    access = Access(settings, container.webhook_secret)
    app.before_request(lambda: access.check(request))
    app.register_error_handler(TandemError, answer_error)
    app.register_error_handler(HTTPException, answer_http_error)
    app.register_error_handler(Exception, answer_surprise)
    shortcut = Shortcut(app, "protocol.predict", access.check, partial(answer_predict, container))
    app.wsgi_app = Observed(Guarded(shortcut))  # type: ignore[method-assign]
    if settings.metrics_port:
        app.wsgi_app = MetricsPort(app.wsgi_app, container, settings.metrics_port)  # type: ignore[method-assign]
    container.warm_up_serving()
    return app


def answer_error(error: TandemError) -> Response:
    """Answer one of our own errors."""
    status = next(status for kind, status in STATUS_OF.items() if isinstance(error, kind))
    code = re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
    response = _error(code, str(error), status, field=getattr(error, "field", None))
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = 'Basic realm="Tandem"'
    if isinstance(error, RateLimited):
        response.headers["Retry-After"] = str(error.retry_after_s)
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def answer_http_error(error: HTTPException) -> Response:
    """Answer an unknown path, a wrong method, a request too large."""
    return _error(error.name.lower().replace(" ", "_"), error.description or error.name, error.code or 500)


def answer_surprise(error: Exception) -> Response:
    """Answer an error that nobody foresaw: the traceback goes to the log, never out."""
    log.exception("request failed", path=request.path, error_type=type(error).__name__)
    return _error("internal_error", "something went wrong: Tandem's log has the details", 500)


def _error(code: str, message: str, status: int, *, field: str | None = None) -> Response:
    response = jsonify(error={"code": code, "message": message} | ({"field": field} if field else {}))
    response.status_code = status
    return response
