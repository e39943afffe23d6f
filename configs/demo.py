"""The demo: all four objectives on a synthetic study, in minutes on two CPU cores."""

from ml_collections import ConfigDict

from msfl_jax import presets


def get_config(arg: str = "") -> ConfigDict:
    """Pretrains the tiny model at 64 px.

    Args:
      arg: a comma-separated choice of objectives ("global", "global,local", ...; "" is all four), to which may be added "permuted" (control: reports
        of other patients), "short" (500 steps) and "gloria" (the local loss as the siblings' code has it).
    """
    words = [word for word in arg.split(",") if word]
    config = presets.pretraining("demo", presets.vit_tiny())
    presets.select_objectives(config, arg, options=("permuted", "short", "gloria"))

    config.image.pool = "mean_max"  # (ours) a maximum sees lesions that a mean of 64 patches loses
    config.image.normalisation = "per_image"  # (ours)
    config.text.pool = "mean"  # (ours) small report encoders learn it faster than [CLS]
    config.text.max_sentences = 12  # (ours) 99 % of synthetic reports
    # The window is there for the local loss; without that loss the encoder is the paper's.
    if config.objective.lambda_local:
        config.regions.layer = 1  # (ours) final tokens of a small ViT turn into global registers: maps invert
        config.regions.window_radius = 1  # (ours) a region knows its 3 x 3 neighbours only
    config.regions.projection = "own"  # (ours) the global projection takes mean and maximum

    config.objective.global_alignment.temperature = 0.1  # (ours) as measured with batches of 32
    local = config.objective.local_alignment
    if "gloria" not in words:
        local.attention = "regions"  # (paper) the printed form
        local.region_scale = 5.0  # (ours) of 3, 5 and 10 the best maps on validation images
        local.aggregate = "mean"  # (ours) reports of one and of ten sentences score alike
        local.logit_scale = 2.0  # (ours)
        local.include_cls = False  # (ours) a global unit makes regions global

    config.data.batch_size = 32  # (ours) as good as 64 per step here, at 40 % of its cost
    config.data.scale = (1.0, 1.0)  # (ours) no zoom: heart size is a finding
    config.data.shift = 0.0625  # (ours) 4 of 64 pixels
    config.data.permute_reports = "permuted" in words  # (ours) the control
    config.optimizer.peak_rate = 1e-3  # (ours)
    config.optimizer.b2 = 0.98  # (ours)
    config.train.steps = 500 if "short" in words else 1000  # (ours)
    config.train.log_every = 10  # (ours)
    config.train.checkpoint_every = 250  # (ours)
    config.train.evaluate_every = 0  # (ours) the demo evaluates once, at the end
    config.zero_shot.prompts = "synthetic"  # (ours) words that training reports use, in other sentences
    config.zero_shot.rule = "gloria"  # (GLoRIA) half global, half local similarity; cosine where local alignment is off
    config.zero_shot.records = 256  # (ours)
    config.grounding.sigma = 0.8  # (BioViL) 1.5 of its 15 patches along a side, on the 8 of this grid
    config.grounding.shifts = 2  # (ours) a map of 16 x 16 instead of 8 x 8
    config.grounding.records = 128  # (ours)
    return config
