"""The fine-tuning loop on a linear model: resumed bit-equally, best checkpoint kept, refusals, the same on another mesh."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from input_pipeline.errors import CheckpointError, DataError, DivergedError, RetryError
from msfl_jax.config import MeshConfig, TrainConfig
from msfl_jax.objective import Tally
from msfl_jax.train.adaptation import Adaptation, adapt, best_parameters
from msfl_jax.train.preemption import Preemption

START = {"fc": {"kernel": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), "bias": np.zeros(2, np.float32)}}


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int = 3
    train: TrainConfig = TrainConfig(40, 1, 10, 2, 0, 5)  # noqa: RUF009
    mesh: MeshConfig = MeshConfig(-1, 1, 1)  # noqa: RUF009


def rows(start, index, count):
    """Batches of eight rows that follow from the step alone."""
    step, part = start, 8 // count
    while True:
        image = np.random.default_rng(step).normal(size=(8, 3)).astype(np.float32)
        yield {"image": image[index * part : (index + 1) * part]}
        step += 1


def loss(params, batch, key):
    """Noisy regression on a fixed map; the noise is drawn from the step's key."""
    image = batch["image"]
    target = image @ jnp.arange(6.0).reshape(3, 2) + 0.1 * jax.random.normal(key, (len(image), 2))
    errors = jnp.square(image @ params["fc"]["kernel"] + params["fc"]["bias"] - target)
    return errors.mean(), {"loss/squares": Tally(errors.sum(), jnp.float32(errors.size))}


def task(**changes) -> Adaptation:
    usual = Adaptation(
        params=START,
        loss=loss,
        optimizer=optax.sgd(0.05, momentum=0.9),
        rate=lambda step: 0.05,
        batches=rows,
        batch_size=8,
        meta={"data": {"members": "abc", "fraction": 10}},
        label="",
    )
    return dataclasses.replace(usual, **changes)


def logged(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "studies_per_second"} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return adapt(task(), Settings(), workdir), workdir


@pytest.fixture
def stopped(tmp_path):
    """The run directory of a run that a signal stopped after step 13."""

    def stop(_params, step):
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    settings = Settings(train=dataclasses.replace(Settings().train, evaluate_every=12))
    with pytest.raises(RetryError, match="step 13 is saved"):
        adapt(task(evaluate=stop), settings, tmp_path)
    return tmp_path


def test_13_and_27_steps_are_bit_equal_to_40(uninterrupted, stopped):
    file = stopped / "config.json"
    file.write_text(file.read_text().replace('"evaluate_every": 12', '"evaluate_every": 0'))
    result = adapt(task(), Settings(), stopped)
    jax.tree.map(assert_array_equal, jax.device_get(result.params), jax.device_get(uninterrupted[0].params))
    assert logged(stopped) == logged(uninterrupted[1])
    assert [line["step"] for line in logged(stopped)] == list(range(1, 41))


def test_the_loop_equals_plain_optax(uninterrupted):
    params, optimizer = jax.tree.map(jnp.asarray, START), optax.sgd(0.05, momentum=0.9)
    state, batches = optimizer.init(params), rows(0, 0, 1)
    for step in range(40):
        key = jax.random.fold_in(jax.random.key(3), step)
        gradients = jax.grad(loss, has_aux=True)(params, next(batches), key)[0]
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=2e-5), jax.device_get(uninterrupted[0].params), params)


def test_another_mesh_gives_the_same(uninterrupted, tmp_path):
    result = adapt(task(), Settings(mesh=MeshConfig(4, 2, 1)), tmp_path)
    jax.tree.map(
        lambda a, b: assert_allclose(a, b, rtol=1e-5), *map(jax.device_get, (result.params, uninterrupted[0].params))
    )


def test_the_tasks_own_parameters_outlive_the_run(tmp_path):
    own = jax.tree.map(jnp.asarray, START)
    adapt(task(params=own), Settings(train=TrainConfig(2, 1, 0, 1, 0, 5)), tmp_path)
    jax.tree.map(assert_array_equal, own, START)


def test_the_best_checkpoint_stays_and_is_read(tmp_path):
    scores = {10: 0.5, 20: 0.9, 30: 0.7, 40: float("nan")}
    seen = {}

    def evaluate(params, step):
        seen[step] = jax.device_get(params)
        return {"dice": scores[step]}

    settings = Settings(train=TrainConfig(40, 5, 0, 1, 10, 5))
    adapt(task(evaluate=evaluate, best_metric="dice"), settings, tmp_path)
    params, step = best_parameters(tmp_path, jax.eval_shape(lambda: START))
    assert step == 20
    jax.tree.map(assert_array_equal, jax.device_get(params), seen[20])
    assert best_parameters(tmp_path, jax.eval_shape(lambda: START), step=None)[1] == 40
    assert {line["step"]: line["dice"] for line in logged(tmp_path) if "dice" in line}[20] == 0.9


class Scored:
    """An evaluation with a score by step, which notes when it was asked."""

    def __init__(self, scores):
        self.scores, self.seen = scores, []

    def __call__(self, _params, step):
        self.seen.append(step)
        return {"dice": self.scores[step]}

    def task(self):
        return task(evaluate=self, best_metric="dice")


@pytest.fixture
def in_one_go(tmp_path):
    """A run of 40 steps that is evaluated every ten; step 20 is the best."""
    settings = Settings(train=dataclasses.replace(Settings().train, evaluate_every=10))
    scores = {10: 0.5, 20: 0.9, 30: 0.7, 40: 0.8}
    adapt(Scored(scores).task(), settings, tmp_path / "whole")
    return settings, scores, tmp_path / "whole"


def stop_at(monkeypatch, step):
    """Lets a run be asked to stop right after a step, whatever the devices are at."""
    monkeypatch.setattr(Preemption, "reached", lambda self, at: at == step)


def test_a_stop_at_an_evaluation_step_changes_neither_the_best_checkpoint_nor_the_log(in_one_go, tmp_path, monkeypatch):
    settings, scores, whole = in_one_go
    stop_at(monkeypatch, 20)
    first, second, third = Scored(scores), Scored(scores), Scored(scores)
    with pytest.raises(RetryError, match="step 20 is saved"):
        adapt(first.task(), settings, tmp_path / "parts")
    assert first.seen == [10]
    adapt(second.task(), settings, tmp_path / "parts")
    assert second.seen == [20, 30, 40]
    ours, theirs = (best_parameters(path, jax.eval_shape(lambda: START)) for path in (tmp_path / "parts", whole))
    assert ours[1] == theirs[1] == 20
    jax.tree.map(assert_array_equal, *map(jax.device_get, (ours[0], theirs[0])))
    assert logged(tmp_path / "parts") == logged(whole)
    adapt(third.task(), settings, tmp_path / "parts")
    assert third.seen == []


def test_a_stop_at_the_last_step_leaves_out_nothing(in_one_go, tmp_path, monkeypatch):
    settings, scores, _ = in_one_go
    stop_at(monkeypatch, 40)
    last = Scored(scores | {40: 1.0})
    adapt(last.task(), settings, tmp_path / "parts")
    assert last.seen == [10, 20, 30, 40]
    assert best_parameters(tmp_path / "parts", jax.eval_shape(lambda: START))[1] == 40


def test_without_evaluations_in_between_there_is_one_at_the_end(tmp_path):
    last = Scored({40: 0.3})
    adapt(last.task(), Settings(), tmp_path)
    assert last.seen == [40]
    assert best_parameters(tmp_path, jax.eval_shape(lambda: START))[1] == 40


def test_without_a_finite_score_the_run_says_why_it_has_no_best_checkpoint(tmp_path):
    never = Scored({40: float("nan")})
    for _ in range(2):  # also where there is nothing left to train
        with pytest.raises(DataError, match="no evaluation gave a finite dice, so no checkpoint is the best"):
            adapt(never.task(), Settings(), tmp_path)
    assert best_parameters(tmp_path, jax.eval_shape(lambda: START), step=None)[1] == 40


def test_a_run_of_other_settings_or_other_data_is_refused(stopped):
    with pytest.raises(CheckpointError, match=r"seed 3 is now 4"):
        adapt(task(), Settings(seed=4), stopped)
    settings = Settings(train=dataclasses.replace(Settings().train, evaluate_every=12))
    with pytest.raises(CheckpointError, match=r"data .*fraction.* use a new workdir"):
        adapt(task(meta={"data": {"members": "abc", "fraction": 1}}), settings, stopped)


def test_a_loss_that_is_no_number_changes_nothing_and_ends_the_run(tmp_path):
    def broken(params, batch, key):
        value, tallies = loss(params, batch, key)
        return value * jnp.nan, tallies

    with pytest.raises(DivergedError, match="3 steps in a row"):
        adapt(task(loss=broken), Settings(train=TrainConfig(40, 1, 1, 1, 0, 3)), tmp_path)
    params, step = best_parameters(tmp_path, jax.eval_shape(lambda: START), step=None)
    assert step < 40
    jax.tree.map(assert_array_equal, jax.device_get(params), START)
