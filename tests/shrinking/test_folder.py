"""The folder of a small encoder: it equals the torch encoder, refuses damage, and needs no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import ROOT, SENTENCES, last_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from common.errors import InputError
from common.starter import STARTER_TEST
from export import export_onnx
from model import EncoderConfig, SentenceEncoder, mean_pooling
from portable.small_encoder import FILES, SmallEncoder
from shrink import name_of_teacher
from shrinking.folder import write_card, write_folder
from shrinking.layers import keep_layers
from text import TextEncoder
from tokens.backbone import Backbone
from tokens.text_pairs import read_text_pairs

FACTS = {"backbone": "tiny", "layers": "all", "vocabulary": 14, "parameters": 1}
STARTER = read_text_pairs(STARTER_TEST)
STARTER_SENTENCES = STARTER.first[:60] + STARTER.second[:60]


@pytest.fixture(scope="module")
def tiny(tiny_bert, tmp_path_factory) -> Path:
    """A tiny encoder in float32."""
    folder = tmp_path_factory.mktemp("small") / "tiny"
    write_folder(folder, Backbone(str(tiny_bert), max_length=12), mean_pooling(16), None, FACTS)
    write_card(folder, {"test": {"tiny": {"spearman": 0.5, "mse": 0.25}}})
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The default backbone with mean pooling, in int8."""
    folder = tmp_path_factory.mktemp("small") / "whole"
    backbone = Backbone(layers="-1")
    calibration = backbone.tokenize(STARTER.first[60:120])[0]
    write_folder(folder, backbone, mean_pooling(backbone.width), calibration, FACTS)
    return folder


@pytest.fixture
def copied(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "tiny"))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.sampled_from(["cat", "the", "a", "dog", "sat", "zebra"]), max_size=20).map(" ".join), max_size=9),
    st.integers(1, 5),
)
def test_in_float32_it_equals_the_torch_encoder(tiny, tiny_bert, sentences, batch_size):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # truncated
        ours = SmallEncoder(tiny).encode(sentences, batch_size=batch_size)
        torchs = TextEncoder(backbone=str(tiny_bert), max_length=12, device="cpu").encode(sentences)
    assert ours.shape == (len(sentences), 16) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, torchs, atol=1e-5)


def test_in_int8_it_ranks_like_float32_and_no_sentence_depends_on_its_batch(whole):
    small, in_float = SmallEncoder(whole), TextEncoder(backbone="all-MiniLM-L6-v2", layers="-1", device="cpu")
    ours, theirs = small.encode(STARTER_SENTENCES), in_float.encode(STARTER_SENTENCES)
    similarities = [(own[:60] @ own[60:].T).ravel() for own in (ours, theirs)]
    assert spearmanr(*similarities).statistic > 0.995
    assert (ours * theirs).sum(1).min() > 0.97
    np.testing.assert_allclose(ours, np.stack([small.encode(sentence) for sentence in STARTER_SENTENCES]), atol=1e-6)
    np.testing.assert_allclose(small.encode(STARTER_SENTENCES[::-1], batch_size=7)[::-1], ours, atol=1e-6)
    assert (whole / "encoder.onnx").stat().st_size < 23 * 2**20


def test_static_embeddings_become_a_table(tiny_bert, tmp_path):
    backbone = Backbone(str(tiny_bert))
    keep_layers(backbone, [])
    table = backbone.model.get_input_embeddings().weight.detach().numpy()
    for name, calibration, tolerance in (("float", None, 1e-5), ("int8", [[2, 3]], 2e-2)):
        write_folder(tmp_path / name, backbone, mean_pooling(16), calibration, FACTS)
        for sentence in SENTENCES:
            mean = table[backbone.tokenize([sentence])[0][0]].mean(0)
            np.testing.assert_allclose(SmallEncoder(tmp_path / name).encode(sentence), mean / np.linalg.norm(mean), atol=tolerance)


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("hybrid", {"heads": 4, "hidden_dim": 16}),
        ("hybrid", {"heads": 4, "hidden_dim": 16, "context_layers": 2, "context_dim": 64}),
        ("projection", {}),
        ("gated", {}),
        ("published", {}),
    ],
)
def test_a_trained_head_and_several_layers_go_into_the_graph(tiny_bert, tmp_path, architecture, sizes):
    torch.manual_seed(0)
    head = SentenceEncoder(EncoderConfig(architecture, input_dim=32, output_dim=8, **sizes))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    encoder = TextEncoder(head, backbone=str(tiny_bert), layers="1,-1", device="cpu")
    export_onnx(encoder, tmp_path / "exported", int8=False)
    np.testing.assert_allclose(SmallEncoder(tmp_path / "exported").encode(SENTENCES), encoder.encode(SENTENCES), atol=1e-5)
    with pytest.raises(InputError, match="holds a trained head"):
        TextEncoder(tmp_path / "exported").explain("cat", "dog")


def test_it_needs_three_packages_and_nothing_of_this_project(tiny):
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        allowed = {"onnxruntime", "tokenizers", "numpy", "small_encoder", "google", "flatbuffers", "packaging"}
        if name.split(".")[0] not in allowed | sys.stdlib_module_names:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from small_encoder import SmallEncoder
encoder = SmallEncoder()
print(encoder.encode(["a dog", "cat"]).shape, bool(abs(encoder.similarity("cat", "cat") - 1) < 1e-6))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.stdout == "(2, 16) True\n", done.stderr
    module = (tiny / "small_encoder.py").read_text(encoding="utf-8")
    assert module == (ROOT / "portable" / "small_encoder.py").read_text(encoding="utf-8") and module.count("\n") < 100


@pytest.mark.parametrize("name", [*FILES, "config.json"])
def test_a_missing_or_damaged_file_is_one_clear_line(copied, name):
    contents = bytearray((copied / name).read_bytes())
    for place in np.random.default_rng(0).integers(0, len(contents), 10):
        damaged = bytearray(contents)
        damaged[place] ^= 1 << int(place % 8)
        (copied / name).write_bytes(damaged)
        try:
            encoder = SmallEncoder(copied)
        except ValueError as error:
            assert "\n" not in str(error) and str(copied) in str(error)
        else:  # what does not matter to the embeddings, such as a fact
            assert name == "config.json"
            np.testing.assert_array_equal(encoder.encode(["a dog sat"]).shape, (1, 16))
    (copied / name).write_bytes(contents[: len(contents) // 2])
    with pytest.raises(ValueError, match="damaged"):
        SmallEncoder(copied)
    (copied / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing, expected the folder of a small encoder"):
        SmallEncoder(copied)
    with pytest.raises(ValueError, match=r"config\.json is missing, expected the folder of a small encoder"):
        SmallEncoder(__file__)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"is of format 2, expected 1; use the small_encoder.py in it"),
        ({"max_length": 0}, "is damaged"),
        ({"max_length": 2.5}, "is damaged"),
        ({"max_length": "many"}, "is damaged"),
        ({"sha256": None}, "is damaged, or not that of a small encoder"),
    ],
)
def test_a_configuration_of_another_kind_is_one_clear_line(copied, change, message):
    config = json.loads((copied / "config.json").read_text())
    config["small_encoder"] |= change
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        SmallEncoder(copied)


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (["a", None], "sentence 2 of 2 is NoneType, expected a string"),
        ([b"a"], "sentence 1 of 1 is bytes, expected a string"),
        (b"a", "sentences are bytes, expected a string or a list of strings"),
        (7, "sentences are int, expected a string or a list of strings"),
        ({"a": 1}, "sentences are dict, expected a string or a list of strings"),
        (["a", "\ud800"], "sentence 2 of 2 has half a character"),
    ],
)
def test_what_is_no_text_is_one_clear_line(tiny, sentences, message):
    with pytest.raises(ValueError, match=message):
        SmallEncoder(tiny).encode(sentences)


def test_no_sentences_long_ones_and_many(tiny, monkeypatch, capsys):
    encoder = SmallEncoder(tiny)
    assert encoder.encode([]).shape == (0, 16)
    with pytest.warns(UserWarning, match=r"1 of 2 sentences truncated to 12 tokens \(max_length\)"):
        embeddings = encoder.encode(["cat", "dog " * 30])
    np.testing.assert_allclose(embeddings[1], encoder.encode("dog " * 10), atol=1e-6)
    sentences = [f"{a} {b}" for a in ("cat", "dog", "the") for b in ("sat", "ran", "a dog ran far")] * 2
    expected = encoder.encode(iter(sentences))
    monkeypatch.setattr("portable.small_encoder.SORTED_TOGETHER", 5)
    np.testing.assert_allclose(encoder.encode(sentences, batch_size=2, show_progress=True), expected, atol=1e-6)
    assert capsys.readouterr().err.endswith("\r18 of 18 sentences\n")
    monkeypatch.setattr(encoder, "tokenize", mock.Mock(side_effect=[encoder.tokenize(sentences[:5]), KeyboardInterrupt]))
    with pytest.raises(KeyboardInterrupt):
        encoder.encode(sentences, show_progress=True)
    assert capsys.readouterr().err == "\r5 of 18 sentences\n"


def test_the_card_and_the_configuration_say_where_it_comes_from(tiny):
    card = (tiny / "README.md").read_text(encoding="utf-8")
    assert (
        "| made from | tiny, layers all, 14 tokens, 32 inner dimensions |" in card and "| test | tiny | 0.5000 | 0.2500 |" in card
    )
    facts = SmallEncoder(tiny).config
    assert facts["scores"] == {"test": {"tiny": {"spearman": 0.5, "mse": 0.25}}} and facts["backbone"] == "tiny"


def test_the_card_of_static_embeddings_names_no_inner_dimensions(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 0, "hidden_act": "relu"}))
    write_card(copied, {})
    assert "| made from | tiny, layers all, 14 tokens |" in (copied / "README.md").read_text(encoding="utf-8")


def test_what_stands_where_it_is_written_is_kept(copied, tiny_bert):
    before = (copied / "encoder.onnx").read_bytes()
    write_folder(copied, Backbone(str(tiny_bert)), mean_pooling(16), [[2, 3]], FACTS)
    assert (copied.with_name("tiny.previous") / "encoder.onnx").read_bytes() == before
    (copied.parent / "other").mkdir()
    (copied.parent / "other" / "file").write_text("mine")
    with pytest.raises(InputError, match="exists and is not a small encoder's"):
        write_folder(copied.parent / "other", Backbone(str(tiny_bert)), mean_pooling(16), None, FACTS)


def test_text_encoder_takes_the_folder(tiny, tiny_bert):
    ours, torchs = TextEncoder(tiny), TextEncoder(backbone=str(tiny_bert), max_length=12, device="cpu")
    assert (ours.output_dim, ours.max_length, ours.truncated(["cat", "dog " * 30])) == (16, 12, 1)
    np.testing.assert_allclose(ours.encode("a dog"), torchs.encode("a dog"), atol=1e-5)
    assert [match.index for match in ours.rank("the cat", SENTENCES)] == [
        match.index for match in torchs.rank("the cat", SENTENCES)
    ]
    explained, expected = ours.explain("a dog ran", "the cat sat"), torchs.explain("a dog ran", "the cat sat")
    np.testing.assert_allclose(explained.shares, expected.shares, atol=1e-5)
    assert explained.first == expected.first
    assert explained.first_weights.sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputError, match="is a whole encoder, expected no backbone with it"):
        TextEncoder(tiny, backbone="all-MiniLM-L6-v2")
    with pytest.raises(InputError, match="a small encoder is one graph"):
        _ = ours.backbone


def test_the_commands_take_the_folder(whole, tiny, tmp_path, run_here):
    done = run_here("evaluate.py", "--model", whole, "--data", STARTER_TEST, "--cache_dir", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert [who for who, cost in figures["encoders"].items() if "sentences/s" in cost] == ["encoder"]
    scores = figures["data"]["test.tsv"]
    assert scores["encoder"]["spearman"] == pytest.approx(scores["all-MiniLM-L6-v2, off the shelf"]["spearman"], abs=0.03)
    similarity = run_here("text.py", "a dog", "the cat", "--model", tiny)
    assert float(similarity.stdout) == pytest.approx(float(SmallEncoder(tiny).similarity("a dog", "the cat")), abs=1e-4)
    assert "is missing" in last_line(run_here("text.py", "a", "b", "--model", tmp_path))


def test_as_a_teacher_it_is_called_by_what_it_was_made_from(tiny):
    assert name_of_teacher(tiny) == "tiny shrunk (layers all)"
