"""Frozen dataclasses from mappings: a key that is no field, a value of another type and a word that is no choice are refused in one line."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from ml_collections import ConfigDict

from input_pipeline.errors import UserError

T = TypeVar("T")


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known word most like `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def build_dataclass(kind: type[T], values: Any, path: str = "") -> T:
    """A frozen dataclass from a mapping, its fields converted in turn, sections within sections.

    Args:
      kind: a dataclass whose fields are dataclasses, choices (`Literal`), fixed tuples, numbers, words or truth values.
      values: a ConfigDict or a dictionary with exactly the fields' names as keys.
      path: dotted name of the section, for messages.

    Raises:
      UserError: a key is unknown or missing, a value has another type or is none of the choices.
    """
    if not isinstance(values, Mapping | ConfigDict):
        raise UserError(f"config: '{path}' is {values!r}; expected a section with keys {', '.join(_names(kind))}")
    given = dict(values.items())
    prefix = f"{path}." if path else ""
    for key in given:
        if key not in _names(kind):
            raise UserError(f"config: unknown key '{prefix}{key}'{nearest(str(key), _names(kind))}")
    for name in _names(kind, required=True):
        if name not in given:
            raise UserError(f"config: key '{prefix}{name}' is missing; build the configuration on a shipped one")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _convert(hints[name], value, prefix + name) for name, value in given.items()})


def _names(kind: Any, *, required: bool = False) -> list[str]:
    """Names of the fields, or of those without a default."""
    fields = dataclasses.fields(kind)
    return [field.name for field in fields if not required or field.default is dataclasses.MISSING]


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type that the field declares, or a UserError."""
    if dataclasses.is_dataclass(hint):
        return build_dataclass(typing.cast(Any, hint), value, path)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value in choices:
            return value
        raise UserError(
            f"config: '{path}' is {value!r}; expected one of {', '.join(map(str, choices))}{nearest(str(value), choices)}"
        )
    if (
        typing.get_origin(hint) is tuple
        and isinstance(value, list | tuple)
        and len(value) == len(typing.get_args(hint))
    ):
        return tuple(
            _convert(part, item, f"{path}[{i}]")
            for i, (part, item) in enumerate(zip(typing.get_args(hint), value, strict=True))
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias) and type(value) is hint:
        return value
    raise UserError(f"config: '{path}' is {value!r}; expected {getattr(hint, '__name__', hint)}")
