"""Compare recipes: every arm on every data set with every seed, several runs at a time.

    python study.py studies/sts.yaml

Finished runs are not repeated and stopped ones resume, so a study that was stopped goes on where it was. It writes a table,
a CSV with a row per run, and a figure to results/, named after the study. To compare recipes of your own, copy
studies/sts.yaml.
"""

from __future__ import annotations

import os
from pathlib import Path

from common.cli import make_parser, output_folder, run_command
from common.errors import InputError
from common.files import write_text_atomically
from studies.compression import CompressionReport
from studies.figures import draw_scores
from studies.runs import read_study, run_all
from studies.tables import run_row, summary_table, write_rows


def main() -> None:
    """Command line."""
    parser = make_parser("study.py", __doc__)
    parser.add_argument("study", help="YAML file")
    parser.add_argument("--results", default="results", help="folder for table, CSV and figures")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--no_runs", action="store_true", help="run nothing: report on the runs that are finished")
    options = parser.parse_args()
    path, results = Path(options.study), output_folder(options.results)
    study = read_study(path)
    if not options.no_runs:
        run_all(study.runs, options.workers)
    done = [run for run in study.runs if run.is_done()]
    if not done:
        raise InputError("no run of this study is finished", path=path)
    rows = [run_row(run.data, run.name, run.seed, run.metrics()) for run in done]
    table = summary_table(rows, study.scores)
    report = CompressionReport(done).write(results, path.stem) if study.report == "compression" else ""
    write_text_atomically(results / f"{path.stem}.md", table + report)
    write_rows(results / f"{path.stem}.csv", rows)
    draw_scores(results / f"{path.stem}.png", rows, study.figure)
    print(f"{table}\n{len(done)} of {len(study.runs)} runs. {results / path.stem}.md, .csv and .png")


if __name__ == "__main__":
    run_command(main)
