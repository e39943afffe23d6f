"""The paper's tables 1 to 5 as data: published.json, read once and checked, every number and every caveat with its sources."""

import importlib.resources
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from input_pipeline.errors import DataError
from msfl_jax.tasks.outcome import Option

Status = Literal["printed", "reconstructed", "not in the paper's table"]

_FILE = "published.json"
_NUMBER = (int, float)


@dataclass(frozen=True)
class PublishedValue:
    """A published number in the units of its column, where it stands, and how certain that is."""

    value: float
    source: str
    certainty: str


@dataclass(frozen=True)
class PublishedRow:
    """One method.

    Attributes:
      name: of the method.
      status: "printed" rows stand in the paper's table; of "reconstructed" ones the numbers do and the name does not.
      note: what must be said about the row; empty for printed ones.
      objectives: in table 5, those that were on, as the argument of a configuration.
      values: by the key of the column; columns without a number are missing.
    """

    name: str
    status: Status
    note: str
    objectives: str
    values: Mapping[str, PublishedValue]


@dataclass(frozen=True)
class Column:
    """What a column measures and which of our results belongs into it.

    Attributes:
      key, title: short name and heading.
      measure: heading where the data set is another one.
      task, dataset, options: of an `Outcome` that belongs here.
      scale, digits: factor from our metric to the paper's unit, and decimals.
      test_records: images of the paper's test set where that is known, with its source; else 0.
    """

    key: str
    title: str
    measure: str
    task: str
    dataset: str
    options: Mapping[str, Option]
    scale: float
    digits: int
    test_records: int
    test_source: str


@dataclass(frozen=True)
class Reading:
    """One way to read a table's numbers from ours: which metric, by key or task of the column; columns may be left out."""

    title: str
    metrics: Mapping[str, str]

    def metric(self, column: Column) -> str:
        """Name of the metric in an `Outcome`; empty where this reading leaves the column out."""
        return self.metrics.get(column.key) or self.metrics.get(column.task, "")


@dataclass(frozen=True)
class PublishedCaveat:
    """What must be known to compare with a table, and where it stands: each source with its certainty in brackets."""

    text: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class PublishedTable:
    """One of the paper's tables with what must be known to compare with it; `measure` is its title where the data set is another one."""

    number: int
    title: str
    measure: str
    columns: tuple[Column, ...]
    readings: tuple[Reading, ...]
    rows: tuple[PublishedRow, ...]
    caveats: tuple[PublishedCaveat, ...]


def load_published(text: str | None = None) -> dict[int, PublishedTable]:
    """The tables by number.

    Args:
      text: JSON in the form of published.json; None reads that file.

    Raises:
      DataError: a key is missing, unknown or of another type, a number has no column or no source, or a caveat no source.
    """
    if text is None:
        text = importlib.resources.files("msfl_jax.results").joinpath(_FILE).read_text(encoding="utf-8")
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f"{_FILE}: no JSON ({error})") from error
    _check(values, "", {"paper": str, "sources": dict, "tables": dict})
    sources = values["sources"]
    for name, source in sources.items():
        _check(source, f"sources.{name}", {"text": str, "certainty": str})
    return {int(number): _table(int(number), table, sources) for number, table in values["tables"].items()}


def _table(number: int, values: Any, sources: Mapping[str, Any]) -> PublishedTable:
    where = f"tables.{number}"
    lists = {"columns": list, "readings": list, "rows": list, "caveats": list}
    _check(values, where, {"title": str, "measure": str, **lists})
    columns = tuple(_column(column, f"{where}.columns.{i}", sources) for i, column in enumerate(values["columns"]))
    readings = tuple(_reading(reading, f"{where}.readings.{i}") for i, reading in enumerate(values["readings"]))
    for column in columns:
        if not any(reading.metric(column) for reading in readings):
            raise DataError(f"{_FILE}: {where}.readings: no metric for column '{column.key}'")
    rows = tuple(_row(row, f"{where}.rows.{i}", columns, sources) for i, row in enumerate(values["rows"]))
    caveats = tuple(_caveat(caveat, f"{where}.caveats.{i}", sources) for i, caveat in enumerate(values["caveats"]))
    return PublishedTable(number, values["title"], values["measure"], columns, readings, rows, caveats)


def _column(values: Any, where: str, sources: Mapping[str, Any]) -> Column:
    words = dict.fromkeys(("key", "title", "measure", "task", "dataset"), str)
    required = {**words, "options": dict, "scale": _NUMBER, "digits": int}
    _check(values, where, required, {"test_records": int, "test_source": str})
    source = _source(values["test_source"], where, sources)["text"] if "test_source" in values else ""
    records = values.get("test_records", 0)
    return Column(**values | {"scale": float(values["scale"]), "test_records": records, "test_source": source})


def _reading(values: Any, where: str) -> Reading:
    _check(values, where, {"title": str, "metrics": dict})
    return Reading(values["title"], values["metrics"])


def _row(values: Any, where: str, columns: Iterable[Column], sources: Mapping[str, Any]) -> PublishedRow:
    optional = {"note": str, "objectives": str, "certainty": str, "sources": dict}
    _check(values, where, {"name": str, "status": str, "source": str, "values": list}, optional)
    if values["status"] not in get_args(Status):
        raise DataError(
            f"{_FILE}: {where}.status is '{values['status']}'; expected one of {', '.join(get_args(Status))}"
        )
    if values["status"] != "printed" and not values.get("note"):
        raise DataError(f"{_FILE}: {where}: a row that is {values['status']} needs a note")
    keys = [column.key for column in columns]
    if len(keys) != len(values["values"]):
        raise DataError(f"{_FILE}: {where}.values: found {len(values['values'])} numbers; expected {len(keys)}")
    own = values.get("sources", {})
    if unknown := own.keys() - set(keys):
        raise DataError(f"{_FILE}: {where}.sources: no column '{min(unknown)}'")
    found = {}
    for key, number in zip(keys, values["values"], strict=True):
        if number is None:
            continue
        if not isinstance(number, _NUMBER) or isinstance(number, bool):
            raise DataError(f"{_FILE}: {where}.values: {key} is {number!r}; expected a number or null")
        source = _source(own.get(key, values["source"]), where, sources)
        found[key] = PublishedValue(float(number), source["text"], values.get("certainty", source["certainty"]))
    status = cast(Status, values["status"])
    return PublishedRow(values["name"], status, values.get("note", ""), values.get("objectives", ""), found)


def _caveat(values: Any, where: str, sources: Mapping[str, Any]) -> PublishedCaveat:
    _check(values, where, {"text": str, "sources": list})
    if not values["sources"] or not all(isinstance(name, str) for name in values["sources"]):
        raise DataError(f"{_FILE}: {where}: a caveat needs sources by name; expected some of {', '.join(sources)}")
    found = (_source(name, where, sources) for name in values["sources"])
    return PublishedCaveat(values["text"], tuple(f"{one['text']} ({one['certainty']})" for one in found))


def _source(name: str, where: str, sources: Mapping[str, Any]) -> Mapping[str, str]:
    if name not in sources:
        raise DataError(f"{_FILE}: {where}: no source '{name}'; expected one of {', '.join(sources)}")
    return sources[name]


def _check(values: Any, where: str, required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> None:
    """Raises a DataError unless `values` has all required keys, no unknown ones, and values of the given types."""
    optional = optional or {}
    place = where or "the file"
    if not isinstance(values, Mapping):
        raise DataError(f"{_FILE}: {place} is {type(values).__name__}; expected an object")
    for key in required:
        if key not in values:
            raise DataError(f"{_FILE}: {place}: '{key}' is missing")
    for key, value in values.items():
        kind = required.get(key) or optional.get(key)
        if kind is None:
            raise DataError(f"{_FILE}: {place}: unknown key '{key}'")
        if not isinstance(value, kind):
            raise DataError(f"{_FILE}: {place}: '{key}' is {type(value).__name__}")
