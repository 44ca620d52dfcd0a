"""A whole encoder, token ids to embeddings, as one ONNX graph, in float32 or int8."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model import ContextPooling, HybridPooling, SentenceEncoder
from shrinking.int8_layers import quantize
from shrinking.lean_bert import LeanBert

OPSET = 17
HIDDEN_BY_MASK = -1e4  # added to the attention scores of padding


class EncoderGraph(nn.Module):
    """Token ids and their mask, both `(B, T)`, to token states `(B, T, K)` and unit-length embeddings `(B, K)`.

    Embeddings are the mean of the token states at unit length, so that whoever pools them, as sentence-transformers does, gets
    the same. If the head does more than mean pooling, the state of every token is the sentence embedding.

    Attributes:
        has_token_states: whether the token states tell tokens apart.
    """

    def __init__(self, transformer: Any, head: SentenceEncoder, max_length: int, layers: Sequence[int] = (-1,)) -> None:
        """Put a head on hidden states, concatenated by token, of a copy of a transformer, for sentences of up to `max_length`."""
        super().__init__()
        self.transformer = copy.deepcopy(transformer).float().cpu()
        if hasattr(self.transformer, "set_attn_implementation"):
            self.transformer.set_attn_implementation("eager")
        if LeanBert.suits(self.transformer):
            self.transformer = LeanBert(self.transformer, max_length)
        self.head, self.layers = copy.deepcopy(head).cpu(), list(layers)
        self.has_token_states = head.config.architecture == "mean"
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch; nothing here depends on the values, so that it can be traced."""
        present = attention_mask.float()
        if getattr(self.transformer.config, "num_hidden_layers", 0):
            # Additive and in four dimensions, which transformers takes as it is: what it makes of a flat mask depends on values.
            mask = ((1 - present) * HIDDEN_BY_MASK)[:, None, None, :]
        else:
            mask = attention_mask
        if self.layers == [-1]:
            tokens = self.transformer(input_ids=input_ids, attention_mask=mask).last_hidden_state
        else:
            states = self.transformer(input_ids=input_ids, attention_mask=mask, output_hidden_states=True).hidden_states
            tokens = torch.cat([states[layer] for layer in self.layers], dim=-1)
        tokens = tokens * present[:, :, None]
        embeddings = self.head.head(self._pool(tokens, attention_mask))
        norms = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
        embeddings = embeddings / norms.clamp(min=torch.finfo(torch.float32).tiny)
        return (tokens if self.has_token_states else embeddings[:, None].expand(-1, tokens.shape[1], -1)), embeddings

    def _pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.has_token_states:
            return tokens.sum(1)  # has the direction of the mean, and only that is left at unit length
        pooling, lengths = self.head.pooling, mask.sum(1)
        if isinstance(pooling, ContextPooling):
            mean = pooling.mean(pooling.states(tokens, lengths), lengths)
            return torch.cat([_hybrid(pooling.hybrid, tokens, lengths), mean], dim=1)
        return _hybrid(pooling, tokens, lengths) if isinstance(pooling, HybridPooling) else pooling(tokens, lengths)


def _hybrid(pooling: HybridPooling, tokens: Tensor, lengths: Tensor) -> Tensor:
    """What hybrid pooling computes itself, in a form that ONNX has."""
    by_head = tokens.unflatten(2, (pooling.heads, -1)).transpose(1, 2)
    return (pooling.token_weights(tokens, lengths)[:, :, None] @ by_head).flatten(1)


def export(graph: EncoderGraph, path: Path) -> None:
    """Write a graph as ONNX."""
    ids = torch.ones(2, 3, dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    names = {"input_ids": "sentences", "attention_mask": "sentences", "last_hidden_state": "sentences"}
    axes = {name: {0: axis, 1: "tokens"} for name, axis in names.items()} | {"sentence_embedding": {0: "sentences"}}
    with warnings.catch_warnings():
        # The newer exporter needs two more packages.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (ids, mask),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state", "sentence_embedding"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def export_int8(graph: EncoderGraph, path: Path, calibration: Sequence[Sequence[int]]) -> None:
    """Write a graph as ONNX whose embedding tables and products with weights are int8.

    Args:
        graph: changed in place.
        path: file to write.
        calibration: tokenized sentences, some hundred, for the ranges.
    """

    def run(ids: Tensor) -> None:
        graph(ids, torch.ones_like(ids))

    quantize(graph.transformer, run, (torch.tensor([ids]) for ids in calibration))
    if isinstance(graph.transformer, LeanBert):
        graph.transformer.simplify_int8()
    export(graph, path)
