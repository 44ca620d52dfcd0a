"""Sentence pairs with labels, from any source, as padded batches of token embeddings.

.dat files ──> token store ──> PairData ──> split by groups ──> padded batches (B, T, D)
text pairs ────────┘
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from common.errors import InputError
from tokens.dat_files import TOKEN_DIM, read_dat_files, write_dat_files
from tokens.tables import is_saved_dataset
from tokens.text_pairs import ReadOptions, TextPairs, read_text_pairs
from tokens.text_store import default_store, text_store
from tokens.token_store import TokenStore, is_store, open_store, unpack_json

DATA = Path(__file__).parent / "data"
LEFT_OUT = 0.05  # of the pairs: too few to make small batches of them
TRIES = 100  # batches for each pair, the first and the last; more take long where a few sentences are in most pairs


@dataclass(frozen=True)
class TeacherTargets:
    """Teacher embeddings for n labelled pairs and m unlabelled sentences; see training/distillation.py.

    Attributes:
        pairs: `(n, 2, G)`, unit length, embeddings of the first and second sentences.
        unlabelled: `(m,)`, sentence numbers.
        embeddings: `(m, G)`, unit length, embeddings of the unlabelled sentences.
    """

    pairs: np.ndarray
    unlabelled: np.ndarray
    embeddings: np.ndarray


@dataclass(frozen=True)
class PairData:
    """n sentence pairs over a token store.

    Attributes:
        tokens: the token embeddings of all sentences.
        first: `(n,)`, the sentence number of each pair's first sentence.
        second: `(n,)`, the same for the second.
        labels: `(n,)`, float32, similarity 0-5.
        sentences: the text of each sentence in `tokens`, if known.
        targets: teacher embeddings, if there is a teacher.
        negatives: `(n, N)`, sentence numbers of each pair's hard negatives, if there are any.
        has_labels: whether the pairs have labels; without, every pair is a positive, labelled 5.
        skipped: bad rows that were left out in reading.
    """

    tokens: TokenStore
    first: np.ndarray
    second: np.ndarray
    labels: np.ndarray
    sentences: Sequence[str] | None = None
    targets: TeacherTargets | None = None
    negatives: np.ndarray | None = None
    has_labels: bool = True
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> PairData:
        """Only the pairs `rows`, numbers or a mask."""
        targets = None if self.targets is None else replace(self.targets, pairs=self.targets.pairs[rows])
        negatives = None if self.negatives is None else self.negatives[rows]
        first, second, labels = self.first[rows], self.second[rows], self.labels[rows]
        return replace(self, first=first, second=second, labels=labels, targets=targets, negatives=negatives)

    def identity(self) -> str:
        """A hash of everything training sees; the same data have the same hash, whichever file they come from."""
        digests = self.tokens.digests
        arrays = [digests[self.first], digests[self.second], self.labels]
        if self.negatives is not None:
            arrays.append(digests[self.negatives])
        if self.targets is not None:
            arrays += [self.targets.pairs, digests[self.targets.unlabelled], self.targets.embeddings]
        identity = hashlib.blake2b(digest_size=16)
        for array in arrays:
            identity.update(np.ascontiguousarray(array).data)
        return identity.hexdigest()

    def text(self) -> TextPairs:
        """The pairs as text.

        Raises:
            InputError: if the text is not known.
        """
        sides = self.sentences_of(self.first), self.sentences_of(self.second)
        return TextPairs(*sides, self.labels, has_labels=self.has_labels)

    def sentences_of(self, numbers: np.ndarray) -> list[str]:
        """The text of sentences by their numbers `(n,)`.

        Raises:
            InputError: if the text is not known.
        """
        if self.sentences is None:
            raise InputError("the text of these pairs is not known; add the file of sentences, or give text (.csv, .tsv)")
        return [self.sentences[i] for i in numbers]


def open_pairs(
    paths: Sequence[str | os.PathLike[str]],
    *,
    dim: int | None = TOKEN_DIM,
    options: ReadOptions | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> PairData:
    """Open sentence pairs; says on stderr how the labels of a table are read.

    Args:
        paths: one `.store` file made by prepare_data.py; or one table of text pairs (CSV, TSV, JSON lines, Parquet, a saved
            dataset, `hf:NAME`), which the default backbone encodes; or a folder with the challenge's `.dat` files; or the
            paths of these files.
        dim: the width of token embeddings in `.dat` files; None accepts any.
        options: how to read a table.
        cache_dir: where to keep the token stores made on the way; by default next to the files.

    Raises:
        InputError: if something is missing, damaged or contradictory.
    """
    source = paths[0]
    path = Path(source)
    if len(paths) > 1 or (path.is_dir() and not is_saved_dataset(path)):
        first_tokens, second_tokens, labels, text = read_dat_files(paths, dim=dim, cache_dir=cache_dir)
        numbers = np.arange(len(labels))
        sentences = text.first + text.second if text else None
        _say(path, _small_labels(labels))
        return PairData(first_tokens.followed_by(second_tokens), numbers, numbers + len(labels), labels, sentences)
    if path.is_file() and (path.suffix == ".store" or is_store(path)):
        store = open_store(path)
    else:
        store = text_store(source, options=options, store_path=Path(cache_dir) / f"{path.name}.store" if cache_dir else None)
    try:
        first, second, labels = (store.extra[name] for name in ("first", "second", "labels"))
        sentences = unpack_json(store.extra["sentences"])
    except KeyError as error:
        raise InputError(f"this token store holds no pairs ({error} is missing); prepare_data.py makes one", path=path) from error
    reading: dict[str, Any] = {"has_labels": True, "scale": "", "skipped": 0}
    if "reading" in store.extra:
        reading = unpack_json(store.extra["reading"])
    skipped = f"{reading['skipped']:,} bad rows left out" if reading["skipped"] else ""
    _say(path, reading["scale"] or (_small_labels(labels) if reading["has_labels"] else ""), skipped)
    return PairData(
        store,
        first,
        second,
        labels,
        sentences,
        negatives=store.extra.get("negatives"),
        has_labels=reading["has_labels"],
        skipped=reading["skipped"],
    )


def open_text(
    paths: Sequence[str | os.PathLike[str]],
    *,
    options: ReadOptions | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> TextPairs:
    """Open labelled sentence pairs as text; unlike `open_pairs` it encodes nothing.

    Args:
        paths: as in `open_pairs`.
        options: how to read a table.
        cache_dir: as in `open_pairs`, for `.dat` files.

    Raises:
        InputError: if something is missing, damaged or contradictory, the text is not known, or there are no labels.
    """
    path = Path(paths[0])
    if len(paths) > 1 or (path.is_dir() and not is_saved_dataset(path)) or (path.is_file() and is_store(path)):
        pairs = open_pairs(paths, options=options, cache_dir=cache_dir).text()
    else:
        pairs = read_text_pairs(paths[0], options or ReadOptions())
        _say(path, pairs.scale, f"{pairs.skipped:,} bad rows left out" if pairs.skipped else "")
    check_labelled(pairs, paths[0])
    return pairs


def check_labelled(pairs: PairData | TextPairs, path: str | os.PathLike[str]) -> None:
    """Raise InputError if pairs, opened from `path`, have no labels."""
    if not pairs.has_labels:
        raise InputError("the pairs have no labels, expected a column of similarities, such as score", path=path)


def store_folder(paths: Sequence[str | os.PathLike[str]], cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where token stores of these files go: `cache_dir` if given, else next to them, in their folder, or in `stores/`."""
    path = Path(paths[0])
    if cache_dir or (path.is_dir() and not is_saved_dataset(path)):
        return Path(cache_dir or path)
    return default_store(paths[0]).parent


def _small_labels(labels: np.ndarray) -> str:
    """A note about labels of stores and .dat files, 0-5 always, that look like 0-1."""
    return f"labels are read as 0 to 5, and the largest is {labels.max():g}" if labels.max(initial=0) <= 1 else ""


def _say(path: Path, *notes: str) -> None:
    if said := "; ".join(note for note in notes if note):
        tqdm.write(f"{path.name}: {said}", file=sys.stderr)


def write_dat_pairs(folder: str | os.PathLike[str], pairs: PairData) -> None:
    """Write pairs whose text is known as the challenge's four files."""
    first, second = ((pairs.tokens.sentence(i) for i in side) for side in (pairs.first, pairs.second))
    write_dat_files(folder, pairs.text(), first, second)


def split_by_groups(pairs: PairData, fraction: float, seed: int) -> tuple[PairData, PairData]:
    """Split into training and validation pairs that share no sentence.

    Pairs that share a sentence, directly or through others, form a group and stay together. Sentences with the same
    tokens are the same sentence.

    Args:
        pairs: the pairs to split.
        fraction: the part to validate on, above 0 and below 1; approximate, because groups stay together.
        seed: chooses the groups.

    Raises:
        InputError: if there are too few pairs, or they share too many sentences to be split.
    """
    from sklearn.model_selection import GroupKFold  # here, because the import costs every command a second

    n_parts = max(2, round(1 / fraction))
    if len(pairs) < n_parts:
        raise InputError(
            f"too few pairs ({len(pairs)}), expected at least {n_parts} to set aside {fraction:.0%} of them; give more"
        )
    groups = sentence_groups(pairs)
    n_groups = int(groups.max()) + 1
    if n_groups < n_parts:
        raise InputError(
            f"cannot set aside {fraction:.0%} of {len(pairs)} pairs: they share too many sentences and form only {n_groups} "
            "groups; give more pairs"
        )
    # GroupKFold balances the parts and breaks ties by group number: numbering the groups at random makes it random.
    numbers = np.random.default_rng(seed).permutation(n_groups)[groups]
    most_parts = min(n_groups, max(100, round(1 / fraction)))
    share = min(Fraction(fraction).limit_denominator(most_parts), Fraction(most_parts - 1, most_parts))  # 0.3: 3 of 10 parts
    parts = islice(GroupKFold(share.denominator).split(numbers, groups=numbers), share.numerator)
    in_validation = np.zeros(len(pairs), bool)
    in_validation[np.concatenate([part for _, part in parts])] = True
    return pairs.select(np.flatnonzero(~in_validation)), pairs.select(np.flatnonzero(in_validation))


def count_shared(pairs: PairData, others: PairData) -> int:
    """How many of the pairs are among others as well, in either order; by their text where it is known, else by their tokens.

    Tokens of one sentence may differ between stores in the last bits.
    """
    if pairs.sentences is not None and others.sentences is not None:
        return pairs.text().count_shared(others.text())

    def keys(part: PairData) -> Iterator[frozenset[Any]]:
        tokens = part.tokens.digests.tolist()
        return (frozenset((tokens[a], tokens[b])) for a, b in zip(part.first.tolist(), part.second.tolist(), strict=True))

    known = set(keys(others))
    return sum(key in known for key in keys(pairs))


def sentence_groups(pairs: PairData) -> np.ndarray:
    """The group number `(n,)` of each pair: connected components of pairs that share sentences."""
    _, same = np.unique(pairs.tokens.digests, return_inverse=True)
    first, second = same[pairs.first], same[pairs.second]
    n = len(same)
    _, component = connected_components(coo_array((np.ones(len(pairs)), (first, second)), shape=(n, n)), directed=False)
    _, pair, group = np.unique(component[first], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(pair))[group]  # numbered by their first pairs: hashes differ with a processor's rounding


@dataclass(frozen=True)
class PairBatch:
    """B labelled pairs with N negatives each and U unlabelled pairs, padded in buckets of similar length.

    Attributes:
        buckets: token embeddings `(b, T, D)` and lengths `(b,)`, with its own T per bucket; 2 (B + U) + B N sentences in
            total. With several processes, each has the buckets of its own share.
        position: `(2 (B + U) + B N,)`, where in the buckets, process after process, to find the first sentence of each
            pair, then the second of each, unlabelled ones last on each side; then the negatives, pair after pair.
        labels: `(B,)`, 0-5.
        n_negatives: N.
        teacher: `(2 (B + U), G)`, teacher embeddings in the order of `position`, if there is a teacher.
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
    """All pairs once, in random order, but those that `batches_of_pairs` leaves out.

    Pairs meet at random: batches of one length would compare news with news and captions with captions only. Padding is
    saved within the batch instead.

    Args:
        pairs: the training pairs.
        batch_size: pairs per batch, B.
        rng: source of the order.
        buckets: number of buckets per batch.
        bucket_size: most sentences per bucket; adds buckets as needed.
        unlabelled: unlabelled pairs per batch, U, drawn at random from the teacher's sentences; fewer if there are fewer.
        without_duplicates: see `batches_without_duplicates`.
        share: this process's rank and the number of processes; each pads its share of every batch.
    """
    rank, n_processes = share
    for rows in batches_of_pairs(pairs, batch_size, rng, without_duplicates=without_duplicates):
        sides, teacher, negatives = np.stack([pairs.first[rows], pairs.second[rows]]), None, np.empty((len(rows), 0), np.int64)
        if pairs.targets is not None:
            available = len(pairs.targets.unlabelled)
            drawn = rng.choice(available, (2, min(unlabelled, available // 2)), replace=False)
            sides = np.concatenate([sides, pairs.targets.unlabelled[drawn]], axis=1)
            embeddings = np.concatenate([pairs.targets.pairs[rows].swapaxes(0, 1), pairs.targets.embeddings[drawn]], axis=1)
            teacher = torch.from_numpy(np.concatenate([*embeddings]))
        if pairs.negatives is not None:
            negatives = pairs.negatives[rows]
        everything = np.concatenate([sides.ravel(), negatives.ravel()])
        by_length = np.argsort(pairs.tokens.lengths[everything], kind="stable")
        shares = [by_length[process::n_processes] for process in range(n_processes)]
        position = np.empty_like(by_length)
        position[np.concatenate(shares)] = np.arange(len(by_length))
        own = shares[rank]
        n_buckets = max(buckets, -(-len(own) // bucket_size) if bucket_size else 0)
        parts = [part for part in np.array_split(own, n_buckets) if len(part)] or [own]  # a small batch may leave a share empty
        yield PairBatch(
            buckets=[pairs.tokens.padded(everything[part]) for part in parts],
            position=torch.from_numpy(position),
            labels=torch.from_numpy(pairs.labels[rows]),
            n_negatives=negatives.shape[1],
            teacher=teacher,
        )


def batches_of_pairs(
    pairs: PairData, batch_size: int, rng: np.random.Generator, *, without_duplicates: bool = False
) -> list[np.ndarray]:
    """The pair numbers of each batch of a pass over pairs, by `random_batches` or `batches_without_duplicates`."""
    if not without_duplicates:
        return random_batches(len(pairs), batch_size, rng)
    sentences = [pairs.first[:, None], pairs.second[:, None]] + ([] if pairs.negatives is None else [pairs.negatives])
    return batches_without_duplicates(pairs.tokens.digests[np.concatenate(sentences, axis=1)], batch_size, rng)


def count_batches(n: int, batch_size: int) -> int:
    """Batches in a pass over n pairs; a single pair at the end is left out, because losses compare the pairs of a batch."""
    whole, rest = divmod(n, batch_size)
    return whole + (rest > 1)


def random_batches(n: int, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """All n pairs once, in random order: the pair numbers of each batch."""
    order = rng.permutation(n)
    return [order[i * batch_size : (i + 1) * batch_size] for i in range(count_batches(n, batch_size))]


def batches_without_duplicates(sentences: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Like `random_batches`, but no sentence belongs to two pairs of a batch.

    A sentence that is one pair's positive and another's negative would be pulled and pushed at once. Each pair joins the
    first batch with room and none of its sentences. A few that fit nowhere are left out of this pass; where sentences repeat
    often, they get further batches, which are smaller.

    Args:
        sentences: `(n, s)`, the s sentences of each pair; equal numbers are equal sentences.
        batch_size: pairs per batch.
        rng: source of the order.
    """
    batches: list[list[int]] = []
    taken: list[set[int]] = []
    first_open, first_open_to = 0, dict[int, int]()  # batches before these are full, or full or with that sentence
    rows = sentences.tolist()
    for pair in rng.permutation(len(sentences)).tolist():
        begin = first_open
        for sentence in rows[pair]:
            number = max(first_open, first_open_to.get(sentence, 0))
            while number < len(batches) and (len(batches[number]) == batch_size or sentence in taken[number]):
                number += 1
            first_open_to[sentence] = number
            begin = max(begin, number)
        end = begin + TRIES
        for number in (*range(begin, min(end, len(batches))), *range(max(end, len(batches) - TRIES), len(batches))):
            if len(batches[number]) < batch_size and taken[number].isdisjoint(rows[pair]):
                break
        else:
            number = len(batches)
            batches.append([])
            taken.append(set())
        batches[number].append(pair)
        taken[number].update(rows[pair])
        while first_open < len(batches) and len(batches[first_open]) == batch_size:
            first_open += 1
    usual = count_batches(len(sentences), batch_size)
    if sum(map(len, batches[usual:])) <= LEFT_OUT * len(sentences):
        del batches[usual:]
    return [np.array(batch) for batch in batches if len(batch) > 1]
