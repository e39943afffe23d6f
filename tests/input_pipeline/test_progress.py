"""Off a terminal, progress is a line per tenth, at most every two seconds, and the last; on one it is a bar."""

import io
import itertools
import sys

import pytest

from input_pipeline import progress
from input_pipeline.progress import Progress, counted, showing_counts, span


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_quick_command_prints_its_last_line_alone(clock, capsys):
    with Progress("records", 5000, "images") as shown:
        for done in range(1, 5001):
            clock.now += 0.0001
            shown.update(done)
    assert lines(capsys) == ["records  5,000/5,000 images  10,000/s  in 1 s"]


def test_a_slow_command_prints_a_line_per_tenth(clock, capsys):
    with Progress("records", 1000, "images") as shown:
        for done in range(1, 1001):
            clock.now += 1
            shown.update(done)
    told = lines(capsys)
    assert [line.split()[1] for line in told] == [f"{done:,}/1,000" for done in range(100, 1001, 100)]
    assert told[0] == "records  100/1,000 images  1/s  about 15 min left"
    assert told[-1] == "records  1,000/1,000 images  1/s  in 16 min 40 s"


def test_in_between_lines_are_two_seconds_apart(clock, capsys):
    printed = []
    with Progress("records", 100, "images") as shown:
        for done in range(1, 101):
            clock.now += 0.1
            shown.update(done)
            printed += [clock.now] * len(lines(capsys))
    assert len(printed) == 5
    assert all(after - before > 1.99 for before, after in itertools.pairwise(printed[:-1]))


def test_what_an_earlier_run_has_done_is_in_no_rate(clock, capsys):
    with Progress("records", 1000, "images") as shown:
        shown.update(900, kept=900)
        for done in range(901, 1001):
            clock.now += 0.25
            shown.update(done, kept=900)
    told = lines(capsys)
    assert told[0] == "records  908/1,000 images, 900 of an earlier run  4/s  about 23 s left"
    assert told[-1] == "records  1,000/1,000 images, 900 of an earlier run  4/s  in 25 s"


def test_where_all_was_done_before_there_is_no_rate(clock, capsys):
    with Progress("records", 1000, "images") as shown:
        clock.now += 3
        shown.update(500, kept=500)
        shown.update(1000, kept=1000)
    assert lines(capsys) == [
        f"records  {done} images, {kept} of an earlier run"
        for done, kept in (("500/1,000", "500"), ("1,000/1,000", "1,000"))
    ]


def test_rows_are_counted_every_two_seconds_where_that_is_asked_for(clock, capsys):
    def rows():
        for number in range(100):
            clock.now += 0.25
            yield number

    with showing_counts(True):
        assert list(counted(rows(), "metadata.csv", "rows")) == list(range(100))
        with showing_counts(False):
            assert len(list(counted(rows(), "split.csv", "rows"))) == 100
    assert len(list(counted(rows(), "split.csv", "rows"))) == 100
    assert lines(capsys) == [f"metadata.csv  {8 * number} rows  4/s" for number in range(1, 13)]


def test_quick_tables_are_not_counted(clock, capsys):
    with showing_counts(True):
        assert list(counted("abc", "metadata.csv", "rows")) == ["a", "b", "c"]
    assert lines(capsys) == []


def test_counts_never_go_back_and_the_last_line_comes_once(clock, capsys):
    with Progress("records", 10, "images") as shown:
        for done in (10, 4, 10, 12):
            clock.now += 5
            shown.update(done)
    assert [line.split()[1] for line in lines(capsys)] == ["10/10", "12/10"]


def test_nothing_is_shown_where_nothing_is_asked_for_or_to_do(capsys):
    for shown in (Progress("records", 10, "images", shown=False), Progress("records", 0, "images")):
        with shown:
            shown.update(10)
    assert lines(capsys) == []


def test_on_a_terminal_a_bar_tells_the_time_that_is_left(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("records", 10, "images") as shown:
        shown.update(10)
    assert "records: 100%" in terminal.getvalue()
    assert "10/10" in terminal.getvalue()


def test_on_a_terminal_the_rate_leaves_out_what_was_done_before(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("records", 1000, "images") as shown:
        shown.update(900, kept=900)
        assert shown._bar is not None
        told = shown._bar.format_dict
        assert (told["n"], told["initial"], told["rate"]) == (900, 900, None)
        with showing_counts(True):
            assert list(counted(range(3), "metadata.csv", "rows")) == [0, 1, 2]


@pytest.mark.parametrize(
    "seconds, expected",
    [
        (0.0, "1 s"),
        (0.4, "1 s"),
        (59.4, "59 s"),
        (60.0, "1 min"),
        (750.0, "12 min 30 s"),
        (7500.0, "2 h 5 min"),
        (7201.0, "2 h"),
    ],
)
def test_a_time_has_two_units(seconds, expected):
    assert span(seconds) == expected
