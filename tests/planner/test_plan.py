"""`msfl plan` as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from msfl_jax.commands import plan as command
from msfl_jax.planner import children

from ..small import OVERRIDES, VOCABULARY

ROOT = Path(__file__).parents[2]
LIMITED = ["--vocab-size", str(VOCABULARY), "--compilations", "1"]


def msfl(*arguments, folder):
    words = [sys.executable, "-m", "msfl_jax.cli", "plan", *arguments, "--cache", str(folder)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def planned(folder):
    """A plan for this CPU, as JSON."""
    found = msfl("--config", "demo", "--topology", "cpu", "--json", "--vocab-size", "40", *OVERRIDES, folder=folder)
    assert found.returncode == 0, found.stderr
    return found


def test_json_has_every_number_of_a_plan_for_this_cpu(planned):
    (plan,) = json.loads(planned.stdout)
    assert (plan["topology"], plan["chips"], plan["batch"], plan["fits"]) == ("cpu", 1, 32, True)
    memory = plan["memory"]
    assert memory["peak"] > memory["temporary"] > 0
    assert memory["optimizer"] > 2 * memory["parameters"] > 0
    times = plan["times"]
    assert times["step"] > times["compute"] > 0
    assert plan["studies_per_second"] == pytest.approx(32 / times["step"])
    assert 0 < plan["mfu"] < 1
    assert plan["hours"] == pytest.approx(100 * times["step"] / 3600)
    assert plan["largest"]["batch"] >= 32 * 8
    assert len(plan["largest"]["tried"]) <= 4
    assert all(exchange["sent"] == 0 for exchange in plan["exchanges"])
    assert "jax" in plan["versions"]


def test_progress_goes_to_stderr_with_an_estimate(planned):
    lines = planned.stderr.splitlines()
    assert any("cpu, batch 32: about" in line and "at most 4" in line for line in lines)
    assert any(line.startswith("measuring") for line in lines)


def test_what_is_compiled_is_not_compiled_again_and_the_table_says_the_same(planned, folder):
    found = msfl("--config", "demo", "--topology", "cpu", *LIMITED, *OVERRIDES, folder=folder)
    assert found.returncode == 0, found.stderr
    assert "found in the cache" in found.stderr
    assert "about" not in found.stderr
    (plan,) = json.loads(planned.stdout)
    lines = dict(line.rsplit("   ", 1) for line in found.stdout.splitlines() if "   " in line)
    cells = {name.strip(): cell.strip() for name, cell in lines.items()}
    assert cells["chips"] == "1"
    assert cells["peak"] == f"{plan['memory']['peak'] / 1e9:.2f}"
    assert cells["bound by"] in ("compute", "memory")
    assert "demo: global batch 32, 100 steps, 40 tokens" in found.stdout
    assert command.MODEL in found.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "demo", "--topology", "v5x:1x1"], ["--topology v5x:1x1", "v5e:16x16"]),
        (["--config", "demoo", "--topology", "cpu"], ["did you mean 'demo'"]),
        (["--config", "demo"], ["--topology"]),
        (["--config", "demo", "--topology", "cpu", "--config.mesh.data=3"], ["'mesh'", "1 device(s)"]),
        (["--config", "demo", "--topology", "cpu", "--compilations", "5"], ["--compilations", "equal to 4"]),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, words, folder):
    found = msfl(*arguments, folder=folder)
    assert found.returncode == 2
    errors = [line for line in found.stderr.splitlines() if not line.startswith("compiling")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    for word in words:
        assert word in errors[0]


def test_a_cache_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    found = msfl("--config", "demo", "--topology", "cpu", folder=tmp_path / "file")
    assert found.returncode == 2
    assert "is a file; expected a folder" in found.stderr


@pytest.mark.skipif(children.importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_the_extra_is_named(folder):
    found = msfl("--config", "demo", "--topology", "v5e:2x2", folder=folder)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "pip install 'msfl_jax[tpu]'" in found.stderr


@pytest.mark.slow
def test_a_step_is_compiled_for_a_tpu_slice(folder):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'msfl_jax[tpu]'")
    found = msfl("--config", "demo", "--topology", "v5e:4x4", "--json", *LIMITED, *OVERRIDES, folder=folder)
    assert found.returncode == 0, found.stderr
    (plan,) = json.loads(found.stdout)
    assert (plan["chips"], plan["chip"], plan["fits"]) == (16, "TPU v5e", True)
    sent = {exchange["kind"]: exchange for exchange in plan["exchanges"]}
    assert sent["all-reduce"]["sent"] > 0
    assert plan["program_flops"] > 0.5 * plan["flops"]
    assert plan["times"]["network"] > 0
