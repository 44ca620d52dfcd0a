"""Many runs of a command: several at a time, each one once, going on after a stop where they were."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from errors import InputError


@dataclass(frozen=True)
class Run:
    """One run of a script of this project, that takes `--run_dir` and leaves `metrics.json` there as its last file.

    Attributes:
        name: what people call it.
        folder: where its files go.
        script: the script, such as train.py.
        options: its options, without `--run_dir`.
    """

    name: str
    folder: Path
    script: str
    options: tuple[str, ...]

    def is_done(self) -> bool:
        """Whether it has been run to its end."""
        return (self.folder / "metrics.json").exists()

    def metrics(self) -> dict[str, Any]:
        """What came out of it."""
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))


def training_options(options: str, stores: Path, folder: Path, seed: int) -> tuple[str, ...]:
    """The options of a run of train.py.

    Args:
        options: its own, as on a command line; {seed} in them stands for the seed.
        stores: folder with train.store, dev.store, test.store.
        folder: where the checkpoint goes.
        seed: of the run.
    """
    parts = {"train": "--data", "dev": "--validation", "test": "--test"}
    data = [argument for part, option in parts.items() for argument in (option, str(stores / f"{part}.store"))]
    own = shlex.split(options.replace("{seed}", str(seed)))
    return (*own, "--seed", str(seed), *data, "--out", str(folder / "model.bin"))


def add_workers_option(parser: argparse.ArgumentParser) -> None:
    """Add `--workers`, which `run_all` takes."""
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every study takes: its file, `--results` and `--workers`."""
    parser.add_argument("study", help="YAML file")
    parser.add_argument("--results", default="results", help="folder for tables, CSV and figures, named after the study")
    add_workers_option(parser)


def run_all(runs: Sequence[Run], workers: int) -> None:
    """Run what is not done yet, `workers` at a time, each on one thread.

    Raises:
        InputError: where a run fails; what it printed is in its folder.
    """
    if workers < 1:
        raise InputError(f"--workers is {workers}, expected 1 or more")
    waiting = [run for run in runs if not run.is_done()]
    with tqdm(total=len(waiting), unit="run", disable=None) as bar, ThreadPoolExecutor(workers) as pool:
        try:
            for run in pool.map(_run, waiting):
                bar.set_postfix_str(run.name, refresh=False)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _run(run: Run) -> Run:
    run.folder.mkdir(parents=True, exist_ok=True)
    log = run.folder / "log.txt"
    script = Path(__file__).with_name(run.script)
    with log.open("wb") as file:
        command = [sys.executable, str(script), *run.options, "--run_dir", str(run.folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if status:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise InputError(f"{run.name} ended with status {status}: {lines[-1] if lines else ''}", path=log)
    return run
