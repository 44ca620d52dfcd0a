"""A whole encoder, text to sentence embedding, that is trained: a backbone with mean pooling."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.progress import Progress
from evaluation.scores import Scores, score_embeddings
from model import unit_length
from tokens.backbone import Backbone
from tokens.text_pairs import TextPairs


class WholeEncoder:
    """A backbone with mean pooling; everything but its word embeddings is trained.

    Word embeddings are half of a small backbone's parameters, and few of them occur in the training pairs: training them
    makes steps slower and gains nothing, unless they are all there is.
    """

    def __init__(self, backbone: Backbone, *, bfloat16: bool = False, train_words: bool = False) -> None:
        """Wrap a backbone; `bfloat16` computes in half precision."""
        self.backbone = backbone
        self.model: Any = backbone.model
        self.model.get_input_embeddings().requires_grad_(train_words)
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
        with Progress(total=len(sentences), unit="sentence", desc=progress, disable=not progress) as bar:
            together = 64 if self.backbone.device == "cpu" else 512
            return self.embed(self.backbone.tokenize(sentences)[0], batch_size=together, bar=bar).cpu()

    def embed(self, ids: Sequence[Sequence[int]], batch_size: int, bar: Progress | None = None) -> Tensor:
        """The embeddings `(n, G)` of n tokenized sentences, unit length, computed in batches of similar length."""
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        embeddings = []
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            embeddings.append(pooled(*self.hidden([ids[i] for i in rows])))
            if bar is not None:
                bar.update(len(rows))
        return torch.cat(embeddings)[torch.from_numpy(np.argsort(order))]

    def hidden(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The last hidden states `(B, T, G)` of a batch of tokenized sentences, float32, and their mask `(B, T, 1)`."""
        batch = self.backbone.pad(ids)
        with torch.autocast(self.backbone.device, torch.bfloat16) if self.bfloat16 else nullcontext():
            hidden = self.model(**batch).last_hidden_state
        return hidden.float(), batch["attention_mask"][:, :, None]


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of the tokens `(B, T, G)` where the mask `(B, T, 1)` is 1, at unit length: `(B, G)`."""
    return unit_length((hidden * mask).sum(1) / mask.sum(1))


def validate(encoder: WholeEncoder, pairs: TextPairs) -> Scores:
    """The encoder's scores on pairs."""
    return score_embeddings(encoder.encode(pairs.first), encoder.encode(pairs.second), pairs.labels)
