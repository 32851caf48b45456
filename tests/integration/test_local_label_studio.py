"""The Label Studio of demo and tests is a real one, and lets in who it should."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from backend.label_studio_installation import VERSION
from backend.local_label_studio import LocalLabelStudio

pytestmark = [pytest.mark.label_studio, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def strict_label_studio(
    tmp_path_factory: pytest.TempPathFactory, label_studio: LocalLabelStudio
) -> Iterator[LocalLabelStudio]:
    data_dir = tmp_path_factory.mktemp("strict-label-studio")
    with LocalLabelStudio(data_dir, cache_dir=label_studio.cache_dir, legacy_tokens=False) as server:
        yield server


def get_projects(server: LocalLabelStudio, authorization: str) -> requests.Response:
    return requests.get(f"{server.url}/api/projects", headers={"Authorization": authorization}, timeout=30)


def access_token(server: LocalLabelStudio) -> str:
    answer = requests.post(
        f"{server.url}/api/token/refresh", json={"refresh": server.personal_access_token()}, timeout=30
    )
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["access"]
    return token


def test_it_is_the_pinned_version_and_accepts_both_kinds_of_token(label_studio: LocalLabelStudio) -> None:
    assert requests.get(f"{label_studio.url}/api/version", timeout=30).json()["release"] == VERSION
    assert get_projects(label_studio, f"Token {label_studio.token}").status_code == 200
    assert get_projects(label_studio, f"Bearer {access_token(label_studio)}").status_code == 200
    assert label_studio.personal_access_token() == label_studio.personal_access_token()


def test_without_legacy_tokens_only_the_personal_one_works(strict_label_studio: LocalLabelStudio) -> None:
    refused = get_projects(strict_label_studio, f"Token {strict_label_studio.token}")
    assert refused.status_code == 401
    assert "legacy token authentication has been disabled" in refused.text
    assert get_projects(strict_label_studio, f"Bearer {access_token(strict_label_studio)}").status_code == 200


def test_a_running_server_is_taken_over_and_a_stopped_one_keeps_what_it_holds(
    strict_label_studio: LocalLabelStudio,
) -> None:
    server = strict_label_studio
    headers = {"Authorization": f"Bearer {access_token(server)}"}
    made = requests.post(f"{server.url}/api/projects", json={"title": "kept"}, headers=headers, timeout=30)
    assert made.status_code == 201
    second = LocalLabelStudio(server.data_dir, cache_dir=server.cache_dir)
    second.start()
    assert second.url == server.url

    assert second.stop()
    assert not server.is_running
    server.start()

    kept = get_projects(server, f"Bearer {access_token(server)}")
    assert kept.status_code == 200, kept.text
    assert [each["title"] for each in kept.json()["results"]] == ["kept"]
    keys = server.data_dir / ".env"
    assert not keys.exists() or "SECRET_KEY" not in keys.read_text(), "it would take for another what begins with $"


def test_the_login_is_for_the_owner_only(label_studio: LocalLabelStudio) -> None:
    login_file = Path(label_studio.data_dir) / "login.json"
    assert stat.S_IMODE(login_file.stat().st_mode) == 0o600
    assert label_studio.password not in repr(label_studio.login)
    assert label_studio.token not in repr(label_studio.login)
