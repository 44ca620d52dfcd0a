"""Sentences without labels, one a line, from text files of any size: read from disk in blocks, never all in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from common.errors import InputError
from tokens.lines import decode
from tokens.tables import GZIP, ZIP, ZSTD

BLOCK = 256  # lines that are read together
POOL = 32  # blocks that are shuffled together


class SentenceFiles:
    """The sentences of text files; blank lines are skipped.

    Attributes:
        identity: a hash of the sentences.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """Find where each block of lines begins, and check that the files can be read.

        Raises:
            InputError: if a file is missing, not UTF-8, or none of them has a sentence.
        """
        self._blocks: list[tuple[Path, int, int]] = []  # file, first byte, its first line's number
        self._counts: list[int] = []
        contents = hashlib.blake2b(digest_size=16)
        for path in map(Path, paths):
            if not path.is_file():
                raise InputError("no such file, expected a text file with one sentence a line", path=path)
            place = count = 0
            with path.open("rb") as file:
                magic = file.read(4)
                if magic.startswith(GZIP) or magic in (ZSTD, ZIP):
                    raise InputError("is compressed, expected a text file with one sentence a line; unpack it first", path=path)
                file.seek(0)
                for number, line in enumerate(file, start=1):
                    if (number - 1) % BLOCK == 0:
                        self._blocks.append((path, place, number))
                        self._counts.append(0)
                    if sentence := _sentence(line, path, number):
                        contents.update(f"{sentence}\n".encode())
                        self._counts[-1] += 1
                    count += 1
                    place += len(line)
        self.identity = contents.hexdigest()
        self._starts = np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64)
        if not len(self):
            raise InputError("no sentences, expected one a line", path=paths[0])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[str]:
        """The sentences in the order of the files."""
        for block in range(len(self._blocks)):
            yield from self._read(block)

    def shuffled(self, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, list[str]]]:
        """Yield the sentences and their numbers, each once, in random order: pools of some thousand, blocks of lines mixed.

        It draws from `rng` once, so that a pool follows from the number of those before it.
        """
        order = rng.permutation(len(self._blocks))
        for start in range(0, len(order), POOL):
            blocks = order[start : start + POOL]
            sentences = [sentence for block in blocks for sentence in self._read(block)]
            if not sentences:  # blank lines only
                continue
            yield np.concatenate([np.arange(self._starts[block], self._starts[block + 1]) for block in blocks]), sentences

    def _read(self, block: int) -> list[str]:
        path, place, number = self._blocks[block]
        with path.open("rb") as file:
            file.seek(place)
            lines = [file.readline() for _ in range(BLOCK)]
        sentences = [_sentence(line, path, number + i) for i, line in enumerate(lines)]
        return [sentence for sentence in sentences if sentence]


def sample(sentences: Iterable[str], count: int, most: int) -> tuple[np.ndarray, list[str]]:
    """The numbers, in order, of up to `most` of the first `count` sentences, always the same random ones, and these sentences."""
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:most])
    wanted = set(chosen.tolist())
    return chosen, [sentence for i, sentence in enumerate(sentences) if i in wanted]


def _sentence(line: bytes, path: Path, number: int) -> str:
    """The sentence in a line without the space around it; empty if the line is blank."""
    return decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, path, number).strip()
