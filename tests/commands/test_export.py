"""The exported folder: loaded by sentence-transformers alone, evaluated, trained further, saved again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SENTENCES, last_line

import export as export_module
from common.errors import InputError
from corpus.encoding import load_model
from data import open_pairs
from evaluation.scores import score
from export import export, sentence_transformer
from model import EncoderConfig, SentenceEncoder
from text import TextEncoder
from tokens.text_pairs import read_text_pairs
from tokens.text_store import text_store


@pytest.fixture(scope="module")
def exported(text_encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "exported"
    export(text_encoder, folder)
    return folder


@pytest.fixture(autouse=True)
def modules_cache(tmp_path_factory, monkeypatch):
    """Code of exported folders is copied here, not into the user's cache."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))


def small_encoder(folder: Path, layers: str = "1,-1") -> TextEncoder:
    """A hybrid encoder with random weights on a tiny backbone."""
    torch.manual_seed(0)
    head = SentenceEncoder(EncoderConfig(input_dim=32, output_dim=8, heads=4, hidden_dim=16))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return TextEncoder(head, backbone=str(folder), layers=layers, device="cpu")


def test_the_folder_alone_gives_the_same_vectors_and_so_does_one_saved_from_it(exported, text_encoder):
    """In a process that has nothing of this project on its path."""
    code = """
import sys
import numpy as np
from sentence_transformers import SentenceTransformer
sentences = ["A man plays a guitar.", "", "Somebody makes music outside, and it is late.", "word " * 400]
model = SentenceTransformer("exported", trust_remote_code=True, device="cpu")
model.save_pretrained("again")
again = SentenceTransformer("again", trust_remote_code=True, device="cpu")
np.save("vectors.npy", np.stack([model.encode(sentences), again.encode(sentences)]))
print(model.get_embedding_dimension(), [name for name in ("text", "backbone", "model", "sentence_module") if name in sys.modules])
"""
    environment = {"PATH": "", "HF_MODULES_CACHE": str(exported.parent / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::FutureWarning", "-c", code]
    result = subprocess.run(command, cwd=exported.parent, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout == "256 []\n", result.stderr
    sentences = ["A man plays a guitar.", "", "Somebody makes music outside, and it is late.", "word " * 400]
    with pytest.warns(UserWarning, match="1 sentence was truncated"):
        expected = text_encoder.encode(sentences)
    for vectors in np.load(exported.parent / "vectors.npy"):
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_without_leave_to_run_code_sentence_transformers_says_what_to_do(exported):
    from sentence_transformers import SentenceTransformer

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(exported), device="cpu")
    card = (exported / "README.md").read_text()
    assert 'SentenceTransformer("exported", trust_remote_code=True)' in card
    assert "| backbone | all-MiniLM-L6-v2 |" in card and "hybrid, 466,440 parameters" in card


def test_its_evaluator_gives_the_figures_of_evaluate(exported, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    lines = (ROOT / "data" / "starter" / "test.tsv").read_text().splitlines()[:40]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    pairs = read_text_pairs(tmp_path / "pairs.tsv")
    model = SentenceTransformer(str(exported), trust_remote_code=True, device="cpu")
    theirs = EmbeddingSimilarityEvaluator(pairs.first, pairs.second, pairs.labels.tolist(), write_csv=False)(model)
    text_store(tmp_path / "pairs.tsv")
    ours = score(TextEncoder(ROOT / "model.bin", device="cpu").head, open_pairs([tmp_path / "pairs.tsv.store"]))
    assert theirs["spearman_cosine"] == pytest.approx(ours.spearman, abs=1e-4)
    assert theirs["pearson_cosine"] == pytest.approx(ours.pearson, abs=1e-4)


def test_its_trainer_trains_all_of_it_and_what_it_saves_can_be_loaded(tiny_bert, tmp_path):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    export(small_encoder(tiny_bert), tmp_path / "small")
    model = SentenceTransformer(str(tmp_path / "small"), trust_remote_code=True, device="cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = Dataset.from_dict({"sentence1": SENTENCES, "sentence2": SENTENCES[::-1], "score": [0.0, 0.3, 0.7, 1.0]})
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=2, learning_rate=1e-2, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=CoSENTLoss(model)).train()
    after = model.state_dict()
    for name in ("1.head.head.projection.weight", "1.head.pooling.score.weight", "0.model.encoder.layer.0.output.dense.weight"):
        assert not torch.equal(before[name], after[name])
    model.save_pretrained(str(tmp_path / "trained"))
    again = SentenceTransformer(str(tmp_path / "trained"), trust_remote_code=True, device="cpu")
    assert np.array_equal(again.encode(SENTENCES), model.encode(SENTENCES))


@pytest.mark.parametrize("kind", ["tiny_bert", "tiny_qwen"])
@pytest.mark.parametrize("output_dim", [None, 8])
def test_a_wrapped_backbone_needs_no_code_of_ours(kind, output_dim, request, tmp_path):
    from sentence_transformers import SentenceTransformer

    encoder = TextEncoder(backbone=str(request.getfixturevalue(kind)), output_dim=output_dim, device="cpu")
    export(encoder, tmp_path / "wrapped")
    assert not list((tmp_path / "wrapped").glob("**/*.py"))
    model = SentenceTransformer(str(tmp_path / "wrapped"), device="cpu")
    np.testing.assert_allclose(model.encode(SENTENCES), encoder.encode(SENTENCES), atol=1e-5)
    assert 'SentenceTransformer("wrapped")' in (tmp_path / "wrapped" / "README.md").read_text()


def test_a_trained_head_on_a_backbone_like_qwen(tiny_qwen, tmp_path):
    from sentence_transformers import SentenceTransformer

    encoder = small_encoder(tiny_qwen)
    export(encoder, tmp_path / "small")
    model = SentenceTransformer(str(tmp_path / "small"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(model.encode(SENTENCES), encoder.encode(SENTENCES), atol=1e-5)
    model.tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match="padded on the left"):
        model.encode(SENTENCES)


def test_what_cannot_be_exported_leaves_nothing_behind(tiny_bert, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="there: exists already"):
        export(small_encoder(tiny_bert), tmp_path / "there")
    with pytest.raises(InputError, match=r"takes word embeddings \(layers word,-1\)"):
        export(small_encoder(tiny_bert, "word,-1"), tmp_path / "words")
    monkeypatch.setattr(export_module, "_model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(small_encoder(tiny_bert), tmp_path / "broken")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("trained", ["hybrid", "projection"])
def test_an_exported_head_is_never_left_out_without_a_word(trained, tiny_bert, tmp_path, run_here):
    encoder = small_encoder(tiny_bert) if trained == "hybrid" else TextEncoder(backbone=str(tiny_bert), output_dim=8, device="cpu")
    export(encoder, tmp_path / "exported")
    (tmp_path / "lines.txt").write_text("the cat sat\n")
    for command in (
        ["encode.py", "--data", tmp_path / "lines.txt", "--out", tmp_path / "vectors"],
        ["text.py", "cat", "dog"],
        ["evaluate.py"],
    ):
        error = last_line(run_here(*command, "--model", tmp_path / "exported"))
        assert "exported: is an export for sentence-transformers" in error and "give its checkpoint" in error
    assert not (tmp_path / "vectors").exists()


def test_an_export_of_mean_pooling_is_a_backbone_to_encode_with(tiny_bert, tmp_path):
    encoder = TextEncoder(backbone=str(tiny_bert), layers="-1", device="cpu")
    export(encoder, tmp_path / "plain")
    np.testing.assert_allclose(load_model(str(tmp_path / "plain")).encode(SENTENCES), encoder.encode(SENTENCES), atol=1e-5)


def test_the_command(tiny_bert, tmp_path, monkeypatch, capsys):
    from evaluation.checkpoint import save_encoder

    encoder = small_encoder(tiny_bert)
    encoder.head.tokens_from = {"backbone": str(tiny_bert), "layers": "1,-1"}
    save_encoder(tmp_path / "model.bin", encoder.head)
    monkeypatch.setattr(sys, "argv", ["export.py", "--model", str(tmp_path / "model.bin"), "--out", str(tmp_path / "out")])
    export_module.main()
    assert "trust_remote_code=True" in capsys.readouterr().out
    assert (tmp_path / "out" / "modules.json").is_file()


def test_options_and_models_that_cannot_be_are_refused(tiny_small, tmp_path, run_here):
    assert "--float32 needs --onnx" in last_line(run_here("export.py", "--float32", "--out", tmp_path / "out"))
    error = last_line(run_here("export.py", "--model", tiny_small, "--out", tmp_path / "out"))
    assert "give a checkpoint such as model.bin" in error and "max_length" not in error


def test_it_shares_its_weights_and_works_in_half_precision(tiny_bert):
    encoder = small_encoder(tiny_bert)
    expected = encoder.encode(SENTENCES)
    model = sentence_transformer(encoder)
    assert model[1].head is encoder.head
    assert 0 < abs(model.half().encode(SENTENCES) - expected).max() < 0.02
