"""Lines of cells as tables: aligned text and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def text_table(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines of cells, the header first, as text in columns: the first `left` columns aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        [cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
