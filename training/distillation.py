"""Teacher targets: the teacher's embeddings of the training sentences and of unlabelled ones, pieces of theirs and other text.

Labels cover few pairs; a teacher says what any sentence means.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import InputError
from data import PairData, TeacherTargets
from model import unit_length
from tokens.text_pairs import TextPairs
from tokens.text_store import BackboneSettings, sentence_store
from tokens.token_store import TokenStore, cached_store, create_store, identity_of
from training.whole_encoder import load_teacher, read_teacher

MIN_WORDS = 4  # of a sentence that is cut into pieces


def with_teacher_targets(
    pairs: PairData,
    folders: Sequence[Path],
    text: Iterable[str] | None = None,
    *,
    set_aside: dict[str, float] | None = None,
    device: str = "cpu",
) -> PairData:
    """Add teacher targets to training pairs: the mean of the teachers' cosines, each with its embeddings centred.

    What all sentences have in common is taken out of a teacher's embeddings, as it is out of the encoder's when it starts
    centred; a teacher fine-tuned with CoSENT gives unrelated sentences a cosine of 0.6 otherwise. Dimensions are ordered by how
    much the pairs' sentences differ in them. Targets are computed once and cached in the teacher's folder. If the tokens' backbone
    is unknown, as for `.dat` files, there are no unlabelled sentences.

    Args:
        pairs: training pairs whose text is known.
        folders: written by teacher.py, one or more.
        text: more sentences, without labels.
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
    sides = {"first": known.first, "second": known.second, "unlabelled": unlabelled}
    if unlabelled:
        tokens = tokens.followed_by(_open_tokens(folders[0], unlabelled, tokens, device))
    embeddings = [_centred(_open_embeddings(folder, sides, device)) for folder in folders]
    # The cosine of the embeddings side by side, divided by the root of their number, is the mean of the cosines.
    first, second, others = _rotated(
        [np.concatenate(parts, axis=1) / np.sqrt(np.float32(len(parts))) for parts in zip(*embeddings, strict=True)]
    )
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
    if set_aside is not None and facts["set_aside"] != set_aside:
        raise InputError(
            "this teacher was trained on pairs that are set aside for validation; give --validation, or train the teacher "
            f"without it and with --seed {set_aside['seed']}",
            path=folder,
        )


def _open_tokens(folder: Path, sentences: Sequence[str], tokens: TokenStore, device: str) -> TokenStore:
    """Tokens of the same kind of the unlabelled sentences, from a teacher's folder or made now."""
    backbone, layers, max_length = (tokens.description[key] for key in ("backbone", "layers", "max_length"))
    settings = BackboneSettings(backbone, layers, max_length, device, pooled=bool(tokens.description.get("pooled")))
    name = f"unlabelled-{_hash([settings.description(), sentences])}.store"
    return sentence_store(sentences, folder / name, settings)


def _open_embeddings(folder: Path, sides: Mapping[str, Sequence[str]], device: str) -> list[np.ndarray]:
    """A teacher's embeddings of some lists of sentences, from its folder or computed now."""
    description = {"teacher": identity_of(folder / "model.safetensors"), "sentences": _hash(sides)}

    def write(path: Path) -> None:
        teacher = load_teacher(folder, device=device)
        embeddings = {name: teacher.encode(side, progress=f"{folder.name}, {name}").numpy() for name, side in sides.items()}
        with create_store(path, teacher.backbone.width) as writer:
            writer.finish(embeddings, description)

    store = cached_store(folder / f"targets-{_hash(description)}.store", description, write)
    return [store.extra[name] for name in sides]


def _centred(embeddings: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Embeddings of first, second and unlabelled sentences, minus their mean over the pairs, unit length."""
    mean = np.concatenate(embeddings[:2]).mean(0)
    return [unit_length(torch.from_numpy(side - mean)).numpy() for side in embeddings]


def _rotated(embeddings: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Embeddings of first, second and unlabelled sentences along the principal directions of the pairs, largest first."""
    pairs = np.concatenate(embeddings[:2]).astype(np.float64)
    _, directions = np.linalg.eigh(pairs.T @ pairs)
    return [side @ directions[:, ::-1].astype(np.float32) for side in embeddings]


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()


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
