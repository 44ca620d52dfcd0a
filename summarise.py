"""Training runs as one table: mean and standard deviation over seeds.

Example:

    python summarise.py runs/stsb runs/stsb-word --out results/stsb.md
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from atomic import write_text_atomically
from cli import make_parser, run_command
from errors import InputError

SCORES = [(part, metric) for part in ("validation", "test") for metric in ("spearman", "pearson")]
COLUMNS = ("tokens", "encoder", *(f"{part} {metric.title()}" for part, metric in SCORES), "parameters", "MiB", "seconds", "seeds")


def read_runs(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The metrics.json files below some folders, in the order of their names.

    Raises:
        InputError: where there are none, or one was made without test pairs.
    """
    paths = [path for folder in folders for path in sorted(folder.rglob("metrics.json"))]
    if not paths:
        raise InputError("no metrics.json below these folders, expected folders of training runs")
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    for path, run in zip(paths, runs, strict=True):
        if "test" not in run:
            raise InputError("this run had no test pairs (--test)", path=path)
    return runs


def summarise(runs: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the table: for each kind of tokens mean pooling, then each recipe over its seeds."""
    by_tokens: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_tokens[str(run["tokens"].get("layers") or run["tokens"].get("source"))][run["recipe"]].append(run)
    rows = []
    for tokens, recipes in by_tokens.items():
        baseline = next(iter(recipes.values()))[0]
        rows.append((tokens, "mean pooling, nothing learned", *_figures([baseline], "mean pooling"), "0", "0", "0", ""))
        for recipe, group in sorted(recipes.items(), key=lambda item: _spearman(item[1])):
            parameters = f"{group[0]['parameters']:,}"
            seconds = f"{statistics.median(run['seconds'] for run in group):.0f}"
            size = f"{group[0]['bytes'] / 2**20:.2f}"
            rows.append((tokens, recipe, *_figures(group, "encoder"), parameters, size, seconds, str(len(group))))
    return rows


def _figures(runs: list[dict[str, Any]], encoder: str) -> list[str]:
    return [mean_and_deviation([run[part][encoder][metric] for run in runs]) for part, metric in SCORES]


def _spearman(runs: list[dict[str, Any]]) -> float:
    return statistics.mean(run["test"]["encoder"]["spearman"] for run in runs)


def mean_and_deviation(values: list[float]) -> str:
    """Mean and, of more than one value, standard deviation."""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows below the titles of their columns as a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Command line."""
    parser = make_parser("summarise.py", __doc__)
    parser.add_argument("folders", nargs="+", help="folders of training runs, at any depth")
    parser.add_argument("--out", help="Markdown file to write as well")
    options = parser.parse_args()
    table = markdown(COLUMNS, summarise(read_runs(Path(folder) for folder in options.folders)))
    if options.out:
        write_text_atomically(options.out, table)
    print(table, end="")


if __name__ == "__main__":
    run_command(main)
