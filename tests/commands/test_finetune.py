"""The sweep: one run per fraction, seed and initialisation, and what is finished is not run again."""

import dataclasses
import json
import re
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.errors import CheckpointError, UserError
from msfl_jax.commands import finetune, segment
from msfl_jax.config import to_dict
from msfl_jax.config_files import load_config
from msfl_jax.metrics import Interval
from msfl_jax.parallel import distributed
from msfl_jax.results import pooling
from msfl_jax.tasks import leaks
from msfl_jax.tasks.classification import variant
from msfl_jax.tasks.finding_result import Predictions
from msfl_jax.tasks.outcome import Outcome, load_outcome, load_outcomes, save_outcome
from msfl_jax.tasks.run import CONFIG_FILE, Run, describe_start
from msfl_jax.train.checkpoint import Checkpoints
from msfl_jax.train.state import TrainState


def pretrained(step, seed=0):
    """A pretraining run with what a sweep reads of it, and no more."""
    run = object.__new__(Run)
    vars(run).update(config=dataclasses.replace(load_config("demo"), seed=seed), step=step)
    return run


@pytest.fixture
def calls(monkeypatch):
    """Runs that were made: (variant, caveats) each; nothing is trained."""
    made = []

    def train(config, workdir, run, *, caveats=(), progress=True, replicates=2000):
        name = variant(config)
        made.append((name, caveats))
        options = {"init": config.encoder.init, "mode": config.mode, "fraction": config.data.fraction}
        options |= {"seed": config.seed, "findings_in_mean": 1}
        value = 0.5 + config.data.fraction / 1000 + (config.encoder.init == "pretrained") / 10
        metrics = {"mean_auc": Interval(value, value, value)}
        outcome = Outcome("classification", "nih", "test", "h", name, options, 1, 20, 9, metrics, {}, caveats)
        save_outcome(outcome, workdir)
        (workdir / CONFIG_FILE).write_text(json.dumps(to_dict(config)))
        with Checkpoints(workdir, keep=1) as checkpoints:
            state = TrainState(jnp.int32(1), {"w": jnp.ones(1)}, {"m": jnp.ones(1)}, jnp.int32(0))
            checkpoints.save(state, 1, {"init": describe_start(run, config.encoder.init)})
        return outcome

    monkeypatch.setattr(finetune, "finetune_classification", train)
    monkeypatch.setattr(finetune, "open_run", lambda run: pretrained(7))
    monkeypatch.setattr(
        finetune, "describe_fractions", lambda directory, fractions, seeds, subsets: f"{subsets}, {fractions} {seeds}"
    )
    monkeypatch.setattr(finetune, "identify_split", lambda directory, split: ("nih", "h"))
    monkeypatch.setattr(leaks, "leak_caveats", lambda *args, **options: ("2 patients are shared",))
    monkeypatch.setattr(
        leaks, "read_manifest", lambda directory: SimpleNamespace(caveats=("splits overlap (allowed)",))
    )
    return made


def sweep(tmp_path, name="finetune_nih", **changes):
    options = {"fractions": (1, 10), "seeds": 2, "inits": ("pretrained", "random")} | changes
    return finetune.run_sweep(name, [], tmp_path / "sweep", tmp_path, tmp_path / "build", **options)


def test_every_cell_is_run_once_and_a_second_sweep_runs_only_what_is_new(calls, tmp_path):
    text = sweep(tmp_path)
    assert len(calls) == len({name for name, _ in calls}) == 8
    assert "0.601 ± 0.000 (2 seeds)" in text
    assert text.startswith("mean AUC over 2 seeds with its 95 % interval over patients, nih, test; mean of 1 finding\n")
    assert "images  published, (1, 10) range(0, 2)\n" in text
    assert (tmp_path / "sweep" / "label_efficiency.png").is_file()
    calls.clear()
    sweep(tmp_path, seeds=3)
    expected = [f"{init}-full-{fraction}-seed2" for fraction in (1, 10) for init in ("pretrained", "random")]
    assert [name for name, _ in calls] == expected


def test_every_mean_has_its_interval_and_every_percentage_its_gain_over_random_weights(calls, tmp_path, monkeypatch):
    truth, train = np.asarray([[1], [0]] * 10, np.float32), finetune.finetune_classification

    def train_and_score(config, workdir, run, **options):
        outcome = train(config, workdir, run, **options)
        strength = 3.0 if config.encoder.init == "pretrained" else 0.0
        noise = np.random.default_rng([config.data.fraction, config.seed]).normal(size=truth.shape)
        scored = Predictions(("Edema",), strength * truth + noise, truth, np.arange(20))
        scored.save(outcome.predictions(workdir))
        return outcome

    monkeypatch.setattr(finetune, "finetune_classification", train_and_score)
    monkeypatch.setattr(pooling, "REPLICATES", 100)
    lines = sweep(tmp_path).splitlines()
    rows = [line for line in lines if line.startswith(("pretrained, full", "random, full"))]
    assert [len(re.findall(r"\(2 seeds, 0\.\d{3} - [01]\.\d{3}\)", row)) for row in rows] == [2, 2]
    gains = [line for line in lines if line.startswith("pretrained - random, full, ")]
    assert [line.split(":")[0].split(", ")[-1] for line in gains] == ["1 %", "10 %"]
    assert all("which leaves out 0 (2 seeds, 20 images of 9 patients, paired)" in line for line in gains)


def test_the_line_about_the_images_is_of_the_subsets_that_were_asked_for(calls, tmp_path):
    folders = (tmp_path / "sweep", tmp_path, tmp_path / "build")
    text = finetune.run_sweep("finetune_nih", ["--config.data.subsets=drawn"], *folders, fractions=(1, 10), seeds=1)
    assert "images  drawn, (1, 10) range(0, 1)\n" in text


def test_a_result_on_another_build_does_not_finish_a_cell(calls, tmp_path):
    one = {"seeds": 1, "fractions": (1,), "inits": ("random",)}
    sweep(tmp_path / "first", **one)
    ((_, own),) = load_outcomes((tmp_path / "first" / "sweep").glob("random-*"))
    zero = {"mean_auc": Interval(0.0, 0.0, 0.0)}
    elsewhere = dataclasses.replace(own, dataset="chexpert", split_hash="c", metrics=zero)
    save_outcome(elsewhere, tmp_path / "sweep" / own.variant)  # as of `msfl eval classification`
    calls.clear()
    assert "0.501" in sweep(tmp_path, **one)
    assert len(calls) == 1
    sweep(tmp_path, **one)
    assert len(calls) == 1


def test_imported_weights_are_a_third_line_with_a_caveat_of_their_own(calls, tmp_path, monkeypatch):
    def start(run, encoder):
        if encoder.init != "imported":
            return run
        assert encoder.weights == "mae.pth"
        vars(other := pretrained(7)).update(weights="5ha", caveats=("started from imported weights",))
        return other

    monkeypatch.setattr(finetune, "with_imported_encoder", start)
    folders = (tmp_path / "sweep", tmp_path, tmp_path / "build")
    options = {"fractions": (1,), "seeds": 1, "inits": ("pretrained", "random", "imported")}
    text = finetune.run_sweep("finetune_nih", ["--config.encoder.weights=mae.pth"], *folders, **options)
    assert "imported, full" in text
    assert dict(calls)["imported-full-1-seed0"] == ("started from imported weights", "splits overlap (allowed)")
    with pytest.raises(UserError, match=r"encoder\.weights"):
        sweep(tmp_path, inits=("imported",))


def test_a_sweep_of_another_recipe_does_not_take_what_is_finished(calls, tmp_path):
    sweep(tmp_path, seeds=1)
    with pytest.raises(CheckpointError, match=r"another configuration: .*peak_rate"):
        sweep(tmp_path, seeds=1, name="finetune_nih:mrm")


def test_a_sweep_on_another_encoder_does_not_take_what_is_finished(calls, tmp_path, monkeypatch):
    sweep(tmp_path, seeds=1, fractions=(1,))
    monkeypatch.setattr(finetune, "open_run", lambda run: pretrained(8))
    with pytest.raises(CheckpointError, match=r"begun with encoder .*'step': 7}; this one is .*'step': 8}: use a new"):
        sweep(tmp_path, seeds=1, fractions=(1,))
    calls.clear()
    sweep(tmp_path, seeds=1, fractions=(1,), inits=("random",))  # which takes nothing of the run but its sizes
    assert calls == []
    monkeypatch.setattr(finetune, "open_run", lambda run: pretrained(8, seed=5))
    with pytest.raises(CheckpointError, match="begun with encoder"):
        sweep(tmp_path, seeds=1, fractions=(1,), inits=("random",))


def test_what_pretraining_saw_is_said_of_pretrained_runs_only(calls, tmp_path):
    text = sweep(tmp_path, seeds=1)
    assert {caveats for name, caveats in calls if name.startswith("pretrained")} == {("2 patients are shared",)}
    assert {caveats for name, caveats in calls if name.startswith("random")} == {("splits overlap (allowed)",)}
    assert text.count("caveat  2 patients are shared") == 1


@pytest.mark.parametrize("lead", [True, False])
def test_processes_are_connected_before_a_device_is_touched_and_the_lead_alone_speaks(
    calls, tmp_path, monkeypatch, capsys, lead
):
    order = []
    monkeypatch.setattr(distributed, "start", lambda: order.append("start"))
    monkeypatch.setattr(distributed, "is_lead", lambda: lead)
    monkeypatch.setattr(distributed, "barrier", lambda name: None)
    for module in (finetune, segment):
        monkeypatch.setattr(module, "open_run", lambda run: order.append("open") or pretrained(7))
    text = sweep(tmp_path, seeds=1)
    config = finetune.sweep_config("finetune_nih", [], 1, 0, "random")
    table = finetune.run_classification(config, tmp_path / "one", tmp_path, tmp_path / "build")
    monkeypatch.setattr(segment, "finetuning_caveats", lambda *args, **options: ())
    result = SimpleNamespace(outcome=load_outcome(next(tmp_path.glob("**/results/*.json"))))
    monkeypatch.setattr(segment, "finetune_segmentation", lambda *args, **options: result)
    monkeypatch.setattr(segment, "open_segmentation", lambda workdir: None)
    for name in ("save_mask_overlays", "segmentation_table"):
        monkeypatch.setattr(segment, name, lambda *args, **options: "Dice")
    masks = segment.segmentation_report(tmp_path, tmp_path, tmp_path / "masks", config="segment_siim")
    assert order == ["start", "open"] * 3
    said = [bool(words) for words in (text, table, masks, capsys.readouterr().out)]
    assert said == [lead] * 4


def test_the_build_of_the_command_line_is_the_configurations(tmp_path):
    config = finetune.with_data(finetune.sweep_config("finetune_nih", [], 1, 0, "random"), tmp_path)
    assert config.data.directory == str(tmp_path)
    assert (
        dataclasses.replace(config.data, directory="") == finetune.sweep_config("finetune_nih", [], 1, 0, "random").data
    )
