"""A grid over fields of a recipe: every combination with every seed, several runs at a time, a row of CSV for each.

    python ablate.py studies/compression.yaml --out results/compression.csv

The YAML file names grids. A grid has options of train.py, where {seed} stands for the seed, and fields with the values
to try:

    out: runs/noise              # where runs go; those that are done are not repeated
    stores: stores/stsb          # a folder with train.store, dev.store, test.store
    seeds: [0, 1, 2]
    grids:
      noise:
        options: --preset default
        fields: {noise_alpha: [0, 1, 3], encoder.output_dim: [32, 256]}

A grid may have stores and seeds of its own. A run is known by its folder, which is named after grid, values and seed:
where options change, remove the folder of the grid.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from atomic import write_csv_atomically
from cli import make_parser, output_file, run_command
from errors import InputError
from many_runs import Run, add_workers_option, run_all, training_options
from yaml_files import read_yaml, what_is_missing

SCORES = [f"{part} {metric}" for part in ("validation", "test") for metric in ("mse", "mae", "pearson", "spearman")]
OF_GRID = ("options", "fields", "stores", "seeds")
OF_FILE = ("out", "grids", *OF_GRID)


@dataclass(frozen=True)
class AblationRun(Run):
    """One run: a grid, its values of the fields, a seed, and the folder of the stores it reads."""

    grid: str
    settings: dict[str, Any]
    seed: int
    stores: Path

    def row(self) -> dict[str, Any]:
        """The run as a row of the table: settings, errors and correlations on both parts, seconds."""
        metrics = self.metrics()
        scores = {name: metrics[part]["encoder"][metric] for name, (part, metric) in ((name, name.split()) for name in SCORES)}
        rounded = {name: f"{value:.6f}" for name, value in scores.items()}
        return {"grid": self.grid, **self.settings, "seed": self.seed, **rounded, "seconds": metrics["seconds"]}


def read_ablation(path: Path) -> list[AblationRun]:
    """All runs of the grids in a file, in its order, the first seed of each grid first.

    Raises:
        InputError: where the file is missing or has no such grids.
    """
    ablation = read_yaml(path, "grids over the fields of a recipe")
    _check_keys(path, "the file", ablation, OF_FILE)
    try:
        for name, grid in ablation["grids"].items():
            _check_keys(path, f"grid {name}", grid, OF_GRID)
        return [
            _run(Path(ablation["out"]), str(name), grid, dict(zip(grid.get("fields", {}), values, strict=True)), int(seed))
            for name, grid in ((name, {**ablation, **grid}) for name, grid in ablation["grids"].items())
            for seed in grid["seeds"]
            for values in product(*grid.get("fields", {}).values())
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"no grids, expected out, stores, seeds, and grids with options and fields ({what_is_missing(error)})", path=path
        ) from error


def _check_keys(path: Path, place: str, contents: dict[str, Any], known: Sequence[str]) -> None:
    for key in contents:
        if key not in known:
            raise InputError(f"{place} has no key {key!r}, expected one of {', '.join(known)}", path=path)


def _run(out: Path, name: str, grid: dict[str, Any], settings: dict[str, Any], seed: int) -> AblationRun:
    words = {field: value if isinstance(value, str) else json.dumps(value) for field, value in settings.items()}
    values = ",".join(f"{field}={word}" for field, word in words.items()).replace("/", "_")
    folder = out / name / values / f"seed-{seed}"
    own = [argument for field, word in words.items() for argument in (f"--{field}", word)]
    stores = Path(grid["stores"])
    options = (*training_options(grid.get("options") or "", stores, folder, seed), *own)
    return AblationRun(f"{name} {values}, seed {seed}", folder, "train.py", options, name, settings, seed, stores)


def write_runs(path: Path, runs: Sequence[AblationRun]) -> None:
    """One row of CSV for each run; a field that a grid does not have is left empty there."""
    fields = dict.fromkeys(field for run in runs for field in run.settings)
    columns = ["grid", *fields, "seed", *SCORES, "seconds"]
    write_csv_atomically(path, [columns, *([run.row().get(name, "") for name in columns] for run in runs)])


def main() -> None:
    """Command line."""
    parser = make_parser("ablate.py", __doc__)
    parser.add_argument("grids", help="YAML file")
    parser.add_argument("--out", help="CSV to write (default: results/ and the name of the YAML file)")
    add_workers_option(parser)
    options = parser.parse_args()
    path = Path(options.grids)
    out = output_file(options.out or Path("results") / f"{path.stem}.csv", [path])
    runs = read_ablation(path)
    run_all(runs, options.workers)
    write_runs(out, runs)
    print(f"{out}: {len(runs)} runs")


if __name__ == "__main__":
    run_command(main)
