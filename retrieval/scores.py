"""Finding a sentence's matches among all sentences: the task, its scores, and mined negatives to train on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from data import PairData
from evaluation.metrics import average_precision, ndcg, recall, reciprocal_rank
from tokens.token_store import TokenStore

QUERIES_AT_A_TIME = 512


@dataclass(frozen=True)
class Documents:
    """The different sentences of a token store, and which of them match.

    Attributes:
        sentences: `(m,)`, the number of each document in the store, one for sentences that are equal.
        document_of: `(n,)`, the document that each sentence of the store is.
        group: `(m,)`, equal for documents that match, directly or through others.
    """

    sentences: np.ndarray
    document_of: np.ndarray
    group: np.ndarray

    def matches(self, anchors: np.ndarray) -> np.ndarray:
        """The documents that match others: `(p, 2)`, positions in `anchors` (documents) and documents, never itself."""
        by_group = np.argsort(self.group, kind="stable")
        starts = np.searchsorted(self.group[by_group], np.arange(self.group.max(initial=0) + 2))
        members = [by_group[starts[group] : starts[group + 1]] for group in self.group[anchors]]
        pairs = [(row, other) for row, anchor in enumerate(anchors) for other in members[row] if other != anchor]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def find_documents(tokens: TokenStore, pairs: PairData, match_label: float) -> Documents:
    """The documents of a token store; pairs labelled `match_label` and above say which match."""
    _, sentences, document_of = np.unique(tokens.digests, return_index=True, return_inverse=True)
    is_match = pairs.labels >= match_label
    first, second = document_of[pairs.first[is_match]], document_of[pairs.second[is_match]]
    m = len(sentences)
    _, group = connected_components(coo_array((np.ones(len(first)), (first, second)), shape=(m, m)), directed=False)
    return Documents(sentences, document_of, group)


@dataclass(frozen=True)
class RetrievalScores:
    """How well matches are found among all documents, and told from pairs that do not match; all 0 to 1.

    Attributes:
        mrr: mean reciprocal rank of the first match, of 10 documents shown.
        recall: share of the matches among these.
        ndcg: their discounted gain.
        average_precision: of telling the labelled pairs apart by their cosine.
    """

    mrr: float
    recall: float
    ndcg: float
    average_precision: float


def score_retrieval(vectors: Tensor, pairs: PairData, documents: Documents, match_label: float, k: int = 10) -> RetrievalScores:
    """Query with the first sentence of each matching pair, among all documents but itself.

    Args:
        vectors: `(m, K)`, unit length, those of the documents.
        pairs: labelled pairs.
        documents: of the token store of the pairs; they may be many more than those of the pairs.
        match_label: label from which on a pair matches.
        k: documents shown.
    """
    is_match = pairs.labels >= match_label
    queries = np.unique(documents.document_of[pairs.first[is_match]])
    n_relevant = np.bincount(documents.matches(queries)[:, 0], minlength=len(queries))
    queries, n_relevant = queries[n_relevant > 0], n_relevant[n_relevant > 0]  # some match only themselves, written twice
    shown = np.empty((len(queries), k), dtype=bool)
    for start in range(0, len(queries), QUERIES_AT_A_TIME):
        rows = queries[start : start + QUERIES_AT_A_TIME]
        cosines = vectors[rows] @ vectors.T
        cosines[torch.arange(len(rows)), torch.from_numpy(rows)] = -torch.inf
        found = cosines.topk(k, dim=1).indices.numpy()
        shown[start : start + len(rows)] = documents.group[found] == documents.group[rows, None]
    first, second = (vectors[documents.document_of[side]] for side in (pairs.first, pairs.second))
    return RetrievalScores(
        mrr=reciprocal_rank(shown),
        recall=recall(shown, n_relevant),
        ndcg=ndcg(shown, n_relevant),
        average_precision=average_precision((first * second).sum(1).numpy(), is_match),
    )
