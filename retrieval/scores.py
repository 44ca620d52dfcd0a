"""Scores of the retrieval task: finding the matches of a sentence among all sentences."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from data import PairData
from evaluation.metrics import average_precision, ndcg, recall, reciprocal_rank
from tokens.token_store import TokenStore

QUERY_CHUNK = 512
TITLES = {"mrr": "MRR@10", "recall": "recall@10", "ndcg": "nDCG@10", "average_precision": "average precision"}


@dataclass(frozen=True)
class Documents:
    """The distinct sentences of a token store, or some of them, and which of them match.

    Attributes:
        sentences: `(m,)`, sentence number of each document in the store.
        document_of: `(n,)`, document number of each sentence in the store; meaningless for a sentence of no document here.
        group: `(m,)`, equal for documents that match, directly or through others.
    """

    sentences: np.ndarray
    document_of: np.ndarray
    group: np.ndarray

    def only(self, used: np.ndarray) -> Documents:
        """These documents alone, given by their numbers, ascending."""
        return Documents(self.sentences[used], np.searchsorted(used, self.document_of), self.group[used])

    def matches(self, anchors: np.ndarray) -> np.ndarray:
        """All matches of some documents: `(p, 2)`, position in `anchors` and document number, without the anchor itself."""
        by_group = np.argsort(self.group, kind="stable")
        starts = np.searchsorted(self.group[by_group], np.arange(self.group.max(initial=0) + 2))
        members = [by_group[starts[group] : starts[group + 1]] for group in self.group[anchors]]
        pairs = [(row, other) for row, anchor in enumerate(anchors) for other in members[row] if other != anchor]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def find_documents(tokens: TokenStore, pairs: PairData, match_label: float) -> Documents:
    """The documents of a token store; pairs labelled `match_label` or higher match."""
    _, sentences, document_of = np.unique(tokens.digests, return_index=True, return_inverse=True)
    is_match = pairs.labels >= match_label
    first, second = document_of[pairs.first[is_match]], document_of[pairs.second[is_match]]
    m = len(sentences)
    _, group = connected_components(coo_array((np.ones(len(first)), (first, second)), shape=(m, m)), directed=False)
    return Documents(sentences, document_of, group)


@dataclass(frozen=True)
class RetrievalScores:
    """Retrieval scores over the top k documents, and the average precision of classifying pairs; all 0 to 1.

    A score that the pairs cannot give is NaN.

    Attributes:
        mrr: mean reciprocal rank of the first match.
        recall: fraction of the matches found.
        ndcg: normalised discounted cumulative gain.
        average_precision: of the labelled pairs ranked by cosine; NaN if all of them match.
    """

    mrr: float
    recall: float
    ndcg: float
    average_precision: float

    def known(self) -> dict[str, float]:
        """The scores that are not NaN, by name."""
        return {name: value for name, value in asdict(self).items() if not np.isnan(value)}


def score_retrieval(embeddings: Tensor, pairs: PairData, documents: Documents, match_label: float, k: int = 10) -> RetrievalScores:
    """Search all documents for the matches of each matching pair's first sentence, itself excluded.

    Args:
        embeddings: `(m, K)`, unit length, one per document.
        pairs: the pairs; without labels all of them match.
        documents: of the pairs' token store; the pairs need not cover them.
        match_label: pairs with this label or higher match.
        k: documents retrieved per query.
    """
    is_match = pairs.labels >= match_label
    queries = np.unique(documents.document_of[pairs.first[is_match]])
    n_relevant = np.bincount(documents.matches(queries)[:, 0], minlength=len(queries))
    queries, n_relevant = queries[n_relevant > 0], n_relevant[n_relevant > 0]  # a sentence may match only its duplicate
    relevant = np.zeros((len(queries), k), dtype=bool)
    for start in range(0, len(queries), QUERY_CHUNK):
        rows = queries[start : start + QUERY_CHUNK]
        cosines = embeddings[rows] @ embeddings.T
        cosines[torch.arange(len(rows)), torch.from_numpy(rows)] = -torch.inf
        top = cosines.topk(min(k, len(embeddings) - 1), dim=1).indices.numpy()
        relevant[start : start + len(rows), : top.shape[1]] = documents.group[top] == documents.group[rows, None]
    first, second = (embeddings[documents.document_of[side]] for side in (pairs.first, pairs.second))
    return RetrievalScores(
        mrr=reciprocal_rank(relevant),
        recall=recall(relevant, n_relevant),
        ndcg=ndcg(relevant, n_relevant),
        average_precision=average_precision((first * second).sum(1).numpy(), is_match),
    )
