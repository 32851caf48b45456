"""The feature files: what was appended is found, whoever appended it and however a writer died."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.adapters.features import FeatureFiles
from backend.errors import ConfigurationError, NotFound
from tests.numbered_rows import BACKBONE, BLOCK_SIZES, N_FEATURES, append, assert_holds, data_files, digests, rows


def test_rows_are_read_in_the_order_asked_with_gaps_and_repeats(tmp_path):
    store = FeatureFiles(tmp_path)
    append(store, range(10))
    features, found = store.read(BACKBONE, digests([7, 99, 3, 7]))
    assert features.dtype == np.float16
    assert found.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(features, rows([7, 3, 7]))


def test_an_empty_store_finds_nothing(tmp_path):
    features, found = FeatureFiles(tmp_path).read(BACKBONE, digests([1, 2]))
    assert features.shape == (0, 0)
    assert found.tolist() == [False, False]


def test_asking_for_nothing_and_appending_nothing(tmp_path):
    store = FeatureFiles(tmp_path)
    append(store, [])
    append(store, [1])
    features, found = store.read(BACKBONE, [])
    assert features.shape == (0, N_FEATURES)
    assert found.shape == (0,)


def test_a_stored_row_stays_as_it_is(tmp_path):
    store = FeatureFiles(tmp_path)
    append(store, [1, 2])
    store.append(BACKBONE, digests([2, 3, 3]), rows([50, 3, 60]), block_sizes=BLOCK_SIZES)
    assert_holds(store, [1, 2, 3])
    assert store.count(BACKBONE) == 3
    assert data_files(tmp_path)["keys"].stat().st_size == 3 * 32


def test_backbones_do_not_mix(tmp_path):
    store = FeatureFiles(tmp_path)
    append(store, [1])
    store.append("ffff", digests([1]), np.ones((1, 3), np.float16), block_sizes=(3,))
    assert store.read("ffff", digests([1]))[0].tolist() == [[1, 1, 1]]
    assert_holds(store, [1])


def test_rows_outlive_the_store(tmp_path):
    append(FeatureFiles(tmp_path), range(100))
    append(FeatureFiles(tmp_path), range(50, 150))
    assert_holds(FeatureFiles(tmp_path), range(150), absent=[1000])


def test_a_reader_sees_what_another_appends_later(tmp_path):
    reader, writer = FeatureFiles(tmp_path), FeatureFiles(tmp_path)
    assert not reader.read(BACKBONE, digests([0]))[1].any()
    for start in range(0, 12_000, 1500):  # more than one sorting of the index
        append(writer, range(start, start + 1500))
        assert_holds(reader, range(start + 1500), absent=[start + 1500])


def test_keys_with_equal_first_bytes_are_told_apart(tmp_path):
    same = "00" * 8
    keys = [same + f"{number:048x}" for number in range(6000)]
    values = np.arange(6000 * 2).reshape(-1, 2).astype(np.float16)
    store = FeatureFiles(tmp_path)
    store.append(BACKBONE, keys, values, block_sizes=(2,))
    features, found = store.read(BACKBONE, [keys[4321], same + "f" * 48, keys[0]])
    assert found.tolist() == [True, False, True]
    np.testing.assert_array_equal(features, values[[4321, 0]])


def test_rows_around_one_are_the_same_for_each_of_them(tmp_path):
    reader, writer = FeatureFiles(tmp_path), FeatureFiles(tmp_path)
    assert reader.read_around(BACKBONE, digests([0])[0], 4) == ([], pytest.approx(np.empty((0, 0))))
    append(writer, range(10))
    for number, expected in ((0, range(4)), (3, range(4)), (4, range(4, 8)), (9, range(8, 10))):
        names, features = reader.read_around(BACKBONE, digests([number])[0], 4)
        assert names == digests(expected)
        np.testing.assert_array_equal(features, rows(expected))
    assert reader.read_around(BACKBONE, digests([10])[0], 4)[0] == []
    append(writer, [10])
    assert reader.read_around(BACKBONE, digests([10])[0], 4)[0] == digests([8, 9, 10])


@pytest.mark.parametrize("n_wanted", [1, 16, 17, 40])
def test_few_and_many_are_found_alike_wherever_the_index_has_them(tmp_path, n_wanted):
    store = FeatureFiles(tmp_path)
    append(store, range(6000))
    append(store, range(6000, 6100))
    asked = [number * 151 % 6150 for number in range(n_wanted)]
    features, found = store.read(BACKBONE, digests(asked))
    assert found.tolist() == [number < 6100 for number in asked]
    np.testing.assert_array_equal(features, rows([number for number in asked if number < 6100]))


@pytest.mark.parametrize("block_sizes", [(4,), (5,), (3, 2)])
def test_other_blocks_are_refused(tmp_path, block_sizes):
    store = FeatureFiles(tmp_path)
    append(store, [1])
    with pytest.raises(ValueError, match="another network must have another digest"):
        store.append(BACKBONE, digests([2]), np.ones((1, sum(block_sizes)), np.float16), block_sizes=block_sizes)
    assert_holds(store, [1], absent=[2])


def test_block_sizes_are_kept(tmp_path):
    with pytest.raises(NotFound, match="not embedded yet"):
        FeatureFiles(tmp_path).block_sizes(BACKBONE)
    append(FeatureFiles(tmp_path), [1])
    assert FeatureFiles(tmp_path).block_sizes(BACKBONE) == BLOCK_SIZES


@pytest.mark.parametrize(
    ("keys", "features"),
    [
        (digests([1]), np.ones((1, 4), np.float32)),
        (digests([1]), np.ones((2, 4), np.float16)),
        (digests([1]), np.ones(4, np.float16)),
        (digests([1]), np.ones((1, 3), np.float16)),
        (["abc"], np.ones((1, 4), np.float16)),
        (["g" * 64], np.ones((1, 4), np.float16)),
        ([" " * 64], np.ones((1, 4), np.float16)),
        (["a" * 62 + "  "], np.ones((1, 4), np.float16)),
        (["a" * 63, "a" * 65], np.ones((2, 4), np.float16)),
    ],
)
def test_malformed_rows_and_digests_are_refused(tmp_path, keys, features):
    with pytest.raises(ValueError, match=r"float16|SHA-256|non-hexadecimal"):
        FeatureFiles(tmp_path).append(BACKBONE, keys, features, block_sizes=(4,))
    assert not list(tmp_path.rglob("keys*"))


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "a\n"])
def test_a_backbone_digest_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="is not a backbone digest"):
        FeatureFiles(tmp_path).read(name, [])


def test_files_of_the_first_format_are_read_and_appended_to(tmp_path):
    folder = tmp_path / BACKBONE
    folder.mkdir()
    (folder / "features.json").write_text('{"format_version": 1, "block_sizes": [2, 3]}')
    (folder / "rows.f16").write_bytes(rows(range(10)).tobytes())
    (folder / "keys.bin").write_bytes(bytes.fromhex("".join(digests(range(10)))))
    store = FeatureFiles(tmp_path)
    assert_holds(store, range(10), absent=[10])
    append(store, range(5, 15))
    assert_holds(FeatureFiles(tmp_path), range(15))
    store.compact(BACKBONE, digests(range(3, 15)))
    assert_holds(FeatureFiles(tmp_path), range(3, 15), absent=range(3))
    assert set(data_files(tmp_path)) == {"keys", "rows"}


def test_another_format_is_refused_with_a_remedy(tmp_path):
    append(FeatureFiles(tmp_path), [1])
    (tmp_path / BACKBONE / "features.json").write_text('{"format_version": 3,  "block_sizes": [2, 3]}')
    with pytest.raises(ConfigurationError, match="delete the folder"):
        FeatureFiles(tmp_path).read(BACKBONE, digests([1]))


def test_a_removed_folder_is_begun_anew(tmp_path):
    store = FeatureFiles(tmp_path)
    append(store, range(10))
    assert_holds(store, range(10))
    for file in (tmp_path / BACKBONE).iterdir():
        file.unlink()
    assert_holds(store, [], absent=range(10))
    append(store, [3])
    assert_holds(store, [3], absent=[1, 2])


@pytest.mark.parametrize("kind", ["keys", "rows"])
def test_a_removed_file_is_begun_anew(tmp_path, kind):
    store = FeatureFiles(tmp_path)
    append(store, range(10))
    data_files(tmp_path)[kind].unlink()
    for each in (store, FeatureFiles(tmp_path)):
        assert_holds(each, [], absent=range(10))
    append(store, [3])
    assert_holds(store, [3], absent=[1, 2])


def test_rows_are_counted_and_backbones_listed(tmp_path):
    store = FeatureFiles(tmp_path)
    assert (store.backbones(), store.count(BACKBONE)) == ([], 0)
    append(store, range(10))
    store.append("ffff", digests([1]), np.ones((1, 3), np.float16), block_sizes=(3,))
    assert (store.backbones(), store.count(BACKBONE), store.count("ffff")) == ([BACKBONE, "ffff"], 10, 1)


@given(
    keys_cut=st.integers(0, 40 * 32),
    rows_cut=st.integers(0, 40 * N_FEATURES * 2),
    garbage=st.binary(max_size=200),
    reopen=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_files_torn_anywhere_stay_readable_and_are_repaired(keys_cut, rows_cut, garbage, reopen):
    """Forty rows of which any number of bytes is lost in either file, and rows without keys behind them."""
    with TemporaryDirectory() as root:
        append(FeatureFiles(Path(root)), range(40))
        keys_path, rows_path = (data_files(Path(root))[name] for name in ("keys", "rows"))
        os.truncate(keys_path, keys_path.stat().st_size - keys_cut)
        os.truncate(rows_path, rows_path.stat().st_size - rows_cut)
        complete = min(keys_path.stat().st_size // 32, rows_path.stat().st_size // (2 * N_FEATURES))
        if rows_cut == 0:
            with rows_path.open("ab") as file:
                file.write(garbage)
        store = FeatureFiles(Path(root))
        assert_holds(store, range(complete), absent=range(complete, 40))
        append(store, range(30, 60))
        present = [*range(complete), *range(max(30, complete), 60)]
        assert_holds(FeatureFiles(Path(root)) if reopen else store, present, absent=range(complete, 30))


def append_in_process(root: Path, start: int, stop: int) -> None:
    store = FeatureFiles(root)
    for first in range(start, stop, 10):
        append(store, range(first, first + 10))


def test_several_processes_append_at_once(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=append_in_process, args=(tmp_path, start, start + 400)) for start in (0, 200, 400)
    ]
    for process in processes:
        process.start()
    reader = FeatureFiles(tmp_path)
    while any(process.is_alive() for process in processes):
        names = list(range(800))
        features, found = reader.read(BACKBONE, digests(names))
        np.testing.assert_array_equal(features, rows(np.flatnonzero(found)).reshape(features.shape))
        time.sleep(0.01)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert_holds(reader, range(800))
    assert data_files(tmp_path)["keys"].stat().st_size == 800 * 32


def test_several_threads_append_and_read_at_once(tmp_path):
    store = FeatureFiles(tmp_path)

    def work(start: int) -> None:
        for first in range(start, start + 200, 20):
            append(store, range(first, first + 20))
            assert_holds(store, range(first, first + 20), absent=[10_000])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [0, 100, 200, 300]))
    assert_holds(store, range(500))


@pytest.mark.slow
def test_a_million_rows(tmp_path, capsys):
    n_rows, n_features = 1_000_000, 8
    generator = np.random.default_rng(0)
    keys = [key.tobytes().hex() for key in generator.integers(0, 256, (n_rows, 32), np.uint8)]
    features = generator.random((n_rows, n_features)).astype(np.float16)
    times = []

    def timed(name: str, work):
        start = time.perf_counter()
        result = work()
        times.append(f"{name} {time.perf_counter() - start:.2f} s")
        return result

    timed("append", lambda: FeatureFiles(tmp_path).append(BACKBONE, keys, features, block_sizes=(8,)))
    store = FeatureFiles(tmp_path)
    sample = generator.integers(0, n_rows, 256)
    timed("open", lambda: store.read(BACKBONE, keys[:1]))
    scattered, _ = timed("read 256", lambda: store.read(BACKBONE, [keys[index] for index in sample]))
    np.testing.assert_array_equal(scattered, features[sample])
    timed("append 256", lambda: store.append(BACKBONE, digests(range(256)), features[:256], block_sizes=(8,)))
    removed = timed("compact to half", lambda: FeatureFiles(tmp_path).compact(BACKBONE, keys[::2]))
    assert removed == n_rows // 2 + 256
    everything, found = timed("read half", lambda: store.read(BACKBONE, keys[::2]))
    assert found.all()
    np.testing.assert_array_equal(everything, features[::2])
    timed("append the rest", lambda: store.append(BACKBONE, keys, features, block_sizes=(8,)))
    everything, found = timed("read all", lambda: store.read(BACKBONE, keys))
    assert found.all()
    np.testing.assert_array_equal(everything, features)
    with capsys.disabled():
        print(  # noqa: T201 - the speed is there to be read
            "\n1M rows:", ", ".join(times)
        )
