"""Target embeddings of a student: those of its teachers, rotated into the dimensions of the backbone that it is made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.progress import Progress
from model import unit_length
from tokens.sentence_files import SentenceFiles, sample
from tokens.text_pairs import TextPairs
from tokens.token_store import TokenStore, cached_store, create_store, short_hash
from training.teacher_folder import teacher_embeddings
from training.whole_encoder import WholeEncoder

ENCODED_TOGETHER, ENCODED_AT_ONCE = 4096, 64
FITTED_ON = 8192  # sentences


@dataclass(frozen=True)
class SentenceSet:
    """Sentences, the same from pass to pass, and the name and hash of their contents."""

    name: str
    identity: str
    sentences: Sequence[str] | SentenceFiles


def sentence_sets(text: SentenceFiles | None, pairs: TextPairs | None) -> list[SentenceSet]:
    """The sentences of a text as the set `text`; those of pairs as `pairs`, numbered `2 * pair + side`."""
    sets = []
    if text is not None:
        sets.append(SentenceSet("text", text.identity, text))
    if pairs is not None:
        both = [sentence for pair in zip(pairs.first, pairs.second, strict=True) for sentence in pair]
        sets.append(SentenceSet("pairs", hashlib.blake2b(json.dumps(both).encode(), digest_size=16).hexdigest(), both))
    return sets


class SentenceTargets:
    """The target embedding of each sentence: the teachers' embeddings, centred, concatenated, and rotated to the backbone's.

    The cosine of two targets is close to the mean of the teachers' cosines: the G principal components are kept, as many as the
    backbone has dimensions, and rotated to be as close as possible to its own embeddings of the same sentences (orthogonal
    Procrustes; Schoenemann 1966, A Generalized Solution of the Orthogonal Procrustes Problem).
    """

    def __init__(self, folders: Sequence[Path], sets: Sequence[SentenceSet], backbone: WholeEncoder, cache: Path) -> None:
        """Compute the teachers' embeddings, or read those of an earlier run, and fit the rotation.

        Args:
            folders: of teachers, as teacher.py or shrink.py writes them.
            sets: the sentences; the rotation is fitted on the first set.
            backbone: the one that the student is made from.
            cache: folder for the teachers' embeddings.

        Raises:
            InputError: if a folder holds no teacher, or the backbone is wider than all teachers together.
        """
        device = backbone.backbone.device
        self._rows = {
            own.name: [
                teacher_embeddings(folder, own.sentences, cache=cache, identity=own.identity, bfloat16=True, device=device)
                for folder in folders
            ]
            for own in sets
        }
        self._fit(sets[0], backbone)

    def _fit(self, fitted_on: SentenceSet, backbone: WholeEncoder) -> None:
        chosen, sentences = sample(fitted_on.sentences, len(fitted_on.sentences), FITTED_ON)
        rows = [torch.from_numpy(np.asarray(part[chosen])) for part in self._rows[fitted_on.name]]
        self._means = [part.mean(0) for part in rows]
        teacher = self._concatenated(rows)
        width = backbone.backbone.width
        if teacher.shape[1] < width:
            raise InputError(
                f"the teachers' embeddings have {teacher.shape[1]} dimensions, expected at least the backbone's {width}"
            )
        ours = backbone.encode(sentences, progress="fitting targets").clone()
        _, directions = torch.linalg.eigh((teacher.T @ teacher).double())
        largest = directions[:, -width:].float()
        left, _, right = torch.linalg.svd(((teacher @ largest).T @ ours).double())
        device = backbone.backbone.device
        self._rotation = (largest @ (left @ right).float()).to(device)
        self._means = [mean.to(device) for mean in self._means]

    def _concatenated(self, rows: Sequence[Tensor]) -> Tensor:
        return torch.cat([unit_length(part - mean) for part, mean in zip(rows, self._means, strict=True)], dim=1)

    def of(self, name: str, numbers: np.ndarray) -> Tensor:
        """The targets `(n, G)`, unit length, of sentences by their numbers in a set, on the backbone's device."""
        rows = [torch.from_numpy(np.asarray(part[numbers])).to(self._rotation.device) for part in self._rows[name]]
        return unit_length(self._concatenated(rows) @ self._rotation)


def open_states(source: WholeEncoder, own: SentenceSet, cache: Path) -> TokenStore:
    """The last hidden states of a backbone for all sentences of a set, from an earlier run or computed now, memory-mapped."""
    weights = hashlib.blake2b(digest_size=16)
    for parameter in source.model.state_dict().values():
        weights.update(parameter.cpu().float().numpy().data)
    activation = getattr(source.model.config, "hidden_act", None)
    description = {
        "backbone": weights.hexdigest(),
        "activation": activation,
        "max_length": source.backbone.max_length,
        "sentences": own.identity,
    }

    @torch.no_grad()
    def write(path: Path) -> None:
        rest = iter(own.sentences)
        order: list[int] = []
        with (
            create_store(path, source.backbone.width) as writer,
            Progress(total=len(own.sentences), unit="sentence", desc=f"states of the backbone, {own.name}") as bar,
        ):
            while part := list(islice(rest, ENCODED_TOGETHER)):
                ids, _ = source.backbone.tokenize(part)
                by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
                before = len(order)
                for start in range(0, len(ids), ENCODED_AT_ONCE):
                    rows = by_length[start : start + ENCODED_AT_ONCE]
                    hidden, _ = source.hidden([ids[row] for row in rows])
                    for row, states in zip(rows, hidden.cpu().numpy(), strict=True):
                        writer.append(states[: len(ids[row])])
                        order.append(before + row)
                    bar.update(len(rows))
            writer.finish({}, description, order)

    return cached_store(cache / f"states-{short_hash(description)}.store", description, write)
