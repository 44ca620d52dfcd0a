"""The folder of an encoded corpus: a description, and parts of a fixed number of rows, each whole or not there.

corpus.json          what was encoded, by what, and how
part-00000.parquet   id, vector, text; or part-00000.npy with the vectors, and part-00000.jsonl with ids and text
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import write_atomically, write_text_atomically
from evaluation.quantization import from_int8, to_bits, to_int8, unit_length
from tokens.tables import import_pyarrow

DESCRIPTION = "corpus.json"
FORMATS = ("npy", "parquet")
PRECISIONS = ("float32", "float16", "int8", "bits")
VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What is encoded, by what, and how: all that the bytes of a part follow from.

    Attributes:
        model: checkpoint, folder of a small encoder, or backbone.
        backbone: of a checkpoint, if not the one it was trained on.
        model_identity: a hash of the model's files, or its name.
        data: file or folder with the sentences.
        columns: see `Records`.
        skip_bad_rows: see `Records`.
        data_identity: a hash of all sentences and ids.
        rows: sentences.
        part_rows: rows in a part; the last has what is left.
        format: npy or parquet.
        precision: float32, float16, int8 or bits.
        keep_text: whether the parts have the text.
        width: dimensions of a vector.
        value_range: of each dimension, lowest and highest, for int8.
    """

    model: str
    backbone: str | None
    model_identity: str
    data: str
    columns: str | None
    skip_bad_rows: bool
    data_identity: str
    rows: int
    part_rows: int
    format: str
    precision: str
    keep_text: bool
    width: int
    value_range: list[list[float]] = field(default_factory=list)
    version: int = VERSION

    @property
    def parts(self) -> int:
        """How many parts there are in all."""
        return -(-self.rows // self.part_rows)

    def rows_of(self, part: int) -> int:
        """How many rows a part has."""
        return min(self.part_rows, self.rows - part * self.part_rows)


# Where a corpus or a model lies may change, its contents may not. The ranges are those of the first run: another machine may round
# differently.
MAY_CHANGE = ("model", "data", "backbone", "value_range")


class CorpusFolder:
    """Reads and writes the folder of an encoded corpus."""

    def __init__(self, path: str | Path, plan: Plan) -> None:
        """A folder whose description is `plan`."""
        self.path, self.plan = Path(path), plan

    @classmethod
    def open(cls, path: str | Path) -> CorpusFolder:
        """Open a folder that encode.py wrote, finished or not.

        Raises:
            InputError: if it is none, or damaged.
        """
        file = Path(path) / DESCRIPTION
        try:
            contents = json.loads(file.read_text(encoding="utf-8"))
            plan = Plan(**contents)
            intact = plan.version == VERSION and plan.format in FORMATS and plan.precision in PRECISIONS
            intact = intact and all(type(number) is int and number > 0 for number in (plan.rows, plan.part_rows, plan.width))
            intact = intact and type(plan.keep_text) is bool
            intact = intact and (plan.precision != "int8" or np.array(plan.value_range, dtype=float).shape == (2, plan.width))
        except FileNotFoundError as error:
            raise InputError("is missing, expected a folder that encode.py wrote", path=file) from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InputError("is damaged, or of another version; encode the corpus again", path=file) from error
        if not intact:
            raise InputError("is damaged, or of another version; encode the corpus again", path=file)
        return cls(path, plan)

    @classmethod
    def begin(cls, path: str | Path, plan: Plan) -> CorpusFolder:
        """Open a folder to write to, new or of the same plan.

        Raises:
            InputError: if it holds something else, or another plan, and what differs.
        """
        path = Path(path)
        if (path / DESCRIPTION).exists():
            begun = cls.open(path)
            different = [
                f"{name} was {_short(getattr(begun.plan, name))}, is {_short(getattr(plan, name))}"
                for name in (each.name for each in fields(Plan))
                if name not in MAY_CHANGE and getattr(begun.plan, name) != getattr(plan, name)
            ]
            if different:
                raise InputError(f"holds another corpus ({'; '.join(different)}); choose another folder", path=path)
            return cls(path, replace(plan, value_range=begun.plan.value_range))
        if path.is_dir() and any(not file.name.startswith(".") for file in path.iterdir()):  # but for what a killed run leaves
            raise InputError("holds something else, expected a new folder or one of encode.py", path=path)
        write_text_atomically(path / DESCRIPTION, json.dumps(asdict(plan), indent=1) + "\n")
        return cls(path, plan)

    def present(self) -> set[int]:
        """The numbers of the parts that are there."""
        suffixes = ("npy", "jsonl") if self.plan.format == "npy" else ("parquet",)
        names = [{path.stem.removeprefix("part-") for path in self.path.glob(f"part-*.{suffix}")} for suffix in suffixes]
        return {int(name) for name in set.intersection(*names) if name.isdecimal() and int(name) < self.plan.parts}

    def missing(self) -> list[int]:
        """The numbers of the parts that are not there yet."""
        return sorted(set(range(self.plan.parts)) - self.present())

    def _path(self, number: int, suffix: str | None = None) -> Path:
        return self.path / f"part-{number:05d}.{suffix or self.plan.format}"

    def write(self, number: int, ids: list[Any], texts: list[str], vectors: np.ndarray) -> None:
        """Write a part, with ids or row numbers and vectors `(n, K)`; it is there at once or not at all."""
        codes = self._encode(vectors)
        if self.plan.format == "npy":
            rows = [{"id": own, "text": text} if self.plan.keep_text else {"id": own} for own, text in zip(ids, texts, strict=True)]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text_atomically(self._path(number, "jsonl"), lines)
            with write_atomically(self._path(number)) as file:
                np.save(file, codes)
            return
        pyarrow, parquet = import_pyarrow(), import_pyarrow("pyarrow.parquet")
        columns = {
            "id": pyarrow.array(ids),
            "vector": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(codes.ravel()), codes.shape[1]),
        }
        if self.plan.keep_text:
            columns["text"] = pyarrow.array(texts)
        with write_atomically(self._path(number)) as file:
            parquet.write_table(pyarrow.table(columns), file, compression="zstd", use_dictionary=False)

    def vectors(self, number: int) -> np.ndarray:
        """The vectors `(n, K)` of a part, float32, unit length, as close as their precision allows.

        Raises:
            InputError: if the part is missing or damaged.
        """
        with self._reading(number):
            if self.plan.format == "npy":
                codes = np.asarray(np.load(self._path(number), mmap_mode="r", allow_pickle=False))
            else:
                column = self._parquet(number, ["vector"])["vector"].combine_chunks()
                codes = column.values.to_numpy().reshape(len(column), -1)
            width = -(-self.plan.width // 8) if self.plan.precision == "bits" else self.plan.width
            if codes.shape != (self.plan.rows_of(number), width):
                raise ValueError("of another shape")
            return self._decode(codes)

    def rows(self, number: int) -> tuple[list[Any], list[str] | None]:
        """The ids and, if they were kept, the sentences of a part.

        Raises:
            InputError: if the part is missing or damaged.
        """
        names = ["id", "text"][: 1 + self.plan.keep_text]
        with self._reading(number):
            if self.plan.format == "npy":
                lines = self._path(number, "jsonl").read_text(encoding="utf-8").split("\n")[:-1]
                columns = list(zip(*([row[name] for name in names] for row in map(json.loads, lines)), strict=True))
            else:
                table = self._parquet(number, names)
                columns = [table[name].to_pylist() for name in names]
            if len(columns[0]) != self.plan.rows_of(number):
                raise ValueError("of another length")
        return list(columns[0]), list(columns[1]) if self.plan.keep_text else None

    def _parquet(self, number: int, columns: list[str]) -> Any:
        # Threads of pyarrow's, of which read_table starts one in any case, may abort the process as it ends.
        contents = io.BytesIO(self._path(number).read_bytes())
        return import_pyarrow("pyarrow.parquet").ParquetFile(contents, pre_buffer=False).read(columns, use_threads=False)

    @contextmanager
    def _reading(self, number: int) -> Iterator[None]:
        path = self._path(number)
        try:
            yield
        except FileNotFoundError as error:
            raise InputError("this part is missing; run encode.py again with the same arguments", path=path) from error
        except InputError:
            raise
        except Exception as error:  # NumPy and pyarrow raise all kinds at damage
            raise InputError("damaged; delete it, and run encode.py again with the same arguments", path=path) from error

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        if self.plan.precision == "bits":
            return to_bits(vectors)
        if self.plan.precision == "int8":
            return to_int8(vectors, np.array(self.plan.value_range, dtype=np.float32))
        return vectors.astype(self.plan.precision)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        if self.plan.precision == "bits":
            signs = np.unpackbits(codes, axis=1, count=self.plan.width).astype(np.float32) * 2 - 1
            return signs / np.float32(np.sqrt(self.plan.width))
        if self.plan.precision == "int8":
            return from_int8(codes, np.array(self.plan.value_range, dtype=np.float32))
        if self.plan.precision == "float16":
            return unit_length(codes.astype(np.float32))
        return codes


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:36]} ..."
