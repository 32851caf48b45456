"""What the documents and the frame promise is what the code holds."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Flask
from pydantic_core import PydanticUndefined
from typer.main import get_command

from backend.cli import app as command_line
from backend.label_studio_installation import REQUIREMENTS, VERSION
from backend.routes.api import api_blueprint
from backend.routes.openapi import DOCUMENT, openapi_blueprint
from backend.routes.operations import operations_blueprint
from backend.routes.protocol import older_protocol_blueprint, protocol_blueprint
from backend.services.diagnosis.findings import Check
from backend.settings import Settings

ROOT = Path(__file__).parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def readme_section(heading: str) -> str:
    return read("README.md").split(f"\n## {heading}\n")[1].split("\n## ")[0]


def shown_default(value: object) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def settings_table() -> str:
    rows = ["| Variable | Default | Meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        assert field.default is not PydanticUndefined, f"{name} has no default"
        assert field.description, f"{name} has no description"
        rows.append(f"| `{name.upper()}` | {shown_default(field.default)} | {field.description} |")
    return "\n".join(rows)


def test_readme_lists_every_setting_with_its_default() -> None:
    documented = re.search(r"<!-- settings:.*?-->\n(.*?)\n?<!-- /settings -->", read("README.md"), re.DOTALL)
    assert documented
    assert documented[1].strip() == settings_table(), f"README.md must hold:\n\n{settings_table()}\n"


def every_endpoint() -> set[tuple[str, str]]:
    """Return method and path of all that is served."""
    web = Flask("documented", root_path=str(ROOT))
    no_container = cast("Any", None)
    web.register_blueprint(api_blueprint(no_container))
    web.register_blueprint(openapi_blueprint())
    web.register_blueprint(protocol_blueprint(no_container))
    web.register_blueprint(older_protocol_blueprint(no_container))
    web.register_blueprint(operations_blueprint(no_container, with_metrics=True))
    return {
        (method, re.sub(r"<(?:[a-z]+:)?([a-z_]+)>", r"{\1}", rule.rule))
        for rule in web.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.endpoint != "static"
    }


def test_readme_lists_every_endpoint() -> None:
    documented = set(re.findall(r"`((?:GET|POST|DELETE|PATCH|PUT) /[^`]*)`", readme_section("The HTTP API")))
    assert documented == {
        f"{method} {re.sub('{project_id}|{job_id}', '{id}', path)}" for method, path in every_endpoint()
    }


def test_the_published_description_has_every_endpoint() -> None:
    paths = json.loads(DOCUMENT.read_text())["paths"]
    published = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert published == every_endpoint(), "backend/routes/openapi.json must describe every endpoint and no other"


def test_readme_lists_every_command() -> None:
    real = set(cast("Any", get_command(command_line)).commands)
    documented = set(re.findall(r"^\| `tandem ([a-z-]+)`", readme_section("The command `tandem`"), re.MULTILINE))
    assert documented == real


def test_every_check_of_the_doctor_is_described() -> None:
    documented = re.findall(r"^\| `([a-z ]+)` \|", read("docs/doctor.md"), re.MULTILINE)
    assert documented == [check.value for check in Check]


def test_the_tree_in_readme_exists() -> None:
    tree = re.search(r"```\n(.*?)```", readme_section("What is where"), re.DOTALL)
    assert tree
    folder = ROOT
    for line in tree[1].splitlines():
        names = line[:24].split()
        assert names, line
        if not line.startswith(" "):
            folder = ROOT
        for name in names:
            assert (folder / name).exists(), f"README.md shows {name}, which does not exist"
        if not line.startswith(" "):
            folder = ROOT / names[0]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_documents_name_targets_that_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    calls = re.findall(r"(?:^|`)make ((?:[a-z-]+ ?)+)", read(document), re.MULTILINE)
    assert calls
    assert {target for call in calls for target in call.split()} <= targets


def test_readme_names_the_two_commands_before_any_other() -> None:
    assert re.findall(r"^make [a-z-]+", read("README.md"), re.MULTILINE)[:2] == ["make demo", "make test"]


def test_pinned_versions_agree() -> None:
    makefile = re.search(r"^UV_VERSION := (\S+)$", read("Makefile"), re.MULTILINE)
    dockerfile = re.search(r"^ARG UV_VERSION=(\S+)$", read("Dockerfile"), re.MULTILINE)
    assert makefile
    assert dockerfile
    assert makefile[1] == dockerfile[1]
    assert f"\nlabel-studio=={VERSION}\n" in REQUIREMENTS.read_text()
    assert f"image: heartexlabs/label-studio:{VERSION}\n" in read("docker-compose.yml")
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert f"image: tandem:{version}\n" in read("docker-compose.yml")


def test_requirements_of_label_studio_are_all_pinned_and_name_no_index() -> None:
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all(re.fullmatch(r"[A-Za-z0-9._\[\]-]+==[^\s;]+( ; .+)?", line) for line in lines)


def test_installing_needs_no_package_of_label_studios_and_no_address() -> None:
    """Label Studio's packages pin what others must not get, or come from a git address."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    assert wanted
    assert not [each for each in wanted if "label-studio" in each or "label_studio" in each or "@" in each]
    locked = tomllib.loads(read("uv.lock"))["package"]
    assert not [package["name"] for package in locked if "git" in package["source"]]


def test_line_ends_cannot_keep_a_container_from_starting() -> None:
    assert "* text=auto eol=lf" in read(".gitattributes").splitlines()
    started = re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", read("Dockerfile"), re.MULTILINE)
    assert started == ['["tandem"]', '["serve"]']
    for script in ROOT.glob("**/*.sh"):
        if not {".venv", ".tools", ".cache"} & set(script.relative_to(ROOT).parts):
            assert b"\r" not in script.read_bytes(), script


def test_continuous_integration_runs_what_people_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert re.findall(r"^make .*$", read(".ci/run"), re.MULTILINE) == ["make check", "make test"]


def test_tests_that_the_security_policy_relies_on_exist() -> None:
    named = set(re.findall(r"`(tests/[a-z_/]+(?:\.py)?)`", read("SECURITY.md")))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
