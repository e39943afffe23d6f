"""Drawn findings: exact masks and boxes at plausible places, visible where their mask says, at any size."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from input_pipeline.datasets.synthetic import FINDINGS
from input_pipeline.datasets.synthetic.anatomy import LEFT, draw_lateral
from input_pipeline.datasets.synthetic.findings import box_of, draw_frontal
from input_pipeline.datasets.synthetic.study import DEVICES, plan_studies

STUDIES = 250


@pytest.fixture(scope="module")
def drawn():
    """(study, drawing) of 250 studies at 256 px."""
    plan = plan_studies(STUDIES, seed=2)
    return [(study, draw_frontal(study)) for study in map(plan.study, range(STUDIES))]


def instances(drawn):
    """Every drawn lesion as (study, finding, lesion, mask)."""
    for study, drawing in drawn:
        lesions = [(position, lesion) for position, finding in enumerate(study.findings) for lesion in finding.lesions]
        assert [position for position, _ in drawing.masks] == [position for position, _ in lesions]
        for (position, lesion), (_, mask) in zip(lesions, drawing.masks, strict=True):
            yield study, study.findings[position], lesion, mask


def test_every_finding_and_device_is_drawn_with_a_mask_that_can_be_seen(drawn):
    seen = {finding.kind or finding.name for _, finding, _, _ in instances(drawn)}
    assert seen == {*FINDINGS, *DEVICES} - {"Support Devices"}
    for study, finding, _, mask in instances(drawn):
        assert mask.shape == (256, 256)
        assert mask.sum() >= 100, (study.index, finding.name)


def test_a_box_is_the_extent_of_its_mask(drawn):
    for _, _, _, mask in instances(drawn):
        points = (
            [(row, column) for row in range(256) for column in range(256) if mask[row, column]]
            if mask.sum() < 400
            else None
        )
        rows, columns = zip(*points, strict=True) if points else np.nonzero(mask)
        expected = (min(columns), min(rows), max(columns) - min(columns) + 1, max(rows) - min(rows) + 1)
        assert box_of(mask) == expected


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="empty"):
        box_of(np.zeros((8, 8), bool))


def test_findings_of_the_left_lung_lie_on_the_right_half_of_the_image(drawn):
    for study, finding, lesion, mask in instances(drawn):
        if finding.name in ("Cardiomegaly", "Support Devices"):
            continue
        centre = np.nonzero(mask)[1].mean()
        assert (centre > 128) == (lesion.side == LEFT), (study.index, finding.name)


def test_zones_follow_from_top_to_bottom(drawn):
    heights = {"upper": [], "middle": [], "lower": []}
    for _, finding, _, mask in instances(drawn):
        if finding.name in ("Pneumonia", "Lung Lesion"):
            heights[finding.zone].append(np.nonzero(mask)[0].mean())
    assert max(heights["upper"]) < min(heights["lower"])
    assert np.mean(heights["upper"]) + 20 < np.mean(heights["middle"]) < np.mean(heights["lower"]) - 20


def test_findings_keep_to_their_organ(drawn):
    for _, finding, _, mask in instances(drawn):
        rows, columns = np.nonzero(mask)
        if finding.name == "Pleural Effusion":
            assert rows.mean() > 128  # fluid sinks
        if finding.name == "Pneumothorax":
            assert rows.mean() < 128  # air rises
        if finding.name == "Cardiomegaly":
            assert 110 < columns.mean() < 165
            assert rows.mean() > 128
        if finding.name == "Edema":
            assert 70 < rows.mean() < 170


def test_a_finding_changes_the_image_where_its_mask_is(drawn):
    for study, drawing in drawn[:120]:
        if len(study.findings) != 1:
            continue
        without = draw_frontal(study, findings=()).image.astype(int)
        change = np.abs(drawing.image.astype(int) - without)
        inside = np.any([mask for _, mask in drawing.masks], axis=0)
        far = ~cv2.dilate(inside.astype(np.uint8), np.ones((41, 41), np.uint8)).astype(bool)
        assert change[inside].mean() > 8, (study.index, study.findings[0].name)
        assert change[far].mean() < 0.05 * change[inside].mean(), (study.index, study.findings[0].name)


@pytest.mark.parametrize("name", ["Pneumonia", "Pleural Effusion", "Atelectasis", "Lung Lesion", "Edema"])
def test_lesions_stay_visible_at_64_pixels(drawn, name):
    contrasts = []
    for study, finding, _, _ in instances(drawn):
        if finding.name != name:
            continue
        alone = draw_frontal(study, findings=(finding,))
        without = draw_frontal(study, findings=())
        small = [
            cv2.resize(picture.image, (64, 64), interpolation=cv2.INTER_AREA).astype(float)
            for picture in (alone, without)
        ]
        contrasts.append(np.max(small[0] - small[1]))
    assert np.min(contrasts) > 15  # grey levels of 255; noise at 64 px has a deviation near 2


def test_worse_grades_are_larger_or_denser():
    plan = plan_studies(60, seed=9)
    change = {name: np.zeros(3) for name in ("Pneumonia", "Pleural Effusion", "Pneumothorax", "Edema", "Atelectasis")}
    for study in map(plan.study, range(60)):
        for finding in (one for one in study.findings if one.name in change):
            without = draw_frontal(study, 128, findings=()).image.astype(int)
            for grade in range(3):
                lesions = tuple(replace(lesion, grade=grade) for lesion in finding.lesions)
                with_it = draw_frontal(study, 128, findings=(replace(finding, grade=grade, lesions=lesions),)).image
                change[finding.name][grade] += np.abs(with_it - without).sum()
    for name, totals in change.items():
        assert 0 < totals[0] < totals[1] < totals[2], name


def test_images_are_the_same_for_the_same_seed_and_differ_between_studies():
    plan, again, other = plan_studies(30, seed=1), plan_studies(30, seed=1), plan_studies(30, seed=3)
    images = [draw_frontal(plan.study(index), 64).image for index in range(6)]
    for index, image in enumerate(images):
        np.testing.assert_array_equal(image, draw_frontal(again.study(index), 64).image)
        assert (image != draw_frontal(other.study(index), 64).image).mean() > 0.5
    assert all((images[0] != image).mean() > 0.5 for image in images[1:])


def test_a_box_at_twice_the_size_is_twice_as_large():
    plan = plan_studies(100, seed=6)
    study = next(
        study for study in map(plan.study, range(100)) if any(one.name == "Cardiomegaly" for one in study.findings)
    )
    position = [one.name for one in study.findings].index("Cardiomegaly")
    small, large = (dict(draw_frontal(study, size).masks)[position] for size in (128, 256))
    assert np.allclose(2 * np.array(box_of(small)), box_of(large), atol=3)


def test_a_lateral_view_is_another_picture_of_the_same_size():
    study = plan_studies(10, seed=0).study(0)
    lateral = draw_lateral(study.generator("lateral"), study.patient, 96)
    assert lateral.shape == (96, 96)
    assert lateral.dtype == np.uint8
    assert np.abs(lateral.astype(int) - draw_frontal(study, 96).image).mean() > 20
