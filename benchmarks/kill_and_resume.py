"""Kill a short training run at random moments, resume it each time, and compare the result with an undisturbed run.

Example:

    python benchmarks/kill_and_resume.py --kills 200

Every kill is SIGKILL at a random moment between the first file that is opened and the last that is written; then the run goes on
with `--resume`, and may be killed again. It reads the challenge's files through caches of its own. In the end `model.bin`,
`history.csv` and the caches must be the same bytes as without a kill, and no file may be there that an undisturbed run does
not leave, except those with a temporary name, which a killed process cannot remove.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from tqdm import tqdm

import train
from common.cli import make_parser, run_command
from common.errors import InputError
from tokens.dat_files import write_dat_files
from tokens.text_files import TextPairs

KILLED_AGAIN = 0.3  # share of the resumed runs that are killed too
SLOWER = 1.01  # after each kill a whole run is taken to last this much longer, because the machine may be busier than before
DIFFER = {"metrics.json", "state.pt"}  # these say how long it took, and where
SHORT_RUN = (
    *("--encoder.output_dim", "16", "--encoder.hidden_dim", "16", "--batch_size", "16", "--phases.contrastive.epochs", "1"),
    *("--phases.graded.epochs", "4", "--device", "cpu", "--save_seconds", "0"),
)
# A server that has imported everything starts the runs: they are killed while they work, not while they import.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train"])


def _train(arguments: list[str]) -> None:
    tqdm.set_lock(threading.RLock())  # one of its own would be a semaphore that a killed process leaves behind
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        sys.argv = ["train.py", *arguments]
        run_command(train.main)


class Training:
    """One run of train.py in a folder of its own, which can be killed and resumed."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder
        places = ("--run_dir", folder / "run", "--out", folder / "model.bin", "--cache_dir", folder / "stores")
        self.arguments = ["--data", str(data), *map(str, places), *SHORT_RUN]

    def start(self, *, resume: bool) -> multiprocessing.process.BaseProcess:
        """Begin, or go on."""
        process = CONTEXT.Process(target=_train, args=([*self.arguments, *(["--resume"] if resume else [])],))
        process.start()
        return process

    def finish(self, *, resume: bool) -> None:
        """Run to the end.

        Raises:
            RuntimeError: where it fails.
        """
        process = self.start(resume=resume)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"train.py {' '.join(self.arguments)} ended with status {process.exitcode}")

    def is_killed_after(self, seconds: float, *, resume: bool) -> bool:
        """Run for some seconds, then send SIGKILL; False where it ended before."""
        process = self.start(resume=resume)
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode != 0

    def files(self) -> dict[str, bytes]:
        """Every file of the run and its contents, but not of those that are never twice the same."""
        files = {str(path.relative_to(self.folder)): path for path in self.folder.rglob("*") if path.is_file()}
        return {name: b"" if path.name in DIFFER else path.read_bytes() for name, path in files.items() if path.suffix != ".tmp"}


def short_data(folder: Path, pairs: int = 80) -> Path:
    """The challenge's files, with random tokens."""
    rng = np.random.default_rng(0)
    sides = [[rng.standard_normal((int(rng.integers(1, 5)), 768)).astype(np.float32) for _ in range(pairs)] for _ in "ab"]
    text = TextPairs(
        [f"first {i}" for i in range(pairs)],
        [f"second {i}" for i in range(pairs)],
        rng.uniform(0, 5, pairs).astype(np.float32),
    )
    write_dat_files(folder / "data", text, *sides)
    return folder / "data"


def kill_and_resume(kills: int, seed: int) -> Counter[str]:
    """Kill runs that many times at random moments and finish them; how many came to the same bytes."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = short_data(folder)
        undisturbed = Training(folder / "undisturbed", data)
        begin = time.perf_counter()
        undisturbed.finish(resume=False)
        length = time.perf_counter() - begin
        expected = undisturbed.files()
        with tqdm(total=kills, unit="kill", disable=None) as bar:
            while counts["kills"] < kills:
                run = Training(folder / f"run {counts['runs']}", data)
                counts["runs"] += 1
                resume = False
                while counts["kills"] < kills:
                    moment = rng.uniform(0, length)
                    if not run.is_killed_after(moment, resume=resume):
                        if not resume:
                            length = moment  # it took less: the machine is less busy than before
                        break
                    counts["kills"] += 1
                    bar.update()
                    length *= SLOWER
                    resume = True
                    if rng.random() > KILLED_AGAIN:
                        break
                run.finish(resume=True)
                counts["identical" if run.files() == expected else "different"] += 1
    return counts


def main() -> None:
    """Command line."""
    parser = make_parser("benchmarks/kill_and_resume.py", __doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many times to kill a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    if options.kills < 1:
        raise InputError(f"--kills is {options.kills}, expected 1 or more")
    counts = kill_and_resume(options.kills, options.seed)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    if counts["identical"] != counts["runs"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
