"""A teacher for distillation: the whole backbone, fine-tuned on the training pairs."""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import InputError
from common.files import make_readable, write_text_atomically
from data import PairData
from evaluation.scores import Scores, score_embeddings
from losses import cosent, cosine_mse
from model import unit_length
from schedulers import CosineAnnealingWarmupLR
from tokens.backbone import Backbone

FACTS = "teacher.json"
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "squared": lambda first, second, labels: 100 * cosine_mse(first, second, labels, lowest=0),  # 100: gradients are clipped at 1
    "cosent": cosent,
}


class Teacher:
    """A backbone with mean pooling; everything but its word embeddings is trained.

    Word embeddings are half of a small backbone's parameters, and few of them occur in the training pairs: training them
    makes steps slower and gains nothing.
    """

    def __init__(self, backbone: Backbone, *, bfloat16: bool = False) -> None:
        """Wrap a backbone; `bfloat16` computes in half precision."""
        self.backbone = backbone
        self.model = backbone.model
        self.model.get_input_embeddings().requires_grad_(False)
        self.bfloat16 = bfloat16

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str], progress: str | None = None) -> Tensor:
        """The embeddings `(n, G)` of n sentences, unit length, on the CPU; `progress` labels a progress bar."""
        self.model.eval()
        if not sentences:
            return torch.empty(0, self.backbone.width)
        with tqdm(total=len(sentences), unit="sentence", desc=progress, disable=None if progress else True) as bar:
            return self.embed(self.backbone.tokenize(sentences)[0], batch_size=64, bar=bar).cpu()

    def embed(self, ids: Sequence[Sequence[int]], batch_size: int, bar: tqdm | None = None) -> Tensor:
        """The embeddings `(n, G)` of n tokenized sentences, unit length, computed in batches of similar length."""
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        embeddings = []
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            embeddings.append(self._embed_batch([ids[i] for i in rows]))
            if bar is not None:
                bar.update(len(rows))
        return torch.cat(embeddings)[torch.from_numpy(np.argsort(order))]

    def _embed_batch(self, ids: list[Sequence[int]]) -> Tensor:
        batch = self.backbone.pad(ids)
        with torch.autocast(self.backbone.device, torch.bfloat16) if self.bfloat16 else nullcontext():
            hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None]
        return unit_length((hidden.float() * mask).sum(1) / mask.sum(1))


def fine_tune(
    teacher: Teacher,
    training: PairData,
    validation: PairData,
    *,
    loss: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> Scores:
    """Fine-tune and keep the weights with the best Spearman on the validation pairs.

    Args:
        teacher: changed in place.
        training: pairs whose text is known.
        validation: pairs whose text is known; they should share no sentence with `training`.
        loss: squared, the squared error between the plain cosine and label / 5; or cosent, for ranks only.
        epochs: passes over the training pairs.
        batch_size: pairs per batch.
        learning_rate: the peak, after a warm-up of a tenth of the steps; then a cosine to 0.
        seed: of the order of the pairs and of dropout.

    Returns:
        The scores of these weights on the validation pairs.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    text, labels = training.text(), torch.from_numpy(training.labels)
    ids = [teacher.backbone.tokenize(side)[0] for side in (text.first, text.second)]
    steps = len(labels) // batch_size * epochs
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=learning_rate)
    schedule = CosineAnnealingWarmupLR(optimizer, warmup_steps=steps // 10, total_steps=steps)
    best, weights = validate(teacher, validation), copy.deepcopy(teacher.model.state_dict())
    print(f"Backbone, before training: validation Spearman {best.spearman:.4f}, error {best.mse:.4f}", flush=True)
    with tqdm(total=steps, unit="batch", desc="teacher", disable=None) as bar:
        for epoch in range(1, epochs + 1):
            teacher.model.train()
            order = rng.permutation(len(labels))
            for rows in np.split(order[: len(order) // batch_size * batch_size], len(order) // batch_size):
                first, second = teacher.embed([ids[side][row] for side in (0, 1) for row in rows], batch_size // 2).chunk(2)
                LOSSES[loss](first, second, labels[rows].to(first.device)).backward()
                nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                bar.update()
            scores = validate(teacher, validation)
            bar.write(
                f"Epoch {epoch} of {epochs}: validation Spearman {scores.spearman:.4f}, error {scores.mse:.4f}", file=sys.stdout
            )
            if scores.spearman > best.spearman:
                best, weights = scores, copy.deepcopy(teacher.model.state_dict())
    teacher.model.load_state_dict(weights)
    return best


def validate(teacher: Teacher, pairs: PairData) -> Scores:
    """The teacher's scores on pairs whose text is known."""
    text = pairs.text()
    return score_embeddings(teacher.encode(text.first), teacher.encode(text.second), pairs.labels)


def save_teacher(folder: Path, teacher: Teacher, facts: dict[str, Any]) -> None:
    """Write the fine-tuned backbone as a folder that transformers loads, with `facts` in teacher.json."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".teacher.", dir=folder) as temporary:
        written = Path(temporary)
        teacher.model.save_pretrained(written)
        teacher.backbone.tokenizer.save_pretrained(written)
        write_text_atomically(written / FACTS, json.dumps({**facts, "max_length": teacher.backbone.max_length}, indent=2) + "\n")
        make_readable(written)
        for path in sorted(written.iterdir()):
            os.replace(path, folder / path.name)


def read_teacher(folder: Path) -> dict[str, Any]:
    """The contents of a teacher's teacher.json.

    Raises:
        InputError: if teacher.py did not write the folder.
    """
    try:
        return json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("not a teacher, expected a folder written by teacher.py", path=folder) from error


def load_teacher(folder: Path) -> Teacher:
    """Load a teacher from its folder, on the CPU.

    Raises:
        InputError: if teacher.py did not write the folder.
    """
    return Teacher(Backbone(str(folder), "-1", max_length=read_teacher(folder)["max_length"]))
