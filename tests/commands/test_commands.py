"""evaluate.py, checkpoints and the shipped files."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, last_line, learnable_pairs, store_pairs
from scipy.optimize import isotonic_regression

from common.errors import InputError
from data import open_pairs
from evaluation.checkpoint import load_encoder, save_encoder
from evaluation.encoding import encode_pairs
from evaluation.scores import cosines, score
from model import EncoderConfig, SentenceEncoder, get_model, mean_pooling
from tokens.text_pairs import read_text_pairs


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """A small encoder and pairs for it."""
    torch.manual_seed(0)
    save_encoder(tmp_path / "model.bin", SentenceEncoder(EncoderConfig(input_dim=32, output_dim=8, heads=4)))
    return tmp_path / "model.bin", store_pairs(tmp_path / "x.store", *learnable_pairs(np.random.default_rng(0), 80))


def test_evaluate_prints_a_table_and_json_with_the_same_figures(files, run_here):
    model, data = files
    table = run_here("evaluate.py", "--model", model, "--data", data).stdout
    figures = json.loads(run_here("evaluate.py", "--model", model, "--data", data, "--json").stdout)
    expected = {
        "mean pooling": score(mean_pooling(32), open_pairs([data])),
        "encoder": score(load_encoder(model), open_pairs([data])),
    }
    for name, scores in expected.items():
        for metric in ("spearman", "pearson", "mse", "mae"):
            assert figures[name][metric] == pytest.approx(getattr(scores, metric), abs=1e-6)
            assert f"{figures[name][metric]:.4f}" in table
        assert figures[name]["pairs"] == 80 and figures[name]["sentences/s"] > 0
    assert figures["bytes"] == model.stat().st_size


def test_evaluate_fits_labels_on_the_validation_pairs(files, tmp_path, run_here):
    """Against scipy's isotonic regression, joined by straight lines and clipped at the ends."""
    model, data = files
    other = store_pairs(tmp_path / "other.store", *learnable_pairs(np.random.default_rng(1), 90))
    plot = tmp_path / "plot.png"
    result = run_here("evaluate.py", "--model", model, "--data", data, "--validation", other, "--plot", plot, "--json")
    figures = json.loads(result.stdout)
    test, validation = open_pairs([data]), open_pairs([other])
    for name, encoder in (("mean pooling", mean_pooling(32)), ("encoder", load_encoder(model))):
        x, new = (cosines(*encode_pairs(encoder, pairs)).astype(np.float64) for pairs in (validation, test))
        order = np.argsort(x)
        fitted = isotonic_regression(validation.labels[order].astype(np.float64)).x
        error = np.interp(new, x[order], np.clip(fitted, 0, 5)) - test.labels
        assert figures[name]["mse of label"] == pytest.approx(np.mean(error**2), rel=1e-4)
        assert figures[name]["mae of label"] == pytest.approx(np.mean(abs(error)), rel=1e-4)
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_plot_of_predictions_needs_validation_pairs(files, tmp_path, run_here):
    model, data = files
    result = run_here("evaluate.py", "--model", model, "--data", data, "--plot", tmp_path / "plot.png")
    assert "give --validation" in last_line(result)
    assert not (tmp_path / "plot.png").exists()


OUTPUTS = {
    "FOLDER": "is a folder, expected the name of a file to write",
    "DATA": "is an input and would be overwritten",
    "DATA/x.png": "is a file, expected a folder",
}


@pytest.mark.parametrize("out", OUTPUTS)
@pytest.mark.parametrize(
    "command",
    ["train.py --data DATA --out", "train_retrieval.py --dataset DATA --out", "mine_negatives.py --data DATA --out"],
)
def test_what_cannot_be_written_is_refused_before_the_work_and_nothing_is_replaced(files, tmp_path, command, out, run_here):
    data = files[1]
    content = data.read_bytes()
    places = {"FOLDER": str(tmp_path), "DATA": str(data), "DATA/x.png": f"{data}/x.png"}
    arguments = [places.get(argument, argument) for argument in [*command.split(), out]]
    assert OUTPUTS[out] in last_line(run_here(*arguments, *(["--run_dir", tmp_path / "run"] if "train" in command else [])))
    assert data.read_bytes() == content and not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write to")
@pytest.mark.parametrize(
    "command",
    [
        "train.py --data DATA --out OUT.bin",
        "train.py --data DATA --run_dir OUT",
        "train_retrieval.py --dataset DATA --run_dir RUN --out OUT.bin",
        "train_retrieval.py --dataset DATA --run_dir OUT",
        "teacher.py --data DATA --out OUT",
        "prepare_data.py DATA --out OUT",
        "mine_negatives.py --data DATA --out OUT.tsv",
        "evaluate.py --data DATA --validation DATA --plot OUT.png",
        "visualize_tsne.py --data DATA --out OUT.png",
        "visualize_tsne.py --data DATA --out RUN.png --html OUT.html",
        "text.py a b --explain OUT.png",
        "export.py --out OUT",
        "study.py studies/sts.yaml --results OUT",
        "summarise.py DATA --out OUT.md",
    ],
)
def test_every_output_is_tried_before_the_work(command, tmp_path, run_here, monkeypatch):
    """The data do not exist either: the output is found first."""
    places = {"DATA": str(tmp_path / "nowhere.csv"), "OUT": "/proc/x/y", "RUN": str(tmp_path / "run")}
    for name, place in places.items():
        command = command.replace(name, place)
    assert "/proc/x: cannot be written: " in last_line(run_here(*command.split())).replace("/proc/x/y:", "/proc/x:")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train.py --data nowhere.csv", "evaluate.py --data nowhere.csv"])
def test_a_name_that_is_no_file_says_what_was_expected(command, tmp_path, run_here, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = last_line(run_here(*command.split()))
    assert message.startswith("error: nowhere.csv: no such file or folder, expected a .store file, a table of pairs")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["visualize_tsne.py --out", "evaluate.py --plot", "text.py a b --explain"])
def test_a_picture_has_the_name_of_one(command, files, run_here):
    assert "expected one that ends in .png" in last_line(run_here(*command.split(), "map.csv"))
    assert "is a file, expected a folder" in last_line(run_here(*command.split(), files[0] / "map.png"))


def test_labels_of_another_scale_are_said(tmp_path, run_here):
    sides = learnable_pairs(np.random.default_rng(0), 40)
    data = store_pairs(tmp_path / "unit.store", *sides[:3], sides[3] / 5)
    result = run_here("train.py", "--data", data, "--out", tmp_path / "m.bin", "--run_dir", tmp_path / "r", "--encoder.heads", "4")
    assert "labels are read as 0 to 5" in result.stderr
    assert "labels are read as 0 to 5" in run_here("evaluate.py", "--model", tmp_path / "m.bin", "--data", data).stderr
    five = store_pairs(tmp_path / "five.store", *sides)
    negatives = tmp_path / "n.tsv"
    mined = run_here("mine_negatives.py", "--data", five, "--out", negatives, "--num_negatives", "1")
    assert "are 1 or more and count as matches" in mined.stdout


def test_scores_are_of_the_cosine():
    """Against sentence-transformers' own evaluator on the same vectors."""
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    from evaluation.scores import score_embeddings

    rng = torch.Generator().manual_seed(0)
    first, second = (torch.nn.functional.normalize(torch.randn(50, 6, generator=rng), dim=1) for _ in "ab")
    labels = np.random.default_rng(0).integers(0, 6, 50).astype(np.float32)

    class Precomputed:
        similarity_fn_name = "cosine"
        model_card_data = SimpleNamespace(set_evaluation_metrics=lambda *_: None)

        def encode(self, sentences, **_):
            return np.stack([(first if name[0] == "a" else second)[int(name[1:])].numpy() for name in sentences])

        encode_query = encode_document = encode

    names = [[f"{side}{i}" for i in range(50)] for side in "ab"]
    evaluator = EmbeddingSimilarityEvaluator(*names, labels.tolist(), similarity_fn_names=["cosine"], write_csv=False)
    theirs = evaluator(Precomputed())
    ours = score_embeddings(first, second, labels)
    assert ours.spearman == pytest.approx(theirs["spearman_cosine"], abs=1e-6)
    assert ours.pearson == pytest.approx(theirs["pearson_cosine"], abs=1e-6)


def test_saving_refuses_more_than_20_mib_and_keeps_what_it_replaces(tmp_path):
    path = tmp_path / "model.bin"
    save_encoder(path, SentenceEncoder(EncoderConfig(output_dim=8)))
    before = path.read_bytes()
    with pytest.raises(InputError, match="expected at most 20 MiB"):
        save_encoder(path, SentenceEncoder(EncoderConfig(output_dim=7000)))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["model.bin"]
    size = save_encoder(path, SentenceEncoder(EncoderConfig()))
    assert size == path.stat().st_size < 20 * 2**20
    assert (tmp_path / "model.bin.previous").read_bytes() == before


class Dangerous:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "pickle", "other tensors", "missing"])
def test_files_that_are_no_checkpoint(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.bin"
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        save_encoder(path, SentenceEncoder(EncoderConfig()))
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Dangerous()))
    elif kind == "other tensors":
        torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"model.bin: (not a checkpoint|no such file)"):
        load_encoder(path)
    assert not (tmp_path / "executed").exists()


def test_a_pickle_inside_a_checkpoint_does_not_execute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"_extra_state": Dangerous()}, tmp_path / "model.bin")
    assert zipfile.is_zipfile(tmp_path / "model.bin")
    with pytest.raises(InputError, match="not a checkpoint"):
        load_encoder(tmp_path / "model.bin")
    assert not (tmp_path / "executed").exists()


def test_the_shipped_model_loads_as_a_judge_loads_it(tmp_path):
    """In an empty folder with two files, in a process that has nothing of this project on its path."""
    for name in ("model.py", "model.bin"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    code = """
import sys
import torch
from model import get_model
model = get_model()
print(model.load_state_dict(torch.load("model.bin", map_location="cpu", weights_only=True)))
vectors = model.eval()(torch.randn(3, 11, 768))
print(tuple(vectors.shape), vectors.norm(dim=1).sub(1).abs().max().item() < 1e-6)
print([name for name in ("scipy", "sklearn", "jsonargparse", "data") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    width = load_encoder(ROOT / "model.bin").config.output_dim  # 256 as shipped; a user's own training may replace it
    assert result.stdout.splitlines() == ["<All keys matched successfully>", f"(3, {width}) True", "[]"], result.stderr
    assert result.stderr == ""
    assert (ROOT / "model.bin").stat().st_size < 20 * 2**20


def test_the_shipped_model_is_better_than_mean_pooling_on_sentences_it_never_saw():
    pairs = open_pairs([ROOT / "data" / "starter" / "test.tsv"])
    encoder = load_encoder(ROOT / "model.bin")
    if encoder.tokens_from != {"backbone": "all-MiniLM-L6-v2", "layers": "2,-1"}:
        pytest.skip("model.bin is no longer the shipped one: it was trained on other tokens")
    assert score(encoder, pairs).spearman > score(mean_pooling(768), pairs).spearman


def test_get_model_builds_what_the_shipped_checkpoint_is():
    assert get_model().config == load_encoder(ROOT / "model.bin").config


def test_starter_pairs_are_as_the_data_card_says():
    seen: Counter[str] = Counter()
    for part, size in (("train", 900), ("dev", 150), ("test", 150)):
        pairs = read_text_pairs(ROOT / "data" / "starter" / f"{part}.tsv")
        assert len(pairs) == size
        assert set(pairs.labels * 2) == set(range(11))  # every half step from 0 to 5 occurs
        assert all(first != second for first, second in zip(pairs.first, pairs.second, strict=True))
        seen.update(pairs.first + pairs.second)
    assert max(seen.values()) == 1  # so no sentence is in two parts
