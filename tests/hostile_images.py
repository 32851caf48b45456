"""Images made to harm whoever decodes them: one as it comes from the wild, and some that the tests' decoders obey."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path

import pytest

INJECTED = Path(__file__).parent / "chaos" / "injected"
MARK = b"tandem-chaos:"


def telling(picture: bytes, order: str) -> bytes:
    """Return a picture that has a decoder under ``chaos/injected`` do something; any other does not notice."""
    return picture + MARK + order.encode()


def obey_orders(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have the processes started from here on obey the orders of images."""
    python_path = os.pathsep.join([str(INJECTED), str(Path(__file__).parents[1])])
    monkeypatch.setenv("PYTHONPATH", python_path)
    monkeypatch.setenv("TANDEM_CHAOS", str(folder / "chaos.json"))


def endless_jpeg(side: int, n_scans: int) -> bytes:
    """Return a progressive JPEG with so many scans that say nothing, each of which a decoder goes through in full."""
    n_blocks = (side // 8) ** 2
    frame = bytes([8]) + side.to_bytes(2) * 2 + bytes([1, 1, 0x11, 0])
    one_code = bytes([1] + [0] * 15)  # a table with a single code, the bit 0
    first = _scan(0, 0, "0" * n_blocks)
    # an "end of band" for up to 32,767 blocks: the code, and 14 bits that say for how many more than 16,384
    other = _scan(1, 63, ("0" + "1" * 14) * -(-n_blocks // 32_767))
    segments = [
        _segment(0xDB, bytes([0] + [1] * 64)),
        _segment(0xC2, frame),
        _segment(0xC4, bytes([0x00]) + one_code + bytes([0x00])),
        _segment(0xC4, bytes([0x10]) + one_code + bytes([0xE0])),
        first,
    ]
    return b"".join(chain([b"\xff\xd8"], segments, [other] * n_scans, [b"\xff\xd9"]))


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (2 + len(content)).to_bytes(2) + content


def _scan(first: int, last: int, bits: str) -> bytes:
    padded = bits + "1" * (-len(bits) % 8)
    content = int(padded, 2).to_bytes(len(padded) // 8).replace(b"\xff", b"\xff\x00")
    return _segment(0xDA, bytes([1, 1, 0x00, first, last, 0])) + content
