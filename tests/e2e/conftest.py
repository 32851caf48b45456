"""A real Tandem and a real Label Studio for each module, which tells one story: of this machine, or in containers."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from backend.background_process import free_port
from backend.local_label_studio import LocalLabelStudio
from tests.e2e.composition import ComposedLabelStudio, ComposedTandem, Composition
from tests.e2e.loop import LocalTandem, Tandem, is_healthy, wait_for

WEBHOOK_SECRET = "a secret of the tests"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--composition", help="the compose command that started what is tested: docker compose -p name")


@pytest.fixture(scope="session")
def composition(request: pytest.FixtureRequest) -> Composition | None:
    command = request.config.getoption("--composition", default=None)
    # of now: each test gets an environment without settings
    environment = dict(os.environ)  # noqa: TID251 - handed on to children
    return Composition(command=tuple(shlex.split(command)), environment=environment) if command else None


@pytest.fixture(scope="session")
def label_studio(
    request: pytest.FixtureRequest, composition: Composition | None
) -> LocalLabelStudio | ComposedLabelStudio:
    if composition:
        return ComposedLabelStudio(composition)
    return request.getfixturevalue("label_studio")


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Settings of Tandem beside the usual ones; modules have their own."""
    return {}


@pytest.fixture(scope="module")
def tandem(
    label_studio: LocalLabelStudio | ComposedLabelStudio,
    tmp_path_factory: pytest.TempPathFactory,
    settings: dict[str, str],
) -> Iterator[Tandem]:
    if isinstance(label_studio, ComposedLabelStudio):
        if settings:
            pytest.skip("the settings of what runs in containers are given")
        yield composed_tandem(label_studio.composition)
        return
    model_dir = tmp_path_factory.mktemp("tandem")
    url = f"http://127.0.0.1:{free_port()}"
    environment = os.environ | {  # noqa: TID251 - handed on to a child
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.personal_access_token(),
        "PUBLIC_URL": url,
        "HOST": "127.0.0.1",
        "PORT": url.rsplit(":", 1)[1],
        "MODEL_DIR": str(model_dir),
        "BACKBONE": "shufflenet_v2_x0_5",
        "WEIGHTS": "none",
        "WEBHOOK_SECRET": WEBHOOK_SECRET,
        "TRAIN_QUIET_S": "0.5",
        "TRAIN_MAX_WAIT_S": "3",
        "LOG_LEVEL": "DEBUG",
    }
    environment |= settings
    log_file = model_dir / "tandem.log"
    log = log_file.open("wb")
    process = subprocess.Popen([sys.executable, "-m", "backend", "serve"], env=environment, stderr=log)
    running = LocalTandem(url=url, public_url=url, webhook_secret=WEBHOOK_SECRET, process=process, log_file=log_file)
    with log, process:
        try:
            wait_for(lambda: is_healthy(url), "Tandem's web server is up")
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            sys.stderr.write(running.logs()[-20_000:])


def composed_tandem(composition: Composition) -> ComposedTandem:
    return ComposedTandem(
        url=composition.url("tandem", 9090),
        public_url="http://tandem.internal:9090",
        webhook_secret=composition.secret("webhook_secret"),
        composition=composition,
    )
