"""Laying out tables and numbers as text, aligned and no wider than a page, or as Markdown."""

import re
from textwrap import wrap

import pandas as pd

WIDTH = 110
TEX = str.maketrans(
    {sign: "\\" + sign for sign in "#$%&_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
NUMBER = re.compile(r"[-+]?[\d.,]*( ± [\d.]+)?(e[-+]\d+)?[kMG]?(/\d+)?|inf")


def render(frame: pd.DataFrame, format: str, width: int = WIDTH) -> str:
    """Lay out a frame as an aligned table ("text", wrapped to keep to `width`), as "md" or as "tex"."""
    if format == "tex":  # \\toprule and its like are booktabs'
        return frame.to_latex(index=False, escape=True).rstrip()
    columns = [[str(name), *map(str, frame[name])] for name in frame]
    if format == "md":
        rows = [
            f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in zip(*columns, strict=True)
        ]
        return "\n".join([rows[0], "|" + " --- |" * len(columns), *rows[1:]])
    widths = [max(map(len, column)) for column in columns]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    right = [all(NUMBER.fullmatch(cell) for cell in column[1:]) for column in columns]
    blocks = [_lay_row(row, widths, right) for row in zip(*columns, strict=True)]
    rule = "  ".join("-" * w for w in widths)
    return "\n".join([*blocks[0], rule, *(line for block in blocks[1:] for line in block)])


def _lay_row(row: tuple[str, ...], widths: list[int], right: list[bool]) -> list[str]:
    """Lay out one row in as many lines as its tallest cell needs."""
    cells = [wrap(cell, w) for cell, w in zip(row, widths, strict=True)]
    lines = []
    for i in range(max(1, *map(len, cells))):
        texts = [cell[i] if i < len(cell) else "" for cell in cells]
        laid = [t.rjust(w) if r else t.ljust(w) for t, w, r in zip(texts, widths, right, strict=True)]
        lines.append("  ".join(laid).rstrip())
    return lines


def spread(mean: float, half: float, sign: str = "") -> str:
    """Write '4.110 ± 0.025', without the interval where there is none, '-' where there is no mean."""
    if pd.isna(mean):
        return "-"
    return f"{mean:{sign}.3f}" + ("" if pd.isna(half) else f" ± {half:.3f}")


def shorten(number: float) -> str:
    """Write a count or a cost in at most 5 characters or so: 0.0123, 431, 25.6k, 1.2M; '-' for none."""
    if pd.isna(number):
        return "-"
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            return f"{number / (1e3 if suffix == 'k' else size):.4g}{suffix}"
    return f"{number:.4g}" if abs(number) < 1000 else f"{number:.0f}"


def section(title: str, body: str, format: str) -> str:
    """Put a title over a body."""
    heads = {"md": f"## {title}\n", "tex": f"\\section*{{{title}}}\n"}
    return f"{heads.get(format) or title + chr(10) + '=' * len(title)}\n{body}"


def write_lines(lines: list[str], format: str) -> str:
    """Write sentences, one below the other: wrapped as text, a list in Markdown, paragraphs in LaTeX."""
    if format == "tex":
        return "\n\n".join(line.translate(TEX) for line in lines)
    if format == "md":
        return "\n".join(f"- {line}" for line in lines)
    return "\n".join(
        laid for line in lines for laid in (wrap_line(line, "  ") if line[:1] != " " else [line])
    )


def wrap_line(text: str, hang: str = "") -> list[str]:
    """Break a sentence into lines of WIDTH, but never a word (a path)."""
    return wrap(text, WIDTH, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False)
