"""Pretrains ViT-S/16 on MIMIC-CXR with all four objectives."""

from ml_collections import ConfigDict

from msfl_jax import presets


def get_config(arg: str = "") -> ConfigDict:
    """Pretrains ViT-S/16 (width 384) with a BERT-style report encoder.

    Stated by the paper: the four objectives and their sum. Not stated, and taken from the authors' MaCo code where it has them: optimiser, schedule,
    batch, normalisation. Fields that are not set here have the defaults, and the sources, of `msfl_jax.presets.pretraining`.
    Augmentation as in the siblings' code, MaCo's included, is a few overrides of `data.*`: see configs/README.md.

    Args:
      arg: a comma-separated choice of objectives ("global", "global,local", ...); "" is all four.
    """
    config = presets.pretraining("mimic_vit_s16", presets.vit_s16())
    presets.select_objectives(config, arg)
    config.data.batch_size = 1024  # (ours) fits eight GPUs of 24 GB
    config.optimizer.peak_rate = (
        1.5e-4  # (ours) MaCo's 2.5e-4 at 4,096, scaled by the square root of the batch and rounded up
    )
    config.train.steps = 11200  # (MaCo) 51 epochs at this batch size
    config.optimizer.warmup_steps = 440  # (MaCo) 2 epochs
    return config
