"""A study of retrieval: every arm with every seed on one dataset, several runs at a time.

    python study_retrieval.py studies/retrieval.yaml

A study is a YAML file: a dataset, and arms, which are options of train_retrieval.py. Runs that are done are not repeated.
Afterwards there are a table, a row of CSV for each run, and a figure.
"""

from __future__ import annotations

import shlex
import statistics
from dataclasses import dataclass
from pathlib import Path

from atomic import write_csv_atomically, write_text_atomically
from cli import make_parser, output_folder, run_command
from errors import InputError
from many_runs import Run, add_study_arguments, run_all
from panels import Panel, draw_panels
from tables import markdown, mean_and_deviation
from train_retrieval import Scoring
from yaml_files import read_yaml, what_is_missing

METRICS = Scoring.COLUMNS
BASELINE = "mean pooling"


@dataclass(frozen=True)
class RetrievalRun(Run):
    """One run of the study: an arm with a seed."""

    arm: str
    seed: int

    def score(self, part: str, encoder: str, metric: str) -> float:
        """A score of mean pooling or of the encoder on the validation or test part."""
        return self.metrics()[part][encoder][metric]


def read_study(path: Path) -> list[RetrievalRun]:
    """All runs of a study, those of the first seed first.

    Raises:
        InputError: where the file is missing or not a study.
    """
    study = read_yaml(path, "a study")
    try:
        return [
            _run(Path(study["out"]), str(study["dataset"]), number, str(arm), options or "", int(seed))
            for seed in study["seeds"]
            for number, (arm, options) in enumerate(study["arms"].items(), start=1)
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"not a study, expected out, dataset, seeds and arms ({what_is_missing(error)})", path=path) from error


def _run(out: Path, dataset: str, number: int, arm: str, options: str, seed: int) -> RetrievalRun:
    arguments = (*shlex.split(options), "--dataset", dataset, "--seed", str(seed))
    return RetrievalRun(f"{arm}, seed {seed}", out / f"arm-{number}" / f"seed-{seed}", "train_retrieval.py", arguments, arm, seed)


def by_arm(runs: list[RetrievalRun]) -> dict[str, list[RetrievalRun]]:
    """The runs of each arm, arms in the order of the study."""
    return {arm: [run for run in runs if run.arm == arm] for arm in dict.fromkeys(run.arm for run in runs)}


def study_table(runs: list[RetrievalRun]) -> str:
    """Mean pooling and each arm over its seeds, on validation and test, as Markdown."""
    cells = [(part, metric) for part in Scoring.PARTS for metric in METRICS]
    rows = [[BASELINE, *(f"{runs[0].score(part, BASELINE, metric):.4f}" for part, metric in cells), "0", ""]]
    for arm, group in by_arm(runs).items():
        scores = [mean_and_deviation([run.score(part, "encoder", metric) for run in group]) for part, metric in cells]
        seconds = statistics.median(run.metrics()["seconds"] for run in group)
        rows.append([arm, *scores, f"{seconds:.0f}", str(len(group))])
    return markdown(["encoder", *(f"{part} {METRICS[metric]}" for part, metric in cells), "seconds", "seeds"], rows)


def write_csv(path: Path, runs: list[RetrievalRun]) -> None:
    """One row for each run."""
    cells = [(part, name, metric) for part in Scoring.PARTS for name in ("encoder", BASELINE) for metric in METRICS]
    rows: list[list[object]] = [["arm", "seed", *(f"{part} {name} {metric}" for part, name, metric in cells), "bytes", "seconds"]]
    for run in runs:
        metrics = run.metrics()
        scores = (f"{run.score(*cell):.6f}" for cell in cells)
        rows.append([run.arm, run.seed, *scores, metrics["bytes"], metrics["seconds"]])
    write_csv_atomically(path, rows)


def draw_study(path: Path, runs: list[RetrievalRun]) -> None:
    """Test scores of each arm, a panel for each of two metrics: a point for each seed, mean pooling as a line."""
    arms = by_arm(runs)
    panels = [
        Panel(
            METRICS[metric],
            {arm: [run.score("test", "encoder", metric) for run in group] for arm, group in arms.items()},
            runs[0].score("test", BASELINE, metric),
        )
        for metric in ("mrr", "average_precision")
    ]
    draw_panels(path, panels, "on the test part")


def main() -> None:
    """Command line."""
    parser = make_parser("study_retrieval.py", __doc__)
    add_study_arguments(parser)
    options = parser.parse_args()
    study, results = Path(options.study), output_folder(options.results)
    runs = read_study(study)
    run_all(runs, options.workers)
    table = study_table(runs)
    write_text_atomically(results / f"{study.stem}.md", table)
    write_csv(results / f"{study.stem}.csv", runs)
    draw_study(results / f"{study.stem}.png", runs)
    print(f"{table}\n{results / study.stem}.md, .csv and .png")


if __name__ == "__main__":
    run_command(main)
