"""Pairs per second in training by one process and by several that share each batch, as torchrun starts them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from timing import median_and_range

from data import open_pairs
from studies.tables import markdown
from training import processes
from training.recipe import add_recipe_arguments, parse_recipe
from training.trainer import Trainer

ROOT = Path(__file__).parent.parent


def measure(stsb: Path, n_processes: int, batch_size: int, epochs: int) -> list[float]:
    """Seconds of each epoch of the graded phase, each process on one thread."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)] if n_processes > 1 else []
    command = [sys.executable, *launcher, __file__, str(stsb), str(batch_size), str(epochs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _measured_here(stsb: Path, batch_size: int, epochs: int) -> None:
    from common.cli import make_parser

    torch.set_num_threads(1)
    processes.join(torch.device("cpu"))
    parser = make_parser("recipe", "")
    add_recipe_arguments(parser)
    recipe, _ = parse_recipe(parser, ["--preset", "default", "--batch_size", str(batch_size)])
    training, validation = (open_pairs([stsb / f"{part}.store"]) for part in ("train", "dev"))
    trainer = Trainer(recipe, training, validation)
    name, phase = list(recipe.phases.items())[-1]
    trainer._train_epoch(name, phase, 1)  # to warm up
    seconds = []
    for epoch in range(2, 2 + epochs):
        begin = time.perf_counter()
        trainer._train_epoch(name, phase, epoch)
        seconds.append(time.perf_counter() - begin)
    print(json.dumps(seconds))
    processes.leave()


def run(stsb: Path, repeats: int = 2, epochs: int = 2) -> str:
    """The table: one process and two, in turn, with the default batch and a larger one."""
    n_pairs = len(open_pairs([stsb / "train.store"]))
    rows = []
    for batch_size in (64, 256):
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(repeats):
            for n_processes, values in seconds.items():
                values += measure(stsb, n_processes, batch_size, epochs)
        rates = {n_processes: n_pairs / statistics.median(values) for n_processes, values in seconds.items()}
        rows += [
            (f"batch of {batch_size}, {n_processes} process{'es'[:2 * (n_processes > 1)]}", f"{rates[n_processes]:,.0f}",
             median_and_range(values), f"{rates[n_processes] / rates[1]:.2f}")
            for n_processes, values in seconds.items()
        ]  # fmt: skip
    return markdown(("graded phase, gloo, a thread each", "pairs/s", "seconds an epoch, median (range)", "one process = 1"), rows)


if __name__ == "__main__":
    _measured_here(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
