"""Presets of compiler flags: what a real XLA says to them, and what happens to flags that it does not know."""

import os
import re
import subprocess
import sys

import jax
import pytest

from input_pipeline.errors import UserError
from msfl_jax.config import MeshConfig
from msfl_jax.parallel import xla_flags
from msfl_jax.parallel.mesh import make_mesh, replicated
from msfl_jax.parallel.xla_flags import PRESETS, Preset, compiler_options, known_flags, use_preset
from msfl_jax.train import step
from msfl_jax.train.state import TrainState


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_this_xla_takes_every_flag_of_a_preset(name):
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    assert use_preset(name, environment) == []
    assert environment["XLA_FLAGS"].split() == ["--xla_force_host_platform_device_count=2", *PRESETS[name].xla]
    script = "import jax; print(len(jax.devices()))"
    started = os.environ | environment | {"JAX_PLATFORMS": "cpu"}
    found = subprocess.run([sys.executable, "-c", script], env=started, capture_output=True, text=True, check=True)
    assert found.stdout == "2\n"


def test_a_flag_that_this_xla_does_not_know_is_dropped_and_named(monkeypatch):
    flags = ("--xla_gpu_enable_latency_hiding_scheduler=true", "--xla_gpu_graph_level=0", "--xla_invented=1")
    monkeypatch.setitem(PRESETS, "old", Preset(xla=flags))
    environment = {}
    [line] = use_preset("old", environment)
    assert environment == {"XLA_FLAGS": flags[0]}
    assert line == "old preset: unknown here and left out of XLA_FLAGS: --xla_gpu_graph_level=0 --xla_invented=1"


def test_unknown_arguments_of_the_tpu_runtime_are_dropped_one_complaint_at_a_time():
    unknown = ["xla_tpu_b", "xla_tpu_c"]
    tried = []

    def run(_variable, value):
        tried.append(value)
        named = next((name for name in unknown if f"--{name}=" in value), None)
        return (1, f"ERROR: Unknown command line flag '{named}'\n") if named else (0, "")

    flags = ["--xla_tpu_a=1", "--xla_tpu_b=1", "--xla_tpu_c=1"]
    assert known_flags("LIBTPU_INIT_ARGS", flags, run) == (
        ["--xla_tpu_a=1"],
        "unknown here and left out of LIBTPU_INIT_ARGS: --xla_tpu_b=1 --xla_tpu_c=1",
    )
    assert len(tried) == 3


def test_a_child_that_fails_for_another_reason_leaves_everything_as_it_was():
    environment = {"LIBTPU_INIT_ARGS": "--mine=1"}
    [line] = use_preset("tpu", environment, run=lambda *_: (1, "Traceback\nImportError: no libtpu\n"))
    assert environment == {"LIBTPU_INIT_ARGS": "--mine=1"}
    assert line.endswith("the flags could not be tried (exit code 1: ImportError: no libtpu)")


def test_what_the_user_has_set_stays():
    own = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false", "NCCL_DEBUG": "INFO"}
    environment = dict(own)
    use_preset("gpu", environment, run=lambda *_: (0, ""))
    flags = environment["XLA_FLAGS"].split()
    assert flags == [own["XLA_FLAGS"], *PRESETS["gpu"].xla[1:]]
    assert environment["NCCL_DEBUG"] == "INFO"
    assert environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.9"


def test_no_preset_changes_nothing_and_an_unknown_one_is_refused():
    environment = {}
    assert use_preset("none", environment) == []
    assert environment == {}
    with pytest.raises(UserError, match="no preset 'cuda'; expected one of none, gpu, tpu, cpu"):
        use_preset("cuda", environment)


def test_flags_are_written_as_flags():
    for preset in PRESETS.values():
        for flag in (*preset.xla, *preset.libtpu):
            assert re.fullmatch(r"--[a-z0-9_]+=[a-z0-9]+", flag)


def test_a_child_without_an_answer_is_no_hang(monkeypatch):
    monkeypatch.setattr(xla_flags, "SECONDS", 0.01)
    code, said = xla_flags._in_a_child("XLA_FLAGS", "")
    assert code == 1
    assert "no answer" in said


@pytest.mark.parametrize(
    ("platform", "given", "level"),
    [("cpu", "", 1), ("cpu", "--xla_backend_optimization_level=2", None), ("gpu", "", None), ("tpu", "", None)],
)
def test_a_step_for_a_cpu_is_compiled_at_llvms_first_level_unless_the_user_says_otherwise(platform, given, level):
    assert compiler_options(platform, given).get("xla_backend_optimization_level") == level


def test_the_compiler_of_a_step_is_given_the_options(monkeypatch):
    monkeypatch.setattr(step, "compiler_options", lambda platform, given: {f"xla_invented_for_{platform}": 1})
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1, shard_moments=False), jax.devices())
    number = jax.ShapeDtypeStruct((), jax.numpy.int32, sharding=replicated(mesh))
    state = TrainState(step=number, params={}, opt_state=(), skipped=number)
    update = step.jit_update(lambda state, batch: (state, batch), state, mesh)
    with jax.set_mesh(mesh), pytest.raises(jax.errors.JaxRuntimeError, match="xla_invented_for_cpu"):
        update.lower(state, {}).compile()
