"""Zero-shot classification: images scored by how much nearer they are to positive than to negative prompts.

`evaluate_zero_shot` scores a build; `score` and `local_similarity` are the rules, on arrays; numbers are made from predictions in
`msfl_jax.tasks.zero_shot_result`.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from input_pipeline.errors import UserError
from input_pipeline.loader import evaluation_batches, label_names
from msfl_jax.config_build import nearest
from msfl_jax.tasks.finding_result import Predictions, truth_of_labels
from msfl_jax.tasks.gather import gather_rows
from msfl_jax.tasks.prompts import Prompts
from msfl_jax.tasks.run import Run, Texts, batch_spec, encode_images, encode_texts, fixed_size, pad_rows, to_host
from msfl_jax.tasks.zero_shot_result import Finding, ZeroShotResult, summarise

__all__ = [
    "Finding",
    "Predictions",
    "ZeroShotResult",
    "choose_rule",
    "encode_prompts",
    "evaluate_zero_shot",
    "local_similarity",
    "score",
    "score_batch",
    "summarise",
    "truth_of_labels",
]

Rule = Literal["cosine", "maco", "chexzero", "gloria"]
Blank = Literal["negative", "ignore"]


def score(
    image_embedding: Float[np.ndarray, "N D"],
    positive: Float[np.ndarray, "A D"],
    negative: Float[np.ndarray, "C D"],
    rule: Rule = "cosine",
    *,
    local_positive: Float[np.ndarray, "N A"] | None = None,
) -> Float[np.ndarray, "N"]:
    """Scores of images for one finding, higher is more likely present.

      cosine    each side's prompts as unit vectors, averaged, made unit again; cosine with the positive minus cosine with the negative (BioViL)
      maco      raw products with each side's mean prompt; the log-odds of their softmax. The softmax itself, 1 / (1 + exp(-score)), orders
                images alike but saturates to exactly 1 for long vectors, and would tie them
      chexzero  softmax of the cosines with a positive and a negative prompt, averaged over all such pairs
      gloria    half the rule "cosine", half the local similarity of the best positive prompt (GLoRIA, ours where it has no negative prompts: what is
                absent is nowhere in the image). GLoRIA's code weighs the local half five times as much, by a scale that it leaves in

    Args:
      image_embedding: of any norm, as the model gives them.
      positive, negative: report embeddings of the prompts.
      rule: one of the four.
      local_positive: `local_similarity` with each positive prompt, for "gloria".

    Raises:
      ValueError: "gloria" without local similarities.
    """
    image, sides = (
        np.asarray(image_embedding, np.float64),
        (np.asarray(positive, np.float64), np.asarray(negative, np.float64)),
    )
    if rule == "maco":
        return image @ (sides[0].mean(axis=0) - sides[1].mean(axis=0))
    image, units = _unit(image), [_unit(side) for side in sides]
    if rule == "chexzero":
        cosines = [image @ side.T for side in units]
        return (1 / (1 + np.exp(cosines[1][:, None, :] - cosines[0][:, :, None]))).mean(axis=(1, 2))
    difference = image @ (_unit(units[0].mean(axis=0)) - _unit(units[1].mean(axis=0)))
    if rule == "cosine":
        return difference
    if local_positive is None:
        raise ValueError("rule 'gloria' needs local_positive")
    return 0.5 * (difference + local_positive.max(axis=1))


@functools.partial(jax.jit, static_argnames="region_scale")
def local_similarity(
    regions: Float[Array | np.ndarray, "N P E"],
    sentences: Float[Array | np.ndarray, "Q S E"],
    sentence_mask: Bool[Array | np.ndarray, "Q S"],
    *,
    region_scale: float,
) -> Float[Array, "N Q"]:
    """Cosine of each prompt's sentence with the regions it attends to; of several sentences, the best.

    The attention is a softmax over regions of `region_scale` times the cosine (the printed form of the local loss). GLoRIA's own first softmax, over
    a text's units, is 1 for a prompt of one sentence and would weigh all regions alike.

    Args:
      regions: of N images.
      sentences: of Q prompts, with S sentences at most.
      sentence_mask: which of them exist; a prompt without any has similarity 0.
      region_scale: as the local loss was trained with.
    """
    regions = regions.astype(jnp.float32)
    units = sentences / jnp.maximum(jnp.linalg.norm(sentences, axis=-1, keepdims=True), 1e-12)
    lengths = jnp.linalg.norm(regions, axis=-1)
    products = jnp.einsum("npe,qse->nqsp", regions, units, precision="highest")
    cosines = products / jnp.maximum(lengths, 1e-12)[:, None, None]
    attention = jax.nn.softmax(region_scale * cosines, axis=-1)
    contexts = jnp.einsum("nqsp,npe->nqse", attention, regions, precision="highest")
    norms = jnp.maximum(jnp.linalg.norm(contexts, axis=-1), 1e-12)
    similarity = jnp.einsum("nqsp,nqsp->nqs", attention, products) / norms
    best = jnp.where(sentence_mask, similarity, -jnp.inf).max(axis=-1)
    return jnp.where(sentence_mask.any(axis=-1), best, 0.0)


def evaluate_zero_shot(
    run: Run,
    directory: Path | str,
    split: str,
    *,
    prompts: Mapping[str, Prompts],
    rule: str | None = None,
    batch_size: int = 64,
    records: int = 0,
    blank: Blank = "negative",
    seed: int = 0,
    replicates: int = 2000,
) -> ZeroShotResult:
    """Scores the images of a build with prompts and compares with its labels.

    Args:
      run: the model.
      directory: a build with labels.
      split: of the build.
      prompts: by finding; findings that the build has no label for are left out.
      rule: see `score`; None takes the run's own (see `choose_rule`).
      batch_size: images at a time.
      records: how many records, from the split's first; 0 is all.
      blank: what a label that the report does not mention counts as. Uncertain labels (-1) are always left out.
      seed: of the bootstrap and of the shuffled control.
      replicates: of the bootstrap; 0 leaves intervals nan.

    Raises:
      UserError: no finding of the prompts is a label of the build, or there is no such build, split or rule.
      DataError: a shard is damaged.
    """
    chosen_rule = choose_rule(run, rule)
    names = label_names(Path(directory))
    chosen = _known_findings(prompts, names)
    predict = functools.partial(score_batch, run, encode_prompts(run, chosen), chosen_rule, batch_size)
    scores, labels, patients, images = gather_rows(
        evaluation_batches(Path(directory), batch_spec(run), batch_size=batch_size, split=split),
        lambda batch: (predict(batch["image"]), batch["labels"], batch["patient_key"], batch["image_key"]),
        records=records,
    )
    truth = truth_of_labels(labels[:, [names.index(name) for name in chosen]], blank)
    own, exchanged = scores.astype(np.float32).transpose(1, 0, 2)
    other_way = exchanged if chosen_rule == "gloria" else None
    predictions = Predictions(tuple(chosen), own, truth, patients, exchanged=other_way, image_key=images)
    return summarise(
        predictions,
        rule=chosen_rule,
        split=split,
        step=run.step,
        temperature=temperature_of(run),
        seed=seed,
        replicates=replicates,
    )


def temperature_of(run: Run) -> float:
    """What the run's global alignment divides cosines by."""
    return float(to_host(run.model.temperature(run.params)))


def choose_rule(run: Run, rule: str | None) -> Rule:
    """The rule asked for, else the run's own; of a run without local alignment, "gloria" has no local half to take and its default is "cosine".

    Raises:
      UserError: "gloria" was asked for and the run has no local alignment.
    """
    if rule is not None and _known_rule(rule) == "gloria" and not run.aligns_locally:
        raise UserError(
            "rule 'gloria' needs local alignment, which this run was trained without; expected cosine, maco or chexzero"
        )
    own = run.config.zero_shot.rule
    default = "cosine" if own == "gloria" and not run.aligns_locally else own
    return default if rule is None else _known_rule(rule)


def encode_prompts(run: Run, prompts: Mapping[str, Prompts]) -> dict[str, tuple[Texts, Texts]]:
    """Positive and negative prompts of each finding, embedded together, so that the encoder is compiled and filled once.

    Raises:
      UserError: a prompt has no word.
    """
    sides = [side for finding in prompts.values() for side in (finding.positive, finding.negative)]
    texts = encode_texts(run, [text for side in sides for text in side])
    if not texts.sentence_mask.any(axis=1).all():
        empty = int(np.argmin(texts.sentence_mask.any(axis=1)))
        names = [name for name, finding in prompts.items() for _ in (*finding.positive, *finding.negative)]
        raise UserError(f"prompts: a prompt of '{names[empty]}' has no word; expected sentences such as 'No edema.'")
    ends = np.cumsum([len(side) for side in sides])
    parts = [Texts(*(array[end - len(side) : end] for array in texts)) for side, end in zip(sides, ends, strict=True)]
    return dict(zip(prompts, zip(parts[::2], parts[1::2], strict=True), strict=True))


def score_batch(
    run: Run, texts: Mapping[str, tuple[Texts, Texts]], rule: Rule, batch_size: int, image: UInt8[np.ndarray, "b H W 1"]
) -> Float[np.ndarray, "B 2 F"]:
    """Scores of one batch for every finding, as they are and with both sides exchanged; rows beyond the images are padding.

    Args:
      run: the model.
      texts: as `encode_prompts` gives them.
      rule: see `score`.
      batch_size: to which the images are padded.
      image: at most `batch_size` of them.
    """
    embedding, regions = encode_images(run, image, batch_size=batch_size)
    scale = run.config.objective.local_alignment.region_scale

    def locally(side: Texts) -> Array | None:
        """Local similarities with the prompts of one side, where the rule asks for them."""
        if rule != "gloria":
            return None
        rows = fixed_size(len(side.sentences))
        padded = pad_rows(side.sentences, rows), pad_rows(side.sentence_mask, rows)
        return local_similarity(regions, *padded, region_scale=scale)

    near = {name: (locally(positive), locally(negative)) for name, (positive, negative) in texts.items()}
    embedding, near = to_host((embedding, near))
    columns = []
    for name, (positive, negative) in texts.items():
        present, absent = positive.report_embedding, negative.report_embedding
        locally_present, locally_absent = (
            None if found is None else found[:, : len(side)]
            for found, side in zip(near[name], (present, absent), strict=True)
        )
        own = score(embedding, present, absent, rule, local_positive=locally_present)
        columns.append([own, score(embedding, absent, present, rule, local_positive=locally_absent)])
    return np.asarray(columns).transpose(2, 1, 0)


def _known_rule(rule: str) -> Rule:
    choices = get_args(Rule)
    if rule not in choices:
        raise UserError(f"zero-shot: no rule '{rule}'{nearest(rule, choices)}; expected one of {', '.join(choices)}")
    return cast(Rule, rule)


def _known_findings(prompts: Mapping[str, Prompts], names: tuple[str, ...]) -> dict[str, Prompts]:
    known = {finding: sides for finding, sides in prompts.items() if finding in names}
    if not known:
        first = next(iter(prompts), "")
        raise UserError(
            f"prompts: no finding is a label of the build; found '{first}'{nearest(first, names)}, expected some of {', '.join(names)}"
        )
    return known


def _unit(vectors: Float[np.ndarray, "*n D"]) -> Float[np.ndarray, "*n D"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
