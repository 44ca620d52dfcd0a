"""Layers in int8: what ONNX Runtime computes is what they say, close to float32, for BERT and for other backbones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession, SessionOptions
from transformers import AutoModel, DistilBertConfig, DistilBertModel

from model import mean_pooling
from shrinking.int8_layers import quantize
from shrinking.onnx_export import EncoderGraph, export, export_int8

SENTENCES = [torch.randint(0, 12, (1, length), generator=torch.Generator().manual_seed(length)) for length in range(1, 12)]


@pytest.fixture(scope="module", params=["bert", "bert with ReLU", "distilbert"])
def transformer(request, tiny_bert):
    if request.param.startswith("bert"):
        return AutoModel.from_pretrained(tiny_bert, hidden_act="relu" if "ReLU" in request.param else "gelu")
    torch.manual_seed(0)
    return DistilBertModel(DistilBertConfig(vocab_size=19, dim=16, n_layers=2, n_heads=2, hidden_dim=32)).eval()


def padded() -> dict[str, np.ndarray]:
    ids, mask = np.zeros((len(SENTENCES), 11), np.int64), np.zeros((len(SENTENCES), 11), np.int64)
    for row, sentence in enumerate(SENTENCES):
        ids[row, : sentence.shape[1]], mask[row, : sentence.shape[1]] = sentence[0], 1
    return {"input_ids": ids, "attention_mask": mask}


def run(path) -> np.ndarray:
    return InferenceSession(path, providers=["CPUExecutionProvider"]).run(["sentence_embedding"], padded())[0]


@torch.no_grad()
def test_the_graph_in_float32_is_the_transformer_and_in_int8_what_its_layers_say(transformer, tmp_path):
    states = [transformer(ids).last_hidden_state[0].mean(0) for ids in SENTENCES]
    wanted = torch.nn.functional.normalize(torch.stack(states), dim=1).numpy()
    graph = EncoderGraph(transformer, mean_pooling(16), max_length=64)
    export(graph, tmp_path / "float.onnx")
    np.testing.assert_allclose(run(tmp_path / "float.onnx"), wanted, atol=1e-5)
    export_int8(graph, tmp_path / "int8.onnx", [ids[0].tolist() for ids in SENTENCES])
    ours = run(tmp_path / "int8.onnx")
    in_torch = graph(**{name: torch.from_numpy(value) for name, value in padded().items()})[1].numpy()
    np.testing.assert_allclose(ours, in_torch, atol=2e-3)  # where a token lies between two steps, they may differ by one
    assert 0.99 < (ours * wanted).sum(1).min() < 1 - 1e-6


def test_queries_keys_and_values_are_rounded_once(tiny_bert, tmp_path):
    graph = EncoderGraph(AutoModel.from_pretrained(tiny_bert), mean_pooling(16), max_length=64)
    export_int8(graph, tmp_path / "int8.onnx", [[2, 5, 3]])
    options = SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    InferenceSession(tmp_path / "int8.onnx", options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 3 * 6 and kinds.count("QuantizeLinear") == 3 * 4


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_what_layers_do_in_passing_gives_the_same_embeddings(tiny_bert, activation):
    graph = EncoderGraph(AutoModel.from_pretrained(tiny_bert, hidden_act=activation), mean_pooling(16), max_length=64)
    quantize(graph.transformer, lambda ids: graph(ids, torch.ones_like(ids)), SENTENCES)
    ids, mask = (torch.from_numpy(value) for value in padded().values())
    before = graph(ids, mask)[1]
    smoothed = [module for module in graph.modules() if getattr(module, "inverse", None) is not None]
    graph.transformer.simplify_int8()
    torch.testing.assert_close(graph(ids, mask)[1], before, atol=2e-3, rtol=0)
    left = [module for module in smoothed if module.inverse is not None]
    assert len(smoothed) - len(left) == 3 * (2 if activation == "relu" else 1)


@torch.no_grad()
@pytest.mark.parametrize("outlier", [1, 100])
def test_a_linear_layer_keeps_its_precision_beside_a_dimension_a_hundred_times_as_large(outlier):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    tokens = torch.randn(1, 500, 64) + 0.5
    tokens[..., 7] *= outlier
    model[0].weight[:, 7] /= outlier
    wanted = model(tokens)
    quantize(model, model, [tokens])
    error = (model(tokens) - wanted).std() / wanted.std()
    assert 0 < error < 0.02


@torch.no_grad()
def test_two_products_fit_into_an_int16_as_processors_without_vnni_add_them():
    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    model[0].weight.fill_(1)
    tokens = torch.rand(1, 500, 64, generator=torch.Generator().manual_seed(0))
    quantize(model, model, [tokens])
    layer = model[0]
    codes = (tokens * layer.inverse / layer.step).round() + layer.zero
    products = codes[..., None] * layer.weight.float()
    assert 30_000 < (products[..., 0::2, :] + products[..., 1::2, :]).max() < 2**15
