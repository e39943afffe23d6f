"""The list of faults in README.md names every fault once, and tests that exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROWS = re.findall(r"^\| ([DS]\d+) \| .+? \| (.+) \|$", (Path(__file__).parent / "README.md").read_text(), re.MULTILINE)


def test_every_fault_has_a_row():
    assert [fault for fault, _ in ROWS] == [*(f"D{number}" for number in range(1, 18)), "S5", "S7", "S8", "S9"]


@pytest.mark.parametrize("fault, told", ROWS, ids=[fault for fault, _ in ROWS])
def test_its_tests_exist(fault, told):
    names = re.findall(r"`([\w/]+\.py)::(test_\w+)`", told)
    assert names, fault
    for file, name in names:
        functions = ast.walk(ast.parse((TESTS / file).read_text()))
        assert name in {node.name for node in functions if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
