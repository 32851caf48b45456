"""Tandem in the demo gets the demo's settings, and none that lie about in the environment."""

from __future__ import annotations

import pytest

from backend.demo.annotator import DemoFailed
from backend.demo.flow import run_demo
from backend.demo.servers import tandem_environment


def test_only_what_one_may_want_to_try_comes_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/production")
    monkeypatch.setenv("BASIC_AUTH_USER", "somebody")
    monkeypatch.setenv("BACKBONE", "convnext_tiny")
    monkeypatch.setenv("HOME", "/home/somebody")
    environment = tandem_environment({"PORT": "9090", "BACKBONE": "resnet18"})
    assert environment["PORT"] == "9090"
    assert environment["BACKBONE"] == "convnext_tiny"
    assert environment["HOME"] == "/home/somebody"
    assert "DATABASE_URL" not in environment
    assert "BASIC_AUTH_USER" not in environment


def test_rounds_must_leave_tasks_to_judge() -> None:
    with pytest.raises(DemoFailed, match="too few"):
        run_demo(n_pictures=20, rounds=(10, 20))
