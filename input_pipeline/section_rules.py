"""Rules for single studies of MIMIC-CXR whose reports defeat every general rule, read from the user's own file and never run.

MIMIC-CXR's own parser (MIT-LCP/mimic-cxr, txt/section_parser.py) has such rules for 54 studies, in two dictionaries of the function
`custom_mimic_cxr_rules`: the section that has a study's text, or the place of the text in the report. They are not ours to copy.
"""

import ast
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline import tables
from input_pipeline.errors import DataError, UserError
from input_pipeline.sections import body_sentences, normalise_name, report_sentences

_FUNCTION = "custom_mimic_cxr_rules"
_NAMES, _INDICES = "custom_section_names", "custom_indices"
_MAX_BYTES = 1_000_000
_STUDY = re.compile(r"s?([0-9]{2,20})")
_DIGITS = re.compile(r"[0-9]{1,9}")


class Rule(NamedTuple):
    """Where a study's text is.

    Attributes:
      line: of the file, from 1.
      section: name of the section that is read, or "" where the two that follow count.
      start, end: the text is `report[start:end]`; where both are 0 the report has no usable text.
    """

    line: int
    section: str
    start: int = 0
    end: int = 0


@dataclass(frozen=True)
class SectionRules:
    """Rules by study.

    Attributes:
      file: name of the file.
      sha256: of the file, in hex.
      rules: by the digits of a study's identifier.
    """

    file: str
    sha256: str
    rules: Mapping[str, Rule]

    def sentences(self, study: str, text: str) -> list[str] | None:
        """Sentences of a report by the study's rule, empty where it says that there are none; None where the study has no rule.

        Raises:
          DataError: the rule's place lies beyond the text.
        """
        if (rule := self.rules.get(study)) is None:
            return None
        if rule.section:
            return report_sentences(text, policy=(rule.section,), fallback=None)
        if rule.end > len(text):
            found = f"{self.file}: the rule of line {rule.line} ends at character {rule.end} of a report of {len(text)}"
            raise DataError(f"{found}; expected the rules and the reports of one release")
        return body_sentences([text[rule.start : rule.end]])


def read_section_rules(path: Path) -> SectionRules:
    """Reads MIMIC-CXR's own section_parser.py, or a CSV file of study_id and section, or of study_id, start and end, or of all four.

    Of the former only the two dictionaries are looked at, and they must be written out: nothing of the file is run.

    Raises:
      UserError: no such file, or none of the two kinds; a study that has no identifier, or no rule that can be understood.
      DataError: a study has two rules.
    """
    if path.suffix not in (".py", ".csv"):
        raise UserError(f"{path.name}: found '{path.suffix}'; expected MIMIC-CXR's section_parser.py or a CSV table")
    rules: dict[str, Rule] = {}
    for study, rule in _python_rules(path) if path.suffix == ".py" else _table_rules(path):
        found = _STUDY.fullmatch(study)
        if found is None:
            raise UserError(f"{path.name}: line {rule.line} names no study; expected 's' and digits")
        if found[1] in rules:
            before = rules[found[1]].line
            raise DataError(
                f"{path.name}: the study of line {rule.line} has a rule in line {before}; expected one each"
            )
        rules[found[1]] = rule
    if not rules:
        raise UserError(f"{path.name}: no rule; expected some, of a study each")
    return SectionRules(path.name, tables.file_hash(path), rules)


def _table_rules(path: Path) -> Iterator[tuple[str, Rule]]:
    columns = tables.column_names(path)
    if "section" not in columns and not {"start", "end"} <= set(columns):
        raise UserError(f"{path.name}: no column 'section', nor 'start' and 'end'; expected one or the other")
    for number, (study, section, start, end) in tables.read_table(
        path, ["study_id"], optional=["section", "start", "end"]
    ):
        if section and not start and not end:
            yield study, _by_section(path, number, section)
        elif section or not (_DIGITS.fullmatch(start) and _DIGITS.fullmatch(end)):
            raise UserError(
                f"{path.name}: row {number} has no rule; expected a section, or whole numbers start and end"
            )
        else:
            yield study, _by_place(path, number, int(start), int(end))


def _python_rules(path: Path) -> Iterator[tuple[str, Rule]]:
    function = _function(path)
    for name, make in ((_NAMES, _section_of), (_INDICES, _place_of)):
        for key, value in _dictionary(path, function, name):
            study = _constant(key, str)
            if study is None:
                raise UserError(f"{path.name}: line {key.lineno} names no study; expected 's' and digits in quotes")
            yield study, make(path, value)


def _section_of(path: Path, value: ast.expr) -> Rule:
    section = _constant(value, str)
    if section is None:
        raise UserError(f"{path.name}: line {value.lineno} has no section; expected its name in quotes")
    return _by_section(path, value.lineno, section)


def _place_of(path: Path, value: ast.expr) -> Rule:
    numbers = [_constant(item, int) for item in value.elts] if isinstance(value, ast.List | ast.Tuple) else []
    if len(numbers) != 2 or None in numbers:
        raise UserError(f"{path.name}: line {value.lineno} has no place; expected [start, end], two whole numbers")
    return _by_place(path, value.lineno, *numbers)


def _by_section(path: Path, line: int, section: str) -> Rule:
    name = normalise_name(section)
    if not name:
        raise UserError(f"{path.name}: line {line} has a section without a name; expected one such as 'impression'")
    return Rule(line, name)


def _by_place(path: Path, line: int, start: int, end: int) -> Rule:
    if not (0 <= start < end or start == end == 0):
        raise UserError(f"{path.name}: line {line} has a place from {start} to {end}; expected start < end, or 0 and 0")
    return Rule(line, "", start, end)


def _constant(node: ast.expr, kind: type) -> Any:
    """The value of a constant that is written out, or None; a truth value is no number."""
    return node.value if isinstance(node, ast.Constant) and type(node.value) is kind else None


def _function(path: Path) -> ast.FunctionDef:
    """The function that holds the dictionaries, as a tree."""
    expected = f"expected MIMIC-CXR's section_parser.py with the function {_FUNCTION}"
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise UserError(f"{path.name}: more than {_MAX_BYTES} bytes; {expected}")
        with warnings.catch_warnings(action="ignore"):
            module = ast.parse(text)
    except OSError as error:
        raise UserError(f"{path.name}: {error.strerror}; {expected}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f"{path.name}: not Python; {expected}") from None
    found = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == _FUNCTION]
    if len(found) != 1:
        raise UserError(f"{path.name}: {len(found)} such functions; {expected}")
    return found[0]


def _dictionary(path: Path, function: ast.FunctionDef, name: str) -> Iterable[tuple[ast.expr, ast.expr]]:
    """Keys and values of a dictionary that the function writes out, and does nothing with but return it."""
    assigned = [node for node in function.body if isinstance(node, ast.Assign) and _is_name(node.targets[0], name)]
    returned = [node for node in function.body if isinstance(node, ast.Return)]
    allowed = {id(node.targets[0]) for node in assigned if len(node.targets) == 1}
    allowed |= {id(part) for node in returned if node.value for part in (node.value, *ast.iter_child_nodes(node.value))}
    for node in ast.walk(function):
        if _is_name(node, name) and id(node) not in allowed:
            where = f"{path.name}: line {getattr(node, 'lineno', function.lineno)} does more with {name}"
            raise UserError(f"{where} than write it out; expected one dictionary of constants")
    value = assigned[0].value if len(assigned) == 1 else None
    if not isinstance(value, ast.Dict):
        raise UserError(
            f"{path.name}: {name} is not written out once in {_FUNCTION}; expected a dictionary of constants"
        )
    for key, item in zip(value.keys, value.values, strict=True):
        if key is None:
            raise UserError(f"{path.name}: line {item.lineno} takes in another dictionary; expected constants alone")
        yield key, item


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
