"""Evaluations in the loop: each has its own switch, a failing one is named and the others go on; and older configurations still open."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score

from input_pipeline.build import build
from input_pipeline.errors import DataError, UserError
from msfl_jax.commands.in_loop import evaluate_in_loop, scheduled
from msfl_jax.commands.pretrain import run_pretraining
from msfl_jax.config import config_hash, from_config_dict, to_dict
from msfl_jax.model import Model
from msfl_jax.tasks.finding_result import truth_of_labels
from msfl_jax.tasks.linear_probe import embed_split, evaluate_probe
from msfl_jax.tasks.probe import fit_probe
from msfl_jax.tasks.run import open_run

from ..event_files import scalars
from .conftest import PlantedSource


def changed(config, **sections):
    parts = {name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    return dataclasses.replace(config, **parts)


@pytest.fixture(scope="module")
def config(tiny_config, planted_tokenizer, labelled_build):
    data = {"directory": str(labelled_build), "tokenizer": str(planted_tokenizer.directory)}
    return changed(tiny_config, data=data, zero_shot={"split": "test"})


@pytest.fixture(scope="module")
def params(config, planted_tokenizer):
    return jax.jit(Model.create(config, vocab_size=planted_tokenizer.vocab_size).init)(jax.random.key(0))


def test_each_evaluation_has_its_own_switch(config, boxes_build):
    assert list(scheduled(config)) == ["zero_shot"]
    switches = {
        "grounding": {"directory": str(boxes_build)},
        "retrieval": {"in_loop": True},
        "probe": {"in_loop": True},
    }
    for name, values in switches.items():
        assert list(scheduled(changed(config, zero_shot={"in_loop": False}, **{name: values}))) == [name]
    assert list(scheduled(changed(config, **switches))) == ["zero_shot", *switches]


def test_all_of_them_return_finite_numbers_under_their_names(config, params, boxes_build, tmp_path):
    everything = changed(
        config,
        grounding={"directory": str(boxes_build), "split": "test", "records": 4},
        retrieval={"in_loop": True, "split": "test"},
        probe={"in_loop": True, "train_split": "test", "split": "test"},
    )
    values = evaluate_in_loop(everything, tmp_path, params, 5)
    wanted = {
        *("zero_shot/mean_auc", "zero_shot/Edema_auc", "grounding/cnr", "probe/mean_auc", "probe/Pneumonia_auc"),
        *("retrieval/image_to_report/recall@10", "retrieval/report_to_image/median_rank"),
    }
    assert wanted <= values.keys()
    assert all(np.isfinite(values[name]) for name in wanted)
    retrieved = [name for name in values if name.startswith("retrieval/")]
    assert not any(name.endswith(("_chance", "_shuffled")) for name in retrieved)
    assert "probe/Pneumothorax_auc" not in values  # it has no positives


@dataclasses.dataclass(frozen=True)
class Rsna(PlantedSource):
    """The planted study under RSNA's name, with its one label."""

    name: str = "rsna_pneumonia"

    def label_names(self):
        return ("Pneumonia",)

    def _rows(self, number):
        return [dataclasses.replace(row, labels=row.labels[:1]) for row in super()._rows(number)]


def test_a_run_writes_every_evaluation_to_both_of_its_logs(config, split_build, boxes_build, tmp_path):
    """Zero-shot on another build than the training build, and with the prompts of that data set, as the run's have none of its labels."""
    rsna = split_build.parent / "rsna"
    build(Rsna(boxes=False), rsna, short_side=32, workers=1, progress=False)
    watched = changed(
        config,
        data={"directory": str(split_build)},
        optimizer={"warmup_steps": 0},
        train={"steps": 2, "log_every": 1, "evaluate_every": 1},
        zero_shot={"directory": str(rsna), "prompts": "siim", "split": "test"},
        grounding={"directory": str(boxes_build), "split": "test", "records": 4},
        retrieval={"in_loop": True, "split": "test"},
        probe={"in_loop": True, "directory": str(split_build), "split": "test"},
    )
    run_pretraining(watched, tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    wanted = {
        *("zero_shot/mean_auc", "zero_shot/Pneumonia_auc", "probe/mean_auc", "probe/Edema_auc"),
        *("grounding/cnr", "retrieval/image_to_report/recall@10", "loss/total"),
    }
    assert all(wanted <= row.keys() for row in rows)
    scored = [name for name in rows[0] if name.startswith("zero_shot/")]
    assert scored == ["zero_shot/mean_auc", "zero_shot/Pneumonia_auc"]
    logged = {(row["step"], name): value for row in rows for name, value in row.items() if name != "step"}
    logged = {key: value for key, value in logged.items() if value is not None}  # TensorBoard gets finite numbers alone
    drawn = {(step, name): value for step, name, value in scalars(tmp_path / "run")}
    assert drawn.keys() == logged.keys()
    assert_allclose([drawn[key] for key in logged], list(logged.values()), rtol=1e-6)


def test_a_failing_evaluation_is_one_line_and_the_others_go_on(config, params, tmp_path, caplog, monkeypatch):
    broken = changed(
        config,
        retrieval={"in_loop": True, "split": "test"},
        probe={"in_loop": True, "directory": str(tmp_path / "gone")},
    )
    monkeypatch.setattr("msfl_jax.commands.in_loop.evaluate_retrieval", lambda *_, **__: 1 / 0)
    with caplog.at_level(logging.WARNING):
        values = evaluate_in_loop(broken, tmp_path, params, 5)
    assert {name.split("/")[0] for name in values} == {"zero_shot"}
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "evaluation 'retrieval' failed at step 5: ZeroDivisionError; training goes on without it"
    assert second.startswith("evaluation 'probe' failed at step 5: ")
    assert "no finished build" in second
    assert "\n" not in first + second


def test_the_probe_is_that_of_the_embeddings_of_both_splits(planted_run, labelled_build):
    found = evaluate_probe(planted_run, labelled_build, train_split="test", split="test", batch_size=7, replicates=0)
    features, labels, patients = embed_split(planted_run, labelled_build, "test", batch_size=5)
    truth = truth_of_labels(labels)
    assert (len(features), len(np.unique(patients))) == (24, 12)
    scores = features @ fit_probe(features, truth)[0]
    for column, name in enumerate(("Pneumonia", "Edema")):
        known = ~np.isnan(truth[:, column])
        expected = roc_auc_score(truth[known, column], scores[known, column])
        assert_allclose(found[f"{name}_auc"].value, expected)
        assert expected == 1.0
    assert found.keys() == {"mean_auc", "Pneumonia_auc", "Edema_auc"}


def test_a_build_without_labels_is_refused_in_one_line(planted_run, boxes_build):
    with pytest.raises(DataError, match="no label has both"):
        evaluate_probe(planted_run, boxes_build, train_split="test", split="test", replicates=0)


def test_configurations_from_before_a_section_existed_open_with_its_defaults(tiny_config):
    older = json.loads(json.dumps(to_dict(tiny_config)))
    del older["retrieval"], older["probe"], older["zero_shot"]["in_loop"], older["zero_shot"]["directory"]
    assert from_config_dict(older) == tiny_config
    assert tiny_config.zero_shot.in_loop
    assert not tiny_config.retrieval.in_loop
    del older["zero_shot"]["rule"]
    with pytest.raises(UserError, match=r"'zero_shot\.rule' is missing"):
        from_config_dict(older)
    with pytest.raises(UserError, match=r"'probe\.l2' is 0"):
        from_config_dict(to_dict(changed(tiny_config, probe={"l2": 0.0})))


def test_what_is_watched_does_not_change_the_experiment(tiny_config):
    watched = changed(tiny_config, probe={"in_loop": True}, retrieval={"records": 5}, zero_shot={"in_loop": False})
    elsewhere = changed(tiny_config, zero_shot={"directory": "data/rsna"})
    assert config_hash(watched) == config_hash(elsewhere) == config_hash(tiny_config)


def test_an_older_run_directory_is_named_by_what_it_lacks_and_not_by_its_configuration(tiny_config, tmp_path):
    older = json.loads(json.dumps(to_dict(tiny_config)))
    del older["probe"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    with pytest.raises(UserError) as error:
        open_run(tmp_path)
    assert "probe" not in str(error.value)
