"""Fine-tunes a pretrained encoder on RSNA's pneumonia label."""

from ml_collections import ConfigDict

from msfl_jax import finetune_presets


def get_config(arg: str = "") -> ConfigDict:
    """The siblings' recipe: mean of patch tokens, SGD, cosine, all weights trained.

    Args:
      arg: percentage of the labels, 1, 10 or 100 (default), and options: "mrm", "probe", "scratch", "imported" (see configs/README.md).
    """
    maco = {1: (2000, 50, 6.5e-3), 10: (10_000, 200, 6e-4), 100: (50_000, 2000, 5e-4)}
    mrm = {1: (2000, 50, 3e-3), 10: (10_000, 200, 5e-4), 100: (50_000, 2000, 5e-4)}
    config = finetune_presets.finetuning("finetune_rsna", arg, maco, mrm)
    config.data.findings = "Pneumonia"  # (MaCo) the one label of the lists; a build with --detailed has two more
    return config
