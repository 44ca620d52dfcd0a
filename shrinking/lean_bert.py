"""BERT with as few operations as it needs: what an ONNX graph of it repeats for every sentence is a third of a short one's time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from shrinking.int8_layers import fold_smoothing


class LeanBert(nn.Module):
    """The forward pass of a BERT encoder, over its own modules."""

    def __init__(self, bert: Any, max_length: int) -> None:
        """Wrap a BertModel of transformers for sentences of at most `max_length` tokens."""
        super().__init__()
        tables = bert.embeddings
        positions = tables.position_embeddings.weight[:max_length] + tables.token_type_embeddings.weight[0]
        self.positions = nn.Buffer(positions.detach().clone())
        self.words, self.norm, self.layers = tables.word_embeddings, tables.LayerNorm, bert.encoder.layer
        self.config = bert.config

    @staticmethod
    def suits(model: Any) -> bool:
        """Whether a model is a BERT encoder."""
        return type(model).__name__ == "BertModel" and not model.config.is_decoder

    def simplify_int8(self) -> None:
        """Fold factors of smoothing, and ReLU, into the quantized layers."""
        for layer in self.layers:
            fold_smoothing(layer.attention.self.value, layer.attention.output.dense)
            if isinstance(layer.intermediate.intermediate_act_fn, nn.ReLU):
                fold_smoothing(layer.intermediate.dense, layer.output.dense)
                layer.intermediate.intermediate_act_fn = nn.Identity()  # rounding to unsigned integers cuts off at 0 as well

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        """Token ids `(B, T)` and an additive mask `(B, 1, 1, T)` to hidden states `(B, T, G)`, as transformers names them."""
        tokens = self.norm(self.words(input_ids) + self.positions[: input_ids.shape[1]])
        states = [tokens]
        for layer in self.layers:
            tokens = self._layer(layer, tokens, attention_mask)
            states.append(tokens)
        return SimpleNamespace(last_hidden_state=tokens, hidden_states=states)

    def _layer(self, layer: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        attention, heads = layer.attention, self.config.num_attention_heads
        projections = (attention.self.query, attention.self.key, attention.self.value)
        query, key, value = (_Reshape.apply(project(tokens), (0, 0, heads, -1)).transpose(1, 2) for project in projections)
        weights = (query @ key.transpose(2, 3) * attention.self.scaling + mask).softmax(3)
        context = _Reshape.apply((weights @ value).transpose(1, 2), (0, 0, -1))
        tokens = attention.output.LayerNorm(attention.output.dense(context) + tokens)
        inner = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(tokens))
        return layer.output.LayerNorm(layer.output.dense(inner) + tokens)


class _Reshape(torch.autograd.Function):
    """A reshape where 0 stands for a dimension that stays; torch alone would have ONNX compute each shape anew."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, shape: tuple[int, ...]) -> Tensor:
        return tokens.reshape([size or tokens.shape[i] for i, size in enumerate(shape)])

    @staticmethod
    def symbolic(graph: Any, tokens: Any, shape: tuple[int, ...]) -> Any:
        return graph.op("Reshape", tokens, graph.op("Constant", value_t=torch.tensor(shape)))
