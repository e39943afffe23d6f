"""Files of weights opened without running anything that they hold: safetensors, folders of Hugging Face models, and PyTorch's own files.

A file that is damaged, claims more than it has, or asks for code is refused in one line.
"""

import hashlib
import importlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from input_pipeline.errors import CheckpointError, UserError
from msfl_jax.export.manifest import refuse_other_bytes

INDEX = "model.safetensors.index.json"
WEIGHT_FILES = (
    "model.safetensors",
    INDEX,
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines")
INNER = ("model", "state_dict", "model_state_dict", "module")  # where checkpoints of training keep the weights
MAX_HEADER = 100 * 2**20  # safetensors' own limit
MAX_JSON = 64 * 2**20
MAX_NUMBERS = 2**40  # of one tensor
MAX_SIDES = 64  # NumPy's own limit
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class WeightFile:
    """Named tensors and what lies beside them.

    Attributes:
      path: the file or folder as given.
      kind: "safetensors", "sharded safetensors" or "PyTorch".
      tensors: by name; floats as float64, float32 or float16, bfloat16 as float32.
      sha256: of the weights' bytes, file by file.
      config: of the model, empty where there is none.
      processor: how images are prepared for it, likewise; of a single file of an export, what its header says of it.
    """

    path: Path
    kind: str
    tensors: Mapping[str, np.ndarray]
    sha256: str
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)


def open_weights(path: Path) -> WeightFile:
    """Reads a file of weights, or a folder with one.

    Raises:
      UserError: there is nothing of the kind, or a PyTorch file and no PyTorch.
      CheckpointError: it is damaged, holds numbers that are not finite, asks for code to be run, or is not what the manifest of its export says.
    """
    config, processor = {}, {}
    file = path
    if path.is_dir():
        config, processor = (refuse_code(path / name) for name in ("config.json", "preprocessor_config.json"))
        file = _weights_in(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file; expected weights as .safetensors or .pth, or a folder with config.json")
    files, tensors = [file], {}
    if file.name == INDEX:
        kind, files = "sharded safetensors", _shards(file)
        for shard in files:
            tensors |= read_safetensors(shard)
        _refuse_other_names(file, tensors)
    elif file.suffix == ".safetensors":
        kind, tensors = "safetensors", read_safetensors(file)
        processor = processor or _normalisation(file)
    elif file.suffix in TORCH_SUFFIXES:
        kind, tensors = "PyTorch", read_torch(file)
    else:
        raise UserError(f"{file}: unknown suffix '{file.suffix}'; expected .safetensors, or .pth, .pt, .bin of PyTorch")
    _refuse_odd_names(file, tensors)
    _refuse_not_finite(file, tensors)
    sha256 = _digest(files)
    refuse_other_bytes(file, sha256)
    return WeightFile(path, kind, tensors, sha256, config, processor)


def read_safetensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of one file, after its header was checked against its size.

    Raises:
      CheckpointError: the file is cut short, its header claims what is not there, or tensors overlap.
    """
    header, start, _ = _read_header(file)
    with _opened(file) as tensors:
        return {
            name: _bfloat16(file, start, entry) if entry["dtype"] == "BF16" else tensors.get_tensor(name)
            for name, entry in header.items()
        }


def read_torch(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file, read by `torch.load(weights_only=True)`, which builds tensors and plain containers and calls nothing else.

    Raises:
      UserError: PyTorch is not installed.
      CheckpointError: the file is damaged or asks for anything but tensors.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise UserError(f"{file}: PyTorch's own format; install it with `pip install 'msfl_jax[torch]'`") from error
    namespace = importlib.import_module(
        "argparse"
    ).Namespace  # options that training scripts save beside the weights: a record of fields
    try:
        with torch.serialization.safe_globals([namespace]):
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, by what is wrong with the file
        code = "weights only" in str(error).lower() or "unsupported" in str(error).lower()
        what = "asks for code or objects beside tensors" if code else f"cannot be read ({type(error).__name__})"
        raise CheckpointError(f"{file}: {what}; nothing was run: expected a state_dict, or use safetensors") from error
    size = file.stat().st_size
    return {name: _to_numpy(file, size, name, tensor, torch) for name, tensor in _state(file, found, torch).items()}


def refuse_code(
    file: Path, *, advice: str = "give the file of weights itself to read no more than its tensors"
) -> dict[str, Any]:
    """The settings in a JSON file, empty where there is none.

    Args:
      file: of a model's folder.
      advice: what to do where it is refused.

    Raises:
      CheckpointError: it is damaged, or asks for code of its own, at whatever depth: such a model is no architecture that we know, and that code is
        never looked at.
    """
    settings = _read_json(file)
    if asked := next(_asked_code(settings), None):
        raise CheckpointError(f"{file}: asks for code of its own ('{asked}'); nothing was run: {advice}")
    return settings


def _asked_code(settings: Any) -> Iterator[str]:
    """The keys that ask for code, at whatever depth: a list of what is left instead of recursion, which deep nesting would end."""
    left = [settings]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield from (key for key in CODE_KEYS if value.get(key))
            left += value.values()
        elif isinstance(value, list):
            left += value


def _to_numpy(file: Path, size: int, name: str, tensor: Any, torch: Any) -> np.ndarray:
    """A dense tensor of real numbers as float32; one that repeats its storage, without end for what a file costs, is none."""
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized or tensor.is_meta:
        raise _damaged(file, f"tensor {name!r:.80} is no dense array of real numbers")
    if tensor.numel() * tensor.element_size() > size:
        raise _damaged(file, f"tensor {name!r:.80} claims {tensor.numel():,} numbers, the file has {size:,} bytes")
    return tensor.detach().float().numpy()


def _state(file: Path, found: Any, torch: Any) -> dict[str, Any]:
    """The named tensors within a checkpoint of training."""
    for name in INNER:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    tensors = (
        {name: value for name, value in found.items() if torch.is_tensor(value)} if isinstance(found, Mapping) else {}
    )
    if not tensors:
        raise CheckpointError(f"{file}: no named tensors in it; expected a state_dict")
    return {str(name): tensor for name, tensor in tensors.items()}


def _normalisation(file: Path) -> dict[str, Any]:
    """`image_mean` and `image_std` from the header of a file of an export; empty for files of others."""
    beside = _read_header(file)[2]
    try:
        return {key: json.loads(beside[key]) for key in ("image_mean", "image_std")}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def _read_header(file: Path) -> tuple[dict[str, Any], int, Any]:
    """Names, dtypes, shapes and places of the tensors, checked; where the first byte of data lies; and, unchecked, what else the header says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
        if not 0 < length <= min(MAX_HEADER, size - 8):
            raise _damaged(file, f"its header claims {max(length, 0):,} bytes, the file has {size:,}")
        raw = stream.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        places = sorted((*_offsets(entry), _length(entry), name) for name, entry in entries.items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(file, "its header is no list of tensors") from error
    end = 0
    for begin, stop, expected, name in places:
        if begin != end or stop - begin != expected:
            raise _damaged(file, f"tensor {name!r:.80} lies at {begin} to {stop}, expected {end} to {end + expected}")
        end = stop
    if end != size - 8 - length:
        raise _damaged(file, f"its tensors claim {end:,} bytes, it has {size - 8 - length:,}")
    return entries, 8 + length, header.get("__metadata__")


def _offsets(entry: Mapping[str, Any]) -> tuple[int, int]:
    begin, stop = entry["data_offsets"]
    if type(begin) is not int or type(stop) is not int:
        raise ValueError("data_offsets")
    return begin, stop


def _length(entry: Mapping[str, Any]) -> int:
    """Bytes of a tensor; its sides alone must be possible too, which an empty tensor's bytes do not show."""
    shape = entry["shape"]
    if not all(type(side) is int and side >= 0 for side in shape) or len(shape) > MAX_SIDES:
        raise ValueError("shape")
    if math.prod(filter(None, shape)) > MAX_NUMBERS:
        raise ValueError("shape")
    return math.prod(shape) * BYTES[entry["dtype"]]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ; two of one name would be read differently by different readers."""
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a name appears twice")
    return dict(pairs)


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise _damaged(file, f"safetensors refuses it ({type(error).__name__})") from error


def _bfloat16(file: Path, start: int, entry: Mapping[str, Any]) -> np.ndarray:
    """NumPy has no bfloat16; its 16 bits are the upper half of a float32."""
    begin, stop = entry["data_offsets"]
    half = np.fromfile(file, "<u2", (stop - begin) // 2, offset=start + begin)
    return (half.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def _weights_in(folder: Path) -> Path:
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder}: no weights in it; expected one of {', '.join(WEIGHT_FILES)}")
    return found[0]


def _shards(index: Path) -> list[Path]:
    """The files that an index names; all of them in its own folder."""
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise _damaged(index, f"it names {name!r:.80}, which is no safetensors file in its folder")
        if not (index.parent / name).is_file():
            raise _damaged(index, f"it names {name}, which is not there")
    return [index.parent / name for name in names]


def _weight_map(index: Path) -> dict[str, Any]:
    found = _read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise _damaged(index, "it has no weight_map")
    return found


def _refuse_other_names(index: Path, tensors: Mapping[str, np.ndarray]) -> None:
    differing = sorted(_weight_map(index).keys() ^ tensors.keys())
    if differing:
        raise _damaged(index, f"it and its files disagree about {len(differing)} tensors, first {differing[0]!r:.80}")


def _refuse_odd_names(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Names are printed: one with a line break or a control character could pass for words of ours."""
    for name in tensors:
        if not name.isprintable():
            raise _damaged(file, f"a tensor is called {name!r:.80}")


def _refuse_not_finite(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise _damaged(file, f"tensor {name!r:.80} holds numbers that are not finite")


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file."""
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > MAX_JSON:
            raise ValueError("too large")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, f"no JSON ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise _damaged(file, "no JSON object")
    return found


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            yield block


def _damaged(file: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{file}: damaged or not what it says: {why}; get the file again")
