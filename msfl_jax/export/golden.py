"""Inputs and what the JAX model makes of them, stored beside the weights: what any other implementation is held against.

Pixels and tokens are random, phrases are fixed: nothing of any data set is in them.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from msfl_jax.encoders import count_visible, masking_from_noise, normalise_image, patchify, take
from msfl_jax.export.layout import DECODER, LANGUAGE, full_precision, in_float32
from msfl_jax.heads import LanguageHead
from msfl_jax.model import Model, Params
from msfl_jax.tasks.grounding import ground_phrases
from msfl_jax.tasks.prompts import Prompts
from msfl_jax.tasks.run import Run, encode_texts, prepare_image
from msfl_jax.tasks.zero_shot import score

GOLDEN = "golden.safetensors"
INPUTS, OUTPUTS = "inputs.", "outputs."  # before the names of tensors
FINDING = Prompts(("There is a pleural effusion.",), ("There is no pleural effusion.", "No effusion is seen."))
PHRASES = ("There is an opacity in the left lung.", "No pneumothorax is seen.")
IMAGES = 2


def make_golden(run: Run) -> dict[str, np.ndarray]:
    """Inputs and float32 outputs by name, for the parts that the run has.

    Inputs: image [B, H, W] of the view's size, token_ids and sentence_ids [B, T], and noise [B, P] where there is a decoder. Outputs: what
    `encode_image`, `encode_report` and `match` of the model return; tokens of the two encoders; scores of FINDING by cosine [B]; heat of PHRASES in
    the first image [K, H, W]; and pixel_prediction and token_logits, where decoder and language head are there.
    """
    run = in_float32(run)
    inputs = _inputs(run)
    shown = np.stack([prepare_image(run, image) for image in inputs["image"]])
    with full_precision():
        found = _outputs(run.params, inputs | {"image": shown}, model=run.model)
        outputs = {name: np.asarray(value) for name, value in found.items()}
        present, absent = (encode_texts(run, side).report_embedding for side in (FINDING.positive, FINDING.negative))
        outputs["scores"] = score(outputs["image_embedding"], present, absent).astype(np.float32)
        outputs["heat"] = ground_phrases(run, shown[0], PHRASES).astype(np.float32)
    named = {INPUTS + name: value for name, value in inputs.items()}
    return named | {OUTPUTS + name: value for name, value in outputs.items()}


def _inputs(run: Run) -> dict[str, np.ndarray]:
    size, length, rng = run.config.model.vision, run.config.model.text.max_tokens, np.random.default_rng(0)
    tokens = rng.integers(0, run.tokenizer.vocab_size, (IMAGES, length), np.int32)
    tokens[np.isin(tokens, run.tokenizer.special_ids)] = run.tokenizer.unknown_id
    sentences = np.sort(rng.integers(1, run.config.text.max_sentences + 1, (IMAGES, length), np.int32), axis=1)
    ends = length - np.arange(IMAGES) * (length // 3)  # one report fills its row, the next does not
    tokens[:, 0], sentences[:, 0] = run.tokenizer.cls_id, 0
    for row, end in enumerate(ends):
        tokens[row, end - 1], tokens[row, end:], sentences[row, end - 1 :] = run.tokenizer.sep_id, 0, 0
    image = rng.integers(0, 256, (IMAGES, size.image_size, size.image_size), np.uint8)
    noise = rng.random((IMAGES, size.grid**2), np.float32)
    return {"image": image, "token_ids": tokens, "sentence_ids": sentences} | (
        {"noise": noise} if DECODER in run.params else {}
    )


@functools.partial(jax.jit, static_argnames="model")
def _outputs(params: Params, inputs: Mapping[str, Any], *, model: Model) -> dict[str, Array]:
    """All that is compiled, at once."""
    options, size = model.config.image, model.config.model.vision
    image, token_ids = inputs["image"][..., None], inputs["token_ids"]
    pixels = normalise_image(image, normalisation=options.normalisation, mean=options.mean, deviation=options.deviation)
    patches = patchify(pixels, size.patch_size)
    seen: Any = model.vision.apply({"params": params["vision"]}, patches)
    read = model.text.apply({"params": params["text"]}, token_ids)
    embedding, regions = model.encode_image(params, image)
    report, units, present = model.encode_report(params, token_ids, inputs["sentence_ids"])
    found = {
        "image_embedding": embedding,
        "regions": regions,
        "report_embedding": report,
        "units": jnp.where(present[..., None], units, 0),
        "unit_mask": present,
        "matching": model.match(params, embedding, report),
        "vision_patches": seen.patches,
        "text_states": read * (token_ids != 0)[..., None],
    }
    found |= {} if seen.cls is None else {"vision_cls": seen.cls}
    if DECODER in params:
        masking = masking_from_noise(inputs["noise"], count_visible(size.grid**2, options.mask_ratio))
        visible: Any = model.vision.apply({"params": params["vision"]}, take(patches, masking.kept), masking.kept)
        found["pixel_prediction"] = model.pixel_decoder.apply(
            {"params": params[DECODER]}, visible.patches, visible.cls, masking.restore
        )
    if LANGUAGE in params["heads"]:
        words = params["text"]["word_embeddings"]["embedding"]
        logits = LanguageHead("float32").apply({"params": params["heads"][LANGUAGE]}, read, words)
        found["token_logits"] = logits * (token_ids != 0)[..., None]
    return found
