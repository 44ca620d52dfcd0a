"""Tables for people: Markdown, and figures over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence


def mean_and_deviation(values: list[float]) -> str:
    """Mean and, of more than one value, standard deviation."""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows below the titles of their columns as a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
