"""What one row of the table of names does to an array: out to the format, the shape it has there, and back."""

import numpy as np

from msfl_jax.export import arrays
from msfl_jax.export.names import Row

THIRDS = 3


def write_array(array: np.ndarray, row: Row) -> np.ndarray:
    """One of our arrays as the format has it, float32; of a fused tensor, its third."""
    array = float32(array)
    if row.change == "patches":
        return arrays.colour_kernel(array)
    turned = array.T if row.path.endswith("/kernel") else array
    return arrays.colour_pixels(turned) if row.change == "pixels" else np.asarray(turned, order="C")


def written_shape(like: np.ndarray, row: Row) -> tuple[int, ...]:
    """The shape of the whole tensor that holds an array like ours."""
    if row.change == "patches":
        side = round(like.shape[0] ** 0.5)
        return (like.shape[1], arrays.COLOURS, side, side)
    turned = like.shape[::-1] if row.path.endswith("/kernel") else like.shape
    times = {"pixels": arrays.COLOURS, "third": THIRDS}.get(row.change, 1)
    return (turned[0] * times, *turned[1:]) if turned else turned


def read_array(tensor: np.ndarray, row: Row) -> np.ndarray:
    """Our array, float32, from the whole tensor that holds it; patch kernels and positions need more than that (see `reading`)."""
    if row.change == "pixels":
        tensor = arrays.grey_pixels(tensor)
    if row.change == "third":
        tensor = np.split(tensor, THIRDS)[row.part]
    tensor = float32(tensor)
    return tensor.T if row.path.endswith("/kernel") else tensor  # a view: stacking blocks and the device copy it anyway


def float32(array: np.ndarray) -> np.ndarray:
    """The array as float32; itself where it is that already."""
    return np.asarray(array, np.float32)
