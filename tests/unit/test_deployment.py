"""What the files for containers hold together: secrets, composition, alerts and dashboard."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from sqlalchemy import make_url

from backend.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSITION = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
BUILT_IN_METRICS = {"up"}


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location("deployed_bootstrap", ROOT / "deploy" / "bootstrap.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "SECRETS", tmp_path / "secrets")
    monkeypatch.setattr(module, "READERS", tmp_path / "readers")
    monkeypatch.setenv("LABEL_STUDIO_USERNAME", "ops@example.com")
    (tmp_path / "secrets").mkdir()
    for volume in COMPOSITION["services"]["bootstrap"]["volumes"]:
        if ":/readers/" in volume:
            (tmp_path / "readers" / volume.rsplit("/", 1)[1]).mkdir(parents=True)
    return module


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_secrets_are_made_once_and_all_differ(bootstrap: ModuleType, tmp_path: Path) -> None:
    bootstrap.main([])
    first = files(tmp_path)
    bootstrap.main([])

    assert files(tmp_path) == first
    made = [content for name, content in first.items() if name.startswith("secrets/")]
    assert len(set(made)) == len(made) == len(bootstrap.MAKERS)
    assert min(map(len, made)) >= 16
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "secrets").iterdir()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "readers").glob("*/*")} == {0o444}


def test_a_secret_can_be_shown_and_replaced(
    bootstrap: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap.main([])
    monkeypatch.setattr(sys, "stdin", io.StringIO("another token\n"))

    bootstrap.main(["set", "label_studio_token"])
    bootstrap.main(["show", "label_studio_token"])

    assert capsys.readouterr().out == "another token\n"
    assert (tmp_path / "readers/tandem/label_studio_api_key").read_text() == "another token"


def test_a_password_may_hold_any_character(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("p@ss/w%rd#1:x?\n"))

    bootstrap.main(["set", "tandem_database_password"])

    url = make_url((tmp_path / "readers/tandem/database_url").read_text())
    assert (url.password, url.host, url.database) == ("p@ss/w%rd#1:x?", "database", "tandem")


def test_an_empty_secret_and_an_unknown_one_are_refused(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    with pytest.raises(SystemExit, match="label_studio_token stays as it is"):
        bootstrap.main(["set", "label_studio_token"])
    with pytest.raises(SystemExit, match="usage"):
        bootstrap.main(["show", "no_such_secret"])


def test_a_user_name_cannot_break_out_of_the_environment_file(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_USERNAME", "ops@example.com'; touch /tmp/here; '")
    with pytest.raises(SystemExit, match="quotation"):
        bootstrap.main([])


def test_what_tandem_reads_are_settings(bootstrap: ModuleType, tmp_path: Path) -> None:
    bootstrap.main([])

    handed = {path.name for path in (tmp_path / "readers" / "tandem").iterdir()} - {"aws_credentials"}

    assert handed <= set(Settings.model_fields)


def test_variables_that_the_composition_passes_on_are_settings() -> None:
    passed = {name for name in COMPOSITION["x-tandem"]["environment"] if not name.startswith("AWS_")}

    assert {name.lower() for name in passed} <= set(Settings.model_fields)


@pytest.mark.parametrize("service", sorted(COMPOSITION["services"]))
def test_services_have_limits_and_no_secrets_of_others(service: str) -> None:
    described = COMPOSITION["services"][service]

    assert described["logging"]["options"]["max-size"]
    assert described["security_opt"] == ["no-new-privileges:true"]
    if service != "bootstrap":
        assert described["mem_limit"]
        volumes = [volume for volume in described["volumes"] if "secrets" in volume]
        assert all(re.fullmatch(r"[a-z-]+-secrets:/run/secrets:ro", volume) for volume in volumes)


@pytest.mark.parametrize("service", sorted(COMPOSITION["services"]))
def test_no_secret_stands_in_an_environment(service: str) -> None:
    secret = re.compile("PASSWORD|TOKEN|SECRET|KEY")
    # a switch, the path of a file, and what is empty are none
    innocent = re.compile("true|false|/run/secrets/.*|")

    for name, value in (COMPOSITION["services"][service].get("environment") or {}).items():
        if secret.search(name):
            assert innocent.fullmatch(value or ""), f"{name} of {service} is {value}"


def test_what_a_backup_stops_is_started_again_also_where_stopping_fails(tmp_path: Path) -> None:
    engine = tmp_path / "compose"
    engine.write_text(f'#!/bin/sh\necho "$*" >>"{tmp_path}/told"\n[ "$1" != stop ]\n')
    engine.chmod(0o700)
    environment = {"COMPOSE": str(engine), "PATH": "/usr/bin:/bin"}

    ended = subprocess.run([ROOT / "scripts/back-up", tmp_path / "backup"], env=environment, check=False)

    assert ended.returncode == 1
    told = (tmp_path / "told").read_text().splitlines()
    assert told == ["stop worker tandem label-studio", "start label-studio tandem worker"]


def alert_rules() -> Iterator[dict[str, Any]]:
    alerts: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    for group in alerts["groups"]:
        yield from group["rules"]


def alerts_table() -> str:
    rows = ["| Alert | Severity | It says | What to do |", "|---|---|---|---|"]
    for rule in alert_rules():
        summary = re.sub(r"\{\{ \$(?:labels\.)?(\w+)(?: \| \w+)? \}\}", r"*\1*", rule["annotations"]["summary"])
        action = rule["annotations"]["action"]
        rows.append(f"| `{rule['alert']}` | {rule['labels']['severity']} | {summary} | {action} |")
    return "\n".join(rows)


def test_the_document_lists_every_alert() -> None:
    document = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    documented = re.search(r"<!-- alerts:.*?-->\n(.*?)\n?<!-- /alerts -->", document, re.DOTALL)
    assert documented
    assert documented[1].strip() == alerts_table(), f"docs/deployment.md must hold:\n\n{alerts_table()}\n"


def expressions() -> Iterator[str]:
    for rule in alert_rules():
        assert rule["annotations"].keys() == {"summary", "action"}
        yield rule["expr"]
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/tandem.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]


def test_alerts_and_dashboard_name_metrics_that_exist() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "backend").rglob("*.py"))
    real = set(re.findall(r'"(tandem_[a-z_]+)"', sources))

    named = {name for expression in expressions() for name in re.findall(r"\btandem_[a-z_]+", expression)}

    assert named
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in named} <= real
