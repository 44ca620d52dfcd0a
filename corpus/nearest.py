"""The sentences of an encoded corpus nearest to a question, and groups of sentences that are nearly the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import write_atomically
from common.optional import import_optional
from common.progress import Progress
from corpus.encoding import identity_of_model, load_model
from corpus.index import CorpusFolder
from text import Match, TextEncoder

EXACT_UP_TO = 1_000_000  # rows
MEMORY = 1 << 29  # bytes of vectors that are kept
BLOCK = 1024  # rows that are compared with a part at once
PAIRS = 1 << 20  # that are joined to groups at once
ROUNDING = 1e-6  # of the cosine of equal vectors
METHODS = ("auto", "exact", "faiss")


@dataclass(frozen=True)
class CorpusMatch(Match):
    """A sentence of a corpus: its number, its cosine with the query, its text if that was kept, and its id."""

    id: str | int


class Corpus:
    """An encoded corpus that is searched."""

    def __init__(self, path: str | Path, *, model: str | None = None, method: str = "auto") -> None:
        """Open the folder that encode.py wrote.

        Args:
            path: the folder.
            model: the model that encoded it, if it is no longer where it was.
            method: exact compares with every vector; faiss with those of the nearest of many cells; auto is exact below a
                million rows.

        Raises:
            InputError: if the folder is damaged or not finished, or faiss is wanted and not installed.
        """
        self.folder = CorpusFolder.open(path)
        self._model = model or self.folder.plan.model
        self._encoder: TextEncoder | None = None
        plan = self.folder.plan
        if missing := plan.parts - len(self.folder.present()):
            raise InputError(f"{missing} of {plan.parts} parts are missing; run encode.py again", path=path)
        use_faiss = method == "faiss" or (method == "auto" and plan.rows > EXACT_UP_TO)
        self._index = _open_faiss(self.folder) if use_faiss else None
        self._vectors = lru_cache(max(1, MEMORY // (4 * plan.width * plan.part_rows)))(self.folder.vectors)

    def __len__(self) -> int:
        return self.folder.plan.rows

    @property
    def encoder(self) -> TextEncoder:
        """The model that encoded the corpus.

        Raises:
            InputError: if it is another now.
        """
        if self._encoder is None:
            plan = self.folder.plan
            if identity_of_model(self._model, plan.backbone) != plan.model_identity:
                raise InputError("is not the model that encoded this corpus; give that one as --model", path=self._model)
            self._encoder = load_model(self._model, plan.backbone)
        return self._encoder

    def search(self, query: str, top_k: int = 10) -> list[CorpusMatch]:
        """The sentences with the highest cosine with a query, best first."""
        return self.search_all([query], top_k)[0]

    def search_all(self, queries: Sequence[str], top_k: int = 10) -> list[list[CorpusMatch]]:
        """The same for several queries at once, which takes little longer than one."""
        cosines, numbers = self.nearest(self.encoder.encode(list(queries)), top_k)
        texts = self.rows(np.unique(numbers[numbers >= 0]).tolist())  # faiss gives -1 where its cells hold too few
        return [
            [
                CorpusMatch(number, cosine, texts[number][1], texts[number][0])
                for cosine, number in zip(*own, strict=True)
                if number >= 0
            ]
            for own in zip(cosines.tolist(), numbers.tolist(), strict=True)
        ]

    def nearest(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and row numbers, both `(q, top_k)` or as many as there are, of the vectors nearest to queries `(q, K)`."""
        if top_k < 1:
            raise InputError(f"top_k is {top_k}, expected 1 or more")
        if self._index is not None:
            cosines, numbers = self._index.search(queries, min(top_k, len(self)))
            return self._as_cosines(cosines), numbers
        best, numbers = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for first, vectors in self._parts():
            cosines = queries @ vectors.T
            if best.shape[1] < top_k:
                best, numbers = _best_of(best, numbers, cosines, first, top_k)
            elif len(better := np.flatnonzero(cosines.max(axis=1) > best[:, -1])):  # few: most parts hold none of a query's nearest
                best[better], numbers[better] = _best_of(best[better], numbers[better], cosines[better], first, top_k)
        return self._as_cosines(best), numbers

    def _as_cosines(self, products: np.ndarray) -> np.ndarray:
        """Products of queries and stored vectors, as the cosines they stand for.

        Those with signs alone are smaller by `sqrt(2 / pi)`, as the mean of |x| is beside the deviation of a normal x.
        """
        return products if self.folder.plan.precision != "bits" else (products * np.sqrt(np.pi / 2)).clip(-1, 1)

    def _parts(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """The row number of the first vector and the vectors of each part."""
        for number in range(start, self.folder.plan.parts):
            yield number * self.folder.plan.part_rows, self._vectors(number)

    def rows(self, numbers: Sequence[int]) -> dict[int, tuple[str | int, str]]:
        """The ids and texts, empty if they were not kept, of rows by their numbers."""
        size, found = self.folder.plan.part_rows, {}
        for part, own in groupby(sorted(numbers), key=lambda number: number // size):
            ids, texts = self.folder.rows(part)
            for number in own:
                found[number] = ids[number % size], texts[number % size] if texts else ""
        return found

    def duplicates(self, threshold: float) -> list[list[int]]:
        """Groups of sentences nearly the same: row numbers, largest group first.

        Two sentences are in one group if their cosine is at least the threshold, or others between them link them so. Compares
        all with all: the time grows with the square of the rows.

        Raises:
            InputError: if the threshold is not above 0 and at most 1.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not 0 < threshold <= 1:
            raise InputError(f"--duplicates is {threshold}, expected a cosine above 0, at most 1")
        threshold -= ROUNDING
        if self.folder.plan.precision == "bits":  # the angle of two sentences is pi times the share of signs that differ
            threshold = 1 - 2 * np.arccos(threshold) / np.pi
        group, size = np.arange(len(self)), self.folder.plan.part_rows
        linked, waiting = [np.empty((2, 0), np.int64)], 0  # pairs that are not joined yet, and how many

        def join() -> None:
            nonlocal group, waiting
            first, second = group[np.concatenate(linked, axis=1)]
            graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(group), len(group)))
            group = connected_components(graph, directed=False)[1][group]
            linked[1:], waiting = [], 0

        with Progress(total=len(self), unit="sentence", unit_scale=True, desc="comparing") as bar:
            for first, vectors in self._parts():
                for begin in range(0, len(vectors), BLOCK):
                    block = vectors[begin : begin + BLOCK]
                    for other, others in self._parts(first // size):
                        pairs = np.stack(np.nonzero(block @ others.T >= threshold)) + np.array([[first + begin], [other]])
                        pairs = pairs[:, pairs[0] < pairs[1]]
                        if pairs.size:
                            linked.append(pairs)
                            waiting += pairs.shape[1]
                        if waiting > PAIRS:
                            join()
                    bar.update(len(block))
        join()
        order = np.argsort(group, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
        return sorted((own.tolist() for own in groups if len(own) > 1), key=lambda own: (-len(own), own[0]))


def _best_of(best: np.ndarray, numbers: np.ndarray, cosines: np.ndarray, first: int, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The highest cosines and their row numbers, of those so far and of a part whose first row is `first`."""
    k = min(top_k, cosines.shape[1])
    found = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
    best = np.concatenate([best, np.take_along_axis(cosines, found, axis=1)], axis=1)
    numbers = np.concatenate([numbers, found + first], axis=1)
    order = np.lexsort((numbers, -best), axis=1)[:, :top_k]
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(numbers, order, axis=1)


def _open_faiss(folder: CorpusFolder) -> Any:
    """An index of cells with one byte per dimension, made once and kept in the folder; again if it is damaged."""
    faiss = import_optional("faiss", "faiss is not installed: pip install faiss-cpu, or search with --method exact")
    plan, path = folder.plan, folder.path / "corpus.faiss"
    index: Any
    with suppress(RuntimeError):  # it is damaged
        if path.exists() and (index := faiss.read_index(str(path))).ntotal == plan.rows:
            return index
    cells = max(1, min(int(4 * plan.rows**0.5), plan.rows // 39))  # faiss wants at least 39 rows to learn a cell from
    index = faiss.index_factory(plan.width, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.nprobe = max(32, cells // 16)
    wanted = min(plan.rows, 64 * cells)
    share = -(-plan.parts * wanted // plan.rows)  # parts that are learned from, evenly spread
    index.train(np.concatenate([folder.vectors(number) for number in range(0, plan.parts, max(1, plan.parts // share))]))
    for number in Progress(range(plan.parts), unit="part", desc="index"):
        index.add(folder.vectors(number))
    with write_atomically(path) as file:
        file.write(faiss.serialize_index(index).tobytes())
    return index
