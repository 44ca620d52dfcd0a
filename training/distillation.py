"""Teacher targets: the teacher's embeddings of the training sentences and of unlabelled ones, pieces of theirs and other text.

Labels cover few pairs; a teacher says what any sentence means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError
from data import PairData, TeacherTargets
from model import unit_length
from tokens.text_pairs import TextPairs
from tokens.text_store import BackboneSettings, sentence_store
from tokens.token_store import TokenStore, short_hash
from training.teacher_folder import read_teacher, teacher_embeddings

MIN_WORDS = 4  # of a sentence that is cut into pieces


def with_teacher_targets(
    pairs: PairData,
    folders: Sequence[Path],
    text: Iterable[str] | None = None,
    *,
    cache: Path,
    set_aside: dict[str, float] | None = None,
    device: str = "cpu",
) -> PairData:
    """Add teacher targets to training pairs: the mean of the teachers' cosines, each with its embeddings centred.

    What all sentences have in common is taken out of a teacher's embeddings, as it is out of the encoder's when it starts
    centred; a teacher fine-tuned with CoSENT gives unrelated sentences a cosine of 0.6 otherwise. Dimensions are ordered by how
    much the pairs' sentences differ in them. Targets, and the tokens of unlabelled sentences, are computed once and cached. If the
    tokens' backbone is unknown, as for `.dat` files, there are no unlabelled sentences.

    Args:
        pairs: training pairs whose text is known.
        folders: one or more, written by teacher.py or shrink.py.
        text: more sentences, without labels.
        cache: folder for what is computed.
        set_aside: fraction and seed of the validation split, None if validation pairs were given.
        device: where backbones run.

    Raises:
        InputError: if a folder holds no teacher, a teacher was trained on validation pairs, the text of the pairs is unknown, or
            there is more text and the backbone of the tokens is unknown.
    """
    for folder in folders:
        _check_set_aside(folder, set_aside)
    known, tokens = pairs.text(), pairs.tokens
    has_backbone = bool(tokens.description.get("backbone"))
    if text is not None and not has_backbone:
        raise InputError("the backbone of these tokens is not known, so it cannot read more text; leave out --sentences")
    unlabelled = _unlabelled(known, text or ()) if has_backbone else []
    if unlabelled:
        tokens = tokens.followed_by(_open_tokens(unlabelled, tokens, cache, device))
    sentences = [*known.first, *known.second, *unlabelled]
    identity = short_hash(sentences)
    embeddings = [
        _centred(teacher_embeddings(folder, sentences, cache=cache, identity=identity, device=device), 2 * len(pairs))
        for folder in folders
    ]
    # The cosine of the embeddings side by side, divided by the root of their number, is the mean of the cosines.
    together = _rotated(np.concatenate(embeddings, axis=1) / np.sqrt(np.float32(len(folders))), 2 * len(pairs))
    first, second, others = np.split(together, [len(pairs), 2 * len(pairs)])
    numbers = np.arange(len(pairs.tokens), len(tokens))
    targets = TeacherTargets(pairs=np.stack([first, second], axis=1), unlabelled=numbers, embeddings=others)
    return replace(pairs, tokens=tokens, targets=targets)


def _unlabelled(pairs: TextPairs, text: Iterable[str]) -> list[str]:
    """Pieces of the pairs' sentences, then the other text, each sentence once and none of the pairs."""
    sentences = dict.fromkeys(pairs.first + pairs.second)
    unlabelled = dict.fromkeys([*make_pieces(list(sentences), seed=0), *text])
    return [sentence for sentence in unlabelled if sentence not in sentences]


def _check_set_aside(folder: Path, set_aside: dict[str, float] | None) -> None:
    facts = read_teacher(folder)
    if set_aside is not None and facts.get("set_aside", set_aside) != set_aside:  # of small encoders it is not known
        raise InputError(
            "this teacher was trained on pairs that are set aside for validation; give --validation, or train the teacher "
            f"without it and with --seed {set_aside['seed']}",
            path=folder,
        )


def _open_tokens(sentences: Sequence[str], tokens: TokenStore, cache: Path, device: str) -> TokenStore:
    """Tokens of the same kind of other sentences, from an earlier run or made now."""
    backbone, layers, max_length = (tokens.description[key] for key in ("backbone", "layers", "max_length"))
    settings = BackboneSettings(backbone, layers, max_length, device, pooled=bool(tokens.description.get("pooled")))
    name = f"unlabelled-{short_hash([settings.description(), sentences])}.store"
    return sentence_store(sentences, cache / name, settings)


def _centred(embeddings: np.ndarray, n: int) -> np.ndarray:
    """Embeddings minus the mean of the first n, those of the pairs; unit length."""
    return unit_length(torch.from_numpy(embeddings - embeddings[:n].mean(0))).numpy()


def _rotated(embeddings: np.ndarray, n: int) -> np.ndarray:
    """Embeddings along the principal directions of the first n, those of the pairs, largest first."""
    pairs = embeddings[:n].astype(np.float64)
    _, directions = np.linalg.eigh(pairs.T @ pairs)
    return embeddings @ directions[:, ::-1].astype(np.float32)


def make_pieces(sentences: Sequence[str], seed: int) -> list[str]:
    """Make new sentences from the words of others.

    From each sentence of at least 4 words: a span of its words, and its words with a quarter dropped. From every sentence: its
    first half followed by the second half of a random other one.

    Returns:
        The new sentences, each once, none of them in `sentences`.
    """
    rng = np.random.default_rng(seed)
    words = [sentence.split() for sentence in sentences]
    pieces = []
    for own in words:
        n = len(own)
        if n >= MIN_WORDS:
            length = int(np.ceil(n * rng.uniform(0.4, 0.85)))
            start = rng.integers(0, n - length + 1)
            pieces.append(own[start : start + length])
            pieces.append([word for word, kept in zip(own, rng.random(n) > 0.25, strict=True) if kept])
        other = words[rng.integers(len(words))]
        pieces.append(own[: n // 2] + other[len(other) // 2 :])
    known = set(sentences)
    return [piece for piece in dict.fromkeys(map(" ".join, pieces)) if piece and piece not in known]
