"""Tables as text, Markdown, LaTeX and CSV, against golden files and against readers of each format."""

import csv
import io
import math
import re
from pathlib import Path

import pytest

from input_pipeline.errors import UserError
from msfl_jax.results.formats import CSV_COLUMNS, FORMATS, write_table
from msfl_jax.results.own_results import find_results
from msfl_jax.results.paper_tables import Cell, PaperTable, Row, paper_table
from msfl_jax.results.published import load_published

GOLDEN = Path(__file__).parent / "golden"
SUFFIXES = {"text": "txt", "markdown": "md", "latex": "tex", "csv": "csv"}
HARD = r"50 % of A&B_c #1 {x} $5 ~^ \end | *a* <b> [c] `d`"


@pytest.fixture
def stored(run_directory, save):
    """Results of three runs: two seeds of one model, of which the second is measured on other images in one task, and a fine-tuned one."""
    for seed in (0, 1):
        run = run_directory(f"demo-seed{seed}", "global,local", seed=seed)
        said = {"rule": "gloria", "prompts": "chexpert", "prompts_hash": "0123456789abcdef", "findings_in_mean": 1}
        rule = {"options": said, "variant": "gloria"}
        save(run, "zero_shot", "rsna_pneumonia", {"mean_auc": (0.85 + 0.02 * seed, 0.8, 0.9)}, **rule)
        grounded = {"cnr": (1.2, 1.1, 1.3), "miou": (0.25, 0.2, 0.3), "absolute_cnr": (1.25, 1.15, 1.35)}
        grounded |= {
            "category/cnr": (1.1, 1.0, 1.2),
            "category/miou": (0.22, 0.18, 0.26),
            "pointing_game": (0.4, 0.3, 0.5),
        }
        members = {"split_hash": f"{seed}{seed}aabbccdd", "records": 1162, "patients": 851}
        protocol = {"protocol": "biovil", "scaling": "minmax", "geometry": "own", "sigma": 1.5, "shifts": 1}
        save(run, "grounding", "ms_cxr", grounded, options=protocol, variant="biovil", **members)
    tuned = run_directory("demo-seed0/rsna-1", None, model="rsna_1")
    options = {"init": "pretrained", "mode": "full", "fraction": 1, "seed": 0, "findings_in_mean": 2}
    undefined = dict.fromkeys(("auc/Normal",), (math.nan,) * 3)
    save(
        tuned,
        "classification",
        "rsna_pneumonia",
        {"mean_auc": (0.9, 0.88, 0.92), "auc/Pneumonia": (0.9, 0.88, 0.92), "auc/Other": (0.9, 0.88, 0.92)} | undefined,
        options=options,
        caveats=("50 % & more_or_less",),
    )
    dice = {"dice_per_image_with_empty": (0.8, 0.7, 0.9), "dice_positive_only": (math.nan,) * 3}
    options = {"init": "random", "head": "upernet", "fraction": 100, "seed": 0, "lists": "as_published"}
    clean = {
        "split": "test_clean",
        "records": 1286,
        "patients": 1286,
        "reasons": {"dice_positive_only": "no positives"},
    }
    save(tuned, "segmentation", "siim_acr", dice, options=options, **clean)
    return run.parent


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_tables_are_what_they_were(stored, number, form):
    text = write_table(paper_table(load_published()[number], find_results([stored])), form)
    assert text == (GOLDEN / f"table{number}.{SUFFIXES[form]}").read_text()


@pytest.fixture
def hard():
    """A table whose every text has characters that mean something in one of the formats."""
    cell = Cell(
        "0.91 ± 0.01", ("a", "*"), {"value": 0.91, "spread": 0.01, "seeds": 2, "run": f'{HARD}; "quoted", and\nbroken'}
    )
    rows = (Row("paper", HARD, (Cell("-"), Cell("1.00"))), Row("ours", "ours", (cell, Cell("not run")), ("1",)))
    return PaperTable(
        "Table 9", HARD, (HARD, HARD), rows, (("a", HARD), ("*", HARD)), (HARD,), {HARD: "a list, counted"}
    )


def test_a_csv_file_gives_every_cell_back(hard):
    lines = list(csv.DictReader(io.StringIO(write_table(hard, "csv"))))
    assert tuple(lines[0]) == CSV_COLUMNS
    cells = [line for line in lines if line["kind"] in ("paper", "ours")]
    assert [(one["row"], one["column"], one["text"]) for one in cells] == [
        (row.name, column, cell.text) for row in hard.rows for column, cell in zip(hard.columns, row.cells, strict=True)
    ]
    assert (float(cells[2]["value"]), float(cells[2]["spread"]), cells[2]["seeds"]) == (0.91, 0.01, "2")
    assert cells[2]["marks"] == "1 a *"
    assert cells[2]["run"] == hard.rows[1].cells[0].facts["run"]
    assert [(one["kind"], one["marks"], one["note"]) for one in lines[4:]] == [
        ("title", "", HARD),
        ("note", "a", HARD),
        ("note", "*", HARD),
        ("caveat", "", HARD),
    ]
    assert lines[-1]["source"] == "a list, counted"


def test_latex_has_no_bare_special_character_and_one_cell_per_column(hard):
    text = write_table(hard, "latex")
    body = text[text.index(r"\hline") : text.index(r"\end{tabular}")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [2, 2, 2]
    words = "begin end centering caption hline par footnotesize textsuperscript textbackslash textasciitilde textasciicircum"
    known = rf"\\({'|'.join([*words.split(), 'textless', 'textgreater', 'textbar'])})\b"
    plain = re.sub(r"\\[&%$#_{}]|\\\\|\$\\pm\$|" + known, "", text)
    assert not re.search(r"[\\%$#~^<>|]", plain)
    assert re.sub(r"\\[{}]", "", text).count("{") == re.sub(r"\\[{}]", "", text).count("}")


def test_markdown_has_as_many_cells_in_every_line(hard):
    lines = [line for line in write_table(hard, "markdown").splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert not re.search(r"(?<!\\)[*`]", "".join(lines).replace(r"\*", ""))


def test_text_lines_up_and_says_everything(hard):
    text = write_table(hard, "text")
    assert text.count("[a]") == 1
    assert "0.91 ± 0.01 [a,*]" in text
    assert f"caveat  {HARD}" in text


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_all_formats_say_the_same_numbers(stored, number):
    table = paper_table(load_published()[number], find_results([stored]))
    for form in FORMATS:
        text = write_table(table, form).replace(r"$\pm$", "±")
        for row in table.rows:
            for cell in row.cells:
                assert cell.text in text
        assert text.count("Caveat:" if form in ("latex", "markdown") else "caveat") >= len(table.caveats)


def test_an_unknown_format_is_refused_with_the_nearest_name(hard):
    with pytest.raises(UserError, match="did you mean 'latex'"):
        write_table(hard, "latx")
