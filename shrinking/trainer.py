"""The training loop of a small whole encoder: unlabelled text first, then labelled pairs as well."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm import tqdm

from common.errors import InputError
from data import random_batches
from evaluation.scores import Scores
from schedulers import CosineAnnealingWarmupLR
from shrinking.targets import SentenceTargets
from tokens.sentence_files import SentenceFiles
from tokens.text_pairs import MAX_LABEL, TextPairs
from tokens.token_store import TokenStore
from training.whole_encoder import WholeEncoder, pooled, validate


@dataclass(frozen=True)
class Settings:
    """How a small encoder is trained.

    Attributes:
        text_epochs: passes over the unlabelled text.
        text_learning_rate: the peak there.
        text_batch: sentences per batch there.
        pair_epochs: passes over the labelled pairs.
        pair_learning_rate: the peak there.
        pair_batch: pairs per batch there.
        pair_text: unlabelled sentences added to each batch of pairs.
        token_weight: of the squared error of each token's last hidden state, over its mean square.
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


class ShrinkTrainer:
    """Trains a student to imitate the whole backbone or its teachers.

    Attributes:
        epoch: finished epochs, of text and of pairs.
        history: the validation scores after each epoch, first those before training.
        best: index into `history` of the weights that are kept.
    """

    def __init__(
        self,
        student: WholeEncoder,
        source: WholeEncoder | None,
        text: SentenceFiles | None,
        training: TextPairs | None,
        validation: TextPairs,
        targets: SentenceTargets | None,
        settings: Settings,
        states: TokenStore | None = None,
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
            states: the source's token states for the text, if they are on disk.
        """
        self.states = states
        self.student, self.source, self.text, self.training = student, source, text, training
        self.validation, self.targets, self.settings = validation, targets, settings
        stages = {"text": settings.text_epochs if text else 0, "pairs": settings.pair_epochs if training else 0}
        self._stage_of_epoch = [stage for stage, epochs in stages.items() for _ in range(epochs)]
        per_epoch = {
            "text": max(1, len(text) // settings.text_batch) if text else 0,
            "pairs": len(training) // settings.pair_batch if training else 0,
        }
        self._batches_of_epochs = [per_epoch[stage] for stage in self._stage_of_epoch]
        self._steps = {stage: per_epoch[stage] * epochs for stage, epochs in stages.items()}
        self.total_batches = sum(self._batches_of_epochs)
        self.device = torch.device(student.backbone.device)
        if training:
            self._labels = torch.from_numpy(training.labels)
            self._ids = [student.backbone.tokenize(side)[0] for side in (training.first, training.second)]
        self.epoch, self.best = 0, 0
        self.losses: list[float] = []
        self.history: list[Scores] = []
        self.on_batch: Callable[[str, float, float], None] = lambda stage, loss, score: None
        self.on_safe_point: Callable[[], None] = lambda: None
        if self._stage_of_epoch:
            self._begin_stage(self._stage_of_epoch[0])

    @property
    def batches_done(self) -> int:
        """Finished batches of the whole run."""
        return sum(self._batches_of_epochs[: self.epoch]) + len(self.losses)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume; the order of text and pairs follows from the seed and the epoch."""
        return {
            "student": self.student.model.state_dict(),
            "best student": self._best_weights,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
            "losses": self.losses,
            "history": [asdict(scores) for scores in self.history],
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a trainer of the same settings and data."""
        self.epoch, self.losses = state["epoch"], list(state["losses"])
        if self.epoch < len(self._stage_of_epoch):
            self._begin_stage(self._stage_of_epoch[self.epoch])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        self.student.model.load_state_dict(state["student"])
        self._best_weights = state["best student"]
        self.history, self.best = [Scores(**scores) for scores in state["history"]], state["best"]

    def save_best(self, folder: Path) -> None:
        """Nothing: the best weights are in the state."""

    def run(self) -> WholeEncoder:
        """Train all epochs, or the rest of them after resuming; returns the student with its best weights.

        Raises:
            InputError: if training diverged.
        """
        self.student.model.eval()  # no dropout: the targets are smooth, and text is plenty
        if not self.history:
            self._validate("before training")
        while self.epoch < len(self._stage_of_epoch):
            stage = self._stage_of_epoch[self.epoch]
            if not self.losses and self.epoch and self._stage_of_epoch[self.epoch - 1] != stage:
                self._begin_stage(stage)
            for batch in islice(self._batches(stage), len(self.losses), None):
                loss = self._loss(batch)
                loss.backward()
                nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
                self.losses.append(loss.item())
                self.on_batch(stage, self.losses[-1], self.history[-1].spearman)
                self.on_safe_point()
            mean = float(np.mean(self.losses))
            self.epoch, self.losses = self.epoch + 1, []
            self._validate(f"epoch {self.epoch} of {len(self._stage_of_epoch)} ({stage}), loss {mean:.4f}")
            self.on_safe_point()
        self.student.model.load_state_dict(self._best_weights)
        return self.student

    def _begin_stage(self, stage: str) -> None:
        rate = self.settings.text_learning_rate if stage == "text" else self.settings.pair_learning_rate
        steps = self._steps[stage]
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=rate, fused=True)
        self.schedule = CosineAnnealingWarmupLR(self.optimizer, warmup_steps=steps // 10, total_steps=steps)

    def _validate(self, when: str) -> None:
        scores = validate(self.student, self.validation)
        if np.isnan(scores.spearman):
            raise InputError(f"training diverged {when} (embeddings are not finite); choose a lower learning rate")
        self.history.append(scores)
        if len(self.history) == 1 or scores.spearman > self.history[self.best].spearman:
            self.best = len(self.history) - 1
            self._best_weights = copy.deepcopy(self.student.model.state_dict())
        line = f"validation Spearman {scores.spearman:.4f}, error {scores.mse:.4f}, unrelated {scores.unrelated:.2f}"
        tqdm.write(f"{when[:1].upper()}{when[1:]}: {line}", file=sys.stdout)
        sys.stdout.flush()

    def _batches(self, stage: str) -> Iterator[_Batch]:
        """The batches of the current epoch."""
        rng = np.random.default_rng([self.settings.seed, self.epoch])
        none = np.empty(0, dtype=np.int64)
        if stage == "text":  # each pool of sentences may end in a smaller batch: the surplus is left out
            for numbers, ids in islice(self._text_batches(rng, self.settings.text_batch), self._batches_of_epochs[self.epoch]):
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
            ids, _ = self.student.backbone.tokenize(sentences)
            order = np.array(sorted(range(len(ids)), key=lambda i: len(ids[i])))
            parts = np.split(order, range(size, len(order), size))
            for part in rng.permutation(len(parts)):
                yield numbers[parts[part]], [ids[i] for i in parts[part]]

    def _loss(self, batch: _Batch) -> Tensor:
        loss = torch.zeros(())
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
        hidden, mask = self.student.hidden(ids)
        embeddings, loss = pooled(hidden, mask), torch.zeros(())
        wanted = self.targets.of(name, numbers) if self.targets else None
        learns_tokens = self.settings.token_weight > 0 and self.student.model.config.num_hidden_layers > 0
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
        if name == "text" and self.states is not None:
            return self.states.padded(numbers)[0]
        assert self.source is not None
        return self.source.hidden(ids)[0]
