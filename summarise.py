"""Training runs as one table: mean and standard deviation over seeds.

Runs of one recipe with different settings get a row each, which says what differs.

    python summarise.py runs/stsb runs/stsb-word --out results/stsb.md
"""

from __future__ import annotations

from pathlib import Path

from common.cli import make_parser, output_file, run_command
from common.files import write_text_atomically
from studies.finished import read_finished_runs
from studies.tables import summary_table


def main() -> None:
    """Command line."""
    parser = make_parser("summarise.py", __doc__)
    parser.add_argument("folders", nargs="+", help="folders of training runs, at any depth")
    parser.add_argument("--out", help="Markdown file to write as well")
    options = parser.parse_args()
    out = output_file(options.out, suffix=".md") if options.out else None
    rows = read_finished_runs(Path(folder) for folder in options.folders)
    table = summary_table(rows, ["spearman", "mse"])
    if out:
        write_text_atomically(out, table)
    print(table, end="")


if __name__ == "__main__":
    run_command(main)
