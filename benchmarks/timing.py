"""Times several ways of doing the same work in turn, so that a change of the machine's speed meets all of them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
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


def median_and_range(values: Sequence[float]) -> str:
    """As a table shows it."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} - {max(values):.1f})"


def measured_apart(script: str, *arguments: str) -> list[float]:
    """The JSON list that a benchmark prints last, run in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(arguments)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def goal(what: str, reached: float, bound: float, *, at_most: bool = False) -> str:
    """A sentence that says whether a goal was met, below a table."""
    met = reached <= bound if at_most else reached >= bound
    why = "" if met else "; why is in [notes.md](notes.md#what-was-tried-for-speed)"
    return f"Goal: {what}, {'at most' if at_most else 'at least'} {bound:g}. {'Met' if met else 'Not met'}: {reached:.3g}{why}.\n"


def peak_memory() -> int:
    """Kilobytes that this process has held at most (Linux); getrusage would count its parent's before it began."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])
