"""Reading token embeddings from `.dat` files: seconds, megabytes per second and peak memory, each reader in its own process."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from itertools import repeat
from pathlib import Path

import numpy as np
from loky import get_reusable_executor
from timing import goal, peak_memory, rate_rows, run_script, time_interleaved

from common.text_tables import markdown
from data import PairData
from tokens.dat_files import read_token_files
from tokens.token_rows import format_token_row

ROWS = 150  # formatted once and repeated: writing decimal text is slow
READERS = {
    "np.fromstring, line by line": "fromstring",
    "polars, one column": "polars",
    "**this project, into its store**": "project",
}


def parse_row(reader: str, line: bytes) -> np.ndarray:
    """All numbers of a line, the two counts included."""
    if reader == "fromstring":
        return np.fromstring(line, dtype=np.float32, sep=" ")  # type: ignore[call-overload]
    import polars

    return polars.read_csv(line.replace(b" ", b"\n"), has_header=False, schema={"v": polars.Float32})["v"].to_numpy()


def _measure(reader: str, paths: list[Path]) -> list[float]:
    """Seconds, and megabytes of memory beyond what the imports take."""
    if reader == "polars":
        import polars  # noqa: F401
    before = peak_memory()
    begin = time.perf_counter()
    if reader == "project":
        with tempfile.TemporaryDirectory(dir=paths[0].parent) as folder:
            read_token_files(paths, cache_dir=folder)
    else:
        for path in paths:
            with path.open("rb") as file:
                for line in file:
                    parse_row(reader, line)
    seconds = time.perf_counter() - begin
    memory = peak_memory() - before
    if reader == "project":
        # Each of its worker processes has the imports of this one too.
        get_reusable_executor().shutdown(wait=True)
        memory = max(memory, len(paths) * (resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before))
    return [seconds, memory / 1024]


def run(pairs: PairData, megabytes: int = 1000, repeats: int = 3) -> str:
    """The table of reading: two files, as in the challenge."""
    results: dict[str, list[list[float]]] = {name: [] for name in READERS}
    rows = b"".join(format_token_row(pairs.tokens.sentence(i)) for i in range(ROWS))
    n_copies = megabytes * 1_000_000 // 2 // len(rows) + 1
    size = 2 * n_copies * len(rows) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("first.dat", "second.dat")]
        for path in paths:
            with path.open("wb") as file:
                file.writelines(repeat(rows, n_copies))
        for _ in range(repeats):
            for name, reader in READERS.items():
                results[name].append(run_script(__file__, reader, *map(str, paths)))
        # The warm-up makes the stores.
        opening = time_interleaved({"open": lambda: read_token_files(paths, cache_dir=folder)}, repeats)["open"]
    rates = {name: [size / seconds for seconds, _ in values] for name, values in results.items()}
    memory = {name: max(used for _, used in values) for name, values in results.items()}
    reference, *_, ours = READERS
    cells = [(*row, f"{memory[row[0]]:,.0f}") for row in rate_rows(rates, reference)]
    header = (f"two files, {size:,.0f} MB, two cores", "MB/s, median (range)", "np.fromstring = 1", "peak memory, MB")
    again = f"Opening the store again takes {1e3 * statistics.median(opening):.1f} ms.\n"
    return "\n".join([markdown(header, cells), again, goal("peak memory in MB", memory[ours], 300, at_most=True)])


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], [Path(path) for path in sys.argv[2:]])))
