"""Every reason, flag and code that the sources can give has a diagnosis, and every diagnosis can be given."""

import ast
import re
from pathlib import Path

import pytest

import input_pipeline
from input_pipeline.diagnoses import DIAGNOSES

ROOT = Path(input_pipeline.__file__).parent
FILES = sorted(
    file
    for file in [*(ROOT / "datasets").glob("*.py"), *ROOT.glob("*.py")]
    if not file.name.startswith("tokenizer")  # their flags are those of tokens
)
# Calls that name a code, and which argument that is: a place or a keyword.
CALLS = {"Dropped": 0, "drop": 1, "Fault": 0, "Note": 0, "Image": 4, "Found": 2, "_refuse_overlaps": 3}
FLAGS = ("flags", "reasons")  # dictionaries of these names have codes as keys
# Codes that come from elsewhere, by the text that names them; each is explained by another pattern of this file.
PASSED_ON = {
    "reason",
    "dropped.reason",
    "fault.code",
    "note.code",
    "error.code",
    "problem.code",
    "flag",
    "code",
    "_SHARED_PATIENT",
}
WORD = re.compile("[a-z]+(_[a-z]+)+")


def strings(node):
    """String constants of an expression; of a formatted string, with every value that its one field can have."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, ast.JoinedStr):
        assert ast.unparse(node) == "f'not_{self.views}'", "say here which words this can be"
        return {"not_frontal", "not_lateral"}
    if isinstance(node, ast.IfExp):
        return strings(node.body) | strings(node.orelse)
    if isinstance(node, ast.BoolOp):
        return set().union(*map(strings, node.values))
    assert ast.unparse(node) in PASSED_ON, f"{ast.unparse(node)} is no constant: say here where its words come from"
    return set()


def argument(call, place):
    """The code among the arguments of a call, or None."""
    named = {word.arg: word.value for word in call.keywords}
    if len(call.args) > place:
        return call.args[place]
    return named.get("reason") or named.get("code")


def codes_of(file):
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in CALLS and (value := argument(node, CALLS[name])) is not None:
                found |= strings(value)
            found |= {
                word
                for item in node.keywords
                if item.arg == "code" and name not in CALLS
                for word in strings(item.value)
            }
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in FLAGS:
            values = node.value.keys if isinstance(node.value, ast.Dict) else getattr(node.value, "elts", [])
            found |= set().union(*(strings(value) for value in values if not isinstance(value, ast.Starred)))
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "code":
            found |= strings(node.value)
        if isinstance(node, ast.FunctionDef):
            found |= returned(node)
        if isinstance(node, ast.arg | ast.FunctionDef):
            found |= defaults(node)
    return {word for word in found if word}


def returned(function):
    """Words of the functions that return a reason or nothing."""
    if function.name not in ("_take", "_reason"):
        return set()
    nodes = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]
    return {
        word.value
        for node in nodes
        for word in ast.walk(node)
        if isinstance(word, ast.Constant) and isinstance(word.value, str) and WORD.fullmatch(word.value)
    }


def defaults(node):
    """The code that an error has where it names none."""
    if not isinstance(node, ast.FunctionDef) or "code" not in {arg.arg for arg in node.args.kwonlyargs}:
        return set()
    names = [arg.arg for arg in node.args.kwonlyargs]
    return strings(node.args.kw_defaults[names.index("code")])


def all_codes():
    return {file.relative_to(ROOT).as_posix(): codes_of(file) for file in FILES}


def test_every_code_has_a_diagnosis():
    unknown = {(file, code) for file, codes in all_codes().items() for code in codes if code not in DIAGNOSES}
    assert unknown == set()


def test_every_diagnosis_can_be_given():
    assert set(DIAGNOSES) - set().union(*all_codes().values()) == set()


@pytest.mark.parametrize(
    "file, expected",
    [
        (
            "shards.py",
            {"wrong_checksum", "bad_image", "box_outside_image", "clipped_box", "blank_image", "stored_as_released"},
        ),
        ("reports.py", {"no_report", "bad_report"}),
        ("sources.py", {"missing_image", "bad_image", "path_outside", "wrong_size"}),
        ("datasets/siim_acr.py", {"bad_identifier", "bad_runs"}),
        (
            "datasets/labelled.py",
            {
                *("bad_box", "duplicate_image"),
                *("image_in_two_splits", "patient_in_two_splits", "no_split", "not_in_table"),
            },
        ),
        ("datasets/image_files.py", {"file_in_no_table", "two_files"}),
        ("errors.py", {"bad_row"}),
    ],
)
def test_the_patterns_see_what_eyes_see(file, expected):
    assert all_codes()[file] == expected


def test_no_word_of_a_source_that_looks_like_a_code_is_overlooked():
    """Words in the places where codes usually stand, found without the syntax, in docstrings too."""
    pattern = re.compile(r"""(?:Dropped\(|code=|drop\([^()]*,\s*)["']([a-z_]+)["']""")
    known = set().union(*all_codes().values())
    for file in FILES:
        assert set(pattern.findall(file.read_text())) <= known, file.name


def test_a_diagnosis_is_two_halves_of_a_sentence():
    for code, (_, expected, advice) in DIAGNOSES.items():
        assert WORD.fullmatch(code)
        for half in (expected, advice):
            assert half
            assert half == half.strip().rstrip(".")
            assert "\n" not in half
