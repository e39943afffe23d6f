"""Segments pneumothoraces of SIIM-ACR at 512 pixels with UPerNet on a pretrained encoder."""

from ml_collections import ConfigDict

from msfl_jax import segmentation_presets


def get_config(arg: str = "") -> ConfigDict:
    """The siblings' recipe: four blocks into UPerNet, focal and dice loss, AdamW with layer decay, all weights trained.

    Args:
      arg: percentage of the labels, 1, 10 or 100 (default), and options: "clean" or "as_published" (the lists the build must have), "scratch",
        "imported", "linear" (see configs/README.md).
    """
    recipes = {1: (1000, 100, 5e-6, 50), 10: (5000, 100, 2e-5, 50), 100: (160_000, 1500, 1.5e-5, 500)}
    return segmentation_presets.segmenting("segment_siim", arg, recipes)
