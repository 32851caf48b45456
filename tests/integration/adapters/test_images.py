"""Images from real servers on this machine: what arrives, what is refused, and who gets the key."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import pytest

from backend.adapters.image_cache import ImageCache
from backend.adapters.images import ImageFetcher
from backend.errors import (
    ImageError,
    ImageForbidden,
    ImageNotFound,
    ImageTooLarge,
    ImageUnavailable,
    ImageUnreadable,
    LabelStudioUnauthorized,
    LabelStudioUnavailable,
)
from tests.fakes import resolver

KEY = "Token canary-5d8f"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8
MAX_IMAGE_BYTES = 100_000


class Server:
    """A server on 127.0.0.1; ``pages`` maps a path to a function of the handler, or to a body."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.pages = {}
        self.requests = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.requests.append((self.path, dict(self.headers)))
                page = server.pages.get(urlsplit(self.path).path, missing)
                send(self, page) if isinstance(page, bytes) else page(self)

            def log_message(self, *_arguments):
                pass

        class Threads(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, _request, _client_address):
                pass  # a client that hangs up is what some tests are about

        self._server = Threads(("127.0.0.1", 0), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def saw_key(self) -> bool:
        return "canary" in str(self.requests)


def send(handler, body: bytes, status: int = 200, headers=()) -> None:
    handler.send_response(status)
    for name, value in dict({"Content-Length": str(len(body))}, **dict(headers)).items():
        if value is not None:
            handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def missing(handler) -> None:
    send(handler, b"a page about secret-of-the-server", 404)


def status(number: int):
    return lambda handler: send(handler, b"secret-of-the-server", number)


def redirect(location: str, number: int = 302):
    return lambda handler: send(handler, b"", number, {"Location": location})


def hang_up(handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def label_studio():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def other():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def make_fetcher(tmp_path, label_studio):
    fetchers = []

    def make(**options) -> ImageFetcher:
        defaults = {
            "label_studio_url": label_studio.url,
            "authorization": lambda: {"Authorization": KEY},
            "max_image_bytes": MAX_IMAGE_BYTES,
        }
        fetchers.append(ImageFetcher(ImageCache(tmp_path / "images", 10**7), **(defaults | options)))
        return fetchers[-1]

    yield make
    for fetcher in fetchers:
        fetcher.close()


def fetch(fetcher: ImageFetcher, url: str, timeout_s: float = 10, task_id: int = 7) -> bytes:
    image = fetcher.fetch(url, label_studio_task_id=task_id, timeout_s=timeout_s)
    content = image.path.read_bytes()
    assert image.digest == hashlib.sha256(content).hexdigest()
    assert fetcher.cached(image.digest) == image
    return content


def refusal(fetcher: ImageFetcher, url: str, kind: type[ImageError], timeout_s: float = 10) -> str:
    """Return the message of the refusal, which shows neither the key nor what a server said."""
    with pytest.raises(ImageError) as caught:
        fetch(fetcher, url, timeout_s)
    assert type(caught.value) is kind, caught.value
    assert "canary" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


# --- where images come from -------------------------------------------------------------------------


def test_an_upload_comes_with_the_key(make_fetcher, label_studio):
    label_studio.pages["/data/upload/5/ab-a%20cat.png"] = PNG
    assert fetch(make_fetcher(), "/data/upload/5/ab-a%20cat.png") == PNG
    (path, headers), *more = label_studio.requests
    assert path == "/data/upload/5/ab-a%20cat.png"
    assert headers["Authorization"] == KEY
    assert headers["Host"] == f"127.0.0.1:{label_studio.port}"
    assert headers["Accept-Encoding"] == "identity"
    assert not more


@pytest.mark.parametrize("form", ["/data/local-files/?d=pets/1%202.png", "{url}/data/local-files/?d=pets/1%202.png"])
def test_a_local_file_comes_with_the_key(make_fetcher, label_studio, form):
    label_studio.pages["/data/local-files/"] = PNG
    assert fetch(make_fetcher(), form.format(url=label_studio.url)) == PNG
    assert label_studio.requests[0][0] == "/data/local-files/?d=pets/1%202.png"
    assert label_studio.saw_key


def test_label_studio_below_a_path(make_fetcher, label_studio):
    label_studio.pages["/ls/data/upload/5/cat.png"] = PNG
    fetcher = make_fetcher(label_studio_url=f"{label_studio.url}/ls")
    assert fetch(fetcher, "/data/upload/5/cat.png") == fetch(fetcher, "/ls/data/upload/5/cat.png") == PNG


def test_an_image_of_the_web_comes_without_the_key(make_fetcher, label_studio, other):
    other.pages["/cat.png"] = PNG
    assert fetch(make_fetcher(image_hosts=("127.0.0.1",)), f"{other.url}/cat.png?a=1#part") == PNG
    assert other.requests[0][0] == "/cat.png?a=1"
    assert not other.saw_key
    assert not label_studio.requests


@pytest.mark.parametrize("number", [301, 302, 303, 307, 308])
def test_a_cloud_uri_is_presigned_by_label_studio(make_fetcher, label_studio, other, number):
    label_studio.pages["/tasks/7/presign/"] = redirect(f"{other.url}/bucket/cat.png?Signature=s", number)
    other.pages["/bucket/cat.png"] = PNG
    assert fetch(make_fetcher(image_hosts=(f"127.0.0.1:{other.port}",)), "s3://bucket/cat.png") == PNG
    fileuri = parse_qs(urlsplit(label_studio.requests[0][0]).query)["fileuri"][0]
    assert base64.urlsafe_b64decode(fileuri) == b"s3://bucket/cat.png"
    assert label_studio.saw_key
    assert other.requests[0][0] == "/bucket/cat.png?Signature=s"
    assert not other.saw_key


def test_label_studio_may_hand_a_cloud_image_through(make_fetcher, label_studio):
    label_studio.pages["/tasks/7/presign/"] = PNG
    assert fetch(make_fetcher(), "gs://bucket/cat.png") == PNG


def test_label_studio_may_answer_with_a_data_uri(make_fetcher, label_studio):
    encoded = base64.b64encode(PNG).decode()
    label_studio.pages["/tasks/7/presign/"] = redirect(f"data:image/png;base64,{encoded}")
    assert fetch(make_fetcher(), "azure-blob://container/cat.png") == PNG


def test_others_may_not_answer_with_a_data_uri(make_fetcher, other):
    other.pages["/cat.png"] = redirect("data:image/png;base64," + base64.b64encode(PNG).decode())
    refusal(make_fetcher(image_hosts=("127.0.0.1",)), f"{other.url}/cat.png", ImageForbidden)


def test_a_cloud_uri_without_a_storage(make_fetcher):
    assert "Settings > Cloud Storage" in refusal(make_fetcher(), "s3://bucket/cat.png", ImageNotFound)


def test_a_data_uri_holds_the_image(make_fetcher, label_studio):
    fetcher = make_fetcher(label_studio_url=None, authorization=None)
    assert fetch(fetcher, "data:image/png;base64," + base64.b64encode(PNG).decode()) == PNG
    assert not label_studio.requests


def test_a_local_file_is_read_where_it_lies(make_fetcher, label_studio, tmp_path):
    (tmp_path / "documents" / "pets").mkdir(parents=True)
    (tmp_path / "documents" / "pets" / "a b.png").write_bytes(PNG)
    (tmp_path / "outside.png").write_bytes(PNG)
    label_studio.pages["/data/local-files/"] = PNG + b"from Label Studio"
    fetcher = make_fetcher(local_files_root=tmp_path / "documents")
    assert fetch(fetcher, "/data/local-files/?d=pets/a%20b.png") == PNG
    assert not label_studio.requests
    assert fetch(fetcher, "/data/local-files/?d=pets/elsewhere.png") == PNG + b"from Label Studio"
    for path in ("../outside.png", "%2e%2e/outside.png", "pets/..%2f../outside.png"):
        refusal(fetcher, f"/data/local-files/?d={path}", ImageForbidden)
    assert len(label_studio.requests) == 1


def test_a_local_file_that_is_nowhere_names_both_places(make_fetcher, label_studio, tmp_path):
    message = refusal(make_fetcher(local_files_root=tmp_path), "/data/local-files/?d=pets/gone.png", ImageNotFound)
    assert "/data/local-files/?d=pets/gone.png" in message
    assert f"LOCAL_FILES_ROOT={str(tmp_path)!r}" in message
    assert len(label_studio.requests) == 1


# --- who is not asked ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/cat.png",
        "http://localhost:{port}/cat.png",
        "http://2130706433:{port}/cat.png",
        "http://0177.0.0.1:{port}/cat.png",
        "http://0x7f.0.0.1:{port}/cat.png",
        "http://0:{port}/cat.png",
        "http://[::ffff:127.0.0.1]:{port}/cat.png",
        "http://[::ffff:7f00:1]:{port}/cat.png",
        "http://public.example@127.0.0.1:{port}/cat.png",
        "http://user:secret@127.0.0.1:{port}/cat.png",
        "//127.0.0.1:{port}/cat.png",
        "file:///etc/hostname",
        "ftp://127.0.0.1:{port}/cat.png",
        "cat.png",
        "",
    ],
)
def test_internal_addresses_are_refused(make_fetcher, other, url):
    other.pages["/cat.png"] = PNG
    refusal(make_fetcher(), url.format(port=other.port), ImageForbidden)
    assert not other.requests


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/latest/meta-data/",
        "http://localhost:{port}/cat.png",
        "http://127.0.0.2:{port}/cat.png",
        "http://0177.0.0.1:{port}/cat.png",
        "http://x@127.0.0.1:{port}/cat.png",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/",
        "//127.0.0.3:{port}/cat.png",
    ],
)
def test_a_redirect_to_an_internal_address_is_refused(make_fetcher, other, location):
    other.pages["/start"] = redirect(location.format(port=other.port))
    other.pages["/cat.png"] = PNG
    fetcher = make_fetcher(image_hosts=(f"127.0.0.1:{other.port}",))
    refusal(fetcher, f"{other.url}/start", ImageForbidden)
    assert [path for path, _ in other.requests] == ["/start"]


def test_each_host_is_resolved_once_for_each_connection(make_fetcher, other):
    """DNS rebinding: a second look-up would get the address of the internal server."""
    asked = []

    def resolve(host, port):
        asked.append(host)
        return resolver("10.0.0.1" if len(asked) == 1 else "127.0.0.1")(host, port)

    refusal(make_fetcher(resolve=resolve), f"http://rebinding.example:{other.port}/cat.png", ImageForbidden)
    assert asked == ["rebinding.example"]
    assert not other.requests


def test_the_name_of_a_host_stays_in_the_request(make_fetcher, other):
    other.pages["/cat.png"] = PNG
    fetcher = make_fetcher(image_hosts=("images.test",), resolve=resolver("127.0.0.1"))
    assert fetch(fetcher, f"http://images.test:{other.port}/cat.png") == PNG
    assert other.requests[0][1]["Host"] == f"images.test:{other.port}"


def test_a_circle_of_redirects_ends(make_fetcher, other):
    other.pages["/a"] = redirect("/a")
    assert "5 redirects" in refusal(make_fetcher(image_hosts=("127.0.0.1",)), f"{other.url}/a", ImageForbidden)
    assert len(other.requests) == 6


def test_proxies_of_the_environment_are_ignored(make_fetcher, label_studio, other, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, other.url)
    label_studio.pages["/data/upload/5/cat.png"] = PNG
    assert fetch(make_fetcher(), "/data/upload/5/cat.png") == PNG
    assert not other.requests


# --- who gets the key -----------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["{other}/data/upload/5/x.png", "http://images.test:{port}/data/upload/5/x.png"])
def test_the_key_stays_when_label_studio_redirects_elsewhere(make_fetcher, label_studio, other, location):
    label_studio.pages["/data/upload/5/cat.png"] = redirect(location.format(other=other.url, port=other.port))
    other.pages["/data/upload/5/x.png"] = PNG
    fetcher = make_fetcher(image_hosts=("127.0.0.1", "images.test"), resolve=resolver("127.0.0.1"))
    assert fetch(fetcher, "/data/upload/5/cat.png") == PNG
    assert label_studio.saw_key
    assert not other.saw_key


def test_the_key_is_not_picked_up_on_the_way_back(make_fetcher, label_studio, other):
    other.pages["/start"] = redirect(f"{label_studio.url}/data/upload/5/cat.png")
    label_studio.pages["/data/upload/5/cat.png"] = status(401)
    refusal(make_fetcher(image_hosts=("127.0.0.1",)), f"{other.url}/start", ImageForbidden)
    assert len(label_studio.requests) == 1
    assert not label_studio.saw_key


def test_another_scheme_is_another_origin(make_fetcher, label_studio):
    """Label Studio speaks https; a task that says http must not get the key in clear."""
    label_studio.pages["/data/upload/5/cat.png"] = PNG
    fetcher = make_fetcher(label_studio_url=f"https://127.0.0.1:{label_studio.port}")
    assert fetch(fetcher, f"{label_studio.url}/data/upload/5/cat.png") == PNG
    assert len(label_studio.requests) == 1
    assert not label_studio.saw_key


@pytest.mark.parametrize("path", ["/api/users", "/data/%2e%2e/api/users", "/static/cat.png", "/tasks/7/delete/"])
def test_other_pages_of_label_studio_are_not_asked_with_the_key(make_fetcher, label_studio, path):
    with pytest.raises(ImageError):
        fetch(make_fetcher(), path)
    assert not label_studio.saw_key


def test_without_a_key_label_studio_is_asked_all_the_same(make_fetcher, label_studio):
    label_studio.pages["/data/upload/5/cat.png"] = status(401)
    message = refusal(make_fetcher(authorization=None), "/data/upload/5/cat.png", ImageForbidden)
    assert "set LABEL_STUDIO_API_KEY" in message


@pytest.mark.parametrize(
    ("problem", "kind"), [(LabelStudioUnauthorized, ImageForbidden), (LabelStudioUnavailable, ImageUnavailable)]
)
def test_a_key_that_cannot_be_exchanged(make_fetcher, label_studio, problem, kind):
    def authorization():
        raise problem("the personal access token was revoked")

    message = refusal(make_fetcher(authorization=authorization), "/data/upload/5/cat.png", kind, timeout_s=0.3)
    assert "the personal access token was revoked" in message
    assert not label_studio.requests


# --- what servers answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (401, ImageForbidden, "check that LABEL_STUDIO_API_KEY is valid"),
        (403, ImageForbidden, "check that LABEL_STUDIO_API_KEY is valid"),
        (404, ImageNotFound, "answered 404"),
        (410, ImageNotFound, "answered 410"),
        (500, ImageNotFound, "file of an upload is gone"),
        (503, ImageUnavailable, "answered 503"),
    ],
)
def test_refusals_of_label_studio(make_fetcher, label_studio, number, kind, words):
    label_studio.pages["/data/upload/5/cat.png"] = status(number)
    message = refusal(make_fetcher(), "/data/upload/5/cat.png", kind)
    assert words in message
    assert message.startswith("/data/upload/5/cat.png: ")


@pytest.mark.parametrize(
    ("number", "kind", "n_requests"),
    [(403, ImageForbidden, 1), (404, ImageNotFound, 1), (429, ImageUnavailable, 3), (500, ImageUnavailable, 3)],
)
def test_refusals_of_others(make_fetcher, other, number, kind, n_requests):
    other.pages["/cat.png"] = status(number)
    message = refusal(make_fetcher(image_hosts=("127.0.0.1",)), f"{other.url}/cat.png?sig=secret", kind)
    assert str(number) in message
    assert "API_KEY" not in message
    assert len(other.requests) == n_requests


def test_a_passing_failure_is_tried_again(make_fetcher, other):
    answers = [status(503), hang_up, lambda handler: send(handler, PNG)]
    other.pages["/cat.png"] = lambda handler: answers.pop(0)(handler)
    assert fetch(make_fetcher(image_hosts=("127.0.0.1",)), f"{other.url}/cat.png") == PNG


def test_nobody_listens(make_fetcher):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/cat.png"
    assert "cannot be reached" in refusal(make_fetcher(image_hosts=("127.0.0.1",)), url, ImageUnavailable, 1)


def test_a_name_that_nobody_has(make_fetcher):
    def resolve(host, port):
        raise socket.gaierror(socket.EAI_NONAME, f"no such name {host}:{port}")

    assert "has no address" in refusal(make_fetcher(resolve=resolve), "http://nobody.test/", ImageUnavailable, 0.1)


# --- limits -------------------------------------------------------------------------------------------------


def too_large_declared(handler):
    send(handler, PNG, headers={"Content-Length": str(MAX_IMAGE_BYTES + 1)})


def endless(handler):
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(PNG)
    while True:
        handler.wfile.write(b"x" * 10_000)


def endless_chunks(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n%b\r\n" % (len(PNG), PNG))
    while True:
        handler.wfile.write(b"2710\r\n" + b"x" * 10_000 + b"\r\n")


def one_giant_chunk(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"7fffffff\r\n" + PNG)
    while True:
        handler.wfile.write(b"x" * 10_000)


@pytest.mark.parametrize("page", [too_large_declared, endless, endless_chunks, one_giant_chunk])
def test_an_image_that_is_too_large(make_fetcher, other, tmp_path, page):
    other.pages["/cat.png"] = page
    refusal(make_fetcher(image_hosts=("127.0.0.1",)), f"{other.url}/cat.png", ImageTooLarge)
    assert not [path for path in (tmp_path / "images").rglob("*") if path.is_file() and path.stat().st_size]


def chunk_of_less_than_nothing(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"-5\r\n" + PNG)


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (chunk_of_less_than_nothing, ImageUnavailable),
        (lambda handler: send(handler, b"", status=302, headers={"Location": "http://["}), ImageForbidden),
    ],
    ids=["chunk", "redirect"],
)
def test_an_answer_that_is_no_http(make_fetcher, other, page, kind):
    other.pages["/cat.png"] = page
    refusal(make_fetcher(image_hosts=("127.0.0.1",)), f"{other.url}/cat.png", kind)


def test_a_content_length_may_not_lie(make_fetcher, other):
    other.pages["/short.png"] = lambda handler: send(handler, PNG + b"x" * 10**6, headers={"Content-Length": "2056"})
    other.pages["/long.png"] = lambda handler: (
        send(handler, PNG, headers={"Content-Length": "90000"}),
        hang_up(handler),
    )
    fetcher = make_fetcher(image_hosts=("127.0.0.1",))
    assert fetch(fetcher, f"{other.url}/short.png") == PNG  # what lies beyond is no part of the answer
    refusal(fetcher, f"{other.url}/long.png", ImageUnavailable)


def test_a_data_uri_that_is_too_large(make_fetcher):
    content = base64.b64encode(PNG + b"x" * MAX_IMAGE_BYTES).decode()
    refusal(make_fetcher(), f"data:image/png;base64,{content}", ImageTooLarge)
    refusal(make_fetcher(), f"data:image/png,{content}", ImageTooLarge)
    refusal(make_fetcher(), "data:image/png;base64," + "A" * 10**6, ImageTooLarge)


def test_a_compressed_answer_is_not_unpacked(make_fetcher, other):
    bomb = gzip.compress(PNG + b"\0" * 10**7)
    other.pages["/cat.png"] = lambda handler: send(handler, bomb, headers={"Content-Encoding": "gzip"})
    refusal(make_fetcher(image_hosts=("127.0.0.1",)), f"{other.url}/cat.png", ImageUnreadable)


def test_a_store_may_call_its_answer_encoded_though_it_is_not(make_fetcher, other):
    other.pages["/cat.png"] = lambda handler: send(handler, PNG, headers={"Content-Encoding": "aws-chunked"})
    assert fetch(make_fetcher(image_hosts=("127.0.0.1",)), f"{other.url}/cat.png") == PNG


@pytest.mark.parametrize(
    "body", [b"", b"\x89PNG", b"<!doctype html><title>Log in</title>", b"%PDF-1.7 and so on", b"RIFF1234WAVEfmt "]
)
def test_what_is_no_image(make_fetcher, other, body):
    other.pages["/cat.png"] = body
    refusal(make_fetcher(image_hosts=("127.0.0.1",)), f"{other.url}/cat.png", ImageUnreadable)


@pytest.mark.parametrize(
    "beginning",
    [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF1234WEBP", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*"],
)
def test_formats_that_are_let_in(make_fetcher, other, beginning):
    other.pages["/cat"] = beginning + b"x" * 20
    assert fetch(make_fetcher(image_hosts=("127.0.0.1",)), f"{other.url}/cat").startswith(beginning)


def silent(_handler):
    time.sleep(3)


def drips_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(60):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def drips_body(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for byte in PNG[:60]:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


def drips_body_of_unknown_length(handler):
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    for start in range(0, 1200, 20):
        handler.wfile.write(PNG[start : start + 20])
        time.sleep(0.05)


@pytest.mark.parametrize("page", [silent, drips_headers, drips_body, drips_body_of_unknown_length])
@pytest.mark.parametrize("reused", [False, True])
def test_a_slow_server_cannot_hold_anyone_longer_than_asked(make_fetcher, other, page, reused):
    other.pages |= {"/slow.png": page, "/cat.png": PNG}
    fetcher = make_fetcher(image_hosts=("127.0.0.1",))
    if reused:
        fetch(fetcher, f"{other.url}/cat.png")
    start = time.monotonic()
    refusal(fetcher, f"{other.url}/slow.png", ImageUnavailable, 0.5)
    assert time.monotonic() - start < 2
    assert fetch(fetcher, f"{other.url}/cat.png") == PNG


def test_a_listener_that_never_accepts_a_tls_handshake(make_fetcher):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        start = time.monotonic()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/cat.png"
        refusal(make_fetcher(image_hosts=("127.0.0.1",)), url, ImageUnavailable, 0.5)
        assert time.monotonic() - start < 2


# --- many at once ---------------------------------------------------------------------------------------------


def test_one_download_for_all_who_ask_at_the_same_time(make_fetcher, other):
    def slow(handler):
        time.sleep(0.5)
        send(handler, PNG)

    other.pages["/cat.png"] = slow
    fetcher = make_fetcher(image_hosts=("127.0.0.1",))
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda _: fetch(fetcher, f"{other.url}/cat.png"), range(8)))
    assert images == [PNG] * 8
    assert len(other.requests) == 1


def test_the_same_content_from_many_urls(make_fetcher, other):
    other.pages["/cat.png"] = PNG
    fetcher = make_fetcher(image_hosts=("127.0.0.1",))
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda number: fetch(fetcher, f"{other.url}/cat.png?{number}"), range(40)))
    assert images == [PNG] * 40


def test_an_image_is_fetched_as_it_is_now(make_fetcher, other):
    fetcher = make_fetcher(image_hosts=("127.0.0.1",))
    for content in (PNG, PNG + b"changed"):
        other.pages["/cat.png"] = content
        assert fetch(fetcher, f"{other.url}/cat.png") == content


# --- TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture
def secure(tmp_path):
    """A server whose certificate is for images.test."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", "key.pem", "-out", "certificate.pem", "-days", "2", "-subj", "/CN=images.test"]
    command += ["-addext", "subjectAltName=DNS:images.test"]
    try:
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("makes its certificate with openssl")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    server = Server(tls)
    server.pages["/cat.png"] = PNG
    yield server
    server.close()


def test_a_certificate_is_checked_against_the_name(make_fetcher, secure, tmp_path):
    fetcher = make_fetcher(
        image_hosts=("images.test", "impostor.test"),
        resolve=resolver("127.0.0.1"),
        ca_file=str(tmp_path / "certificate.pem"),
    )
    assert fetch(fetcher, f"https://images.test:{secure.port}/cat.png") == PNG
    message = refusal(fetcher, f"https://impostor.test:{secure.port}/cat.png", ImageUnavailable, 1)
    assert "certificate" in message


def test_an_unknown_authority_is_not_accepted(make_fetcher, secure):
    fetcher = make_fetcher(image_hosts=("images.test",), resolve=resolver("127.0.0.1"))
    message = refusal(fetcher, f"https://images.test:{secure.port}/cat.png", ImageUnavailable, 1)
    assert "REQUESTS_CA_BUNDLE" in message
    assert not secure.requests
