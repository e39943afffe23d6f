"""`msfl table N`: one of the paper's tables with our results beside its own."""

import os
from collections.abc import Sequence
from pathlib import Path

from msfl_jax.results.formats import write_table
from msfl_jax.results.own_results import find_results
from msfl_jax.results.paper_tables import paper_table
from msfl_jax.results.pooling import pooled_interval
from msfl_jax.results.published import load_published


def table_report(
    number: int, folders: Sequence[Path], *, form: str = "text", out: Path | None = None, dataset: str = ""
) -> str:
    """The table, or where it was written. Means over seeds have their pooled patient-bootstrap intervals where predictions are there.

    Args:
      number: 1 to 5.
      folders: run directories, or folders with run directories somewhere below them.
      form: one of `msfl_jax.results.formats.FORMATS`.
      out: file for the table; its folder is made.
      dataset: see `msfl_jax.results.paper_tables.paper_table`.

    Raises:
      UserError: a folder or the format does not exist, or a file of results is damaged.
    """
    table = paper_table(load_published()[number], find_results(folders), dataset=dataset, pool=pooled_interval)
    text = write_table(table, form)
    if out is None:
        return text
    write_whole(out, text)
    return f"table  {out}\n"


def write_whole(file: Path, text: str) -> None:
    """Writes a file whole or not at all, and its folder where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.partial")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, file)
