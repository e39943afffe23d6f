"""The wheel: what is in it, and that it works far from the checkout."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from this checkout, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_configs_and_prompts_and_installs_only_the_two_packages(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"msfl_jax", "input_pipeline"}
    for file in ("configs/demo.py", "configs/mimic_vit_b16.py", "tasks/prompts/synthetic.json"):
        assert f"msfl_jax/{file}" in names
    assert {"msfl_jax/py.typed", "input_pipeline/py.typed"} <= set(names)


def test_the_wheel_declares_its_extras_and_no_heavy_core(wheel):
    archive = zipfile.ZipFile(wheel)
    folder = next(name for name in archive.namelist() if name.endswith("/METADATA")).removesuffix("METADATA")
    metadata = archive.read(f"{folder}METADATA").decode()
    needed = re.findall(r"^Requires-Dist: ([\w.-]+)(.*)$", metadata, re.MULTILINE)
    core = {name.lower().replace("_", "-") for name, rest in needed if "extra ==" not in rest}
    assert {"jax", "flax", "importlib-resources", "opencv-python-headless"} <= core
    assert not core & {"tensorflow", "torch", "pandas"}
    extras = set(re.findall(r"^Provides-Extra: (\w+)$", metadata, re.MULTILINE))
    assert extras == {"cuda", "tpu", "dicom", "serve", "torch", "test"}
    assert "torch==2.13.0" in metadata
    assert "msfl = msfl_jax.cli:main" in archive.read(f"{folder}entry_points.txt").decode()


def test_the_wheel_works_outside_of_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        "import msfl_jax, sys; from msfl_jax.config_files import load_config, shipped_configs; "
        "from msfl_jax.tasks.prompts import load_prompts; "
        "print(msfl_jax.__file__, load_config('demo:global').name, len(shipped_configs()), len(load_prompts('chexpert')))"
    )
    # -P and an own path: neither the working directory nor an editable install of the checkout comes first.
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {script}"
    found = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    file, name, configs, prompts = found.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert (name, configs, prompts) == ("demo", str(len(list((ROOT / "configs").glob("*.py")))), "13")
