"""Label Studio behind a certificate of a company's own authority."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from backend.adapters.health import HttpHealth
from backend.bootstrap import Container
from backend.errors import ConfigurationError, LabelStudioUnavailable
from backend.label_studio.inspection import Inspection
from backend.settings import Settings, load_settings

API_KEY = "0123456789abcdef0123456789abcdef01234567"
PROJECT = {"id": 5, "created_at": "2026-11-23T18:59:51Z", "title": "Pets", "release": "1.23.2", "model_class": "Tandem"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", "key.pem", "-out", "certificate.pem", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("makes its certificate with openssl")
    return folder / "certificate.pem"


@pytest.fixture(scope="module")
def url(authority: Path) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(PROJECT).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority, authority.with_name("key.pem"))
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_authority_that_the_settings_name_is_trusted(url: str, authority: Path, tmp_path: Path) -> None:
    settings = Settings(  # type: ignore[call-arg]
        model_dir=tmp_path, label_studio_url=url, label_studio_api_key=API_KEY, requests_ca_bundle=authority
    )
    container = Container(settings)
    assert container.client
    assert container.client.project(5).title == "Pets"
    container.client.close()
    inspection = Inspection(url, API_KEY, ca_file=str(authority))
    assert inspection.server().version == "1.23.2"
    inspection.close()
    assert HttpHealth(str(authority)).problem(url) == ""


def test_an_unknown_authority_is_not_and_the_remedy_is_named(
    url: str, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what the environment says counts only where it is a setting
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    inspection = Inspection(url, API_KEY)
    with pytest.raises(LabelStudioUnavailable, match="REQUESTS_CA_BUNDLE"):
        inspection.server()
    inspection.close()
    assert "certificate" in HttpHealth().problem(url)


def test_the_setting_has_the_name_that_requests_knows(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    assert load_settings().requests_ca_bundle == authority
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    with pytest.raises(ConfigurationError, match=r"REQUESTS_CA_BUNDLE: '/nowhere.pem' is not a file"):
        load_settings()
