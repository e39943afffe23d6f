"""Positions of patches against MAE's numbers, window masks against a loop."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.encoders import sincos_positions, window_mask


def test_positions_equal_those_of_mae_with_the_column_first():
    expected = [
        [0, 0, 1, 1, 0, 0, 1, 1],
        [0.841471, 0.01, 0.540302, 0.99995, 0, 0, 1, 1],
        [0, 0, 1, 1, 0.841471, 0.01, 0.540302, 0.99995],
    ]
    assert_allclose(sincos_positions(2, 8)[:3], expected, atol=1e-6)


def test_positions_are_distinct_and_of_unit_scale():
    table = sincos_positions(14, 192)
    assert table.shape == (196, 192)
    assert len(np.unique(table.round(5), axis=0)) == 196
    assert_allclose((table**2).mean(axis=1), 0.5, rtol=1e-5)


@pytest.mark.parametrize("old, new", [(14, 32), (8, 12), (14, 10)])
def test_positions_of_another_resolution_are_what_bicubic_interpolation_approximates(old, new):
    """MaCo enlarges the table of pretraining; whole numbers from 0 to `new` - 1 are something else entirely."""
    table = torch.tensor(sincos_positions(old, 64)).T.reshape(1, 64, old, old)
    enlarged = F.interpolate(table, size=(new, new), mode="bicubic", align_corners=False)
    expected = enlarged.reshape(64, new * new).T.numpy()
    assert similarity(sincos_positions(new, 64, pretrained=old), expected).min() > 0.99
    assert similarity(sincos_positions(new, 64), expected).min() < 0.9


@pytest.mark.parametrize("grid", [3, 8, 14, 32])
def test_positions_of_the_same_resolution_are_bit_equal_to_those_of_whole_numbers(grid):
    row, column = np.divmod(np.arange(grid * grid), grid)
    angles = [place[:, None] * 10000.0 ** (-np.arange(16) / 16) for place in (column, row)]
    expected = np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)
    assert_array_equal(sincos_positions(grid, 64), expected.astype(np.float32))
    assert_array_equal(sincos_positions(grid, 64, pretrained=grid), expected.astype(np.float32))


def similarity(one, other):
    """Cosine of each row with that of the other table."""
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("class_token", [False, True])
def test_a_window_is_the_chebyshev_neighbourhood_on_the_grid(radius, class_token):
    indices = np.array([[3, 0, 7, 15, 4], [1, 2, 8, 9, 14]])
    first = int(class_token)
    expected = np.zeros((2, 5 + first, 5 + first), bool)
    for b, i, j in np.ndindex(2, 5, 5):
        rows, columns = np.divmod(indices[b, [i, j]], 4)
        expected[b, i + first, j + first] = max(abs(rows[0] - rows[1]), abs(columns[0] - columns[1])) <= radius
    if class_token:
        expected[:, 0] = True
    found = window_mask(jnp.asarray(indices), 4, radius, class_token=class_token)
    assert_array_equal(found, expected)


def test_no_patch_sees_the_class_token_of_a_window():
    mask = window_mask(jnp.arange(9)[None], 3, 1, class_token=True)
    assert not mask[0, 1:, 0].any()
    assert mask[0, 0].all()
