"""Cells of text as Markdown and LaTeX tables, records as JSON."""

import json
from collections.abc import Sequence
from typing import Any

_TEX = {
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "–": "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}


def six_digits(value: Any) -> Any:
    """A record with six significant digits in every float; tuples become lists."""
    if isinstance(value, dict):
        return {name: six_digits(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [six_digits(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The first row as head, the first column to the left, the others to the right."""
    head, *body = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex_table(rows: Sequence[Sequence[str]], title: str) -> str:
    """A ``tabular`` that needs no package; the title is a comment."""
    head, *body = [" & ".join(map(tex, row)) + r" \\" for row in rows]
    rule = r"\hline"
    lead = f"% {title}\n" + rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}"
    return "\n".join([lead, rule, head, rule, *body, rule, r"\end{tabular}"]) + "\n"


def tex(text: str) -> str:
    """The text with LaTeX's special characters written out."""
    return "".join(_TEX.get(sign, sign) for sign in text)


def rows_json(record: dict[str, Any]) -> str:
    """One line per row, so that changes of a table can be read."""

    def line(value: object) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    def lines(value: object) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n" + ",\n".join(map(line, value)) + "\n]"
        return line(value)

    parts = [f"{line(name)}: {lines(value)}" for name, value in record.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"
