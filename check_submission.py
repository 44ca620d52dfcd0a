"""What a judge will do with model.py and model.bin, before the judge does it. Needs torch and nothing else.

Examples:

    python check_submission.py
    python check_submission.py --model submission/model.py --checkpoint submission/model.bin --json

Both files are copied into an empty folder and used there by a new process, on one thread. It prints a table of checks with
their figures. Exit status 0: all passed; 1: some failed; 2: a file is missing.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MAX_BYTES = 20 * 2**20
TOKEN_DIM = 768
LONGEST = 512  # tokens
TOLERANCE = 1e-6  # of a unit vector's length and of what must not change it
TIMED_SENTENCES, TIMED_LENGTH = 512, 20
PATIENCE = 600  # seconds


@dataclass(frozen=True)
class Check:
    """The outcome of one check and its figure."""

    name: str
    passed: bool
    figure: str


class Judge:
    """Runs the checks one after the other; one that raises has failed, and says with what."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checks: list[Check] = []
        self.state: dict[str, Any] = {}
        self.model: Any = None

    def run(self) -> list[Check]:
        """All checks; those that need the model only where it loads."""
        self._check("size", self._size)
        self._check("imports", self._imports)
        self._check("checkpoint holds tensors only", self._checkpoint)
        self._check("get_model and strict loading", self._load)
        if self.checks[-1].passed:
            self._check("output", self._output)
            self._check("unit length", self._unit_length)
            self._check("more padding changes nothing", self._padding)
            self._check("other sentences change nothing", self._batch)
            self._check("sentence without tokens", self._empty)
            self._check("length 1", lambda: self._length(1))
            self._check(f"length {LONGEST}", lambda: self._length(LONGEST))
            self._check("the same every time", self._deterministic)
            self._check("speed, one thread", self._speed)
            self._check("peak memory", self._memory)
        return self.checks

    def _check(self, name: str, check: Callable[[], tuple[bool, str]]) -> None:
        try:
            passed, figure = check()
        except Exception as error:  # whatever a submission raises is its outcome
            passed, figure = False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        self.checks.append(Check(name, passed, figure))

    def _size(self) -> tuple[bool, str]:
        size = (self.folder / "model.bin").stat().st_size
        return size <= MAX_BYTES, f"{size / 2**20:.2f} MiB of at most 20"

    def _imports(self) -> tuple[bool, str]:
        """Every import statement in the file, also those inside functions."""
        names = set()
        for node in ast.walk(ast.parse((self.folder / "model.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0] if not node.level else ".")
        others = sorted(names - sys.stdlib_module_names - {"torch"})
        return not others, f"also {', '.join(others)}" if others else "torch and the standard library"

    def _checkpoint(self) -> tuple[bool, str]:
        import torch

        self.state = torch.load("model.bin", map_location="cpu", weights_only=True)
        others = sorted(name for name, value in self.state.items() if not isinstance(value, torch.Tensor))
        return not others, f"no tensor: {', '.join(others)}" if others else f"{len(self.state)} tensors"

    def _load(self) -> tuple[bool, str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.model = importlib.import_module("model").get_model()
            self.model.load_state_dict(self.state)
            self.model.eval()
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        width = getattr(getattr(self.model, "config", None), "input_dim", TOKEN_DIM)
        if width != TOKEN_DIM:
            return False, f"takes tokens {width} wide, the challenge's are {TOKEN_DIM}"
        return not caught, f"warns: {caught[0].message}" if caught else f"{parameters:,} parameters"

    def _output(self) -> tuple[bool, str]:
        import torch

        vectors = self._encode(_tokens(3, 7))
        right = vectors.dim() == 2 and len(vectors) == 3 and vectors.dtype == torch.float32 and not vectors.requires_grad
        return right, f"{tuple(vectors.shape)} {vectors.dtype}".replace("torch.", "")

    def _unit_length(self) -> tuple[bool, str]:
        return _within(self._encode(_tokens(64, 20)).norm(dim=1) - 1)

    def _padding(self) -> tuple[bool, str]:
        import torch

        tokens = _tokens(8, 9)
        return _within(self._encode(torch.cat([tokens, torch.zeros(8, 40, TOKEN_DIM)], dim=1)) - self._encode(tokens))

    def _batch(self) -> tuple[bool, str]:
        """Alone, and among sentences of other lengths."""
        import torch

        tokens = torch.zeros(16, 40, TOKEN_DIM)
        for row in range(16):
            tokens[row, : 2 * row + 1] = _tokens(1, 2 * row + 1, seed=row)[0]
        alone = torch.cat([self._encode(_tokens(1, 2 * row + 1, seed=row)) for row in range(16)])
        return _within(self._encode(tokens) - alone)

    def _empty(self) -> tuple[bool, str]:
        import torch

        vectors = self._encode(torch.cat([torch.zeros(1, 5, TOKEN_DIM), _tokens(1, 5)]))
        return _within(vectors.norm(dim=1) - 1)

    def _length(self, length: int) -> tuple[bool, str]:
        return _within(self._encode(_tokens(2, length)).norm(dim=1) - 1)

    def _deterministic(self) -> tuple[bool, str]:
        """Twice, and by a second model loaded from the file."""
        import torch

        tokens = _tokens(8, 12)
        second = importlib.import_module("model").get_model()
        second.load_state_dict(torch.load("model.bin", map_location="cpu", weights_only=True))
        with torch.inference_mode():
            same = torch.equal(self._encode(tokens), self._encode(tokens))
            same = same and torch.equal(self._encode(tokens), second.eval()(tokens))
        return same, "the same bits" if same else "different bits"

    def _speed(self) -> tuple[bool, str]:
        """The faster of three passes over batches of 128; a figure, not a demand."""
        batches = _tokens(TIMED_SENTENCES, TIMED_LENGTH).split(128)
        seconds = []
        for _ in range(3):
            begin = time.perf_counter()
            for batch in batches:
                self._encode(batch)
            seconds.append(time.perf_counter() - begin)
        return True, f"{TIMED_SENTENCES / min(seconds):,.0f} sentences of {TIMED_LENGTH} tokens per second"

    def _memory(self) -> tuple[bool, str]:
        """Of the whole process, torch included; a figure, not a demand."""
        try:
            import resource
        except ImportError:
            return True, "not known on this system"
        unit = 1 if sys.platform == "darwin" else 1024
        return True, f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:,.0f} MiB with torch"

    def _encode(self, tokens: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(tokens)


def _tokens(sentences: int, length: int, seed: int = 0) -> Any:
    """Random token embeddings `(sentences, length, 768)`."""
    import torch

    return torch.randn(sentences, length, TOKEN_DIM, generator=torch.Generator().manual_seed(seed))


def _within(difference: Any) -> tuple[bool, str]:
    """Whether values are zero within the tolerance; NaN is not."""
    largest = difference.abs().max().item()
    return largest <= TOLERANCE, f"{largest:.1e} of at most {TOLERANCE:.0e}"


def judge(model: Path, checkpoint: Path) -> list[Check]:
    """Copy the two files into an empty folder and check them there, in a process that sees nothing else of this project."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, path in (("model.py", model), ("model.bin", checkpoint)):
            (folder / name).write_bytes(path.read_bytes())
        # -I: the process looks for modules neither here, nor where PYTHONPATH says.
        command = [sys.executable, "-I", str(Path(__file__).resolve()), "--inside", temporary]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            return [Check(**check) for check in json.loads((folder / "checks.json").read_text(encoding="utf-8"))]
        except subprocess.TimeoutExpired:
            return [Check("ends", False, f"still busy after {PATIENCE} seconds")]
        except (OSError, ValueError, TypeError):
            said = (done.stderr.strip() or "nothing").splitlines()[-1]
            return [Check("ends", False, f"the process ended with status {done.returncode} and said: {said}")]


def _judge_inside(folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    checks = [asdict(check) for check in Judge(folder).run()]
    (folder / "checks.json").write_text(json.dumps(checks), encoding="utf-8")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        "check_submission.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, default=Path("model.py"), help="the code (default: model.py)")
    parser.add_argument("--checkpoint", type=Path, default=Path("model.bin"), help="the weights (default: model.bin)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _judge_inside(options.inside)
        return 0
    for path in (options.model, options.checkpoint):
        if not path.is_file():
            print(f"error: {path}: no such file, expected what is to be submitted (--model, --checkpoint)", file=sys.stderr)
            return 2
    try:
        import torch
    except ImportError:
        print("error: torch is not installed: pip install torch", file=sys.stderr)
        return 2
    checks = judge(options.model, options.checkpoint)
    passed = all(check.passed for check in checks)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if options.json:
        print(json.dumps({"passed": passed, "checks": [asdict(check) for check in checks], "versions": versions}, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{check.name:{width}}  {'pass' if check.passed else 'FAIL'}  {check.figure}")
        print(f"\nPython {versions['python']}, torch {versions['torch']}: {'all passed' if passed else 'NOT ready to submit'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
