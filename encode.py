"""Encode a corpus, a file or folder of sentences, into a folder of embeddings, on all cores; a stopped run resumes.

Examples:

    python encode.py --data questions.txt --out vectors
    python encode.py --data table.csv --columns text=title,id=number --out vectors --precision int8
    python encode.py --data folder --model model.bin --out vectors --format parquet
    python encode.py --data /shared/folder --out /shared/vectors --ray auto    on all machines of a Ray cluster

The same command again resumes where it stopped. Then: python search.py --index vectors "a question"
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt

from common.cli import make_parser, output_folder, run_command
from common.errors import InputError
from common.files import absolute_if_exists, size_of
from common.progress import Progress
from corpus.encoding import encode_here, identity_of_model, load_model, needs_no_torch, value_range
from corpus.index import FORMATS, PRECISIONS, CorpusFolder, Plan
from corpus.on_ray import encode_on_ray
from corpus.records import Records
from text import SMALL
from tokens.tables import import_pyarrow, is_on_hub

PART_ROWS = 8192


def main() -> None:
    """Command line."""
    options = parse_options()
    folder = CorpusFolder.begin(output_folder(options.out).absolute(), make_plan(options))
    plan, missing = folder.plan, folder.missing()
    rows = sum(map(plan.rows_of, missing))
    if rows < plan.rows:
        print(f"{plan.rows - rows:,} of {plan.rows:,} sentences are there already.")
    truncated = 0
    if missing:
        with Progress(total=plan.rows, initial=plan.rows - rows, unit="sentence", unit_scale=True) as bar:
            try:
                for number, cut in run(folder, missing, options):
                    truncated += cut
                    bar.update(plan.rows_of(number))
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt("stopped; the same command resumes") from stop
    print(f"{options.out}/: {plan.rows:,} vectors of {plan.width} dimensions, {size_of(folder.path) / 2**20:,.1f} MiB.")
    if truncated:
        print(f"{truncated:,} of {rows:,} sentences were longer than the model takes, and truncated.")


def parse_options() -> Any:
    """All options, checked."""
    parser = make_parser("encode.py", __doc__)
    parser.add_argument(
        "--data", required=True, help="text with a sentence a line (.txt), CSV, TSV, JSON lines, Parquet, or a folder"
    )
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--model", default=str(SMALL), help="small encoder's folder, checkpoint, or backbone")
    parser.add_argument("--backbone", help="hub name or local folder (default: the one the checkpoint was trained on)")
    parser.add_argument("--columns", help="columns of tables, by name or number: text=NAME,id=NAME (default: found by content)")
    parser.add_argument("--skip_bad_rows", action="store_true", help="leave out bad rows and empty sentences, and count them")
    parser.add_argument("--format", choices=FORMATS, default="npy", help="NumPy arrays with JSON lines beside, or Parquet")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="number format of the embeddings")
    parser.add_argument("--no_text", action="store_true", help="keep ids and vectors alone")
    parser.add_argument("--part_rows", type=PositiveInt, default=PART_ROWS, help="sentences per part; a stopped run loses no more")
    parser.add_argument(
        "--processes", type=PositiveInt, help="processes of one thread each (default: one per core, with --ray of all machines)"
    )
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, mps; small encoders run on the CPU")
    parser.add_argument("--ray", metavar="ADDRESS", help="encode on a Ray cluster: local, auto, or its address; folders are shared")
    options = parser.parse_args()
    if Path(options.out).resolve().is_relative_to(Path(options.data).resolve()):
        raise InputError("is inside --data and would be read as part of it; choose another folder", path=options.out)
    if options.ray and options.device != "cpu":
        raise InputError(f"--ray encodes on CPUs, expected no --device {options.device}")
    if options.format == "parquet":
        import_pyarrow()  # fail before the work starts
    if needs_no_torch(options.model):
        options.device = "cpu"
    elif options.device != "cpu":
        from common.devices import choose_device  # here because a small encoder needs no torch

        options.device = str(choose_device(options.device))
    return options


def make_plan(options: Any) -> Plan:
    """Read the corpus once, and say what is to be done."""
    records = Records(options.data, options.columns, skip_bad_rows=options.skip_bad_rows)
    survey = records.survey()
    if survey.skipped:
        print(f"{survey.skipped:,} bad rows left out.")
    encoder = load_model(options.model, options.backbone, options.device)
    return Plan(
        model=absolute_if_exists(options.model),
        backbone=options.backbone and absolute_if_exists(options.backbone),
        model_identity=identity_of_model(options.model, options.backbone),
        data=options.data if is_on_hub(options.data) else absolute_if_exists(options.data),
        columns=options.columns,
        skip_bad_rows=options.skip_bad_rows,
        data_identity=survey.identity,
        rows=survey.rows,
        part_rows=options.part_rows,
        format=options.format,
        precision=options.precision,
        keep_text=not options.no_text,
        width=encoder.output_dim,
        value_range=value_range(encoder, records) if options.precision == "int8" else [],
    )


def run(folder: CorpusFolder, missing: list[int], options: Any) -> Iterator[tuple[int, int]]:
    """Encode parts, here or on a cluster."""
    if options.ray:
        return encode_on_ray(folder, missing, options.processes, options.ray)
    processes = options.processes or (os.cpu_count() or 1 if options.device == "cpu" else 1)
    return encode_here(folder, missing, processes, options.device)


if __name__ == "__main__":
    run_command(main)
