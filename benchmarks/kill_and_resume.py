"""Kill a short training run at random moments, resume it each time, and compare the result with an undisturbed run.

Example:

    python benchmarks/kill_and_resume.py --kills 200

Every kill is a run of its own: SIGKILL at a random moment, from before its first import to after its last file, then
`--resume`, perhaps killed again. The run ends when `train.py` says it is finished. `model.bin` and `history.csv` must be the
same bytes as without a kill, and no file may be left but those a run leaves.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tqdm import tqdm

from cli import make_parser, run_command
from errors import InputError
from starter import STARTER_DEV, STARTER_TRAIN

ROOT = Path(__file__).parent.parent
PAIRS = 256  # of the starter pairs, so that a run is short
RESULTS = ("model.bin", "history.csv")
KILLED_AGAIN = 0.3  # share of the resumed runs that are killed too
SHORT_RUN = (
    *("--encoder.output_dim", "32", "--encoder.hidden_dim", "32", "--phases.contrastive.epochs", "1"),
    *("--phases.graded.epochs", "4", "--device", "cpu", "--save_seconds", "0"),
)


class Training:
    """One run of train.py in a folder of its own, which can be killed and resumed."""

    def __init__(self, folder: Path, data: Path, options: tuple[str, ...] = SHORT_RUN) -> None:
        self.folder = folder
        run = folder / "run"
        places = ("--run_dir", str(run), "--out", str(run / "model.bin"), "--cache_dir", str(folder / "stores"))
        pairs = ("--data", str(data), "--validation", str(STARTER_DEV))
        self.command = [sys.executable, str(ROOT / "train.py"), *pairs, *places, *options]

    def start(self, *, resume: bool) -> subprocess.Popen[str]:
        """Begin, or go on."""
        command = [*self.command, *(["--resume"] if resume else [])]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, *, resume: bool) -> str:
        """Run to the end; what it printed.

        Raises:
            RuntimeError: where it fails.
        """
        process = self.start(resume=resume)
        printed, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{' '.join(self.command)} ended with status {process.returncode}:\n{errors}")
        return printed

    def is_killed_after(self, seconds: float, *, resume: bool) -> bool:
        """Run for some seconds, then send SIGKILL; False where it ended before."""
        process = self.start(resume=resume)
        try:
            process.communicate(timeout=seconds)
            return False
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return True

    def files(self) -> dict[str, bytes]:
        """The results and their contents."""
        return {name: (self.folder / "run" / name).read_bytes() for name in RESULTS}

    def leftovers(self, undisturbed: Training) -> list[str]:
        """Files that the undisturbed run does not have; a process that is killed cannot remove its temporary file."""
        names = {path.name for path in (undisturbed.folder / "run").iterdir()}
        return [path.name for path in (self.folder / "run").iterdir() if path.name not in names and path.suffix != ".tmp"]


def short_data(folder: Path) -> Path:
    """A file of the first starter pairs."""
    path = folder / "train.tsv"
    path.write_text("".join(STARTER_TRAIN.read_text(encoding="utf-8").splitlines(keepends=True)[:PAIRS]), encoding="utf-8")
    return path


def kill_and_resume(kills: int, seed: int, options: tuple[str, ...] = SHORT_RUN) -> Counter[str]:
    """Kill that many runs at random moments and finish them; how many came to the same, and to what else.

    Each finished run is resumed once more, and must say that it is finished.
    """
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = short_data(folder)
        undisturbed = Training(folder / "undisturbed", data, options)
        begin = time.perf_counter()
        undisturbed.finish(resume=False)
        longest = time.perf_counter() - begin
        with tqdm(total=kills, unit="kill", disable=None) as bar:
            while counts["kills"] < kills:
                run = Training(folder / f"run-{counts['runs']}", data, options)
                counts["runs"] += 1
                resume = False
                while counts["kills"] < kills and run.is_killed_after(rng.uniform(0, longest), resume=resume):
                    counts["kills"] += 1
                    bar.update()
                    resume = True
                    if rng.random() > KILLED_AGAIN:
                        break
                run.finish(resume=True)
                counts["identical" if run.files() == undisturbed.files() and not run.leftovers(undisturbed) else "different"] += 1
                counts["say they are finished"] += "is finished" in run.finish(resume=True)
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
    if counts["identical"] != counts["runs"] or counts["say they are finished"] != counts["runs"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
