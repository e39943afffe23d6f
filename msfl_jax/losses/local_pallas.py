"""Local alignment of a whole batch by TPU kernels written in Pallas: what a tile is computed from stays in the fast memory of a core.

Under XLA, `local_blocks` writes similarities, weights and their gradients, [images, P, S, reports] each, to main memory and reads them back. Here
only regions, sentences, their gradients and the [A, B] result travel. One kernel makes the scores; backward, one goes over the reports of each tile
of images and adds up the gradient of the regions, another over the images of each tile of reports and adds up that of the sentences. Each computes
the tile again, since a sum can stay in fast memory along one axis of the grid only.

With U operations in V T' of all pairs and W in G w, the three take 5U + 4W, and contexts instead of G would take 11U: what is less changes at
P = 1.5 E, and both cost about the same at the 196 patches of 128 values that come nearest to it here. So the Gram form is the only one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Shaped

from msfl_jax.losses.local_blocks import evened, sentence_by_sentence
from msfl_jax.losses.local_kernels import REPORTS, Operands, regions_kernel, scores_kernel, sentences_kernel
from msfl_jax.losses.local_tile import Form, gram_of, lengths, of_reports, scored, through_length

# Fast memory that a kernel gets without asking, on v5e and v5p alike, and what it may ask for: v5p has 64 MiB in a core, v5e and v6e 128.
_VMEM_GIVEN = 16 * 2**20
_VMEM_MOST = 48 * 2**20
# Images of a tile, at most: by then, the sentences that are fetched for a tile are used often enough for the fetch not to matter.
_IMAGES_AT_ONCE = 8
# Arrays [P, N] of float32 that are alive at once in the kernels of the backward pass.
_SCORES_ALIVE = 7


@dataclasses.dataclass(frozen=True)
class Tiles:
    """What a kernel holds at once: some images and 128 reports.

    Attributes:
      images: of a tile.
      patches: of an image, filled up to whole registers: 8 rows of float32, 16 of bfloat16.
      width: of a vector, filled up to the 128 lanes of a register.
      columns: the sentences of 128 reports.
      vmem: bytes of fast memory needed.
    """

    images: int
    patches: int
    width: int
    columns: int
    vmem: int

    @classmethod
    def of(cls, regions: tuple[int, ...], sentences: tuple[int, ...], itemsize: int) -> "Tiles":
        """As many images, up to 8, as fit with 128 reports into what a kernel is given; one where not even that fits, and more is asked for.

        Regions, their Gram matrices and sentences are each counted twice, in their own dtype and in float32: the block that stays has an accumulator
        of its size, the one that changes a second buffer.

        Args:
          regions, sentences: shapes [A, P, E] and [B, S, E].
          itemsize: bytes of one of their values.

        Raises:
          ValueError: one image with 128 reports is more than fast memory holds.
        """
        units = sentences[1]
        patches, width, columns = _up(regions[1], 32 // itemsize), _up(regions[2], REPORTS), REPORTS * units
        image = (itemsize + 4) * patches * (width + _up(patches, REPORTS))
        reports = (itemsize + 4) * columns * width + _SCORES_ALIVE * 4 * patches * columns
        most = min(_IMAGES_AT_ONCE, max(1, (_VMEM_GIVEN - reports) // image))
        at_once = evened(regions[0], most)
        vmem = reports + at_once * image
        if vmem > _VMEM_MOST:
            raise ValueError(
                f"{units} sentences and {regions[1]} patches of {regions[2]} values need {vmem >> 20} MiB of a TPU's fast memory; "
                f"kernel pallas has at most {_VMEM_MOST >> 20}"
            )
        return cls(at_once, patches, width, columns, vmem)


Output = tuple[tuple[int, ...], pl.BlockSpec]  # shape and block of what a kernel writes, float32


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """A kernel over all tiles: the outer axis of its grid goes over tiles of images or of reports, the inner one over the others.

    A block that goes along the outer axis has one buffer, since it stays while the inner axis runs. Others have two; one is filled meanwhile.
    """

    body: Callable[..., None]
    form: Form
    patches: int
    tiles: Tiles
    interpret: bool
    images_outside: bool = True

    def __call__(
        self, operands: Operands, *weights: Array, writes: Sequence[Output], scratch: Sequence[Any] = ()
    ) -> Sequence[Array]:
        """Runs it on operands and perhaps weights [A, 1, B]."""
        counts = len(operands.regions) // self.tiles.images, len(operands.sentences)
        asked = None if self.tiles.vmem <= _VMEM_GIVEN else self.tiles.vmem
        return pl.pallas_call(
            partial(self.body, self.form, self.patches),
            out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape, _ in writes],
            grid=counts if self.images_outside else counts[::-1],
            in_specs=[*self.operands(), *(self.pairs() for _ in weights)],
            out_specs=[block for _, block in writes],
            scratch_shapes=scratch,
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=asked),
            interpret=self.interpret,
            name=f"local_alignment_{self.body.__name__}",
        )(*operands, *weights)

    def operands(self) -> Operands:
        """The blocks of what every kernel reads."""
        tiles = self.tiles
        row = self._reports(1, tiles.columns)
        sentences = self._reports(tiles.columns, tiles.width)
        return Operands(
            self._images(tiles.patches, tiles.width), self._images(tiles.patches, tiles.patches), sentences, row, row
        )

    def pairs(self) -> pl.BlockSpec:
        """Blocks [I, 1, 128] of arrays [A, 1, B]."""

        def index(outer: Any, inner: Any) -> tuple[Any, int, Any]:
            return (outer, 0, inner) if self.images_outside else (inner, 0, outer)

        return pl.BlockSpec((self.tiles.images, 1, REPORTS), index)

    def _images(self, *shape: int) -> pl.BlockSpec:
        """Blocks [I, *shape] of arrays [A, *shape]."""
        return self._blocks((self.tiles.images, *shape), 0 if self.images_outside else 1)

    def _reports(self, *shape: int) -> pl.BlockSpec:
        """Blocks of `shape` of arrays [tiles of reports, *shape]."""
        return self._blocks((None, *shape), 1 if self.images_outside else 0)

    def _blocks(self, shape: tuple[int | None, ...], axis: int) -> pl.BlockSpec:
        def index(*places: Any) -> tuple[Any, int, int]:
            return places[axis], 0, 0

        return pl.BlockSpec(shape, index, pipeline_mode=pl.Buffered(1 + axis))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def kernel_scores(
    form: Form,
    interpret: bool,
    regions: Float[Array, "A P E"],
    sentences: Float[Array, "B S E"],
    sentence_mask: Bool[Array, "B S"],
) -> Float[Array, "A B"]:
    """As `local_blocks.blockwise_scores`, by kernels for TPUs; nothing of the forward pass is kept but its inputs.

    Args:
      form: with the Gram form.
      interpret: whether to compute, on any device, what the kernels say instead of compiling them.
      regions, sentences: float32 or bfloat16, of one dtype; padded sentences are zero vectors.
      sentence_mask: True where a sentence is real.

    Returns:
      Z, float32.

    Raises:
      ValueError: a tile does not fit into fast memory.
    """
    return _forward(form, interpret, regions, sentences, sentence_mask)[0]


def _forward(form: Form, interpret: bool, regions: Array, sentences: Array, mask: Array) -> tuple[Array, Any]:
    inputs = (regions, sentences, mask)
    if not regions.size or not sentences.size:
        return jnp.zeros((len(regions), len(sentences)), jnp.float32), inputs
    tiles = Tiles.of(regions.shape, sentences.shape, regions.dtype.itemsize)
    operands = _operands(form, tiles, *inputs)
    kernel = _Kernel(scores_kernel, form, regions.shape[1], tiles, interpret)
    [scores] = kernel(operands, writes=[(_pairs(operands), kernel.pairs())])
    return of_reports(scores[: len(regions), 0, : len(sentences)], mask.T, form), inputs


def _backward(form: Form, interpret: bool, inputs: Any, cotangent: Array) -> tuple[Array, Array, None]:
    regions, sentences, mask = inputs
    if not regions.size or not sentences.size:
        return jnp.zeros_like(regions), jnp.zeros_like(sentences), None
    tiles = Tiles.of(regions.shape, sentences.shape, regions.dtype.itemsize)
    operands = _operands(form, tiles, *inputs)
    weights = _filled(jnp.where(mask.any(axis=1), cotangent, 0)[:, None], _pairs(operands))

    options = (form, regions.shape[1], tiles, interpret)
    kernel = _Kernel(regions_kernel, *options)
    scratch = pltpu.VMEM((tiles.images, tiles.patches, tiles.patches), jnp.float32)
    writes = [(operands.regions.shape, kernel.operands().regions)]
    [d_regions] = kernel(operands, weights, writes=writes, scratch=[scratch])

    kernel = _Kernel(sentences_kernel, *options, images_outside=False)
    blocks = kernel.operands()
    writes = [(operands.sentences.shape, blocks.sentences), (operands.bias.shape, blocks.bias)]
    d_columns, d_log_lengths = kernel(operands, weights, writes=writes)
    d_sentences = _by_report(d_columns, sentences.shape)
    d_log_lengths = _by_report(jnp.swapaxes(d_log_lengths, 1, 2), (*mask.shape, 1))[..., 0]
    d_sentences += through_length(d_log_lengths, sentences)
    return _cut(d_regions, regions.shape).astype(regions.dtype), d_sentences.astype(sentences.dtype), None


kernel_scores.defvjp(_forward, _backward)


def _operands(form: Form, tiles: Tiles, regions: Array, sentences: Array, mask: Array) -> Operands:
    """The inputs as kernels read them, filled up with zeros to whole tiles."""
    regions = _filled(regions, (_up(len(regions), tiles.images), tiles.patches, tiles.width))
    grouped = sentence_by_sentence(_filled(sentences, (*mask.shape, tiles.width)), mask, REPORTS)
    columns = grouped.sentences.reshape(-1, tiles.columns, tiles.width)
    bias = jnp.where(scored(grouped.mask), 0.0, -jnp.inf).astype(jnp.float32)
    return Operands(
        regions, gram_of(regions, form), columns, lengths(columns)[:, None], bias.reshape(-1, 1, tiles.columns)
    )


def _pairs(operands: Operands) -> tuple[int, int, int]:
    """The shape of what every image has for every report."""
    return len(operands.regions), 1, REPORTS * len(operands.sentences)


def _by_report(columns: Float[Array, "n N F"], shape: tuple[int, ...]) -> Float[Array, "B S E"]:
    """The columns of all tiles as rows of reports, without what fills them up to more than `shape`."""
    tiles = columns.reshape(len(columns), shape[1], REPORTS, -1)
    return _cut(jnp.swapaxes(tiles, 1, 2).reshape(len(columns) * REPORTS, shape[1], -1), shape)


def _filled(array: Shaped[Array, "..."], shape: tuple[int, ...]) -> Shaped[Array, "..."]:
    """The array with zeros behind it along every axis."""
    return jnp.pad(array, [(0, size - found) for size, found in zip(shape, array.shape, strict=True)])


def _cut(array: Shaped[Array, "..."], shape: tuple[int, ...]) -> Shaped[Array, "..."]:
    return array[tuple(map(slice, shape))]


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
