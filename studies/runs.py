"""The runs of a study: read from YAML, run several at a time, each once."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import write_text_atomically
from common.progress import Progress
from common.yaml_files import describe_field_error, read_yaml
from studies.tables import TITLES

ROOT = Path(__file__).parent.parent
OPTIONS = "options.txt"  # of a run, in its folder
STUDY_KEYS = ("command", "options", "out", "seeds", "scores", "figure", "report", "data", "arms")
ARM_KEYS = ("options", "grid", "seeds")
REPORTS = ("compression",)


@dataclass(frozen=True)
class Run:
    """One run of a command that takes `--run_dir` and `--out` and writes `metrics.json` last.

    Attributes:
        data: name of the data set.
        arm: name of the arm.
        settings: values of the arm's grid, by recipe field.
        seed: the seed.
        folder: where its files go.
        command: the script, such as train.py.
        options: its options, without `--run_dir` and `--out`.
    """

    data: str
    arm: str
    settings: Mapping[str, Any]
    seed: int
    folder: Path
    command: str
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """The arm with its settings."""
        return ", ".join([self.arm, *(f"{field} {value}" for field, value in self.settings.items())])

    def is_done(self) -> bool:
        """Whether the run is finished.

        Raises:
            InputError: if it is, with other options than it has now.
        """
        if not (self.folder / "metrics.json").exists():
            return False
        if (self.folder / OPTIONS).exists() and not self.has_its_options():  # earlier versions left no options
            raise InputError("a run with other options than the study's now; delete this folder to run it again", path=self.folder)
        return True

    def has_its_options(self) -> bool:
        """Whether the run was begun, with the options that it has now."""
        path = self.folder / OPTIONS
        return path.exists() and path.read_text(encoding="utf-8") == self.command_line()

    def command_line(self) -> str:
        """The command with its options, as kept in the run's folder; paths as the study gives them."""
        return shlex.join([self.command, *self.options]) + "\n"

    def metrics(self) -> dict[str, Any]:
        """The contents of metrics.json."""
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        runs: all runs, in the order of the file, the first seed first.
        scores: names of the scores in the table.
        figure: names of the scores in the figure, one panel each per data set.
        report: name of a further report, None without one.
    """

    runs: list[Run]
    scores: list[str]
    figure: list[str]
    report: str | None


def read_study(path: Path) -> Study:
    """Read a study; studies/sts.yaml shows the format.

    Raises:
        InputError: if the file is missing or not a study, or two of its runs have one folder.
    """
    contents = read_yaml(path, "a study")
    _check_known(path, "the file has no key", contents, STUDY_KEYS)
    try:
        arms = {name: arm if isinstance(arm, dict) else {"options": arm} for name, arm in contents["arms"].items()}
        for name, arm in arms.items():
            _check_known(path, f"arm {name} has no key", arm, ARM_KEYS)
            _check_known(path, f"arm {name}: the study has no seed", arm.get("seeds", ()), contents["seeds"])
        scores, figure, report = list(contents["scores"]), list(contents["figure"]), contents.get("report")
        _check_known(path, "there is no score", scores + figure, list(TITLES))
        _check_known(path, "there is no report", [report] if report else [], REPORTS)
        runs = [
            _run(contents, str(data), str(source), str(name), arm, dict(zip(arm.get("grid", {}), values, strict=True)), int(seed))
            for seed in contents["seeds"]
            for data, source in contents["data"].items()
            for name, arm in arms.items()
            if seed in arm.get("seeds", contents["seeds"])
            for values in product(*arm.get("grid", {}).values())
        ]
        if twice := [folder for folder, n in Counter(run.folder for run in runs).items() if n > 1]:
            raise InputError(f"two runs have the folder {twice[0]}; leave one out or rename its arm or data", path=path)
        return Study(runs, scores, figure, report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"not a study, expected command, options, out, seeds, scores, figure, data and arms ({describe_field_error(error)})",
            path=path,
        ) from error


def _check_known(path: Path, problem: str, found: Iterable[Any], known: Sequence[Any]) -> None:
    for item in found:
        if item not in known:
            raise InputError(f"{problem} {item!r}, expected one of {', '.join(map(str, known))}", path=path)


def _run(
    study: Mapping[str, Any], data: str, source: str, name: str, arm: Mapping[str, Any], settings: dict[str, Any], seed: int
) -> Run:
    words = {field: value if isinstance(value, str) else json.dumps(value) for field, value in settings.items()}
    own = [argument for field, word in words.items() for argument in (f"--{field}", word)]
    options = shlex.split(f"{study['options']} {arm.get('options') or ''}")  # first: a folder's name may hold spaces
    options = [option.replace("{data}", source).replace("{seed}", str(seed)) for option in options]
    parts = [data, name, ",".join(f"{field}={word}" for field, word in words.items()), f"seed-{seed}"]
    folder = Path(study["out"], *(re.sub(r"[^\w.,=+-]+", "_", part) for part in parts if part))
    return Run(data, name, settings, seed, folder, study["command"], (*options, "--seed", str(seed), *own))


def run_all(runs: Sequence[Run], workers: int) -> None:
    """Run what is not done yet, `workers` at a time, each on one thread.

    Raises:
        InputError: if a run fails, its output is in its folder; or if one was made with other options.
    """
    if workers < 1:
        raise InputError(f"--workers is {workers}, expected 1 or more")
    waiting = [run for run in runs if not run.is_done()]
    with Progress(total=len(waiting), unit="run") as bar, ThreadPoolExecutor(workers) as pool:
        try:
            for run in pool.map(_execute, waiting):
                bar.set_postfix_str(f"{run.name} on {run.data}, seed {run.seed}", refresh=False)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _execute(run: Run) -> Run:
    stopped = run.has_its_options()
    write_text_atomically(run.folder / OPTIONS, run.command_line())
    log = run.folder / "log.txt"
    places = ("--run_dir", str(run.folder), "--out", str(run.folder / "model.bin"))
    with log.open("wb") as file:
        command = [sys.executable, str(ROOT / run.command), *run.options, *places, *(["--resume"] if stopped else [])]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if status:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise InputError(f"{run.name}, seed {run.seed}, ended with status {status}: {lines[-1] if lines else ''}", path=log)
    return run
