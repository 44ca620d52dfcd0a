"""Training runs as one table: mean and standard deviation over seeds.

Runs of one recipe that differ in its fields have rows of their own, which say what differs.

Example:

    python summarise.py runs/stsb runs/stsb-word --out results/stsb.md
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atomic import write_text_atomically
from cli import make_parser, output_file, run_command
from errors import InputError
from recipe import LossTerm, Phase, Recipe, dotted
from tables import markdown, mean_and_deviation
from yaml_files import read_yaml

SCORES = [(part, metric) for part in ("validation", "test") for metric in ("spearman", "pearson")]
COLUMNS = ("tokens", "encoder", *(f"{part} {metric.title()}" for part, metric in SCORES), "parameters", "MiB", "seconds", "seeds")


def read_runs(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """What train.py left in metrics.json files below some folders, in the order of their names; other runs are left out.

    Where runs of one recipe differ in its fields, the name of the recipe says in which.

    Raises:
        InputError: where there are none, or one cannot be read.
    """
    paths = [path for folder in folders for path in sorted(folder.rglob("metrics.json"))]
    try:
        runs = {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    except ValueError as error:
        raise InputError(f"a metrics.json below these folders is not JSON ({error})") from error
    trained = {path: run for path, run in runs.items() if isinstance(run, dict) and "recipe" in run and "tokens" in run}
    if not trained:
        raise InputError("no metrics.json of train.py below these folders, expected folders of training runs")
    if len(trained) < len(runs):
        print(f"left out: {len(runs) - len(trained)} runs of other programs than train.py", file=sys.stderr)
    names = _names({path: run["recipe"] for path, run in trained.items()})
    return [{**run, "recipe": names[path]} for path, run in trained.items()]


def _names(recipes: Mapping[Path, str]) -> dict[Path, str]:
    """The name of each run's recipe, with the fields in which runs of that name differ."""
    fields = {path: _fields_of(path.with_name("recipe.yaml")) for path in recipes}
    known = {name for one in fields.values() for name in one}
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for path, recipe in recipes.items():
        for name in known if fields[path] else ():
            values[recipe, name].add(fields[path].get(name, "none"))
    names = {}
    for path, recipe in recipes.items():
        differing = [f"{name} {value}" for name, value in fields[path].items() if len(values[recipe, name]) > 1]
        names[path] = ", ".join([recipe, *differing])
    return names


def _fields_of(path: Path) -> dict[str, str]:
    """The fields of a recipe file as they are named on the command line, without the seed; of none without the file."""
    if not path.exists():
        return {}
    recipe = {**asdict(Recipe()), **read_yaml(path, "a recipe")}
    for name, phase in recipe["phases"].items():  # files of earlier versions do not have all fields
        losses = {loss: {**asdict(LossTerm()), **(term or {})} for loss, term in phase.get("losses", {}).items()}
        recipe["phases"][name] = {**asdict(Phase()), **phase, "losses": losses}
    return {name: str(value) for name, value in dotted(recipe).items() if name != "seed"}


def summarise(runs: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the table: for each kind of tokens and data mean pooling, then each recipe over its seeds."""
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        tokens = str(run["tokens"].get("layers") or run["tokens"].get("source"))
        groups[tokens, _data_of(run)][run["recipe"]].append(run)
    names = [tokens for tokens, _ in groups]
    rows = []
    for (tokens, _), recipes in groups.items():
        baselines = list({json.dumps(run.get("data")): run for group in recipes.values() for run in group}.values())
        source = baselines[0].get("data", {}).get("training", {}).get("tokens", {}).get("source")
        name = tokens if names.count(tokens) == 1 else f"{tokens} of {source}"
        rows.append((name, "mean pooling, nothing learned", *_figures(baselines, "mean pooling"), "0", "0", "0", ""))
        for recipe, group in sorted(recipes.items(), key=lambda item: _spearman(item[1])):
            parameters = f"{group[0]['parameters']:,}"
            seconds = f"{statistics.median(run['seconds'] for run in group):.0f}"
            size = f"{group[0]['bytes'] / 2**20:.2f}"
            seeds = str(len({run["seed"] for run in group}))
            rows.append((name, recipe, *_figures(group, "encoder"), parameters, size, seconds, seeds))
    return rows


def _data_of(run: dict[str, Any]) -> str:
    """What tells the data of a run from those of another; runs on other data are no seeds of one another.

    Where the seed parted training from validation, it is the pairs before that.
    """
    identities = {part: facts["identity"] for part, facts in run.get("data", {}).items()}
    if run.get("split_from"):
        identities = {"split from": run["split_from"], "test": identities.get("test")}
    return json.dumps(identities)


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
    out = output_file(options.out, suffix=".md") if options.out else None
    table = markdown(COLUMNS, summarise(read_runs(Path(folder) for folder in options.folders)))
    if out:
        write_text_atomically(out, table)
    print(table, end="")


if __name__ == "__main__":
    run_command(main)
