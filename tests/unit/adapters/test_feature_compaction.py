"""Removing rows: what is kept is never lost, whoever reads, appends or dies meanwhile."""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backend.adapters import feature_table
from backend.adapters.features import FeatureFiles
from backend.errors import NotFound
from tests.numbered_rows import BACKBONE, N_FEATURES, append, assert_holds, data_files, digests, found_among, rows


def test_only_what_is_kept_stays(tmp_path):
    store, other = FeatureFiles(tmp_path), FeatureFiles(tmp_path)
    append(store, range(100))
    assert_holds(other, range(100))
    assert store.compact(BACKBONE, set(digests([*range(0, 100, 3), 500]))) == 66
    for each in (store, other, FeatureFiles(tmp_path)):
        assert_holds(each, range(0, 100, 3), absent=[1, 2, 98, 500])
        assert each.count(BACKBONE) == 34
    assert data_files(tmp_path)["rows"].stat().st_size == 34 * N_FEATURES * 2


def test_what_was_removed_can_be_appended_again(tmp_path):
    store, other = FeatureFiles(tmp_path), FeatureFiles(tmp_path)
    append(store, range(100))
    other.compact(BACKBONE, digests(range(50)))
    append(store, range(40, 120))
    for each in (store, other):
        assert_holds(each, range(120), absent=[120])


def test_nothing_may_be_left(tmp_path):
    store = FeatureFiles(tmp_path)
    append(store, range(10))
    assert store.compact(BACKBONE, []) == 10
    assert_holds(store, [], absent=range(10))
    assert store.block_sizes(BACKBONE) == (2, 3)
    append(store, [3])
    assert_holds(store, [3], absent=[4])


def test_where_nothing_is_unused_nothing_is_written(tmp_path):
    store = FeatureFiles(tmp_path)
    append(store, range(10))
    before = data_files(tmp_path)
    assert store.compact(BACKBONE, digests(range(20))) == 0
    assert data_files(tmp_path) == before


def test_a_backbone_without_rows_is_left_alone(tmp_path):
    store = FeatureFiles(tmp_path)
    assert store.compact(BACKBONE, digests([1])) == 0
    store.delete(BACKBONE)
    assert list(tmp_path.iterdir()) == []


def test_appending_waits_for_no_bulk_copy_and_is_not_lost(tmp_path, monkeypatch):
    append(FeatureFiles(tmp_path), range(100))
    copy, appended = feature_table._copy, []

    def append_then_copy(*arguments) -> None:
        if not appended:
            appended.append(1000)
            append(FeatureFiles(tmp_path), [5, 60, 1000])
        copy(*arguments)

    monkeypatch.setattr(feature_table, "_copy", append_then_copy)
    store = FeatureFiles(tmp_path)
    assert store.compact(BACKBONE, digests(range(50))) == 50
    assert_holds(store, [*range(50), 1000], absent=[50, 60, 99])


def test_a_full_disk_leaves_everything_as_it_was(tmp_path, monkeypatch):
    store = FeatureFiles(tmp_path)
    append(store, range(100))
    before = data_files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(feature_table, "_copy", _no_space)
        with pytest.raises(OSError, match="no space"):
            store.compact(BACKBONE, digests(range(50)))
    assert data_files(tmp_path) == before
    assert_holds(store, range(100))


def _no_space(*_: object) -> None:
    raise OSError("no space left on device")


def test_a_deleted_backbone_is_gone_for_everybody(tmp_path):
    store, other = FeatureFiles(tmp_path), FeatureFiles(tmp_path)
    append(store, range(10))
    assert_holds(other, range(10))
    store.delete(BACKBONE)
    for each in (store, other):
        assert_holds(each, [], absent=range(10))
        assert each.backbones() == []
        with pytest.raises(NotFound):
            each.block_sizes(BACKBONE)
    assert data_files(tmp_path) == {}


def test_a_deleted_backbone_can_be_begun_anew_with_other_blocks(tmp_path):
    store, other = FeatureFiles(tmp_path), FeatureFiles(tmp_path)
    append(store, range(10))
    assert_holds(other, range(10))
    store.delete(BACKBONE)
    # as many rows as before, so that only the files themselves tell a reader that they are others
    values = np.arange(40, dtype=np.float16).reshape(10, 4)
    store.append(BACKBONE, digests(range(5, 15)), values, block_sizes=(4,))
    for each in (store, other):
        features, found = each.read(BACKBONE, digests(range(15)))
        assert found.tolist() == [False] * 5 + [True] * 10
        np.testing.assert_array_equal(features, values)


# --- processes that die


def killed_at_each_step(root: Path, work: Callable[[FeatureFiles], object], check: Callable[[], None]) -> int:
    """Do some work again and again, killed before the first, second, … change to the disk; return how many there are.

    Runs in a process of its own, because it forks.
    """
    for step in itertools.count(1):
        process = os.fork()
        if process == 0:
            _die_before_change(step)
            work(FeatureFiles(root))
            os._exit(0)
        status = os.waitpid(process, 0)[1]
        check()
        if status == 0:
            return step - 1
        assert os.WTERMSIG(status) == signal.SIGKILL


def _die_before_change(step: int) -> None:
    """Kill this process when it is about to make its n-th durable change."""
    steps = itertools.count(1)

    def dying(change: Callable[..., object]) -> Callable[..., object]:
        def act(*arguments: object, **options: object) -> object:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **options)

        return act

    for name in ("fsync", "fdatasync", "replace", "unlink", "open"):
        setattr(os, name, dying(getattr(os, name)))


def compact_dying(root: Path) -> None:
    reader = FeatureFiles(root)
    append(reader, range(60))

    def check() -> None:
        assert found_among(reader, range(60)) >= set(range(0, 60, 2))
        assert found_among(FeatureFiles(root), range(60)) >= set(range(0, 60, 2))
        append(reader, range(100, 110))
        assert found_among(FeatureFiles(root), range(100, 110)) == set(range(100, 110))

    keep = digests([*range(0, 60, 2), *range(100, 110)])
    n_steps = killed_at_each_step(root, lambda store: store.compact(BACKBONE, keep), check)
    assert n_steps >= 8
    reader.compact(BACKBONE, keep)
    assert_holds(reader, [*range(0, 60, 2), *range(100, 110)], absent=range(1, 60, 2))
    assert set(data_files(root)) == {"keys", "rows"}


def delete_dying(root: Path) -> None:
    reader = FeatureFiles(root)
    append(reader, range(60))

    def check() -> None:
        assert found_among(reader, range(60)) in (set(), set(range(60)))
        assert found_among(FeatureFiles(root), range(60)) in (set(), set(range(60)))
        # what is not gone yet is still listed, so that it goes the next time
        assert (BACKBONE in FeatureFiles(root).backbones()) or not data_files(root)

    assert killed_at_each_step(root, lambda store: store.delete(BACKBONE), check) >= 4
    append(reader, [1])
    assert_holds(FeatureFiles(root), [1], absent=[2])


@pytest.mark.parametrize("scenario", [compact_dying, delete_dying])
def test_a_process_may_die_before_any_change_to_the_disk(tmp_path, scenario):
    process = multiprocessing.get_context("spawn").Process(target=scenario, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0


def append_again_and_again(root: Path, first: int) -> None:
    """Append ten images at a time and write down, after each time, up to which one."""
    store, note = FeatureFiles(root), root / f"appended-{first}"
    for start in range(first, first + 5000, 10):
        append(store, range(start, start + 10))
        append(store, range(100_000 + start, 100_000 + start + 10))
        note.with_suffix(".new").write_text(str(start + 10))
        note.with_suffix(".new").replace(note)


PR_SET_PDEATHSIG = 1


def compact_again_and_again(root: Path, first: int) -> None:
    """Remove all images from 100,000 on, in forked processes that are killed at any moment."""
    store, keep, chance = FeatureFiles(root), digests(range(20_000)), random.Random(first)
    append(store, [100_000])
    parent = os.getpid()
    while True:
        process = os.fork()
        if process == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            while os.getppid() == parent:
                store.compact(BACKBONE, keep)
            os._exit(0)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_nothing_kept_is_lost_while_processes_append_compact_and_die(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    works = [append_again_and_again, append_again_and_again, compact_again_and_again]
    processes = [spawn.Process(target=work, args=(tmp_path, 10_000 * index)) for index, work in enumerate(works)]
    for process in processes:
        process.start()
    reader, generations = FeatureFiles(tmp_path), set()
    notes = [tmp_path / f"appended-{first}" for first in (0, 10_000)]
    deadline_s = time.monotonic() + 60
    while len(generations) < 4 or not all(note.exists() for note in notes):
        assert time.monotonic() < deadline_s, "nothing was compacted"
        appended = [range(int(note.stem.split("-")[1]), int(note.read_text())) for note in notes if note.exists()]
        for store in (reader, FeatureFiles(tmp_path)):
            for numbers in appended:
                assert found_among(store, numbers) == set(numbers)
            found_among(store, range(100_000, 100_500))
        generations |= {path.name for path in (tmp_path / BACKBONE).glob("keys-*")}
    for process in processes:
        process.kill()
        process.join()
    append(reader, [999_999])
    reader.compact(BACKBONE, digests(range(20_000)))
    assert set(data_files(tmp_path)) == {"keys", "rows"}
    appended = {number for note in notes for number in range(int(note.stem.split("-")[1]), int(note.read_text()))}
    assert found_among(FeatureFiles(tmp_path), appended) == appended
    np.testing.assert_array_equal(reader.read(BACKBONE, digests([3]))[0], rows([3]))


def test_what_dead_writers_left_is_removed(tmp_path):
    store = FeatureFiles(tmp_path)
    append(store, range(3))
    folder = tmp_path / BACKBONE
    before = sorted(folder.iterdir())
    for name in ("rows-0123.f16", "keys-0123.bin", ".features.json.tmp"):
        (folder / name).write_bytes(b"left")
    FeatureFiles(tmp_path).clean()
    assert sorted({*folder.iterdir()} - {folder / "compaction.lock"}) == before
    assert store.count(BACKBONE) == 3
