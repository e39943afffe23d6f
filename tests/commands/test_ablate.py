"""The ablation: which runs it makes, that finished ones are left alone, that a failed one stops no other, and the whole of it at tiny size."""

import csv
import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import pytest

from input_pipeline.build import build
from input_pipeline.datasets.labelled import SplitPlan
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.datasets.ms_cxr import MsCxr
from input_pipeline.datasets.rsna_pneumonia import RsnaPneumonia
from input_pipeline.datasets.synthetic import synthesize
from input_pipeline.errors import DivergedError, RetryError, UserError
from msfl_jax.commands import ablate, ablation_stages, evaluate, zero_shot
from msfl_jax.commands.ablate import choose_combinations, config_of, run_ablation
from msfl_jax.commands.ablation_caveats import confounders, selection_caveats
from msfl_jax.commands.ablation_stages import Stage
from msfl_jax.config import Config, config_hash
from msfl_jax.config_files import load_config
from msfl_jax.metrics import Interval
from msfl_jax.parallel.mesh import make_mesh
from msfl_jax.results import pooling
from msfl_jax.tasks.outcome import Outcome, identify_split, save_outcome
from msfl_jax.train import adaptation, loop

from ..faults.labelled import write_rsna

CONFIG = """
from ml_collections import ConfigDict
from msfl_jax import presets

def get_config(arg: str = "") -> ConfigDict:
    sizes = presets.model(
        presets.vision(32, 1, 2, image_size=32, patch_size=8),
        presets.report(32, 1, 2, max_tokens=16),
        presets.pixel_decoder(16, 1, 2),
        embedding=32,
        region=16,
    )
    sizes.scan_layers = False
    sizes.compute_dtype = "float32"
    config = presets.pretraining("tiny", sizes)
    presets.select_objectives(config, arg, options=("short",))
    config.text.max_sentences = 4
    config.regions.projection = "own"
    config.data.batch_size = 8
    config.optimizer.warmup_steps = 0
    config.train.steps = 2 if "short" in arg else 3
    config.train.log_every = 1
    config.zero_shot.prompts = "synthetic"
    return config
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A hundred synthetic studies at 64 px: builds `records` and `phrases`, and a configuration for them."""
    folder = tmp_path_factory.mktemp("study")
    raw = folder / "raw"
    synthesize(raw, studies=100, seed=0, size=64, workers=1, progress=False)
    options = {"short_side": 32, "workers": 1, "progress": False}
    build(MimicCxr(raw, raw), folder / "records", **options)
    build(MsCxr(raw, next(raw.glob("MS_CXR_*.csv"))), folder / "phrases", **options)
    (folder / "tiny.py").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def rsna(study):
    """A build in the layout of RSNA Pneumonia as released, which results take for that data set."""
    write_rsna(study / "rsna_raw", 0, "clean")
    source = RsnaPneumonia(study / "rsna_raw", SplitPlan(validation=0.2, test=0.2))
    build(source, study / "rsna", short_side=32, workers=1, progress=False)
    return study / "rsna"


@pytest.fixture
def call(study, tmp_path, monkeypatch):
    """Runs the ablation of the study in the test's own folder, on one device and with few replicates."""
    one = functools.partial(make_mesh, devices=jax.devices()[:1])
    for module in (loop, adaptation):
        monkeypatch.setattr(module, "make_mesh", one)
    for module in (evaluate, zero_shot, pooling):
        monkeypatch.setattr(module, "REPLICATES", 20)
    # Forgetting what was compiled saves memory in long ablations, and only costs time here.
    monkeypatch.setattr(ablation_stages.jax, "clear_caches", lambda: None)
    monkeypatch.setattr(
        zero_shot, "save_reliability", lambda result, path: None
    )  # a figure per run that nobody looks at

    def run(**changes) -> int:
        options = {"config": f"{study / 'tiny.py'}:short", "seeds": 2, "objectives": "global;global,local"}
        options |= {"data": study / "records", "phrases": study / "phrases"}
        return run_ablation(tmp_path / "ablation", **options | changes)

    return run


def tiny(study) -> Config:
    return load_config(str(study / "tiny.py"))


@pytest.fixture
def fake_stages(monkeypatch):
    """Stages that only note who called them; what is listed in `broken` raises instead."""
    calls: list[str] = []
    broken: dict[str, Exception] = {}

    def pretraining(config: Config, workdir: Path, builds: ablation_stages.Builds) -> None:
        calls.append(workdir.name)
        if error := broken.get(workdir.name):
            raise error
        workdir.mkdir(parents=True, exist_ok=True)
        weights = {f"lambda_{name}": getattr(config.objective, f"lambda_{name}") for name in ("global", "local")}
        (workdir / "config.json").write_text(
            json.dumps({"name": config.name, "seed": config.seed, "objective": weights})
        )

    def evaluation(config: Config, workdir: Path, builds: ablation_stages.Builds) -> None:
        metrics = {"mean_auc": Interval(0.5 + config.seed / 10, 0.4, 0.6)}
        other = {"mean_auc": Interval(0.99, 0.9, 1.0)}
        members = identify_split(builds.records, builds.split)[1]
        asked = builds.wanted(config)["zero_shot"].options
        for variant, options, value in (("v", asked, metrics), ("w", {**asked, "prompts_hash": "other"}, other)):
            one = Outcome("zero_shot", "mimic_cxr", builds.split, members, variant, options, 2, 9, 8, value)
            save_outcome(one, workdir)

    stages = {"pretraining": Stage(pretraining, lambda config, builds: [config_hash(config)])}
    stages |= {"evaluation": Stage(evaluation, lambda config, builds: [builds.split])}
    monkeypatch.setattr(ablation_stages, "STAGES", stages)
    return calls, broken


def snapshot(folder):
    """Time of the last change of every file."""
    return {path: os.stat(path).st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_objectives_are_replaced_and_other_words_stay():
    assert config_of("configs/demo.py:short", "global,local") == "configs/demo.py:global,local,short"
    assert config_of("demo:global,instance,gloria", "global") == "demo:global,gloria"
    assert config_of("mimic_vit_s16", "global") == "mimic_vit_s16:global"


def test_combinations_are_those_asked_for_in_the_order_of_the_table():
    assert choose_combinations("local, global ; global;global") == ["global", "global,local"]
    assert len(choose_combinations()) == 8
    for wrong in ("local", "global,locl", "global;instance"):
        with pytest.raises(UserError, match="no combination"):
            choose_combinations(wrong)


def test_runs_of_a_seed_differ_in_their_objectives_alone(study, fake_stages, call, monkeypatch):
    seen = []
    monkeypatch.setattr(ablate, "run_stages", lambda config, *rest: seen.append(config) or 1.0)
    assert call() == 0
    assert [config.seed for config in seen] == [0, 0, 1, 1]
    assert [config.objective.lambda_local for config in seen] == [0.0, 1.0, 0.0, 1.0]
    assert len({(config.data.directory, config.data.tokenizer, config.data.batch_size) for config in seen}) == 1
    assert all(config.train.steps == 2 for config in seen), "the argument's other words are kept"


def test_a_failed_run_is_named_and_the_others_go_on(fake_stages, call, tmp_path, capsys):
    calls, broken = fake_stages
    broken["global-local-seed0"] = DivergedError("step 2: no finite loss")
    broken["global-seed1"] = RuntimeError("out of\nmemory")
    assert call() == 1
    assert calls == ["global-seed0", "global-local-seed0", "global-seed1", "global-local-seed1"]
    said = capsys.readouterr()
    assert "failed    global + local, seed 0: step 2: no finite loss" in said.out
    assert "failed    global, seed 1: RuntimeError: out of memory" in said.out
    summary = json.loads((tmp_path / "ablation" / "ablation.json").read_text())
    assert sorted(summary["failed"]) == ["global + local, seed 0", "global, seed 1"]
    assert [(row["objectives"], row["seeds"]) for row in summary["rows"]] == [("global", [0]), ("global,local", [1])]

    broken.clear()
    calls.clear()
    assert call() == 0
    assert calls == ["global-local-seed0", "global-seed1"], "only what had failed"
    assert json.loads((tmp_path / "ablation" / "ablation.json").read_text())["failed"] == {}


def test_one_that_is_asked_to_stop_stops_the_ablation(fake_stages, call):
    calls, broken = fake_stages
    broken["global-local-seed0"] = RetryError("asked to stop")
    with pytest.raises(RetryError):
        call()
    assert calls == ["global-seed0", "global-local-seed0"]


def test_other_steps_or_images_are_no_finished_run(fake_stages, call, study, tmp_path):
    calls, _ = fake_stages
    folder = tmp_path / "ablation" / "runs" / "global-seed0" / "results"

    def again(**changes) -> bool:
        """Whether the run was evaluated again."""
        before = snapshot(folder)
        call(seeds=1, objectives="global", **changes)
        return snapshot(folder) != before

    call(seeds=1, objectives="global")
    assert not again()
    assert again(split="validate")
    assert calls == ["global-seed0"], "the same training"
    again(split="validate", config=str(study / "tiny.py"))
    assert calls == ["global-seed0"] * 2


def test_the_numbers_are_of_the_split_and_prompts_asked_for_whatever_else_was_measured(fake_stages, call, tmp_path):
    file = tmp_path / "ablation" / "ablation.json"
    call(seeds=1, objectives="global", split="validate")
    call(seeds=1, objectives="global", split="test")
    table = (tmp_path / "ablation" / "table5.txt").read_text()
    assert "mimic_cxr test" in table
    assert "mimic_cxr validate" not in table
    assert json.loads(file.read_text())["rows"][0]["measures"][1]["values"] == pytest.approx([50.0])


def test_fine_tuning_is_measured_on_the_split_of_the_ablation_and_each_split_has_a_folder(study, tmp_path):
    builds = ablation_stages.Builds(study / "records", None, "validate", study / "records", "finetune_demo:1")
    settings = builds.finetuning(3)
    assert (settings.data.test, settings.seed) == ("validate", 3)
    assert builds.finetuned(tmp_path) == tmp_path / "finetune-validate"
    (classified,) = [one for task, one in builds.wanted(tiny(study)).items() if task == "classification"]
    assert classified.split_hash == identify_split(study / "records", "validate")[1]
    assert classified.options["init"] == "pretrained"


def test_zero_shot_and_fine_tuning_are_of_the_build_with_labels(study, rsna, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(ablation_stages, "zero_shot_report", lambda run, directory, **_: seen.append(directory))
    monkeypatch.setattr(ablation_stages, "run_classification", lambda *given: seen.append(given[-1]))
    builds = ablation_stages.Builds(study / "records", None, "test", rsna, "finetune_rsna:1")
    for name in ("evaluation", "fine_tuning"):
        ablation_stages.STAGES[name].run(tiny(study), tmp_path, builds)
    assert len(seen) == 2
    assert set(seen) == {rsna}
    assert {one.split_hash for one in builds.wanted(tiny(study)).values()} == {identify_split(rsna, "test")[1]}

    def keys(builds):
        return {name: stage.key(tiny(study), builds) for name, stage in ablation_stages.STAGES.items()}

    own = dataclasses.replace(builds, labels=None)
    assert {name for name, key in keys(builds).items() if key != keys(own)[name]} == {"evaluation", "fine_tuning"}
    assert keys(own) == keys(dataclasses.replace(builds, labels=study / "records")), "what was done before is done"


def test_labels_are_classified_zero_shot_where_nothing_is_fine_tuned(study, rsna, fake_stages, call, monkeypatch):
    seen = []
    monkeypatch.setattr(ablate, "run_stages", lambda config, workdir, builds: seen.append(builds) or 1.0)
    call(labels=rsna, seeds=1, objectives="global")
    call(seeds=1, objectives="global")
    assert [(one.classified, one.finetune) for one in seen] == [(rsna, ""), (study / "records", "")]


def test_with_labels_of_rsna_zero_shot_stands_beside_the_papers(call, rsna, tmp_path):
    assert call(seeds=1, objectives="global,local", phrases=None, labels=rsna) == 0
    text = (tmp_path / "ablation" / "table5.csv").read_text()
    cells = [row for row in csv.DictReader(text.splitlines()) if row["column"] == "zero-shot"]
    paper = {row["row"]: row["text"] for row in cells if row["kind"] == "paper"}
    assert len(paper) == 7
    assert paper["global + local, the paper's"] == "89.5"
    (ours,) = (row for row in cells if row["kind"] == "ours" and row["value"])
    assert ours["row"].startswith("global + local, ours")
    assert (ours["dataset"], ours["split_hash"]) == identify_split(rsna, "test")
    assert ours["dataset"] == "rsna_pneumonia"
    assert ours["records"] == "10"


def demo_runs(*overrides):
    """The demo's configurations of four combinations."""
    named = ("global", "global,local", "global,instance", "global,local,modality")
    return [(one, load_config(config_of("demo", one), list(overrides))) for one in named]


def test_what_else_differs_between_rows_is_said_and_can_be_made_the_same(study):
    builds = ablation_stages.Builds(study / "records", study / "phrases", "test")
    said = confounders(demo_runs(), builds)
    assert any(
        "regions.window_radius is 1 with local, 0 without. --config.regions.window_radius=VALUE" in one for one in said
    )
    assert any("regions.layer is 1 with local" in one and "--config.regions.layer=VALUE" in one for one in said)
    assert any(one.startswith("Zero-shot is of rule cosine in all rows") for one in said)
    assert any("space of global alignment" in one for one in said)

    alike = demo_runs("--config.regions.layer=1", "--config.regions.window_radius=1")
    assert len({config.model for _, config in alike}) == len({config.regions for _, config in alike}) == 1
    assert not any("regions." in one for one in confounders(alike, builds))


def test_all_rows_are_scored_with_one_rule_and_the_runs_own_stands_beside_it(study, tmp_path, monkeypatch):
    rules = []
    monkeypatch.setattr(ablation_stages, "zero_shot_report", lambda *_, rule, **__: rules.append(rule))
    builds = ablation_stages.Builds(study / "records", None, "test")
    for _, config in demo_runs()[:2]:
        ablation_stages.STAGES["evaluation"].run(config, tmp_path, builds)
    assert rules == ["cosine", "cosine", "gloria"]
    assert {builds.wanted(config)["zero_shot"].options["rule"] for _, config in demo_runs()} == {"cosine"}


def test_a_checkpoint_that_was_chosen_on_the_measured_split_is_said(study):
    builds = ablation_stages.Builds(study / "records", None, "validate", study / "records", "finetune_demo:1")
    (said,) = selection_caveats(builds)
    assert "chosen on 'validate'" in said
    assert selection_caveats(dataclasses.replace(builds, split="test")) == []


def test_phrases_need_a_build_and_a_wrong_configuration_is_refused_before_any_work(study, call, tmp_path, fake_stages):
    with pytest.raises(UserError, match="--phrases needs --data"):
        call(data=None)
    with pytest.raises(UserError, match="unknown key"):
        call(overrides=["--config.train.stepz=3"])
    assert not (tmp_path / "ablation").exists()
    assert fake_stages[0] == []


def test_an_ablation_that_was_killed_goes_on_and_leaves_finished_runs_alone(call, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "ablation"
    stages = ablation_stages.STAGES

    def kill_second(config: Config, workdir: Path, builds: ablation_stages.Builds) -> None:
        if workdir.name == "global-local-seed0":
            raise KeyboardInterrupt
        stages["evaluation"].run(config, workdir, builds)

    killed = Stage(kill_second, stages["evaluation"].key)
    with monkeypatch.context() as patch:
        patch.setattr(ablation_stages, "STAGES", {**stages, "evaluation": killed})
        with pytest.raises(KeyboardInterrupt):
            call(seeds=1)
    assert not (folder / "ablation.json").exists()
    finished = snapshot(folder / "runs" / "global-seed0")
    trained = snapshot(folder / "runs" / "global-local-seed0" / "checkpoints")
    assert finished
    assert trained

    assert call() == 0
    assert snapshot(folder / "runs" / "global-seed0") == finished
    assert snapshot(folder / "runs" / "global-local-seed0" / "checkpoints") == trained
    said = capsys.readouterr().out
    assert "1/4  global, seed 0: finished before" in said
    assert "global + local over global: CNR" in said
    summary = json.loads((folder / "ablation.json").read_text())
    assert [(row["objectives"], row["seeds"]) for row in summary["rows"]] == [
        ("global", [0, 1]),
        ("global,local", [0, 1]),
    ]
    assert summary["caveats"][-1].startswith("Grounding: rows with local alignment")
    (gain,) = summary["gains"]
    assert gain["seeds"] == [0, 1]
    assert gain["gain"]["low"] <= gain["gain"]["value"] <= gain["gain"]["high"]
    table = (folder / "table5.txt").read_text()
    assert "ours on synthetic_mimic_cxr, synthetic_ms_cxr, not to be compared with the paper's numbers" in table
    assert [line.split(",")[0] for line in table.splitlines()[3:5]] == ["global", "global + local"]
    assert "the paper's" not in "".join(table.splitlines()[3:])
    assert {path.name for path in folder.glob("*.*")} >= {"table5.md", "table5.tex", "table5.csv", "ablation.png"}


def test_what_was_compiled_is_taken_from_the_folder_by_the_next_seed(tmp_path):
    folder = jax.config.jax_compilation_cache_dir
    hits: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        for seed in range(2):
            with ablation_stages.kept_programs(tmp_path / "compiled"):
                jax.jit(lambda x, seed=seed: x * 3 + 1)(jax.numpy.arange(5))
            jax.clear_caches()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", folder)
    assert "/jax/compilation_cache/cache_hits" in hits
    assert list((tmp_path / "compiled").iterdir())
