"""A teacher for distillation: the whole backbone, fine-tuned on the training pairs."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import InputError
from common.files import write_text_atomically
from data import PairData
from evaluation.scores import score_vectors
from losses import cosent
from model import unit_length
from schedulers import CosineAnnealingWarmupLR
from tokens.backbone import Backbone

FACTS = "teacher.json"


class Teacher:
    """A backbone with mean pooling, all of it trained but for its word embeddings.

    Word embeddings are half of a small backbone, few of them occur in the training pairs, and training them gains
    nothing but a slower step.
    """

    def __init__(self, backbone: Backbone, *, bfloat16: bool = False) -> None:
        """Take over a backbone.

        Args:
            backbone: the start.
            bfloat16: compute in half precision, faster on processors that have it.
        """
        self.backbone = backbone
        self.model = backbone.model
        self.model.get_input_embeddings().requires_grad_(False)
        self.bfloat16 = bfloat16

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str], progress: str | None = None) -> Tensor:
        """Sentence vectors `(n, G)`, unit length, on the CPU, of n sentences; `progress` names a progress bar."""
        self.model.eval()
        if not sentences:
            return torch.empty(0, self.backbone.width)
        with tqdm(total=len(sentences), unit="sentence", desc=progress, disable=None if progress else True) as bar:
            return self.embed(self.backbone.tokenize(sentences)[0], batch_size=64, bar=bar).cpu()

    def embed(self, ids: Sequence[Sequence[int]], batch_size: int, bar: tqdm | None = None) -> Tensor:
        """Sentence vectors `(n, G)`, unit length, of n tokenized sentences, in batches of similar length."""
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        vectors = []
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            vectors.append(self._embed_batch([ids[i] for i in numbers]))
            if bar is not None:
                bar.update(len(numbers))
        return torch.cat(vectors)[torch.from_numpy(np.argsort(order))]

    def _embed_batch(self, ids: list[Sequence[int]]) -> Tensor:
        batch = self.backbone.pad(ids)
        precision = torch.autocast(self.backbone.device, torch.bfloat16) if self.bfloat16 else nullcontext()
        with precision:
            hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None]
        return unit_length((hidden.float() * mask).sum(1) / mask.sum(1))


def fine_tune(
    teacher: Teacher, training: PairData, validation: PairData, *, epochs: int, batch_size: int, learning_rate: float, seed: int
) -> float:
    """Fine-tune with CoSENT and keep the weights of the epoch that is best on the validation pairs.

    Args:
        teacher: changed in place.
        training: pairs whose text is known.
        validation: pairs whose text is known; none of their sentences should be in `training`.
        epochs: passes over the training pairs.
        batch_size: pairs in a batch.
        learning_rate: the peak; it rises over a tenth of the steps and falls to 0.
        seed: of order and dropout.

    Returns:
        The best Spearman on the validation pairs.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    text, labels = training.text(), torch.from_numpy(training.labels)
    ids = [teacher.backbone.tokenize(side)[0] for side in (text.first, text.second)]
    steps = len(labels) // batch_size * epochs
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=learning_rate)
    schedule = CosineAnnealingWarmupLR(optimizer, warmup_steps=steps // 10, total_steps=steps)
    best, weights = validate(teacher, validation), copy.deepcopy(teacher.model.state_dict())
    print(f"Backbone, before training: validation Spearman {best:.4f}")
    with tqdm(total=steps, unit="batch", desc="teacher", disable=None) as bar:
        for _ in range(epochs):
            teacher.model.train()
            order = rng.permutation(len(labels))
            for rows in np.split(order[: len(order) // batch_size * batch_size], len(order) // batch_size):
                first, second = teacher.embed([ids[side][row] for side in (0, 1) for row in rows], batch_size // 2).chunk(2)
                loss = cosent(first, second, labels[rows].to(first.device))
                loss.backward()
                nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                bar.update()
            spearman = validate(teacher, validation)
            bar.set_postfix(validation=f"{spearman:.4f}")
            if spearman > best:
                best, weights = spearman, copy.deepcopy(teacher.model.state_dict())
    teacher.model.load_state_dict(weights)
    return best


def validate(teacher: Teacher, pairs: PairData) -> float:
    """Spearman on some pairs."""
    text = pairs.text()
    return score_vectors(teacher.encode(text.first), teacher.encode(text.second), pairs.labels).spearman


def save_teacher(folder: Path, teacher: Teacher, facts: dict[str, Any]) -> None:
    """Write the fine-tuned backbone as a folder that transformers loads, and what is known of it beside."""
    folder.mkdir(parents=True, exist_ok=True)
    teacher.model.save_pretrained(folder)
    teacher.backbone.tokenizer.save_pretrained(folder)
    write_text_atomically(folder / FACTS, json.dumps({**facts, "max_length": teacher.backbone.max_length}, indent=2) + "\n")


def read_teacher(folder: Path) -> dict[str, Any]:
    """What is known of a teacher.

    Raises:
        InputError: where the folder is not one that teacher.py made.
    """
    try:
        return json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("not a teacher, expected a folder that teacher.py made", path=folder) from error


def load_teacher(folder: Path, device: str = "cpu") -> Teacher:
    """A teacher from its folder.

    Raises:
        InputError: where it is not one.
    """
    return Teacher(Backbone(str(folder), "-1", max_length=read_teacher(folder)["max_length"], device=device))
