"""Small artifacts for tests of their stores."""

from __future__ import annotations

from pathlib import Path

from backend.ports import ArtifactStore

KEY = "versions/p5/p5-v3-1a2b3c4d"


def publish(artifacts: ArtifactStore, key: str = KEY, text: str = "weights") -> None:
    with artifacts.scratch() as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "labels.json").write_text(text)
        (folder / "weights.bin").write_text(text)
        artifacts.publish(key, folder)


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
