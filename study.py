"""A study: every arm on every kind of tokens with every seed, several runs at a time.

    python study.py studies/sts.yaml

A study is a YAML file: arms are options of train.py, where {seed} stands for the seed; tokens are folders with
train.store, dev.store and test.store. Runs that are done are not repeated, so a study that was stopped goes on
where it was. Afterwards there are a table, a row of CSV for each run, and a figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomic import write_csv_atomically, write_text_atomically
from cli import make_parser, output_folder, run_command
from errors import InputError
from many_runs import Run, add_study_arguments, run_all, training_options
from panels import Panel, draw_panels
from summarise import COLUMNS, summarise
from tables import markdown
from yaml_files import read_yaml, what_is_missing


@dataclass(frozen=True)
class StudyRun(Run):
    """One run of a study: an arm on a kind of tokens with a seed."""

    tokens: str
    arm: str
    seed: int

    def metrics(self) -> dict[str, Any]:
        """What came out, under the names of the arm and the tokens."""
        return {**super().metrics(), "recipe": self.arm.replace("_", " "), "tokens": {"layers": self.tokens}, "data": {}}


def read_study(path: Path) -> list[StudyRun]:
    """All runs of a study, those of the first seed first.

    Raises:
        InputError: where the file is missing or not a study.
    """
    study = read_yaml(path, "a study")
    try:
        return [
            _study_run(Path(study["out"]), str(tokens), Path(stores), str(arm), options or "", int(seed))
            for seed in study["seeds"]
            for tokens, stores in study["tokens"].items()
            for arm, options in study["arms"].items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"not a study, expected out, seeds, tokens and arms ({what_is_missing(error)})", path=path) from error


def _study_run(out: Path, tokens: str, stores: Path, arm: str, options: str, seed: int) -> StudyRun:
    folder = out / stores.name / arm / f"seed-{seed}"
    arguments = training_options(options, stores, folder, seed)
    return StudyRun(f"{arm} on {tokens}, seed {seed}", folder, "train.py", arguments, tokens, arm, seed)


def write_csv(path: Path, runs: list[StudyRun]) -> None:
    """One row for each run."""
    scores = [f"{part} {metric}" for part in ("validation", "test") for metric in ("spearman", "pearson", "mse", "mae")]
    rows: list[list[object]] = [
        ["tokens", "arm", "seed", *scores, *(f"mean pooling {name}" for name in scores), "parameters", "bytes", "seconds"]
    ]
    for run in runs:
        metrics = run.metrics()
        values = [metrics[part][who][metric] for who in ("encoder", "mean pooling") for part, metric in map(str.split, scores)]
        sizes = [metrics[name] for name in ("parameters", "bytes", "seconds")]
        rows.append([run.tokens, run.arm, run.seed, *(f"{value:.6f}" for value in values), *sizes])
    write_csv_atomically(path, rows)


def draw_study(path: Path, study: list[StudyRun]) -> None:
    """Test Spearman of each arm, a panel for each kind of tokens: a point for each seed done, mean pooling as a line."""
    runs = [run for run in study if run.is_done()]
    arms = [arm for arm in dict.fromkeys(run.arm for run in study) if any(run.arm == arm for run in runs)]
    names = [arm.replace("_", " ") for arm in arms]
    panels = []
    for tokens in dict.fromkeys(run.tokens for run in runs):
        metrics = [run.metrics() for run in runs if run.tokens == tokens]
        scores = {name: [run["test"]["encoder"]["spearman"] for run in metrics if run["recipe"] == name] for name in names}
        panels.append(Panel(f"tokens {tokens}", scores, metrics[0]["test"]["mean pooling"]["spearman"]))
    draw_panels(path, panels, "test Spearman")


def main() -> None:
    """Command line."""
    parser = make_parser("study.py", __doc__)
    add_study_arguments(parser)
    parser.add_argument("--no_runs", action="store_true", help="run nothing: table, CSV and figure of the runs that are done")
    options = parser.parse_args()
    study, results = Path(options.study), output_folder(options.results)
    runs = read_study(study)
    if not options.no_runs:
        run_all(runs, options.workers)
    done = [run for run in runs if run.is_done()]
    if not done:
        raise InputError("no run of this study is done", path=study)
    table = markdown(COLUMNS, summarise([run.metrics() for run in done]))
    write_text_atomically(results / f"{study.stem}.md", table)
    write_csv(results / f"{study.stem}.csv", done)
    draw_study(results / f"{study.stem}.png", runs)
    print(table, end="")
    print(f"\n{len(done)} of {len(runs)} runs. {results / study.stem}.md, .csv and .png")


if __name__ == "__main__":
    run_command(main)
