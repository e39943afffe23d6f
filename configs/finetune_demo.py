"""Fine-tunes the demo's encoder on the eight findings of the synthetic study, in a minute on two CPU cores."""

from ml_collections import ConfigDict

from msfl_jax import finetune_presets


def get_config(arg: str = "") -> ConfigDict:
    """The tiny encoder at 64 px; rates and lengths chosen on validation images.

    Args:
      arg: percentage of the labels, 1, 10 or 100 (default), and options: "probe", "scratch", "imported" (see configs/README.md).
    """
    recipes = {1: (60, 6, 3e-4), 10: (150, 15, 5e-4), 100: (300, 30, 1e-3)}
    config = finetune_presets.finetuning("finetune_demo", arg, recipes, recipes)
    config.encoder.pool = "mean_max"  # (ours) as the demo's pretraining
    config.encoder.final_norm = True  # (ours)
    config.data.findings = (  # (ours) what the synthetic study draws
        "Pneumonia,Pleural Effusion,Pneumothorax,Cardiomegaly,Edema,Atelectasis,Lung Lesion,Support Devices"
    )
    config.data.batch_size = 32  # (ours)
    config.data.scale = (1.0, 1.0)  # (ours) no zoom: heart size is a finding
    config.data.shift = 0.0625  # (ours) 4 of 64 pixels, as in pretraining
    config.data.aspect = (1.0, 1.0)  # (ours)
    config.optimizer.kind = "adamw"  # (ours) SGD needs thousands of steps
    config.optimizer.weight_decay = 0.05  # (MAE)
    if (
        config.data.fraction < 100 and config.encoder.init == "pretrained"
    ):  # (ours) a random encoder has no first layers to keep
        config.optimizer.layer_decay = 0.65  # (MAE) fifty labelled images would undo the first layers
    config.train.log_every = 10  # (ours)
    config.train.checkpoint_every = 1000  # (ours) evaluations save as well
    config.train.evaluate_every = max(1, config.train.steps // 5)  # (ours)
    return config
