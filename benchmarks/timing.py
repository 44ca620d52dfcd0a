"""Times several ways of doing the same work in turn, so that a change of the machine's speed meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Timing:
    """Seconds of one way of doing the work: the median over the repeats, the least and the most."""

    median: float
    least: float
    most: float

    def milliseconds(self) -> str:
        """Median and range, as a table shows them."""
        return f"{1e3 * self.median:,.1f} ({1e3 * self.least:,.1f} - {1e3 * self.most:,.1f})"


def time_in_turn(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Run every way once to warm up, then all of them in turn, `repeats` times."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begin)
    return {name: Timing(statistics.median(values), min(values), max(values)) for name, values in seconds.items()}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *rows))


def peak_memory() -> int:
    """Kilobytes that this process has held at most (Linux); getrusage would count its parent's before it began."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])
