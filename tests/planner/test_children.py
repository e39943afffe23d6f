"""The processes that compile: what they are given, what they answer, and how they fail."""

import os
import sys

import pytest

from input_pipeline.errors import CheckpointError, MsflError, RetryError, UserError
from msfl_jax.planner import children
from msfl_jax.planner.children import Child, environment, refuse_missing
from msfl_jax.planner.compiler import too_large
from msfl_jax.planner.worker import answer

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


def child(script):
    return Child("cpu", os.environ, [sys.executable, "-c", script])


def test_an_answer_is_a_line_of_json():
    with child(ECHO) as one:
        assert one.ask({"rates": [1, 2]}) == {"rates": [1, 2]}
        assert one.ask({"again": "é"}) == {"again": "é"}


@pytest.mark.parametrize(("code", "kind"), [(2, UserError), (75, RetryError), (1, MsflError)])
def test_what_is_refused_is_raised_as_what_it_is(code, kind):
    with child(ECHO) as one, pytest.raises(kind, match="too odd") as error:
        one.ask({"refused": "too odd", "exit_code": code})
    assert type(error.value) is kind


def test_a_process_that_dies_is_one_line_with_its_last_words():
    dying = child("import sys; sys.stdin.readline(); sys.exit('out of cheese\\n')")
    with dying as one, pytest.raises(RetryError, match=r"ended with code 1 \(out of cheese\)") as error:
        one.ask({"ask": "compile"})
    assert "\n" not in str(error.value)


def test_a_child_leaves_this_machines_accelerators_alone():
    given = {"JAX_PLATFORMS": "tpu", "TPU_WORKER_ID": "3", "MEGASCALE_NUM_SLICES": "2", "XLA_FLAGS": "--a", "X": "y"}
    found = environment("gpu", given)
    assert found["JAX_PLATFORMS"] == "cpu"
    assert found["X"] == "y"
    assert found["XLA_FLAGS"].startswith("--a --xla_gpu_autotune_level=0")
    assert not any(name.startswith(("TPU_WORKER", "MEGASCALE")) for name in found)
    assert environment("tpu", given)["XLA_FLAGS"] == "--a"


@pytest.mark.parametrize(("platform", "extra"), [("tpu", "msfl_jax[tpu]"), ("gpu", "msfl_jax[cuda]")])
def test_a_compiler_that_is_not_installed_is_one_line_that_names_the_extra(monkeypatch, platform, extra):
    monkeypatch.setattr(children.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError) as error:
        refuse_missing(platform)
    assert extra in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_the_worker_answers_whatever_goes_wrong(capsys, config):
    refused = answer({"ask": "compile", "topology": "v5x:1x1", "config": {}, "vocab_size": 1, "hlo": "x"})
    assert refused["exit_code"] == 2
    assert "v5x" in refused["refused"]
    assert answer({"ask": "dance"})["exit_code"] == 1
    assert "dance" in capsys.readouterr().err
    assert CheckpointError.exit_code not in children._ERRORS


def test_what_a_tpu_compiler_says_about_memory_is_read():
    found = too_large("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.07G of 15.75G hbm. Exceeded")
    assert found.needed == 17.07 * 2**30
    assert found.limit == 15.75 * 2**30
    silent = too_large("RESOURCE_EXHAUSTED: for another reason")
    assert silent.needed != silent.needed
