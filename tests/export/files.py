"""Files of weights, good and bad, written for tests."""

import json
import os
import pickle
import struct
import zipfile

import numpy as np


def safetensors(header, data=b"", *, length=None):
    """The bytes of a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape=(2,), dtype="F32", begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


GOOD = safetensors({"a": entry()}, np.float32([1, 2]).tobytes())

# What is wrong, by name, and the file.
BAD = {
    "empty": b"",
    "cut in its length": GOOD[:5],
    "cut in its header": GOOD[:30],
    "cut in its data": GOOD[:-1],
    "bytes too many": GOOD + b"\0",
    "header longer than the file": safetensors({"a": entry()}, b"\0" * 8, length=10**6),
    "header of 2^63 bytes": safetensors({"a": entry()}, b"\0" * 8, length=2**63),
    "header longer than allowed": safetensors({"a": entry()}, b"\0" * 8, length=200 * 2**20),
    "tensor larger than the file": safetensors({"a": entry((2**40,), end=2**42)}, b"\0" * 8),
    "shape that is not its bytes": safetensors({"a": entry((3,))}, b"\0" * 8),
    "overlapping tensors": safetensors({"a": entry(), "b": entry(begin=4, end=12)}, b"\0" * 12),
    "hole between tensors": safetensors({"a": entry(), "b": entry(begin=12, end=20)}, b"\0" * 20),
    "negative offset": safetensors({"a": entry(begin=-8, end=0)}, b"\0" * 8),
    "negative side": safetensors({"a": entry((-2,), end=-8)}, b""),
    "unknown dtype": safetensors({"a": entry(dtype="F7")}, b"\0" * 8),
    "no JSON": safetensors(b"{not json", b"\0" * 8),
    "JSON list": safetensors(b"[1, 2]", b"\0" * 8),
    "no shape": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, b"\0" * 8),
    "words for numbers": safetensors({"a": {"dtype": "F32", "shape": ["2"], "data_offsets": ["x", 8]}}, b"\0" * 8),
    "one name twice": safetensors(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b"\0" * 8,
    ),
    "an endless offset": safetensors(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,1e400]}}', b"\0" * 8),
    "one offset": safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, b"\0" * 8),
    "three offsets": safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]}}, b"\0" * 8),
    "an empty tensor of endless sides": safetensors(
        {"a": entry(), "b": entry((0, 2**62, 8), begin=8, end=8)}, b"\0" * 8
    ),
    "an empty bfloat16 of endless sides": safetensors({"b": entry((0, 2**62, 8), "BF16", end=0)}),
    "more sides than an array has": safetensors({"a": entry((2, *[1] * 100))}, b"\0" * 8),
    "a name that breaks the line": safetensors({"a\nerror: all is well\x1b[31m": entry()}, b"\0" * 8),
    "deep nesting": safetensors(b"[" * 100000, b"\0" * 8),
    "not a number": safetensors({"a": entry()}, np.float32([1, np.nan]).tobytes()),
    "infinity": safetensors({"a": entry()}, np.float32([np.inf, 1]).tobytes()),
}


class Trap:
    """Pickled, it runs a command where it is loaded carelessly: the file at `witness` then exists."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch '{self.witness}'",)


def plain_pickle(file, value):
    """PyTorch's oldest format is a bare pickle."""
    file.write_bytes(pickle.dumps(value, protocol=2))


def zipped_pickle(file, value):
    """PyTorch's format of today: a pickle in a zip."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
