"""Results of tasks come in order, and come while later tasks still run."""

import time
from pathlib import Path

import pytest

from input_pipeline.pool import run_tasks
from input_pipeline.progress import Progress


def wait_for(task, advance):
    """Gives its number as soon as a file is there, if it names one."""
    number, file = task
    while file and not Path(file).exists():
        time.sleep(0.01)
    advance(1)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_a_result_can_be_taken_before_the_last_task_is_done(workers, tmp_path):
    sign = tmp_path / "sign"
    tasks = [(number, str(sign) if number == 5 else "") for number in range(6)]
    results = run_tasks(wait_for, tasks, workers, Progress("", len(tasks), "tasks", shown=False))
    assert next(results) == 0
    sign.touch()
    assert list(results) == [1, 2, 3, 4, 5]


def fail(task, advance):
    raise ValueError(task)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_is_that_of_the_results(workers):
    with pytest.raises(ValueError, match="7"):
        list(run_tasks(fail, [7, 7], workers, Progress("", 2, "tasks", shown=False)))
