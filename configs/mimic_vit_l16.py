"""Pretrains ViT-L/16 on MIMIC-CXR with all four objectives."""

from ml_collections import ConfigDict

from msfl_jax import presets


def get_config(arg: str = "") -> ConfigDict:
    """Pretrains ViT-L/16 (width 1024) with a BERT-style report encoder.

    Stated by the paper: the four objectives and their sum. Not stated, and taken from the authors' MaCo code where it has them: optimiser, schedule,
    batch, normalisation. Fields that are not set here have the defaults, and the sources, of `msfl_jax.presets.pretraining`.
    Augmentation as in the siblings' code, MaCo's included, is a few overrides of `data.*`: see configs/README.md.

    Args:
      arg: a comma-separated choice of objectives ("global", "global,local", ...); "" is all four.
    """
    config = presets.pretraining("mimic_vit_l16", presets.vit_l16())
    presets.select_objectives(config, arg)
    config.data.batch_size = 4096  # (MaCo)
    config.optimizer.peak_rate = 1.5e-4  # (MAE) larger models want smaller steps
    config.train.steps = 2800  # (MaCo) 51 epochs
    config.optimizer.warmup_steps = 280  # (ours) a tenth of the run
    config.mesh.fsdp = 1  # (ours) raise it where parameters and their moments do not fit one device
    return config
