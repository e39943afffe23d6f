"""A `PaperTable` as plain text, Markdown, LaTeX or CSV; all four say the same."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from input_pipeline.errors import UserError
from msfl_jax.config_build import nearest
from msfl_jax.results.paper_tables import Cell, PaperTable, Row
from msfl_jax.results.tables import format_table

# One line of CSV per cell, then one per note and caveat, whose text stands under "note", and the paper's caveats' sources under "source".
CSV_COLUMNS = (
    *("table", "kind", "row", "column", "text", "marks", "value", "low", "high", "spread", "seeds"),
    *("records", "patients", "split", "split_hash", "dataset", "step", "run", "metric", "source", "certainty", "note"),
)

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
}
_MARKDOWN = {character: f"\\{character}" for character in "\\|*_`[]<>#"}


def write_table(table: PaperTable, form: str) -> str:
    """The table in one of `FORMATS`, with a last line break.

    Raises:
      UserError: there is no such format.
    """
    if form not in FORMATS:
        raise UserError(f"--format: no format '{form}'{nearest(form, FORMATS)}; expected one of {', '.join(FORMATS)}")
    return FORMATS[form](table)


def as_text(table: PaperTable) -> str:
    """Aligned columns for a terminal; marks stand in brackets."""
    heads = dict(enumerate(table.columns, start=1))
    # Columns may be called alike, so that their numbers are the keys and the headings a row of their own.
    rows = [{"": "", **{str(index): name for index, name in heads.items()}}]
    for row in table.rows:
        cells = {str(index): _bracketed(cell.text, cell.marks) for index, cell in enumerate(row.cells, start=1)}
        rows.append({"": _bracketed(row.name, row.marks), **cells})
    grid = format_table(rows, ["", *map(str, heads)]).split("\n", 1)[1]
    notes = [f"{_bracketed('', (mark,)):<5}{text}" for mark, text in table.notes]
    parts = [f"{table.name}. {table.title}", grid, "\n".join(notes), _lines("caveat  {}", table.caveats)]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_markdown(table: PaperTable) -> str:
    """A pipe table; marks are superscripts."""

    def marked(text: str, marks: Sequence[str]) -> str:
        up = ",".join(_escape(mark, _MARKDOWN) for mark in marks)
        return _escape(text, _MARKDOWN) + (f"<sup>{up}</sup>" if up else "")

    lines = [
        _pipes(["", *(_escape(column, _MARKDOWN) for column in table.columns)]),
        _pipes([":--", *["--:"] * len(table.columns)]),
        *(_pipes([marked(row.name, row.marks), *(marked(c.text, c.marks) for c in row.cells)]) for row in table.rows),
    ]
    notes = [f"- <sup>{_escape(mark, _MARKDOWN)}</sup> {_escape(text, _MARKDOWN)}" for mark, text in table.notes]
    caveats = [f"- Caveat: {_escape(caveat, _MARKDOWN)}" for caveat in table.caveats]
    title = f"**{_escape(f'{table.name}. {table.title}', _MARKDOWN)}**"
    parts = [title, "\n".join(lines), "\n".join([*notes, *caveats])]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_latex(table: PaperTable) -> str:
    """A `table` environment that needs no package; marks are superscripts, notes and caveats stand below in small print."""

    def marked(text: str, marks: Sequence[str]) -> str:
        up = ",".join(_escape(mark, _LATEX) for mark in marks)
        return _escape(text, _LATEX) + (f"\\textsuperscript{{{up}}}" if up else "")

    def line(cells: Sequence[str]) -> str:
        return "    " + " & ".join(cells) + r" \\"

    body = [line([marked(row.name, row.marks), *(marked(c.text, c.marks) for c in row.cells)]) for row in table.rows]
    small = [f"\\textsuperscript{{{_escape(mark, _LATEX)}}} {_escape(text, _LATEX)}" for mark, text in table.notes]
    small += [f"Caveat: {_escape(caveat, _LATEX)}" for caveat in table.caveats]
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{_escape(table.title, _LATEX)}}}",
        f"  \\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"    \hline",
        line(["", *(_escape(column, _LATEX) for column in table.columns)]),
        r"    \hline",
        *body,
        r"    \hline",
        r"  \end{tabular}",
        *(f"  \\par\\footnotesize {text}" for text in small),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def as_csv(table: PaperTable) -> str:
    """One line per cell with every number and fact behind it, then notes, and caveats with their sources; see `CSV_COLUMNS`."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            writer.writerow(_csv_cell(table, row, column, cell))
    writer.writerow({"table": table.name, "kind": "title", "note": table.title})
    for mark, text in table.notes:
        writer.writerow({"table": table.name, "kind": "note", "marks": mark, "note": text})
    for caveat in table.caveats:
        source = table.sources.get(caveat, "")
        writer.writerow({"table": table.name, "kind": "caveat", "note": caveat, "source": source})
    return stream.getvalue()


FORMATS: Mapping[str, Callable[[PaperTable], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
}


def _csv_cell(table: PaperTable, row: Row, column: str, cell: Cell) -> dict[str, Any]:
    own = {"table": table.name, "kind": row.kind, "row": row.name, "column": column, "text": cell.text}
    return own | {"marks": " ".join((*row.marks, *cell.marks))} | dict(cell.facts)


def _bracketed(text: str, marks: Sequence[str]) -> str:
    return " ".join([*([text] if text else []), *([f"[{','.join(marks)}]"] if marks else [])])


def _lines(template: str, texts: Sequence[str]) -> str:
    return "\n".join(template.format(text) for text in texts)


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str, table: Mapping[str, str]) -> str:
    """Every character at most once, so that no escape is escaped again."""
    return "".join(table.get(character, character) for character in " ".join(text.split()))
