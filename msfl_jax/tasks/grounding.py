"""Phrase grounding: where in an image a phrase is seen, and how well that agrees with boxes drawn by radiologists.

`evaluate_grounding` scores a build with boxes, `ground` makes one heat-map; `similarity_map` is their step on arrays. What is done to it, by which
protocol, is in `msfl_jax.tasks.grounding_protocol`. With `grounding.shifts` above 1 the map is finer than the patches (see
`msfl_jax.tasks.run.encode_regions`); published evaluations look once.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from input_pipeline.errors import DataError, UserError
from input_pipeline.images import decode_gray, evaluation_view
from input_pipeline.loader import grounding_records
from input_pipeline.records import Record, short_key
from msfl_jax.metrics import THRESHOLDS, contrast_to_noise, iou_at, pointing_game, smoothing
from msfl_jax.tasks.grounding_protocol import GroundingProtocol, known_protocol, phrase_of
from msfl_jax.tasks.grounding_result import COLUMNS, OVERLAPS, GroundingResult, PhraseScores, summarise
from msfl_jax.tasks.run import Run, encode_regions, encode_texts, fixed_size, on_mesh, pad_rows, to_host

_THREADS = min(4, os.cpu_count() or 1)  # each holds some 200 MB for an image of 3,000 pixels a side


@functools.partial(jax.jit, static_argnames="cosine")
def similarity_map(
    regions: Float[Array | np.ndarray, "*n P E"],
    phrases: Float[Array | np.ndarray, "*n K E"],
    *,
    cosine: bool = True,
) -> Float[Array, "*n K G G"]:
    """Similarity of K phrases with each region of their image, on the grid of patches, P = G x G row by row.

    Args:
      regions: of any norm, as the model gives them.
      phrases: sentence embeddings.
      cosine: of unit vectors, else the raw product.

    Raises:
      ValueError: the number of regions is no square.
    """
    side = round(regions.shape[-2] ** 0.5)
    if side * side != regions.shape[-2]:
        raise ValueError(f"found {regions.shape[-2]} regions; expected a square number of patches")
    if cosine:
        regions, phrases = _unit(regions), _unit(phrases)
    products = jnp.einsum("...ke,...pe->...kp", phrases, regions, precision="highest")
    return products.reshape(*products.shape[:-1], side, side)


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
    protocol: GroundingProtocol | str | None = None,
    sigma: float | None = None,
    batch_size: int = 64,
    records: int = 0,
    seed: int = 0,
    replicates: int = 2000,
) -> GroundingResult:
    """Grounds every phrase of a build with boxes and measures it.

    Args:
      run: the model; see `with_shifts` for how often it looks.
      directory: a build with phrases and boxes.
      split: of the build.
      protocol: see `msfl_jax.tasks.grounding_protocol`; None takes the run's own, with its heat scaled per map and in its own geometry.
      sigma: smoothing in patches; None takes the run's own.
      batch_size: images at a time.
      records: how many phrases, from the split's first; 0 is all.
      seed: of the shuffled phrases and the bootstrap.
      replicates: of the bootstrap; 0 leaves intervals nan.

    Raises:
      UserError: there is no such build, split or protocol.
      DataError: no record has boxes or none a phrase, or a shard or an image is damaged.
    """
    chosen = _protocol_of(run, protocol)
    sigma = run.config.grounding.sigma if sigma is None else sigma
    found = chosen.merged(grounding_records(Path(directory), split))[: records or None]
    if not any(record.sentences for record in found):
        raise DataError(
            f"{directory}: split '{split}' has boxes but no phrases to find; expected a build of `msfl data build ms-cxr`"
        )
    texts, patients = [phrase_of(record) for record in found], [record.patient_key for record in found]
    others = choose_other_phrases(texts, [record.category for record in found], patients, seed=seed)
    maps = smoothing(
        _maps_of_records(run, found, texts, others, chosen, batch_size), sigma * run.config.grounding.shifts
    )
    measure = functools.partial(_measure, fit=run.config.data.fit, protocol=chosen)
    with ThreadPoolExecutor(_THREADS) as pool:
        values, unpredicted, box_share = (
            np.asarray(column) for column in zip(*pool.map(measure, maps, found), strict=True)
        )
    values[others < 0, 1] = np.nan
    scores = PhraseScores(
        values=values.astype(np.float32),
        unpredicted=unpredicted.astype(np.uint8),
        box_share=box_share.astype(np.float32),
        category=np.asarray([record.category for record in found], np.str_),
        patient_key=np.asarray([short_key(key) for key in patients], np.uint32),
        image_key=np.asarray([short_key(record.image_key) for record in found], np.uint32),
        phrase_key=np.asarray([_phrase_key(record) for record in found], np.uint32),
        maps=maps,
    )
    return summarise(scores, protocol=str(chosen), split=split, step=run.step, seed=seed, replicates=replicates)


def with_shifts(run: Run, shifts: int) -> Run:
    """The run with another number of looks per axis.

    Raises:
      UserError: the patches cannot be divided so.
    """
    patch = run.config.model.vision.patch_size
    if shifts < 1 or (shifts > 1 and patch % (2 * shifts)):
        raise UserError(
            f"grounding: found {shifts} looks per axis; expected 1, or a number whose double divides {patch}"
        )
    config = dataclasses.replace(run.config, grounding=dataclasses.replace(run.config.grounding, shifts=shifts))
    return dataclasses.replace(run, config=config)


def ground(
    run: Run,
    image: UInt8[np.ndarray, "H W"],
    phrase: str,
    *,
    protocol: GroundingProtocol | str | None = None,
    sigma: float | None = None,
) -> Float[np.ndarray, "H W"]:
    """Heat-map of one phrase in the pixels of an image, in the run's own geometry; NaN where the model did not look.

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
    protocol: GroundingProtocol | str | None = None,
    sigma: float | None = None,
) -> Float[np.ndarray, "K H W"]:
    """Heat-maps of several phrases in one image; see `ground`."""
    chosen = own_geometry(run, protocol)
    maps = phrase_maps(run, image, phrases, protocol=chosen, sigma=sigma)
    return chosen.heat(maps, image.shape, run.config.data.fit)


def phrase_maps(
    run: Run,
    image: UInt8[np.ndarray, "H W"],
    phrases: Sequence[str],
    *,
    protocol: GroundingProtocol,
    sigma: float | None = None,
) -> Float[np.ndarray, "K G G"]:
    """Smoothed similarities of several phrases on the patch grid of one image, which `GroundingProtocol.heat` enlarges to any copy of it.

    Raises:
      UserError: a phrase has no word.
    """
    sentences, usable = _phrase_embeddings(run, phrases)
    if not usable.all():
        raise UserError(
            f"phrase {int(np.argmin(usable)) + 1} of {len(phrases)} has no word; expected a sentence such as 'opacity in the left lung'"
        )
    shown, fit = protocol.view(image, run.config.data.fit)
    view = evaluation_view(shown, run.config.model.vision.image_size, fit)[None, :, :, None]
    regions = encode_regions(run, view, batch_size=1)
    padded = pad_rows(sentences, fixed_size(len(phrases)))[None]
    maps = to_host(similarity_map(regions, *on_mesh(run.params, padded, rows=1), cosine=protocol.cosine))
    maps = maps[0, : len(phrases)]
    options = run.config.grounding
    return smoothing(maps, (options.sigma if sigma is None else sigma) * options.shifts)


def own_geometry(run: Run, protocol: GroundingProtocol | str | None = None) -> GroundingProtocol:
    """A protocol, None is the run's own, that shows heat in pixels of the image itself."""
    return dataclasses.replace(_protocol_of(run, protocol), geometry="own")


def _protocol_of(run: Run, protocol: GroundingProtocol | str | None) -> GroundingProtocol:
    if isinstance(protocol, GroundingProtocol):
        return protocol
    return known_protocol(protocol or run.config.grounding.protocol)


def _maps_of_records(
    run: Run,
    found: Sequence[Record],
    texts: Sequence[str],
    others: Int[np.ndarray, "N"],
    protocol: GroundingProtocol,
    batch_size: int,
) -> Float[np.ndarray, "N 2 G G"]:
    """Maps of each image with its own phrase and with the other one, still unsmoothed."""
    sentences, usable = _phrase_embeddings(run, texts)
    sentences = np.where(usable[:, None], sentences, np.float32(np.nan))  # a phrase without a word is seen nowhere
    pairs = np.stack([sentences, sentences[others]], axis=1)
    size, fit, maps = run.config.model.vision.image_size, run.config.data.fit, []
    for start in range(0, len(found), batch_size):
        batch = found[start : start + batch_size]
        shown = [protocol.view(decode_gray(record.image), fit) for record in batch]
        views = np.stack([evaluation_view(image, size, how) for image, how in shown])[..., None]
        regions = encode_regions(run, views, batch_size=batch_size)
        phrases = on_mesh(run.params, pairs[start : start + batch_size], rows=batch_size)
        maps.append(to_host(similarity_map(regions, *phrases, cosine=protocol.cosine))[: len(batch)])
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
    maps: Float[np.ndarray, "2 G G"], record: Record, fit: str, protocol: GroundingProtocol
) -> tuple[list[list[float]], list[int], float]:
    """Of both maps the metrics in the order of `COLUMNS` and the number of thresholds that no pixel exceeds; the share of seen pixels in a box."""
    counts = protocol.counts(record.boxes, record.original_size)
    heatmaps = protocol.heat(maps, record.original_size, fit)
    seen = ~np.isnan(heatmaps[0])
    if protocol.geometry == "published":
        counts = np.where(seen, counts, 0)
    inside = counts != 0
    sides = inside if protocol.name == "biovil" else counts
    rows, unpredicted = [], []
    for heatmap in heatmaps:
        cnr, scaled = contrast_to_noise(heatmap, sides), protocol.scaled(heatmap)
        overlaps = np.asarray([iou_at(scaled, inside, threshold) for threshold in THRESHOLDS])
        defined = inside.any() and not np.isnan(heatmap).all()
        unpredicted.append(int(np.isnan(overlaps).sum()) if defined else 0)
        # Nothing above a threshold overlaps with nothing; without a box or a map nothing is defined.
        ious = np.nan_to_num(overlaps) if defined else np.full(len(overlaps), np.nan)
        values = {"cnr": cnr, "absolute_cnr": abs(cnr), "miou": ious.mean()}
        values |= {"pointing_game": pointing_game(heatmap, inside)} | dict(zip(OVERLAPS, ious, strict=True))
        rows.append([values[name] for name in COLUMNS])
    return rows, unpredicted, float(inside[seen].mean()) if seen.any() else float("nan")


def _phrase_key(record: Record) -> int:
    """Tells the phrases of an image apart; keyed by the image's own key, so that nobody can look phrases up."""
    key = bytes.fromhex(record.image_key)
    text = phrase_of(record).lower() + record.category
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4, key=key).digest(), "big")


def _unit(vectors: Array | np.ndarray) -> Array:
    """Unlike `msfl_jax.vectors.unit` it leaves NaN, which stands for a phrase that is seen nowhere."""
    vectors = jnp.asarray(vectors)
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
