"""The model contract of the challenge, point by point, for every architecture."""

from __future__ import annotations

import ast
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from model import EncoderConfig, SentenceEncoder, get_model, mean_pooling, sentence_lengths, unit_length

CONFIGS = {
    "hybrid": EncoderConfig(),
    "hybrid without MLP": EncoderConfig(hidden_dim=0),
    "hybrid with context": EncoderConfig(context_layers=2, context_dim=64),
    "published": EncoderConfig("published"),
    "gated": EncoderConfig("gated", heads=1),
    "twin": EncoderConfig("twin", output_dim=32),
    "mean": EncoderConfig("mean", output_dim=768),
}


@pytest.fixture(params=CONFIGS, scope="module")
def encoder(request) -> SentenceEncoder:
    """Each architecture with random weights everywhere, so that nothing hides behind a zero."""
    torch.manual_seed(0)
    encoder = SentenceEncoder(CONFIGS[request.param]).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder


def sentence(length: int, seed: int = 0, dim: int = 768) -> torch.Tensor:
    return torch.randn(1, length, dim, generator=torch.Generator().manual_seed(seed))


def pad(tokens: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([tokens, torch.zeros(tokens.shape[0], rows, tokens.shape[2])], dim=1)


def test_output_is_float32_of_unit_length(encoder):
    vectors = encoder(torch.randn(5, 7, 768))
    assert vectors.shape == (5, encoder.config.output_dim)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 17, 512])
@pytest.mark.parametrize("padding", [1, 5, 300])
def test_padding_never_changes_a_vector(encoder, length, padding):
    tokens = sentence(length)
    torch.testing.assert_close(encoder(pad(tokens, padding)), encoder(tokens), atol=1e-6, rtol=0)


def test_other_sentences_never_change_a_vector(encoder):
    lengths = [1, 3, 12, 40, 7]
    alone = torch.cat([encoder(sentence(length, seed=length)) for length in lengths])
    together = encoder(torch.cat([pad(sentence(length, seed=length), 40 - length) for length in lengths]))
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_lengths_that_are_known_change_nothing(encoder):
    tokens = torch.cat([pad(sentence(5), 4), pad(sentence(9), 0), torch.zeros(1, 9, 768)])
    assert torch.equal(encoder(tokens, torch.tensor([5, 9, 0])), encoder(tokens))


def test_a_zero_row_inside_is_a_token_and_after_the_end_is_padding(encoder):
    tokens = sentence(6)
    inside = tokens.clone()
    inside[:, 2] = 0
    without = torch.cat([tokens[:, :2], tokens[:, 3:]], dim=1)
    torch.testing.assert_close(encoder(pad(inside, 4)), encoder(inside), atol=1e-6, rtol=0)
    if encoder.config.architecture != "mean":  # a mean's direction is the same with one more zero
        assert (encoder(inside) - encoder(without)).abs().max() > 1e-4


@pytest.mark.parametrize(
    "row", [[1, -1, 0, 0], [-1, -2, 0, -3], [0, 0, 0, -1e-40], [1e-45, 0, 0, -1e-45], [3e38, 3e38, -3e38, -3e38]]
)
def test_a_row_is_a_token_wherever_one_value_is_not_zero(row):
    """Also where its values cancel, none is positive, or they are the smallest there are."""
    tokens = torch.zeros(1, 5, 4)
    tokens[0, 2] = torch.tensor(row)
    assert sentence_lengths(tokens).tolist() == [3]


def test_mean_pooling_counts_a_zero_row_inside():
    tokens = sentence(4)
    tokens[:, 1] = 0
    pooled = mean_pooling(768).pooling(pad(tokens, 3), torch.tensor([4]))
    torch.testing.assert_close(pooled, tokens.mean(1))


@pytest.mark.parametrize("rows", [0, 1, 9])
def test_a_sentence_of_padding_is_a_finite_unit_vector(encoder, rows):
    vector = encoder(torch.zeros(2, rows, 768))
    assert vector.isfinite().all()
    torch.testing.assert_close(vector.norm(dim=1), torch.ones(2), atol=1e-6, rtol=0)
    beside = encoder(torch.cat([torch.zeros(1, 9, 768), sentence(9)]))
    torch.testing.assert_close(beside[0], vector[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e18])
def test_any_scale_of_tokens_gives_a_unit_vector(encoder, scale):
    vector = encoder(sentence(5) * scale)
    assert vector.isfinite().all()
    torch.testing.assert_close(vector.norm(dim=1), torch.ones(1), atol=1e-5, rtol=0)


def test_encoding_twice_gives_the_same_bits(encoder):
    tokens = torch.randn(8, 20, 768)
    assert torch.equal(encoder(tokens), encoder(tokens))


def test_gradients_are_finite_with_padding_and_empty_sentences(encoder):
    trainable = SentenceEncoder(encoder.config).train()
    tokens = torch.cat([torch.zeros(1, 6, 768), pad(sentence(2), 4)]).requires_grad_()
    trainable(tokens)[:, 0].sum().backward()
    gradients = [tokens.grad, *(parameter.grad for parameter in trainable.parameters())]
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@given(
    tokens=st.integers(0, 12),
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=24),
    padding=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_contract_holds_for_any_tokens(tokens, values, padding):
    torch.manual_seed(1)
    encoder = SentenceEncoder(EncoderConfig(input_dim=8, output_dim=4, heads=2, hidden_dim=8)).eval()
    torch.nn.init.normal_(encoder.pooling.score.weight)
    batch = torch.from_numpy(np.resize(np.array(values, np.float32), (1, tokens, 8)))
    vector = encoder(batch)
    assert vector.isfinite().all()
    assert abs(vector.norm().item() - 1) < 1e-5
    torch.testing.assert_close(encoder(pad(batch, padding)), vector, atol=1e-5, rtol=0)


@torch.no_grad()
def test_hybrid_agrees_with_slow_obvious_code():
    torch.manual_seed(2)
    config = EncoderConfig(input_dim=12, output_dim=5, heads=3, hidden_dim=7)
    encoder = SentenceEncoder(config).eval()
    torch.nn.init.normal_(encoder.pooling.score.weight)
    torch.nn.init.normal_(encoder.pooling.attention_share)
    tokens = torch.randn(6, 12)
    pooled = []
    for head in range(3):
        scores = [float(encoder.pooling.score.weight[head] @ token) for token in tokens]
        total = sum(math.exp(score) for score in scores)
        share = 1 / (1 + math.exp(-float(encoder.pooling.attention_share[head])))
        for dimension in range(4 * head, 4 * head + 4):
            attention = sum(math.exp(score) / total * float(token[dimension]) for score, token in zip(scores, tokens, strict=True))
            mean = sum(float(token[dimension]) for token in tokens) / len(tokens)
            pooled.append(share * attention + (1 - share) * mean)
    projected = encoder.head.projection(torch.tensor([pooled]))
    expected = projected + encoder.head.departure(projected)
    torch.testing.assert_close(encoder(tokens[None]), expected / expected.norm(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_context_agrees_with_slow_obvious_code():
    torch.manual_seed(3)
    config = EncoderConfig(input_dim=12, output_dim=5, heads=3, hidden_dim=0, context_layers=2, context_dim=128)
    encoder = SentenceEncoder(config).eval()
    tokens = torch.randn(6, 12)
    states = [encoder.pooling.narrow(token) for token in tokens]
    for layer in encoder.pooling.layers:
        projected = [layer.queries_keys_values(layer.attention_norm(state)) for state in states]
        for i, state in enumerate(states):
            heads = []
            for head in (slice(0, 64), slice(64, 128)):
                scores = torch.stack([projected[i][:128][head] @ own[128:256][head] / 8 for own in projected])
                weights = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
                heads.append(sum(weight * own[256:][head] for weight, own in zip(weights, projected, strict=True)))
            attended = state + layer.attended(torch.cat(heads))
            inner = layer.mlp[0](layer.mlp_norm(attended))
            states[i] = attended + layer.mlp[3](0.5 * inner * (1 + torch.erf(inner / math.sqrt(2))))
    mean = sum(encoder.pooling.norm(state) for state in states) / 6
    pooled = torch.cat([encoder.pooling.hybrid(tokens[None], None)[0], mean])
    expected = encoder.head.projection(pooled)
    torch.testing.assert_close(encoder(pad(tokens[None], 3))[0], expected / expected.norm(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_published_agrees_with_slow_obvious_code():
    torch.manual_seed(3)
    encoder = SentenceEncoder(EncoderConfig("published", input_dim=10)).eval()
    linear, norm, gelu = encoder.pooling.token_encoder
    tokens = torch.randn(5, 10)
    encoded = [gelu(norm(linear(token))) for token in tokens]
    weights = torch.softmax(torch.stack([encoder.pooling.score(token)[0] for token in encoded]), 0)
    attention = sum(weight * token for weight, token in zip(weights, encoded, strict=True))
    expected = encoder.head(0.7 * attention + 0.3 * sum(encoded) / 5)
    assert encoder.head.out_features == 256 and linear.out_features == 128
    torch.testing.assert_close(encoder(pad(tokens[None], 3))[0], expected / expected.norm(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_twin_agrees_with_slow_obvious_code():
    torch.manual_seed(0)
    encoder = SentenceEncoder(EncoderConfig("twin", input_dim=384, output_dim=32)).eval()
    layers = [layer for layer in encoder.head if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(384, 128), (128, 64), (64, 32)]
    token = sentence(1, dim=384)
    values = token[0, 0].numpy()
    for i, layer in enumerate(layers):
        values = layer.weight.numpy() @ values + layer.bias.numpy()
        values = np.maximum(values, 0) if i < 2 else values
    np.testing.assert_allclose(encoder(token)[0], values / np.linalg.norm(values), atol=1e-6)


@torch.no_grad()
def test_a_centred_start_is_principal_components():
    from sklearn.decomposition import PCA

    sentences = unit_length(torch.randn(300, 16, generator=torch.Generator().manual_seed(0)) + 1)
    encoder = SentenceEncoder(EncoderConfig(input_dim=16, output_dim=5, heads=4)).eval()
    encoder.start_as_mean_pooling(sentences, centred=True)
    expected = PCA(5, svd_solver="full").fit(sentences.double()).transform(sentences.double())
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    ours = encoder(sentences[:, None])
    np.testing.assert_allclose(ours @ ours.T, expected @ expected.T, atol=1e-4)


def test_outputs_beyond_the_width_of_the_tokens_begin_at_zero():
    encoder = SentenceEncoder(EncoderConfig(input_dim=8, output_dim=20, heads=2, hidden_dim=4)).eval()
    sentences = torch.randn(50, 8)
    encoder.start_as_mean_pooling(sentences)
    vectors, expected = encoder(sentences[:, None]), torch.nn.functional.normalize(sentences)
    assert torch.allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-5)
    assert not vectors[:, 8:].any()


@pytest.mark.parametrize("context_layers", [0, 2])
def test_hybrid_starts_as_mean_pooling(context_layers):
    """With as many dimensions out as in, every cosine is the baseline's; with fewer, principal directions keep the most."""
    context = {"context_layers": context_layers, "context_dim": 64}
    rng = torch.Generator().manual_seed(4)
    tokens = torch.randn(200, 5, 16, generator=rng) * torch.linspace(2, 0.1, 16)
    baseline = mean_pooling(16)(tokens)
    exact = SentenceEncoder(EncoderConfig(input_dim=16, output_dim=16, heads=4, **context)).eval()
    exact.start_as_mean_pooling(baseline)
    torch.testing.assert_close(exact(tokens) @ exact(tokens).T, baseline @ baseline.T, atol=1e-5, rtol=0)
    errors = []
    for output_dim in (2, 6, 12):
        smaller = SentenceEncoder(EncoderConfig(input_dim=16, output_dim=output_dim, heads=4, **context)).eval()
        smaller.start_as_mean_pooling(baseline)
        largest = torch.linalg.svd(baseline, full_matrices=False)[2][:output_dim]
        kept = smaller.head.projection.weight[:, :16]
        torch.testing.assert_close(kept.T @ kept, largest.T @ largest, atol=1e-4, rtol=0)  # the same subspace
        errors.append((smaller(tokens) @ smaller(tokens).T - baseline @ baseline.T).abs().mean())
    assert errors == sorted(errors, reverse=True)


def test_model_file_imports_torch_and_the_standard_library_only():
    tree = ast.parse((ROOT / "model.py").read_text())
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported - set(sys.stdlib_module_names) == {"torch"}


def test_state_dict_is_tensors_and_rebuilds_the_encoder(encoder, tmp_path):
    encoder.tokens_from = {"backbone": "some-backbone", "layers": "2,-1"}
    path = tmp_path / "model.bin"
    torch.save(encoder.state_dict(), path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    again = get_model(path).eval()
    assert again.load_state_dict(state, strict=True) == ([], [])
    assert asdict(again.config) == asdict(encoder.config)
    assert again.tokens_from == {"backbone": "some-backbone", "layers": "2,-1"}
    tokens = torch.randn(3, 9, 768)
    assert torch.equal(again(tokens), encoder(tokens))


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (EncoderConfig(output_dim=128), "output_dim is 128, here 256"),
        (EncoderConfig("published"), "architecture is 'published', here 'hybrid'"),
        (EncoderConfig(heads=16, hidden_dim=64), "heads is 16, here 8; hidden_dim is 64, here 512"),
    ],
)
def test_loading_into_another_architecture_says_what_differs(other, difference):
    with pytest.raises(ValueError, match=difference):
        SentenceEncoder(EncoderConfig()).load_state_dict(SentenceEncoder(other).state_dict())


def test_a_checkpoint_from_before_context_layers_loads():
    encoder = SentenceEncoder(EncoderConfig())
    state = encoder.state_dict()
    contents = json.loads(bytes(state["_extra_state"].tolist()))
    del contents["config"]["context_layers"], contents["config"]["context_dim"]
    state["_extra_state"] = torch.frombuffer(bytearray(json.dumps(contents), "utf-8"), dtype=torch.uint8)
    assert encoder.load_state_dict(state) == ([], [])
    contents["config"]["newer"] = 1
    state["_extra_state"] = torch.frombuffer(bytearray(json.dumps(contents), "utf-8"), dtype=torch.uint8)
    with pytest.raises(ValueError, match="checkpoint of another version: its configuration differs in newer"):
        encoder.load_state_dict(state)


def test_dropout_is_not_a_difference():
    SentenceEncoder(EncoderConfig(dropout=0.0)).load_state_dict(SentenceEncoder(EncoderConfig(dropout=0.5)).state_dict())


@pytest.mark.parametrize("state", [{}, {"weight": torch.zeros(2)}, [1, 2], {"_extra_state": torch.zeros(3, dtype=torch.uint8)}])
def test_a_file_that_is_no_checkpoint_is_refused(state, tmp_path):
    torch.save(state, tmp_path / "model.bin")
    with pytest.raises(ValueError, match="not a checkpoint"):
        get_model(tmp_path / "model.bin")


def test_a_file_that_torch_cannot_read_is_refused(tmp_path):
    for content in (b"", b"no checkpoint", b"PK\x03\x04 cut short", b"sentence1,sentence2\n", b"hello\n"):
        (tmp_path / "model.bin").write_bytes(content)
        with pytest.raises(ValueError, match="not a checkpoint"):
            get_model(tmp_path / "model.bin")


def test_impossible_configurations_are_refused():
    for config, message in (
        (EncoderConfig("transformer"), "architecture is 'transformer'"),
        (EncoderConfig(heads=7), "heads is 7"),
        (EncoderConfig(context_layers=-1), "context_layers is -1, expected 0 or more"),
        (EncoderConfig(context_layers=1, context_dim=100), "context_dim is 100, expected a multiple of 64"),
        (EncoderConfig("mean", output_dim=5), "output_dim is 5"),
    ):
        with pytest.raises(ValueError, match=message):
            SentenceEncoder(config)


def test_get_model_without_a_checkpoint_beside_it_is_the_default(tmp_path: Path):
    (tmp_path / "model.py").write_text((ROOT / "model.py").read_text())
    scope: dict = {"__file__": str(tmp_path / "model.py"), "__name__": "model_alone"}
    sys.modules["model_alone"] = type(sys)("model_alone")
    exec(compile((tmp_path / "model.py").read_text(), str(tmp_path / "model.py"), "exec"), scope)
    assert asdict(scope["get_model"]().config) == asdict(EncoderConfig())


def test_what_is_not_a_number_is_not_made_a_vector(encoder):
    tokens = torch.randn(2, 3, 768)
    tokens[0, 1, 0] = torch.nan
    vectors = encoder(tokens)
    assert vectors[0].isnan().any() and vectors[1].isfinite().all()


def test_unit_length_of_zero_is_the_first_axis():
    assert torch.equal(unit_length(torch.zeros(1, 3)), torch.tensor([[1.0, 0.0, 0.0]]))


def test_a_padded_batch_gives_what_single_sentences_give(encoder):
    """They are pooled in different ways; also with a sentence that is padding only, and a batch of none."""
    batch = torch.cat([pad(sentence(length, seed=length), 30 - length) for length in range(1, 30)] + [torch.zeros(1, 30, 768)])
    alone = torch.cat([encoder(sentence(length, seed=length)) for length in range(1, 30)] + [encoder(torch.zeros(1, 1, 768))])
    torch.testing.assert_close(encoder(batch), alone, atol=1e-6, rtol=0)
    with torch.inference_mode():  # without gradients a batch is pooled in another way
        torch.testing.assert_close(encoder(batch), alone, atol=1e-6, rtol=0)
    assert encoder(batch[:0]).shape == (0, encoder.config.output_dim)


@pytest.mark.parametrize("power", [-30, -20, -10, 10, 17, 18, 19, 20])
def test_unit_length_at_every_scale_of_the_tokens(encoder, power):
    """With weights far from their start, one sentence or several with padding; the direction is that of ordinary tokens
    once biases no longer count."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.3)
    batch = torch.cat([pad(sentence(length, seed=length), 9 - length) for length in range(1, 9)])
    with torch.inference_mode():
        for tokens in (batch, batch[7:, :8]):
            norms = encoder(tokens * 10.0**power).norm(dim=1)
            torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-5, rtol=0)
