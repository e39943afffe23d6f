"""What must fit between parts of a configuration and the tokenizer, that `msfl_jax.config` looks at one by one."""

from input_pipeline.errors import UserError
from msfl_jax import encoders
from msfl_jax.config import Config
from msfl_jax.encoders import TRAINED_HERE


def check(config: Config, rows: int, vocab_size: int) -> None:
    """Refuses parts that do not fit each other.

    Args:
      config: of a run.
      rows: of the word table.
      vocab_size: words of the tokenizer.

    Raises:
      UserError: names the first key at fault, what was found and what was expected.
    """
    vision, width = config.model.vision, config.model.pixel_decoder.width
    apart = config.regions.projection == "own"
    same = config.model.region_width == config.model.embedding_width
    visible = encoders.count_visible(vision.grid**2, config.image.mask_ratio)
    rules = [
        (rows >= vocab_size, "model.text.vocab_size", rows, f"0, or at least the tokenizer's {vocab_size} words"),
        (
            vocab_size > len(TRAINED_HERE.ids),
            "vocab_size",
            vocab_size,
            "a tokenizer with words beside its special tokens",
        ),
        (width % 4 == 0, "model.pixel_decoder.width", width, "a multiple of 4 (sin-cos positions)"),
        (
            visible > 0,
            "image.mask_ratio",
            config.image.mask_ratio,
            f"a ratio that leaves one of {vision.grid**2} patches",
        ),
        (apart or same, "regions.projection", "shared", "'own', or model.region_width equal to model.embedding_width"),
        (apart or config.image.pool != "mean_max", "regions.projection", "shared", "'own' with image.pool 'mean_max'"),
    ]
    for holds, path, found, expected in rules:
        if not holds:
            raise UserError(f"config: '{path}' is {found!r}; expected {expected}")
