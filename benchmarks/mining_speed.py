"""Mining hard negatives: this project and sentence-transformers on the same embeddings, each in its own process."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from timing import goal, median_and_range, peak_memory, run_script
from torch import Tensor

from common.text_tables import markdown

ANCHORS, DOCUMENTS, DIM = 10_000, 100_000, 256
MINERS = {"sentence-transformers, mine_hard_negatives": "sentence-transformers", "**this project**": "project"}


class EmbeddingTable:
    """As much of a SentenceTransformer as mining needs; a sentence is `a7`, row 7 of the anchors, or `d7`, of the documents."""

    device = "cpu"

    def __init__(self, anchors: Tensor, documents: Tensor) -> None:
        self.rows = {"a": anchors.numpy(), "d": documents.numpy()}

    def encode_query(self, sentences: list[str], **_: object) -> np.ndarray:
        """Embeddings of sentences that are all anchors, or all documents."""
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


def mine(miner: str) -> int:
    """Mine three negatives per anchor; returns how many were found. Document i is the positive of anchor i."""
    rng = torch.Generator().manual_seed(0)
    documents = F.normalize(torch.randn(DOCUMENTS, DIM, generator=rng), dim=1)
    anchors = F.normalize(documents[:ANCHORS] + 0.07 * torch.randn(ANCHORS, DIM, generator=rng), dim=1)
    if miner == "project":
        from retrieval import mining

        positives = np.stack([np.arange(ANCHORS)] * 2, axis=1)
        mined = mining.mine_hard_negatives(anchors, documents, positives, mining.MiningConfig(num_negatives=3))
        return int((mined.negatives >= 0).sum())
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    corpus = [f"d{i}" for i in range(DOCUMENTS)]
    pairs = Dataset.from_dict({"anchor": [f"a{i}" for i in range(ANCHORS)], "positive": corpus[:ANCHORS]})
    model: object = EmbeddingTable(anchors, documents)
    return len(mine_hard_negatives(pairs, model, corpus=corpus, num_negatives=3, faiss_batch_size=1024, verbose=False))  # type: ignore[arg-type]


def run(repeats: int = 3) -> str:
    """The table of mining, and the goal."""
    results: dict[str, list[list[float]]] = {name: [] for name in MINERS}
    for _ in range(repeats):
        for name, miner in MINERS.items():
            results[name].append(run_script(__file__, miner))
    memory = {name: max(kilobytes for _, kilobytes, _ in values) / 1024 for name, values in results.items()}
    rows = [
        (name, median_and_range([seconds for seconds, *_ in values]), f"{memory[name]:,.0f}", f"{values[0][2]:,}")
        for name, values in results.items()
    ]
    title = f"{ANCHORS:,} anchors, {DOCUMENTS:,} documents of {DIM} dimensions"
    table = markdown((title, "seconds, median (range)", "peak memory, MB", "negatives"), rows)
    return f"{table}\n{goal('peak memory in MB', memory['**this project**'], 1500, at_most=True)}"


if __name__ == "__main__":
    begin = time.perf_counter()
    found = mine(sys.argv[1])
    print(json.dumps([time.perf_counter() - begin, peak_memory(), found]))
