"""Bytes that instructions of a compiled program move: through a chip's main memory, and between chips."""

import dataclasses
import math
import re

from msfl_jax.planner.hlo import Computation, Executed, Instruction, Module, fused

# Nothing is read or written for these: names for what is there, and what is counted where it begins or inside.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
        *("optimization-barrier", "add-dependency", "domain", "async-update", "async-done", "iota"),
    )
)
_SLICES = ("dynamic-slice", "slice", "gather")
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One exchange between chips.

    Attributes:
      kind: one of `KINDS`.
      size: bytes that each chip brings in.
      group: chips that exchange, by number; of a permutation the two of one pair.
    """

    kind: str
    size: float
    group: tuple[int, ...]

    @property
    def sent(self) -> float:
        """Bytes that each chip sends when a group passes its data around a ring, the least that is possible."""
        count = len(self.group)
        match self.kind:
            case "all-gather":
                return self.size * (count - 1)
            case "all-reduce":
                return 2.0 * self.size * (count - 1) / count
            case "collective-permute":
                return self.size if len(set(self.group)) > 1 else 0.0
        return self.size * (count - 1) / count


def moved(module: Module, one: Executed) -> float:
    """Bytes that one run of an instruction reads from and writes to main memory; of a slice only the slice."""
    instruction, computation = one.instruction, one.computation
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0.0
    if opcode == "fusion":
        return _moved_by_fusion(module, instruction, computation)
    operands = computation.operands(instruction)
    if opcode in _SLICES:
        return 2.0 * instruction.moved
    if opcode == "dynamic-update-slice":
        return 2.0 * operands[1].moved
    if opcode == "scatter":
        return sum(operand.moved for operand in operands[1:]) + 2.0 * operands[-1].moved
    if opcode.endswith("-start"):
        return _moved_by_start(instruction, operands)
    return instruction.moved + sum(operand.moved for operand in operands)


def transfers_of(module: Module, one: Executed) -> list[Transfer]:
    """The exchanges between chips in one run of an instruction, fused ones included."""
    found = []
    for inner in fused(module, one):
        opcode = inner.instruction.opcode.removesuffix("-start")
        if opcode in KINDS and not _goes_on(inner.computation):
            # A TPU sums and keeps a part within one fusion, which the text shows as a sum of all and a slice.
            kind = "reduce-scatter" if "all-reduce-scatter" in inner.computation.name else opcode
            size = sum((operand.size for operand in inner.computation.operands(inner.instruction)), 0.0)
            found.append(Transfer(kind, size, _group(inner.instruction, module.devices)))
    return found


def _goes_on(computation: Computation) -> bool:
    """Whether a fusion's exchange was begun in an earlier one: a TPU repeats it in all that compute while it is under way."""
    targets = {one.attributes for one in computation.instructions if one.opcode == "custom-call"}
    if any('"AsyncCollectiveStart"' in target for target in targets):
        return False
    return "async_collective_fusion" in computation.name or any('"AsyncCollectiveDone"' in one for one in targets)


def _moved_by_fusion(module: Module, instruction: Instruction, computation: Computation) -> float:
    inner = module.computations[instruction.called("calls")[0]]
    read = 0.0
    for number, operand in enumerate(computation.operands(instruction)):
        parameter = inner.parameters.get(number)
        if operand.moved:
            read += operand.moved if parameter is None else min(operand.moved, _read(inner, parameter))
    return read + min(instruction.moved, _written(inner, inner.root, instruction))


def _moved_by_start(instruction: Instruction, operands: list[Instruction]) -> float:
    """Of a copy or an exchange that goes on beside other things; what it returns holds its operands too, except where a sum takes their place."""
    given = [shape for operand in operands for shape in operand.shapes]
    made = [shape for shape in instruction.shapes if shape.dims]
    for shape in given:
        if shape in made and len(made) > 1:
            made.remove(shape)
    written = sum((shape.moved for shape in made), 0.0)
    cut = instruction.opcode.removesuffix("-start") in _SLICES
    return written + sum(shape.size for shape in made) if cut else written + sum(shape.moved for shape in given)


def _read(computation: Computation, source: Instruction) -> float:
    """Bytes of an array that a fusion looks at: all, or what it cuts out; what it only writes into is not read."""
    total = 0.0
    for user in computation.users.get(source.name, ()):
        if user.opcode in _SLICES:
            total += user.size
        elif user.opcode == "bitcast":
            total += _read(computation, user)
        elif user.opcode == "tuple" or (user.opcode in KINDS and _goes_on(computation)):
            continue  # handed on, or read by what began the exchange
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != source.name:
            return math.inf
    return total


def _written(computation: Computation, root: Instruction, whole: Instruction) -> float:
    """Bytes that a fusion writes: its result, or what it puts into an array that was there before."""
    if root.opcode == "tuple":
        handed_on = ("parameter", *(KINDS if _goes_on(computation) else ()))
        parts = [part for part in computation.operands(root) if part.opcode not in handed_on]
        return sum((min(part.size, _written(computation, part, part)) for part in parts), 0.0)
    if root.opcode == "bitcast" and (source := computation.operands(root)):
        return _written(computation, source[0], whole)
    if root.opcode == "dynamic-update-slice":
        return computation.operands(root)[1].size
    return whole.moved


def _group(instruction: Instruction, devices: int) -> tuple[int, ...]:
    """The first group of chips; all where none is named."""
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return tuple(int(number) for number in listed[1].split(","))
    pattern = r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if counted := re.search(pattern, text):
        return _first_of_iota(*(tuple(int(n) for n in part.split(",")) if part else () for part in counted.groups()))
    return tuple(range(devices))


def _first_of_iota(shape: tuple[int, ...], dims: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    """The first group of [groups, chips]<=[dims]T(order): numbers counted up in `dims`, axes taken in `order`, cut into groups."""
    order = order or tuple(range(len(dims)))
    strides = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
    group = []
    for place in range(shape[-1]):
        number = 0
        for axis in reversed(order):
            place, index = divmod(place, dims[axis])
            number += index * strides[axis]
        group.append(number)
    return tuple(group)
