"""The route past Flask answers as Flask's own does, and leaves all else to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from flask import Flask, Response, request
from flask.testing import FlaskClient
from werkzeug.exceptions import HTTPException
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from backend.app import answer_error, answer_http_error, answer_surprise
from backend.errors import TandemError, Unauthorized
from backend.routes.shortcut import Shortcut

CREDENTIALS = {"Authorization": "Basic dGFuZGVtOg=="}


def check(asked: Request) -> None:
    if asked.headers.get("Authorization") != CREDENTIALS["Authorization"]:
        raise Unauthorized("Basic auth is missing or wrong")


def answer(body: bytes) -> bytes:
    if body == b"surprise":
        raise RuntimeError("of nobody's business")
    return b'{"length":%d}' % len(body)


def make_app() -> Flask:
    app = Flask("shortened")
    app.config["MAX_CONTENT_LENGTH"] = 100
    app.before_request(lambda: check(request))
    app.register_error_handler(TandemError, answer_error)
    app.register_error_handler(HTTPException, answer_http_error)
    app.register_error_handler(Exception, answer_surprise)

    @app.post("/predict")
    def predict() -> Response:
        return Response(answer(request.get_data()), mimetype="application/json")

    return app


@pytest.fixture
def long_way() -> FlaskClient:
    return make_app().test_client()


@pytest.fixture
def short_way() -> FlaskClient:
    app = make_app()
    app.wsgi_app = Shortcut(app, "predict", check, answer)  # type: ignore[method-assign]
    return app.test_client()


@pytest.mark.parametrize(
    ("method", "path", "body", "authorized", "status"),
    [
        ("POST", "/predict", b"five.", True, 200),
        ("POST", "/predict", b"", True, 200),
        ("POST", "/predict", b"five.", False, 401),
        ("POST", "/predict", b"surprise", True, 500),
        ("POST", "/predict", b"x" * 101, True, 413),
        ("POST", "/predict", b"x" * 101, False, 401),
        ("GET", "/predict", b"", True, 405),
        ("POST", "/predict/", b"five.", True, 404),
        ("POST", "/elsewhere", b"five.", True, 404),
    ],
)
def test_both_ways_end_in_the_same_answer(
    long_way: FlaskClient,
    short_way: FlaskClient,
    method: str,
    path: str,
    body: bytes,
    authorized: bool,
    status: int,
) -> None:
    headers = CREDENTIALS if authorized else {}
    answers = [client.open(path, method=method, data=body, headers=headers) for client in (long_way, short_way)]
    assert [each.status_code for each in answers] == [status, status]
    assert answers[0].data == answers[1].data
    assert dict(answers[0].headers) == dict(answers[1].headers)


@pytest.mark.parametrize("length", [None, "", "-1", "\u00b2", "five"])
def test_a_body_of_unknown_length_goes_the_long_way(
    long_way: FlaskClient, short_way: FlaskClient, length: str | None
) -> None:
    answers = []
    for client in (long_way, short_way):
        environ = EnvironBuilder("/predict", method="POST", data=b"five.", headers=CREDENTIALS).get_environ()
        environ |= {"CONTENT_LENGTH": length, "wsgi.input_terminated": True}
        if length is None:
            del environ["CONTENT_LENGTH"]
        answers.append(client.open(environ))
    assert answers[0].status_code == answers[1].status_code
    assert answers[0].data == answers[1].data == b'{"length":5}'


def test_whoever_counts_learns_the_route() -> None:
    app = make_app()
    shortcut, routes = Shortcut(app, "predict", check, answer), []

    def counted(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(*arguments: Any) -> Callable[[bytes], object]:
            routes.append(environ["werkzeug.request"].url_rule.rule)
            return start_response(*arguments)

        return shortcut(environ, start)

    app.wsgi_app = counted  # type: ignore[method-assign]
    for headers in (CREDENTIALS, {}):
        app.test_client().post("/predict", data=b"five.", headers=headers)
    assert routes == ["/predict", "/predict"]
