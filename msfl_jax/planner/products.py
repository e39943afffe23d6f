"""Floating-point operations of the products of matrices in a compiled program, whatever the backend calls them."""

import dataclasses
import math
import re

from msfl_jax.planner.hlo import Computation, Executed, Instruction, Module, fused


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of two arrays as `jax.lax.dot_general` takes it."""

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    lhs_contracting: tuple[int, ...]
    rhs_contracting: tuple[int, ...]
    lhs_batch: tuple[int, ...]
    rhs_batch: tuple[int, ...]
    dtype: str

    @property
    def flops(self) -> float:
        """Two for each multiply-add."""
        shared = math.prod(self.lhs[axis] for axis in (*self.lhs_contracting, *self.lhs_batch))
        return 2.0 * math.prod(self.lhs) * math.prod(self.rhs) / max(shared, 1)


def flops_of(module: Module, one: Executed) -> float:
    """FLOPs of the products in one run of an instruction, fused ones included; 0 where there are none."""
    return sum((_flops(inner.instruction, inner.computation) for inner in fused(module, one)), 0.0)


def products_of(module: Module, one: Executed) -> list[Product]:
    """The products in one run of an instruction that are written as such (`dot`)."""
    found = [(inner.instruction, inner.computation) for inner in fused(module, one)]
    return [_product(*each) for each in found if each[0].opcode == "dot"]


def _flops(instruction: Instruction, computation: Computation) -> float:
    match instruction.opcode:
        case "dot":
            return _product(instruction, computation).flops
        case "convolution":
            return _convolution(instruction, computation)
        case "custom-call":
            return _library_call(instruction, computation)
    return 0.0


def _product(instruction: Instruction, computation: Computation) -> Product:
    left, right = (operand.shapes[0] for operand in computation.operands(instruction)[:2])
    sides = ("lhs_contracting_dims", "rhs_contracting_dims", "lhs_batch_dims", "rhs_batch_dims")
    axes = tuple(instruction.numbers(name) for name in sides)
    return Product(left.dims, right.dims, axes[0], axes[1], axes[2], axes[3], left.dtype)


def _library_call(instruction: Instruction, computation: Computation) -> float:
    """A call of cuBLAS, whose settings name the axes that are summed over."""
    axes = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
    operands = computation.operands(instruction)
    if not axes or not operands:
        return 0.0
    dims = operands[0].shapes[0].dims
    summed = math.prod(dims[int(axis)] for axis in re.findall(r"\d+", axes[1]))
    return 2.0 * summed * instruction.shapes[0].elements


def _convolution(instruction: Instruction, computation: Computation) -> float:
    """TPUs write all products as convolutions, axes of a batch as space in which each place meets one place of the other array."""
    left, right = (operand.shapes[0] for operand in computation.operands(instruction)[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if not labels:
        return 0.0
    summed = right.dims[labels[2].index("i")]
    output = instruction.shapes[0]
    result = 2.0 * summed * output.elements
    for axis, window in enumerate(_windows(instruction, len(labels[1]) - 2)):
        source, target = left.dims[labels[1].index(str(axis))], output.dims[labels[3].index(str(axis))]
        result *= window.meetings(source, target) / target
    return result


@dataclasses.dataclass(frozen=True)
class _Window:
    """One axis of space of a convolution."""

    size: int = 1
    stride: int = 1
    low: int = 0
    lhs_dilate: int = 1
    rhs_dilate: int = 1

    def meetings(self, source: int, target: int) -> int:
        """Pairs of places, of the window and of the `source`, that are multiplied for all `target` places of the output together."""
        if self == _Window():
            return target
        reach = (source - 1) * self.lhs_dilate
        count = 0
        for place in range(target):
            start = place * self.stride - self.low
            for offset in range(start, start + self.size * self.rhs_dilate, self.rhs_dilate):
                count += 0 <= offset <= reach and offset % self.lhs_dilate == 0
        return count


def _windows(instruction: Instruction, axes: int) -> list[_Window]:
    """The window along each axis of space."""
    text = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    settings = dict(part.split("=") for part in text[1].split()) if text else {}
    columns = {name: settings[name].split("x") for name in settings}

    def number(name: str, axis: int, default: int) -> int:
        return int(columns[name][axis].split("_")[0]) if name in columns else default

    return [
        _Window(
            number("size", axis, 1),
            number("stride", axis, 1),
            number("pad", axis, 0),
            number("lhs_dilate", axis, 1),
            number("rhs_dilate", axis, 1),
        )
        for axis in range(axes)
    ]
