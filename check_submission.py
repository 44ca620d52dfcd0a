"""Check model.py and model.bin as a judge will use them. Needs torch only.

Examples:

    python check_submission.py
    python check_submission.py --model submission/model.py --checkpoint submission/model.bin --json

Copies both files into an empty folder, loads them there in a new process with one thread, and prints a table of checks.
Exit status 0: all passed; 1: some failed; 2: a file is missing.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

MAX_BYTES = 20 * 2**20
TOKEN_DIM = 768
TOLERANCE = 1e-6
TIMEOUT_SECONDS = 600


class Check(NamedTuple):
    """The result of one check; `figure` is what it measured or found."""

    name: str
    passed: bool
    figure: str


def _size() -> tuple[bool, str]:
    size = Path("model.bin").stat().st_size
    return size <= MAX_BYTES, f"{size / 2**20:.2f} MiB of at most 20"


def _imports() -> tuple[bool, str]:
    names = set()
    for node in ast.walk(ast.parse(Path("model.py").read_text(encoding="utf-8"))):  # also imports inside functions
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0] if not node.level else ".")
    others = sorted(names - sys.stdlib_module_names - {"torch"})
    return not others, f"also {', '.join(others)}" if others else "torch and the standard library"


def _tensors_only() -> tuple[bool, str]:
    import torch  # not at the top of the file: --help is fast, and a missing torch is an error of one line

    state = torch.load("model.bin", map_location="cpu", weights_only=True)
    others = sorted(name for name, value in state.items() if not isinstance(value, torch.Tensor))
    return not others, f"not a tensor: {', '.join(others)}" if others else f"{len(state)} tensors"


def _loading() -> tuple[bool, str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = _load_model()
    input_dim = getattr(getattr(model, "config", None), "input_dim", TOKEN_DIM)
    if input_dim != TOKEN_DIM:
        return False, f"takes {input_dim}-dimensional tokens, the challenge's have {TOKEN_DIM} dimensions"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return not caught, f"warns: {caught[0].message}" if caught else f"{parameters:,} parameters"


def _load_model() -> Any:
    import torch

    model = importlib.import_module("model").get_model()
    model.load_state_dict(torch.load("model.bin", map_location="cpu", weights_only=True))
    model.eval()
    return model


def _output(model: Any) -> tuple[bool, str]:
    embeddings = model(_random_tokens([7] * 3))
    dtype = str(embeddings.dtype).removeprefix("torch.")
    return embeddings.dim() == 2 and len(embeddings) == 3 and dtype == "float32", f"{tuple(embeddings.shape)} {dtype}"


def _unit_length(model: Any, lengths: Sequence[int]) -> tuple[bool, str]:
    return _near_zero(model(_random_tokens(lengths)).norm(dim=1) - 1)


def _batch(model: Any) -> tuple[bool, str]:
    import torch

    lengths = range(1, 32, 2)
    alone = torch.cat([model(_random_tokens([length], seed=row)) for row, length in enumerate(lengths)])
    return _near_zero(model(_random_tokens(lengths, width=40)) - alone)


def _deterministic(model: Any) -> tuple[bool, str]:
    tokens = _random_tokens([12] * 8)
    first = model(tokens)
    same = first.equal(model(tokens)) and first.equal(_load_model()(tokens))
    return same, "the same bits" if same else "different bits"


def _speed(model: Any) -> tuple[bool, str]:
    batches = _random_tokens([20] * 512).split(128)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        for batch in batches:
            model(batch)
        seconds.append(time.perf_counter() - begin)
    return True, f"{512 / min(seconds):,.0f} sentences of 20 tokens per second"


def _memory(_: Any) -> tuple[bool, str]:
    try:
        import resource
    except ImportError:
        return True, "not known on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    return True, f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:,.0f} MiB with torch"


def _random_tokens(lengths: Sequence[int], *, width: int = 0, seed: int = 0) -> Any:
    """Random token embeddings `(B, T, 768)`; the tokens of row i depend only on `seed + i` and its length."""
    import torch

    tokens = torch.zeros(len(lengths), width or max(lengths), TOKEN_DIM)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randn(length, TOKEN_DIM, generator=torch.Generator().manual_seed(seed + row))
    return tokens


def _near_zero(difference: Any) -> tuple[bool, str]:
    largest = difference.abs().max().item()
    return largest <= TOLERANCE, f"{largest:.1e} of at most {TOLERANCE:.0e}"


FILE_CHECKS = {
    "size": _size,
    "imports": _imports,
    "checkpoint holds tensors only": _tensors_only,
    "get_model and strict loading": _loading,
}
MODEL_CHECKS = {
    "output": _output,
    "unit length": lambda model: _unit_length(model, [20] * 64),
    "padding invariance": lambda model: _near_zero(model(_random_tokens([9] * 8, width=49)) - model(_random_tokens([9] * 8))),
    "batch invariance": _batch,
    "sentence without tokens": lambda model: _unit_length(model, [0, 5]),
    "1 token": lambda model: _unit_length(model, [1, 1]),
    "512 tokens": lambda model: _unit_length(model, [512, 512]),
    "deterministic": _deterministic,
    "speed, one thread": _speed,  # this and memory are figures only: they always pass
    "peak memory": _memory,
}


def run_checks(folder: Path) -> None:
    """Check the files in a folder and write checks.json there; the model is checked only if it loads."""
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    checks = [_run(name, check) for name, check in FILE_CHECKS.items()]
    if checks[-1].passed:
        model = _load_model()
        with torch.inference_mode():
            checks += [_run(name, check, model) for name, check in MODEL_CHECKS.items()]
    Path("checks.json").write_text(json.dumps(checks), encoding="utf-8")


def _run(name: str, check: Any, *arguments: Any) -> Check:
    try:
        return Check(name, *check(*arguments))
    except Exception as error:  # any exception of a submission is a failed check
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def judge(model: Path, checkpoint: Path) -> list[Check]:
    """Copy both files into an empty folder and check them there, in a process that cannot import this project."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "model.py").write_bytes(model.read_bytes())
        (folder / "model.bin").write_bytes(checkpoint.read_bytes())
        command = [sys.executable, "-I", __file__, "--inside", temporary]  # -I keeps this folder and PYTHONPATH out of sys.path
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return [Check("completes", False, f"still running after {TIMEOUT_SECONDS} seconds")]
        results = folder / "checks.json"
        if results.exists():
            return [Check(*check) for check in json.loads(results.read_text(encoding="utf-8"))]
        message = (process.stderr.strip() or "no message").splitlines()[-1]
        return [Check("completes", False, f"the process exited with status {process.returncode}: {message}")]


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
        run_checks(options.inside)
        return 0
    for path in (options.model, options.checkpoint):
        if not path.is_file():
            print(f"error: {path}: no such file, expected the file to submit (--model, --checkpoint)", file=sys.stderr)
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
        print(json.dumps({"passed": passed, "checks": [check._asdict() for check in checks], "versions": versions}, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{check.name:{width}}  {'pass' if check.passed else 'FAIL'}  {check.figure}")
        print(f"\nPython {versions['python']}, torch {versions['torch']}: {'all passed' if passed else 'NOT ready to submit'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
