"""Cells of text as Markdown and LaTeX tables."""

from collections.abc import Sequence

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
