"""Hard negatives: for each anchor the most similar documents that do not match it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import InputError
from data import PairData
from evaluation.checkpoint import load_encoder
from evaluation.encoding import check_fits, encode
from evaluation.metrics import triplet_accuracy
from model import SentenceEncoder, mean_pooling
from retrieval.scores import find_documents

BASELINE = "baseline"
NONE = -1  # instead of a document's number, where an anchor has no more negatives


@dataclass(frozen=True)
class Mining:
    """Which documents are taken as negatives.

    Attributes:
        num_negatives: negatives for each anchor.
        range_min: how many of the most similar candidates to skip: they may be matches nobody has labelled.
        range_max: how many of the most similar candidates to look at; by default as many as are needed.
        max_score: highest cosine of a negative.
        min_score: lowest cosine of a negative.
        absolute_margin: how far a negative's cosine must stay below that of the anchor's least similar positive.
        relative_margin: the same as a share of that positive's cosine.
        sampling_strategy: top, the most similar candidates, or random among them.
        seed: of the random choice.
    """

    num_negatives: int = 3
    range_min: int = 0
    range_max: int | None = None
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling_strategy: str = "top"
    seed: int = 0

    def check(self, n_documents: int) -> None:
        """Refuse settings that cannot give negatives.

        Raises:
            InputError: saying which.
        """
        if self.num_negatives < 1:
            raise InputError(f"num_negatives is {self.num_negatives}, expected 1 or more")
        if self.range_min < 0:
            raise InputError(f"range_min is {self.range_min}, expected 0 or more")
        if self.range_max is not None and self.range_max - self.range_min < self.num_negatives:
            raise InputError(
                f"num_negatives is {self.num_negatives}, but only {max(0, self.range_max - self.range_min)} candidates remain "
                f"between range_min {self.range_min} and range_max {self.range_max}"
            )
        if self.sampling_strategy not in ("top", "random"):
            raise InputError(f"sampling_strategy is {self.sampling_strategy!r}, expected top or random")
        if n_documents <= self.range_min + self.num_negatives:
            raise InputError(
                f"{n_documents} documents are too few for num_negatives {self.num_negatives} after range_min {self.range_min}"
            )

    def candidates(self, most_positives: int) -> int:
        """How many of the most similar documents to look at, positives not counted."""
        if self.range_max is not None:
            return self.range_max
        limits = (self.absolute_margin, self.relative_margin, self.max_score)
        spare = 10 if any(limit is not None for limit in limits) else 1  # because some will be skipped
        return self.range_min + spare * self.num_negatives + most_positives


@dataclass(frozen=True)
class Mined:
    """What mining found.

    Attributes:
        negatives: `(n, num_negatives)`, document numbers for each anchor, the most similar first; -1 where there are no more.
        scores: `(n, num_negatives)`, their cosines; -inf where there is none.
        positives: `(p,)`, the anchor's number of each positive.
        positive_scores: `(p,)`, the cosine of the two.
        skipped: how many candidates each limit has taken out.
    """

    negatives: np.ndarray
    scores: np.ndarray
    positives: np.ndarray
    positive_scores: np.ndarray
    skipped: dict[str, int]

    def report(self) -> str:
        """What was found, in a few lines."""
        found = self.scores[np.isfinite(self.scores)]
        without = int((self.negatives == NONE).all(1).sum())
        short = int((self.negatives == NONE).any(1).sum()) - without
        lines = [f"{len(found):,} negatives for {len(self.negatives):,} anchors"]
        if without or short:
            lines.append(f"anchors without negatives: {without:,}; with fewer than asked for: {short:,}")
        for name, scores in (("positives", self.positive_scores), ("negatives", found)):
            if len(scores):
                low, middle, high = np.percentile(scores, (5, 50, 95))
                lines.append(f"cosine of {name}: median {middle:.3f}, 90% between {low:.3f} and {high:.3f}")
        hardest = self.scores[self.positives, 0]
        ahead, far_ahead = (triplet_accuracy(self.positive_scores, hardest, margin) for margin in (0, 0.1))
        lines.append(f"positives ahead of the anchor's hardest negative: {ahead:.0%}, by more than 0.1: {far_ahead:.0%}")
        lines += [f"candidates skipped by {name}: {count:,}" for name, count in self.skipped.items() if count]
        return "\n".join(lines)


def mine_negatives(
    anchors: Tensor,
    documents: Tensor,
    positives: np.ndarray,
    mining: Mining,
    *,
    others: np.ndarray | None = None,
    anchor_chunk: int = 512,
    document_chunk: int = 16_384,
    faiss: bool = False,
) -> Mined:
    """For each anchor the most similar documents that are not its positives.

    The same negatives as sentence-transformers' `mine_hard_negatives` for the same vectors. Memory is bounded by the chunks.

    Args:
        anchors: `(n, K)`, unit length.
        documents: `(m, K)`, unit length, no two of the same sentence.
        positives: `(p, 2)`, numbers of an anchor and of a document that matches it; every anchor at least once.
        mining: which documents to take.
        others: `(q, 2)`, numbers of an anchor and of a document that is no candidate although it is no positive, such as itself.
        anchor_chunk: anchors compared at a time,
        document_chunk: and documents.
        faiss: search with faiss (exact, inner product) instead.

    Raises:
        InputError: where the settings cannot give negatives, or did not give a single one; where faiss is not installed.
    """
    mining.check(len(documents))
    n = len(anchors)
    excluded = positives if others is None else np.unique(np.concatenate([positives, others]), axis=0)
    excluded = excluded[np.argsort(excluded[:, 0], kind="stable")]
    starts = np.searchsorted(excluded[:, 0], np.arange(n + 1))
    most_excluded = int(np.diff(starts).max(initial=0))
    candidates = mining.candidates(most_excluded)
    wanted = min(candidates + most_excluded, len(documents))
    positive_scores = (anchors[positives[:, 0]] * documents[positives[:, 1]]).sum(1)
    least = torch.full((n,), torch.inf).scatter_reduce(0, torch.from_numpy(positives[:, 0]), positive_scores, "amin")
    rng = np.random.default_rng(mining.seed)
    skipped = dict.fromkeys(("absolute_margin", "relative_margin", "max_score", "min_score"), 0)
    numbers = np.full((n, mining.num_negatives), NONE, dtype=np.int64)
    scores = np.full((n, mining.num_negatives), -np.inf, dtype=np.float32)
    search = _faiss_search if faiss else _search
    for start, found, cosines in search(anchors, documents, wanted, anchor_chunk, document_chunk):
        rows = slice(start, start + len(found))
        for row, (begin, end) in enumerate(zip(starts[rows], starts[start + 1 : start + len(found) + 1], strict=True)):
            cosines[row][torch.isin(found[row], torch.from_numpy(excluded[begin:end, 1]))] = -torch.inf
        _apply_limits(mining, cosines, least[rows, None], skipped)
        cosines, order = cosines.sort(dim=1, descending=True, stable=True)
        window = slice(mining.range_min, candidates)
        ranked, ranked_scores = found.gather(1, order)[:, window].numpy(), cosines[:, window].numpy()
        for row in range(len(ranked)):
            there = np.flatnonzero(np.isfinite(ranked_scores[row]))
            if mining.sampling_strategy == "random" and len(there) > mining.num_negatives:
                there = np.sort(rng.choice(there, mining.num_negatives, replace=False))
            there = there[: mining.num_negatives]
            numbers[start + row, : len(there)] = ranked[row, there]
            scores[start + row, : len(there)] = ranked_scores[row, there]
    if (numbers == NONE).all():
        reasons = ", ".join(f"{name} {getattr(mining, name)} skipped {count}" for name, count in skipped.items() if count)
        raise InputError(f"no negatives: {reasons or 'no document is left beside the positives'}; loosen it")
    return Mined(numbers, scores, positives[:, 0], positive_scores.numpy(), skipped)


def _apply_limits(mining: Mining, cosines: Tensor, least_positive: Tensor, skipped: dict[str, int]) -> None:
    """Take out candidates beyond the limits, in place; `least_positive` `(n, 1)`."""
    limits: dict[str, Tensor | None] = dict.fromkeys(skipped)
    if mining.absolute_margin is not None:
        limits["absolute_margin"] = cosines + mining.absolute_margin > least_positive
    if mining.relative_margin is not None:
        limits["relative_margin"] = cosines > least_positive - least_positive.abs() * mining.relative_margin
    if mining.max_score is not None:
        limits["max_score"] = cosines > mining.max_score
    if mining.min_score is not None:
        limits["min_score"] = cosines < mining.min_score
    for name, beyond in limits.items():
        if beyond is not None:
            beyond &= cosines.isfinite()
            skipped[name] += int(beyond.sum())
            cosines[beyond] = -torch.inf


def _search(
    anchors: Tensor, documents: Tensor, wanted: int, anchor_chunk: int, document_chunk: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each chunk of anchors its start, the numbers `(a, wanted)` of the most similar documents, and their cosines."""
    with tqdm(total=len(anchors), unit="anchor", desc="mining", disable=None) as bar:
        for start in range(0, len(anchors), anchor_chunk):
            part = anchors[start : start + anchor_chunk]
            best = torch.empty(len(part), 0)
            numbers = torch.empty(len(part), 0, dtype=torch.int64)
            for begin in range(0, len(documents), document_chunk):
                cosines = part @ documents[begin : begin + document_chunk].T
                cosines, found = cosines.topk(min(wanted, cosines.shape[1]), dim=1)
                best, order = torch.cat([best, cosines], dim=1).topk(min(wanted, best.shape[1] + cosines.shape[1]), dim=1)
                numbers = torch.cat([numbers, found + begin], dim=1).gather(1, order)
            yield start, numbers, best
            bar.update(len(part))


def _faiss_search(
    anchors: Tensor, documents: Tensor, wanted: int, anchor_chunk: int, document_chunk: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    try:
        import faiss
    except ImportError as error:
        raise InputError("faiss is not installed: pip install faiss-cpu; or mine without it") from error
    index = faiss.IndexFlatIP(documents.shape[1])
    for part in documents.split(document_chunk):
        index.add(part.numpy())
    with tqdm(total=len(anchors), unit="anchor", desc="mining", disable=None) as bar:
        for start in range(0, len(anchors), anchor_chunk):
            cosines, numbers = index.search(anchors[start : start + anchor_chunk].numpy(), wanted)
            yield start, torch.from_numpy(numbers), torch.from_numpy(cosines)
            bar.update(len(numbers))


def mining_encoder(name: str, pairs: PairData) -> SentenceEncoder:
    """Mean pooling for `baseline`, else the encoder of a checkpoint.

    Raises:
        InputError: where the checkpoint is missing, or for other tokens.
    """
    if name == BASELINE:
        return mean_pooling(pairs.tokens.dim)
    encoder = load_encoder(name)
    check_fits(encoder, pairs)
    return encoder


def with_mined_negatives(
    encoder: SentenceEncoder, pairs: PairData, match_label: float, mining: Mining, *, faiss: bool = False
) -> tuple[PairData, Mined]:
    """Pairs with hard negatives for each first sentence, from the sentences of the same pairs.

    Where mining finds fewer than asked for, random sentences that do not match fill up: easy ones do no harm.

    Args:
        encoder: what finds them; mean pooling, or any other than the one to be trained.
        pairs: labelled pairs.
        match_label: label from which on a pair matches.
        mining: which to take.
        faiss: search with faiss.
    """
    everything = find_documents(pairs.tokens, pairs, match_label)
    used = np.unique(everything.document_of[np.concatenate([pairs.first, pairs.second])])
    documents = replace(
        everything,
        sentences=everything.sentences[used],
        document_of=np.searchsorted(used, everything.document_of),  # of sentences that are not used it says nothing
        group=everything.group[used],
    )
    anchors, anchor_of = np.unique(documents.document_of[pairs.first], return_inverse=True)
    vectors = encode(encoder, pairs.tokens, documents.sentences)
    itself = np.stack([np.arange(len(anchors)), anchors], axis=1)
    mined = mine_negatives(vectors[anchors], vectors, documents.matches(anchors), mining, others=itself, faiss=faiss)
    negatives = mined.negatives.copy()
    rng = np.random.default_rng(mining.seed)
    while (missing := np.argwhere(negatives == NONE)).size:
        drawn = rng.integers(0, len(used), len(missing))
        matching = documents.group[drawn] == documents.group[anchors[missing[:, 0]]]
        negatives[tuple(missing[~matching].T)] = drawn[~matching]
    return replace(pairs, negatives=documents.sentences[negatives][anchor_of]), mined
