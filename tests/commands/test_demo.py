"""The demo's own parts: its summary, and what it does with a folder that is already there. `.ci/run` runs it whole."""

import json
import math
from unittest.mock import Mock

import pytest

from input_pipeline.errors import UserError
from msfl_jax.commands.demo import Folders, estimated_minutes, same_study, summarise
from msfl_jax.config import config_hash
from msfl_jax.config_files import load_config
from msfl_jax.metrics import Interval
from msfl_jax.tasks.grounding_result import GroundingResult
from msfl_jax.tasks.zero_shot import ZeroShotResult


@pytest.fixture
def results():
    """A zero-shot and a grounding result, of which only the intervals are read."""
    zero_shot = Mock(spec=ZeroShotResult)
    zero_shot.auc = {"Pneumonia": Interval(0.9, 0.8, 0.95)}
    zero_shot.mean = Interval(0.85, 0.8, math.nan)
    grounding = Mock(spec=GroundingResult)
    grounding.metrics = {
        "cnr": Interval(1.5, 1.4, 1.6),
        "absolute_cnr": Interval(1.6, 1.5, 1.7),
        "miou": Interval(math.nan, math.nan, math.nan),
        "pointing_game": Interval(0.5, 0.4, 0.6),
        "cnr_shuffled_phrases": Interval(0.1, 0.0, 0.2),
    }
    return zero_shot, grounding


@pytest.mark.parametrize("name", ["demo", "demo:short"])
def test_the_summary_holds_plain_numbers_and_an_interval_beside_each(results, name):
    settings = load_config(name)
    summary = summarise(*results, seconds=12.345, settings=settings)
    assert summary == {
        "zero_shot": {
            "pneumonia_auc": 0.9,
            "mean_auc": 0.85,
            "pneumonia_auc_interval": [0.8, 0.95],
            "mean_auc_interval": [0.8, None],
        },
        "grounding": {
            "cnr": 1.5,
            "miou": None,
            "pointing_game": 0.5,
            "cnr_shuffled_phrases": 0.1,
            "cnr_interval": [1.4, 1.6],
            "miou_interval": [None, None],
            "pointing_game_interval": [0.4, 0.6],
            "cnr_shuffled_phrases_interval": [0.0, 0.2],
        },
        "seconds": 12.3,
        "config_hash": config_hash(settings),
    }
    json.dumps(summary, allow_nan=False)


def test_a_study_is_made_once_and_another_one_is_refused(tmp_path):
    folders, wanted = Folders(tmp_path / "demo"), {"studies": 100, "seed": 0}
    assert not same_study(folders, wanted)
    assert not same_study(folders, wanted), "noted, but not made: it was killed before"
    folders.study.mkdir()
    assert same_study(folders, wanted)
    with pytest.raises(UserError, match="another --workdir"):
        same_study(folders, {"studies": 100, "seed": 1})


def test_the_estimate_grows_with_studies_and_steps():
    assert estimated_minutes(100, 1) == 1
    assert estimated_minutes(6600, 1000) < estimated_minutes(6600, 2000)
    assert estimated_minutes(6600, 1000) < estimated_minutes(20000, 1000)
    assert estimated_minutes(6600, 1000) <= 10
