"""Retrieval of a planted model against a loop over all pairs; one report of two studies is one candidate."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from input_pipeline.build import build
from input_pipeline.errors import DataError, UserError
from input_pipeline.reading import open_split
from input_pipeline.sources import Sentences
from msfl_jax.results.tables import retrieval_table
from msfl_jax.tasks.predictions import load_arrays, save_arrays
from msfl_jax.tasks.retrieval import evaluate_retrieval
from msfl_jax.tasks.retrieval_result import Ranks, describe, summarise

from .conftest import FINDINGS, STUDIES, PlantedSource, has


def words(number):
    return tuple(f"{FINDINGS[f]} is seen." for f in range(2) if has(number, f))


@dataclasses.dataclass(frozen=True)
class ReportedSource(PlantedSource):
    """Each study's report names what its image shows; where that is nothing, there is no sentence."""

    boxes: bool = False

    def sentences(self, row):
        return Sentences(words(int(row.study)))


@pytest.fixture(scope="module")
def reported_build(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "reports"
    build(ReportedSource(), out, short_side=32, workers=1, progress=False)
    return out


@pytest.fixture(scope="module")
def result(planted_run, reported_build):
    return evaluate_retrieval(planted_run, reported_build, "test", batch_size=7, block=5, replicates=50)


def test_a_model_that_sees_what_reports_say_finds_all_of_them(result):
    reported = [words(number) for number in range(STUDIES) if words(number)]
    assert (result.records, result.left_out) == (len(reported), STUDIES - len(reported))
    assert_array_equal(result.ranks.pool, [len(set(reported)), len(reported)])
    assert_array_equal(np.sort(result.ranks.sharing), np.sort([reported.count(report) for report in reported]))
    for direction in ("image_to_report", "report_to_image"):
        assert result.metrics[f"{direction}/recall@1"].value == 1.0
        assert result.metrics[f"{direction}/median_rank"].value == 1.0
        assert result.metrics[f"{direction}/recall@1_shuffled"].value < 0.9


def test_pairs_are_named_by_the_hashed_keys_of_their_images_and_patients(result, reported_build):
    records = [record for record in open_split(reported_build, "test") if record.sentences]
    assert len(records) == result.records
    for name in ("patient_key", "image_key"):
        assert_array_equal(getattr(result.ranks, name), [int(getattr(record, name)[:8], 16) for record in records])


def test_chance_is_that_of_a_random_order(result):
    pool, pairs = result.ranks.pool, result.records
    assert_allclose(result.metrics["image_to_report/recall@1_chance"].value, 1 / pool[0])
    # A report is hit at once by any of the images that share it.
    expected = np.mean(result.ranks.sharing / pairs)
    assert_allclose(result.metrics["report_to_image/recall@1_chance"].value, expected)


def test_the_first_records_alone_are_a_smaller_pool(planted_run, reported_build):
    few = evaluate_retrieval(planted_run, reported_build, "test", records=7, batch_size=4, replicates=0)
    assert few.records + few.left_out == 7


def test_saved_ranks_give_the_same_numbers(result, reported_build, tmp_path):
    result.ranks.save(tmp_path / "ranks.npz")
    again = summarise(Ranks.load(tmp_path / "ranks.npz"), split="test", step=7, replicates=50)
    assert again.metrics == result.metrics
    assert_array_equal(again.ranks.image_key, result.ranks.image_key)
    arrays = load_arrays(tmp_path / "ranks.npz")
    del arrays["image_key"]  # as versions before saved them
    save_arrays(tmp_path / "old.npz", **arrays)
    old = Ranks.load(tmp_path / "old.npz")
    assert old.image_key is None
    assert summarise(old, split="test", step=7, replicates=50).metrics == result.metrics
    outcome = describe(again, reported_build, options={"seed": 0, "replicates": 50})
    assert (outcome.name, outcome.reasons) == ("retrieval-planted-test", {})
    np.savez(tmp_path / "other.npz", own=np.zeros((1, 2)))
    with pytest.raises(UserError, match="'shuffled' is missing"):
        Ranks.load(tmp_path / "other.npz")


def test_the_table_names_the_pool_and_what_was_left_out(result):
    lines = retrieval_table(result).splitlines()
    pool = f"{result.ranks.pool[1]} images and {result.ranks.pool[0]} distinct reports of {result.patients} patients"
    assert lines[0] == f"retrieval, test, step 7: {pool}; {result.left_out} images without a report left out"
    assert lines[3].split()[:6] == ["image", "to", "report", "R@1", "1.000", "1.000"]
    assert len(lines) == 3 + 8


@dataclasses.dataclass(frozen=True)
class SilentSource(PlantedSource):
    boxes: bool = False

    def sentences(self, row):
        return Sentences(())


def test_a_build_without_reports_is_refused_in_one_line(planted_run, tmp_path):
    build(SilentSource(), tmp_path / "silent", short_side=32, workers=1, progress=False)
    with pytest.raises(DataError, match="no record of split 'test' has a report"):
        evaluate_retrieval(planted_run, tmp_path / "silent", "test", batch_size=8)
