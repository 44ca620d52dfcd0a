"""Mining hard negatives: this project beside sentence-transformers on the same vectors, each in a process of its own."""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from timing import goal, measured_apart, median_and_range, peak_memory
from torch import Tensor

from studies.tables import markdown

ANCHORS, DOCUMENTS, DIM = 10_000, 100_000, 256
WAYS = {"sentence-transformers, mine_hard_negatives": "theirs", "**this project**": "project"}


class Table:
    """As much of a SentenceTransformer as mining needs: sentences are numbers of rows, `a7` or `d7`."""

    device = "cpu"

    def __init__(self, anchors: Tensor, documents: Tensor) -> None:
        self.rows = {"a": anchors.numpy(), "d": documents.numpy()}

    def encode_query(self, sentences: list[str], **_: object) -> np.ndarray:
        """Vectors of sentences that are all anchors, or all documents."""
        return self.rows[sentences[0][0]][[int(sentence[1:]) for sentence in sentences]]

    encode_document = encode_query

    @staticmethod
    def similarity(a: Tensor, b: Tensor) -> Tensor:
        """All cosines."""
        return torch.as_tensor(a) @ torch.as_tensor(b).T

    @staticmethod
    def similarity_pairwise(a: Tensor, b: Tensor) -> Tensor:
        """Cosines of rows."""
        return (torch.as_tensor(a) * torch.as_tensor(b)).sum(1)


def vectors() -> tuple[Tensor, Tensor]:
    """Anchors and documents of unit length; anchor i is near document i, its positive."""
    rng = torch.Generator().manual_seed(0)
    documents = F.normalize(torch.randn(DOCUMENTS, DIM, generator=rng), dim=1)
    anchors = F.normalize(documents[:ANCHORS] + 0.07 * torch.randn(ANCHORS, DIM, generator=rng), dim=1)
    return anchors, documents


def mine(way: str) -> int:
    """Three negatives for each anchor, one way; how many were found."""
    anchors, documents = vectors()
    if way == "project":
        from retrieval.mining import Mining, mine_negatives

        positives = np.stack([np.arange(ANCHORS)] * 2, axis=1)
        return int((mine_negatives(anchors, documents, positives, Mining(num_negatives=3)).negatives >= 0).sum())
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    pairs = Dataset.from_dict({"anchor": [f"a{i}" for i in range(ANCHORS)], "positive": [f"d{i}" for i in range(ANCHORS)]})
    model: object = Table(anchors, documents)
    corpus = [f"d{i}" for i in range(DOCUMENTS)]
    return len(mine_hard_negatives(pairs, model, corpus=corpus, num_negatives=3, faiss_batch_size=1024, verbose=False))  # type: ignore[arg-type]


def run(repeats: int = 3) -> str:
    """The table of mining."""
    results: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, key in WAYS.items():
            results[way].append(measured_apart(__file__, key))
    rows = []
    for way, values in results.items():
        spread = median_and_range([value[0] for value in values])
        rows.append((way, spread, f"{max(value[1] for value in values) / 1024:,.0f}", f"{values[0][2]:,}"))
    title = f"{ANCHORS:,} anchors, {DOCUMENTS:,} documents of {DIM} dimensions"
    ours = results["**this project**"]
    fast = goal("seconds", statistics.median(value[0] for value in ours), 60, at_most=True)
    small = goal("megabytes", max(value[1] for value in ours) / 1024, 1500, at_most=True)
    return "\n".join([markdown((title, "seconds, median (range)", "peak memory, MB", "negatives"), rows), fast, small])


if __name__ == "__main__":
    begin = time.perf_counter()
    found = mine(sys.argv[1])
    print(json.dumps([time.perf_counter() - begin, peak_memory(), found]))
