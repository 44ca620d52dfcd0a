"""Teacher targets: the teacher's embeddings of the training sentences and of unlabelled sentences made from their pieces.

Labels cover few pairs; a teacher gives a similarity for any two sentences.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.errors import InputError
from data import PairData, TeacherTargets
from model import unit_length
from tokens.backbone import Backbone
from tokens.token_store import TokenStore, cached_store, create_store, identity_of
from training.teacher import load_teacher, read_teacher

MIN_WORDS = 4  # of a sentence that is cut into pieces


def with_teacher_targets(pairs: PairData, folders: Sequence[Path], set_aside: dict[str, float] | None = None) -> PairData:
    """Add teacher targets to training pairs: the mean of the teachers' cosines, each with its embeddings centred.

    What all sentences have in common is taken out of a teacher's embeddings, as it is out of the encoder's when it starts
    centred; a teacher fine-tuned with CoSENT gives unrelated sentences a cosine of 0.6 otherwise. Targets are computed once and
    cached in the teacher's folder. If the tokens' backbone is unknown, as for `.dat` files, there are no unlabelled sentences.

    Args:
        pairs: training pairs whose text is known.
        folders: written by teacher.py, one or more.
        set_aside: fraction and seed of the validation split, None if validation pairs were given.

    Raises:
        InputError: if a folder holds no teacher, the text is unknown, or a teacher was trained on validation pairs.
    """
    stores = [_open_targets(pairs, folder, set_aside) for folder in folders]
    embeddings = [_centred(store.extra) for store in stores]
    # The cosine of the embeddings side by side, divided by the root of their number, is the mean of the cosines.
    first, second, pieces = (
        np.concatenate(sides, axis=1) / np.sqrt(np.float32(len(sides))) for sides in zip(*embeddings, strict=True)
    )
    targets = TeacherTargets(
        pairs=np.stack([first, second], axis=1), unlabelled=len(pairs.tokens) + np.arange(len(stores[0])), embeddings=pieces
    )
    return replace(pairs, tokens=pairs.tokens.followed_by(stores[0]), targets=targets)


def _centred(extra: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """A teacher's embeddings of first sentences, second sentences and pieces, minus their mean over the pairs, unit length."""
    sides = [np.asarray(extra[name], np.float32) for name in ("first", "second", "pieces")]
    mean = np.concatenate(sides[:2]).mean(0)
    return [unit_length(torch.from_numpy(side - mean)).numpy() for side in sides]


def _open_targets(pairs: PairData, folder: Path, set_aside: dict[str, float] | None) -> TokenStore:
    """A teacher's embeddings and the tokens of the unlabelled sentences, from its folder or computed now."""
    facts = read_teacher(folder)
    if set_aside is not None and facts["set_aside"] != set_aside:
        raise InputError(
            "this teacher was trained on pairs that are set aside for validation; give --validation, or train the teacher "
            f"without it and with --seed {set_aside['seed']}",
            path=folder,
        )
    tokens = {key: pairs.tokens.description.get(key) for key in ("backbone", "layers", "max_length")}
    if pairs.tokens.description.get("pooled"):
        tokens["pooled"] = True
    digest = hashlib.blake2b(digest_size=16)
    for side in (pairs.first, pairs.second):
        digest.update(pairs.tokens.digests[side].tobytes())
    description = {"teacher": identity_of(folder / "model.safetensors"), "tokens": tokens, "pairs": digest.hexdigest()}
    name = hashlib.blake2b(json.dumps(description).encode(), digest_size=6).hexdigest()
    path = folder / f"targets-{name}.store"
    return cached_store(path, description, lambda cache: _write_targets(cache, pairs, folder, description))


def _write_targets(path: Path, pairs: PairData, folder: Path, description: dict[str, Any]) -> None:
    teacher, text, tokens = load_teacher(folder), pairs.text(), description["tokens"]
    pieces = make_pieces(list(dict.fromkeys(text.first + text.second)), seed=0) if tokens["backbone"] else []
    sides = {"first": text.first, "second": text.second, "pieces": pieces}
    embeddings = {name: teacher.encode(side, progress=f"teacher, {name}").numpy() for name, side in sides.items()}
    order = []
    with create_store(path, pairs.tokens.dim) as writer:
        if pieces:
            backbone = Backbone(
                tokens["backbone"], tokens["layers"], pooled=tokens.get("pooled", False), max_length=tokens["max_length"]
            )
            encoded = backbone.token_embeddings(backbone.tokenize(pieces)[0])
            for number, piece in tqdm(encoded, total=len(pieces), unit="sentence", desc="tokens, pieces", disable=None):
                writer.append(piece)
                order.append(number)
        writer.finish(embeddings, description, order)


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
