"""Local alignment: image regions against report sentences, for all pairs of the batch (eq. 2 and 3), in blocks of reports."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msfl_jax.losses.local_blocks import Tiling, blockwise_scores, uses_gram
from msfl_jax.losses.local_tile import Aggregate, Attention, Form
from msfl_jax.losses.similarity import Direction, contrast
from msfl_jax.vectors import unit

Kernel = Literal["xla", "pallas", "interpreted"]


def local_alignment(
    regions: Float[Array, "B P E"],
    sentences: Float[Array, "B S E"],
    sentence_mask: Bool[Array, "B S"],
    *,
    attention: Attention = "gloria",
    region_scale: float = 4.0,
    sentence_scale: float = 5.0,
    aggregate: Aggregate = "sum",
    block: int | None = None,
    kernel: Kernel = "xla",
    logit_scale: float = 10.0,
    direction: Direction = "symmetric",
    same_study: Bool[Array, "B B"] | None = None,
) -> Float[Array, ""]:
    """Pulls the regions of each image to the sentences of its own report (eq. 3).

    Args:
      regions, sentences, sentence_mask, attention, region_scale, sentence_scale, aggregate, block, kernel: as in `local_scores`.
      logit_scale: multiplies the scores; 10 in GLoRIA, 1 if the printed equation is read with one temperature.
      direction: "symmetric" is the mean of both directions; GLoRIA adds them, which is a factor of 2.
      same_study: pairs that share a report without being matched; they leave the denominators, the diagonal never does.

    Returns:
      Mean cross-entropy in nats, at least float32; 0 for a batch of one.
    """
    scores = local_scores(
        regions,
        sentences,
        sentence_mask,
        attention=attention,
        region_scale=region_scale,
        sentence_scale=sentence_scale,
        aggregate=aggregate,
        block=block,
        kernel=kernel,
    )
    return contrast(logit_scale * scores, direction, same_study)


def local_scores(
    regions: Float[Array, "A P E"],
    sentences: Float[Array, "B S E"],
    sentence_mask: Bool[Array, "B S"],
    *,
    attention: Attention = "gloria",
    region_scale: float = 4.0,
    sentence_scale: float = 5.0,
    aggregate: Aggregate = "sum",
    block: int | None = None,
    kernel: Kernel = "xla",
) -> Float[Array, "A B"]:
    """How well the regions of each image explain the sentences of each report: Z of eq. 2, before the final scale.

    For image regions v_p and sentences t_i of one report, with a_ip the attention of sentence i on region p:
      c_i = sum_p a_ip v_p;   r_i = cos(c_i, t_i);   Z = log sum_i exp(sentence_scale r_i)

    The contexts c of all pairs are never formed: c.t = sum_p a_p (v_p.t) and |c|^2 = a'Ga with G = VV' of each image or, where
    that is cheaper, both from the contexts of one tile. Forward and backward go tile by tile (`local_blocks`).

    Args:
      regions: any length of vector; P per image.
      sentences: row b is report b; S includes padding.
      sentence_mask: True where a sentence is real; the others change nothing. A report without any scores 0 everywhere.
      attention: "gloria" takes raw dot products, a softmax over the report's sentences, and a softmax over regions of
        `region_scale` times that (GLoRIA's code); "regions" takes unit vectors and a softmax over regions of `region_scale`
        times the cosine (what GLoRIA and eq. 2 print).
      region_scale: multiplies the input of the softmax over regions; 4 in GLoRIA's code.
      sentence_scale: multiplies the cosines; 5 in GLoRIA's code.
      aggregate: "sum" is eq. 2; "mean" subtracts log S of the report, so that long reports have no advantage.
      block: reports scored at once; as many images with them as keep a tile below 2^24 scores [images, P, S, reports]. None or
        0 takes at least 64 reports, and all where that leaves room for all images; but a batch with no more than 2^24 scores in all is then scored
        in tiles of 2^18 and keeps similarities of regions and sentences for its backward pass.
      kernel: "xla" leaves it to the compiler. "pallas" computes the same in kernels of our own, for TPUs, and chooses tiles itself; it
        refuses float64. "interpreted" computes, on any device and slowly, what those kernels say.

    Returns:
      Z, rows images, columns reports, at least float32. Inputs of bfloat16 are multiplied as such and summed in float32.

    Raises:
      ValueError: `attention`, `aggregate` or `kernel` is no known word, or the kernel cannot take such arrays.
    """
    _check_words(attention, aggregate, kernel)
    dtype = _product_dtype(regions.dtype, sentences.dtype)
    sentences = jnp.where(sentence_mask[..., None], sentences, 0)
    if attention == "regions":
        regions, sentences = unit(regions), unit(sentences)
    gram = kernel != "xla" or uses_gram(*regions.shape[1:])
    form = Form(attention, region_scale, sentence_scale, aggregate, gram)
    regions, sentences = regions.astype(dtype), sentences.astype(dtype)
    if kernel != "xla":
        return _scores_by_kernel(form, kernel == "interpreted", regions, sentences, sentence_mask)
    tiling = Tiling.of(regions.shape, sentences.shape, block or None, gram=gram)
    return blockwise_scores(form, tiling, _aligned(regions), sentences, sentence_mask)


def _scores_by_kernel(
    form: Form,
    interpret: bool,
    regions: Float[Array, "A P E"],
    sentences: Float[Array, "B S E"],
    sentence_mask: Bool[Array, "B S"],
) -> Float[Array, "A B"]:
    from msfl_jax.losses.local_pallas import kernel_scores  # which imports compilers that no other computation needs

    if regions.dtype == jnp.float64:
        raise ValueError("kernel pallas computes in float32 and bfloat16, not in float64; expected kernel xla")
    return kernel_scores(form, interpret, regions, sentences, sentence_mask)


def _aligned(regions: Float[Array, "A P E"]) -> Float[Array, "A p E"]:
    """In bfloat16, filled up with zero vectors to a multiple of eight: they change no score, and XLA would pad every product of a tile for GPUs."""
    missing = -regions.shape[1] % 8 if regions.dtype == jnp.bfloat16 else 0
    return jnp.pad(regions, ((0, 0), (0, missing), (0, 0)))


def _product_dtype(*dtypes: jnp.dtype) -> jnp.dtype:
    """Products of bfloat16 stay bfloat16 with float32 sums; float16, whose range the weights leave, becomes float32."""
    dtype = jnp.promote_types(*dtypes)
    return jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype


def _check_words(attention: str, aggregate: str, kernel: str) -> None:
    if attention not in ("gloria", "regions"):
        raise ValueError(f"attention is {attention!r}; expected gloria or regions")
    if aggregate not in ("sum", "mean"):
        raise ValueError(f"aggregate is {aggregate!r}; expected sum or mean")
    if kernel not in ("xla", "pallas", "interpreted"):
        raise ValueError(f"kernel is {kernel!r}; expected xla, pallas or interpreted")
