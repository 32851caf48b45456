"""The fuzzer for some seconds on each target; `make fuzz` gives it minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
RECORDINGS = ROOT / "tests" / "contract" / "recordings"
SLOWEST_INPUT_S = 20

pytestmark = pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no package for this machine")


def recorded() -> list[dict[str, object]]:
    recordings = [json.loads(path.read_text()) for path in sorted(RECORDINGS.glob("*.json"))]
    return [each["request"]["json"] for each in recordings if each.get("request", {}).get("json")]


def request_bodies() -> list[bytes]:
    return [json.dumps(body).encode() for body in recorded()]


def label_configs() -> list[bytes]:
    return [str(body["label_config"]).encode() for body in recorded() if "label_config" in body]


def images() -> list[bytes]:
    picture = Image.effect_mandelbrot((48, 40), (-2, -1.5, 1, 1.5), 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for mode, file_format, options in (
        ("RGB", "JPEG", {"exif": exif}),
        ("CMYK", "JPEG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {"transparency": 0}),
        ("I;16", "PNG", {}),
        ("RGB", "WEBP", {"exif": exif}),
        ("P", "GIF", {}),
        ("RGB", "BMP", {}),
        ("L", "TIFF", {"compression": "tiff_lzw"}),
        ("F", "TIFF", {}),
    ):
        file = BytesIO()
        picture.convert("L").convert(mode).save(file, format=file_format, **options)
        files.append(file.getvalue())
    return files


SEEDS = {"label_config": label_configs, "request_body": request_bodies, "image": images}


@pytest.mark.parametrize("target", SEEDS)
def test_no_input_brings_anything_but_the_answers_that_are_allowed(
    target: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    seconds = pytestconfig.getoption("--fuzz-seconds")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS[target]()):
        (corpus / str(number)).write_bytes(seed)
    command = [
        *(sys.executable, "-m", "tests.fuzz.targets", target),
        *(f"-max_total_time={seconds}", "-rss_limit_mb=0", f"-timeout={SLOWEST_INPUT_S}"),
        *("-seed=1", "-max_len=65536", f"-artifact_prefix={tmp_path}/", str(corpus)),
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 240, check=False)
    findings = {path.name: path.read_bytes()[:500] for path in tmp_path.iterdir() if path.is_file()}
    assert run.returncode == 0, f"{run.stderr[-3000:]}\n{findings}"
    assert "DONE" in run.stderr
