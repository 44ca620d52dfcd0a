"""Maps of sentence embeddings: places, pictures, pages, and the command."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import last_line, learnable_pairs, store_pairs

import visualize_tsne
from common.errors import InputError
from data import open_pairs
from evaluation.checkpoint import load_encoder, save_encoder
from evaluation.encoding import encode_pairs
from evaluation.maps import draw_maps, fitting_neighbours, interactive_map, project_to_2d, readable_points
from evaluation.metrics import spearman
from model import EncoderConfig, SentenceEncoder, mean_pooling
from tokens.text_pairs import TextPairs
from visualize_tsne import sample_pairs


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """A small encoder and pairs for it."""
    torch.manual_seed(0)
    save_encoder(tmp_path / "model.bin", SentenceEncoder(EncoderConfig(input_dim=32, output_dim=8, heads=4)))
    return tmp_path / "model.bin", store_pairs(tmp_path / "x.store", *learnable_pairs(np.random.default_rng(0), 80))


def clusters(sizes: tuple[int, ...] = (20, 20)) -> np.ndarray:
    """Unit vectors around a few directions."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.standard_normal((len(sizes), 12)), sizes, axis=0)
    vectors = centres + 0.1 * rng.standard_normal(centres.shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("method", ["tsne", "umap", "pca"])
@pytest.mark.filterwarnings("ignore")  # umap has some to give
def test_each_method_keeps_neighbours_together_and_repeats_itself(method, monkeypatch):
    monkeypatch.setattr("numba.config.DISABLE_JIT", True)  # umap would compile for longer than it runs on so few
    vectors = clusters()
    places = project_to_2d(vectors, method, neighbours=6, seed=0)
    assert places.shape == (40, 2)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(40, np.inf))
    assert (distance.argmin(1) // 20 == np.arange(40) // 20).mean() > 0.95
    assert np.array_equal(places, project_to_2d(vectors, method, neighbours=6, seed=0))


def test_pca_is_that_of_the_singular_vectors():
    vectors = clusters().astype(np.float64)
    centred = vectors - vectors.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(abs(project_to_2d(vectors, "pca")), abs(centred @ directions[:2].T), atol=1e-9)


@pytest.mark.parametrize("method", ["tsne", "umap", "pca"])
@pytest.mark.filterwarnings("ignore")  # as above
def test_few_sentences_are_drawn(method, monkeypatch):
    monkeypatch.setattr("numba.config.DISABLE_JIT", True)
    for sentences in (3, 6, 11, 90) if method != "umap" else (3, 6, 11):
        places = project_to_2d(clusters((sentences - sentences // 2, sentences // 2)), method)
        assert places.shape == (sentences, 2) and np.isfinite(places).all()


def test_the_perplexity_and_the_neighbours_go_down_to_what_fits():
    assert [fitting_neighbours(n, "tsne", 30) for n in (3, 4, 31, 91, 1000)] == [1, 1, 10, 30, 30]
    assert [fitting_neighbours(n, "umap", 30) for n in (3, 6, 31, 1000)] == [2, 5, 30, 30]


def test_nothing_to_map_and_unknown_methods():
    for method in ("tsne", "umap", "pca"):
        with pytest.raises(InputError, match="2 sentences are too few for a map, expected 3 or more"):
            project_to_2d(clusters((2,)), method)
        with pytest.raises(InputError, match="all 5 sentences have the same embedding"):
            project_to_2d(np.tile(clusters((1,)), (5, 1)), method)
    with pytest.raises(InputError, match="method is 'lda', expected one of tsne, umap, pca"):
        project_to_2d(clusters(), "lda", neighbours=6)


@pytest.mark.parametrize(("method", "module"), [("umap", "umap"), (None, "plotly.subplots")])
def test_missing_packages_say_what_to_install(method, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install -r requirements-demo.txt"):
        if method:
            project_to_2d(clusters(), method, neighbours=6)
        else:
            interactive_map({"a": np.zeros((2, 2))}, TextPairs(["a"], ["b"], np.ones(1, np.float32)), "")


def test_a_short_sentence_is_written_in_each_region_of_a_map(tmp_path):
    points = np.concatenate([np.array([[0.0, 10 * k]]) + 0.01 * np.arange(3)[:, None] for k in range(12)])
    sentences = ["long and longer", "short", "longest of all of them"] * 12
    assert readable_points(points, sentences) == list(range(1, 36, 3))
    assert readable_points(np.zeros((4, 2)), ["abc", "ab", "abcd", "abc"]) == [1]
    many = np.random.default_rng(0).standard_normal((500, 2))
    assert len(readable_points(many, ["x"] * 500)) == 12
    assert 1 < len(readable_points(many[:, :1].round() + 1e-9 * many, ["x"] * 500)) <= 12  # nearly equal, as PCA leaves them


def test_sentences_are_drawn_as_they_are_but_not_in_letters_that_the_font_lacks(tmp_path):
    def drawn(texts: list[str] | None) -> bytes:
        draw_maps(tmp_path / "map.png", {"a": np.array([[0, 0], [0, 1], [1, 0], [1, 1.0]])}, np.ones(2), "caption", texts)
        return (tmp_path / "map.png").read_bytes()

    assert drawn(["$x_{$", "", "", ""]) != drawn(["", "", "", ""])  # as a formula it would be an error
    assert drawn(["狗", "$x_{$", "", ""]) == drawn(["", "$x_{$", "", ""])
    assert drawn(["x" * 50, "", "", ""]) != drawn(["", "", "", ""])
    assert drawn(["狗"] * 4) == drawn(None)


def test_points_show_their_sentences_and_lines_join_the_alike():
    pairs = TextPairs(["a <b>bold</b> claim", "two", "three"], ["one", "x" * 100, "tres"], np.array([4.5, 1, 4], np.float32))
    places = np.arange(12.0).reshape(6, 2)
    lines, points = interactive_map({"here": places}, pairs, "caption").data
    assert points.hovertext[0] == "<b>a &lt;b&gt;bold&lt;/b&gt; claim</b><br>4.5 with: one"
    assert points.hovertext[3] == "<b>one</b><br>4.5 with: a &lt;b&gt;bold&lt;/b&gt; claim"
    assert max(len(line) for line in points.hovertext[4].split("<br>")) < 60
    assert list(points.marker.color) == [4.5, 1, 4, 4.5, 1, 4]
    np.testing.assert_array_equal(np.stack([points.x, points.y], axis=1), places)
    drawn = np.stack([lines.x, lines.y], axis=1).reshape(2, 3, 2)  # from, to, pen up
    np.testing.assert_array_equal(drawn[:, :2], [[places[0], places[3]], [places[2], places[5]]])
    assert np.isnan(drawn[:, 2]).all()


def test_the_command_draws_both_encoders_and_writes_a_page_that_needs_no_network(files, tmp_path, monkeypatch, capsys):
    model, data = files
    arguments = ["--model", model, "--data", data, "--out", tmp_path / "map.png", "--html", tmp_path / "map.html", "--baseline"]
    monkeypatch.setattr(sys, "argv", ["visualize_tsne.py", *map(str, arguments), "--method", "pca", "--sentences", "120"])
    visualize_tsne.main()
    assert "120 sentences" in capsys.readouterr().out
    assert (tmp_path / "map.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = (tmp_path / "map.html").read_text()
    sample = sample_pairs(open_pairs([data]), 120, seed=0)
    for name, encoder in (("mean pooling", mean_pooling(32)), ("model.bin", load_encoder(model))):
        first, second = encode_pairs(encoder, sample)
        figure = spearman((first * second).sum(1).numpy(), sample.labels)
        assert f"{name}: 120 sentence embeddings, Spearman {figure:.3f}" in page
    assert all(sentence in page for sentence in sample.text().first[:5])
    assert 'src="http' not in page


def test_a_sample_is_of_whole_pairs_and_follows_its_seed(files):
    pairs = open_pairs([files[1]])
    samples = [sample_pairs(pairs, 120, seed) for seed in (1, 1, 2)]
    assert np.array_equal(samples[0].first, samples[1].first) and not np.array_equal(samples[0].first, samples[2].first)
    assert len(samples[0]) == 60 and len(sample_pairs(pairs, 10**6, 0)) == 80


def test_a_map_of_equal_labels_has_no_spearman(files, tmp_path, run_here):
    """Such as pairs without labels; 0.000 would look like a bad encoder."""
    model, data = files
    pairs = open_pairs([data])
    sentences = [pairs.tokens.sentence(i) for i in range(len(pairs.tokens))]
    equal = store_pairs(tmp_path / "equal.store", sentences, pairs.first, pairs.second, np.full_like(pairs.labels, 5))
    options = ("--out", tmp_path / "map.png", "--html", tmp_path / "map.html", "--method", "pca")
    result = run_here("visualize_tsne.py", "--model", model, "--data", equal, *options)
    page = (tmp_path / "map.html").read_text()
    assert "model.bin: 160 sentence embeddings" in page and "Spearman" not in page, result.stderr


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_is_none_is_refused(seed, tmp_path, run_here):
    result = run_here("visualize_tsne.py", "--data", "any.csv", f"--seed={seed}", "--out", tmp_path / "map.png")
    assert f"--seed is {seed}, expected 0 to 4294967295" in last_line(result)


def test_the_command_says_when_the_sentences_are_few(files, tmp_path, run_here):
    model, data = files
    options = ("visualize_tsne.py", "--model", model, "--out", tmp_path / "map.png", "--data")
    result = run_here(*options, data, "--sentences", "20")
    assert "20 sentences: the perplexity is 6.33 instead of 30.\n" in result.stdout, result.stderr
    assert (tmp_path / "map.png").exists()
    one = store_pairs(tmp_path / "one.store", *learnable_pairs(np.random.default_rng(0), 1))
    assert "2 sentences are too few for a map" in last_line(run_here(*options, one))
