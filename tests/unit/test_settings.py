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
