"""The real step compiled for eight virtual devices: what its program says against formulas."""

import dataclasses
import math

import jax
import pytest

from input_pipeline.errors import UserError
from msfl_jax.model import Model
from msfl_jax.planner.cache import read_text
from msfl_jax.planner.compiler import compile_step
from msfl_jax.planner.costs import costs_of
from msfl_jax.planner.formulas import Parameters, sent_by_formula
from msfl_jax.train.flops import flops_per_pair

VOCABULARY = 40


@pytest.fixture(scope="module")
def compiled(config, tmp_path_factory):
    """A step on a mesh: what was measured, what its program costs, and its configuration."""
    folder = tmp_path_factory.mktemp("programs")

    def make(data=1, fsdp=1, tensor=1, **objective):
        mesh = dataclasses.replace(config.mesh, data=data, fsdp=fsdp, tensor=tensor)
        changed = dataclasses.replace(config, mesh=mesh, objective=dataclasses.replace(config.objective, **objective))
        file = folder / f"{len(list(folder.iterdir()))}.hlo.gz"
        devices = jax.devices()[: data * fsdp * tensor]
        found = compile_step(changed, VOCABULARY, devices, platform="cpu", hlo=file)
        return found, costs_of(read_text(file)), changed

    return make


@pytest.fixture(scope="module")
def on_eight(compiled):
    return compiled(data=8)


def test_parameters_moments_and_batch_are_counted_as_they_lie(on_eight, config):
    found = on_eight[0]
    assert found.mesh == (8, 1, 1)
    assert found.parameters == 4 * found.count
    assert 2 * found.parameters < found.optimizer < 2 * found.parameters + 64
    assert found.split == 0
    rows, tokens, side = 32 // 8, config.model.text.max_tokens, config.model.vision.image_size
    assert found.batch == rows * (side**2 + 2 * 4 * tokens + 4)
    state = found.parameters + found.optimizer + found.batch
    assert state <= found.arguments < 1.02 * state + 1024
    assert found.aliased == pytest.approx(found.parameters + found.optimizer, rel=0.02)
    assert found.peak > found.arguments


def test_gradients_and_sentences_are_all_of_the_formula_in_the_program(on_eight):
    """The other way round there is more: what masks, negatives and matching move, of which a model this small has much."""
    found, costs, config = on_eight
    formula = sent_by_formula(config, found.mesh, Parameters(found.count, found.split))
    assert costs.unstated == 0
    assert costs.sent("all-reduce") >= 0.98 * formula["all-reduce"]
    assert costs.sent("all-gather") >= 0.98 * formula["all-gather"]


def test_gradients_alone_are_the_formula_to_a_tenth(compiled, config):
    """Without losses that look at the whole batch, the heads that serve these have no gradients to exchange."""
    found, costs, _ = compiled(data=8, lambda_global=0.0, lambda_local=0.0, lambda_instance=0.0)
    heads = jax.eval_shape(Model.create(config, vocab_size=VOCABULARY).init, jax.random.key(0))["heads"]
    idle = sum(math.prod(leaf.shape) for name in heads if name != "language" for leaf in jax.tree.leaves(heads[name]))
    alone = sent_by_formula(config, found.mesh, Parameters(found.count - idle, 0))
    columns = 2 * 2 * 4 * config.data.batch_size * 7 / 8
    assert costs.sent("all-reduce") == pytest.approx(alone["all-reduce"] - columns, rel=0.1)


def test_one_device_sends_nothing_and_multiplies_what_the_formula_says(compiled):
    found, costs, config = compiled()
    assert not costs.transfers
    formula = flops_per_pair(config, VOCABULARY) * config.data.batch_size
    assert costs.flops == pytest.approx(formula, rel=0.25)
    assert costs.moved > found.arguments


def test_a_mesh_that_splits_heads_has_no_formula(config):
    assert sent_by_formula(config, (2, 2, 2), Parameters(1000, 0)) is None


def test_sentences_around_a_ring_are_permutations_in_program_and_formula(compiled, config):
    local = dataclasses.replace(config.objective.local_alignment, exchange="ring")
    # Without matching, whose three kinds of pairs are laid over the devices anew.
    found, costs, changed = compiled(data=8, local_alignment=local, lambda_instance=0.0)
    formula = sent_by_formula(changed, found.mesh, Parameters(found.count, 0))
    assert costs.sent("collective-permute") == pytest.approx(formula["collective-permute"], rel=0.1)


def test_a_batch_that_does_not_split_is_refused(compiled, config):
    with pytest.raises(UserError, match="multiple of 5"):
        compiled(data=5)
