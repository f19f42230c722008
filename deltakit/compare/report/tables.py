"""The file forms of a comparison's table: CSV, Markdown, LaTeX, HTML."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from deltakit.compare.records import result as schema
from deltakit.compare.records.result import CellResult
from deltakit.compare.records.run import RunRecord
from deltakit.compare.report.columns import columns_for, legend
from deltakit.compare.report.frame import answer
from deltakit.compare.report.number_format import MISSING
from deltakit.compare.report.summary import RowSummary

if TYPE_CHECKING:
    import pandas as pd


def results_csv(rows: Sequence[CellResult]) -> str:
    """``results.csv``: one line a cell, every column of the schema, what is absent left empty."""
    return _cells_frame(rows).to_csv(index=False, lineterminator="\n")


def _cells_frame(rows: Sequence[CellResult]) -> pd.DataFrame:
    import pandas as pd

    # As objects: otherwise one absent value turns a column of whole numbers into floats.
    return pd.DataFrame([row.to_dict() for row in rows], columns=list(schema.COLUMNS), dtype=object)


def table_md(summaries: Sequence[RowSummary], run: RunRecord) -> str:
    """``table.md``: the answer in one sentence, the table and its legend."""
    frame = _frame(summaries, _markdown)
    align = ["left", *["right"] * (frame.shape[1] - 1)]
    table = frame.to_markdown(index=False, disable_numparse=True, colalign=align)
    before = _markdown(answer(summaries, run))
    return "\n\n".join([before, table, *map(_markdown, legend(summaries, run))]) + "\n"


def table_tex(summaries: Sequence[RowSummary]) -> str:
    r"""``table.tex``: a tabular to ``\input``; it needs the package booktabs."""
    frame = _frame(summaries, _latex)
    body = frame.to_latex(index=False, escape=False, column_format="l" + "r" * (frame.shape[1] - 1))
    head = "% Needs booktabs. To fit the page: \\resizebox{\\linewidth}{!}{\\input{table}}\n"
    return head + body


def table_html(summaries: Sequence[RowSummary]) -> str:
    """``table.html``: a bare table element."""
    return _frame(summaries, str).to_html(index=False, border=0, na_rep=MISSING) + "\n"


def _frame(summaries: Sequence[RowSummary], escape: Callable[[str], str]) -> pd.DataFrame:
    import pandas as pd

    columns = columns_for(summaries)
    lines = [[escape(str(column.cell(row))) for column in columns] for row in summaries]
    return pd.DataFrame(lines, columns=[escape(column.title) for column in columns], dtype=object)


_MARKDOWN = str.maketrans({char: f"\\{char}" for char in "|*`\\"})
_LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    # A bracket at the start of a row would be taken for an option of the line break before it.
    | {"[": "{[}", "]": "{]}", "|": "\\textbar{}", "\\": "\\textbackslash{}"}
    | {"~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "$<$", ">": "$>$"}
    | {"±": "$\\pm$", "×": "$\\times$", "−": "$-$", "–": "--", "…": "\\ldots{}"}
)


def _markdown(text: str) -> str:
    # Only what opens a tag is escaped: "p < 0.001" stays readable in the file itself.
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text.translate(_MARKDOWN))


def _latex(text: str) -> str:
    return text.translate(_LATEX)
