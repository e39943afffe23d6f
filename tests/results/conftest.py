"""Run directories with results, as `msfl eval`, `msfl finetune` and `msfl ablate` leave them."""

import json
from pathlib import Path

import pytest

from msfl_jax.metrics import Interval
from msfl_jax.tasks.outcome import Outcome, save_outcome

WEIGHTS = ("global", "local", "instance", "modality")


@pytest.fixture
def run_directory(tmp_path):
    """Makes a run directory of a pretraining configuration, or of another one where `objectives` is None."""

    def make(name: str, objectives: str | None = ",".join(WEIGHTS), *, seed: int = 0, model: str = "demo") -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        config = {"name": model, "seed": seed, "data": {"directory": str(folder), "batch_size": 32}}
        if objectives is not None:
            on = objectives.split(",")
            config["objective"] = {f"lambda_{weight}": float(weight in on) for weight in WEIGHTS}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def save():
    """Saves a result with some metrics given as (value, low, high)."""

    def write(workdir: Path, task: str, dataset: str, metrics: dict, **changes) -> Outcome:
        values = {
            "task": task,
            "dataset": dataset,
            "split": "test",
            "split_hash": "ab12cd34ef56",
            "variant": "v",
            "options": {},
            "step": 500,
            "records": 3000,
            "patients": 2900,
            "metrics": {name: Interval(*numbers) for name, numbers in metrics.items()},
        }
        outcome = Outcome(**values | changes)
        save_outcome(outcome, workdir)
        return outcome

    return write
