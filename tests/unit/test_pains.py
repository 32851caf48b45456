"""What docs/pains.md says holds a pain does exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from backend.services.diagnosis.findings import Check

ROOT = Path(__file__).parents[2]
N_PAINS = 42


def rows() -> dict[int, str]:
    """What stands in the last column, by number."""
    lines = (ROOT / "docs" / "pains.md").read_text(encoding="utf-8").splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if re.match(r"\| \d+ \|", line)]
    assert {len(row) for row in cells} == {5}
    return {int(row[0]): row[4] for row in cells}


def names_in(file: Path) -> set[str]:
    """The tests in a file, as pytest names them."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def test_every_pain_is_there_once() -> None:
    assert list(rows()) == list(range(1, N_PAINS + 1))


@pytest.mark.parametrize("number", range(1, N_PAINS + 1))
def test_what_holds_a_pain_exists(number: int) -> None:
    tests, _, checks = rows()[number].partition("; check")
    named = re.findall(r"`([^`]+)`", tests)
    assert named
    for each in named:
        file, _, name = each.partition("::")
        assert name in names_in(ROOT / "tests" / file), f"there is no test {each}"
    assert set(re.findall(r"`([^`]+)`", checks)) <= {check.value for check in Check}
    assert bool(checks) == ("`" in checks)


def test_every_check_is_named_in_the_doctors_tests() -> None:
    tests = "".join(
        (ROOT / "tests" / name).read_text(encoding="utf-8")
        for name in ("unit/services/test_diagnosis.py", "unit/test_cli.py")
    )
    missing = [check for check in Check if f"Check.{check.name}" not in tests and f'"{check.value}"' not in tests]
    assert missing == []
