"""The client against a real HTTP server that answers what each test says."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from backend.domain import LabelSchema, Sampling, Suggestion, Webhook
from backend.errors import (
    ConfigurationError,
    LabelStudioError,
    LabelStudioRejected,
    LabelStudioUnauthorized,
    LabelStudioUnavailable,
)
from backend.label_studio.client import MAX_REFUSED_IMPORTS, LabelStudioClient

LEGACY = "0123456789abcdef0123456789abcdef01234567"
SCHEMA = LabelSchema(control_name="c", object_name="img", data_key="image", class_names=("cat", "dog"))
PROJECT = {"id": 5, "created_at": "2026-11-23T18:59:51Z", "model_version": "v1"}


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    body: object = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None


Respond = Callable[[Request], Answer]


@dataclass
class Server:
    """``respond`` is called for each request, from several threads; ``requests`` keeps them."""

    url: str = ""
    respond: Respond = field(default=lambda _: Answer(PROJECT))
    requests: list[Request] = field(default_factory=list)

    def script(self, *answers: Answer) -> None:
        remaining = list(answers)
        self.respond = lambda _: remaining.pop(0)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            parts = urlsplit(self.path)
            request = Request(
                method=self.command,
                path=parts.path,
                query={key: values[0] for key, values in parse_qs(parts.query).items()},
                headers=dict(self.headers),
                body=json.loads(self.rfile.read(length)) if length else None,
            )
            server.requests.append(request)
            answer = server.respond(request)
            content = answer.raw if answer.raw is not None else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - names that http.server looks for

        def log_message(self, *_: object) -> None:
            pass

    class QuietServer(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Clients may hang up before they were answered."""

    httpd = QuietServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    httpd.shutdown()
    thread.join()
    httpd.server_close()


Connect = Callable[..., LabelStudioClient]


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    clients = []

    def make(api_key: str = LEGACY, secret: str | None = None, path: str = "", **limits: Any) -> LabelStudioClient:
        limits = {"first_delay_s": 0.001, "timeout_s": 5.0, **limits}
        clients.append(LabelStudioClient(server.url + path, api_key, secret, **limits))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def jwt(lifetime_s: float, name: str = "") -> str:
    def part(content: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    # The server's clock is years behind: only the difference counts.
    return f"{part({'alg': 'HS256'})}.{part({'iat': 1000, 'exp': 1000 + lifetime_s, 'jti': name})}.{part('signature')}"


PERSONAL = jwt(1e9, "personal")


def connection_options(address: tuple[str, int], *options: tuple[int, int]) -> list[int]:
    """Return options of the end in this process of a connection to an address."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(descriptor.name))) as end:
            if end.getpeername() == address:
                return [end.getsockopt(*option) for option in options]
    raise AssertionError(f"there is no connection to {address}")


def test_a_machine_that_died_is_noticed_within_a_minute(server: Server, connect: Connect) -> None:
    client = connect()
    client.project(5)
    is_asked, idle_s, interval_s, n_times = connection_options(
        ("127.0.0.1", urlsplit(server.url).port or 0),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    )
    assert is_asked
    assert idle_s + interval_s * n_times <= 60


# --- retries and refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_failures_that_may_pass_are_tried_again(server: Server, connect: Connect, status: int) -> None:
    server.script(Answer(status=status), Answer(status=status), Answer(PROJECT))
    assert connect().project(5).identity.label_studio_id == 5
    assert len(server.requests) == 3


def test_tries_come_to_an_end(server: Server, connect: Connect) -> None:
    server.respond = lambda _: Answer({"secret": "echo"}, status=503)
    with pytest.raises(LabelStudioUnavailable, match="answered GET /api/projects/5/ with 503") as caught:
        connect().project(5)
    assert len(server.requests) == 4
    assert "echo" not in str(caught.value)


def test_retry_after_is_kept(server: Server, connect: Connect) -> None:
    server.script(Answer(status=429, headers={"Retry-After": "1"}), Answer(PROJECT))
    started = time.monotonic()
    connect().project(5)
    assert time.monotonic() - started >= 1


def test_a_long_retry_after_is_left_to_the_caller(server: Server, connect: Connect) -> None:
    server.respond = lambda _: Answer(status=429, headers={"Retry-After": "3600"})
    with pytest.raises(LabelStudioUnavailable):
        connect().project(5)
    assert len(server.requests) == 1


def test_refusals_are_not_tried_again(server: Server, connect: Connect) -> None:
    server.respond = lambda _: Answer({"detail": "canary"}, status=404)
    with pytest.raises(LabelStudioRejected, match="with 404") as caught:
        connect().project(5)
    assert caught.value.status == 404
    assert "canary" not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda client: client.import_predictions(5, SCHEMA, suggestions(1)),
        lambda client: client.import_predictions(5, replace(SCHEMA, nested=True), suggestions(1)),
        lambda client: client.delete_predictions(5, "v1"),
        lambda client: client.create_webhook(5, "http://tandem.test/webhook"),
        lambda client: client.create_view(5, "Label next", [1]),
    ],
)
def test_a_change_whose_answer_is_lost_is_not_sent_again(
    server: Server, connect: Connect, change: Callable[[LabelStudioClient], object]
) -> None:
    views = [{"id": 1, "data": {"title": "Default"}}]
    server.respond = lambda asked: (
        Answer(status=502) if asked.method != "GET" else Answer(views if asked.path == "/api/dm/views/" else PROJECT)
    )
    with pytest.raises(LabelStudioUnavailable):
        change(connect())
    assert len([asked for asked in server.requests if asked.method != "GET"]) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda client: client.set_model_version(5, "v1"),
        lambda client: client.set_sampling(5, Sampling.UNCERTAINTY),
        lambda client: client.update_view(5, 1, [1]),
    ],
)
def test_a_change_that_may_be_made_twice_is_sent_again(
    server: Server, connect: Connect, change: Callable[[LabelStudioClient], object]
) -> None:
    def respond(asked: Request) -> Answer:
        if asked.method == "GET":
            return Answer({"id": 1, "data": {"title": "Label next"}})
        return Answer(status=200 if sum(each.method != "GET" for each in server.requests) > 1 else 502)

    server.respond = respond
    change(connect())
    assert len([asked for asked in server.requests if asked.method != "GET"]) == 2


def test_silence_ends_in_time(server: Server, connect: Connect) -> None:
    released = threading.Event()

    def wait(_: Request) -> Answer:
        released.wait(10)
        return Answer(PROJECT)

    server.respond = wait
    with pytest.raises(LabelStudioUnavailable, match="did not answer in time"):
        connect(timeout_s=0.05).project(5)
    released.set()


@pytest.mark.parametrize(
    "call",
    [
        lambda client: list(client.annotated_tasks(5, SCHEMA)),
        lambda client: client.import_predictions(5, SCHEMA, suggestions(1)),
        lambda client: client.delete_predictions(5, "v1"),
    ],
)
def test_what_keeps_label_studio_busy_is_waited_for(
    server: Server, connect: Connect, call: Callable[[LabelStudioClient], object]
) -> None:
    def respond(asked: Request) -> Answer:
        if asked.path == "/api/projects/5/":
            return Answer(PROJECT)
        time.sleep(0.8)
        return Answer({"tasks": [], "total": 0, "created": 1})

    server.respond = respond
    call(connect(timeout_s=0.6))


def test_nobody_there() -> None:
    client = LabelStudioClient("http://127.0.0.1:9", LEGACY, None, first_delay_s=0.001)
    with pytest.raises(LabelStudioUnavailable, match="cannot be reached: check LABEL_STUDIO_URL") as caught:
        client.project(5)
    assert LEGACY not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(raw=b"<html>log in</html>"), "not with JSON"),
        (Answer({"id": "x"}), "not as expected in id"),
        (Answer([1]), "not as expected in whole"),
    ],
)
def test_answers_that_are_not_label_studios(server: Server, connect: Connect, answer: Answer, message: str) -> None:
    server.respond = lambda _: answer
    with pytest.raises(LabelStudioRejected, match=message) as caught:
        connect().project(5)
    assert "log in" not in str(caught.value)


def test_redirects_are_not_followed(server: Server, connect: Connect) -> None:
    server.respond = lambda _: Answer(status=302, headers={"Location": "https://elsewhere.example/path?token=canary"})
    with pytest.raises(LabelStudioRejected, match=r"a redirect to https://elsewhere\.example: set") as caught:
        connect().project(5)
    assert "canary" not in str(caught.value)
    assert len(server.requests) == 1


def test_a_base_path_is_kept(server: Server, connect: Connect) -> None:
    client = connect(path="/label-studio/")
    client.project(5)
    assert client.base_url == f"{server.url}/label-studio"
    assert server.requests[0].path == "/label-studio/api/projects/5/"


def test_cookies_and_the_environment_are_ignored(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.respond = lambda _: Answer(PROJECT, headers={"Set-Cookie": "sessionid=1; Path=/"})
    client = connect()
    client.project(5)
    client.project(5)
    assert [request.headers.get("Cookie") for request in server.requests] == [None, None]


# --- API keys --------------------------------------------------------------------------------------------


def test_a_legacy_token_is_sent_as_it_is(server: Server, connect: Connect) -> None:
    client = connect(f" {LEGACY}\n")
    client.project(5)
    assert server.requests[0].headers["Authorization"] == f"Token {LEGACY}"
    assert client.authorization() == {"Authorization": f"Token {LEGACY}"}


@pytest.mark.parametrize(
    ("detail", "message"),
    [
        ("Authentication token no longer valid: legacy token authentication has been disabled", "are switched off"),
        ("Invalid token.", "does not know"),
    ],
)
def test_a_refused_legacy_token(server: Server, connect: Connect, detail: str, message: str) -> None:
    server.respond = lambda _: Answer({"detail": detail}, status=401)
    with pytest.raises(LabelStudioUnauthorized, match=f"is a legacy token.*{message}.*personal access token") as caught:
        connect().project(5)
    assert LEGACY not in str(caught.value)
    assert len(server.requests) == 1


@dataclass
class TokenServer:
    """Exchanges a personal access token for access tokens, and takes none but the newest."""

    lifetime_s: float = 300
    issued: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: Request) -> Answer:
        if request.path == "/api/token/refresh":
            with self.lock:
                assert request.body == {"refresh": PERSONAL}
                assert "Authorization" not in request.headers
                self.issued.append(jwt(self.lifetime_s, str(len(self.issued))))
                time.sleep(0.02)
                return Answer({"access": self.issued[-1]})
        valid = self.issued and request.headers["Authorization"] == f"Bearer {self.issued[-1]}"
        return Answer(PROJECT) if valid else Answer({"detail": "expired"}, status=401)


def test_a_personal_access_token_is_exchanged_once(server: Server, connect: Connect) -> None:
    server.respond = tokens = TokenServer()
    client = connect(PERSONAL)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client.project, [5] * 16))
    assert len(tokens.issued) == 1
    assert client.authorization() == {"Authorization": f"Bearer {tokens.issued[0]}"}


def test_an_access_token_is_renewed_before_it_expires(server: Server, connect: Connect) -> None:
    server.respond = tokens = TokenServer(lifetime_s=0.2)
    client = connect(PERSONAL)
    client.project(5)
    time.sleep(0.15)
    client.project(5)
    assert len(tokens.issued) == 2


def test_a_refused_access_token_is_renewed_once_for_all_threads(server: Server, connect: Connect) -> None:
    server.respond = tokens = TokenServer()
    client = connect(PERSONAL)
    client.project(5)
    tokens.issued.append("revoked")
    barrier = threading.Barrier(4)

    def call(_: int) -> None:
        barrier.wait()
        client.project(5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))
    assert len(tokens.issued) == 3


def test_a_refused_personal_access_token(server: Server, connect: Connect) -> None:
    server.respond = lambda _: Answer({"detail": "Token is invalid"}, status=401)
    with pytest.raises(LabelStudioUnauthorized, match=r"is a personal access token that .* does not accept") as caught:
        connect(PERSONAL).project(5)
    assert PERSONAL not in str(caught.value)
    assert len(server.requests) == 1


def test_an_access_token_that_is_never_taken(server: Server, connect: Connect) -> None:
    server.respond = lambda request: (
        Answer({"access": jwt(300)}) if request.path == "/api/token/refresh" else Answer(status=401)
    )
    with pytest.raises(LabelStudioUnauthorized, match="personal access token"):
        connect(PERSONAL).project(5)
    assert len(server.requests) == 4


@pytest.mark.parametrize(("access", "error"), [(None, LabelStudioRejected), ("x", None), ("a.b.c", None)])
def test_strange_access_tokens(
    server: Server, connect: Connect, access: object, error: type[LabelStudioError] | None
) -> None:
    server.respond = lambda request: Answer({"access": access} if request.path == "/api/token/refresh" else PROJECT)
    client = connect(PERSONAL)
    if error is None:
        assert client.project(5).identity.label_studio_id == 5
    else:
        with pytest.raises(error, match="gave no access token"):
            client.project(5)


@pytest.mark.parametrize("api_key", ["", " ", "two words", "tokén", "a\nb"])
def test_api_keys_that_cannot_be_one(api_key: str) -> None:
    with pytest.raises(ConfigurationError, match="LABEL_STUDIO_API_KEY") as caught:
        LabelStudioClient("http://127.0.0.1:9", api_key, None)
    assert not api_key.strip() or api_key not in str(caught.value)


# --- calls -----------------------------------------------------------------------------------------------


def test_connected_projects_are_found_on_all_pages(server: Server, connect: Connect) -> None:
    backends = {
        "1": [{"url": "HTTP://Tandem:80/"}],
        "2": [{"url": "http://other:9090"}],
        "3": [{"url": "http://tandem"}, {"url": 7}],
        "4": [],
    }

    def respond(request: Request) -> Answer:
        if request.path == "/api/projects/":
            first = request.query["page"] == "1"
            ids = ["1", "2"] if first else ["3", "4", "5"]
            return Answer({"results": [{"id": int(each)} for each in ids], "next": "more" if first else None})
        project = request.query["project"]
        return Answer(backends[project]) if project in backends else Answer(status=403)

    server.respond = respond
    assert connect().connected_projects("http://tandem") == [1, 3]


def task(task_id: int, image: str = "/a.png") -> dict[str, object]:
    region = {"from_name": "c", "to_name": "img", "type": "choices", "value": {"choices": ["cat"]}}
    annotation = {"id": task_id * 10, "task": task_id, "result": [region], "updated_at": "2026-11-23T19:00:00Z"}
    return {"id": task_id, "data": {"image": image}, "annotations": [annotation]}


def serve_tasks(tasks: list[dict[str, object]]) -> Respond:
    def respond(request: Request) -> Answer:
        (after,) = json.loads(request.query["query"])["filters"]["items"]
        found = [each for each in tasks if int(str(each["id"])) > after["value"]]
        return Answer({"tasks": found[: int(request.query["page_size"])], "total": len(found)})

    return respond


def test_all_tasks_come_page_by_page(server: Server, connect: Connect) -> None:
    server.respond = serve_tasks([task(task_id) for task_id in range(1, 501)])
    pages = list(connect().annotated_tasks(5, SCHEMA))
    assert [len(page) for page in pages] == [200, 200, 100]
    assert [each.task.id for page in pages for each in page] == list(range(1, 501))
    assert all(each.annotations[0].class_names == ("cat",) for page in pages for each in page)
    assert server.requests[0].query["resolve_uri"] == "false"


def test_pages_get_smaller_where_tasks_are_large(server: Server, connect: Connect) -> None:
    server.respond = serve_tasks([task(task_id, "data:" + "a" * 1000) for task_id in range(1, 101)])
    pages = list(connect(max_answer_bytes=20_000).annotated_tasks(5, SCHEMA))
    assert [each.task.id for page in pages for each in page] == list(range(1, 101))
    assert len(pages) > 4


def test_one_task_that_is_too_large_is_an_error(server: Server, connect: Connect) -> None:
    server.respond = serve_tasks([task(1, "data:" + "a" * 30_000)])
    with pytest.raises(LabelStudioRejected, match="more than 20000 bytes"):
        list(connect(max_answer_bytes=20_000).annotated_tasks(5, SCHEMA))


def hook(headers: dict[str, str] | None) -> dict[str, object]:
    return {"id": 3, "url": "http://t/webhook", "send_payload": True, "send_for_all_actions": True, "headers": headers}


@pytest.mark.parametrize(
    ("secret", "headers", "has_our_secret"),
    [
        ("s", {"X-Webhook-Secret": "s"}, True),
        ("s", {"x-webhook-secret": "s", "Other": "1"}, True),
        ("s", {"X-Webhook-Secret": "old"}, False),
        ("s", {}, False),
        ("s", None, False),
        (None, {}, True),
    ],
)
def test_webhooks(
    server: Server, connect: Connect, secret: str | None, headers: dict[str, str] | None, has_our_secret: bool
) -> None:
    server.respond = lambda _: Answer([hook(headers), {"id": "broken"}])
    assert connect(secret=secret).webhooks(5) == [
        Webhook(
            id=3,
            url="http://t/webhook",
            is_active=False,
            sends_payload=True,
            all_actions=True,
            header_names=tuple(headers or {}),
            has_our_secret=has_our_secret,
        )
    ]


def test_creating_a_webhook(server: Server, connect: Connect) -> None:
    connect(secret="s").create_webhook(5, "http://t/webhook")
    assert server.requests[0].body == {
        "project": 5,
        "url": "http://t/webhook",
        "headers": {"X-Webhook-Secret": "s"},
        "is_active": True,
        "send_payload": True,
        "send_for_all_actions": True,
    }


def test_repairing_a_webhook_keeps_its_other_headers(server: Server, connect: Connect) -> None:
    server.respond = lambda request: Answer(
        [hook({})] if request.query else hook({"Other": "1", "x-webhook-secret": "old"})
    )
    client = connect(secret="s")
    client.repair_webhook(5, client.webhooks(5)[0])
    patch = server.requests[-1]
    assert (patch.method, patch.path) == ("PATCH", "/api/webhooks/3/")
    assert patch.body["headers"] == {"Other": "1", "X-Webhook-Secret": "s"}
    assert patch.body["is_active"]
    assert patch.body["send_for_all_actions"]


def suggestions(count: int) -> list[Suggestion]:
    return [
        Suggestion(task_id=task_id, class_names=("cat",), score=0.5, version="v2") for task_id in range(1, count + 1)
    ]


def test_predictions_are_imported_in_chunks(server: Server, connect: Connect) -> None:
    server.respond = lambda request: Answer({"created": len(request.body)}, status=201)
    assert connect().import_predictions(5, SCHEMA, suggestions(1001)) == 1001
    assert [len(request.body) for request in server.requests] == [500, 500, 1]
    assert connect().import_predictions(5, SCHEMA, []) == 0


def test_tasks_that_are_gone_do_not_spoil_an_import(server: Server, connect: Connect) -> None:
    gone = {17, 400}
    imported: list[int] = []

    def respond(request: Request) -> Answer:
        ids = [each["task"] for each in request.body]
        if gone & set(ids):
            return Answer({"detail": "task not found"}, status=400)
        imported.extend(ids)
        return Answer({"created": len(ids)}, status=201)

    server.respond = respond
    assert connect().import_predictions(5, SCHEMA, suggestions(500)) == 498
    assert imported == [task_id for task_id in range(1, 501) if task_id not in gone]


def test_an_import_that_is_refused_for_another_reason_ends(server: Server, connect: Connect) -> None:
    server.respond = lambda _: Answer(status=400)
    with pytest.raises(LabelStudioRejected):
        connect().import_predictions(5, SCHEMA, suggestions(500))
    assert len(server.requests) == MAX_REFUSED_IMPORTS + 1


def test_model_versions(server: Server, connect: Connect) -> None:
    server.respond = lambda _: Answer({"v1": 3, "title of a backend": 0})
    assert connect().model_versions(5) == {"v1": 3}


@pytest.mark.parametrize(
    ("version", "before", "after", "restored"),
    [
        ("v1", "v2", "v2", None),
        ("v1", "Tandem", None, "Tandem"),
        ("v1", "v1", None, None),
        ("v1", "", None, None),
    ],
)
def test_the_version_in_use_survives_the_deletion_of_another(
    server: Server, connect: Connect, version: str, before: str, after: str | None, restored: str | None
) -> None:
    def respond(_: Request) -> Answer:
        deleted = any(each.method == "DELETE" for each in server.requests)
        return Answer({**PROJECT, "model_version": after if deleted else before})

    server.respond = respond
    connect().delete_predictions(5, version)
    deletion = next(request for request in server.requests if request.method == "DELETE")
    assert deletion.body == {"model_version": version}
    patches = [request.body for request in server.requests if request.method == "PATCH"]
    assert patches == ([{"model_version": restored}] if restored else [])


def test_nested_predictions_go_one_by_one(server: Server, connect: Connect) -> None:
    schema = LabelSchema(
        control_name="c", object_name="img", data_key="image", class_names=("a > cat", "a > dog"), nested=True
    )
    nested = [Suggestion(task_id=task_id, class_names=("a > cat",), score=0.5, version="v2") for task_id in (1, 2, 3)]
    server.respond = lambda request: Answer({"id": 9}, status=400 if request.body["task"] == 2 else 201)
    assert connect().import_predictions(5, schema, nested) == 2
    assert [(request.path, request.body["task"]) for request in server.requests] == [
        ("/api/predictions/", 1),
        ("/api/predictions/", 2),
        ("/api/predictions/", 3),
    ]
