"""Kill a short training run at random moments, resume it each time, and compare the result with an undisturbed run.

Example:

    python benchmarks/trust/kill_and_resume.py --kills 200

Every kill is SIGKILL, at a random moment between the first file opened and the last written; a resumed run may be killed again.
Runs read the challenge's files through caches of their own. In the end `model.bin`, `history.csv` and the caches must be
byte-identical to the undisturbed run's, with no extra files except temporary ones, which a killed process cannot remove.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import numpy as np
from tqdm import tqdm

import train
from common.cli import make_parser, run_command
from common.errors import InputError
from common.progress import Progress
from tokens.dat_files import write_dat_files
from tokens.text_pairs import TextPairs
from training.resume import read_arguments

KILLED_AGAIN = 0.3  # share of the resumed runs that are killed too
SLOWDOWN = 1.01  # each kill raises the expected length of a run by this factor, in case the machine has become busier
CHANGING = {"arguments.json", "metrics.json", "state.pt"}  # these contain times and paths
SHORT_RUN = (
    "--encoder.output_dim 16 --encoder.hidden_dim 16 --batch_size 16 --phases.contrastive.epochs 1 --phases.graded.epochs 4 "
    "--device cpu --save_seconds 0"
)
# The fork server has imported everything, so runs are killed while they work, not while they import.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train", "torch._dynamo", "scipy.stats", "sklearn.model_selection", "matplotlib.figure"])


def train_quietly(arguments: list[str]) -> None:
    """Run train.py in this process, which then ends."""
    tqdm.set_lock(threading.RLock())  # the default lock has a semaphore, which a killed process would leak
    with open(os.devnull, "w") as devnull:
        sys.stdout = sys.stderr = devnull
        sys.argv = ["train.py", *arguments]
        run_command(train.main)


class Training:
    """A run of train.py in its own folder, which can be killed and resumed."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder
        paths = ("--data", data, "--run_dir", folder / "run", "--out", folder / "model.bin", "--cache_dir", folder / "stores")
        self.arguments = [*map(str, paths), *SHORT_RUN.split()]

    def run(self, *, resume: bool, kill_after: float | None = None) -> bool:
        """Run to the end, or send SIGKILL after some seconds; returns whether it finished.

        A run resumes with the arguments in its folder; they are given again only if it was killed before it wrote them.

        Raises:
            RuntimeError: if it fails.
        """
        place = self.folder / "run"
        arguments = ["--run_dir", str(place)] if resume and read_arguments(place) else self.arguments
        process = CONTEXT.Process(target=train_quietly, args=([*arguments, *["--resume"] * resume],))
        process.start()
        process.join(kill_after)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            return False
        if process.exitcode:
            raise RuntimeError(f"train.py {' '.join(self.arguments)} ended with status {process.exitcode}")
        return True

    def files(self) -> dict[str, bytes]:
        """The contents of every file by name; empty for those that are never the same twice."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
        return {str(path.relative_to(self.folder)): b"" if path.name in CHANGING else path.read_bytes() for path in paths}


def write_short_data(folder: Path, pairs: int = 80) -> None:
    """Write the challenge's files with random tokens."""
    rng = np.random.default_rng(0)
    sides = [[rng.standard_normal((int(rng.integers(1, 5)), 768)).astype(np.float32) for _ in range(pairs)] for _ in "ab"]
    first, second = ([f"{side} {i}" for i in range(pairs)] for side in ("first", "second"))
    write_dat_files(folder, TextPairs(first, second, rng.uniform(0, 5, pairs).astype(np.float32)), *sides)


def kill_and_resume(kills: int, seed: int) -> Counter[str]:
    """Kill runs at random moments, `kills` times in all, and finish them; counts those that ended with the same bytes."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "data"
        write_short_data(data)
        undisturbed = Training(folder / "undisturbed", data)
        begin = time.perf_counter()
        undisturbed.run(resume=False)
        length = time.perf_counter() - begin
        expected = undisturbed.files()
        with Progress(total=kills, unit="kill") as bar:
            while counts["kills"] < kills:
                training = Training(folder / f"run {counts['runs']}", data)
                counts["runs"] += 1
                resume = False
                while counts["kills"] < kills:
                    moment = rng.uniform(0, length)
                    if training.run(resume=resume, kill_after=moment):
                        if not resume:
                            length = moment  # it took less: the machine is less busy than before
                        break
                    counts["kills"] += 1
                    bar.update()
                    length *= SLOWDOWN
                    resume = True
                    if rng.random() > KILLED_AGAIN:
                        break
                training.run(resume=True)
                counts["identical" if training.files() == expected else "different"] += 1
    return counts


def main() -> None:
    """Command line."""
    parser = make_parser("benchmarks/trust/kill_and_resume.py", __doc__)
    parser.add_argument("--kills", type=int, default=20, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    options = parser.parse_args()
    if options.kills < 1:
        raise InputError(f"--kills is {options.kills}, expected 1 or more")
    counts = kill_and_resume(options.kills, options.seed)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    if counts["identical"] != counts["runs"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
