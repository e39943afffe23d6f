"""Every shipped configuration resolves to the shapes of its training step; nothing is computed."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msfl_jax.config_files import load_config, shipped_configs
from msfl_jax.model import Model
from msfl_jax.objective import Weights
from msfl_jax.train.optimizer import make_optimizer
from msfl_jax.train.state import TrainState
from msfl_jax.train.step import train_step

ROOT = Path(__file__).parents[1]
SOURCE = re.compile(r"# \((paper|ours|MaCo|MRM|GLoRIA|AFLoc|BioViL|MAE|ViT|BERT|ALBEF|CLIP|MIMIC-CXR)\) ?")
VOCABULARY = 30000
# Parameters in millions, from the papers' formulas: blocks of 12 width^2, embeddings, heads.
MILLIONS = {"demo": (4.9, 5.2), "mimic_vit_s16": (72, 74), "mimic_vit_b16": (175, 190), "mimic_vit_l16": (442, 444)}


def test_every_pretraining_configuration_is_tested_here():
    assert {name for name in shipped_configs() if not name.startswith("finetune_")} == set(MILLIONS)


@pytest.mark.parametrize("name", sorted(MILLIONS))
def test_a_configuration_resolves_to_the_shapes_of_its_step(name):
    config = load_config(name)
    model = Model.create(config, vocab_size=VOCABULARY)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    size, text, rows = config.model.vision.image_size, config.model.text.max_tokens, config.data.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((rows, size, size, 1), jnp.uint8),
        "token_ids": jax.ShapeDtypeStruct((rows, text), jnp.int32),
        "sentence_ids": jax.ShapeDtypeStruct((rows, text), jnp.int32),
        "study_key": jax.ShapeDtypeStruct((rows,), jnp.uint32),
    }

    def first_step(batch):
        params = model.init(jax.random.key(0))
        state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))
        weights = Weights.create(config)
        state, metrics = train_step(state, batch, model=model, weights=weights, optimizer=optimizer, seed=0)
        return state.params, metrics.compute()

    params, metrics = jax.eval_shape(first_step, batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert metrics["loss__total"].shape == ()
    millions = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) / 1e6
    low, high = MILLIONS[name]
    assert low < millions < high


@pytest.mark.parametrize(
    "file",
    [*sorted((ROOT / "configs").glob("*.py")), *sorted((ROOT / "msfl_jax").glob("*presets.py"))],
    ids=lambda f: f.name,
)
def test_every_field_that_is_set_has_a_comment_with_its_source(file):
    lines = file.read_text().splitlines()
    unsourced = []
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        section = isinstance(node.value, ast.Call) and not ast.unparse(node.value).startswith("list")
        if not section and not SOURCE.search(" ".join(lines[node.lineno - 1 : node.end_lineno])):
            unsourced.append(f"{file.name}:{node.lineno}: {ast.unparse(node)}")
    assert not unsourced
