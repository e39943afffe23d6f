"""A model small enough to compile in seconds, with every objective on, and batches for it."""

import dataclasses

import jax
import numpy as np
import pytest

from msfl_jax import presets
from msfl_jax.config import Config, from_config_dict

VOCAB_SIZE = 61


@pytest.fixture(scope="session")
def config() -> Config:
    """Two layers of width 32 for 32 px images; windowed regions, all objectives, masking and hard negatives."""
    sizes = presets.model(
        presets.vision(32, 2, 2, image_size=32, patch_size=8),
        presets.report(32, 2, 2, max_tokens=16),
        presets.pixel_decoder(16, 1, 2),
        embedding=32,
        region=16,
    )
    sizes.vision.cls_token = False
    sizes.scan_layers = False
    sizes.compute_dtype = "float32"
    values = presets.pretraining("tiny", sizes)
    values.text.max_sentences = 4
    values.regions.layer = 1
    values.regions.window_radius = 1
    values.regions.projection = "own"
    values.objective.instance_matching.ramp = (0.0, 0.1)
    values.data.batch_size = 8
    values.optimizer.peak_rate = 3e-3
    values.optimizer.warmup_steps = 0
    values.train.steps = 40
    values.train.log_every = 1
    values.train.checkpoint_every = 10
    return from_config_dict(values)


@pytest.fixture(scope="session")
def changed():
    """A configuration with dotted keys replaced."""

    def change(config, **keys):
        for key, value in keys.items():
            section, name = key.split("__")
            part = dataclasses.replace(getattr(config, section), **{name: value})
            config = dataclasses.replace(config, **{section: part})
        return config

    return change


@pytest.fixture(scope="session")
def random_batch():
    """A batch of noise images and reports of two sentences: a function of its number."""

    def make(number: int, size: int = 8) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(number)
        token_ids = rng.integers(6, VOCAB_SIZE, (size, 16)).astype(np.int32)
        sentence_ids = np.repeat(np.array([[1, 2]], np.int32), 8, axis=1).repeat(size, axis=0)
        length = rng.integers(8, 16, size)
        padding = np.arange(16) >= length[:, None]
        return {
            "image": rng.integers(0, 256, (size, 32, 32, 1)).astype(np.uint8),
            "token_ids": np.where(padding, 0, token_ids),
            "sentence_ids": np.where(padding, 0, sentence_ids),
            "study_key": rng.integers(0, size - 1, size).astype(np.uint32),
        }

    return make


@pytest.fixture(scope="session")
def mesh_of():
    """A mesh of the given shape over as many of the eight virtual devices as it needs."""
    from msfl_jax.config import MeshConfig
    from msfl_jax.parallel.mesh import make_mesh

    def make(data: int, fsdp: int = 1, tensor: int = 1):
        return make_mesh(MeshConfig(data, fsdp, tensor), devices=jax.devices()[: data * fsdp * tensor])

    return make
