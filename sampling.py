"""Which pairs meet in a batch."""

from __future__ import annotations

import numpy as np


def count_batches(n: int, batch_size: int) -> int:
    """Batches in a pass over n pairs; a last one of a single pair is left out, because no loss over a batch learns from it."""
    whole, rest = divmod(n, batch_size)
    return whole + (rest > 1)


def random_batches(n: int, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """All n pairs once, in random order: the numbers in each batch.

    Args:
        n: how many pairs there are.
        batch_size: pairs in a batch.
        rng: source of the order.
    """
    order = rng.permutation(n)
    return [order[i * batch_size : (i + 1) * batch_size] for i in range(count_batches(n, batch_size))]


def batches_without_duplicates(sentences: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """As `random_batches`, but no sentence belongs to two pairs of a batch.

    A sentence that is one pair's positive and another's negative would be pulled and pushed at once. Each pair joins the
    first batch that has room and none of its sentences; the few that fit nowhere are left out of this pass.

    Args:
        sentences: `(n, s)`, for each pair what its s sentences are; equal numbers are equal sentences.
        batch_size: pairs in a batch.
        rng: source of the order.
    """
    batches: list[list[int]] = [[] for _ in range(count_batches(len(sentences), batch_size))]
    taken: list[set[int]] = [set() for _ in batches]
    first_open = 0
    rows = sentences.tolist()
    for pair in rng.permutation(len(sentences)).tolist():
        for number in range(first_open, len(batches)):
            if len(batches[number]) < batch_size and taken[number].isdisjoint(rows[pair]):
                batches[number].append(pair)
                taken[number].update(rows[pair])
                break
        while first_open < len(batches) and len(batches[first_open]) == batch_size:
            first_open += 1
    return [np.array(batch) for batch in batches if len(batch) > 1]
