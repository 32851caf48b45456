"""The secret of the webhook, where Tandem makes it."""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr

from backend.bootstrap import Container
from backend.bootstrap.adapters import Adapters
from backend.settings import Settings


def test_processes_that_start_together_agree_on_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one would put a secret into the webhook that the other one refuses, until both are started again."""
    both_make_one = threading.Barrier(2)
    make = secrets.token_urlsafe

    def make_at_once(n_bytes: int) -> str:
        with suppress(threading.BrokenBarrierError):
            both_make_one.wait(0.5)
        return make(n_bytes)

    monkeypatch.setattr(secrets, "token_urlsafe", make_at_once)

    def start(_: int) -> str | None:
        settings = Settings(model_dir=tmp_path, basic_auth_user="tandem", basic_auth_pass=SecretStr("hidden"))
        # past the lock that such a property has in one process, and not between two
        secret: str | None = vars(Adapters)["webhook_secret"].func(Container(settings))
        return secret

    with ThreadPoolExecutor(2) as processes:
        first, second = processes.map(start, range(2))
    assert first == second == (tmp_path / "webhook_secret").read_text()
    assert (tmp_path / "webhook_secret").stat().st_mode & 0o777 == 0o600
