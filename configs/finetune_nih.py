"""Fine-tunes a pretrained encoder on the fourteen findings of NIH ChestX-ray14."""

from ml_collections import ConfigDict

from msfl_jax import finetune_presets


def get_config(arg: str = "") -> ConfigDict:
    """The siblings' recipe: mean of patch tokens, SGD, cosine, all weights trained.

    Args:
      arg: percentage of the labels, 1, 10 or 100 (default), and options: "mrm", "probe", "scratch", "imported" (see configs/README.md).
    """
    maco = {1: (2000, 50, 8.5e-3), 10: (30_000, 500, 3e-3), 100: (200_000, 5000, 3e-3)}
    mrm = {1: (3000, 50, 3e-2), 10: (30_000, 500, 3e-3), 100: (200_000, 5000, 3e-3)}
    return finetune_presets.finetuning("finetune_nih", arg, maco, mrm)
