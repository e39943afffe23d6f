"""Fine-tunes a pretrained encoder on CheXpert's five competition labels."""

from ml_collections import ConfigDict

from msfl_jax import finetune_presets


def get_config(arg: str = "") -> ConfigDict:
    """The siblings' recipe: mean of patch tokens, SGD, cosine, all weights trained.

    For the published protocol, build with `--views all --uncertain published --blank absent` and the published lists.

    Args:
      arg: percentage of the labels, 1, 10 or 100 (default), and options: "mrm", "probe", "scratch", "imported" (see configs/README.md).
    """
    maco = {1: (2000, 50, 8e-4), 10: (60_000, 1500, 1e-4), 100: (200_000, 15_000, 1e-5)}
    mrm = {1: (2000, 150, 3e-3), 10: (60_000, 1500, 5e-4), 100: (200_000, 15_000, 5e-4)}
    config = finetune_presets.finetuning("finetune_chexpert", arg, maco, mrm)
    config.data.findings = "Atelectasis,Cardiomegaly,Consolidation,Edema,Pleural Effusion"  # (MaCo) order of the lists
    return config
