"""The paper's tables with ours: what stands where, what is averaged and what never is."""

import math

import pytest

from msfl_jax.results.own_results import find_results
from msfl_jax.results.paper_tables import paper_table, summarise_seeds
from msfl_jax.results.published import load_published

TABLES = load_published()
ZERO_SHOT = {"options": {"rule": "cosine"}, "variant": "cosine"}


def ours(table):
    return [row for row in table.rows if row.kind == "ours"]


def texts(row):
    return [cell.text for cell in row.cells]


@pytest.mark.parametrize("number", TABLES)
def test_without_results_every_cell_of_ours_says_so(number):
    table = paper_table(TABLES[number], [])
    assert {text for row in ours(table) for text in texts(row)} == {"not run"}
    assert len(ours(table)) == (8 if number == 5 else 1)
    assert len([row for row in table.rows if row.kind == "paper"]) == len(TABLES[number].rows)
    assert table.caveats == tuple(caveat.text for caveat in TABLES[number].caveats)


def test_one_result_has_its_interval_and_says_what_it_is(run_directory, save):
    run = run_directory("first")
    save(run, "zero_shot", "rsna_pneumonia", {"mean_auc": (0.8765, 0.8612, 0.8899)}, caveats=("kept",), **ZERO_SHOT)
    table = paper_table(TABLES[3], find_results([run]))
    (row,) = ours(table)
    assert row.name == "ours: demo, cosine, step 500"
    assert texts(row) == ["87.65 (86.12 - 88.99)"]
    note = dict(table.notes)[row.cells[0].marks[0]]
    assert (
        note == "first, step 500, seed 0, cosine; rsna_pneumonia test (split ab12cd34); 3,000 records of 2,900 patients"
    )
    assert table.caveats[-1] == "first: kept"
    assert [r.cells[0].text for r in table.rows[:2]] == ["71.45", "80.42"]


@pytest.mark.parametrize(
    "counts, said",
    [
        ((14,), "; mean of 14 findings"),
        ((1,), "; mean of 1 of 14 findings"),
        ((14, 13), "; mean of 13 to 14 of 14 findings"),
    ],
    ids=["all", "one", "seeds differ"],
)
def test_a_mean_says_over_how_many_of_the_findings_it_is(run_directory, save, counts, said):
    for seed, count in enumerate(counts):
        run = run_directory(f"seed{seed}", seed=seed)
        metrics = {"mean_auc": (0.8, 0.7, 0.9)} | {f"auc/{name}": (0.8, 0.7, 0.9) for name in "abcdefghijklmn"}
        options = {**ZERO_SHOT["options"], "findings_in_mean": count}
        save(run, "zero_shot", "rsna_pneumonia", metrics, options=options, variant="cosine")
    table = paper_table(TABLES[3], find_results([run.parent]))
    (row,) = ours(table)
    assert dict(table.notes)[row.cells[0].marks[0]].endswith(f"3,000 records of 2,900 patients{said}")


def test_a_metric_that_is_no_mean_over_findings_says_nothing_of_them(run_directory, save):
    run = run_directory("first")
    save(run, "grounding", "ms_cxr", {"cnr": (1.2, 1.1, 1.3)}, options={"findings_in_mean": 3})
    assert not any("finding" in text for _, text in paper_table(TABLES[4], find_results([run])).notes if "step" in text)


def test_a_test_set_of_another_size_than_the_papers_is_noted(run_directory, save):
    run = run_directory("first")
    save(run, "zero_shot", "rsna_pneumonia", {"mean_auc": (0.8, 0.7, 0.9)}, records=2500, **ZERO_SHOT)
    (note,) = paper_table(TABLES[3], find_results([run])).notes
    assert note[1].endswith("; the paper's test set has 3,000")


def test_seeds_are_averaged_with_spread_and_count(run_directory, save):
    for seed, value in enumerate((0.80, 0.82, 0.87)):
        run = run_directory(f"seed{seed}", seed=seed)
        save(run, "zero_shot", "rsna_pneumonia", {"mean_auc": (value, 0.7, 0.9)}, **ZERO_SHOT)
    table = paper_table(TABLES[3], find_results([run.parent]))
    (row,) = ours(table)
    mean = (80 + 82 + 87) / 3
    spread = math.sqrt(((80 - mean) ** 2 + (82 - mean) ** 2 + (87 - mean) ** 2) / 2)
    assert texts(row) == [f"{mean:.2f} ± {spread:.2f} (3 seeds)"]
    assert row.cells[0].facts["seeds"] == 3
    assert row.cells[0].facts["spread"] == pytest.approx(spread)


def test_results_of_other_images_are_neither_averaged_nor_left_unmarked(run_directory, save):
    for seed, members in enumerate(("aaaa1111", "bbbb2222", "aaaa1111")):
        run = run_directory(f"seed{seed}", seed=seed)
        metrics = {"mean_auc": (0.8 + seed / 100, 0.7, 0.9)}
        save(run, "zero_shot", "rsna_pneumonia", metrics, split_hash=members, **ZERO_SHOT)
    table = paper_table(TABLES[3], find_results([run.parent]))
    assert [texts(row)[0] for row in ours(table)] == ["81.00 ± 1.41 (2 seeds)", "81.00 (70.00 - 90.00)"]
    assert all("*" in row.cells[0].marks for row in ours(table))
    assert dict(table.notes)["*"].startswith(
        "RSNA: numbers of ours are of different images (splits aaaa1111, bbbb2222)"
    )
    assert not any("*" in cell.marks for row in table.rows if row.kind == "paper" for cell in row.cells)


def test_two_results_of_one_seed_are_two_rows(run_directory, save):
    for name in ("first", "copy"):
        run = run_directory(name)
        save(run, "zero_shot", "rsna_pneumonia", {"mean_auc": (0.8, 0.7, 0.9)}, **ZERO_SHOT)
    rows = ours(paper_table(TABLES[3], find_results([run.parent])))
    assert [texts(row) for row in rows] == [["80.00 (70.00 - 90.00)"]] * 2


def test_an_undefined_metric_is_na_with_its_reason(run_directory, save):
    run = run_directory("first")
    reasons = {"mean_auc": "no positives"}
    save(run, "zero_shot", "rsna_pneumonia", {"mean_auc": (math.nan,) * 3}, reasons=reasons, **ZERO_SHOT)
    table = paper_table(TABLES[3], find_results([run]))
    assert texts(ours(table)[0]) == ["n/a"]
    assert table.notes[-1][1].endswith("; n/a: no positives")


def test_fine_tuned_runs_of_all_shares_are_one_row_per_initialisation(run_directory, save):
    for fraction, seed, value in ((1, 0, 0.7), (1, 1, 0.72), (10, 0, 0.8)):
        run = run_directory(f"tuned-{fraction}-{seed}", None, seed=seed, model=f"rsna_{fraction}")
        options = {"init": "pretrained", "mode": "full", "fraction": fraction, "seed": seed}
        name = f"pretrained-full-{fraction}-seed{seed}"
        metrics = {"mean_auc": (value, value - 0.02, value + 0.02)}
        save(run, "classification", "rsna_pneumonia", metrics, options=options, variant=name, step=100 * fraction)
    random = {"init": "random", "mode": "full", "fraction": 1, "seed": 0}
    save(run, "classification", "rsna_pneumonia", {"mean_auc": (0.6, 0.5, 0.7)}, options=random, variant="random")
    table = paper_table(TABLES[1], find_results([run.parent]))
    found = {row.name: texts(row)[6:] for row in ours(table)}
    assert len(found) == 2
    assert found[next(n for n in found if "pretrained, full" in n)] == [
        "71.0 ± 1.4 (2 seeds)",
        "80.0 (78.0 - 82.0)",
        "not run",
    ]
    assert found[next(n for n in found if "random, full" in n)] == ["60.0 (50.0 - 70.0)", "not run", "not run"]
    assert all(texts(row)[:6] == ["not run"] * 6 for row in ours(table))


def test_segmentation_shows_all_four_dice(run_directory, save):
    run = run_directory("tuned", None)
    names = ("per_image_with_empty", "positive_only", "pooled_foreground", "pooled_with_background")
    metrics = {f"dice_{name}": (0.1 * i, 0.05, 0.5) for i, name in enumerate(names, start=1)}
    options = {"init": "pretrained", "head": "linear", "fraction": 10, "seed": 0, "lists": "as_published"}
    save(run, "segmentation", "siim_acr", metrics, options=options, records=1904)
    rows = ours(paper_table(TABLES[2], find_results([run])))
    assert [texts(row)[1].split()[0] for row in rows] == ["10.0", "20.0", "30.0", "40.0"]
    assert rows[0].name == "ours, pretrained, linear, as_published, per image, empty = 1"
    assert rows[1].name.endswith("positives only")


def test_the_published_test_set_and_its_clean_part_are_rows_of_their_own(run_directory, save):
    run = run_directory("tuned", None)
    options = {"init": "pretrained", "head": "linear", "fraction": 10, "seed": 0, "lists": "as_published"}
    for split, records, value in (("test", 1904, 0.8), ("test_clean", 1286, 0.7)):
        metrics = {"dice_pooled_foreground": (value, 0.6, 0.9)}
        images = {"split": split, "split_hash": f"{records}aabbccdd", "records": records, "patients": records}
        save(run, "segmentation", "siim_acr", metrics, options=options, **images)
    table = paper_table(TABLES[2], find_results([run]))
    found = {row.name: row.cells[1] for row in ours(table) if row.name.endswith("pooled foreground")}
    whole, clean = (f"ours, pretrained, linear, as_published{more}, pooled foreground" for more in ("", ", test_clean"))
    assert {name: cell.text for name, cell in found.items()} == {
        whole: "80.0 (60.0 - 90.0)",
        clean: "70.0 (60.0 - 90.0)",
    }
    assert all("*" in cell.marks for cell in found.values())
    note = dict(table.notes)[found[clean].marks[0]]
    assert (
        "siim_acr test_clean (split 1286aabb); 1,286 records of 1,286 patients; the paper's test set has 1,904" in note
    )


PROTOCOL = {"protocol": "biovil", "scaling": "minmax", "geometry": "own", "sigma": 1.5, "shifts": 1}
OTHER_PROTOCOLS = {
    "biovil/raw": {"scaling": "raw"},
    "biovil/minmax/published": {"geometry": "published"},
    "sigma 0.8": {"sigma": 0.8},
    "shifts 2": {"shifts": 2},
}


@pytest.mark.parametrize("number", [4, 5])
@pytest.mark.parametrize("said, other", OTHER_PROTOCOLS.items(), ids=OTHER_PROTOCOLS)
def test_grounding_that_was_measured_otherwise_is_never_averaged_and_says_how(run_directory, save, number, said, other):
    for seed, options in enumerate((PROTOCOL, PROTOCOL | other)):
        run = run_directory(f"seed{seed}", seed=seed)
        metrics = {"cnr": (1.2, 1.1, 1.3), "miou": (0.3, 0.2, 0.4)}
        save(run, "grounding", "ms_cxr", metrics, options=options, variant=f"biovil{seed}")
    table = paper_table(TABLES[number], find_results([run.parent]))
    column = 1 if number == 4 else 2
    cells = [row.cells[column] for row in ours(table) if row.cells[column].facts.get("metric") == "cnr"]
    assert [cell.facts["seeds"] for cell in cells] == [1, 1]
    notes = [dict(table.notes)[cell.marks[0]] for cell in cells]
    assert "biovil/minmax, sigma 1.5, shifts 1; ms_cxr" in notes[0]
    assert said in notes[1]
    if number == 4:
        assert ours(table)[0].name != ours(table)[1].name


def test_rows_of_different_rules_are_said_to_be_so(run_directory, save):
    for objectives, rule in (("global", "cosine"), ("global,local", "gloria")):
        run = run_directory(rule, objectives)
        options = {"rule": rule}
        save(run, "zero_shot", "rsna_pneumonia", {"mean_auc": (0.8, 0.7, 0.9)}, options=options, variant=rule)
    both, one = (paper_table(TABLES[5], find_results([folder])).caveats for folder in (run.parent, run))
    said = "zero-shot: ours are measured in different ways (cosine; gloria); compare those of one."
    assert said in both
    assert not any("different ways" in caveat for caveat in one)


@pytest.mark.parametrize("other", [{"prompts": "rsna"}, {"prompts_hash": "fedcba9876543210"}])
def test_other_prompts_are_never_averaged_and_named(run_directory, save, other):
    own = {"rule": "cosine", "prompts": "chexpert", "prompts_hash": "0123456789abcdef"}
    for seed, options in enumerate((own, own | other)):
        run = run_directory(f"seed{seed}", seed=seed)
        save(run, "zero_shot", "rsna_pneumonia", {"mean_auc": (0.8, 0.7, 0.9)}, options=options, variant="cosine")
    table = paper_table(TABLES[3], find_results([run.parent]))
    assert [row.name for row in ours(table)] == [
        f"ours: demo, cosine, step 500, prompts {found['prompts']} (hash {found['prompts_hash'][:8]})"
        for found in (own, own | other)
    ]


def test_table_five_stands_row_by_row_and_begins_with_global_alignment_alone(run_directory, save):
    for objectives in ("global", "global,local", "global,local,instance,modality"):
        run = run_directory(objectives.replace(",", "-"), objectives)
        save(run, "zero_shot", "rsna_pneumonia", {"mean_auc": (0.8, 0.7, 0.9)}, **ZERO_SHOT)
        save(run, "grounding", "ms_cxr", {"cnr": (1.2, 1.1, 1.3), "pointing_game": (0.5, 0.4, 0.6)})
        tuned = {"init": "pretrained", "mode": "full", "fraction": 1, "seed": 0}
        nested = run / "finetune"
        nested.mkdir()
        save(nested, "classification", "rsna_pneumonia", {"mean_auc": (0.9, 0.88, 0.92)}, options=tuned)
    table = paper_table(TABLES[5], find_results([run.parent]))
    assert [(row.kind, row.name.split(",")[0]) for row in table.rows][:4] == [
        ("ours", "global"),
        ("paper", "global + local"),
        ("ours", "global + local"),
        ("paper", "global + instance"),
    ]
    assert texts(table.rows[0]) == [
        "90.0 (88.0 - 92.0)",
        "80.0 (70.0 - 90.0)",
        "1.20 (1.10 - 1.30)",
        "0.50 (0.40 - 0.60)",
    ]
    assert texts(table.rows[1]) == ["91.3", "89.5", "-", "-"]
    assert [row.kind for row in table.rows] == ["ours", *["paper", "ours"] * 7]
    assert [texts(row) for row in table.rows][4] == ["not run"] * 4


def test_a_synthetic_study_is_never_set_beside_the_paper(run_directory, save):
    run = run_directory("first")
    save(run, "grounding", "synthetic_ms_cxr", {"cnr": (1.8, 1.7, 1.9), "miou": (0.3, 0.2, 0.4)}, records=751)
    results = find_results([run])
    beside = paper_table(TABLES[4], results)
    assert texts(ours(beside)[0]) == ["not run", "not run"]
    assert beside.caveats[-1] == "Not shown: results on synthetic_ms_cxr; --dataset synthetic_ms_cxr shows them."
    alone = paper_table(TABLES[4], results, dataset="synthetic")
    assert [row.kind for row in alone.rows] == ["ours"] * 3
    assert texts(alone.rows[0]) == ["0.300 (0.200 - 0.400)", "1.800 (1.700 - 1.900)"]
    assert "not to be compared with the paper's numbers" in alone.title
    assert not any("the paper" in text for _, text in alone.notes)
    assert not alone.caveats


def test_another_data_set_has_one_column_per_share_and_no_row_of_the_paper(run_directory, save):
    run = run_directory("tuned", None)
    options = {"init": "random", "mode": "probe", "fraction": 1, "seed": 0}
    save(run, "classification", "mimic_cxr", {"mean_auc": (0.7, 0.6, 0.8)}, options=options)
    table = paper_table(TABLES[1], find_results([run]), dataset="mimic_cxr")
    assert table.columns == ("1 %", "10 %", "100 %")
    assert [texts(row) for row in table.rows] == [["70.0 (60.0 - 80.0)", "not run", "not run"]]


def test_undefined_seeds_are_left_out_of_the_mean():
    assert summarise_seeds([math.nan, 2.0]) == {"seeds": 1, "value": 2.0}
    assert summarise_seeds([math.nan]) == {"seeds": 0}
