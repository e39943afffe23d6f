"""Walks the imports of every module and fails on an arrow that points up (design: configs -> msfl_jax -> input_pipeline)."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A part of msfl_jax may import the parts named behind it, and itself.
ALLOWED = {
    "config_rules": set(),
    "finetune_config": {"config", "config_build", "config_init", "config_rules"},
    "finetune_presets": {"presets"},
    "segmentation_config": {"config", "config_build", "config_init", "config_rules", "finetune_config"},
    "segmentation_presets": {"finetune_presets"},
    "segmenter": {"classifier", "config", "encoders", "losses", "model", "objective", "segmentation_config"},
    "config_build": set(),
    "config": {"config_build", "config_init", "config_rules"},
    "config_init": set(),
    "config_files": {"config", "config_build"},
    "presets": set(),
    "chips": set(),
    "vectors": set(),
    "encoders": {"vectors"},
    "losses": {"vectors"},
    "metrics": set(),
    "heads": {"encoders"},
    "model_rules": {"config", "encoders"},
    "model": {"config", "encoders", "heads", "model_rules", "vectors"},
    "classifier": {"config", "encoders", "model"},
    "objective": {"config", "losses", "model", "parallel", "vectors"},
    "gradient_cache": {"model", "objective", "parallel"},
    "parallel": {"config", "losses", "vectors"},
    "export": {"classifier", "config", "config_init", "encoders", "heads", "metrics", "model", "tasks", "train"},
    "train": {
        "chips",
        *("config", "config_init", "encoders", "finetune_config", "gradient_cache", "losses", "model", "objective"),
        "parallel",
    },
    "tasks": {
        *(
            "classifier",
            "config",
            "config_build",
            "config_init",
            "finetune_config",
            "metrics",
            "model",
            "objective",
            "parallel",
            "train",
        ),
        *("segmentation_config", "segmenter"),
    },
    "planner": {"chips", "config", "config_build", "model", "parallel", "train"},
    "results": {
        *("config", "config_build", "config_init", "finetune_config", "metrics", "segmentation_config", "segmenter"),
        "tasks",
    },
    "commands": {
        *(
            "config",
            "config_files",
            "config_init",
            "export",
            "finetune_config",
            "model",
            "objective",
            "parallel",
            "train",
            "tasks",
            "metrics",
        ),
        *("chips", "planner", "results", "segmentation_config"),
    },
    "cli_options": set(),
    "cli_data": {"cli_options", "parallel"},
    "cli_plan": {"cli_options", "commands", "config_files", "parallel"},
    "cli_finetune": {"cli_options", "commands", "config_files", "finetune_config"},
    "cli": {
        "cli_data",
        "cli_finetune",
        "cli_options",
        "cli_plan",
        "commands",
        "config",
        "config_files",
        "finetune_config",
        "parallel",
    },
    "library": {"export", "model", "parallel", "tasks", "train"},
    "__init__": {"library"},
}
PYTORCH = ROOT / "msfl_jax" / "export" / "pytorch"  # copied into exports; nothing here imports it
LIBRARIES_OF_ARRAYS = {"vectors", "encoders", "losses", "metrics"}


def imported(file: Path) -> set[str]:
    """Dotted names of all modules that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def part(name: str) -> str:
    """The part of msfl_jax that a dotted name belongs to: `msfl_jax.train.loop` -> `train`."""
    pieces = name.split(".")
    return pieces[1] if len(pieces) > 1 else ""


@pytest.mark.parametrize(
    "file", sorted((ROOT / "input_pipeline").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT))
)
def test_the_input_pipeline_imports_neither_jax_nor_the_library(file):
    roots = {name.split(".")[0] for name in imported(file)}
    assert not roots & {"jax", "flax", "optax", "orbax", "msfl_jax", "configs", "tensorflow", "torch"}


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=lambda f: f.name)
def test_configs_import_only_ml_collections_and_presets(file):
    presets = {f"msfl_jax.{name}" for name in ("presets", "finetune_presets", "segmentation_presets")}
    assert imported(file) <= {"ml_collections", "ml_collections.ConfigDict", "msfl_jax"} | presets


@pytest.mark.parametrize("file", sorted(PYTORCH.glob("*.py")), ids=lambda f: f.name)
def test_exported_code_needs_nothing_but_pytorch_and_two_readers_of_files(file):
    outside = {name.split(".")[0] for name in imported(file)} - sys.stdlib_module_names
    assert outside <= {"torch", "safetensors", "tokenizers", *(other.stem for other in PYTORCH.glob("*.py"))}


LIBRARY = sorted(file for file in (ROOT / "msfl_jax").rglob("*.py") if file.parent != PYTORCH)


@pytest.mark.parametrize("file", LIBRARY, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_arrow_points_back_inside_the_library(file):
    own = file.relative_to(ROOT / "msfl_jax").with_suffix("").parts[0]
    assert own in ALLOWED, f"{own}: say in this test what it may import"
    used = {part(name) for name in imported(file) if name.startswith("msfl_jax.")} - {own}
    assert used <= ALLOWED[own], f"{own} imports {used - ALLOWED[own]}"
    outside = {name.split(".")[0] for name in imported(file)}
    assert not outside & {"tensorflow", "torch", "configs", "tests", "launch"}
    if own in LIBRARIES_OF_ARRAYS:
        assert "input_pipeline" not in outside, f"{own} knows only arrays"
