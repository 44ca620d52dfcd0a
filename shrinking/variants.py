"""Random edits of sentences: more text to imitate, and sentences that are partly alike, which random ones hardly ever are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from common.files import write_text_atomically
from tokens.token_store import short_hash

EDITED = 0.25  # the mean share of words that are left out or exchanged; at most twice that
SHORTEST = 3  # shorter sentences, in words, are not edited
BLOCK = 4096  # sentences that swap words and endings
ATTEMPTS = 10  # to come up with something other than the sentence itself


def variants_file(parts: Iterable[tuple[Iterable[str], int]], folder: Path) -> Path:
    """Write variants to a file in a folder, one a line, or find that of an earlier run.

    Args:
        parts: sentences, and how many variants of each to write after them. A part's words and endings come from itself.
        folder: of the file.
    """
    seen: set[str] = set()
    originals: list[tuple[list[str], int]] = []
    for sentences, count in parts:
        new = [own for own in dict.fromkeys(" ".join(sentence.split()) for sentence in sentences) if own and own not in seen]
        seen.update(new)
        originals.append((new, count))
    identity = short_hash([originals, EDITED, SHORTEST, BLOCK, ATTEMPTS])
    path = folder / f"variants-{identity}.txt"
    if not path.exists():
        lines = (f"{sentence}\n" for part, count in originals for sentence in with_variants(part, count))
        write_text_atomically(path, "".join(lines))
    return path


def with_variants(sentences: list[str], count: int) -> Iterator[str]:
    """Yield the sentences and `count` random variants of each, always the same.

    A variant lacks some words, has some exchanged for words of other sentences, or ends as another sentence does. None of it
    needs to be good English: a teacher says what it means. Source of the idea: Jiao et al. 2020, TinyBERT: Distilling BERT for
    Natural Language Understanding, which exchanges words.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(len(sentences))
    for start in range(0, len(order), BLOCK):
        block = [sentences[i].split() for i in order[start : start + BLOCK]]
        words = [word for sentence in block for word in sentence]
        yield from (sentences[i] for i in order[start : start + BLOCK])
        for sentence in block:
            for _ in range(count if len(sentence) >= SHORTEST else 0):
                edited = (_edited(sentence, words, block, rng) for _ in range(ATTEMPTS))
                if (variant := next((own for own in edited if own != sentence), None)) is not None:
                    yield " ".join(variant)


def _edited(sentence: list[str], words: list[str], others: list[list[str]], rng: np.random.Generator) -> list[str]:
    kind, share = rng.integers(3), EDITED * 2 * rng.random()
    if kind == 0:
        kept = [word for word, chance in zip(sentence, rng.random(len(sentence)), strict=True) if chance >= share]
        return kept or sentence[:1]
    if kind == 1:
        chances, chosen = rng.random(len(sentence)), rng.integers(len(words), size=len(sentence))
        return [words[new] if chance < share else old for old, chance, new in zip(sentence, chances, chosen, strict=True)]
    other = others[rng.integers(len(others))]
    return sentence[: 1 + rng.integers(len(sentence))] + other[rng.integers(len(other)) :]
