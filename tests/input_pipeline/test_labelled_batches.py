"""Images with labels: nested fractions of whole patients, the same rows for any number of processes, every record once in evaluation."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from input_pipeline.build import build
from input_pipeline.labelled_batches import (
    describe_fractions,
    labelled_batches,
    labelled_evaluation_batches,
    labelled_records,
    view_spec,
)
from input_pipeline.sources import ImageRow, ImagesOnly, Scan, Sentences

STUDIES, FINDINGS = 60, ("Edema", "Pneumonia")
SPEC = view_spec(16, scale=(0.5, 1.0), flip=True)


def patient(number: int) -> str:
    return f"p{number // 3 if number < 30 else number}"


def labels(number: int) -> tuple[float, float]:
    return float(number % 2), (1.0, 0.0, -1.0, float("nan"))[number % 4]


@dataclasses.dataclass(frozen=True)
class Source(ImagesOnly):
    """Image n is grey n * 4; with `published`, its first six training images are "train_10", or `lists` say."""

    published: bool
    name: str = "grey"
    lists: Mapping[str, range] = dataclasses.field(default_factory=lambda: {"train_10": range(6)})

    def label_names(self):
        return FINDINGS

    def settings(self):
        return {}

    def files(self, row):
        return ()

    def scan(self):
        rows = [
            ImageRow(patient(n), str(n), f"i{n:02d}", "none", "PA", labels(n), subsets=self._subsets(n))
            for n in range(STUDIES)
        ]
        held = [dataclasses.replace(row, subsets=()) for row in rows[:5]]
        return Scan({"train": rows, "test": held}, {"train": Counter(), "test": Counter()}, {})

    def _subsets(self, number):
        return tuple(name for name, count in self.lists.items() if self.published and number in count)

    def sentences(self, row):
        return Sentences(())

    def image(self, row):
        image = np.full((24, 24), 4 * int(row.study), np.uint8)
        image[:, :6] = 255 - image[:, :6]
        return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture(scope="module")
def grey_build(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "grey"
    build(Source(published=False), out, short_side=24, workers=1, progress=False)
    return out


def patients_of(records):
    return {record.patient_key for record in records}


def test_fractions_are_whole_patients_nested_and_of_the_right_size(grey_build):
    everything = list(labelled_records(grey_build, 100, seed=0))
    for seed in (0, 1):
        parts = {fraction: list(labelled_records(grey_build, fraction, seed=seed)) for fraction in (1, 10, 50)}
        assert {fraction: len(part) for fraction, part in parts.items()}[1] <= 3
        assert 6 <= len(parts[10]) <= 8
        assert 30 <= len(parts[50]) <= 32
        for smaller, larger in itertools.pairwise((*parts.values(), everything)):
            assert {r.image_key for r in smaller} <= {r.image_key for r in larger}
        for part in parts.values():
            rest = [r for r in everything if r.image_key not in {chosen.image_key for chosen in part}]
            assert not patients_of(part) & patients_of(rest)
    different = [{r.image_key for r in labelled_records(grey_build, 50, seed=seed)} for seed in (0, 1)]
    assert different[0] != different[1]


def test_a_fraction_does_not_depend_on_the_salt_of_the_builds_keys(grey_build, tmp_path):
    build(Source(published=False), tmp_path / "again", short_side=24, workers=1, progress=False)
    first, second = (list(labelled_records(folder, 10, seed=0)) for folder in (grey_build, tmp_path / "again"))
    assert [r.image for r in first] == [r.image for r in second]


def test_a_published_list_goes_before_what_a_seed_would_draw(tmp_path):
    build(Source(published=True), tmp_path / "build", short_side=24, workers=1, progress=False)
    for seed in (0, 1):
        assert len(labelled_records(tmp_path / "build", 10, seed=seed)) == 6
    assert len(labelled_records(tmp_path / "build", 1, seed=0)) <= 3


def test_drawn_subsets_pass_over_published_lists_and_are_those_of_a_build_without_lists(grey_build, tmp_path):
    apart = {"train_1": range(4, 8), "train_10": range(6)}
    build(Source(published=True, lists=apart), tmp_path / "build", short_side=24, workers=1, progress=False)
    assert describe_fractions(tmp_path / "build", (1, 10, 100), (0, 1)).startswith("not nested: 2 of the 4 images")
    assert describe_fractions(tmp_path / "build", (1, 10, 100), (0, 1), subsets="drawn") == NESTED
    for seed in (0, 1):
        drawn = {part: labelled_records(tmp_path / "build", part, seed=seed, subsets="drawn") for part in (1, 10)}
        assert set(drawn[1].indices) <= set(drawn[10].indices)
        for part, records in drawn.items():
            assert_array_equal(records.indices, labelled_records(grey_build, part, seed=seed).indices)
    options = {"batch_size": 4, "split": "train", "fraction": 10, "seed": 1, "subsets": "drawn"}
    with labelled_evaluation_batches(tmp_path / "build", view_spec(24), **options) as batches:
        assert sum(int(batch["valid"].sum()) for batch in batches) == len(drawn[10])


def described(folder, lists, fractions=(10, 1, 100), seeds=(0, 1)):
    build(Source(published=True, lists=lists), folder, short_side=24, workers=1, progress=False)
    return describe_fractions(folder, fractions, seeds)


NESTED = "nested: the images of each percentage are among those of every larger one"


def test_what_is_drawn_is_said_to_be_nested_and_a_single_percentage_says_nothing(grey_build):
    assert describe_fractions(grey_build, (1, 10, 100), (0, 1)) == NESTED
    assert describe_fractions(grey_build, (10, 100), (0,)) == ""


def test_published_lists_are_said_to_be_nested_where_they_are(tmp_path):
    same = "train_1 and train_10: the build's own, the same for every seed"
    assert described(tmp_path / "in", {"train_1": range(2, 4), "train_10": range(6)}) == f"{NESTED}; {same}"
    apart = "not nested: 2 of the 4 images of train_1 are not among those of train_10"
    assert described(tmp_path / "out", {"train_1": range(4, 8), "train_10": range(6)}) == f"{apart}; {same}"


def test_a_drawn_percentage_beside_a_published_one_is_compared_with_it(tmp_path):
    said = described(tmp_path / "one", {"train_50": range(30)}, fractions=(10, 50))
    drawn = {seed: set(labelled_records(tmp_path / "one", 10, seed=seed).indices) for seed in (0, 1)}
    seed = next(seed for seed in (0, 1) if drawn[seed] - set(range(30)))
    outside = len(drawn[seed] - set(range(30)))
    assert said == (
        f"not nested: {outside} of the {len(drawn[seed])} images of 10 % of seed {seed} are not among those of train_50; "
        "train_50: the build's own, the same for every seed"
    )


def take(count, source, **options):
    with labelled_batches(source, SPEC, batch_size=8, seed=5, **options) as batches:
        return list(itertools.islice(batches, count))


def test_rows_are_the_same_for_any_number_of_processes_and_from_any_step(grey_build):
    source = labelled_records(grey_build, 50, seed=0)
    whole = take(6, source)
    assert (whole[0]["image"].shape, whole[0]["labels"].shape) == ((8, 16, 16, 1), (8, 2))
    halves = [take(6, source, process_index=index, process_count=2) for index in (0, 1)]
    for step, batch in enumerate(whole):
        for name, value in batch.items():
            assert_array_equal(np.concatenate([half[step][name] for half in halves]), value)
    for name, value in take(1, source, start_step=5)[0].items():
        assert_array_equal(value, whole[5][name])


def test_an_epoch_holds_every_record_once_with_its_own_labels(grey_build):
    source = labelled_records(grey_build, 100, seed=0)
    batches = take(15, source)  # two epochs of 60
    known = np.concatenate([batch["labels"] for batch in batches]).reshape(2, 60, 2)
    expected = Counter(str(record.labels) for record in source)
    assert [Counter(str(row) for row in epoch) for epoch in known] == [expected, expected]
    first, second = (np.concatenate([b["image"] for b in batches])[part] for part in (slice(60), slice(60, 120)))
    assert (first != second).any()


def test_evaluation_shows_every_record_once_in_order_and_marks_what_fills_the_last_batch(grey_build):
    with labelled_evaluation_batches(grey_build, view_spec(24), batch_size=4, split="test") as batches:
        rows = list(batches)
    assert [batch["valid"].tolist() for batch in rows] == [[True] * 4, [True, False, False, False]]
    records = list(labelled_records(grey_build, 100, seed=0))[:5]
    for name in ("patient_key", "image_key"):
        keys = np.concatenate([batch[name] for batch in rows])[:5]
        assert_array_equal(keys, [int(getattr(record, name)[:8], 16) for record in records])
    assert_array_equal(np.concatenate([batch["labels"] for batch in rows])[:5], [record.labels for record in records])
    levels = np.concatenate([batch["image"] for batch in rows])[:5, 12, 18, 0]
    assert np.abs(levels.astype(int) - 4 * np.arange(5)).max() <= 3


def test_the_training_split_of_an_evaluation_is_the_fraction(grey_build):
    options = {"batch_size": 4, "split": "train", "fraction": 10, "seed": 1}
    with labelled_evaluation_batches(grey_build, view_spec(24), **options) as batches:
        count = sum(int(batch["valid"].sum()) for batch in batches)
    assert count == len(labelled_records(grey_build, 10, seed=1))
