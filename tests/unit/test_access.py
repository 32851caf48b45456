"""Who may come in, how often, and what browsers are told."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import pytest
from flask import Flask, request
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from backend.app import answer_error
from backend.errors import TandemError
from backend.routes.access import CHANGES, FAILED_LOGINS, Access, Counts, Guarded
from backend.settings import Settings

PASSWORD = "correct horse"
SECRET = "battery staple"


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


RIGHT = basic("tandem", PASSWORD)
WRONG = basic("tandem", "guess")


def make_client(tmp_path: Path, webhook_secret: str | None = None, **settings: object) -> FlaskClient:
    app = Flask("guarded", root_path=str(tmp_path))
    for path in ("/health", "/webhook", "/predict", "/api/projects"):
        app.add_url_rule(path, path, lambda: "ok", methods=["GET", "POST"])
    access = Access(Settings(model_dir=tmp_path, **settings), webhook_secret)  # type: ignore[arg-type]
    app.before_request(lambda: access.check(request))
    app.wsgi_app = Guarded(app.wsgi_app)  # type: ignore[method-assign]
    app.register_error_handler(TandemError, answer_error)
    return app.test_client()


@pytest.fixture
def guarded(tmp_path: Path) -> FlaskClient:
    return make_client(tmp_path, SECRET, basic_auth_user="tandem", basic_auth_pass=PASSWORD)


def assert_limited(answer: TestResponse) -> None:
    assert answer.status_code == 429
    assert answer.get_json()["error"]["code"] == "rate_limited"
    assert 1 <= int(answer.headers["Retry-After"]) <= 60


def test_guessing_passwords_ends_after_some_tries(guarded: FlaskClient) -> None:
    for _ in range(FAILED_LOGINS):
        assert guarded.get("/api/projects", headers=WRONG).status_code == 401
    assert_limited(guarded.get("/api/projects", headers=WRONG))
    assert_limited(guarded.get("/api/projects", headers=RIGHT))


def test_others_come_in_while_somebody_guesses(guarded: FlaskClient) -> None:
    for _ in range(FAILED_LOGINS + 1):
        guarded.get("/api/projects", headers=WRONG, environ_base={"REMOTE_ADDR": "192.0.2.1"})
    assert guarded.get("/api/projects", headers=RIGHT, environ_base={"REMOTE_ADDR": "192.0.2.2"}).status_code == 200


def test_a_webhook_with_an_old_secret_does_not_lock_out_what_has_credentials(guarded: FlaskClient) -> None:
    for _ in range(FAILED_LOGINS):
        assert guarded.post("/webhook", headers={"X-Webhook-Secret": "old"}).status_code == 401
    assert_limited(guarded.post("/webhook", headers={"X-Webhook-Secret": "old"}))
    assert guarded.post("/predict", headers=RIGHT).status_code == 200


def test_a_request_without_credentials_is_no_guess(guarded: FlaskClient) -> None:
    for _ in range(3 * FAILED_LOGINS):
        assert guarded.get("/api/projects").status_code == 401
    assert guarded.get("/api/projects", headers=RIGHT).status_code == 200


def test_a_limit_is_one_of_a_minute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = make_client(tmp_path, rate_limit_per_minute=2)
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    assert [client.post("/predict").status_code for _ in range(3)] == [200, 200, 429]
    now_s += 60
    assert [client.post("/predict").status_code for _ in range(3)] == [200, 200, 429]


def test_clients_that_came_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts(max_windows=3)
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    for number in range(3):
        counts.add("requests", f"192.0.2.{number}")
    now_s += 30
    assert counts.add("requests", "192.0.2.0") == 2
    now_s += 31
    assert counts.add("requests", "192.0.2.3") == 1
    assert list(counts._windows) == [("requests", "192.0.2.3")]


def test_requests_are_limited_but_for_health(tmp_path: Path) -> None:
    client = make_client(tmp_path, rate_limit_per_minute=5)
    assert [client.post("/predict").status_code for _ in range(5)] == [200] * 5
    assert_limited(client.post("/predict"))
    assert client.get("/health").status_code == 200


def test_changes_are_limited_and_reading_is_not(tmp_path: Path) -> None:
    client = make_client(tmp_path)
    assert {client.post("/api/projects").status_code for _ in range(CHANGES)} == {200}
    assert_limited(client.post("/api/projects"))
    assert client.get("/api/projects").status_code == 200


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200), (None, 200)]
)
def test_pages_elsewhere_change_nothing_with_a_browsers_credentials(
    guarded: FlaskClient, site: str | None, status: int
) -> None:
    headers = RIGHT | ({"Sec-Fetch-Site": site} if site else {})
    assert guarded.post("/api/projects", headers=headers).status_code == status


@pytest.mark.parametrize("path", ["/health", "/api/projects", "/nowhere"])
def test_every_answer_tells_browsers_to_do_nothing_with_it(guarded: FlaskClient, path: str) -> None:
    headers = guarded.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["Cache-Control"] == "no-store"
