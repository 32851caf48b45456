"""What a coverage-guided fuzzer feeds, each with what it may answer: anything else is a finding.

    python -m tests.fuzz.targets label_config [options of libFuzzer] corpus-folder

`make fuzz` runs all of them for some minutes; the test suite for some seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["backend.label_studio", "model.image_files", "model.transforms", "PIL", "defusedxml"]
):
    from backend.domain import Suggestion
    from backend.errors import InvalidRequest
    from backend.label_studio.codecs import encode_suggestion, read_label_config
    from backend.label_studio.payloads import PredictRequest, SetupRequest, parse_event, parse_training_request
    from model.image_files import UnreadableImage
    from model.transforms import InputSpec, to_views

SPEC = InputSpec(resize_size=36, crop_size=32, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear", n_views=2)
MAX_PIXELS = 1_000_000
MEMORY_LIMIT_MB = 1024


def label_config(content: bytes) -> None:
    """Any text is a schema or a problem in words, and what is suggested by the schema can be encoded."""
    config = read_label_config(content.decode("utf-8", "replace"))
    assert bool(config.schema) != bool(config.problem)
    if config.schema:
        names = config.schema.class_names
        assert len(set(names)) == len(names) > 0
        suggestion = Suggestion(task_id=1, class_names=names[:1], score=0.5, version="p1-v1-00000000")
        assert encode_suggestion(suggestion, config.schema)["result"]


def request_body(content: bytes) -> None:
    """Any body is an event or a request, or refused."""
    for parse in (parse_event, parse_training_request, PredictRequest.parse, SetupRequest.parse):
        with suppress(InvalidRequest):
            parse(content)


def image(content: bytes) -> None:
    """Any bytes are the pixels that a network sees, or unreadable."""
    with suppress(UnreadableImage):
        assert to_views(content, SPEC, max_pixels=MAX_PIXELS).shape == (2, 32, 32, 3)


def peak_memory_mb() -> int:
    """Return the most memory that this process has held, without its parent's, which getrusage would tell."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def within_memory(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Return the target, with an input that takes too much memory as a finding."""

    def run(content: bytes) -> None:
        target(content)
        assert peak_memory_mb() < MEMORY_LIMIT_MB

    return run


TARGETS: dict[str, Callable[[bytes], None]] = {each.__name__: each for each in (label_config, request_body, image)}

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, within_memory(target))
    atheris.Fuzz()
