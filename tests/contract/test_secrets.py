"""Whatever is asked of the web application, no secret reaches its log or an answer, however much is logged."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path

import pytest
import structlog

from backend.app import create_app
from backend.settings import Settings

API_KEY = "canary-api-key"
PASSWORD = "canary-password"
WEBHOOK_SECRET = "canary-webhook-secret"
SETUP_TOKEN = "canary-token-of-somebody"
SIGNATURE = "canary-signature"
RECORDINGS = Path(__file__).parent / "recordings"
CREDENTIALS = {"Authorization": "Basic " + base64.b64encode(f"tandem:{PASSWORD}".encode()).decode()}
HEADERS: tuple[dict[str, str], ...] = (
    CREDENTIALS,
    {"X-Webhook-Secret": WEBHOOK_SECRET},
    {"Authorization": f"Bearer {PASSWORD}"},
    {"Authorization": "Basic " + base64.b64encode(f"x:{PASSWORD}".encode()).decode()},
    {},
)


def bodies() -> list[bytes]:
    """Return all that was recorded, with secrets where requests may hold some, whole and broken."""
    found = []
    for path in sorted(RECORDINGS.glob("*.json")):
        body = json.loads(path.read_text()).get("request", {}).get("json")
        if not isinstance(body, dict):
            continue
        body["access_token"] = SETUP_TOKEN
        for task in body.get("tasks") or []:
            if isinstance(task, dict):
                task["data"] = {key: f"http://127.0.0.1:9/i.jpg?sig={SIGNATURE}" for key in task.get("data") or {}}
        whole = json.dumps(body).encode()
        found += [whole, whole[: len(whole) // 2]]
    return found


@pytest.fixture
def _logs_are_put_back() -> object:
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("_logs_are_put_back")
def test_no_secret_in_logs_or_answers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    app = create_app(
        Settings(
            model_dir=tmp_path,
            label_studio_url="http://127.0.0.1:9",
            label_studio_api_key=API_KEY,
            basic_auth_user="tandem",
            basic_auth_pass=PASSWORD,
            webhook_secret=WEBHOOK_SECRET,
            predict_timeout_s=0.1,
            image_timeout_s=0.1,
            log_level="DEBUG",
        )
    )
    client = app.test_client()
    answers = []
    for number, body in enumerate(bodies()):
        for path in ("/setup", "/predict", "/webhook", "/train", "/job_status"):
            # each from an address of its own: nobody is refused for guessing
            client.environ_base["REMOTE_ADDR"] = f"192.0.2.{number % 250}"
            headers = HEADERS[number % len(HEADERS)]
            answers.append(client.post(path, data=body, headers=headers).text)
    answers += [client.get(path, headers=CREDENTIALS).text for path in ("/api/projects", "/metrics", "/ready")]
    captured = capfd.readouterr()
    logged = captured.err + captured.out
    assert "event stored" in logged
    for text in (logged, *answers):
        assert "canary" not in text
        assert base64.b64encode(f"tandem:{PASSWORD}".encode()).decode() not in text
