"""The web application: blueprints, who may come in, and which error is which HTTP status."""

from __future__ import annotations

import hmac
import re

import structlog
from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from backend.bootstrap import Container
from backend.errors import (
    Conflict,
    InvalidRequest,
    LabelStudioError,
    LabelStudioUnavailable,
    NotFound,
    Overloaded,
    StoreUnavailable,
    TandemError,
)
from backend.logs import configure_logs
from backend.processes import one_linear_algebra_thread
from backend.routes.api import api_blueprint
from backend.routes.protocol import older_protocol_blueprint, protocol_blueprint
from backend.settings import Settings, load_settings

log = structlog.get_logger()

MAX_REQUEST_BYTES = 256 * 2**20
OPEN_PATHS = {"/", "/health"}
RETRY_AFTER_S = 2
STATUS_OF = {
    InvalidRequest: 400,
    NotFound: 404,
    Conflict: 409,
    LabelStudioUnavailable: 503,
    LabelStudioError: 502,
    StoreUnavailable: 503,
    Overloaded: 503,
    TandemError: 500,
}
"""The status of each error; of several that fit, the first one listed counts."""


def create_app(settings: Settings | None = None) -> Flask:
    """Return the web application, ready to answer and to be forked; nothing heavy is loaded."""
    settings = settings or load_settings()
    configure_logs(settings.log_level)
    one_linear_algebra_thread()
    container = Container(settings)
    app = Flask("tandem")
    app.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST_BYTES
    app.register_blueprint(protocol_blueprint(container))
    app.register_blueprint(older_protocol_blueprint(container))
    app.register_blueprint(api_blueprint(container))
    app.before_request(lambda: refuse_strangers(settings, container.webhook_secret))
    app.register_error_handler(TandemError, answer_error)
    app.register_error_handler(HTTPException, answer_http_error)
    app.register_error_handler(Exception, answer_surprise)
    container.warm_up_serving()
    return app


def refuse_strangers(settings: Settings, webhook_secret: str | None) -> Response | None:
    """Let in who has the Basic auth credentials, and webhooks that carry the secret.

    Label Studio sends its webhook events without the Basic auth credentials of the backend, but with the headers
    that are set on the webhook.
    """
    if request.path in OPEN_PATHS:
        return None
    if request.path == "/webhook" and webhook_secret:
        if _same(request.headers.get("X-Webhook-Secret", ""), webhook_secret) or _has_credentials(settings):
            return None
        log.warning("webhook refused: X-Webhook-Secret is missing or wrong; reconciliation repairs the webhook")
        return _error("unauthorized", "the header X-Webhook-Secret is missing or wrong", 401)
    if not settings.basic_auth_user or _has_credentials(settings):
        return None
    response = _error("unauthorized", "Basic auth is missing or wrong", 401)
    response.headers["WWW-Authenticate"] = 'Basic realm="Tandem"'
    return response


def _has_credentials(settings: Settings) -> bool:
    given = request.authorization
    if not settings.basic_auth_user or not settings.basic_auth_pass or given is None or given.type != "basic":
        return False
    same_user = _same(given.username or "", settings.basic_auth_user)
    return _same(given.password or "", settings.basic_auth_pass.get_secret_value()) and same_user


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def answer_error(error: TandemError) -> Response:
    """Answer one of our own errors."""
    status = next(status for kind, status in STATUS_OF.items() if isinstance(error, kind))
    code = re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
    response = _error(code, str(error), status, field=getattr(error, "field", None))
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
