"""What the benchmarks share: interleaved timing, measurements in processes of their own, goals."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def time_interleaved(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each function in each of `repeats` rounds, after one warm-up call.

    Every round calls all of them, so that a change in the machine's speed affects them alike.
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def median_and_range(values: Sequence[float]) -> str:
    """A table cell: median, minimum and maximum."""
    median, least, most = (f"{value:,.{value < 100:d}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{median} ({least} - {most})"


def ratios(rates: Mapping[str, Sequence[float]], reference: str) -> dict[str, float]:
    """Each median as a multiple of that of `reference`."""
    return {name: statistics.median(values) / statistics.median(rates[reference]) for name, values in rates.items()}


def rate_rows(rates: Mapping[str, Sequence[float]], reference: str) -> list[tuple[str, str, str]]:
    """Table rows: name, median and range, median as a multiple of that of `reference`."""
    return [(name, median_and_range(rates[name]), f"{ratio:.2f}") for name, ratio in ratios(rates, reference).items()]


def run_script(script: str, *arguments: str, n_processes: int = 1, python: str = sys.executable) -> Any:
    """Run a script in a new process, or several that torchrun starts; returns the JSON in its last line of output.

    Raises:
        RuntimeError: if it fails.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)] if n_processes > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [python, *launcher, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def goal(what: str, measured: float, bound: float, *, at_most: bool = False) -> str:
    """A sentence for below a table: the goal and whether it was met."""
    met = measured <= bound if at_most else measured >= bound
    return f"Goal: {what}, at {'most' if at_most else 'least'} {bound:g}; {'met' if met else 'not met'}: {measured:.3g}.\n"


def processor() -> str:
    """The processor's name, and whether it has VNNI, the instructions that make int8 fast (Linux)."""
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    names = {name.strip(): value.strip() for name, value in facts.items()}
    has_vnni = "vnni" in names.get("flags", "")
    return f"{names.get('model name', 'an unknown processor')}, {'with' if has_vnni else 'without'} VNNI"


def peak_memory() -> int:
    """Peak memory of this process in kilobytes (Linux); getrusage would include its parent's from before the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])
