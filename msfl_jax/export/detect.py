"""What a file of weights is, by the names and the settings in it."""

from collections.abc import Collection

from input_pipeline.errors import CheckpointError
from msfl_jax.export.arrays import CHEST, CLIP, HALF, IMAGENET, Pixels
from msfl_jax.export.names import Format
from msfl_jax.export.weight_files import WeightFile

MOST = 1e3  # of a mean or a deviation of pixels
PIXELS = {"imagenet": IMAGENET, "half": HALF, "clip": CLIP, "chest": CHEST}

# Endings of names that all files of a format have; of several formats the first counts.
SIGNS: tuple[tuple[Format, tuple[str, ...]], ...] = (
    ("msfl", ("vision.patch_embed.weight", "text.word_embeddings.weight")),
    ("hf_vit_mae", ("patch_embeddings.projection.weight", "decoder.decoder_embed.weight")),
    ("hf_vit", ("patch_embeddings.projection.weight", "embeddings.cls_token")),
    ("clip", ("embeddings.class_embedding", "embeddings.patch_embedding.weight")),
    ("openai", ("class_embedding", "conv1.weight")),
    ("maco", ("patch_embed.proj.weight", "img_mlp.weight")),
    ("mrm", ("patch_embed.proj.weight", "bert_mlp.weight")),
    ("mae", ("patch_embed.proj.weight", "decoder_embed.weight")),
    ("timm", ("patch_embed.proj.weight", "cls_token")),
    ("hf_bert", ("embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight")),
)
# What models of a format are trained with where nothing beside the weights says so.
USUAL: dict[Format, Pixels] = {
    **dict.fromkeys(("hf_vit_mae", "mae", "timm"), IMAGENET),
    **dict.fromkeys(("maco", "mrm"), CHEST),
    **dict.fromkeys(("clip", "openai"), CLIP),
    "hf_vit": HALF,
}


def detect_format(weights: WeightFile) -> Format:
    """The format of a file.

    Raises:
      CheckpointError: it is none that is known.
    """
    for form, signs in SIGNS:
        if all(_has(weights.tensors, sign) for sign in signs):
            return form
    first = ", ".join(sorted(weights.tensors)[:4])
    known = ", ".join(form for form, _ in SIGNS)
    raise CheckpointError(
        f"{weights.path}: no known format ({len(weights.tensors)} tensors: {first:.200}, ...); expected one of {known}"
    )


def pixels_of(weights: WeightFile, form: Format, choice: str = "auto") -> Pixels | None:
    """How the pixels of the model were normalised that the weights are of.

    Args:
      weights: whose settings say so, if there are any.
      form: says what is usual otherwise.
      choice: a name of `PIXELS`, "own" for ours, or "auto".

    Returns:
      None for our own.
    """
    if choice != "auto":
        return PIXELS.get(choice)
    timm = weights.config.get("pretrained_cfg")
    for settings, mean, deviation in (
        (weights.processor, "image_mean", "image_std"),
        (timm if isinstance(timm, dict) else {}, "mean", "std"),
    ):
        found = _three(settings.get(mean)), _three(settings.get(deviation))
        if found[0] and found[1] and min(found[1]) > 0:
            return Pixels(found[0], found[1])
    return USUAL.get(form)


def _has(names: Collection[str], ending: str) -> bool:
    return any(f".{name}".endswith(f".{ending}") for name in names)


def _three(value: object) -> tuple[float, ...]:
    """Three numbers of a settings file, or nothing; NaN and what is beyond all pixels are none."""
    if (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(x, int | float) and abs(x) < MOST for x in value)
    ):
        return tuple(map(float, value))
    return ()
