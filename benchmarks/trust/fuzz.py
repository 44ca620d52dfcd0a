"""Fuzzing: every damaged or hostile file must end in a correct read or in the project's one-line error.

Example:

    python benchmarks/trust/fuzz.py --inputs 100000

Good files are damaged at random: bytes and fields replaced, doubled or deleted, line ends and encodings changed. The result is
compared with a slow, obvious reading of the same bytes that shares no code with the project: `float` on every field, quotes
character by character, pyarrow's own rows, zipfile. An input fails if the project raises anything but an InputError of one line,
refuses what the other reading accepts, or reads other values.
"""

from __future__ import annotations

import io
import random
import resource
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from binary_formats import Checkpoints, Corpora, SmallEncoders, Stores
from damage import Reader
from text_formats import CorpusSentences, DelimitedTables, JsonTables, LabelFiles, ParquetTables, Recipes, Sentences, TokenFiles

from common.cli import make_parser, run_command
from common.errors import InputError
from common.progress import Progress

REFUSED = "refused"
READERS: dict[str, Callable[[Path], Reader]] = {
    "tokens": lambda folder: TokenFiles(),
    "labels": lambda folder: LabelFiles(),
    "delimited": lambda folder: DelimitedTables(),
    "json": lambda folder: JsonTables(),
    "parquet": lambda folder: ParquetTables(),
    "recipes": lambda folder: Recipes(),
    "checkpoints": Checkpoints,
    "stores": Stores,
    "small encoders": SmallEncoders,
    "sentences": lambda folder: Sentences(),
    "corpus sentences": lambda folder: CorpusSentences(),
    "corpora": Corpora,
}


def fuzz(name: str, reader: Reader, folder: Path, inputs: int, seed: int) -> tuple[Counter[str], list[tuple[str, bytes]]]:
    """Feed damaged files to a reader; returns how many it read and refused, and the failures with reason and input."""
    rng = random.Random(f"{name} {seed}")
    counts: Counter[str] = Counter()
    failures: list[tuple[str, bytes]] = []
    path = folder / f"input{reader.suffix}"
    for _ in Progress(range(inputs), desc=name, unit="input"):
        content = reader.make(rng)
        path.write_bytes(content)
        try:
            expected = reader.expected(content)
        except Exception:  # it refuses in any way
            expected = REFUSED
        try:
            with redirect_stderr(io.StringIO()):
                found = reader.read(path)
        except InputError as error:
            found = REFUSED
            if "\n" in str(error) or len(str(error)) > 1000:
                failures.append((f"message: {error}", content))
        except Exception:
            failures.append((traceback.format_exc(limit=-3), content))
            continue
        if found == REFUSED:
            counts["refused"] += 1
            if expected != REFUSED and not reader.may_refuse:
                failures.append(("refused what is right", content))
        else:
            counts["read"] += 1
            try:
                is_right = expected != REFUSED and reader.agrees(found, expected)
            except Exception:  # the other reading refuses
                is_right = False
            if not is_right:
                failures.append((f"read as {str(found)[:300]}", content))
    return counts, failures


def main() -> None:
    """Command line."""
    parser = make_parser("benchmarks/trust/fuzz.py", __doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="damaged files per reader")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage")
    parser.add_argument("--only", choices=tuple(READERS), help="one of the readers")
    options = parser.parse_args()
    if options.inputs < 1:
        raise InputError(f"--inputs is {options.inputs}, expected 1 or more")
    warnings.simplefilter("ignore")
    failed = 0
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    for name in READERS if options.only is None else (options.only,):
        with tempfile.TemporaryDirectory(dir=in_memory) as folder:
            counts, failures = fuzz(name, READERS[name](Path(folder)), Path(folder), options.inputs, options.seed)
        for reason, content in failures[:5]:
            print(f"{content[:300]!r}\n{reason}", file=sys.stderr)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        outcome = f"{counts['read']:,} read, {counts['refused']:,} refused, {len(failures):,} failures"
        print(f"{name}: {outcome}, {memory:,.0f} MiB", flush=True)
        failed += len(failures)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    run_command(main)
