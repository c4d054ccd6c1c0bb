"""Batches of one shape cover every row once."""

import jax
import numpy as np

from diffusion_jax import batching


def test_batches_cover_every_image_once_in_one_shape():
    batches = list(batching.places(5, 2))
    assert [(len(chosen), wanted) for chosen, wanted in batches] == [(2, 2), (2, 2), (2, 1)]
    assert sorted(set(np.concatenate([chosen for chosen, _ in batches]).tolist())) == [0, 1, 2, 3, 4]
    assert np.concatenate([chosen[:wanted] for chosen, wanted in batches]).tolist() == [0, 1, 2, 3, 4]
    assert [batching.rounded_up(count, 4) for count in (1, 4, 5)] == [4, 4, 8]


def test_what_is_filled_up_repeats_the_last_row():
    keys = jax.random.split(jax.random.key(0), 2)
    given = (np.array([[1, 2], [3, 4]]), np.array([5, 6, 7]), keys)
    rows, same, filled_keys = batching.filled(given, 3)
    assert rows.tolist() == [[1, 2], [3, 4], [3, 4]] and isinstance(rows, np.ndarray)
    assert same is given[1]
    np.testing.assert_array_equal(jax.random.key_data(filled_keys)[1:], np.asarray(jax.random.key_data(keys))[[1, 1]])


def test_a_function_of_batches_is_one_of_all_rows():
    shapes = []

    def function(batch):
        shapes.append(batch["x"].shape)
        return {"sum": batch["x"].sum(axis=1) + batch["y"]}

    x, y = np.arange(14.0).reshape(7, 2), np.arange(7)
    result = batching.mapped(function, {"x": x, "y": y}, 3)
    np.testing.assert_array_equal(result["sum"], x.sum(axis=1) + y)
    assert shapes == [(3, 2)] * 3
