"""Text to sentence embeddings by a backbone and a head, in torch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from common.devices import choose_device
from common.errors import InputError
from common.progress import Progress
from evaluation.checkpoint import load_encoder
from evaluation.encoding import check_tokens
from evaluation.token_parts import token_parts
from model import EncoderConfig, SentenceEncoder, mean_pooling
from tokens.backbone import DEFAULT_MAX_LENGTH, Backbone


class HeadOnBackbone:
    """A backbone that turns text into token embeddings, and a head that turns these into sentence embeddings.

    Attributes:
        backbone: text to token embeddings.
        head: token embeddings to sentence embeddings, in evaluation mode, on the backbone's device.
    """

    def __init__(
        self,
        head: str | Path | SentenceEncoder | None = None,
        *,
        backbone: str | Backbone | None = None,
        layers: str | None = None,
        output_dim: int | None = None,
        max_length: int = DEFAULT_MAX_LENGTH,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load a head, a backbone, or both; see `text.TextEncoder`."""
        if head is None and backbone is None:
            raise InputError('nothing to encode with, expected a head such as "model.bin", a backbone, or both')
        if isinstance(head, (str, Path)):
            head = load_encoder(head)
        trained_on = {} if head is None else head.tokens_from
        backbone = backbone or trained_on.get("backbone")
        if backbone is None:
            raise InputError("this checkpoint does not say which backbone its tokens came from, give backbone=... as well")
        if isinstance(backbone, str):
            layers = layers or trained_on.get("layers")
            pooled = bool(trained_on.get("pooled"))
            backbone = Backbone(
                backbone, layers, pooled=pooled, max_length=max_length, device=str(choose_device(device)), dtype=dtype
            )
        tokens_from = {"backbone": backbone.name, "layers": backbone.layers} | ({"pooled": True} if backbone.pooled else {})
        if head is None:
            head = _untrained_head(backbone.dim, output_dim)
            head.tokens_from = tokens_from
        elif output_dim not in (None, head.config.output_dim):
            raise InputError(f"output_dim is {output_dim}, but the head's is {head.config.output_dim}")
        check_tokens(head, backbone.dim, tokens_from, "this backbone gives")
        self.backbone = backbone
        self.head = head.eval().to(backbone.device)

    @property
    def output_dim(self) -> int:
        """Number of dimensions of a sentence embedding."""
        return self.head.config.output_dim

    @property
    def max_length(self) -> int:
        """Tokens per sentence; longer sentences are truncated."""
        return self.backbone.max_length

    def tokenize(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """The token ids of each text, and how many texts were truncated."""
        return self.backbone.tokenize(texts)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], *, batch_size: int = 32, show_progress: bool = False) -> np.ndarray:
        """The embeddings `(n, output_dim)` of n texts, float32; warns if some are truncated."""
        ids, truncated = self.tokenize(texts)
        if truncated:
            count = "1 sentence was" if truncated == 1 else f"{truncated} sentences were"
            warnings.warn(f"{count} truncated to {self.max_length} tokens (max_length)", stacklevel=4)  # 2: inference_mode
        embeddings = np.empty((len(ids), self.output_dim), dtype=np.float32)
        with Progress(total=len(ids), unit="sentence", desc="encoding", disable=not show_progress) as bar:
            for rows, tokens, lengths in self.backbone.batches(ids, batch_size):
                embeddings[rows] = self.head(tokens, lengths).cpu().numpy()
                bar.update(len(rows))
        return embeddings

    @torch.inference_mode()
    def token_parts(self, ids: Sequence[int]) -> tuple[list[str], np.ndarray, np.ndarray]:
        """The T tokens of a sentence, their parts `(T, output_dim)` of its embedding, and their pooling weights `(T,)`.

        Raises:
            InputError: if the encoder takes sentence embeddings only.
        """
        if self.backbone.pooled:
            raise InputError("the encoder takes sentence embeddings (--pooled), so there are no tokens to explain")
        ((_, tokens, _),) = self.backbone.batches([ids], batch_size=1)
        parts, weights = token_parts(self.head, tokens[0])
        names = [self.backbone.tokenizer.decode([token]) for token in ids]
        return names, parts.cpu().numpy(), weights.cpu().numpy()


def _untrained_head(dim: int, output_dim: int | None) -> SentenceEncoder:
    if output_dim is None:
        return mean_pooling(dim)
    if output_dim < 1:
        raise InputError(f"output_dim is {output_dim}, expected 1 or more")
    return SentenceEncoder(EncoderConfig("projection", input_dim=dim, output_dim=output_dim))
