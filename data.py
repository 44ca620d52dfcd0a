"""Sentence pairs with labels, from any source, as padded batches of token embeddings.

The way of the data:

    .dat files ──> token store ──> PairData ──> split by groups ──> padded batches (B, T, D)
    text pairs ────────┘
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dat_files import TOKEN_DIM, find_dat_files, read_label_file, read_token_files, write_dat_files
from errors import InputError
from sampling import batches_without_duplicates, random_batches
from text_files import TextPairs, is_text, read_text_pairs
from text_store import text_store
from token_store import TokenStore, open_store, unpack_json


@dataclass(frozen=True)
class Lessons:
    """What a teacher says of n pairs and of m sentences without label; see lessons.py.

    Attributes:
        pairs: `(n, 2, G)`, unit length, the teacher's vectors of the first and second sentences.
        unlabelled: `(m,)`, sentence numbers.
        vectors: `(m, G)`, unit length, the teacher's vectors of these.
    """

    pairs: np.ndarray
    unlabelled: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True)
class PairData:
    """n sentence pairs over a token store.

    Attributes:
        tokens: the token embeddings of all sentences.
        first: `(n,)`, the sentence number of each pair's first sentence.
        second: `(n,)`, the same for the second.
        labels: `(n,)`, float32, similarity 0-5.
        sentences: the text of each sentence in `tokens`, where it is known.
        lessons: what a teacher says of them, where there is one.
        negatives: `(n, N)`, sentence numbers of mined negatives of each pair, where there are some.
    """

    tokens: TokenStore
    first: np.ndarray
    second: np.ndarray
    labels: np.ndarray
    sentences: Sequence[str] | None = None
    lessons: Lessons | None = None
    negatives: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> PairData:
        """Only the pairs `rows` (numbers or a mask)."""
        lessons = None if self.lessons is None else replace(self.lessons, pairs=self.lessons.pairs[rows])
        negatives = None if self.negatives is None else self.negatives[rows]
        first, second, labels = self.first[rows], self.second[rows], self.labels[rows]
        return replace(self, first=first, second=second, labels=labels, lessons=lessons, negatives=negatives)

    def identity(self) -> str:
        """A hash of all that training sees of them; the same data have the same, whatever file they come from."""
        digests = self.tokens.digests
        arrays = [digests[self.first], digests[self.second], self.labels]
        if self.negatives is not None:
            arrays.append(digests[self.negatives])
        if self.lessons is not None:
            arrays += [self.lessons.pairs, digests[self.lessons.unlabelled], self.lessons.vectors]
        identity = hashlib.blake2b(digest_size=16)
        for array in arrays:
            identity.update(np.ascontiguousarray(array).data)
        return identity.hexdigest()

    def text(self) -> TextPairs:
        """The pairs as text.

        Raises:
            InputError: where the text is not known.
        """
        if self.sentences is None:
            raise InputError(
                "the text of these sentences is not known: there was no file of sentences; give it too, or text (.csv, .tsv)"
            )
        first, second = ([self.sentences[i] for i in side] for side in (self.first, self.second))
        return TextPairs(first, second, self.labels)


def open_pairs(
    paths: Sequence[str | os.PathLike[str]],
    *,
    dim: int | None = TOKEN_DIM,
    cache_dir: str | os.PathLike[str] | None = None,
) -> PairData:
    """Open sentence pairs.

    Args:
        paths: one `.store` file made by prepare_data.py; or one file of text pairs, `.csv` or `.tsv`, which the
            default backbone encodes; or a folder with the challenge's `.dat` files; or the paths of these files.
        dim: the width of token embeddings in `.dat` files; None accepts any.
        cache_dir: where to keep the token stores made on the way, instead of beside the files.

    Raises:
        InputError: where something is missing, damaged or contradictory.
    """
    path = Path(paths[0])
    if len(paths) > 1 or path.is_dir():
        return open_dat_pairs(paths, dim=dim, cache_dir=cache_dir)
    if is_text(path):
        store = text_store(path, store_path=Path(cache_dir) / f"{path.name}.store" if cache_dir else None)
    else:
        store = open_store(path)
    try:
        sentences = unpack_json(store.extra["sentences"])
        return PairData(store, store.extra["first"], store.extra["second"], store.extra["labels"], sentences)
    except KeyError as error:
        raise InputError(
            f"this token store holds no pairs ({error} is missing); prepare_data.py makes one that does", path=path
        ) from error


def open_dat_pairs(
    paths: Sequence[str | os.PathLike[str]],
    *,
    dim: int | None = TOKEN_DIM,
    cache_dir: str | os.PathLike[str] | None = None,
) -> PairData:
    """Open the challenge's four files; see `dat_files.find_dat_files` for how they are told apart.

    Raises:
        InputError: also where the files differ in length, or two files give different labels to a pair.
    """
    files = find_dat_files(paths)
    text = read_text_pairs(files.sentences) if files.sentences else None
    labels = text.labels if text else None
    if files.labels:
        stated = read_label_file(files.labels, known=labels)
        if text:
            _same_length(files.labels, len(stated), files.sentences, len(text))
        if labels is not None and not np.array_equal(stated, labels):
            row = int(np.argmax(stated != labels))
            raise InputError(
                f"label {stated[row]:g}, but {files.sentences} says {labels[row]:g} for the same pair; mend one of them",
                path=files.labels,
                line=row + 1,
            )
        labels = stated
    assert labels is not None
    first, second = read_token_files([files.first, files.second], dim=dim, cache_dir=cache_dir)
    for path, store in ((files.first, first), (files.second, second)):
        _same_length(path, len(store), files.labels or files.sentences, len(labels))
    if first.dim != second.dim:
        raise InputError(
            f"dim is {second.dim}, expected {first.dim} as in {files.first}; both must come from the same backbone and layers",
            path=files.second,
        )
    numbers = np.arange(len(labels))
    sentences = text.first + text.second if text else None
    return PairData(first.followed_by(second), numbers, numbers + len(labels), labels, sentences)


def _same_length(path: Path, rows: int, other: Path | None, expected: int) -> None:
    if rows != expected:
        raise InputError(f"{rows} rows, expected {expected} as in {other}: row i of each file is the same pair", path=path)


def write_dat_pairs(folder: str | os.PathLike[str], pairs: PairData) -> None:
    """Write pairs whose text is known as the challenge's four files."""
    first, second = ((pairs.tokens.sentence(i) for i in side) for side in (pairs.first, pairs.second))
    write_dat_files(folder, pairs.text(), first, second)


def split_by_groups(pairs: PairData, fraction: float, seed: int) -> tuple[PairData, PairData]:
    """Split into training and validation pairs so that no sentence is in both.

    Pairs that share a sentence, directly or through others, form a group and stay together. Sentences are the same
    where their tokens are the same.

    Args:
        pairs: the pairs to split.
        fraction: the part of them to validate on, above 0 and below 1; groups make it approximate.
        seed: chooses the groups.

    Raises:
        InputError: where the pairs hang together so closely that they cannot be split.
    """
    from sklearn.model_selection import GroupKFold  # here, because importing it takes every command a second

    groups = sentence_groups(pairs)
    n_groups = int(groups.max()) + 1
    if n_groups < max(2, round(1 / fraction)):
        raise InputError(
            f"cannot set {fraction:.0%} of {len(pairs)} pairs apart: through shared sentences they form only {n_groups} "
            "groups; give validation pairs of their own with --validation"
        )
    # GroupKFold balances the parts and breaks ties by group number: numbering the groups at random makes it random.
    numbers = np.random.default_rng(seed).permutation(n_groups)[groups]
    most = min(n_groups, max(100, round(1 / fraction)))  # parts
    share = min(Fraction(fraction).limit_denominator(most), Fraction(most - 1, most))  # 0.3 are three parts of ten
    parts = islice(GroupKFold(share.denominator).split(numbers, groups=numbers), share.numerator)
    in_validation = np.zeros(len(pairs), bool)
    in_validation[np.concatenate([part for _, part in parts])] = True
    return pairs.select(np.flatnonzero(~in_validation)), pairs.select(np.flatnonzero(in_validation))


def sentence_groups(pairs: PairData) -> np.ndarray:
    """The group number `(n,)` of each pair: connected components of pairs that share sentences."""
    _, same = np.unique(pairs.tokens.digests, return_inverse=True)
    first, second = same[pairs.first], same[pairs.second]
    n = len(same)
    _, component = connected_components(coo_array((np.ones(len(pairs)), (first, second)), shape=(n, n)), directed=False)
    return np.unique(component[first], return_inverse=True)[1]


@dataclass(frozen=True)
class PairBatch:
    """B pairs with N negatives each and U pairs of sentences without label, padded in buckets of similar length.

    Attributes:
        buckets: token embeddings `(b, T, D)` and lengths `(b,)`, all buckets together 2 (B + U) + B N sentences; T differs
            from one to the next. Of several processes each has the buckets of its share.
        position: `(2 (B + U) + B N,)`, where in the buckets, process after process, the first sentence of each pair is, then
            the second of each, those without label last on each side; then the negatives, pair after pair.
        labels: `(B,)`, 0-5.
        n_negatives: N.
        teacher: `(2 (B + U), G)`, a teacher's vectors in the order of `position`, where there is one.
    """

    buckets: list[tuple[torch.Tensor, torch.Tensor]]
    position: torch.Tensor
    labels: torch.Tensor
    n_negatives: int = 0
    teacher: torch.Tensor | None = None


def training_batches(
    pairs: PairData,
    batch_size: int,
    rng: np.random.Generator,
    *,
    buckets: int = 4,
    bucket_size: int | None = None,
    unlabelled: int = 0,
    without_duplicates: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[PairBatch]:
    """All pairs once, in random order.

    Which pairs meet in a batch is left to chance: batches of one length would compare news with news and captions with
    captions only. Padding is saved within the batch instead.

    Args:
        pairs: the training pairs.
        batch_size: pairs in a batch, B.
        rng: source of the order.
        buckets: how many buckets a batch is padded in,
        bucket_size: and how many sentences a bucket may have; more buckets are made for that.
        unlabelled: pairs of sentences without label beside them, U, drawn at random from the lessons, fewer where there are
            not so many.
        without_duplicates: no sentence belongs to two pairs of a batch.
        share: which process this is, and of how many: each pads as many of the sentences, as long ones as the others.
    """
    rank, n_processes = share
    if without_duplicates:
        sentences = [pairs.first[:, None], pairs.second[:, None]] + ([] if pairs.negatives is None else [pairs.negatives])
        batches = batches_without_duplicates(pairs.tokens.digests[np.concatenate(sentences, axis=1)], batch_size, rng)
    else:
        batches = random_batches(len(pairs), batch_size, rng)
    for rows in batches:
        sides, teacher, negatives = np.stack([pairs.first[rows], pairs.second[rows]]), None, np.empty((len(rows), 0), np.int64)
        if pairs.lessons is not None:
            available = len(pairs.lessons.unlabelled)
            drawn = rng.choice(available, (2, min(unlabelled, available // 2)), replace=False)
            sides = np.concatenate([sides, pairs.lessons.unlabelled[drawn]], axis=1)
            vectors = np.concatenate([pairs.lessons.pairs[rows].swapaxes(0, 1), pairs.lessons.vectors[drawn]], axis=1)
            teacher = torch.from_numpy(np.concatenate([*vectors]))
        if pairs.negatives is not None:
            negatives = pairs.negatives[rows]
        everything = np.concatenate([sides.ravel(), negatives.ravel()])
        by_length = np.argsort(pairs.tokens.lengths[everything], kind="stable")
        shares = [by_length[process::n_processes] for process in range(n_processes)]
        position = np.empty_like(by_length)
        position[np.concatenate(shares)] = np.arange(len(by_length))
        own = shares[rank]
        n_buckets = max(buckets, -(-len(own) // bucket_size) if bucket_size else 0)
        parts = [part for part in np.array_split(own, n_buckets) if len(part)] or [own]  # a small batch may leave a process none
        yield PairBatch(
            buckets=[pairs.tokens.padded(everything[part]) for part in parts],
            position=torch.from_numpy(position),
            labels=torch.from_numpy(pairs.labels[rows]),
            n_negatives=negatives.shape[1],
            teacher=teacher,
        )
