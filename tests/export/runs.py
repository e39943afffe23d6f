"""Random models of every kind that the configurations can make, as runs that were never trained."""

import functools
from pathlib import Path

import jax
import numpy as np

from input_pipeline.tokenizer import ReportTokenizer, train_tokenizer
from msfl_jax import presets
from msfl_jax.config import from_config_dict
from msfl_jax.model import Model
from msfl_jax.tasks.run import Run

SENTENCES = (
    "There is a small opacity in the left lower lobe.",
    "No pneumothorax is seen.",
    "The heart is normal in size.",
    "Edema has increased since the prior study.",
)
SMALL = {
    "model.vision.image_size": 32,
    "model.vision.patch_size": 8,
    "model.vision.width": 16,
    "model.vision.depth": 2,
    "model.vision.heads": 2,
    "model.text.width": 16,
    "model.text.depth": 2,
    "model.text.heads": 2,
    "model.text.max_tokens": 24,
    "model.pixel_decoder.width": 8,
    "model.pixel_decoder.heads": 2,
    "model.embedding_width": 16,
    "model.region_width": 8,
    "model.matching_width": 8,
    "regions.projection": "own",
    "text.max_sentences": 3,
}
DEMO = SMALL | {
    "image.pool": "mean_max",
    "image.normalisation": "per_image",
    "text.pool": "mean",
    "regions.layer": 1,
    "regions.window_radius": 1,
    "objective.local_alignment.attention": "regions",
    "objective.local_alignment.include_cls": False,
    "zero_shot.rule": "gloria",
    "grounding.sigma": 0.8,
    "grounding.shifts": 2,
}
WINDOWED = SMALL | {
    "model.vision.cls_token": True,
    "model.vision.positions": "learned",
    "model.vision.patch_layers": 1,
    "image.pool": "cls",
    "text.pool": "cls_linear",
    "text.sentence_pool": "separate",
    "regions.window_radius": 1,
    "objective.instance_matching.fusion": "concat",
    "objective.instance_matching.activation": "relu",
    "zero_shot.rule": "maco",
    "grounding.protocol": "maco",
    "data.fit": "pad",
}
GLOBAL = SMALL | {
    "model.vision.positions": "learned",
    "text.sentence_pool": "sum",
    "objective.lambda_local": 0.0,
    "objective.instance_matching.fusion": "sum_product",
    "objective.instance_matching.activation": "none",
    "zero_shot.rule": "chexzero",
    "grounding.protocol": "afloc",
    "grounding.sigma": 0.0,
    "data.fit": "squash",
}
REDUCED = {  # of the paper's B/16: its widths, and less of all else
    "model.vision.image_size": 64,
    "model.vision.depth": 2,
    "model.text.depth": 2,
    "model.text.max_tokens": 24,
    "model.pixel_decoder.width": 96,
    "model.pixel_decoder.depth": 1,
}
GLOBAL_PROJECTIONS = {"image_projection", "report_projection", "pooler"}
SIZES = {"demo": presets.vit_tiny, "windowed": presets.vit_tiny, "global": presets.vit_tiny, "b16": presets.vit_b16}
CHANGES = {"demo": DEMO, "windowed": WINDOWED, "global": GLOBAL, "b16": REDUCED}


def configure(name: str):
    """The configuration called `name`, in float32."""
    config = presets.pretraining(name, SIZES[name]())
    for path, value in (CHANGES[name] | {"model.compute_dtype": "float32"}).items():
        *parents, last = path.split(".")
        setattr(functools.reduce(getattr, parents, config), last, value)
    return from_config_dict(config)


def random_params(model: Model):
    """Random values everywhere, so that no bias is 0 and no scale 1 and a swapped name cannot hide; kernels keep the scale of what they multiply.

    Words and global embeddings are as long as in trained models: what is multiplied out of them, logits and raw products, then has a size at which
    float32 has digits beyond 1e-5.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        names = [key.key for key in path]
        fan_in = leaf.shape[-2] if names[-1] == "kernel" else 625 if "word_embeddings" in names else 25
        around = 1.0 if names[-1] in ("scale", "log_scale") else 0.0
        share = 0.2 if GLOBAL_PROJECTIONS & set(names) else 1.0
        return (around + share * rng.standard_normal(leaf.shape) / fan_in**0.5).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def tokenizer_in(folder: Path) -> ReportTokenizer:
    return train_tokenizer(SENTENCES, folder, vocab_size=120)


def run_of(name: str, tokenizer: ReportTokenizer) -> Run:
    """A run of the configuration called `name` with random parameters."""
    config = configure(name)
    model = Model.create(config, vocab_size=tokenizer.vocab_size)
    return Run(Path(tokenizer.directory).parent, config, model, random_params(model), tokenizer, 7)
