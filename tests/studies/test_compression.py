"""Small vectors from end to end: the published network, the default, the study, on small data of one-token sentences."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import SENTENCES, learnable_pairs, store_pairs
from jsonargparse import ArgumentParser
from sklearn.metrics import mean_squared_error

import export
from common.errors import InputError
from data import PairData, open_pairs
from evaluation.checkpoint import load_encoder, save_encoder
from evaluation.encoding import encode_pairs
from evaluation.metrics import spearman
from evaluation.scores import cosines
from studies.compression import CompressionReport
from text import TextEncoder
from tokens.text_store import BackboneSettings, text_store
from training.recipe import Recipe, add_recipe_arguments, parse_recipe
from training.trainer import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """train.store, dev.store, test.store of sentence embeddings 32 wide."""
    folder = tmp_path_factory.mktemp("pooled")
    rng = np.random.default_rng(0)
    for part, n in (("train", 200), ("dev", 80), ("test", 60)):
        sentences, *pairs = learnable_pairs(rng, n)
        pooled = [tokens.mean(axis=0, keepdims=True) for tokens in sentences]
        store_pairs(folder / f"{part}.store", [token / np.linalg.norm(token) for token in pooled], *pairs)
    return folder


@pytest.fixture(scope="module")
def sides(folder) -> tuple[PairData, PairData]:
    return open_pairs([folder / "train.store"]), open_pairs([folder / "dev.store"])


def recipe(*arguments: str) -> Recipe:
    parser = ArgumentParser(exit_on_error=False)
    add_recipe_arguments(parser)
    return parse_recipe(parser, arguments)[0]


def test_the_published_network_is_the_published_one():
    published = recipe("--preset", "compress_published", "--noise_alpha", "0.75")
    (term,) = published.phases["graded"].losses.items()
    assert (published.encoder.architecture, published.encoder.output_dim, published.noise_alpha) == ("twin", 32, 0.75)
    assert term[0] == "cosine_mse" and term[1].options == {"lowest": 0}
    assert published.start == "random"


def test_the_default_starts_as_principal_components_and_gets_better(sides):
    trained = Trainer(recipe("--preset", "compress", "--encoder.output_dim", "8"), *sides).run()
    assert trained.history[0].validation_score > 0.3
    assert trained.validation.spearman > trained.history[0].validation_score + 0.03
    assert trained.encoder.config.output_dim == 8 and not trained.fell_back


@pytest.mark.parametrize("preset", ["compress", "compress_published"])
def test_a_compressed_checkpoint_is_one_as_any_other(sides, folder, tmp_path, preset, run_here):
    small = recipe("--preset", preset, "--phases.graded.epochs", "1", "--encoder.output_dim", "8")
    encoder = Trainer(small, *sides).run().encoder
    save_encoder(tmp_path / "model.bin", encoder)
    again = load_encoder(tmp_path / "model.bin")
    assert all(np.array_equal(a, b) for a, b in zip(encode_pairs(again, sides[1]), encode_pairs(encoder, sides[1]), strict=True))
    model, data = ("--model", tmp_path / "model.bin"), ("--data", folder / "test.store")
    result = run_here("evaluate.py", *model, *data, "--json")
    printed = json.loads(result.stdout)
    figures = printed["data"]["test.store"]["encoder"]
    test = open_pairs([folder / "test.store"])
    cosine = cosines(*encode_pairs(again, test))
    assert printed["encoders"]["encoder"]["output dim"] == 8
    assert figures["spearman"] == pytest.approx(spearman(cosine, test.labels), abs=1e-6)
    assert figures["mse"] == pytest.approx(mean_squared_error(test.labels / 5, cosine), abs=1e-6)
    if preset == "compress":
        result = run_here("visualize_tsne.py", *model, *data, "--out", tmp_path / "map.png")
        assert result.returncode == 0 and (tmp_path / "map.png").exists(), result.stderr


def test_the_text_front_takes_a_compressed_checkpoint(tiny_bert, tmp_path):
    """What it gives for text is what the checkpoint gives for a pooled store of that text."""
    text = "\n".join(f"{a}\t{b}\t{i}" for i, (a, b) in enumerate(pairwise(SENTENCES)))
    (tmp_path / "pairs.tsv").write_text(f"{text}\n")
    text_store(tmp_path / "pairs.tsv", BackboneSettings(str(tiny_bert), pooled=True), store_path=tmp_path / "pairs.store")
    pairs = open_pairs([tmp_path / "pairs.store"])
    small = recipe("--preset", "compress", "--encoder.output_dim", "4", "--phases.graded.epochs", "1")
    save_encoder(tmp_path / "model.bin", Trainer(small, pairs, pairs).run().encoder)
    front = TextEncoder(tmp_path / "model.bin")
    first, _ = encode_pairs(load_encoder(tmp_path / "model.bin"), pairs)
    np.testing.assert_allclose(front.encode(pairs.text().first), first, atol=1e-5)
    with pytest.raises(InputError, match="sentence embeddings"):
        front.explain("cat", "the cat sat")
    with pytest.raises(InputError, match="sentence embeddings"):
        export.sentence_transformer(front)


def test_the_study_reports_storage_published_figures_and_pictures(folder, tmp_path, monkeypatch, run_here, run_all_here):
    monkeypatch.setattr("study.run_all", run_all_here)
    quick = "--phases.graded.epochs 2"
    path = tmp_path / "small.yaml"
    path.write_text(
        f"command: train.py\nout: {tmp_path}/runs\ndata: {{pooled: {folder}}}\nseeds: [0]\n"
        "options: --data {data}/train.store --validation {data}/dev.store --test {data}/test.store\n"
        "scores: [spearman, mse]\nfigure: [spearman]\nreport: compression\narms:\n"
        f"  published: {{options: --preset compress_published {quick}, "
        "grid: {encoder.output_dim: [32], noise_alpha: [0, 0.5]}}\n"
        "  principal components: {options: --preset compress --phases.graded.epochs 0, grid: {encoder.output_dim: [32]}}\n"
        f"  compress: {{options: --preset compress {quick}, grid: {{encoder.output_dim: [32]}}}}\n"
        f"  nested: {{options: '--preset compress {quick} --nested [8,32]', grid: {{encoder.output_dim: [32]}}}}\n"
    )
    result = run_here("study.py", path, "--results", tmp_path / "results")
    assert "5 of 5 runs" in result.stdout, result.stderr
    text = (tmp_path / "results" / "small.md").read_text()
    for row in csv.DictReader((tmp_path / "results" / "small.csv").open()):
        assert f"{float(row['test encoder spearman']):.4f}" in text
    assert "| 0.5 | 0.8145-0.8185 |" in text and "| nested | 32 | int8 | 32 |" in text
    for name in ("small", "small_loss", "small_sizes"):
        assert (tmp_path / "results" / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_report_without_an_arm_says_which():
    with pytest.raises(InputError, match="no run of arm 'published' is finished"):
        CompressionReport([])


def test_nested_lengths_that_do_not_fit_are_refused():
    assert recipe("--preset", "compress", "--nested", "[16, 32]").nested == [16, 32]
    for wrong in ("[16]", "[0, 32]", "[16, 64]"):
        with pytest.raises(InputError, match=r"nested is .* output_dim 32"):
            recipe("--preset", "compress", "--nested", wrong)
