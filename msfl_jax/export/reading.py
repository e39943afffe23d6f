"""Tensors of a file taken one by one into our arrays, and an account of those that did not fit."""

from collections.abc import Collection, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from msfl_jax.classifier import interpolate_positions
from msfl_jax.export import arrays
from msfl_jax.export.arrays import Pixels
from msfl_jax.export.changes import float32, read_array, written_shape
from msfl_jax.export.diff import Diff
from msfl_jax.export.names import Row, part_of

Tensors = Mapping[str, np.ndarray]
ROUNDING = 1e-4  # tables of sines that others computed differ from ours by less
BUFFERS = ("position_ids", "token_type_ids")  # counted numbers that old releases saved, no weights
PATCH_BIAS = "vision/patch_embed/bias"
WORDS = ("text/word_embeddings/embedding", "heads/language/bias")
MAX_NEW_WORDS = 128  # special tokens of our own at the end of an imported vocabulary, and rows up to a round number


class Reading:
    """What was found in a file so far, and what was not.

    Attributes:
      found: our arrays by path, blocks apart; tables of words may lack the last rows.
    """

    def __init__(self, tensors: Tensors, *, fixed: Tensors, source: Pixels, ours: Pixels, class_token: bool) -> None:
        """Starts with nothing found.

        Args:
          tensors: of the file, by name.
          fixed: by path, tables that are only compared with what the file has.
          source, ours: how pixels are normalised.
          class_token: whether the first position is that of a class token.
        """
        self.found: dict[str, np.ndarray] = {}
        self._tensors, self._fixed, self._first = tensors, fixed, class_token
        self._source, self._ours = source, ours
        self._patch_shift: np.ndarray | None = None
        self._used: set[str] = set()
        self._missing: list[str] = []
        self._misshapen: dict[str, str] = {}
        self._notes: list[str] = []

    def fill(self, table: Sequence[Row], wanted: Tensors, *, patch_bias: bool = True) -> None:
        """Takes each row's tensor; a part of which nothing is there is noted, not missed.

        Args:
          table: rows of what is wanted.
          wanted: shapes by path.
          patch_bias: whether the format has a bias beside the patch kernel; one of 0 is the same as none.
        """
        present = {part_of(row.path)[0] for row in table if row.name in self._tensors}
        for row in table:
            if row.name in self._tensors:
                self._used.add(row.name)
                self._take(row, wanted[row.path])
            elif row.path == PATCH_BIAS and not patch_bias:
                self.found[row.path] = np.zeros(wanted[row.path].shape, np.float32)
            elif part_of(row.path)[0] in present and row.path not in self._fixed:
                self._missing.append(row.name)
        absent = sorted({part_of(row.path)[0] for row in table} - present)
        self._notes += [f"no {part} in it: starts fresh" for part in absent]
        if self._patch_shift is not None and PATCH_BIAS in self.found:
            self.found[PATCH_BIAS] = (self.found[PATCH_BIAS].astype(np.float64) + self._patch_shift).astype(np.float32)

    def pass_over_copies(self, copies: Mapping[str, str]) -> None:
        """Buffers, and tensors that are equal to the one they are tied to (copy -> original), hold nothing new."""
        for copy, own in copies.items():
            if copy in self._tensors and np.array_equal(self._tensors[copy], self._tensors.get(own, np.zeros(0))):
                self._used.add(copy)
        self._used |= {name for name in self._tensors if name.rpartition(".")[2] in BUFFERS}

    def diff(self, elsewhere: Collection[str]) -> Diff:
        """The account; `elsewhere` are names of parts that are not wanted."""
        left = sorted(name for name in self._tensors if name not in self._used and name not in elsewhere)
        return Diff(
            missing=tuple(dict.fromkeys(self._missing)),
            unexpected=tuple(left),
            misshapen=tuple(self._misshapen.items()),
            notes=tuple(dict.fromkeys(self._notes)),
            loaded=len(self._used) - len(self._misshapen),
        )

    def _take(self, row: Row, like: np.ndarray) -> None:
        tensor, expected = self._tensors[row.name], written_shape(like, row)
        if row.change == "positions":
            take = self._take_text_positions if row.path.startswith("text/") else self._take_positions
            take(row, float32(tensor), like)
        elif row.change == "patches":
            self._take_patches(row, tensor, expected)
        elif row.change == "token" and tensor.size == like.size:
            self.found[row.path] = float32(tensor).reshape(like.shape)
        elif tensor.shape == expected:
            self.found[row.path] = read_array(tensor, row)
        elif row.path in WORDS and tensor.shape[1:] == expected[1:] and 0 < expected[0] - len(tensor) <= MAX_NEW_WORDS:
            self.found[row.path] = float32(tensor)
            self._notes.append(
                f"{row.name}: {len(tensor)} words, the last {expected[0] - len(tensor)} of ours start fresh"
            )
        else:
            self._refuse(row, tensor, expected)

    def _take_patches(self, row: Row, tensor: np.ndarray, expected: tuple[int, ...]) -> None:
        """A convolution over three colours, or over grey."""
        if tensor.ndim == 4 and tensor.shape in (expected, (expected[0], 1, *expected[2:])):
            self.found[row.path], self._patch_shift = arrays.grey_kernel(tensor, self._source, self._ours)
        else:
            self._refuse(row, tensor, expected)

    def _take_text_positions(self, row: Row, tensor: np.ndarray, like: np.ndarray) -> None:
        """The first rows of a longer table: exact for every report that fits into ours."""
        if tensor.ndim != 2 or tensor.shape[1] != like.shape[1] or len(tensor) < len(like):
            self._refuse(row, tensor, like.shape)
            return
        self.found[row.path] = tensor[: len(like)]
        if len(tensor) > len(like):
            self._notes.append(f"{row.name}: the first {len(like)} of {len(tensor)} positions")

    def _take_positions(self, row: Row, tensor: np.ndarray, like: np.ndarray) -> None:
        """Ours, resized where the grid is another; fixed ones are only compared."""
        table = tensor.reshape(1, -1, tensor.shape[-1] if tensor.ndim else 1)
        grids = [arrays.square_grid(each.shape[1], self._first) for each in (table, like)]
        if table.shape[2] != like.shape[2] or not all(grids):
            self._refuse(row, tensor, like.shape)
        elif row.path in self._fixed:
            if table.shape != like.shape or np.abs(table - like).max() > ROUNDING:
                advice = "" if row.path.startswith("pixel_decoder/") else ": use model.vision.positions 'learned'"
                self._misshapen[row.name] = f"{_dims(table)} is not the fixed table {_dims(like)} of this model{advice}"
        elif table.shape == like.shape:
            self.found[row.path] = table
        else:
            self.found[row.path] = _resized(table, like.shape[1], self._first)
            sides = [f"{side} x {side}" for side in grids]
            self._notes.append(f"{row.name}: interpolated from {sides[0]} patches to {sides[1]}")

    def _refuse(self, row: Row, tensor: np.ndarray, expected: tuple[int, ...]) -> None:
        self._misshapen[row.name] = f"{_dims(tensor)} for {list(expected)}"


def _resized(table: np.ndarray, tokens: int, class_token: bool) -> np.ndarray:
    return np.asarray(interpolate_positions(jnp.asarray(table), tokens, class_token), np.float32)


def _dims(array: np.ndarray) -> list[int]:
    return list(array.shape)
