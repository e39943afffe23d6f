"""The losses of the method in PyTorch, what benchmarks compare ours with; the same numbers as `msfl_jax.losses`, symmetric ones only.

The local alignment is there three times: as the siblings write it (a Python loop over reports, with the copies that they make or without), all pairs
at once, and in blocks of reports whose backward pass computes them anew. The latter two have the algebra of ours, so that what is compared is not who
left it out.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Attention = Literal["gloria", "regions"]
Aggregate = Literal["sum", "mean"]

SMALLEST_NORM = 1e-8  # GLoRIA's clamp of |c| |t|
GRAM_PAYS_BELOW = 1.33  # patches per embedding value, as ours


def contrast(logits: Tensor, same_study: Tensor | None = None) -> Tensor:
    """Mean of the cross-entropies of both directions; `logits` [B, B], images by reports, pairs of `same_study` off the diagonal left out."""
    matched = torch.arange(len(logits), device=logits.device)
    if same_study is not None:
        ignored = same_study & (matched[:, None] != matched)
        logits = logits.masked_fill(ignored, -torch.inf)
    return (F.cross_entropy(logits, matched) + F.cross_entropy(logits.T, matched)) / 2


def global_alignment(
    image: Tensor, report: Tensor, *, temperature: Tensor | float, same_study: Tensor | None = None
) -> Tensor:
    """Images against reports, embeddings [B, D] of any length."""
    return contrast(F.normalize(image, dim=-1) @ F.normalize(report, dim=-1).T / temperature, same_study)


def local_loop(
    regions: Tensor,
    sentences: Tensor,
    sentence_mask: Tensor,
    *,
    attention: Attention = "gloria",
    region_scale: float = 4.0,
    sentence_scale: float = 5.0,
    aggregate: Aggregate = "sum",
    logit_scale: float = 10.0,
    same_study: Tensor | None = None,
    copies: bool = True,
) -> Tensor:
    """Local alignment, one report after the other with all images, contexts formed: how GLoRIA, MaCo and AFLoc are written.

    Args:
      regions: [B, P, E].
      sentences: [B, S, E].
      sentence_mask: bool [B, S], True where a sentence is real.
      attention, region_scale, sentence_scale, aggregate, logit_scale: as in `msfl_jax.losses.local_alignment`.
      same_study: bool [B, B], pairs that leave the denominators.
      copies: with the copies that GLoRIA's `local_loss` makes for each report: of words for every image, and of all that is transposed.
    """
    if attention == "regions":
        regions, sentences = F.normalize(regions, dim=-1), F.normalize(sentences, dim=-1)
    maps = regions.transpose(1, 2).contiguous() if copies else regions  # as features of images lie there
    counts = sentence_mask.sum(dim=1).tolist()
    columns = []
    for report, chosen in enumerate(sentence_mask.nonzero()[:, 1].split(counts)):
        if not len(chosen):
            columns.append(regions.new_zeros(len(regions)))
            continue
        words = sentences[report, chosen]
        if copies:
            cosines = _cosines_with_copies(maps, words, attention, region_scale)
        else:
            words = words.expand(len(regions), -1, -1)
            cosines = _cosine(_attended(regions, words, attention, region_scale), words)
        scores = (sentence_scale * cosines).logsumexp(dim=-1)
        columns.append(scores - math.log(len(chosen)) if aggregate == "mean" else scores)
    return contrast(logit_scale * torch.stack(columns, dim=1), same_study)


def _attended(regions: Tensor, words: Tensor, attention: Attention, region_scale: float) -> Tensor:
    """Contexts [B, n, E] of the words [B, n, E] of one report in every image."""
    logits = regions @ words.transpose(1, 2)
    if attention == "gloria":
        logits = logits.softmax(dim=-1)
    return (region_scale * logits).softmax(dim=1).transpose(1, 2) @ regions


def _cosines_with_copies(maps: Tensor, words: Tensor, attention: Attention, region_scale: float) -> Tensor:
    """Cosines [B, n] of the words [n, E] of one report with their contexts in the features [B, E, P] of every image."""
    repeated = words.T[None].contiguous().repeat(len(maps), 1, 1)
    logits = maps.transpose(1, 2).contiguous() @ repeated
    if attention == "gloria":
        logits = logits.softmax(dim=-1)
    weights = (logits.transpose(1, 2).contiguous() * region_scale).softmax(dim=-1)
    contexts = maps @ weights.transpose(1, 2).contiguous()
    return _cosine(contexts.transpose(1, 2).contiguous(), repeated.transpose(1, 2).contiguous())


def _cosine(contexts: Tensor, words: Tensor) -> Tensor:
    """Along the last axis, with GLoRIA's clamp."""
    lengths = contexts.norm(dim=-1) * words.norm(dim=-1)
    return (contexts * words).sum(dim=-1) / lengths.clamp_min(SMALLEST_NORM)


def local_vectorised(
    regions: Tensor,
    sentences: Tensor,
    sentence_mask: Tensor,
    *,
    attention: Attention = "gloria",
    region_scale: float = 4.0,
    sentence_scale: float = 5.0,
    aggregate: Aggregate = "sum",
    logit_scale: float = 10.0,
    same_study: Tensor | None = None,
    gram: bool | None = None,
) -> Tensor:
    """Local alignment of all pairs at once; everything as in `local_loop`.

    Args:
      gram: lengths of contexts by the Gram matrix of each image's regions instead of the contexts themselves; None takes what has fewer operations.
    """
    regions, sentences, products = _prepared(regions, sentences, sentence_mask, attention, gram)
    score = _scorer(attention, region_scale, sentence_scale, aggregate)
    return contrast(logit_scale * score(regions, products, sentences, sentence_mask), same_study)


def local_blockwise(
    regions: Tensor,
    sentences: Tensor,
    sentence_mask: Tensor,
    *,
    block: int,
    attention: Attention = "gloria",
    region_scale: float = 4.0,
    sentence_scale: float = 5.0,
    aggregate: Aggregate = "sum",
    logit_scale: float = 10.0,
    same_study: Tensor | None = None,
    gram: bool | None = None,
) -> Tensor:
    """Local alignment in blocks of `block` reports, each computed again in the backward pass; everything else as in `local_vectorised`."""
    regions, sentences, products = _prepared(regions, sentences, sentence_mask, attention, gram)
    score = _scorer(attention, region_scale, sentence_scale, aggregate)
    blocks = [
        checkpoint(score, regions, products, part, mask, use_reentrant=False, preserve_rng_state=False)
        for part, mask in zip(sentences.split(block), sentence_mask.split(block), strict=True)
    ]
    return contrast(logit_scale * torch.cat(blocks, dim=1), same_study)


def _prepared(
    regions: Tensor, sentences: Tensor, mask: Tensor, attention: Attention, gram: bool | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Regions, sentences with padding 0, and the products of regions [B, P, P] where they pay."""
    sentences = sentences * mask[..., None]
    if attention == "regions":
        regions, sentences = F.normalize(regions, dim=-1), F.normalize(sentences, dim=-1)
    pays = regions.shape[1] < GRAM_PAYS_BELOW * regions.shape[2] if gram is None else gram
    return regions, sentences, regions @ regions.transpose(1, 2) if pays else None


def _scorer(
    attention: Attention, region_scale: float, sentence_scale: float, aggregate: Aggregate
) -> Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]:
    """Scores [A, b] of all images with a block of reports. Laid out as [A, P, b S], so that every product is one batched GEMM."""

    def score(regions: Tensor, products: Tensor | None, sentences: Tensor, mask: Tensor) -> Tensor:
        has_sentence = mask.any(dim=-1)
        present = mask | ~has_sentence[:, None]
        similarity = regions @ sentences.flatten(0, 1).T
        if attention == "gloria":
            among = similarity.unflatten(2, mask.shape).masked_fill(~present, -torch.inf).softmax(dim=-1)
            weights = (region_scale * among.flatten(2)).softmax(dim=1)
        else:
            weights = (region_scale * similarity).softmax(dim=1)
        lengths = (
            _length(_squared_contexts(weights, regions, products)) * _length(sentences.square().sum(dim=-1)).flatten()
        )
        cosine = ((weights * similarity).sum(dim=1) / lengths.clamp_min(SMALLEST_NORM)).clamp(-1, 1)
        cosine = cosine.unflatten(1, mask.shape).masked_fill(~present, -torch.inf)
        scores = (sentence_scale * cosine).logsumexp(dim=-1)
        if aggregate == "mean":
            scores = scores - present.sum(dim=-1).to(scores.dtype).log()
        return scores.masked_fill(~has_sentence, 0)

    return score


def _squared_contexts(weights: Tensor, regions: Tensor, products: Tensor | None) -> Tensor:
    """Squared lengths [A, b S] of the contexts of weights [A, P, b S]."""
    if products is None:
        return (weights.transpose(1, 2) @ regions).square().sum(dim=-1)
    return (weights * (products @ weights)).sum(dim=1)


def _length(squared: Tensor) -> Tensor:
    """Square root without the infinite gradient at 0."""
    return squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()


def instance_matching(logits: Tensor, matched: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of N pairs, weighted mean; negatives have been drawn before."""
    losses = F.binary_cross_entropy_with_logits(logits, matched, weights, reduction="sum")
    return losses / weights.sum().clamp_min(1)


def image_reconstruction(predicted: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Mean squared error over pixels [B, P, K], then over the masked patches [B, P]."""
    errors = (predicted - target).square().mean(dim=-1)
    return (errors * masked).sum() / masked.sum().clamp_min(1)


def masked_language_modeling(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy [B, M, V] of the tokens [B, M] that stood at the predicted positions; weight 0 is padding."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum().clamp_min(1)
