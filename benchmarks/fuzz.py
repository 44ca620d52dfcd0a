"""Damaged and hostile files: every input must end in a correct read or in the project's one-line error.

Example:

    python benchmarks/fuzz.py --inputs 100000

Good files are damaged at random: bytes and fields replaced, doubled, left out, joined with others, line ends and encodings
changed. What a reader makes of them is compared with a slow, obvious reading of the same bytes that shares no code with it:
`float` on every field, the csv module on the whole text, zipfile on a checkpoint. An input counts as a failure where the
reader raises anything but an InputError of one line, refuses what the other accepts, or gives other values.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import random
import resource
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
import yaml
from tqdm import tqdm

from common.cli import make_parser, run_command
from common.errors import InputError
from evaluation.checkpoint import load_encoder, save_encoder
from model import EncoderConfig, SentenceEncoder
from tokens.dat_files import read_label_file, read_token_file
from tokens.text_files import HEADER_WORDS, read_text_pairs
from tokens.token_store import create_store, open_store, pack_json
from training.recipe import CONFIGS, add_recipe_arguments, parse_recipe

DIM = 3
REFUSED = "refused"
NUMBERS = (
    *(
        "0",
        "-0",
        "+1",
        "1.",
        ".5",
        "-.5e-3",
        "01.50",
        "1e5",
        "1E+05",
        "100e-2",
        "3.4028235e38",
        "3.5e38",
        "1e39",
        "-1e400",
        "1e-46",
    ),
    *("nan", "inf", "-Infinity", "0x1p3", "1_0", "1,5", "1.2.3", "--1", "1e", "", "18446744073709551616", "0.1234567890123456789"),
    *("1e-400", "4.9e-324", "null", "true", "[1]", "{}", '"1"', "\u0661", "\uff11", "1\x00", "\x1c", "1\x0b"),
)
JUNK = (
    b"",
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\r\n",
    b"\n\n",
    b" ",
    b"  ",
    b"\t",
    b"\x0c",
    b'"',
    b'""',
    b",",
    b"1000000000000",
)


def damaged(rng: random.Random, text: bytes, separators: bytes) -> bytes:
    """A text file with some of its fields, bytes and lines changed."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        kind = rng.randrange(8)
        at, to = sorted(rng.randrange(len(text) + 1) for _ in "ab")
        if kind == 0:  # a field by a number in some form
            starts = [0, *(i + 1 for i, byte in enumerate(text) if byte in separators)]
            start = rng.choice(starts)
            end = next((i for i in range(start, len(text)) if text[i] in separators), len(text))
            text = text[:start] + rng.choice(NUMBERS).encode() + text[end:]
        elif kind == 1:
            text = text[:at] + rng.choice(JUNK) + text[at:]
        elif kind == 2:
            text = text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
        elif kind == 3:
            text = text[:at]
        elif kind == 4:
            text = text[:at] + text[to:] if to - at < 8 else text[:at] + text[at:to] + text[at:]
        elif kind == 5:
            text = text.replace(b"\n", rng.choice((b"\r\n", b"\n\n", b" \n", b"")))
        elif kind == 6:
            lines = text.splitlines(keepends=True)
            rng.shuffle(lines)
            text = b"".join(lines)
        else:
            text = rng.choice((b"\xef\xbb\xbf" + text, text + b"\n", text + b" \r\n\n", text * 2))
    return text


def lines_of(text: bytes) -> list[bytes]:
    """The lines of a file as the formats define them: blank ones only at the end."""
    lines = [line.rstrip(b"\r\n") for line in text.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines or any(not line.strip() for line in lines):
        raise ValueError("blank")
    return lines


def number(field: bytes | str) -> float:
    """A decimal number."""
    if (b"_" if isinstance(field, bytes) else "_") in field:  # type: ignore[operator]
        raise ValueError("underscore")
    return float(field)


class Reader(Protocol):
    """A reader under test."""

    def make(self, rng: random.Random) -> bytes:
        """A damaged file."""

    def read(self, path: Path) -> Any:
        """What the project reads; raises InputError where it refuses."""

    def expected(self, content: bytes) -> Any:
        """What the other way of reading makes of it; raises anything where it refuses."""


class TokenFiles:
    """Files of token embeddings."""

    def make(self, rng: random.Random) -> bytes:
        rows = []
        for _ in range(rng.randint(1, 3)):
            count = rng.choice((0, 1, 1, 2, 3))
            values = [f"{rng.gauss(0, 1):{rng.choice(('.9g', '.3f', '.17g', '.6e'))}}" for _ in range(count * DIM)]
            if rng.random() < 0.2:
                values[-DIM:] = ["0"] * len(values[-DIM:])
            rows.append(" ".join([str(count), str(DIM), *values]))
        return damaged(rng, "\n".join(rows).encode() + b"\n", b" \n")

    def read(self, path: Path) -> Any:
        store = read_token_file(path, dim=DIM, cache_dir=path.parent, show_progress=False)
        return [store.sentence(i).tobytes() for i in range(len(store))]

    def expected(self, content: bytes) -> Any:
        sentences = []
        for line in lines_of(content):
            fields = line.split()
            n_tokens, dim = int(fields[0]), int(fields[1])
            values = [number(field) for field in fields[2:]]
            with np.errstate(over="ignore"):
                array = np.array(values, dtype=np.float64).astype(np.float32)
            if n_tokens < 0 or dim != DIM or len(values) != n_tokens * dim or not np.isfinite(array).all() or b"_" in line:
                raise ValueError(line)
            rows = array.reshape(n_tokens, dim)
            while len(rows) and not rows[-1].any():
                rows = rows[:-1]
            sentences.append(rows.tobytes())
        return sentences


class LabelFiles:
    """Files of labels and indices."""

    def make(self, rng: random.Random) -> bytes:
        start, swap, separator = rng.randint(0, 1), rng.random() < 0.5, rng.choice(("\t", " ", ",", ", "))
        rows = []
        for index in range(start, start + rng.randint(1, 5)):
            fields = [rng.choice((f"{rng.uniform(0, 5):.3g}", str(rng.randint(0, 5)))), str(index)]
            rows.append(separator.join(fields[::-1] if swap else fields))
        return damaged(rng, "\n".join(rows).encode() + b"\n", b" \t,\n")

    def read(self, path: Path) -> Any:
        return (read_label_file(path) + 0.0).tobytes()  # -0 is 0

    def expected(self, content: bytes) -> Any:
        rows = [[number(field.encode()) for field in line.decode().replace(",", " ").split()] for line in lines_of(content)]
        if any(len(row) != 2 for row in rows):
            raise ValueError("columns")
        found = []
        for index, label in ((0, 1), (1, 0)):
            counts = any([row[index] for row in rows] == list(range(start, start + len(rows))) for start in (0, 1))
            if counts and all(0 <= row[label] <= 5 for row in rows):
                found.append(np.array([row[label] + 0.0 for row in rows], np.float32).tobytes())
        (labels,) = set(found)  # one way to read it, or two that agree
        return labels


class PairFiles:
    """Sentences and labels, separated by tabs or commas."""

    def __init__(self, is_csv: bool) -> None:
        self.is_csv = is_csv
        self.suffix = ".csv" if is_csv else ".tsv"

    def make(self, rng: random.Random) -> bytes:
        text = io.StringIO()
        words = [
            "a cat",
            "caf\u00e9",
            'he said "go"',
            "one, two",
            "'",
            "\u4e2d\u6587",
            " space ",
            "line\nbreak",
            "x\r\ny",
            "a\n\nb",
        ]
        words = words if self.is_csv else words[:7]
        rows = [[rng.choice(words), rng.choice(words), f"{rng.uniform(0, 5):.3g}"] for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.2:
            rows.insert(0, ["sentence1", "sentence2", rng.choice(sorted(HEADER_WORDS)).upper()])
        if self.is_csv:
            csv.writer(text, lineterminator=rng.choice(("\n", "\r\n"))).writerows(rows)
        else:
            text.write("".join("\t".join(row) + "\n" for row in rows))
        return damaged(rng, text.getvalue().encode(), b",\t\n")

    def read(self, path: Path) -> Any:
        pairs = read_text_pairs(path)
        return pairs.first, pairs.second, pairs.labels.tobytes()

    def expected(self, content: bytes) -> Any:
        if self.is_csv:
            text = content.removeprefix(b"\xef\xbb\xbf").decode()
            # Lines end at \n, as everywhere in the project; a lone \r is an error of the csv module.
            rows = list(csv.reader(io.StringIO(text, newline="\n"), strict=True))
            while rows and not "".join(rows[-1]).strip() and len(rows[-1]) < 2:
                rows.pop()
        else:
            rows = [line.decode().split("\t") for line in lines_of(content)]
        if not rows or any(len(row) != 3 for row in rows):
            raise ValueError("columns")
        if rows[0][2].strip().lower() in HEADER_WORDS:
            rows.pop(0)
        labels = [number(row[2]) for row in rows]
        if not rows or not all(0 <= label <= 5 for label in labels) or any(not row[i].strip() for row in rows for i in (0, 1)):
            raise ValueError("row")
        return [row[0] for row in rows], [row[1] for row in rows], np.array(labels, np.float32).tobytes()


class Recipes:
    """Recipes in YAML, made of the presets."""

    def __init__(self) -> None:
        self.parser = make_parser("recipe", "")
        add_recipe_arguments(self.parser)
        self.presets = [path.read_bytes() for path in sorted(CONFIGS.glob("*.yaml")) if b"\nphases:" in path.read_bytes()]

    def make(self, rng: random.Random) -> bytes:
        return damaged(rng, rng.choice(self.presets), b" \n:{},")

    def read(self, path: Path) -> Any:
        recipe, _ = parse_recipe(self.parser, ["--config", str(path)])
        return asdict(recipe)

    def expected(self, content: bytes) -> Any:
        """What a field must be where the recipe is accepted; which values can be trained with is not repeated here."""
        contents = yaml.safe_load(content.decode("utf-8-sig"))
        if not isinstance(contents, dict):
            raise ValueError("no mapping")
        return contents

    @staticmethod
    def agrees(found: Any, expected: Any) -> bool:
        """Whether every field of the file has its value in the recipe."""
        if isinstance(found, dict) and isinstance(expected, dict):
            return all(str(key) in found and Recipes.agrees(found[str(key)], value) for key, value in expected.items())
        if isinstance(found, (int, float)) and not isinstance(expected, dict):
            try:
                return float(found) == float(str(expected).strip("\ufeff")) if not isinstance(expected, bool) else found == expected
            except ValueError:  # no number, but the field was read as one
                return False
        return found == expected or str(found) == str(expected)


class Checkpoints:
    """model.bin, with bytes changed, and with contents changed and the archive whole."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        save_encoder(folder / "good.bin", SentenceEncoder(EncoderConfig(input_dim=4, output_dim=2, heads=2, hidden_dim=2)))
        self.good = (folder / "good.bin").read_bytes()
        with zipfile.ZipFile(io.BytesIO(self.good)) as archive:
            self.entries = {name: archive.read(name) for name in archive.namelist()}
        self.canary = folder / "executed"
        self.values = self._values(load_encoder(folder / "good.bin"))

    @staticmethod
    def _values(encoder: SentenceEncoder) -> Any:
        return [parameter.detach().numpy().tobytes() for parameter in encoder.parameters()]

    def make(self, rng: random.Random) -> bytes:
        kind = rng.randrange(4)
        if kind == 0:  # bytes
            content = bytearray(self.good)
            for _ in range(rng.randint(1, 4)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            return bytes(content)
        if kind == 1:
            at = rng.randrange(len(self.good))
            return rng.choice((self.good[:at], self.good[at:], self.good[:at] + rng.randbytes(rng.randint(1, 50)) + self.good[at:]))
        entries = dict(self.entries)
        if kind == 2:  # an entry, its checksum mended
            name = rng.choice(sorted(entries))
            content = bytearray(entries[name])
            for _ in range(rng.randint(1, 3)):
                if content:
                    content[rng.randrange(len(content))] = rng.randrange(256)
            entries[name] = bytes(content)
        else:  # a pickle that would execute, or that claims what is not there
            (name,) = (name for name in entries if name.endswith("data.pkl"))
            entries[name] = rng.choice(
                (
                    b"\x80\x02cbuiltins\nopen\nX\x06\x00\x00\x00%sX\x01\x00\x00\x00w\x86R." % str(self.canary).encode(),
                    b"cposix\nsystem\n(S'touch %s'\ntR." % str(self.canary).encode(),
                    b"\x80\x02}(X\x01\x00\x00\x00acpathlib\nPath.touch\n(cpathlib\nPath\n(S'%s'\ntRtRu."
                    % str(self.canary).encode(),
                    entries[name].replace(b"K\x02", b"\x8a\x06\x00\x00\x00\x00\x00\x01"),  # a size of 10^12
                    entries[name].replace(b"K\x08", b"J\xff\xff\xff\x7f"),
                )
            )
        buffer = io.BytesIO()
        compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, entry in entries.items():
                archive.writestr(name, entry if rng.random() > 0.001 else bytes(50_000_000))
        return buffer.getvalue()

    def read(self, path: Path) -> Any:
        encoder = load_encoder(path)
        vectors = encoder(torch.ones(1, 2, encoder.config.input_dim))
        if self.canary.exists():
            raise RuntimeError("a pickle was executed")
        return self._values(encoder), vectors.shape

    def expected(self, content: bytes) -> Any:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if archive.testzip() is not None:
                raise ValueError("checksum")
            entries = {name.split("/")[-1]: archive.read(name) for name in archive.namelist()}
        good = {name.split("/")[-1]: entry for name, entry in self.entries.items()}
        return {name for name in good if entries.get(name) != good[name] and name.isdigit()}

    def agrees(self, found: Any, changed: set[str]) -> bool:
        """Where no tensor's bytes were changed, the values are the good ones."""
        return bool(changed) or found[0] == self.values or all(math.isfinite(size) for size in found[1])


class Stores:
    """Token stores with bytes changed: what is read lies within the file."""

    def __init__(self, folder: Path) -> None:
        with create_store(folder / "good.store", DIM) as writer:
            for length in (2, 1, 3):
                writer.append(np.arange(1, length * DIM + 1, dtype=np.float32).reshape(length, DIM))
            extra = {"labels": np.array([1, 4], np.float32), "sentences": pack_json(["a", "b", "c"])}
            writer.finish(extra, {"source": "x"})
        self.good = (folder / "good.store").read_bytes()
        good = open_store(folder / "good.store")
        self.values = self._values(good)

    @staticmethod
    def _values(store: Any) -> Any:
        return [
            store.starts.tolist(),
            store.lengths.tolist(),
            store.digests.tolist(),
            {k: v.tolist() for k, v in store.extra.items()},
        ]

    def make(self, rng: random.Random) -> bytes:
        content = bytearray(self.good)
        kind = rng.randrange(3)
        if kind == 0:
            for _ in range(rng.randint(1, 3)):
                content[rng.randrange(len(content))] = rng.randrange(256)
        elif kind == 1:
            at = rng.randrange(len(content))
            content[at:] = rng.choice((b"", rng.randbytes(rng.randint(1, 40)), content[at:] * 2))
        else:  # a number of the headers by a large one
            at = rng.choice([i for i, byte in enumerate(content) if chr(byte).isdigit()])
            content[at : at + 1] = rng.choice((b"9", b"999999999999", b"-1", b"0"))
        return bytes(content)

    def read(self, path: Path) -> Any:
        store = open_store(path)
        for i in range(len(store)):
            store.sentence(i).sum()
        return self._values(store)

    def expected(self, content: bytes) -> Any:
        return self.values  # damage within the tokens is not looked for: there are too many of them


def fuzz(name: str, reader: Reader, folder: Path, inputs: int, seed: int) -> tuple[Counter[str], list[tuple[str, bytes]]]:
    """Feed a reader with damaged files; how many ended how, and the inputs that failed with the reason."""
    rng = random.Random(f"{name} {seed}")
    counts: Counter[str] = Counter()
    failures: list[tuple[str, bytes]] = []
    path = folder / f"input{getattr(reader, 'suffix', '.dat')}"
    agrees: Callable[[Any, Any], bool] = getattr(reader, "agrees", lambda found, expected: found == expected)
    may_refuse = isinstance(reader, (Recipes, Checkpoints, Stores))
    for _ in tqdm(range(inputs), desc=name, unit="input", disable=None):
        content = reader.make(rng)
        path.write_bytes(content)
        try:
            expected = reader.expected(content)
        except Exception:  # the other reading refuses, in whatever way
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
            if expected != REFUSED and not may_refuse:
                failures.append(("refused what is right", content))
        else:
            counts["read"] += 1
            if expected == REFUSED or not agrees(found, expected):
                failures.append((f"read as {str(found)[:300]}", content))
    return counts, failures


def main() -> None:
    """Command line."""
    readers = ("tokens", "labels", "tsv", "csv", "recipes", "checkpoints", "stores")
    parser = make_parser("benchmarks/fuzz.py", __doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="damaged files for each reader")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--only", choices=readers, help="one of the readers")
    options = parser.parse_args()
    if options.inputs < 1:
        raise InputError(f"--inputs is {options.inputs}, expected 1 or more")
    warnings.simplefilter("ignore")
    failed = 0
    in_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    for name in readers if options.only is None else (options.only,):
        with tempfile.TemporaryDirectory(dir=in_memory) as temporary:
            counts, failures = fuzz(name, make_reader(name, Path(temporary)), Path(temporary), options.inputs, options.seed)
        for reason, content in failures[:5]:
            print(f"{json.dumps(content[:300].decode('latin-1'))}\n{reason}", file=sys.stderr)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{name}: {counts['read']:,} read, {counts['refused']:,} refused, {len(failures):,} failures, {memory:,.0f} MiB",
            flush=True,
        )
        failed += len(failures)
    raise SystemExit(1 if failed else 0)


def make_reader(name: str, folder: Path) -> Reader:
    """The reader of a name."""
    makers: dict[str, Callable[[], Reader]] = {
        "tokens": TokenFiles,
        "labels": LabelFiles,
        "tsv": lambda: PairFiles(is_csv=False),
        "csv": lambda: PairFiles(is_csv=True),
        "recipes": Recipes,
        "checkpoints": lambda: Checkpoints(folder),
        "stores": lambda: Stores(folder),
    }
    return makers[name]()


if __name__ == "__main__":
    run_command(main)
