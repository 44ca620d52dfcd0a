"""Hard negatives: the documents most similar to an anchor that do not match it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError, refuse_negative
from common.optional import import_optional
from common.progress import Progress
from data import PairData
from evaluation.checkpoint import load_encoder
from evaluation.encoding import check_tokens, encode
from evaluation.metrics import triplet_accuracy
from model import SentenceEncoder, mean_pooling
from retrieval.scores import find_documents

BASELINE = "baseline"
MISSING = -1  # fills the rows of anchors with fewer negatives


@dataclass(frozen=True)
class MiningConfig:
    """Which documents become negatives; the options of sentence-transformers' `mine_hard_negatives`.

    Attributes:
        num_negatives: negatives per anchor.
        range_min: skip this many of the most similar candidates: they may be unlabelled matches.
        range_max: consider only this many of the most similar candidates; by default as many as needed.
        max_score: highest cosine of a negative.
        min_score: lowest cosine of a negative.
        absolute_margin: a negative's cosine is at least this much below that of the anchor's least similar positive.
        relative_margin: the same, as a fraction of that positive's cosine.
        sampling_strategy: top (the most similar candidates) or random.
        seed: seed of random sampling.
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
        """Raise InputError if these options cannot give negatives from this many documents."""
        if self.num_negatives < 1:
            raise InputError(f"num_negatives is {self.num_negatives}, expected 1 or more")
        refuse_negative(self, "range_min", "seed")
        if self.range_max is not None and self.range_max - self.range_min < self.num_negatives:
            raise InputError(
                f"num_negatives is {self.num_negatives}, but range_min {self.range_min} and range_max {self.range_max} "
                f"leave {max(0, self.range_max - self.range_min)} candidates"
            )
        if self.sampling_strategy not in ("top", "random"):
            raise InputError(f"sampling_strategy is {self.sampling_strategy!r}, expected top or random")
        if n_documents <= self.range_min + self.num_negatives:
            raise InputError(
                f"{n_documents} documents are too few for num_negatives {self.num_negatives} after range_min {self.range_min}"
            )

    def n_candidates(self, max_positives: int) -> int:
        """How many of the most similar documents to consider per anchor, positives not counted."""
        if self.range_max is not None:
            return self.range_max
        limits = (self.absolute_margin, self.relative_margin, self.max_score)
        factor = 10 if any(limit is not None for limit in limits) else 1  # limits will skip some candidates
        return self.range_min + factor * self.num_negatives + max_positives


@dataclass(frozen=True)
class HardNegatives:
    """The result of mining.

    Attributes:
        negatives: `(n, num_negatives)`, document numbers per anchor, most similar first, then -1 if there are fewer.
        scores: `(n, num_negatives)`, their cosines, then -inf.
        positives: `(p,)`, anchor number of each positive.
        positive_scores: `(p,)`, cosine of each positive and its anchor.
        skipped: number of candidates skipped per limit.
    """

    negatives: np.ndarray
    scores: np.ndarray
    positives: np.ndarray
    positive_scores: np.ndarray
    skipped: dict[str, int]

    def report(self) -> str:
        """A summary of a few lines."""
        found = self.scores[np.isfinite(self.scores)]
        without = int((self.negatives == MISSING).all(1).sum())
        fewer = int((self.negatives == MISSING).any(1).sum()) - without
        lines = [f"{len(found):,} negatives for {len(self.negatives):,} anchors"]
        if without or fewer:
            lines.append(f"anchors without negatives: {without:,}, with fewer than num_negatives: {fewer:,}")
        for name, scores in (("positives", self.positive_scores), ("negatives", found)):
            if len(scores):
                low, median, high = np.percentile(scores, (5, 50, 95))
                lines.append(f"cosine of {name}: median {median:.3f}, 90% between {low:.3f} and {high:.3f}")
        hardest = self.scores[self.positives, 0]
        closer, much_closer = (triplet_accuracy(self.positive_scores, hardest, margin) for margin in (0, 0.1))
        lines.append(f"positives closer than the anchor's hardest negative: {closer:.0%}, by more than 0.1: {much_closer:.0%}")
        lines += [f"candidates skipped by {name}: {count:,}" for name, count in self.skipped.items() if count]
        return "\n".join(lines)


def mine_hard_negatives(
    anchors: Tensor,
    documents: Tensor,
    positives: np.ndarray,
    config: MiningConfig,
    *,
    excluded: np.ndarray | None = None,
    anchor_chunk: int = 512,
    document_chunk: int = 16_384,
    use_faiss: bool = False,
) -> HardNegatives:
    """For each anchor, find the most similar documents that are not its positives.

    Gives the same negatives as sentence-transformers' `mine_hard_negatives` on the same embeddings.

    Args:
        anchors: `(n, K)`, unit length.
        documents: `(m, K)`, unit length, without duplicates.
        positives: `(p, 2)`, anchor number and document number.
        config: which documents become negatives.
        excluded: `(q, 2)`, more pairs that are no candidates, such as an anchor and itself.
        anchor_chunk: anchors compared at a time; this and the next bound the memory.
        document_chunk: documents compared at a time.
        use_faiss: search with faiss (exact, inner product).

    Raises:
        InputError: if the options cannot give negatives, no negative is found, or faiss is not installed.
    """
    config.check(len(documents))
    n = len(anchors)
    no_candidates = np.unique(positives if excluded is None else np.concatenate([positives, excluded]), axis=0)
    first_of_anchor = np.searchsorted(no_candidates[:, 0], np.arange(n + 1))
    max_excluded = int(np.diff(first_of_anchor).max(initial=0))
    n_candidates = config.n_candidates(max_excluded)
    k = min(n_candidates + max_excluded, len(documents))
    positive_scores = (anchors[positives[:, 0]] * documents[positives[:, 1]]).sum(1)
    lowest_positive = torch.full((n,), torch.inf).scatter_reduce(0, torch.from_numpy(positives[:, 0]), positive_scores, "amin")
    index = _faiss_index(documents, document_chunk) if use_faiss else None
    rng = np.random.default_rng(config.seed)
    skipped: Counter[str] = Counter()
    negatives = np.full((n, config.num_negatives), MISSING, dtype=np.int64)
    scores = np.full((n, config.num_negatives), -np.inf, dtype=np.float32)
    with Progress(total=n, unit="anchor", desc="mining") as bar:
        for start in range(0, n, anchor_chunk):
            queries = anchors[start : start + anchor_chunk]
            if index is None:
                cosines, found = _most_similar(queries, documents, k, document_chunk)
            else:
                cosines, found = map(torch.from_numpy, index.search(queries.numpy(), k))
            for row in range(len(queries)):
                begin, end = first_of_anchor[start + row : start + row + 2]
                cosines[row][torch.isin(found[row], torch.from_numpy(no_candidates[begin:end, 1]))] = -torch.inf
            _apply_limits(config, cosines, lowest_positive[start : start + len(queries), None], skipped)
            cosines, order = cosines.sort(dim=1, descending=True, stable=True)
            candidates = found.gather(1, order)[:, config.range_min : n_candidates].numpy()
            candidate_scores = cosines[:, config.range_min : n_candidates].numpy()
            for row in range(len(queries)):
                chosen = np.flatnonzero(np.isfinite(candidate_scores[row]))
                if config.sampling_strategy == "random" and len(chosen) > config.num_negatives:
                    chosen = np.sort(rng.choice(chosen, config.num_negatives, replace=False))
                chosen = chosen[: config.num_negatives]
                negatives[start + row, : len(chosen)] = candidates[row, chosen]
                scores[start + row, : len(chosen)] = candidate_scores[row, chosen]
            bar.update(len(queries))
    if (negatives == MISSING).all():
        reasons = ", ".join(f"{name} {getattr(config, name)} skipped {count}" for name, count in skipped.items() if count)
        raise InputError(f"no negatives found: {reasons or 'every document matches or is given as a negative'}; loosen the limits")
    return HardNegatives(negatives, scores, positives[:, 0], positive_scores.numpy(), skipped)


def _most_similar(anchors: Tensor, documents: Tensor, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Cosines `(a, k)` and numbers `(a, k)` of the k documents most similar to each anchor."""
    best = torch.empty(len(anchors), 0)
    numbers = torch.empty(len(anchors), 0, dtype=torch.int64)
    for start in range(0, len(documents), chunk):
        cosines = anchors @ documents[start : start + chunk].T
        cosines, found = cosines.topk(min(k, cosines.shape[1]), dim=1)
        best, order = torch.cat([best, cosines], dim=1).topk(min(k, best.shape[1] + cosines.shape[1]), dim=1)
        numbers = torch.cat([numbers, found + start], dim=1).gather(1, order)
    return best, numbers


def _faiss_index(documents: Tensor, chunk: int) -> Any:
    faiss = import_optional("faiss", "faiss is not installed: pip install faiss-cpu, or mine without it")
    index = faiss.IndexFlatIP(documents.shape[1])
    for part in documents.split(chunk):
        index.add(part.numpy())
    return index


def _apply_limits(config: MiningConfig, cosines: Tensor, lowest_positive: Tensor, skipped: Counter[str]) -> None:
    """Set the cosines `(a, k)` of candidates beyond a limit to -inf, and count them; `lowest_positive` is `(a, 1)`."""
    beyond: dict[str, Tensor] = {}
    if config.absolute_margin is not None:
        beyond["absolute_margin"] = cosines + config.absolute_margin > lowest_positive
    if config.relative_margin is not None:
        beyond["relative_margin"] = cosines > lowest_positive - lowest_positive.abs() * config.relative_margin
    if config.max_score is not None:
        beyond["max_score"] = cosines > config.max_score
    if config.min_score is not None:
        beyond["min_score"] = cosines < config.min_score
    for name, mask in beyond.items():
        mask &= cosines.isfinite()
        skipped[name] += int(mask.sum())
        cosines[mask] = -torch.inf


def match_note(labels: np.ndarray, match_label: float) -> str | None:
    """Return a warning if labels `(n,)` are graded while the default `match_label` of 1 is used, else None."""
    if len(np.unique(labels)) <= 2 or match_label != 1:
        return None
    share = (labels >= match_label).mean()
    return f"Labels go up to {labels.max():g}: {share:.0%} are {match_label:g} or more and count as matches (--match_label)."


def baseline_or_checkpoint(name: str, dim: int, description: Mapping[str, Any]) -> SentenceEncoder:
    """Mean pooling for `baseline`, otherwise a checkpoint's encoder; for tokens of a width and the description of their store.

    Raises:
        InputError: if the checkpoint is missing or was trained on other tokens.
    """
    if name == BASELINE:
        return mean_pooling(dim)
    encoder = load_encoder(name)
    check_tokens(encoder, dim, description, "these data have")
    return encoder


def add_hard_negatives(
    encoder: SentenceEncoder,
    pairs: PairData,
    match_label: float,
    config: MiningConfig,
    *,
    use_faiss: bool = False,
    matching_only: bool = False,
) -> tuple[PairData, HardNegatives]:
    """Add hard negatives to pairs: for each first sentence, similar sentences of the same pairs that do not match it.

    Negatives that the pairs already have stay first and are not mined again. If mining finds fewer than `num_negatives`,
    random sentences that do not match fill the row.

    Args:
        encoder: gives the cosines; mean pooling or another encoder than the one to train.
        pairs: the pairs; without labels all of them match.
        match_label: pairs with this label or higher match.
        config: which documents become negatives, and how many are added.
        use_faiss: search with faiss.
        matching_only: mine for and return the matching pairs alone; sentences of all pairs may become negatives.
    """
    documents = find_documents(pairs.tokens, pairs, match_label)
    used = np.unique(documents.document_of[np.concatenate([pairs.first, pairs.second])])
    if matching_only:
        pairs = pairs.select(np.flatnonzero(pairs.labels >= match_label))
    given = np.empty((len(pairs), 0), np.int64) if pairs.negatives is None else pairs.negatives
    given_documents = documents.document_of[given]
    documents = documents.only(used)
    anchors, anchor_of = np.unique(documents.document_of[pairs.first], return_inverse=True)
    embeddings = encode(encoder, pairs.tokens, documents.sentences)
    row, column = np.nonzero(np.isin(given_documents, used))
    already_given = np.stack([anchor_of[row], np.searchsorted(used, given_documents[row, column])], axis=1)
    themselves = np.stack([np.arange(len(anchors)), anchors], axis=1)
    excluded = np.concatenate([themselves, already_given])
    matches = documents.matches(anchors)
    mined = mine_hard_negatives(embeddings[anchors], embeddings, matches, config, excluded=excluded, use_faiss=use_faiss)
    negatives = mined.negatives.copy()
    rng = np.random.default_rng(config.seed)
    while (missing := np.argwhere(negatives == MISSING)).size:
        drawn = rng.integers(0, len(used), len(missing))
        matching = documents.group[drawn] == documents.group[anchors[missing[:, 0]]]
        negatives[tuple(missing[~matching].T)] = drawn[~matching]
    return replace(pairs, negatives=np.concatenate([given, documents.sentences[negatives][anchor_of]], axis=1)), mined
