"""Training runs as one table: mean and standard deviation over seeds.

Example:

    python summarise.py runs/stsb runs/stsb-word --out results/stsb.md
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atomic import write_text_atomically
from cli import make_parser, run_command
from errors import InputError
from tables import markdown, mean_and_deviation

SCORES = [(part, metric) for part in ("validation", "test") for metric in ("spearman", "pearson")]
COLUMNS = ("tokens", "encoder", *(f"{part} {metric.title()}" for part, metric in SCORES), "parameters", "MiB", "seconds", "seeds")


def read_runs(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """What train.py left in metrics.json files below some folders, in the order of their names; other runs are left out.

    Raises:
        InputError: where there are none, or one cannot be read.
    """
    paths = [path for folder in folders for path in sorted(folder.rglob("metrics.json"))]
    try:
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    except ValueError as error:
        raise InputError(f"a metrics.json below these folders is not JSON ({error})") from error
    trained = [run for run in runs if isinstance(run, dict) and "recipe" in run and "tokens" in run]
    if not trained:
        raise InputError("no metrics.json of train.py below these folders, expected folders of training runs")
    if len(trained) < len(runs):
        print(f"left out: {len(runs) - len(trained)} runs of other programs than train.py", file=sys.stderr)
    return trained


def summarise(runs: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the table: for each kind of tokens and data mean pooling, then each recipe over its seeds."""
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        tokens = str(run["tokens"].get("layers") or run["tokens"].get("source"))
        groups[tokens, _data_of(run)][run["recipe"]].append(run)
    names = [tokens for tokens, _ in groups]
    rows = []
    for (tokens, _), recipes in groups.items():
        baseline = next(iter(recipes.values()))[0]
        name = tokens if names.count(tokens) == 1 else f"{tokens} of {baseline['data']['training']['tokens'].get('source')}"
        rows.append((name, "mean pooling, nothing learned", *_figures([baseline], "mean pooling"), "0", "0", "0", ""))
        for recipe, group in sorted(recipes.items(), key=lambda item: _spearman(item[1])):
            parameters = f"{group[0]['parameters']:,}"
            seconds = f"{statistics.median(run['seconds'] for run in group):.0f}"
            size = f"{group[0]['bytes'] / 2**20:.2f}"
            seeds = str(len({run["seed"] for run in group}))
            rows.append((name, recipe, *_figures(group, "encoder"), parameters, size, seconds, seeds))
    return rows


def _data_of(run: dict[str, Any]) -> str:
    """What tells the data of a run from those of another; runs on other data are no seeds of one another."""
    return json.dumps({part: facts["identity"] for part, facts in run.get("data", {}).items()})


def _figures(runs: list[dict[str, Any]], encoder: str) -> list[str]:
    """Scores over the runs; a part that they did not have is left empty."""
    return [mean_and_deviation([run[part][encoder][metric] for run in runs]) if part in runs[0] else "" for part, metric in SCORES]


def _spearman(runs: list[dict[str, Any]]) -> float:
    part = "test" if "test" in runs[0] else "validation"
    return statistics.mean(run[part]["encoder"]["spearman"] for run in runs)


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
