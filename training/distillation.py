"""What a teacher says of the training sentences, and of pieces of them, which have no label but its similarities.

Labels speak of few pairs. A teacher has a similarity for any two sentences, and pieces and mixtures of the training
sentences are more sentences of the same kind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.errors import InputError
from data import PairData, TeacherTargets
from tokens.backbone import Backbone
from tokens.token_store import cached_store, create_store, identity_of
from training.teacher import Teacher, load_teacher, read_teacher

FEWEST_WORDS = 4  # of a sentence that pieces are made of


def with_teacher_targets(pairs: PairData, folder: Path, set_aside: dict[str, float] | None = None, device: str = "cpu") -> PairData:
    """Training pairs with what a teacher says of them.

    It is made once, with the teacher and the backbone of the tokens, and kept in the teacher's folder. Where the backbone of
    the tokens is not known (they came as `.dat` files), there are no pieces, and the lessons are of the sentences alone.

    Args:
        pairs: training pairs whose text is known.
        folder: what teacher.py made.
        set_aside: fraction and seed of the validation pairs that were taken from the same pairs, None if they come from elsewhere.
        device: where teacher and backbone run.

    Raises:
        InputError: where the folder is no teacher, the text is not known, or the teacher has learned from pairs set aside.
    """
    facts = read_teacher(folder)
    if set_aside is not None and facts["set_aside"] != set_aside:
        raise InputError(
            "this teacher has learned from pairs that are set aside for validation; give --validation, or make the teacher "
            f"without it and with --seed {set_aside['seed']}",
            path=folder,
        )
    tokens = {key: pairs.tokens.description.get(key) for key in ("backbone", "layers", "max_length")}
    if pairs.tokens.description.get("pooled"):
        tokens["pooled"] = True
    digest = hashlib.blake2b(digest_size=16)
    for array in (pairs.tokens.digests[pairs.first], pairs.tokens.digests[pairs.second]):
        digest.update(array.tobytes())
    description = {"teacher": identity_of(folder / "model.safetensors"), "tokens": tokens, "pairs": digest.hexdigest()}
    name = hashlib.blake2b(json.dumps(description).encode(), digest_size=6).hexdigest()
    path = folder / f"targets-{name}.store"
    store = cached_store(path, description, lambda cache: _write_targets(cache, pairs, load_teacher(folder, device), description))
    targets = TeacherTargets(
        pairs=np.stack([store.extra["first"], store.extra["second"]], axis=1),
        unlabelled=len(pairs.tokens) + np.arange(len(store)),
        embeddings=store.extra["pieces"],
    )
    return replace(pairs, tokens=pairs.tokens.followed_by(store), targets=targets)


def _write_targets(path: Path, pairs: PairData, teacher: Teacher, description: dict[str, Any]) -> None:
    text, tokens = pairs.text(), description["tokens"]
    sentences = list(dict.fromkeys(text.first + text.second))
    pieces = make_pieces(sentences, seed=0) if tokens["backbone"] else []
    vectors = {}
    for name, side in (("first", text.first), ("second", text.second), ("pieces", pieces)):
        vectors[name] = teacher.encode(side, progress=f"teacher, {name}").numpy()
    order = []
    with create_store(path, pairs.tokens.dim) as writer:
        if pieces:
            backbone = Backbone(
                tokens["backbone"],
                tokens["layers"],
                pooled=tokens.get("pooled", False),
                max_length=tokens["max_length"],
                device=teacher.backbone.device,
            )
            ids, _ = backbone.tokenize(pieces)
            encoded = backbone.token_embeddings(ids)
            for number, embeddings in tqdm(encoded, total=len(pieces), unit="sentence", desc="tokens, pieces", disable=None):
                writer.append(embeddings)
                order.append(number)
        writer.finish(vectors, description, order)


def make_pieces(sentences: Sequence[str], seed: int) -> list[str]:
    """Pieces and mixtures of sentences: of each a run of its words, its words with a quarter left out, and its first half
    followed by the second half of another.

    Args:
        sentences: those with fewer than 4 words are used for mixtures only.
        seed: of the choice.

    Returns:
        All different ones that are not among `sentences`.
    """
    rng = np.random.default_rng(seed)
    words = [sentence.split() for sentence in sentences]
    pieces = []
    for own in words:
        n = len(own)
        if n >= FEWEST_WORDS:
            length = int(np.ceil(n * rng.uniform(0.4, 0.85)))
            start = rng.integers(0, n - length + 1)
            pieces.append(own[start : start + length])
            pieces.append([word for word, kept in zip(own, rng.random(n) > 0.25, strict=True) if kept])
        other = words[rng.integers(len(words))]
        pieces.append(own[: n // 2] + other[len(other) // 2 :])
    known = set(sentences)
    return [piece for piece in dict.fromkeys(map(" ".join, pieces)) if piece and piece not in known]
