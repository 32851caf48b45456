"""Rows drawn by what is in them."""

import numpy as np
import pytest

from model.sampling import drawn_by_content


def rows_of(n_rows: int, n_columns: int = 200) -> np.ndarray:
    return np.random.default_rng(n_rows).random((n_rows, n_columns)).astype(np.float16)


@pytest.mark.parametrize("n_columns", [1, 5, 64, 1280])
def test_the_same_rows_are_drawn_in_the_same_order_wherever_they_stand(n_columns: int) -> None:
    rows = rows_of(300, n_columns)[np.unique(rows_of(300, n_columns), axis=0, return_index=True)[1]]
    shuffled = rows[np.random.default_rng(1).permutation(len(rows))]
    np.testing.assert_array_equal(rows[drawn_by_content(rows, 50)], shuffled[drawn_by_content(shuffled, 50)])


def test_all_but_one_stay_when_one_that_was_drawn_goes() -> None:
    rows = rows_of(500)
    drawn = drawn_by_content(rows, 100)
    left = np.delete(rows, drawn[0], axis=0)
    np.testing.assert_array_equal(left[drawn_by_content(left, 100)][:99], rows[drawn[1:]])


def test_the_draw_has_nothing_to_do_with_what_features_mean() -> None:
    """Of images of two kinds, far apart, as many are drawn of each as there are in all; another seed draws others."""
    kinds = np.arange(4000) % 2
    rows = (rows_of(4000) + kinds[:, None]).astype(np.float16)
    shares = [kinds[drawn_by_content(rows, 1000, seed)].mean() for seed in range(5)]
    assert max(abs(share - 0.5) for share in shares) < 0.06
    assert set(drawn_by_content(rows, 100)) != set(drawn_by_content(rows, 100, seed=1))


@pytest.mark.parametrize("n_rows", [0, 3])
def test_few_rows_are_all_drawn(n_rows: int) -> None:
    assert sorted(drawn_by_content(rows_of(n_rows), 10)) == list(range(n_rows))


def test_copies_of_a_row_are_drawn_after_all_others() -> None:
    rows = np.random.default_rng(2).normal(size=(60, 40)).astype(np.float32)
    repeated = np.concatenate([rows, np.repeat(rows[:2], 500, axis=0)])
    drawn = repeated[drawn_by_content(repeated, 100)]
    np.testing.assert_array_equal(drawn[:60], rows[drawn_by_content(rows, 60)])
    assert len(np.unique(drawn, axis=0)) == 60
