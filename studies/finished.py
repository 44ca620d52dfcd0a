"""Finished runs of train.py, found in folders, as rows of a table."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.yaml_files import read_yaml
from studies.tables import Row, run_row
from tokens.token_store import short_hash
from training.recipe import LossTerm, Phase, Recipe, dotted


def read_finished_runs(folders: Iterable[Path]) -> list[Row]:
    """A row per metrics.json of train.py below some folders, worst encoder first; runs of other commands are left out.

    Runs that differ in data or settings get different names, so that only seeds are averaged; of each seed the latest run counts.

    Raises:
        InputError: if a folder is missing, there are no runs, or one cannot be read.
    """
    folders = list(folders)
    for folder in folders:
        if not folder.is_dir():
            raise InputError("no such folder, expected one of training runs", path=folder)
    paths = [path for folder in folders for path in sorted(folder.rglob("metrics.json"))]
    contents = {path: _read_json(path) for path in paths}
    runs = {path: run for path, run in contents.items() if isinstance(run, dict) and "recipe" in run and "tokens" in run}
    if not runs:
        raise InputError("no metrics.json of train.py below these folders, expected folders of training runs")
    if len(runs) < len(contents):
        print(f"left out: {len(contents) - len(runs)} runs of commands other than train.py", file=sys.stderr)
    names = _with_differences(runs)
    data = _data_names(list(runs.values()))
    own = {path: (data[_data_of(run)], names[path], run["seed"]) for path, run in runs.items()}
    # A run that is repeated gives the same figures again: it is no other seed.
    latest = {own[path]: path for path in sorted(runs, key=lambda path: path.stat().st_mtime_ns)}
    if len(latest) < len(runs):
        print(f"left out: {len(runs) - len(latest)} earlier runs of the same data, settings and seed", file=sys.stderr)
    rows = [run_row(*own[path], run) for path, run in runs.items() if latest[own[path]] == path]
    return sorted(rows, key=lambda row: (list(data.values()).index(row["data"]), _mean_spearman(row, rows)))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"not JSON ({error}); repeat or delete this run", path=path) from error


def _mean_spearman(row: Row, rows: Iterable[Row]) -> float:
    """The Spearman of a row's encoder on its data over seeds, on test if one was scored there."""
    same = [other for other in rows if all(other[key] == row[key] for key in ("data", "encoder"))]
    for score in ("test encoder spearman", "validation encoder spearman"):
        if known := [other[score] for other in same if score in other]:
            return statistics.mean(known)
    return 0.0  # pairs without labels have none


def _data_of(run: Mapping[str, Any]) -> str:
    """Identifies a run's data; if the seed split training from validation, the pairs before the split."""
    identities = {part: facts["identity"] for part, facts in run.get("data", {}).items()}
    if run.get("split_from"):
        identities = {"split from": run["split_from"], "test": identities.get("test")}
    return json.dumps([run["tokens"].get("layers") or run["tokens"].get("source"), identities])


def _data_names(runs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """A name for each different data: the layers of its tokens, with the source and a hash as far as needed."""
    by_data = {_data_of(run): run for run in runs}
    names = {data: str(run["tokens"].get("layers") or run["tokens"].get("source")) for data, run in by_data.items()}
    sources = {data: run.get("data", {}).get("training", {}).get("tokens", {}).get("source") for data, run in by_data.items()}
    known = list(names.values())
    names = {data: name if known.count(name) == 1 else f"{name} of {sources[data]}" for data, name in names.items()}
    known = list(names.values())
    return {data: name if known.count(name) == 1 else f"{name} ({short_hash(data)[:4]})" for data, name in names.items()}


def _with_differences(runs: Mapping[Path, Mapping[str, Any]]) -> dict[Path, str]:
    """The name of each run's recipe, with the settings in which runs of that name differ, its teachers and their text included."""
    recipes = {path: run["recipe"] for path, run in runs.items()}
    fields = {path: _fields_of(path.with_name("recipe.yaml")) for path in runs}
    for path, run in runs.items():
        fields[path] |= {name: " ".join(run[name]) for name in ("teachers", "sentences") if run.get(name)}
    known = {name for settings in fields.values() for name in settings}
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for path, recipe in recipes.items():
        for name in known if fields[path] else ():
            values[recipe, name].add(fields[path].get(name, "none"))
    return {
        path: ", ".join([recipe, *(f"{name} {value}" for name, value in fields[path].items() if len(values[recipe, name]) > 1)])
        for path, recipe in recipes.items()
    }


def _fields_of(path: Path) -> dict[str, str]:
    """The fields of a recipe file, named as on the command line, without the seed; none if there is no file."""
    if not path.exists():
        return {}
    recipe = {**asdict(Recipe()), **read_yaml(path, "a recipe")}
    for name, phase in recipe["phases"].items():  # files of earlier versions lack some fields
        losses = {loss: {**asdict(LossTerm()), **(term or {})} for loss, term in phase.get("losses", {}).items()}
        recipe["phases"][name] = {**asdict(Phase()), **phase, "losses": losses}
    return {name: str(value) for name, value in dotted(recipe).items() if name != "seed"}
