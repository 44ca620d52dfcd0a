"""A whole encoder, token ids to embeddings, as one ONNX graph, in float32 or int8."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime import quantization
from torch import Tensor, nn

from model import HybridPooling, SentenceEncoder

OPSET = 17
SMOOTHING = 0.8  # the share of a dimension's range that weights take over from the tokens
HIDDEN_BY_MASK = -1e4  # added to the attention scores of padding


class EncoderGraph(nn.Module):
    """Token ids and their mask, both `(B, T)`, to token states `(B, T, K)` and unit-length embeddings `(B, K)`.

    Embeddings are the mean of the token states at unit length, so that whoever pools them, as sentence-transformers does, gets
    the same. If the head does more than mean pooling, the state of every token is the sentence embedding.

    Attributes:
        has_token_states: whether the token states tell tokens apart.
    """

    def __init__(self, transformer: Any, head: SentenceEncoder, layers: Sequence[int] = (-1,)) -> None:
        """Put a head on hidden states, concatenated by token, of a copy of a transformer."""
        super().__init__()
        self.transformer = copy.deepcopy(transformer).float().cpu()
        if hasattr(self.transformer, "set_attn_implementation"):
            self.transformer.set_attn_implementation("eager")
        self.head, self.layers = copy.deepcopy(head).cpu(), list(layers)
        self.has_token_states = head.config.architecture == "mean"
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch; nothing here depends on the values, so that it can be traced."""
        if getattr(self.transformer.config, "num_hidden_layers", 0):
            # Additive and in four dimensions, which transformers takes as it is: what it makes of a flat mask depends on values.
            mask = ((1 - attention_mask.float()) * HIDDEN_BY_MASK)[:, None, None, :]
        else:
            mask = attention_mask
        if self.layers == [-1]:
            tokens = self.transformer(input_ids=input_ids, attention_mask=mask).last_hidden_state
        else:
            states = self.transformer(input_ids=input_ids, attention_mask=mask, output_hidden_states=True).hidden_states
            tokens = torch.cat([states[layer] for layer in self.layers], dim=-1)
        tokens = tokens * attention_mask[:, :, None].float()
        embeddings = self.head.head(self._pool(tokens, attention_mask.sum(1)))
        norms = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
        embeddings = embeddings / norms.clamp(min=torch.finfo(torch.float32).tiny)
        return (tokens if self.has_token_states else embeddings[:, None].expand(-1, tokens.shape[1], -1)), embeddings

    def _pool(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        pooling = self.head.pooling
        if not isinstance(pooling, HybridPooling):
            return pooling(tokens, lengths)
        # What it computes itself, in a form that ONNX has.
        by_head = tokens.unflatten(2, (pooling.heads, -1)).transpose(1, 2)
        return (pooling.token_weights(tokens, lengths)[:, :, None] @ by_head).flatten(1)


def export_float(graph: EncoderGraph, path: Path) -> None:
    """Write a graph as ONNX in float32."""
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

    Weights have one scale per output, embedding tables one per token. The input of each product has one fixed scale, from its range
    on the calibration sentences. With dynamic scales an embedding would depend on the other sentences of its batch.

    Args:
        graph: changed in place.
        path: file to write.
        calibration: tokenized sentences, some hundred.
    """
    _quantize_tables(graph.transformer)
    _smooth(graph, calibration)
    float_path = path.with_name(f"{path.name}.float")
    try:
        export_float(graph, float_path)
        with_weights = _products_with_weights(onnx.load(float_path))
        if not with_weights:  # static embeddings: nothing but a table
            os.replace(float_path, path)
            return
        logging.disable(logging.WARNING)  # it advises a step that is not needed for this graph
        quantization.quantize_static(
            float_path,
            path,
            _Calibration(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=with_weights,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
    finally:
        logging.disable(logging.NOTSET)
        float_path.unlink(missing_ok=True)


class _Int8Table(nn.Module):
    """An embedding table `(V, G)` in int8, with one scale per row."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.codes, self.scale = nn.Buffer((weight / scale).round().to(torch.int8)), nn.Buffer(scale)

    def forward(self, ids: Tensor) -> Tensor:
        return self.codes[ids].float() * self.scale[ids]


class _Smoothed(nn.Module):
    """A linear layer of tokens whose large dimensions were divided by a factor that its weights carry."""

    def __init__(self, linear: nn.Linear, factor: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.linear.weight = nn.Parameter(linear.weight * factor)
        self.inverse = nn.Buffer(1 / factor)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(tokens * self.inverse)


def _quantize_tables(transformer: nn.Module) -> None:
    for name, module in list(transformer.named_modules()):
        if isinstance(module, nn.Embedding):
            transformer.set_submodule(name, _Int8Table(module.weight.detach()))


@torch.no_grad()
def _smooth(graph: EncoderGraph, calibration: Sequence[Sequence[int]]) -> None:
    """Even out the dimensions of what goes into each linear layer, with the same result in float32.

    A few dimensions of BERT's tokens are many times as large as the others, which would have to share their coarse steps.
    Source: Xiao et al. 2023, SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models.
    """
    largest: dict[str, Tensor] = {}
    linear = {name: module for name, module in graph.transformer.named_modules() if isinstance(module, nn.Linear)}

    def watch(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            own = inputs[0].abs().flatten(0, -2).amax(0)
            largest[name] = torch.maximum(largest[name], own) if name in largest else own

        return note

    hooks = [module.register_forward_hook(watch(name)) for name, module in linear.items()]
    for batch in _Calibration(calibration).batches():
        graph(**{name: torch.from_numpy(value) for name, value in batch.items()})
    for hook in hooks:
        hook.remove()
    for name in largest:  # others, such as a pooler, are not part of the graph
        tokens, weights = largest[name].clamp(min=1e-5), linear[name].weight.abs().amax(0).clamp(min=1e-5)
        factor = tokens**SMOOTHING / weights ** (1 - SMOOTHING)
        graph.transformer.set_submodule(name, _Smoothed(linear[name], factor / factor.log().mean().exp()))


def _products_with_weights(contents: onnx.ModelProto) -> list[str]:
    """The names of the products of tokens with weights: not those of attention, of tokens with tokens."""
    weights = {tensor.name for tensor in contents.graph.initializer}
    return [node.name for node in contents.graph.node if node.op_type == "MatMul" and node.input[1] in weights]


class _Calibration(quantization.CalibrationDataReader):
    """Tokenized sentences one at a time, as inputs of the graph: their padding must not widen the range."""

    def __init__(self, sentences: Sequence[Sequence[int]]) -> None:
        self._sentences = sentences
        self._next = self.batches()

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        for ids in self._sentences:
            yield {"input_ids": np.array([ids], dtype=np.int64), "attention_mask": np.ones((1, len(ids)), dtype=np.int64)}

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._next, None)
