"""Tables: alignment, formatting of numbers, and what stands in which row."""

import dataclasses
import math
import re

import numpy as np
import pytest

from msfl_jax.metrics import Interval
from msfl_jax.results.tables import (
    calibration_line,
    demo_table,
    format_table,
    grounding_table,
    interval,
    number,
    with_caveats,
    zero_shot_table,
)
from msfl_jax.tasks import grounding_result, zero_shot_result
from msfl_jax.tasks.finding_result import Predictions
from msfl_jax.tasks.grounding_result import PhraseScores


@pytest.fixture(scope="module")
def classified():
    """A finding at 0.75 by counting pairs, a perfect one, and one without positives."""
    truth = np.asarray([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
    scores = np.asarray([[4, 4, 0], [2, 1, 0], [3, 3, 0], [1, 2, 0]], np.float32)
    predictions = Predictions(("Pneumonia", "Edema", "Hernia"), scores, truth, np.arange(4, dtype=np.uint32))
    return zero_shot_result.summarise(predictions, rule="cosine", split="test", step=5, replicates=50)


@pytest.fixture(scope="module")
def grounded():
    values = np.zeros((4, 2, 9), np.float32)
    values[:, 0] = [1.744, 1.8, 0.25, 0.75, 0.31, 0.29, 0.25, 0.21, 0.19]
    values[:, 1] = [-0.004, 0.7, 0.12, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0]
    values[3, 0, 0] = math.nan
    keys, names = np.arange(4, dtype=np.uint32), np.asarray(["Edema", "Edema", "Edema", "Pneumonia"])
    unpredicted = np.asarray([[0, 0], [2, 0], [0, 0], [0, 1]], np.uint8)
    maps = np.zeros((4, 2, 2, 2), np.float32)
    scores = PhraseScores(values, unpredicted, np.full(4, 0.09, np.float32), names, keys, keys, keys, maps)
    return grounding_result.summarise(scores, protocol="biovil/minmax", split="test", step=5, replicates=50)


def test_numbers_have_two_decimals_and_no_negative_zero():
    assert [number(v) for v in (0.914, -0.001, -1.5, math.nan, None)] == ["0.91", "0.00", "-1.50", "-", "-"]
    assert interval(Interval(0.9, 0.891, 0.934)) == "0.89 - 0.93"
    assert interval(Interval(0.0, -0.25, 0.25)) == "-0.25 to 0.25"
    assert interval(Interval(0.9, math.nan, math.nan)) == "-"


def test_columns_are_aligned_and_lines_end_without_spaces():
    text = format_table([{"": "a", "x": "1.00"}, {"": "longer", "x": "10.00", "y": "2"}], ["", "x", "y"])
    assert text == "             x   y\na         1.00\nlonger   10.00   2"


def test_the_demo_table_shows_ours_interval_control_and_chance(classified, grounded):
    lines = demo_table(classified, grounded).splitlines()
    assert lines[0].split() == ["ours", "95", "%", "interval", "shuffled", "chance"]
    names = [
        "zero-shot pneumonia AUC",
        "zero-shot mean AUC (2)",
        "grounding CNR",
        "grounding mIoU (.1-.5)",
        "pointing game",
    ]
    assert [line[: len(name)] for line, name in zip(lines[1:], names, strict=True)] == names
    assert lines[1].split()[3:4] == ["0.75"]
    assert lines[2].split()[4] == "0.88"
    assert lines[3].split()[2:] == ["1.74", "1.74", "-", "1.74", "0.00", "0"]
    assert lines[5].split()[2:] == ["0.75", "0.75", "-", "0.75", "0.10", "0.09"]
    assert len({line.rstrip()[-1] for line in lines[1:]} - set("0123456789-")) == 0


def test_an_undefined_finding_has_its_reason_and_the_mean_its_number(classified):
    lines = zero_shot_table(classified).splitlines()
    assert lines[0] == "zero-shot, rule cosine, test, step 5: 4 images of 4 patients"
    hernia = next(line for line in lines if line.startswith("Hernia"))
    assert hernia.split() == ["Hernia", "-", "-", "-", "0", "4", "n/a:", "no", "positives"]
    assert any(line.startswith("mean of 2") for line in lines)


def test_controls_stand_beneath_the_mean_and_the_mapping_to_probabilities_beneath_them(classified):
    lines = zero_shot_table(classified).splitlines()
    names = ["mean of 2", "images shuffled", "prompts of the next finding", "positive and negative exchanged"]
    assert [line[: len(name)] for line, name in zip(lines[-6:-2], names, strict=True)] == names
    assert lines[-1].startswith("ECE  of probability = 1 / (1 + exp(-score / 1)), in 15 bins of equal width: mean 0.")
    alone = dataclasses.replace(classified.predictions, findings=("Pneumonia",))
    alone = dataclasses.replace(alone, scores=alone.scores[:, :1], truth=alone.truth[:, :1])
    result = zero_shot_result.summarise(alone, rule="maco", split="test", step=5, replicates=0)
    assert "next finding" not in zero_shot_table(result)
    assert "probability = 1 / (1 + exp(-score)), in 15 bins" in calibration_line(result)
    assert result.swapped == result.exchanged


def test_the_grounding_table_names_its_protocol_both_averages_and_what_is_undefined(grounded):
    text = grounding_table(grounded, "heat scaled to -1..1 per map")
    lines = text.splitlines()
    assert lines[0].startswith("grounding, protocol biovil/minmax, test, step 5: 4 phrases on 4 images of 4 patients")
    assert lines[1] == "(heat scaled to -1..1 per map)"
    headings = "per phrase|95 % interval|shuffled|chance|per category|undefined"
    assert re.split(" {3,}", lines[3].strip()) == headings.split("|")
    rows = {line[:23].strip(): line[23:].split() for line in lines[4:14]}
    assert rows["grounding CNR"] == ["1.74", "1.74", "-", "1.74", "0.00", "0", "1.74", "1"]
    assert rows["IoU at .1"] == ["0.31", "0.31", "-", "0.31", "0.31", "0"]
    assert "nothing exceeds a threshold in 1 of 4 phrases: IoU 0 there" in lines
    assert [line.split()[:3] for line in lines[-2:]] == [["Edema", "3", "1.74"], ["Pneumonia", "1", "-"]]
    assert "CNR over shuffled" in text


def test_caveats_stand_beneath_a_table_one_per_line():
    assert with_caveats("a\nb", ()) == "a\nb"
    assert with_caveats("a\nb", ("x was kept", "y")) == "a\nb\n\ncaveat  x was kept\ncaveat  y"
