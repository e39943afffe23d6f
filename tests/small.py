"""The demo's model at a size that compiles in seconds."""

SMALL = ("image_size=16", "patch_size=4", "width=16", "depth=2", "heads=2")
OVERRIDES = [f"--config.model.vision.{word}" for word in SMALL] + [
    "--config.model.text.max_tokens=12",
    "--config.model.text.width=16",
    "--config.model.text.heads=2",
    "--config.model.text.depth=1",
    "--config.model.pixel_decoder.width=16",
    "--config.model.pixel_decoder.heads=2",
    "--config.model.embedding_width=16",
    "--config.model.region_width=8",
    "--config.text.max_sentences=4",
    "--config.train.steps=100",
    "--config.optimizer.warmup_steps=0",
]
VOCABULARY = 40
