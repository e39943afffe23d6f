"""The smallest real model, and a run directory of it as training leaves one."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp

from input_pipeline.tokenizer import ReportTokenizer
from msfl_jax import presets
from msfl_jax.config import Config, MeshConfig, from_config_dict, to_dict
from msfl_jax.model import Model
from msfl_jax.parallel.mesh import make_mesh
from msfl_jax.train.checkpoint import Checkpoints
from msfl_jax.train.optimizer import make_optimizer
from msfl_jax.train.state import create_state


def tiny() -> Config:
    """32 px, 4 x 4 patches."""
    config = presets.pretraining("tiny", presets.vit_tiny())
    config.model.vision.image_size = 32
    config.model.vision.width, config.model.vision.depth = 16, 1
    config.model.text.width, config.model.text.depth, config.model.text.max_tokens = 16, 1, 24
    config.model.pixel_decoder.width = 16
    config.model.embedding_width, config.model.region_width, config.model.matching_width = 16, 8, 8
    config.regions.projection = "own"
    config.text.max_sentences = 4
    config.data.batch_size = 8
    return from_config_dict(config)


def write_run(workdir: Path, config: Config, tokenizer: ReportTokenizer, *, step: int) -> None:
    """A checkpoint of parameters that were never trained, with the configuration and the tokenizer beside it."""
    shutil.copytree(tokenizer.directory, workdir / "tokenizer")
    (workdir / "config.json").write_text(json.dumps(to_dict(config)))
    model = Model.create(config, vocab_size=tokenizer.vocab_size)
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    state = create_state(model, make_optimizer(config.optimizer, config.train.steps), 0, mesh)
    state = dataclasses.replace(state, step=jnp.int32(step))
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(state, step, {"tokenizer_hash": tokenizer.hash})
