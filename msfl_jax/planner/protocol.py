"""What the planner and the process that compiles for it tell each other: one line of JSON each way."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step that was compiled; bytes are those of one chip.

    Attributes:
      seconds: that it took.
      parameters, optimizer, batch: of the arguments, by what they are; the optimizer's are its moments and counters.
      arguments, outputs, aliased, temporary: as XLA counts them; outputs that lie where arguments did are `aliased`.
      count, split: parameters of the model, and those of them that are split over the mesh's axis fsdp.
      mesh: devices along data, fsdp and tensor.
    """

    seconds: float
    parameters: float
    optimizer: float
    batch: float
    arguments: float
    outputs: float
    aliased: float
    temporary: float
    count: int
    split: int
    mesh: tuple[int, int, int]

    @property
    def peak(self) -> float:
        """Bytes that the chip must hold at once."""
        return self.arguments + self.outputs - self.aliased + self.temporary

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Compiled":
        """From JSON.

        Raises:
          TypeError, KeyError: it is something else.
        """
        return cls(**{**values, "mesh": tuple(values["mesh"])})


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """A step that the compiler refused because the chip's memory is too small; bytes, NaN where it did not say."""

    needed: float = math.nan
    limit: float = math.nan


@dataclasses.dataclass(frozen=True)
class Rates:
    """What was measured on this CPU: FLOP/s of each product and bytes/s of each size of copy, in the order in which they were asked for.

    `fresh` is bytes/s of filling memory that the system has only just given, a page at a time.
    """

    products: tuple[float, ...]
    copies: tuple[float, ...]
    fresh: float
    cores: int


def as_json(values: Any) -> dict[str, Any]:
    """A dataclass of this package for JSON, in which there is no NaN."""
    return {name: None if value != value else value for name, value in dataclasses.asdict(values).items()}
