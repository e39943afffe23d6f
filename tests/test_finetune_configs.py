"""Fine-tuning configurations: the siblings' table, refusals in one line, and the shapes of a step of each."""

import functools

import jax
import jax.numpy as jnp
import pytest

from input_pipeline.datasets.rsna_pneumonia import DETAILED_LABELS
from input_pipeline.errors import UserError
from msfl_jax.classifier import Classifier
from msfl_jax.config import to_dict
from msfl_jax.config_files import load_config, shipped_configs
from msfl_jax.finetune_config import finetune_config
from msfl_jax.tasks.classification import classification_loss, make_classifier
from msfl_jax.tasks.classifier_scores import chosen_findings
from msfl_jax.train.adaptation import adaptation_step
from msfl_jax.train.adaptation_optimizer import finetuning_optimizer
from msfl_jax.train.state import TrainState

FINDINGS = {"chexpert": 5, "nih": 14, "rsna": 1, "demo": 8}
# Steps, warm-up, rate at 1, 10 and 100 % of the labels, as the siblings' scripts have them.
MACO = {
    "chexpert": [(2000, 50, 8e-4), (60_000, 1500, 1e-4), (200_000, 15_000, 1e-5)],
    "nih": [(2000, 50, 8.5e-3), (30_000, 500, 3e-3), (200_000, 5000, 3e-3)],
    "rsna": [(2000, 50, 6.5e-3), (10_000, 200, 6e-4), (50_000, 2000, 5e-4)],
}
MRM = {
    "chexpert": [(2000, 150, 3e-3), (60_000, 1500, 5e-4), (200_000, 15_000, 5e-4)],
    "nih": [(3000, 50, 3e-2), (30_000, 500, 3e-3), (200_000, 5000, 3e-3)],
    "rsna": [(2000, 50, 3e-3), (10_000, 200, 5e-4), (50_000, 2000, 5e-4)],
}


def load(name, *overrides):
    return load_config(f"finetune_{name}", overrides, make=finetune_config)


@pytest.mark.parametrize("options", ["", ",mrm"])
@pytest.mark.parametrize("name", ["chexpert", "nih", "rsna"])
def test_steps_warm_up_and_rate_are_the_siblings(name, options):
    for fraction, expected in zip((1, 10, 100), (MRM if options else MACO)[name], strict=True):
        config = load(f"{name}:{fraction}{options}")
        assert (config.train.steps, config.optimizer.warmup_steps, config.optimizer.peak_rate) == expected
        assert (config.data.fraction, config.data.batch_size) == (fraction, 96)
        assert (config.optimizer.kind, config.optimizer.momentum, config.optimizer.clip_norm) == ("sgd", 0.9, 1.0)
        assert (config.encoder.drop_path, config.encoder.pool, config.encoder.final_norm) == (0.1, "mean", False)


def test_all_labels_are_the_default_and_options_can_be_combined():
    assert load("nih") == load("nih:100")
    config = load("nih:1,probe,scratch")
    assert (config.mode, config.encoder.init, config.encoder.final_norm) == ("probe", "random", True)


def test_of_rsna_the_papers_one_label_is_learned_whatever_other_labels_the_build_has():
    assert chosen_findings(load("rsna").data.findings, ("Pneumonia", *DETAILED_LABELS)) == ("Pneumonia",)


def test_a_run_from_before_subsets_could_be_chosen_took_the_published_ones():
    older = to_dict(load("nih"))
    del older["data"]["subsets"]
    assert finetune_config(older) == load("nih")
    assert load("nih", "--config.data.subsets=drawn") != load("nih")


def test_a_random_encoder_learns_at_one_rate():
    """Layer decay keeps what the first layers have learned; a random encoder with it would be a baseline with a handicap."""
    for name in FINDINGS:
        for fraction in (1, 10, 100):
            assert load(f"{name}:{fraction},scratch").optimizer.layer_decay == 1.0
    assert [load(f"demo:{fraction}").optimizer.layer_decay for fraction in (1, 10, 100)] == [0.65, 0.65, 1.0]


def test_every_fine_tuning_configuration_is_tested_here_and_survives_json():
    shipped = {name for name in shipped_configs() if name.startswith("finetune_")}
    assert shipped == {f"finetune_{name}" for name in FINDINGS}
    for name in FINDINGS:
        config = load(name)
        assert finetune_config(to_dict(config)) == config


@pytest.mark.parametrize("words", ["1", "10", "100"])
@pytest.mark.parametrize("name", sorted(FINDINGS))
def test_a_configuration_resolves_to_the_shapes_of_its_step(name, words):
    config = load(f"{name}:{words}")
    pretraining = load_config("demo" if name == "demo" else "mimic_vit_b16")
    classifier = make_classifier(config, pretraining, FINDINGS[name])
    columns, rows, side = tuple(range(FINDINGS[name])), config.data.batch_size, classifier.side
    loss = functools.partial(classification_loss, classifier=classifier, columns=columns, blank=config.data.blank)
    optimizer = finetuning_optimizer(config.optimizer, config.train.steps, depth=pretraining.model.vision.depth)
    batch = {
        "image": jax.ShapeDtypeStruct((rows, side, side, 1), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((rows, 14), jnp.float32),
    }

    def first_step(batch):
        params = classifier.init(jax.random.key(0))
        state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))
        state, metrics = adaptation_step(state, batch, loss=loss, optimizer=optimizer, seed=0)
        return state.params, metrics.compute()

    params, metrics = jax.eval_shape(first_step, batch)
    assert params["head"]["fc"]["bias"].shape == (FINDINGS[name],)
    assert metrics["loss__cross_entropy"].shape == ()
    assert isinstance(classifier, Classifier)


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("nih:2", None, ["unknown argument '2'", "expected some of 1, 10, 100, mrm, probe, scratch"]),
        ("nih:1,10", None, ["2 percentages"]),
        ("nih:1,scrtch", None, ["did you mean 'scratch'"]),
        ("nih", "--config.optimizer.layer_decy=1", ["layer_decy", "did you mean 'optimizer.layer_decay'"]),
        ("nih", "--config.optimizer.layer_decay=1.5", ["optimizer.layer_decay", "from 0.001 to 1"]),
        ("nih", "--config.optimizer.kind=adam", ["expected one of sgd, adamw", "did you mean 'adamw'"]),
        ("nih", "--config.data.fraction=0", ["data.fraction", "at least 1"]),
        ("nih", "--config.data.fraction=101", ["data.fraction", "from 1 to 100"]),
        ("nih", "--config.train.steps=10", ["warmup_steps", "fewer than train.steps, 10"]),
        ("nih", "--config.encoder.drop_path=1.0", ["drop_path", "from 0 to 0.9"]),
        ("nih", "--config.probe.penalty=(1.0, 0.1)", ["probe.penalty", "the smaller one first"]),
        ("nih", "--config.mesh.data=0", ["mesh", "1 or more"]),
        ("nih", "--config.mode=half", ["mode", "expected one of full, probe"]),
        ("nih", "--config.data.subsets=nested", ["data.subsets", "expected one of published, drawn"]),
    ],
)
def test_a_wrong_key_or_value_is_one_line(name, override, words):
    with pytest.raises(UserError) as error:
        load(name, *([override] if override else []))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_fine_tuning_configuration_is_refused_where_a_pretraining_one_is_expected():
    with pytest.raises(UserError, match="unknown key 'encoder'"):
        load_config("finetune_nih")
