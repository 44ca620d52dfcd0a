"""Tables of labelled text: this project's reader next to pandas and datasets, on the same files."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from timing import goal, peak_memory, rate_rows, run_script

from common.text_tables import markdown

READERS = {"datasets.load_dataset": "datasets", "pandas": "pandas", "**this project**": "project"}
CHUNK = 50_000  # rows made at a time
NAMES = ("sentence1", "sentence2", "score")


def make_rows(n_rows: int) -> Iterator[tuple[list[str], list[str], np.ndarray]]:
    """Distinct sentences of 4 to 16 words with commas now and then, and labels 0-5, in chunks."""
    rng = np.random.default_rng(0)
    words = np.array([f"{'aeiou'[i % 5]}{'bcdfglmnrst'[i % 11]}{i:x}" + "," * (i % 40 == 0) for i in range(5000)])
    for start in range(0, n_rows, CHUNK):
        count = min(CHUNK, n_rows - start)
        first, second = (
            [" ".join(words[rng.integers(0, len(words), length)]) + "." for length in rng.integers(4, 17, count)] for _ in range(2)
        )
        yield first, second, rng.integers(0, 501, count) / 100


def write_tables(folder: Path, n_rows: int) -> tuple[dict[str, Path], int]:
    """Write the same rows as CSV and as Parquet; returns their paths and the bytes of all sentences."""
    import pyarrow
    from pyarrow import csv, parquet

    paths = {"CSV": folder / "rows.csv", "Parquet": folder / "rows.parquet"}
    schema = pyarrow.schema(zip(NAMES, (pyarrow.string(), pyarrow.string(), pyarrow.float64()), strict=True))
    size = 0
    with csv.CSVWriter(paths["CSV"], schema) as text, parquet.ParquetWriter(paths["Parquet"], schema) as packed:
        for first, second, labels in make_rows(n_rows):
            table = pyarrow.table([first, second, labels], schema)
            size += sum(len(sentence) for sentence in first + second)
            text.write_table(table)
            packed.write_table(table)
    return paths, size


def read(reader: str, path: Path, cache: str) -> int:
    """Read all rows; returns their number."""
    kind = path.suffix.removeprefix(".")
    if reader == "project":
        from tokens.text_pairs import read_text_pairs

        return len(read_text_pairs(path))
    if reader == "pandas":
        import pandas

        return len(pandas.read_csv(path) if kind == "csv" else pandas.read_parquet(path))
    import datasets

    return len(datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=cache))


def measure(reader: str, path: Path) -> list[float]:
    """Rows, seconds, and megabytes of memory beyond what the imports take."""
    modules = {
        "project": ("tokens.text_pairs", "pyarrow.parquet"),
        "pandas": ("pandas", "pyarrow.parquet"),
        "datasets": ("datasets",),
    }
    for module in modules[reader]:
        __import__(module)
    before = peak_memory()
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        begin = time.perf_counter()
        n_rows = read(reader, path, cache)
        seconds = time.perf_counter() - begin
    return [n_rows, seconds, (peak_memory() - before) / 1024]


def run(n_rows: int = 1_000_000, repeats: int = 3) -> str:
    """A table per format."""
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        paths, size = write_tables(Path(folder), n_rows)
        for kind, path in paths.items():
            results: dict[str, list[list[float]]] = {name: [] for name in READERS}
            for _ in range(repeats):
                for name, reader in READERS.items():
                    results[name].append(run_script(__file__, reader, str(path)))
            assert all(rows == n_rows for values in results.values() for rows, _, _ in values)
            rates = {name: [rows / seconds for rows, seconds, _ in values] for name, values in results.items()}
            memory = {name: max(used for *_, used in values) for name, values in results.items()}
            reference, *_, ours = READERS
            header = (f"{kind}, {n_rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB", "rows/s, median (range)", f"{reference} = 1")
            cells = [(*row, f"{memory[row[0]]:,.0f}") for row in rate_rows(rates, reference)]
            parts.append(markdown((*header, "peak memory, MB"), cells))
    parts.append(
        f"datasets and pandas only load the rows; this project also checks each and finds columns and scale. Its {2 * n_rows:,} "
        f"sentences are {size / 1e6:,.0f} MB of text, and Python adds 65 bytes to each.\n"
    )
    strings = (size + 2 * n_rows * 65) / 1e6  # with their references in two lists
    return "\n".join([*parts, goal("peak memory as a multiple of these strings", memory[ours] / strings, 1.5, at_most=True)])


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
