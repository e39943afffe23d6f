"""Logs that survive what happens to them, and the arithmetic of throughput."""

import io
import json
import math

import pytest
from tensorboardX.record_writer import RecordWriter

from msfl_jax.train import telemetry
from msfl_jax.train.telemetry import Clock, Progress, Telemetry, rewind, throughput

from ..event_files import events, scalars


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_log_step_is_one_json_object_and_one_scalar_per_name(tmp_path):
    logs = Telemetry(tmp_path, step=0)
    logs.write(10, {"loss/total": 1.5, "accuracy": math.nan})
    logs.write(20, {"loss/total": 1.25})
    logs.close()
    assert rows(tmp_path) == [{"step": 10, "loss/total": 1.5, "accuracy": None}, {"step": 20, "loss/total": 1.25}]
    assert scalars(tmp_path) == [(10, "loss/total", 1.5), (20, "loss/total", 1.25)]


def test_a_resumed_log_has_no_step_twice_and_no_damaged_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "a": 1}\nnoise\n{"step": 2, "a": 2}\n{"step": 3, "a": 3}\n{"step": 4'
    )
    Telemetry(tmp_path, step=2).write(3, {"a": 30.0})
    assert [(row["step"], row["a"]) for row in rows(tmp_path)] == [(1, 1), (2, 2), (3, 30)]


def test_rewinding_to_the_start_empties_the_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    rewind(tmp_path / "metrics.jsonl", 0)
    assert rows(tmp_path) == []


def test_a_log_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "tensorboard").write_text("in the way")
    logs = Telemetry(tmp_path, step=0)
    for step in (1, 2, 3):
        logs.write(step, {"loss": 1.0})
    logs.close()
    assert sorted(record.message.split()[0] for record in caplog.records) == ["metrics.jsonl", "tensorboard"]


def test_a_disk_that_fills_up_ends_neither_the_run_nor_blocks_it(tmp_path, monkeypatch, caplog):
    logs = Telemetry(tmp_path, step=0)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    monkeypatch.setattr(telemetry, "_append", full)
    for step in range(50):
        logs.write(step, {"loss": 1.0})
    assert len(caplog.records) == 2
    assert "OSError" in caplog.text


def test_tensorboard_is_told_to_hide_what_is_logged_again(tmp_path):
    Telemetry(tmp_path, step=7).write(8, {"loss": 1.0})
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [8]


def test_throughput_of_a_known_device_names_what_it_is_a_share_of():
    values = throughput(1000.0, 150e9, 2, "NVIDIA H100 80GB HBM3")
    assert values["tflops_per_device"] == pytest.approx(75.0)
    assert values["mfu"] == pytest.approx(75.0 / 989.0)
    assert values["peak_tflops"] == 989.0


def test_throughput_of_an_unknown_device_has_no_share():
    assert throughput(1.0, 1e12, 1, "cpu").keys() == {"studies_per_second", "tflops_per_device"}


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5 lite", 197.0), ("TPU v5p", 459.0), ("TPU v6 lite", 918.0), ("NVIDIA L4", 121.0), ("NVIDIA L40S", 362.0)],
)
def test_longer_names_of_devices_win_over_their_beginnings(kind, peak):
    assert throughput(1.0, 1e12, 1, kind)["peak_tflops"] == peak


def test_rate_and_remaining_time_count_from_the_restart(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now[0])
    clock = Clock(batch_size=4, steps=110)
    assert math.isnan(clock.rate(0))
    now[0] = 100.0
    clock.restart(10)
    now[0] = 105.0
    assert clock.rate(20) == pytest.approx(8.0)
    assert clock.remaining(20) == pytest.approx(45.0)


def test_progress_is_one_line_on_a_terminal_and_twenty_elsewhere():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, lines in ((Terminal(), 1), (io.StringIO(), 21)):
        progress = Progress("pretraining", steps=1000, stream=stream)
        for step in range(1, 1001):
            progress.show(step, loss=2.0, rate=10.0, remaining=90.0)
        progress.close()
        assert stream.getvalue().count("\n") == lines
        assert "1000/1000" in stream.getvalue()
        assert "0:01:30" in stream.getvalue()
