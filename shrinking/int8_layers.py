"""Layers in int8: embedding tables, and linear layers whose inputs have fixed ranges, as ONNX Runtime computes them fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SMOOTHING = 0.8  # the share of a dimension's range that weights take over from the tokens
# Processors without VNNI instructions add two products of a uint8 and an int8 in an int16, and cut the sum off at 32,767. These
# ranges stay below, 2 * 191 * 85, so that embeddings are the same everywhere; all 8 bits would lose more there than they gain here.
LEVELS, LARGEST = 191, 85  # of tokens within their range, of weights
SMALLEST = 1e-5


@torch.no_grad()
def quantize(model: nn.Module, run: Callable[[Tensor], Any], sentences: Iterable[Tensor]) -> None:
    """Put embedding tables and linear layers of a model, in place, into int8.

    Weights have one scale per output, embedding tables one per token. The input of each linear layer has one fixed scale, from its
    range on some sentences: with dynamic scales an embedding would depend on the other sentences of its batch.

    A few dimensions of BERT's tokens are many times as large as the others, which would have to share their coarse steps. So the
    dimensions are evened out first, with the same result in float32. Source: Xiao et al. 2023, SmoothQuant: Accurate and Efficient
    Post-Training Quantization for Large Language Models.

    Args:
        model: has the layers.
        run: runs the model on the token ids of a sentence, `(1, T)`.
        sentences: some hundred, one at a time because padding would widen the ranges.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Embedding):
            model.set_submodule(name, _Int8Table(module.weight))
        elif isinstance(module, nn.GELU) or type(module).__name__ == "GELUActivation":
            model.set_submodule(name, _FastGelu())
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for inputs in _inputs(linear, run, sentences):
        joined = torch.cat([linear[name].weight for name in inputs.readers])
        weights = joined.abs().amax(0).clamp(min=SMALLEST)
        tokens = torch.maximum(-inputs.low, inputs.high).clamp(min=SMALLEST)
        factor = tokens**SMOOTHING / weights ** (1 - SMOOTHING)
        factor /= factor.log().mean().exp()
        for name in inputs.readers:
            model.set_submodule(name, _Int8Linear(linear[name], factor, inputs))


@torch.no_grad()
def fold_smoothing(first: nn.Module, second: nn.Module) -> None:
    """Fold the smoothing of the second quantized layer into the scales and the bias of the first, in place.

    The result is the same if the second reads what the first gives, dimension by dimension, and everything between them passes
    positive factors on, as ReLU and sums over tokens do.
    """
    assert isinstance(first, _Int8Linear) and isinstance(second, _Int8Linear) and second.inverse is not None
    first.scale = nn.Buffer(first.scale * second.inverse)
    first.bias = nn.Buffer(first.bias * second.inverse)
    second.inverse = None


@dataclass
class _Inputs:
    """The range of each dimension of some tokens, and the names of the linear layers that read them.

    Queries, keys and values read the same tokens, which then are smoothed and rounded once.
    """

    readers: list[str]
    low: Tensor
    high: Tensor


def _inputs(linear: Mapping[str, nn.Linear], run: Callable[[Tensor], Any], sentences: Iterable[Tensor]) -> list[_Inputs]:
    """The inputs of all linear layers that sentences run through: others, such as a pooler, are not part of the graph."""
    latest: dict[str, Tensor] = {}
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            latest[name] = inputs[0]
            tokens = inputs[0].flatten(0, -2)
            low, high = ranges.get(name, (tokens[0], tokens[0]))
            ranges[name] = torch.minimum(low, tokens.amin(0)), torch.maximum(high, tokens.amax(0))

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in linear.items()]
    for ids in sentences:
        run(ids)
    for hook in hooks:
        hook.remove()
    shared: dict[int, _Inputs] = {}
    for name, tokens in latest.items():
        shared.setdefault(id(tokens), _Inputs([], *ranges[name])).readers.append(name)
    return list(shared.values())


class _Int8Table(nn.Module):
    """An embedding table `(V, G)` in int8, with one scale per row."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.codes, self.scale = nn.Buffer((weight / scale).round().to(torch.int8)), nn.Buffer(scale)

    def forward(self, ids: Tensor) -> Tensor:
        return self.codes[ids].float() * self.scale[ids]


class _Int8Linear(nn.Module):
    """A linear layer in int8, of tokens whose dimensions are divided by a factor that the weights carry."""

    def __init__(self, linear: nn.Linear, factor: Tensor, inputs: _Inputs) -> None:
        super().__init__()
        low, high = (inputs.low / factor).min().clamp(max=0), (inputs.high / factor).max().clamp(min=0)
        weight = (linear.weight * factor).T
        scale = weight.abs().amax(0).clamp(min=SMALLEST**2) / LARGEST
        self.step = nn.Buffer((high - low).clamp(min=SMALLEST) / LEVELS)
        self.zero = nn.Buffer((-low / self.step).round().to(torch.uint8))
        self.weight, self.scale = nn.Buffer((weight / scale).round().to(torch.int8)), nn.Buffer(scale)
        self.inverse: Tensor | None = nn.Buffer(1 / factor)
        self.bias = nn.Buffer(torch.zeros(len(scale)) if linear.bias is None else linear.bias.detach())

    def forward(self, tokens: Tensor) -> Tensor:
        smooth = tokens if self.inverse is None else tokens * self.inverse
        return _Int8Product.apply(smooth, self.step, self.zero, self.weight, self.scale, self.bias)


class _Int8Product(torch.autograd.Function):
    """Tokens rounded to uint8, times weights in int8, in float32."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, step: Tensor, zero: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        codes = (tokens / step).round().add(zero).clamp(0, 255) - zero.float()
        return (codes @ weight.float()) * (step * scale) + bias

    @staticmethod
    def symbolic(graph: Any, tokens: Any, step: Any, zero: Any, weight: Any, scale: Any, bias: Any) -> Any:
        codes = graph.op("QuantizeLinear", tokens, step, zero)
        no_zero = graph.op("Constant", value_t=torch.tensor(0, dtype=torch.int8))
        product = graph.op("com.microsoft::MatMulIntegerToFloat", codes, weight, step, scale, zero, no_zero, bias)
        product.setType(tokens.type().with_sizes([None, None, weight.type().sizes()[1]]))  # which the exporter cannot tell
        return product


class _FastGelu(nn.Module):
    """GELU by tanh, which is faster."""

    def forward(self, tokens: Tensor) -> Tensor:
        return _FastGeluFunction.apply(tokens)


class _FastGeluFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor) -> Tensor:
        return nn.functional.gelu(tokens, approximate="tanh")

    @staticmethod
    def symbolic(graph: Any, tokens: Any) -> Any:
        result = graph.op("com.microsoft::FastGelu", tokens)
        result.setType(tokens.type())
        return result
