"""The token store: the token embeddings of many sentences in one memory-mapped file.

A store is a sequence of arrays in NumPy's `.npy` format, one after the other in one file, so that `np.load` called
repeatedly on the open file reads all of it:

    tokens    float32 (N, D)   the tokens of all sentences, N in sum
    contents  uint8            JSON: format version, names of the arrays that follow, description
    starts    int64 (n,)       the first token of each sentence
    lengths   int64 (n,)       the number of tokens of each sentence
    digests   uint64 (n,)      a hash of each sentence's tokens: the same tokens, the same sentence
    ...                        arrays that belong to the sentences, such as pairs and labels
    checksum  uint8            of everything but the tokens; stores made before there was one are read without

Only `tokens` is large; it is mapped, never read whole. It comes first because it is streamed to disk before the
number of sentences is known.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from common.errors import InputError
from common.files import write_atomically

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1


@dataclass(frozen=True)
class TokenStore:
    """Token embeddings of n sentences, read from disk as they are asked for.

    Attributes:
        tokens: arrays of tokens `(N, D)`, float32, one for each file the store is made of.
        part: `(n,)`, which of these arrays holds a sentence.
        starts: `(n,)`, where in that array the sentence begins.
        lengths: `(n,)`, how many tokens it has.
        digests: `(n,)`, equal for sentences with equal tokens.
        extra: further arrays stored with the sentences.
        description: where the tokens come from (source file, backbone, layers).
    """

    tokens: tuple[np.ndarray, ...]
    part: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    digests: np.ndarray
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    description: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def dim(self) -> int:
        """Width D of a token embedding."""
        return self.tokens[0].shape[1]

    def sentence(self, index: int) -> np.ndarray:
        """The token embeddings `(T, D)` of one sentence."""
        start = self.starts[index]
        return self.tokens[self.part[index]][start : start + self.lengths[index]]

    def padded(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The sentences `indices` `(B,)` as one batch `(B, T, D)`, float32, right-padded with all-zero rows; their lengths `(B,)`.

        T is the length of the longest of them, at least 1.
        """
        import torch  # here, because a process that only reads a file need not load it

        batch = np.zeros((len(indices), max(1, self.lengths[indices].max(initial=0)), self.dim), dtype=np.float32)
        for row, index in zip(batch, indices, strict=True):
            row[: self.lengths[index]] = self.sentence(index)
        return torch.from_numpy(batch), torch.from_numpy(self.lengths[indices])

    def followed_by(self, other: TokenStore) -> TokenStore:
        """A store of the sentences of both: those of `other` are numbered from `len(self)`. Nothing is copied."""
        return TokenStore(
            tokens=self.tokens + other.tokens,
            part=np.concatenate([self.part, other.part + len(self.tokens)]),
            starts=np.concatenate([self.starts, other.starts]),
            lengths=np.concatenate([self.lengths, other.lengths]),
            digests=np.concatenate([self.digests, other.digests]),
            description=self.description,
        )


class TokenStoreWriter:
    """Streams sentences into a store file; see `create_store`."""

    def __init__(self, file: BinaryIO, dim: int) -> None:
        self._file = file
        self._dim = dim
        self._tokens = 0
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._digests: list[int] = []
        self._write_tokens_header()

    def _write_tokens_header(self) -> None:
        """Write the header of `tokens`; NumPy leaves room in it for the first axis to grow in place."""
        shape = (self._tokens, self._dim)
        npy.write_array_header_1_0(self._file, {"descr": "<f4", "fortran_order": False, "shape": shape})

    def append(self, tokens: np.ndarray) -> None:
        """Add one sentence: its token embeddings `(T, D)`, float32; all-zero rows at its end are padding and left out."""
        while len(tokens) and not tokens[-1].any():
            tokens = tokens[:-1]
        block = np.ascontiguousarray(tokens, dtype="<f4").reshape(-1).data
        self._file.write(block)
        self._starts.append(self._tokens)
        self._lengths.append(len(tokens))
        self._digests.append(int.from_bytes(hashlib.blake2b(block, digest_size=8).digest(), "little"))
        self._tokens += len(tokens)

    def finish(
        self,
        extra: Mapping[str, np.ndarray],
        description: Mapping[str, Any],
        order: Sequence[int] | None = None,
    ) -> None:
        """Write everything but the tokens.

        Args:
            extra: further arrays to keep.
            description: where the tokens come from; must be representable as JSON.
            order: sentence number of each appended sentence, where they were not appended in order.
        """
        numbers = np.arange(len(self._lengths)) if order is None else np.asarray(order, dtype=np.int64)
        arrays = {
            "starts": np.array(self._starts, dtype=np.int64),
            "lengths": np.array(self._lengths, dtype=np.int64),
            "digests": np.array(self._digests, dtype=np.uint64),
        }
        for name, values in arrays.items():
            arrays[name] = np.empty_like(values)
            arrays[name][numbers] = values
        arrays.update(extra)
        contents = {"format": FORMAT_VERSION, "arrays": list(arrays), "description": dict(description), "checksum": True}
        tokens_end = self._file.tell()
        for array in (pack_json(contents), *arrays.values()):
            np.save(self._file, array, allow_pickle=False)
        self._file.seek(0)
        self._write_tokens_header()
        checksum = _checksum(self._file, self._file.tell(), tokens_end)
        np.save(self._file, checksum, allow_pickle=False)


@contextmanager
def create_store(path: str | os.PathLike[str], dim: int) -> Iterator[TokenStoreWriter]:
    """Open a new store for writing; `path` appears when the block ends without an error.

    The block appends sentences of width `dim` and ends with `finish`.
    """
    with write_atomically(path) as file:
        yield TokenStoreWriter(file, dim)


def open_store(path: str | os.PathLike[str]) -> TokenStore:
    """Open a store file. The tokens stay on disk until they are asked for.

    Raises:
        InputError: where the file is missing, is not a token store, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file, expected a token store", path=path)
    try:
        with path.open("rb") as file:
            shape, offset = _read_tokens_header(file)
            tokens = np.memmap(path, dtype="<f4", mode="r", shape=shape, offset=offset) if shape[0] else np.empty(shape, np.float32)
            file.seek(offset + tokens.nbytes)
            contents = unpack_json(np.load(file, allow_pickle=False))
            if contents["format"] != FORMAT_VERSION or set(contents) - {"format", "arrays", "description", "checksum"}:
                raise ValueError(f"format version {contents['format']}")
            arrays = {name: np.load(file, allow_pickle=False) for name in contents["arrays"]}
            end = file.tell()
            if contents.get("checksum"):
                expected = _checksum(file, offset, offset + tokens.nbytes, end)
                if not np.array_equal(np.load(file, allow_pickle=False), expected) or file.read(1):
                    raise ValueError("its checksum is wrong")
        starts, lengths, digests = (arrays.pop(name) for name in ("starts", "lengths", "digests"))
        if len(lengths) and (min(starts.min(), lengths.min()) < 0 or (starts + lengths).max() > len(tokens)):
            raise ValueError("sentences outside the tokens")
        part = np.zeros(len(lengths), dtype=np.int64)
        return TokenStore((tokens,), part, starts, lengths, digests, arrays, contents["description"])
    except OSError:
        raise
    except Exception as error:  # a damaged header ends in an exception of any kind
        raise InputError(f"not a token store of this version, or damaged ({str(error)[:200]}); make it again", path=path) from error


def _read_tokens_header(file: BinaryIO) -> tuple[tuple[int, int], int]:
    """Shape `(N, D)` of the tokens and the position of the first of them in the file."""
    if npy.read_magic(file) != (1, 0):
        raise ValueError("unknown array version")
    shape, fortran_order, dtype = npy.read_array_header_1_0(file)
    if fortran_order or dtype != np.dtype("<f4") or len(shape) != 2:
        raise ValueError("tokens are not float32 rows")
    return shape, file.tell()


def _checksum(file: BinaryIO, tokens_begin: int, tokens_end: int, end: int | None = None) -> np.ndarray:
    """A hash of a store file before and after its tokens, up to `end` or to its last byte; the file is left there."""
    checksum = hashlib.blake2b(digest_size=16)
    file.seek(0)
    checksum.update(file.read(tokens_begin))
    file.seek(tokens_end)
    checksum.update(file.read() if end is None else file.read(end - tokens_end))
    return np.frombuffer(checksum.digest(), dtype=np.uint8)


def pack_json(value: Any) -> np.ndarray:
    """`value` as JSON in a uint8 array, so that text can be stored beside numbers."""
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode("utf-8"), dtype=np.uint8)


def unpack_json(array: np.ndarray) -> Any:
    """What `pack_json` packed."""
    return json.loads(array.tobytes())


def identity_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What tells a file from another one of the same name: size, time of change, hash of its first and last 64 KiB.

    Cheap for files of any size; a cache made from the file is valid while this stays the same.
    """
    path = Path(path)
    status = path.stat()
    ends = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        ends.update(file.read(1 << 16))
        file.seek(max(0, status.st_size - (1 << 16)))
        ends.update(file.read(1 << 16))
    return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns, "ends": ends.hexdigest()}


def cached_store(path: Path, description: Mapping[str, Any], build: Callable[[Path], None]) -> TokenStore:
    """Open the store at `path`, made anew by `build(path)` unless it is there, whole, and of this `description`.

    Several processes may open and build it at the same time: each writes a file of its own and moves it into place whole, and
    who has the earlier one open keeps it.

    Raises:
        InputError: where the folder of the store cannot be written, or others keep replacing the store.
    """
    wanted = json.loads(json.dumps(description))
    for attempt in range(3):  # another process may replace it by one of another description before it is opened here
        with suppress(InputError):  # missing or damaged: made again
            store = open_store(path)
            if store.description == wanted:
                return store
        try:
            if attempt < 2:
                build(path)
        except PermissionError as error:
            raise InputError(
                "cannot write here, give another folder for token stores with --cache_dir", path=path.parent
            ) from error
    raise InputError("another process keeps replacing this token store by another one; give each its own --cache_dir", path=path)
