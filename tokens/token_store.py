"""The token store: the token embeddings of many sentences in one memory-mapped file.

A store is a file of consecutive arrays in NumPy's `.npy` format, so repeated `np.load` on the open file reads all of it:

    tokens    float32 (N, D)   the tokens of all sentences
    contents  uint8            JSON: format version, names of the arrays that follow, description
    starts    int64 (n,)       the first token of each sentence
    lengths   int64 (n,)       the number of tokens per sentence
    digests   uint64 (n,)      a hash of each sentence's tokens: equal tokens, equal sentence
    ...                        extra arrays, such as pairs and labels
    checksum  uint8            of everything but the tokens; older stores have none

`tokens` is memory-mapped, never read whole. It comes first because it is streamed to disk before the number of sentences is known.
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
    """Token embeddings of n sentences, read from disk on access.

    Attributes:
        tokens: arrays of tokens `(N, D)`, float32, one per file.
        part: `(n,)`, the index of the array that holds each sentence.
        starts: `(n,)`, each sentence's first token in that array.
        lengths: `(n,)`, tokens per sentence.
        digests: `(n,)`, equal for sentences with equal tokens.
        extra: more arrays stored with the sentences.
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
        """Return the token embeddings `(T, D)` of one sentence."""
        start = self.starts[index]
        return self.tokens[self.part[index]][start : start + self.lengths[index]]

    def padded(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sentences `indices` `(B,)` as a batch `(B, T, D)`, float32, right-padded with zero rows, and lengths `(B,)`.

        T is the longest length, at least 1.
        """
        import torch  # here, because processes that only read a file do not need it

        batch = np.zeros((len(indices), max(1, self.lengths[indices].max(initial=0)), self.dim), dtype=np.float32)
        for row, index in zip(batch, indices, strict=True):
            row[: self.lengths[index]] = self.sentence(index)
        return torch.from_numpy(batch), torch.from_numpy(self.lengths[indices])

    def followed_by(self, other: TokenStore) -> TokenStore:
        """Return a store of both stores' sentences, those of `other` numbered from `len(self)`, without copying tokens."""
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
        self._n_tokens = 0
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._digests: list[int] = []
        self._write_tokens_header()

    def _write_tokens_header(self) -> None:
        """Write the header of `tokens`; NumPy pads it so that the first axis can grow in place."""
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._n_tokens, self._dim)}
        npy.write_array_header_1_0(self._file, header)

    def append(self, tokens: np.ndarray) -> None:
        """Add one sentence's token embeddings `(T, D)`, float32, without trailing all-zero rows, which are padding."""
        while len(tokens) and not tokens[-1].any():
            tokens = tokens[:-1]
        block = np.ascontiguousarray(tokens, dtype="<f4").reshape(-1).data
        self._file.write(block)
        self._starts.append(self._n_tokens)
        self._lengths.append(len(tokens))
        self._digests.append(int.from_bytes(hashlib.blake2b(block, digest_size=8).digest(), "little"))
        self._n_tokens += len(tokens)

    def finish(self, extra: Mapping[str, np.ndarray], description: Mapping[str, Any], order: Sequence[int] | None = None) -> None:
        """Write everything but the tokens.

        Args:
            extra: more arrays to store.
            description: where the tokens come from; must be representable as JSON.
            order: sentence number of each appended sentence, if they were not appended in order.
        """
        by_number = np.argsort(range(len(self._lengths)) if order is None else order)
        arrays = {
            "starts": np.array(self._starts, dtype=np.int64)[by_number],
            "lengths": np.array(self._lengths, dtype=np.int64)[by_number],
            "digests": np.array(self._digests, dtype=np.uint64)[by_number],
            **extra,
        }
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
    """Open a new store of `dim`-dimensional tokens; `path` appears if the block ends without an error.

    The block appends sentences and calls `finish` last.
    """
    with write_atomically(path) as file:
        yield TokenStoreWriter(file, dim)


def is_store(path: Path) -> bool:
    """Whether a file begins like a token store."""
    with path.open("rb") as file:
        return file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX


def open_store(path: str | os.PathLike[str]) -> TokenStore:
    """Open a store file without reading its tokens.

    Raises:
        InputError: if the file is missing, damaged, or not a token store.
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
            raise ValueError("sentences beyond the tokens")
        part = np.zeros(len(lengths), dtype=np.int64)
        return TokenStore((tokens,), part, starts, lengths, digests, arrays, contents["description"])
    except OSError:
        raise
    except Exception as error:  # a damaged header can raise anything
        raise InputError(f"not a token store of this version, or damaged ({str(error)[:200]}); rebuild it", path=path) from error


def _read_tokens_header(file: BinaryIO) -> tuple[tuple[int, int], int]:
    """Return the shape `(N, D)` of the tokens and their offset in the file."""
    if npy.read_magic(file) != (1, 0):
        raise ValueError("unknown array version")
    shape, fortran_order, dtype = npy.read_array_header_1_0(file)
    if fortran_order or dtype != np.dtype("<f4") or len(shape) != 2:
        raise ValueError("tokens are not float32 rows")
    return shape, file.tell()


def _checksum(file: BinaryIO, tokens_begin: int, tokens_end: int, end: int | None = None) -> np.ndarray:
    """Return a hash of a store file without its tokens, up to `end` or the last byte, and leave the file there."""
    checksum = hashlib.blake2b(digest_size=16)
    file.seek(0)
    checksum.update(file.read(tokens_begin))
    file.seek(tokens_end)
    checksum.update(file.read() if end is None else file.read(end - tokens_end))
    return np.frombuffer(checksum.digest(), dtype=np.uint8)


def pack_json(value: Any) -> np.ndarray:
    """Return `value` as JSON in a uint8 array."""
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode("utf-8"), dtype=np.uint8)


def unpack_json(array: np.ndarray) -> Any:
    """Return the value packed by `pack_json`."""
    return json.loads(array.tobytes())


def identity_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a file's size, modification time, and a hash of its first and last 64 KiB.

    Cheap for files of any size; a cache built from the file is valid as long as these stay the same.
    """
    path = Path(path)
    status = path.stat()
    ends = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        ends.update(file.read(1 << 16))
        file.seek(max(0, status.st_size - (1 << 16)))
        ends.update(file.read(1 << 16))
    return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns, "ends": ends.hexdigest()}


def identity_of_folder(folder: Path, patterns: Sequence[str] = ("**/*",)) -> dict[str, Any]:
    """Return the identity of each file in a folder, at any depth or only those that match, by its path in the folder."""
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return {file.relative_to(folder).as_posix(): identity_of(file) for file in sorted(files)}


def short_hash(value: Any) -> str:
    """Return a hash of a value that JSON can represent, for the name of what is made from it."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()


def cached_store(path: Path, description: Mapping[str, Any], build: Callable[[Path], None]) -> TokenStore:
    """Open the store at `path`; unless it exists, undamaged and with this `description`, call `build(path)` first.

    Several processes may do this at once: each writes its own file and moves it into place atomically.

    Raises:
        InputError: if the store's folder is not writable, or other processes keep replacing the store.
    """
    expected = json.loads(json.dumps(description))
    for attempt in range(3):  # another process may replace the new store before it is opened here
        with suppress(InputError):  # missing or damaged: rebuild
            store = open_store(path)
            if store.description == expected:
                return store
        try:
            if attempt < 2:
                build(path)
        except PermissionError as error:
            raise InputError("not writable, choose another folder for token stores with --cache_dir", path=path.parent) from error
    raise InputError("another process keeps replacing this token store; give each process its own --cache_dir", path=path)
