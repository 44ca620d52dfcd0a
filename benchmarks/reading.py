"""Reading the challenge's files: seconds, megabytes per second and peak memory, each way in a process of its own."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from timing import goal, measured_apart, median_and_range, peak_memory

from data import PairData
from studies.tables import markdown
from tokens.token_rows import format_token_row

ROWS = 150  # formatted once and repeated: writing decimal text is slow
WAYS = {
    "np.fromstring, line by line": "fromstring",
    "float() on every number": "floats",
    "np.loadtxt, line by line": "loadtxt",
    "polars, one column": "polars",
    "**this project, into its store**": "project",
}
SLOW = {"floats": 10, "loadtxt": 10}  # read only this part of the file, one in ten lines


def write_token_file(path: Path, pairs: PairData, size: int) -> None:
    """A file of token embeddings of at least `size` bytes: sentences of `pairs`, again and again."""
    rows = [format_token_row(pairs.tokens.sentence(i)) for i in range(ROWS)]
    written = 0
    with path.open("wb") as file:
        while written < size:
            for row in rows:
                written += file.write(row)


def read(way: str, paths: list[Path]) -> None:
    """Read the files, one way."""
    if way == "project":
        from tokens.dat_files import read_token_files

        with tempfile.TemporaryDirectory(dir=paths[0].parent) as folder:
            read_token_files(paths, cache_dir=folder)
        return
    for path in paths:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                if number % SLOW.get(way, 1) == 0:
                    _numbers(way, line)


def _numbers(way: str, line: bytes) -> object:
    if way == "fromstring":
        return np.fromstring(line, dtype=np.float32, sep=" ")  # type: ignore[call-overload]
    if way == "floats":
        return np.array([float(number) for number in line.split()], dtype=np.float32)
    if way == "loadtxt":
        return np.loadtxt([line.decode()], dtype=np.float32)
    import polars

    return polars.read_csv(line.replace(b" ", b"\n"), has_header=False, schema={"v": polars.Float32})["v"].to_numpy()


def measure(way: str, paths: list[Path]) -> tuple[float, float]:
    """Seconds, and megabytes of memory beyond what the imports take, of one way in a process of its own and its children."""
    seconds, megabytes = measured_apart(__file__, way, *map(str, paths))
    return seconds, megabytes


def _measured_here(way: str, paths: list[Path]) -> None:
    if way == "project":
        from tokens import (
            dat_files,
            token_store,  # noqa: F401
        )
    before = peak_memory()
    begin = time.perf_counter()
    read(way, paths)
    seconds = time.perf_counter() - begin
    memory = peak_memory() - before
    if way == "project":
        # Each reading process has the imports of this one too; what it has beyond them is what reading takes.
        dat_files.get_reusable_executor().shutdown(wait=True)
        memory = max(memory, len(paths) * (resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before))
    print(json.dumps([seconds * SLOW.get(way, 1), memory / 1024]))


def run(pairs: PairData, megabytes: int = 1000, repeats: int = 3) -> str:
    """The table of reading: two files, as the challenge has."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("first.dat", "second.dat")]
        for path in paths:
            write_token_file(path, pairs, megabytes * 1_000_000 // 2)
        size = sum(path.stat().st_size for path in paths) / 1e6
        results: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(repeats):
            for way, key in WAYS.items():
                results[way].append(measure(key, paths))
    medians = {way: statistics.median(seconds for seconds, _ in values) for way, values in results.items()}
    reference = medians["np.fromstring, line by line"]
    rows = [
        (
            way,
            median_and_range([seconds for seconds, _ in values]),
            f"{size / medians[way]:,.0f}",
            f"{reference / medians[way]:.2f}",
            f"{max(memory for _, memory in values):,.0f}",
        )
        for way, values in results.items()
    ]
    header = (f"two files, {size:,.0f} MB, two cores", "seconds, median (range)", "MB/s", "np.fromstring = 1", "peak memory, MB")
    ours = results["**this project, into its store**"]
    faster = goal("np.fromstring = 1", reference / medians["**this project, into its store**"], 4)
    small = goal("megabytes of memory", max(memory for _, memory in ours), 300, at_most=True)
    return "\n".join([markdown(header, rows), faster, small])


if __name__ == "__main__":
    _measured_here(sys.argv[1], [Path(path) for path in sys.argv[2:]])
