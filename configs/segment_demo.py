"""Segments synthetic pneumothoraces with a light decoder on the demo's encoder, in a minute or two on two CPU cores."""

from ml_collections import ConfigDict

from msfl_jax import segmentation_presets


def get_config(arg: str = "") -> ConfigDict:
    """The tiny encoder at 128 px, twice what it was pretrained at; rates and lengths chosen on validation images.

    Args:
      arg: percentage of the labels, 1, 10 or 100 (default), and options: "scratch" (see configs/README.md).
    """
    recipes = {1: (150, 15, 1e-3, 50), 10: (200, 20, 1e-3, 50), 100: (300, 30, 1e-3, 75)}
    config = segmentation_presets.segmenting("segment_demo", ",".join([*arg.split(","), "linear"]), recipes)
    config.encoder.image_size = 128  # (ours) the border of a lung needs more than the 64 px of the reports' findings
    config.head.channels = 32  # (ours)
    config.data.batch_size = 16  # (ours)
    config.data.shift = 0.0625  # (ours) as in pretraining
    config.optimizer.layer_decay = 0.9  # (ours) three blocks: .65 is made for twelve
    config.train.log_every = 10  # (ours)
    return config
