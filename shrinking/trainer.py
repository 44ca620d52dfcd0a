"""What a small whole encoder learns from: unlabelled text first, then labelled pairs as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from data import count_batches, random_batches
from evaluation.scores import Scores
from shrinking.targets import SentenceTargets
from tokens.sentence_files import SentenceFiles
from tokens.text_pairs import MAX_LABEL, TextPairs
from tokens.token_store import TokenStore
from training.whole_encoder import WholeEncoder, pooled
from training.whole_trainer import Stage, WholeTrainer


@dataclass(frozen=True)
class Settings:
    """How a small encoder is trained.

    Attributes:
        text_epochs: passes over the unlabelled text.
        text_learning_rate: peak learning rate on the text.
        text_batch: sentences per batch of text.
        pair_epochs: passes over the labelled pairs.
        pair_learning_rate: peak learning rate on the pairs.
        pair_batch: pairs per batch of pairs.
        pair_text: unlabelled sentences added to each batch of pairs.
        token_weight: of the squared error of the tokens' last hidden states, relative to their mean square.
        sentence_weight: of 1 - cosine with the target of each sentence.
        label_weight: of the squared error between the cosine of a pair and label / 5.
        seed: of all random choices.
    """

    text_epochs: int = 2
    text_learning_rate: float = 5e-4
    text_batch: int = 64
    pair_epochs: int = 2
    pair_learning_rate: float = 8e-5
    pair_batch: int = 32
    pair_text: int = 64
    token_weight: float = 1.0
    sentence_weight: float = 10.0
    label_weight: float = 20.0
    seed: int = 0


@dataclass(frozen=True)
class _Batch:
    """Unlabelled sentences, their numbers and token ids, and the rows of labelled pairs; either may be empty."""

    numbers: np.ndarray
    ids: list[list[int]]
    rows: np.ndarray


class ShrinkTrainer(WholeTrainer):
    """Trains a student to imitate the whole backbone or its teachers, without dropout: targets are smooth, and text is plenty."""

    def __init__(
        self,
        student: WholeEncoder,
        source: WholeEncoder | None,
        text: SentenceFiles | None,
        training: TextPairs | None,
        validation: TextPairs,
        targets: SentenceTargets | None,
        settings: Settings,
        states: Mapping[str, TokenStore] | None = None,
    ) -> None:
        """Prepare the training.

        Args:
            student: changed in place.
            source: the whole backbone, to imitate token by token, and without targets sentence by sentence; None if the student
                is the whole backbone.
            text: unlabelled sentences.
            training: labelled pairs.
            validation: pairs that choose the best epoch.
            targets: of the sentences, from teachers.
            settings: see there.
            states: the source's token states for the sets of sentences, by name, if they are on disk.
        """
        self.source, self.text, self.targets = source, text, targets
        self.settings, self.states = settings, states or {}
        if training:
            self._labels = torch.from_numpy(training.labels).to(student.backbone.device)
            self._ids = [student.backbone.tokenize(side)[0] for side in (training.first, training.second)]
        of_text = max(1, len(text) // settings.text_batch) if text else 0
        of_pairs = count_batches(len(training), settings.pair_batch) if training else 0
        stages = [
            Stage("text", settings.text_epochs if text else 0, of_text, settings.text_learning_rate),
            Stage("pairs", settings.pair_epochs if training else 0, of_pairs, settings.pair_learning_rate),
        ]
        super().__init__(student, validation, stages, settings.seed)

    @staticmethod
    def quality(scores: Scores) -> float:
        """Spearman less the error: this encoder is for use, and its cosines are to mean what they say."""
        return scores.spearman - scores.mse

    def batches(self) -> Iterator[_Batch]:
        """The batches of the current epoch."""
        rng, stage = np.random.default_rng([self.seed, self.epoch]), self.stages[self.epoch]
        none = np.empty(0, dtype=np.int64)
        if stage.name == "text":  # each pool of sentences may end in a smaller batch: the surplus is left out
            for numbers, ids in islice(self._text_batches(rng, self.settings.text_batch), stage.batches):
                yield _Batch(numbers, ids, none)
            return
        rows = random_batches(len(self._labels), self.settings.pair_batch, rng)
        if self.text is None or not self.settings.pair_text:
            yield from (_Batch(none, [], own) for own in rows)
            return
        text = self._text_batches(rng, self.settings.pair_text)
        for own in rows:
            if (batch := next(text, None)) is None:
                text = self._text_batches(rng, self.settings.pair_text)
                batch = next(text)
            yield _Batch(*batch, own)

    def _text_batches(self, rng: np.random.Generator, size: int) -> Iterator[tuple[np.ndarray, list[list[int]]]]:
        """Batches of similar length, in random order within each pool of sentences."""
        assert self.text is not None
        for numbers, sentences in self.text.shuffled(rng):
            ids, _ = self.encoder.backbone.tokenize(sentences)
            order = np.array(sorted(range(len(ids)), key=lambda i: len(ids[i])))
            parts = np.split(order, range(size, len(order), size))
            for part in rng.permutation(len(parts)):
                yield numbers[parts[part]], [ids[i] for i in parts[part]]

    def loss(self, batch: _Batch) -> Tensor:
        """The loss of a batch: imitation of its sentences, and the squared error of its pairs."""
        loss = torch.zeros((), device=self.device)
        if len(batch.numbers):
            loss = self._imitation("text", batch.numbers, batch.ids)[0]
        if len(batch.rows):
            ids = [self._ids[side][row] for row in batch.rows for side in (0, 1)]
            numbers = np.stack([2 * batch.rows, 2 * batch.rows + 1], axis=1).ravel()
            imitation, embeddings = self._imitation("pairs", numbers, ids)
            cosine = (embeddings[0::2] * embeddings[1::2]).sum(1)
            loss = loss + imitation + self.settings.label_weight * mse_loss(cosine, self._labels[batch.rows] / MAX_LABEL)
        return loss

    def _imitation(self, name: str, numbers: np.ndarray, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """The loss on sentences of the text or of the pairs, by their numbers there, and their embeddings `(B, G)`."""
        hidden, mask = self.encoder.hidden(ids)
        embeddings, loss = pooled(hidden, mask), torch.zeros((), device=self.device)
        wanted = self.targets.of(name, numbers) if self.targets else None
        learns_tokens = self.settings.token_weight > 0 and self.encoder.model.config.num_hidden_layers > 0
        if self.source is not None and (learns_tokens or wanted is None):
            whole = self._states_of_source(name, numbers, ids)
            if learns_tokens:
                loss = self.settings.token_weight * (((hidden - whole) * mask) ** 2).sum() / ((whole * mask) ** 2).sum()
            wanted = pooled(whole, mask) if wanted is None else wanted
        if wanted is not None:
            loss = loss + self.settings.sentence_weight * (1 - (embeddings * wanted).sum(1).mean())
        return loss, embeddings

    @torch.no_grad()
    def _states_of_source(self, name: str, numbers: np.ndarray, ids: list[list[int]]) -> Tensor:
        if name in self.states:
            return self.states[name].padded(numbers)[0].to(self.device)
        assert self.source is not None
        return self.source.hidden(ids)[0]
