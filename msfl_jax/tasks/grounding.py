"""Phrase grounding: where in an image a phrase is seen, and how well that agrees with boxes drawn by radiologists.

`evaluate_grounding` scores a build with boxes, `ground` makes one heat-map; `similarity_map`, `to_pixels` and `count_boxes` are their steps.

Protocols follow the published evaluations of MS-CXR, as far as they can be told apart on one model:
  biovil  cosine of phrase and regions; several boxes of a phrase are one union
  maco    raw products; pixels in several boxes count on neither side of the CNR
  afloc   as maco, and the outer sixteenth of the view on each side is left out
With `grounding.shifts` above 1 the map is finer than the patches (see `msfl_jax.tasks.run.encode_regions`); published evaluations look once.
MaCo's learned positional prior belongs to its weights and is not added. In all three, the map is smoothed on the patch grid and enlarged to the
pixels of the source image, and for the IoU it is scaled to -1..1 between its extremes, as MaCo and AFLoc do; thresholds of .1 to .5 on plain
cosines, which BioViL's code leaves open, would depend on the model's temperature. CNR and pointing game do not change with the scale.
"""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from input_pipeline.errors import UserError
from input_pipeline.images import decode_gray, evaluation_view, view_rectangle
from input_pipeline.loader import grounding_records
from input_pipeline.records import Record
from msfl_jax.config import nearest
from msfl_jax.metrics import contrast_to_noise, mean_iou, normalise_heatmap, pointing_game, smoothing, upsample
from msfl_jax.tasks.grounding_result import COLUMNS, GroundingResult, PhraseScores, summarise
from msfl_jax.tasks.run import Run, encode_regions, encode_texts, on_mesh, to_host

Protocol = Literal["biovil", "maco", "afloc"]

AFLOC_MARGIN = 1 / 16  # 14 of 224 pixels
_THREADS = min(4, os.cpu_count() or 1)  # each holds some 200 MB for an image of 3,000 pixels a side


@functools.partial(jax.jit, static_argnames="protocol")
def similarity_map(
    regions: Float[Array | np.ndarray, "*n P E"],
    phrases: Float[Array | np.ndarray, "*n K E"],
    *,
    protocol: Protocol = "biovil",
) -> Float[Array, "*n K G G"]:
    """Similarity of K phrases with each region of their image, on the grid of patches, P = G x G row by row.

    Args:
      regions: of any norm, as the model gives them.
      phrases: sentence embeddings.
      protocol: "biovil" takes cosines, the others raw products.

    Raises:
      ValueError: the number of regions is no square.
    """
    side = round(regions.shape[-2] ** 0.5)
    if side * side != regions.shape[-2]:
        raise ValueError(f"found {regions.shape[-2]} regions; expected a square number of patches")
    if protocol == "biovil":
        regions, phrases = _unit(regions), _unit(phrases)
    products = jnp.einsum("...ke,...pe->...kp", phrases, regions, precision="highest")
    return products.reshape(*products.shape[:-1], side, side)


def to_pixels(
    grid: Float[np.ndarray, "*n G G"], size: tuple[int, int], *, fit: str = "crop", margin: float = 0.0
) -> Float[np.ndarray, "*n H W"]:
    """Enlarges maps on the patch grid into the part of an image that the model saw; NaN everywhere else.

    Args:
      grid: smoothed similarities.
      size: (height, width) of the image in pixels.
      fit: how the view was cut from the image (see `input_pipeline.images.view_rectangle`).
      margin: share of the view's side that is left out on each of its edges.
    """
    top, left, height, width = view_rectangle(*size, fit)
    top, left, height, width = int(np.floor(top)), int(np.floor(left)), max(1, round(height)), max(1, round(width))
    view = upsample(grid, (height, width))
    rows, columns = round(height * margin), round(width * margin)
    pixels = np.full((*grid.shape[:-2], *size), np.nan, grid.dtype)
    shown = (_overlap(top + rows, height - 2 * rows, size[0]), _overlap(left + columns, width - 2 * columns, size[1]))
    inside = (slice(shown[0].start - top, shown[0].stop - top), slice(shown[1].start - left, shown[1].stop - left))
    pixels[..., *shown] = view[..., *inside]
    return pixels


def count_boxes(boxes: Float[np.ndarray, "K 4"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """In how many of the boxes (x, y, width, height) each pixel lies.

    Edges are rounded to whole pixels and cut at the image; a box thinner than a pixel keeps one.
    """
    counts = np.zeros(size, np.uint8)
    for x, y, width, height in boxes:
        left, top = round(float(x)), round(float(y))
        right, bottom = max(left + 1, round(float(x + width))), max(top + 1, round(float(y + height)))
        counts[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] += 1
    return counts


def scale_boxes(
    boxes: Float[np.ndarray, "K 4"], original_size: tuple[int, int], size: tuple[int, int]
) -> Float[np.ndarray, "K 4"]:
    """Boxes (x, y, width, height) in pixels of the source image as those of the same image resized to (height, width)."""
    vertical, horizontal = size[0] / original_size[0], size[1] / original_size[1]
    return (boxes * np.asarray([horizontal, vertical, horizontal, vertical])).astype(boxes.dtype)


def choose_other_phrases(
    phrases: Sequence[str], categories: Sequence[str], patients: Sequence[str], *, seed: int = 0
) -> Int[np.ndarray, "N"]:
    """For each image the index of a phrase that is not its own: the shuffled-phrase control.

    Drawn from the phrases of another text, another patient and another category; where there is none, of another text and patient; else of another
    text; -1 where all phrases read alike.
    """
    rng = np.random.default_rng(seed)
    text, category, patient = (
        np.unique(values, return_inverse=True)[1]
        for values in ([" ".join(phrase.lower().split()) for phrase in phrases], categories, patients)
    )
    chosen = np.full(len(phrases), -1)
    for row in range(len(phrases)):
        other_text = text != text[row]
        other_patient = other_text & (patient != patient[row])
        for allowed in (other_patient & (category != category[row]), other_patient, other_text):
            if allowed.any():
                chosen[row] = rng.choice(np.flatnonzero(allowed))
                break
    return chosen


def evaluate_grounding(
    run: Run,
    directory: Path | str,
    split: str,
    *,
    protocol: str | None = None,
    sigma: float | None = None,
    batch_size: int = 64,
    records: int = 0,
    seed: int = 0,
    replicates: int = 2000,
) -> GroundingResult:
    """Grounds every phrase of a build with boxes and measures it in pixels of the source image.

    Args:
      run: the model.
      directory: a build with phrases and boxes.
      split: of the build.
      protocol: see above; None takes the run's own.
      sigma: smoothing in patches; None takes the run's own.
      batch_size: images at a time.
      records: how many phrases, from the split's first; 0 is all.
      seed: of the shuffled phrases and the bootstrap.
      replicates: of the bootstrap; 0 leaves intervals nan.

    Raises:
      UserError: there is no such build, split or protocol.
      DataError: no record has boxes, or a shard or an image is damaged.
    """
    chosen = _known_protocol(protocol or run.config.grounding.protocol)
    sigma = run.config.grounding.sigma if sigma is None else sigma
    found = grounding_records(Path(directory), split)[: records or None]
    patients = [record.patient_key for record in found]
    texts = [" ".join(record.sentences) for record in found]
    others = choose_other_phrases(texts, [record.category for record in found], patients, seed=seed)
    maps = smoothing(
        _maps_of_records(run, found, texts, others, chosen, batch_size), sigma * run.config.grounding.shifts
    )
    measure = functools.partial(_measure, fit=run.config.data.fit, protocol=chosen)
    with ThreadPoolExecutor(_THREADS) as pool:
        rows = list(pool.map(measure, maps, found))
    values = np.asarray([row[0] for row in rows], np.float32)
    values[others < 0, 1] = np.nan
    scores = PhraseScores(
        values=values,
        box_share=np.asarray([row[1] for row in rows], np.float32),
        category=np.asarray([record.category for record in found], np.str_),
        patient_key=np.asarray([int(key[:8], 16) for key in patients], np.uint32),
        image_key=np.asarray([int(record.image_key[:8], 16) for record in found], np.uint32),
        maps=maps,
    )
    return summarise(scores, protocol=chosen, split=split, step=run.step, seed=seed, replicates=replicates)


def ground(
    run: Run,
    image: UInt8[np.ndarray, "H W"],
    phrase: str,
    *,
    protocol: str | None = None,
    sigma: float | None = None,
) -> Float[np.ndarray, "H W"]:
    """Heat-map of one phrase in the pixels of an image; NaN where the model did not look.

    Args:
      run: the model.
      image: grey, of any size.
      phrase: a sentence, or several whose embeddings are averaged.
      protocol, sigma: as in `evaluate_grounding`.

    Raises:
      UserError: the phrase has no word.
    """
    return ground_phrases(run, image, [phrase], protocol=protocol, sigma=sigma)[0]


def ground_phrases(
    run: Run,
    image: UInt8[np.ndarray, "H W"],
    phrases: Sequence[str],
    *,
    protocol: str | None = None,
    sigma: float | None = None,
) -> Float[np.ndarray, "K H W"]:
    """Heat-maps of several phrases in one image; see `ground`."""
    chosen = _known_protocol(protocol or run.config.grounding.protocol)
    sentences, usable = _phrase_embeddings(run, phrases)
    if not usable.all():
        raise UserError(
            f"phrase {int(np.argmin(usable)) + 1} of {len(phrases)} has no word; expected a sentence such as 'opacity in the left lung'"
        )
    fit = run.config.data.fit
    view = evaluation_view(image, run.config.model.vision.image_size, fit)[None, :, :, None]
    regions = encode_regions(run, view, batch_size=1)
    maps = to_host(similarity_map(regions, *on_mesh(run.params, sentences[None], rows=1), protocol=chosen))[0]
    options = run.config.grounding
    smooth = smoothing(maps, (options.sigma if sigma is None else sigma) * options.shifts)
    return to_pixels(smooth, image.shape, fit=fit, margin=AFLOC_MARGIN if chosen == "afloc" else 0.0)


def _known_protocol(protocol: str) -> Protocol:
    choices = get_args(Protocol)
    if protocol not in choices:
        hint = nearest(protocol, choices)
        raise UserError(f"grounding: no protocol '{protocol}'{hint}; expected one of {', '.join(choices)}")
    return cast(Protocol, protocol)


def _maps_of_records(
    run: Run,
    found: Sequence[Record],
    texts: Sequence[str],
    others: Int[np.ndarray, "N"],
    protocol: Protocol,
    batch_size: int,
) -> Float[np.ndarray, "N 2 G G"]:
    """Maps of each image with its own phrase and with the other one, still unsmoothed."""
    sentences, _ = _phrase_embeddings(run, texts)
    pairs = np.stack([sentences, sentences[others]], axis=1)
    size, fit, maps = run.config.model.vision.image_size, run.config.data.fit, []
    for start in range(0, len(found), batch_size):
        batch = found[start : start + batch_size]
        views = np.stack([evaluation_view(decode_gray(record.image), size, fit) for record in batch])[..., None]
        regions = encode_regions(run, views, batch_size=batch_size)
        phrases = on_mesh(run.params, pairs[start : start + batch_size], rows=batch_size)
        maps.append(to_host(similarity_map(regions, *phrases, protocol=protocol))[: len(batch)])
    return np.concatenate(maps)


def _phrase_embeddings(run: Run, phrases: Sequence[str]) -> tuple[Float[np.ndarray, "N E"], np.ndarray]:
    """Mean of the sentence embeddings of each phrase, and whether it has any (zeros where it has none).

    Of a run without local alignment, the phrase is embedded as a report.
    """
    texts = encode_texts(run, phrases)
    count = texts.sentence_mask.sum(axis=1, keepdims=True)
    if not run.aligns_locally:
        return texts.report_embedding, count[:, 0] > 0
    total = (texts.sentences * texts.sentence_mask[..., None]).sum(axis=1)
    return total / np.maximum(count, 1).astype(np.float32), count[:, 0] > 0


def _measure(
    maps: Float[np.ndarray, "2 G G"], record: Record, fit: str, protocol: Protocol
) -> tuple[list[list[float]], float]:
    """The metrics of both maps in the order of `COLUMNS`, and the share of the pixels seen that lies in a box."""
    counts = count_boxes(record.boxes, record.original_size)
    inside = counts != 0
    margin = AFLOC_MARGIN if protocol == "afloc" else 0.0
    heatmaps = to_pixels(maps, record.original_size, fit=fit, margin=margin)
    sides = inside if protocol == "biovil" else counts
    rows = []
    for heatmap in heatmaps:
        cnr = contrast_to_noise(heatmap, sides)
        values = {
            "cnr": cnr,
            "absolute_cnr": abs(cnr),
            "miou": mean_iou(normalise_heatmap(heatmap), inside),
            "pointing_game": pointing_game(heatmap, inside),
        }
        rows.append([values[name] for name in COLUMNS])
    seen = ~np.isnan(heatmaps[0])
    return rows, float(inside[seen].mean()) if seen.any() else float("nan")


def _overlap(start: int, length: int, limit: int) -> slice:
    """The pixels from `start` that lie within 0..limit."""
    first = min(max(start, 0), limit)
    return slice(first, max(first, min(start + length, limit)))


def _unit(vectors: Array | np.ndarray) -> Array:
    vectors = jnp.asarray(vectors)
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
