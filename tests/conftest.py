"""What every test gets: an environment without settings, fixed seeds, and on request a real Label Studio."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backend.local_label_studio import LocalLabelStudio
from backend.settings import Settings
from tests.object_storage import S3Server
from tests.postgresql import LocalPostgresql, NoPostgresql

CACHE_DIR = Path(__file__).parents[1] / ".cache"

# readline, which pytest imports, sets it for child processes: consoles made at import would keep to that width.
os.environ.pop("COLUMNS", None)  # noqa: TID251 - no setting of Tandem


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seconds", type=int, default=10, help="time for each target of the fuzzer")
    parser.addoption(
        "--postgresql-url", help="database that tests of the stores may empty, instead of a server of their own"
    )
    parser.addoption("--chaos-kills", type=int, default=20, help="processes that the chaos test kills")
    parser.addoption("--chaos-finetune", action="store_true", help="networks are fine-tuned while all is killed")
    parser.addoption("--soak-s", type=float, default=10.0, help="seconds that the soak on PostgreSQL lasts")
    parser.addoption("--chaos-seed", type=int, help="what tests that kill draw from, as a failed one printed it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if for_gpu and not has_gpu():
        for item in for_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def has_gpu() -> bool:
    # Some ten seconds: only where a test asks for it.
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _no_inherited_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What tests that kill draw from: as given, or new each time."""
    given: int | None = request.config.getoption("--chaos-seed")
    return random.SystemRandom().randrange(10**6) if given is None else given


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLabelStudio]:
    """A real, empty Label Studio for the whole session; tests make projects of their own. Mark them `label_studio`."""
    data_dir = tmp_path_factory.mktemp("label-studio")
    with LocalLabelStudio(data_dir, cache_dir=CACHE_DIR) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[LocalPostgresql]:
    """A real PostgreSQL for the whole session; tests make databases of their own."""
    try:
        server = LocalPostgresql().__enter__()
    except NoPostgresql as reason:
        pytest.skip(str(reason))
    yield server
    server.__exit__(None, None, None)


@pytest.fixture(scope="session")
def postgresql_url(request: pytest.FixtureRequest) -> str:
    """A PostgreSQL database that one test after the other may empty."""
    given = request.config.getoption("--postgresql-url")
    if given:
        return str(given)
    server: LocalPostgresql = request.getfixturevalue("postgresql_server")
    return server.new_database()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3-compatible server for the whole session; tests make buckets of their own."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server
