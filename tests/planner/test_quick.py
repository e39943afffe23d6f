"""Which compilations are full ones, by a compiler that only notes what it is asked."""

from pathlib import Path

import pytest

from input_pipeline.errors import UserError
from msfl_jax.planner import plan as planning
from msfl_jax.planner.cache import write_text
from msfl_jax.planner.children import Child
from msfl_jax.planner.plan import plan
from msfl_jax.planner.protocol import Compiled, TooLarge, as_json
from msfl_jax.planner.topology import parse_topology

from .test_costs import EXCHANGES


class Compiler(Child):
    """Starts no process: each study of a chip takes a GB beside two for parameters, a tenth less if quick, and of 16.9 GB all may be had."""

    def __init__(self, full_extra: float = 0.0):
        super().__init__("tpu", {})
        self.asked: list[tuple[int, bool]] = []
        self._full_extra = full_extra

    def ask(self, request):
        batch = request["config"]["data"]["batch_size"]
        self.asked.append((batch, request["quick"]))
        temporary = 1e9 * batch / 16
        needed = 2e9 + (temporary / 1.1 if request["quick"] else temporary + self._full_extra)
        if needed > 17e9:
            return {"too_large": as_json(TooLarge(needed, 17e9))}
        write_text(Path(request["hlo"]), EXCHANGES)
        found = Compiled(1.0, 1e9, 1e9, 0.0, 2e9, 0.0, 0.0, needed - 2e9, 1000, 0, (16, 1, 1))
        return {"compiled": as_json(found)}


def planned(config, topology, compiler, folder, **options):
    said: list[str] = []
    return plan(
        config, parse_topology(topology), vocab_size=40, folder=folder, say=said.append, child=compiler, **options
    )


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(planning, "refuse_missing", lambda platform: None)


def test_for_a_tpu_only_the_step_that_is_shown_is_compiled_in_full(config, tmp_path):
    compiler = Compiler()
    found = planned(config, "v5e:4x4", compiler, tmp_path)
    assert compiler.asked[-1] == (32, False)
    assert [quick for _, quick in compiler.asked[:-1]] == [True] * (len(compiler.asked) - 1)
    assert len(compiler.asked) <= 4
    assert (found.fits, found.shown, found.largest.batch) == (True, 32, 128)  # of 14.9 studies of a chip, eights


def test_where_the_runs_own_batch_does_not_fit_the_largest_is_compiled_in_full(config, with_batch, tmp_path):
    compiler = Compiler()
    found = planned(with_batch(config, 4096), "v5e:4x4", compiler, tmp_path)
    assert not found.fits
    assert found.shown == found.largest.batch
    assert [asked for asked in compiler.asked if not asked[1]] == [(found.shown, False)]
    assert len(compiler.asked) <= 4


def test_one_compilation_is_a_full_one(config, tmp_path):
    compiler = Compiler()
    planned(config, "v5e:4x4", compiler, tmp_path, tries=1)
    assert compiler.asked == [(32, False)]


def test_in_a_hurry_none_is_a_full_one_and_what_is_shown_is_counted_larger(config, with_batch, tmp_path):
    compiler = Compiler()
    one = planned(config, "v5e:4x4", compiler, tmp_path / "one", tries=1, quick=True)
    assert compiler.asked == [(32, True)]
    assert one.memory["temporary"] == pytest.approx(2e9)  # as the full program has it
    assert one.memory["peak"] == pytest.approx(4e9)
    assert "--quick" in one.notes[0]
    # Of at most four, all look for the largest batch: none is needed for a full one.
    found = planned(with_batch(config, 4096), "v5e:4x4", compiler, tmp_path / "several", quick=True)
    assert all(quick for _, quick in compiler.asked)
    assert len(compiler.asked) <= 1 + 4
    assert found.shown == found.largest.batch == 128


def test_for_a_gpu_all_are_full_and_none_is_done_twice(config, tmp_path):
    compiler = Compiler()
    planned(config, "h200:2x8", compiler, tmp_path, tries=3)
    assert len({batch for batch, _ in compiler.asked}) == len(compiler.asked) == 3


def test_in_a_hurry_gpus_are_planned_as_ever(config, tmp_path):
    compiler = Compiler()
    found = planned(config, "h200:2x8", compiler, tmp_path, tries=1, quick=True)
    assert compiler.asked == [(32, False)]
    assert not any("--quick" in note for note in found.notes)


def test_a_step_that_only_fits_as_quickly_compiled_is_refused_in_one_line(config, tmp_path):
    with pytest.raises(UserError, match=r"batch of 32 fits as quickly compiled.*--config.data.batch_size"):
        planned(config, "v5e:4x4", Compiler(full_extra=20e9), tmp_path)
