"""Tables of training runs: a row of CSV per run, and Markdown with mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import write_csv_atomically
from common.text_tables import markdown
from evaluation.comparison import BASELINE, ENCODER
from evaluation.scores import METRICS
from retrieval.scores import TITLES as RETRIEVAL_TITLES

PARTS = ("validation", "test")
TITLES = {**METRICS, "mae": "MAE", **RETRIEVAL_TITLES}

Row = dict[str, Any]


def run_row(data: str, name: str, seed: int, metrics: Mapping[str, Any]) -> Row:
    """The scores, size and time of a run's metrics.json as one flat row."""
    row: Row = {"data": data, "encoder": name, "seed": seed}
    for part in PARTS:
        for who, scores in metrics.get(part, {}).items():
            row |= {f"{part} {who} {score}": round(value, 6) for score, value in scores.items() if score in TITLES}
    return row | {key: metrics[key] for key in ("parameters", "bytes", "seconds") if key in metrics}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    write_csv_atomically(path, [columns, *([row.get(column, "") for column in columns] for row in rows)])


def summary_table(rows: Sequence[Row], scores: Sequence[str]) -> str:
    """Markdown: mean pooling and each encoder per data set, over seeds; a part that a run does not have is left empty."""
    columns = [(part, score) for part in PARTS for score in scores]
    sizes = [key for key in ("parameters", "bytes") if all(key in row for row in rows)]
    titles = {"parameters": "parameters", "bytes": "MiB"}
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        on_data = [row for row in rows if row["data"] == data]
        baseline = _cells(_distinct(on_data, columns), BASELINE, columns)
        lines.append([data, "mean pooling, nothing learned", *baseline, *("0" for _ in sizes), "0", ""])
        for name in dict.fromkeys(row["encoder"] for row in on_data):
            group = [row for row in on_data if row["encoder"] == name]
            size = {"parameters": f"{group[0].get('parameters', 0):,}", "bytes": f"{group[0].get('bytes', 0) / 2**20:.2f}"}
            seconds = f"{statistics.median(row['seconds'] for row in group):.0f}"
            lines.append([data, name, *_cells(group, ENCODER, columns), *(size[key] for key in sizes), seconds, str(len(group))])
    header = ["tokens", "encoder", *(f"{part} {TITLES[score]}" for part, score in columns), *(titles[key] for key in sizes)]
    return markdown([*header, "seconds", "seeds"], lines)


def _distinct(rows: Sequence[Row], columns: Sequence[tuple[str, str]]) -> list[Row]:
    """A row for each value of the baseline: several if seeds chose the split. Processors differ in less than 1e-4."""
    names, distinct = _names(BASELINE, columns), list[Row]()
    for row in rows:
        if not any(all(abs(row.get(name, 0) - other.get(name, 0)) <= 1e-4 for name in names) for other in distinct):
            distinct.append(row)
    return distinct


def _names(who: str, columns: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{part} {who} {score}" for part, score in columns]


def _cells(rows: Sequence[Row], who: str, columns: Iterable[tuple[str, str]]) -> list[str]:
    names = _names(who, columns)
    known = [[row[name] for row in rows if name in row] for name in names]
    return [mean_and_deviation(values) if values else "" for values in known]


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and, of more than one value, standard deviation."""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"
