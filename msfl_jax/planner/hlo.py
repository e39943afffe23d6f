"""The text of a compiled program (XLA's HLO) as data: computations, instructions, shapes, and how often each instruction runs."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

# Bytes of one element; a token and what is opaque take none.
_BYTES = {"pred": 1.0, "s4": 0.5, "u4": 0.5, "s8": 1.0, "u8": 1.0, "s16": 2.0, "u16": 2.0, "f16": 2.0, "bf16": 2.0}
_BYTES |= {"s32": 4.0, "u32": 4.0, "f32": 4.0, "s64": 8.0, "u64": 8.0, "f64": 8.0, "c64": 8.0, "c128": 16.0}
_BYTES |= {"f8e4m3fn": 1.0, "f8e5m2": 1.0, "f8e4m3": 1.0}

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*)? \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_COMMENT = re.compile(r"/\*.*?\*/")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array; `space` 0 is the main memory of the chip, other numbers are memories inside and beside it."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def elements(self) -> int:
        """Their number."""
        return math.prod(self.dims)

    @property
    def size(self) -> float:
        """Bytes, without padding."""
        return _BYTES.get(self.dtype, 0.0) * self.elements

    @property
    def moved(self) -> float:
        """Bytes that pass through main memory when it is read or written once."""
        return self.size if self.space == 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      shapes: of the result; several for a tuple.
      operands: names of instructions of the same computation.
      inside: what stands between the parentheses, as the number of a parameter.
      attributes: what stands behind them.
      root: whether it is the computation's result.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str
    root: bool

    @property
    def size(self) -> float:
        """Bytes of the result."""
        return sum((shape.size for shape in self.shapes), 0.0)

    @property
    def moved(self) -> float:
        """Bytes of the result in main memory."""
        return sum((shape.moved for shape in self.shapes), 0.0)

    @property
    def trips(self) -> int | None:
        """How often a loop runs, where XLA knows and says so."""
        found = _TRIPS.search(self.attributes)
        return int(found[1]) if found else None

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations under these attributes, as `body`, `calls` or `branch_computations`."""
        found: list[str] = []
        for attribute in attributes:
            match = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
            if match:
                found += re.findall(r"[\w.\-]+", match[1])
        return found

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """Whole numbers of a list, as in `lhs_contracting_dims={1,2}`; empty where it is not there."""
        match = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(number) for number in match[1].split(",") if number) if match else ()


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order in which they stand."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """The instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """The instructions that read each one's result."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found

    @functools.cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        """The parameters by number."""
        return {int(one.inside): one for one in self.instructions if one.opcode == "parameter"}

    @property
    def root(self) -> Instruction:
        """The result: the instruction marked so, or the last."""
        return next((one for one in self.instructions if one.root), self.instructions[-1])

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions whose results one reads."""
        return [self.by_name[name] for name in instruction.operands if name in self.by_name]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program of one device; `devices` run it together."""

    computations: Mapping[str, Computation]
    entry: str
    devices: int


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction that runs on its own (a fusion is one), in its computation, so many times in a run of the program."""

    instruction: Instruction
    computation: Computation
    times: int


def parse(text: str) -> Module:
    """Reads what `compiled.as_text()` returns.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, name, lines = "", "", []
    for line in text.splitlines():
        if name and line.startswith("}"):
            computations[name] = Computation(name, tuple(lines))
            name, lines = "", []
        elif name:
            lines += [found] if (found := _instruction(line)) else []
        elif header := _HEADER.match(line):
            name = header[2]
            entry = name if header[1] else entry
    if entry not in computations:
        raise ValueError("no entry computation in this text; expected a compiled program's HLO")
    counts = [int(found) for found in re.findall(r"num_(?:partitions|replicas)=(\d+)", text[: text.find("\n\n")])]
    return Module(computations, entry, math.prod(counts))


def executed(module: Module) -> tuple[list[Executed], list[int | None]]:
    """Everything that runs, and the trips of each loop that is entered, None where the program does not say them and once is counted.

    Bodies of loops count as often as all loops around them say; of branches each one counts.
    """
    found: list[Executed] = []
    loops: list[int | None] = []

    def visit(name: str, times: int) -> None:
        computation = module.computations[name]
        for one in computation.instructions:
            if one.opcode == "while":
                loops.append(trips := _trips(module, one))
                _each(visit, one.called("body"), times * (1 if trips is None else trips))
            elif one.opcode in ("call", "async-start", "conditional"):
                inner = ("to_apply", "calls", "branch_computations", "true_computation", "false_computation")
                _each(visit, one.called(*inner), times)
            else:
                found.append(Executed(one, computation, times))

    visit(module.entry, 1)
    return found, loops


def fused(module: Module, one: Executed) -> Iterator[Executed]:
    """The instruction itself, and all that it is made of where it is a fusion, fusions within it included."""
    yield one
    if one.instruction.opcode == "fusion":
        for name in one.instruction.called("calls"):
            computation = module.computations[name]
            for inner in computation.instructions:
                yield from fused(module, Executed(inner, computation, one.times))


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """The arrays in the text of a shape: one, or those of a tuple, nested ones included."""
    return tuple(
        Shape(dtype, tuple(int(dim.lstrip("<=")) for dim in dims.split(",") if dim), _space(layout))
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def _trips(module: Module, loop: Instruction) -> int | None:
    """How often a loop runs: as XLA states it, or, as on TPUs, where it does not, up to the constant that its condition compares a counter with.

    JAX's loops count up from 0 by 1.
    """
    if loop.trips is not None:
        return loop.trips
    condition = next(
        (module.computations[name] for name in loop.called("condition") if name in module.computations), None
    )
    if condition is None or condition.root.opcode != "compare" or "direction=LT" not in condition.root.attributes:
        return None
    bound = condition.operands(condition.root)[-1]
    return int(bound.inside) if bound.opcode == "constant" else None


def _each(visit, names: Sequence[str], times: int) -> None:
    for name in names:
        visit(name, times)


def _space(layout: str) -> int:
    found = _SPACE.search(layout)
    return int(found[1]) if found else 0


def _instruction(line: str) -> Instruction | None:
    line = _COMMENT.sub("", line)
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    rest = line[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside, attributes = rest[len(opcode) + 1 : close], rest[close + 1 :]
    operands = tuple(_NAME.findall(inside))
    return Instruction(match[2], opcode, parse_shapes(shape), operands, inside, attributes, root=bool(match[1]))


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` is closed."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.start()
    return len(text)
