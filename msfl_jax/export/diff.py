"""What a file of weights and a model do not have in common, by name, for people to read."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace

LISTED = 6


@dataclass(frozen=True)
class Diff:
    """The difference between a file and what was expected of it; names are the file's.

    Attributes:
      missing: expected, not there.
      unexpected: there, without a place in the model.
      misshapen: there in another shape, by name, with what is wrong.
      notes: what is no difference but worth knowing: parts that start fresh, tables that were resized.
      loaded: how many tensors have found their place.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    loaded: int = 0

    def __bool__(self) -> bool:
        """Whether there is a difference."""
        return bool(self.missing or self.unexpected or self.misshapen)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that differs."""
        return (*self.missing, *self.unexpected, *(name for name, _ in self.misshapen))

    def without(self, skip: Sequence[str]) -> "Diff":
        """The difference that is left when names may be skipped: whole ones, beginnings up to a dot, or patterns with `*`."""

        def kept(name: str) -> bool:
            return not any(name.startswith(f"{word}.") or fnmatch.fnmatchcase(name, word) for word in skip)

        return replace(
            self,
            missing=tuple(filter(kept, self.missing)),
            unexpected=tuple(filter(kept, self.unexpected)),
            misshapen=tuple(pair for pair in self.misshapen if kept(pair[0])),
        )

    def lines(self) -> list[str]:
        """All of it, a line each, by kind."""
        return [
            *(f"missing     {name}" for name in self.missing),
            *(f"unexpected  {name}" for name in self.unexpected),
            *(f"mis-shaped  {name}: {why}" for name, why in self.misshapen),
            *(f"note        {note}" for note in self.notes),
        ]

    def summary(self) -> str:
        """In one line, with the first names of each kind."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "mis-shaped": tuple(f"{name} ({why})" for name, why in self.misshapen),
        }
        return "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in kinds.items() if names)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
