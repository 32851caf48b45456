"""What an image does to the process that decodes it, it does to nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from structlog.testing import capture_logs

from model import decoding
from model.decoder import SMALL_SHARE, TimeLimits
from model.decoding import N_TRIES, Decoders, DecodersUnavailable
from model.image_files import UnreadableImage
from model.pixel_budget import PixelBudget
from model.transforms import InputSpec, to_views
from tests.e2e.loop import picture
from tests.hostile_images import endless_jpeg, obey_orders, telling

SPEC = InputSpec(resize_size=36, crop_size=32, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear", n_views=2)
MAX_PIXELS = 2_000_000


@pytest.fixture
def decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoders]:
    """Two processes that obey orders in images, and have a second of a processor for each."""
    obey_orders(monkeypatch, tmp_path)
    decoders = Decoders(2, TimeLimits(processor_s=1, clock_s=3))
    yield decoders
    decoders.close()


def good_images(folder: Path, n: int) -> list[Path]:
    paths = [folder / f"good-{number}.png" for number in range(n)]
    for number, path in enumerate(paths):
        path.write_bytes(picture("red", number))
    return paths


def ordering(folder: Path, order: str) -> Path:
    path = folder / "bad.png"
    path.write_bytes(telling(picture("red", 99), order))
    return path


def test_it_does_what_decoding_here_does(decoders: Decoders, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1400, 4), dtype=np.uint8), "RGBA")
    noise.save(tmp_path / "large.png", exif=exif)
    noise.convert("RGB").save(tmp_path / "a name\nof two lines.jpg", quality=70)
    noise.convert("L").resize((40, 30)).save(tmp_path / "small.webp")
    for path in [*tmp_path.glob("*.*"), *good_images(tmp_path, 3)]:
        expected = to_views(path, SPEC, max_pixels=MAX_PIXELS)
        assert expected.shape == (2, 32, 32, 3)
        np.testing.assert_array_equal(decoders.views(path, SPEC, max_pixels=MAX_PIXELS), expected)
    with pytest.raises(UnreadableImage, match="1400 x 900 pixels are more than the 1000 allowed"):
        decoders.views(tmp_path / "large.png", SPEC, max_pixels=1000)
    with pytest.raises(UnreadableImage, match="the file is not there"):
        decoders.views(tmp_path / "nowhere.png", SPEC, max_pixels=MAX_PIXELS)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("crash", r"its decoding crashes \(SIGSEGV\)"),
        ("abort", r"its decoding crashes \(SIGABRT\)"),
        ("exit", "its decoding ends with status 7"),
        ("spin", "its decoding takes more than 1 s of a processor"),
        ("sleep", "its decoding takes more than 3 s"),
        ("hoard", "cannot be decoded in the memory there is for one image"),
        ("fail", "cannot be decoded: ZeroDivisionError"),
        ("be killed", "its decoding was killed: out of memory, or by somebody"),
    ],
)
def test_an_image_costs_nothing_but_itself(decoders: Decoders, tmp_path: Path, order: str, reason: str) -> None:
    paths = good_images(tmp_path, 20)
    bad = ordering(tmp_path, order)
    expected = [to_views(path, SPEC, max_pixels=MAX_PIXELS) for path in paths]
    with ThreadPoolExecutor(4) as threads:
        before = [threads.submit(decoders.views, path, SPEC, max_pixels=MAX_PIXELS) for path in paths[:10]]
        refused = threads.submit(decoders.views, bad, SPEC, max_pixels=MAX_PIXELS)
        after = [threads.submit(decoders.views, path, SPEC, max_pixels=MAX_PIXELS) for path in paths[10:]]
        with pytest.raises(UnreadableImage, match=reason):
            refused.result()
        for future, views in zip([*before, *after], expected, strict=True):
            np.testing.assert_array_equal(future.result(), views)


def test_an_image_from_the_wild_that_keeps_its_decoder_busy(tmp_path: Path) -> None:
    """A file of 320 kB that is decoded for seconds; nobody has to be told to obey."""
    (tmp_path / "endless.jpg").write_bytes(endless_jpeg(2000, 20_000))
    (good,) = good_images(tmp_path, 1)
    decoders = Decoders(1, TimeLimits(processor_s=0.5))
    with pytest.raises(UnreadableImage, match=r"takes more than 0\.5 s of a processor"):
        decoders.views(tmp_path / "endless.jpg", SPEC, max_pixels=4_000_000)
    decoders.views(good, SPEC, max_pixels=MAX_PIXELS)
    decoders.close()


def test_what_ended_a_process_is_not_tried_again(decoders: Decoders, tmp_path: Path) -> None:
    bad = ordering(tmp_path, "abort")
    with capture_logs() as lines, pytest.raises(UnreadableImage, match="SIGABRT"):
        decoders.views(bad, SPEC, max_pixels=MAX_PIXELS)
    assert [line["event"] for line in lines] == ["decoder ended"], "it was new, so nothing else can be the reason"
    bad.rename(tmp_path / "the same under another name.png")
    with capture_logs() as lines, pytest.raises(UnreadableImage, match="SIGABRT"):
        decoders.views(tmp_path / "the same under another name.png", SPEC, max_pixels=MAX_PIXELS)
    assert lines == []
    bad.write_bytes(picture("red", 99) + b" " * len(telling(b"", "abort")))
    decoders.views(bad, SPEC, max_pixels=MAX_PIXELS)


def test_who_was_killed_by_chance_is_tried_again(decoders: Decoders, tmp_path: Path) -> None:
    decoders.views(ordering(tmp_path, f"be killed once {tmp_path / 'witness'}"), SPEC, max_pixels=MAX_PIXELS)
    assert (tmp_path / "witness").exists()


def test_who_is_killed_each_time_may_come_again(decoders: Decoders, tmp_path: Path) -> None:
    bad = ordering(tmp_path, "be killed")
    for _ in range(2):
        with capture_logs() as lines, pytest.raises(UnreadableImage, match="was killed"):
            decoders.views(bad, SPEC, max_pixels=MAX_PIXELS)
        assert [line["tries"] for line in lines] == list(range(1, N_TRIES + 1))


def test_an_image_does_not_answer_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    obey_orders(monkeypatch, tmp_path)
    (good,) = good_images(tmp_path, 1)
    bad = ordering(tmp_path, "corrupt")
    decoders = Decoders(1)
    decoders.views(bad, SPEC, max_pixels=MAX_PIXELS)
    with capture_logs() as lines:
        decoders.views(good, SPEC, max_pixels=MAX_PIXELS)
    assert [line["reason"] for line in lines] == ["its decoding crashes (SIGSEGV)"]
    decoders.close()


def test_one_that_died_while_nothing_was_asked_is_replaced(tmp_path: Path) -> None:
    first, second = good_images(tmp_path, 2)
    decoders = Decoders(1)
    decoders.views(first, SPEC, max_pixels=MAX_PIXELS)
    (process_id,) = decoders.process_ids()
    os.kill(process_id, signal.SIGKILL)
    decoders.views(second, SPEC, max_pixels=MAX_PIXELS)
    decoders.close()


def test_where_none_can_be_started_no_image_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (good,) = good_images(tmp_path, 1)
    decoders = Decoders(1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(DecodersUnavailable, match="status 1 when it started"):
            decoders.views(good, SPEC, max_pixels=MAX_PIXELS)
    decoders.views(good, SPEC, max_pixels=MAX_PIXELS)
    decoders.close()


def test_large_images_take_the_memory_of_one(tmp_path: Path) -> None:
    class Watched(PixelBudget):
        n_pixels = 0
        seen: list[int] = []  # noqa: RUF012

        @contextmanager
        def hold(self, n_pixels: int, *, at_most: int) -> Iterator[None]:
            with super().hold(n_pixels, at_most=at_most):
                self.n_pixels += n_pixels
                self.seen.append(self.n_pixels)
                yield
                self.n_pixels -= n_pixels

    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        Image.new("L", (1200, 1000)).save(path)
    decoders = Decoders(3)
    decoders._budget = Watched()
    with ThreadPoolExecutor(6) as threads:
        shapes = [
            views.shape for views in threads.map(lambda path: decoders.views(path, SPEC, max_pixels=MAX_PIXELS), paths)
        ]
    assert shapes == [(2, 32, 32, 3)] * 6
    assert Watched.seen == [1_200_000] * 6
    small = tmp_path / "small.png"
    Image.new("L", (100, int(SMALL_SHARE * MAX_PIXELS) // 100)).save(small)
    decoders.views(small, SPEC, max_pixels=MAX_PIXELS)
    assert len(Watched.seen) == 6
    decoders.close()


ORPHANS = """
import sys, time
from pathlib import Path
from model.decoding import Decoders
from model.transforms import InputSpec
decoders = Decoders(1)
spec = InputSpec(resize_size=36, crop_size=32, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear")
decoders.views(Path(sys.argv[1]), spec, max_pixels=10**6)
print(*decoders.process_ids(), flush=True)
time.sleep(60)
"""


def test_none_outlives_who_it_works_for(tmp_path: Path) -> None:
    (good,) = good_images(tmp_path, 1)
    with subprocess.Popen([sys.executable, "-c", ORPHANS, str(good)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        decoder = int(parent.stdout.readline())
        os.kill(decoder, 0)
        parent.send_signal(signal.SIGKILL)
    stat = Path(f"/proc/{decoder}/stat")
    deadline_s = time.monotonic() + 20
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "N_REMEMBERED", 20)
    fatal = decoding._FatalImages()
    path = tmp_path / "image"
    for number in range(50):
        path.write_bytes(b"%d" % number)
        fatal.add(path, "it crashed")
    assert sum(map(len, fatal._reasons.values())) == 10
    with pytest.raises(UnreadableImage, match="it crashed"):
        fatal.refuse(path)
