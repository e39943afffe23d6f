"""Which runs are seeds of one model, and which are different models whose numbers are never averaged."""

import json

import pytest

from msfl_jax.config import NOT_HASHED, to_dict
from msfl_jax.config_files import load_config
from msfl_jax.results.own_results import differences, find_results
from msfl_jax.results.paper_tables import paper_table
from msfl_jax.results.published import load_published

TABLES = load_published()
ZERO_SHOT = {"options": {"rule": "cosine"}, "variant": "cosine"}


@pytest.fixture
def tuned(run_directory, save):
    """A fine-tuned run outside of its pretraining run, which it names in encoder.json."""

    def make(name, *, seed=0, width=128, rate=1e-3, momentum=0.9, fraction=1, value=0.8):
        run = run_directory(name, None)
        config = {
            "name": "finetune_rsna",
            "seed": seed,
            "mode": "full",
            "data": {"directory": name, "fraction": fraction},
        }
        config |= {"optimizer": {"peak_rate": rate, "momentum": momentum}, "encoder": {"init": "pretrained"}}
        (run / "config.json").write_text(json.dumps(config))
        weights = {"lambda_global": 1.0, "lambda_local": 1.0}
        encoder = {"name": "vit_tiny", "seed": 7, "model": {"width": width}, "objective": weights}
        (run / "encoder.json").write_text(json.dumps({"config": encoder, "findings": ["Pneumonia"]}))
        options = {"init": "pretrained", "mode": "full", "fraction": fraction, "seed": seed}
        metrics = {"mean_auc": (value, value - 0.1, value + 0.1)}
        save(run, "classification", "rsna_pneumonia", metrics, options=options)
        return run

    return make


def rows_of(folder, number):
    table = paper_table(TABLES[number], find_results([folder]))
    return table, [row for row in table.rows if row.kind == "ours"]


def test_fine_tuned_runs_know_their_encoder_wherever_they_lie(tuned):
    folder = tuned("a", seed=0).parent
    tuned("b", seed=1)
    one, other = find_results([folder])
    assert one.identity == other.identity
    assert (one.model, one.objectives) == ("vit_tiny", "global,local")
    _, (row,) = rows_of(folder, 1)
    assert row.name == "ours: vit_tiny (global + local), pretrained, full"
    assert row.cells[6].facts["seeds"] == 2


def test_a_run_that_lies_in_another_pretraining_run_is_not_of_it(tuned, run_directory):
    home = run_directory("home", "global", model="other")
    (home / "data.json").write_text(json.dumps({"members": "aa" * 32}))
    (one,) = find_results([tuned("home/tuned")])
    assert (one.model, one.objectives) == ("vit_tiny", "global,local")
    assert "pretraining.data.members" not in one.settings
    (home / "config.json").write_text(json.dumps(json.loads((home / "tuned" / "encoder.json").read_text())["config"]))
    (one,) = find_results([home])
    assert one.settings["pretraining.data.members"] == "aa" * 32


def test_a_run_that_lies_elsewhere_knows_what_its_encoder_was_trained_on(tuned, run_directory):
    outside = tuned("outside")
    encoder = json.loads((outside / "encoder.json").read_text())
    home = run_directory("home")
    (home / "config.json").write_text(json.dumps(encoder["config"]))
    (home / "data.json").write_text(json.dumps({"members": "aa" * 32}))
    inside = tuned("home/inside", seed=1)
    (outside / "encoder.json").write_text(json.dumps(encoder | {"trained_on": {"members": "aa" * 32}}))
    one, other = find_results([outside, inside])
    assert one.settings["pretraining.data.members"] == "aa" * 32
    assert one.identity == other.identity
    (outside / "encoder.json").write_text(json.dumps(encoder | {"trained_on": {"members": "bb" * 32}}))
    (one,) = find_results([outside])
    assert one.identity != other.identity


def test_encoders_of_another_size_and_recipes_with_other_values_are_rows_of_their_own(tuned):
    folder = tuned("a", seed=0).parent
    tuned("b", seed=1, width=256)
    tuned("c", seed=2, momentum=0.5)
    _, rows = rows_of(folder, 1)
    assert len(rows) == 3
    assert all(row.cells[6].facts["seeds"] == 1 for row in rows)
    assert "fine-tuning.optimizer.momentum 0.9, pretraining.model.width 256" in rows[1].name
    assert "fine-tuning.optimizer.momentum 0.5, pretraining.model.width 128" in rows[2].name


def test_shares_of_labels_share_a_row_and_other_rates_for_one_share_are_never_averaged(tuned):
    folder = tuned("a", seed=0, rate=0.0085).parent
    tuned("b", seed=1, rate=0.03)
    tuned("c", seed=0, rate=0.003, fraction=10)
    table, rows = rows_of(folder, 1)
    assert [[cell.text != "not run" for cell in row.cells[6:]] for row in rows] == [
        [True, True, False],
        [True, False, False],
    ]
    said = [dict(table.notes)[row.cells[6].marks[0]] for row in rows]
    assert said[0].endswith("; fine-tuning.optimizer.peak_rate 0.0085")
    assert said[1].endswith("; fine-tuning.optimizer.peak_rate 0.03")


def test_runs_pretrained_on_other_images_are_no_seeds_of_each_other(run_directory, save):
    for seed, members in enumerate(("aa" * 32, "bb" * 32, "aa" * 32)):
        run = run_directory(f"run{seed}", seed=seed)
        (run / "data.json").write_text(json.dumps({"name": "mimic_cxr", "members": members, "caveats": []}))
        save(run, "zero_shot", "rsna_pneumonia", {"mean_auc": (0.8, 0.7, 0.9)}, **ZERO_SHOT)
    _, rows = rows_of(run.parent, 3)
    assert [row.cells[0].facts["seeds"] for row in rows] == [2, 1]
    assert [row.name.split(", ")[-1] for row in rows] == [
        "pretraining.data.members aaaaaaaa",
        "pretraining.data.members bbbbbbbb",
    ]


def test_in_table_five_other_recipes_for_one_encoder_are_lines_of_their_own(tuned):
    folder = tuned("a", seed=0).parent
    tuned("b", seed=1, momentum=0.5)
    table, rows = rows_of(folder, 5)
    found = [row for row in rows if row.cells[0].text != "not run"]
    assert [row.cells[0].facts["seeds"] for row in found] == [1, 1]
    said = [dict(table.notes)[row.cells[0].marks[0]] for row in found]
    assert [one.split("; ")[-1] for one in said] == [f"fine-tuning.optimizer.momentum {value}" for value in (0.9, 0.5)]


def test_keys_that_came_after_a_run_make_it_no_other_model(tuned, run_directory):
    """A new fine-tuned run of an old pretraining run is of it, and a seed of an old fine-tuned one."""
    home = run_directory("home")
    older, newer = tuned("home/older", seed=0), tuned("home/newer", seed=1)
    then = json.loads((older / "encoder.json").read_text())["config"] | {"train": {}}
    (home / "config.json").write_text(json.dumps(then))
    (home / "data.json").write_text(json.dumps({"members": "aa" * 32}))
    (older / "encoder.json").write_text(json.dumps({"config": then}))
    (newer / "encoder.json").write_text(json.dumps({"config": then | {"train": {"microbatches": 1}}}))

    config = json.loads((newer / "config.json").read_text())
    for subsets, same in (("published", True), ("drawn", False)):
        config["data"]["subsets"] = subsets
        (newer / "config.json").write_text(json.dumps(config))
        one, other = find_results([home])
        assert (one.identity == other.identity) == same
        assert {found.settings["pretraining.data.members"] for found in (one, other)} == {"aa" * 32}


COMPUTED = (  # otherwise, to the same end
    *("data.directory=/elsewhere", "data.workers=4", "mesh.data=4", "mesh.shard_moments=True"),
    *("model.attention=xla", "model.remat=none", "train.microbatches=4", "text.length_buckets=20:0.5"),
    *("objective.global_alignment.exchange=ring", "objective.local_alignment.exchange=ring"),
    *("objective.local_alignment.kernel=pallas", "retrieval.in_loop=True", "probe.in_loop=True"),
    *("zero_shot.in_loop=False", "zero_shot.directory=/elsewhere", "grounding.directory=/elsewhere"),
)


def test_where_and_how_a_run_computed_makes_it_no_other_model(run_directory, save):
    """Whatever does not change a run's hash; another reading of the local loss is another model."""
    changed = {path for word in COMPUTED for path in (word.partition("=")[0], word.partition(".")[0])}
    assert {path for path in NOT_HASHED if not path.startswith("data.tokenizer")} <= changed

    def config(seed, *words):
        overrides = [f"--config.{word}" for word in (f"seed={seed}", *words)]
        return json.dumps(to_dict(load_config("mimic_vit_b16", overrides)))

    for seed, words in enumerate(((), COMPUTED, ("objective.local_alignment.attention=regions",))):
        run = run_directory(f"run{seed}", seed=seed)
        (run / "config.json").write_text(config(seed, *words))
        save(run, "zero_shot", "rsna_pneumonia", {"mean_auc": (0.8, 0.7, 0.9)}, **ZERO_SHOT)
    one, other, third = find_results([run.parent])
    assert one.identity == other.identity
    assert differences(one, [other]) == ""
    assert one.identity != third.identity
    assert differences(one, [third]) == "pretraining.objective.local_alignment.attention gloria"
