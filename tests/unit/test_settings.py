"""Where settings come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend import settings
from backend.errors import ConfigurationError
from backend.settings import load_settings


@pytest.fixture
def secrets_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setattr(settings, "SECRETS_DIR", folder)
    return folder


def test_a_secret_comes_from_a_file_of_its_name(secrets_dir: Path) -> None:
    (secrets_dir / "webhook_secret").write_text("from a file\n")
    (secrets_dir / "DATABASE_URL").write_text("postgresql://tandem@database/tandem")

    loaded = load_settings()

    assert loaded.webhook_secret
    assert loaded.webhook_secret.get_secret_value() == "from a file"
    assert loaded.database_url == "postgresql://tandem@database/tandem"


def test_the_environment_goes_before_files_unless_it_is_empty(
    secrets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets_dir / "webhook_secret").write_text("from a file")
    (secrets_dir / "backbone").write_text("resnet18")
    monkeypatch.setenv("WEBHOOK_SECRET", "from the environment")
    monkeypatch.setenv("BACKBONE", "")

    loaded = load_settings()

    assert loaded.webhook_secret
    assert loaded.webhook_secret.get_secret_value() == "from the environment"
    assert loaded.backbone == "resnet18"


def test_without_a_folder_of_secrets_there_are_only_the_defaults(secrets_dir: Path) -> None:
    secrets_dir.rmdir()

    assert load_settings().webhook_secret is None


@pytest.mark.parametrize("url", ["http://label-studio:80800", "http://label-studio:port", "http://label-studio:0"])
@pytest.mark.usefixtures("secrets_dir")
def test_a_url_needs_a_port_that_there_is(url: str) -> None:
    with pytest.raises(ConfigurationError, match="LABEL_STUDIO_URL") as caught:
        load_settings(label_studio_url=url)
    assert "is not a base URL" in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"BASIC_AUTH_PASS": "secret"}, "BASIC_AUTH_PASS: goes together"),
        ({"BASIC_AUTH_USER": "tandem"}, "BASIC_AUTH_PASS: goes together"),
        ({"METRICS_PORT": "9090"}, "METRICS_PORT: 9090 is PORT"),
        ({"LABEL_STUDIO_API_KEY": "secret"}, "LABEL_STUDIO_API_KEY: needs LABEL_STUDIO_URL"),
        ({"LABEL_STUDIO_URL": "http://u:secret@label-studio.test"}, "would end up in logs"),
        ({"REQUESTS_CA_BUNDLE": "/nowhere.pem"}, "is not a file"),
        ({"WEIGHTS": "/nowhere.pt"}, "neither auto, none nor a file"),
    ],
)
def test_settings_that_cannot_work(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], said: str) -> None:
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=said) as caught:
        load_settings()
    assert "secret" not in str(caught.value)


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "PORT": "many",
        "METRICS_PORT": "0",
        "WORKERS": "0",
        "PUBLIC_URL": "tandem",
        "LABEL_STUDIO_URL": "label-studio",
        "BASIC_AUTH_PASS": "secret",
        "WEIGHTS": "/nowhere.pt",
        "REQUESTS_CA_BUNDLE": "/nowhere.pem",
    }
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "is not to blame")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    said = [line.partition(":")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert sorted(said) == sorted(wrong)
