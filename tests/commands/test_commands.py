"""evaluate.py, checkpoints and the shipped files."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, last_line, learnable_pairs, store_pairs
from scipy.optimize import isotonic_regression
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

import evaluate
from common.errors import InputError
from data import PairData, open_pairs
from evaluation import comparison
from evaluation.checkpoint import load_encoder, save_encoder
from evaluation.comparison import Evaluation, off_the_shelf
from evaluation.encoding import encode_pairs
from evaluation.scores import cosines, score, score_embeddings
from model import EncoderConfig, SentenceEncoder, get_model, mean_pooling
from tokens.backbone import DEFAULT_BACKBONE, is_known_to_mean_pool, source_of
from tokens.text_pairs import read_text_pairs
from tokens.text_store import BackboneSettings, text_store
from tokens.token_store import create_store, pack_json


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """A small encoder and pairs for it."""
    torch.manual_seed(0)
    save_encoder(tmp_path / "model.bin", SentenceEncoder(EncoderConfig(input_dim=32, output_dim=8, heads=4)))
    return tmp_path / "model.bin", store_pairs(tmp_path / "x.store", *learnable_pairs(np.random.default_rng(0), 80))


def figures_of(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON that evaluate.py printed, which is JSON for every reader: without NaN."""
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout, parse_constant=pytest.fail)


def cells_of(printed: str) -> list[list[str]]:
    """The cells of printed tables and lines; columns are two or more spaces apart, and a line may start with an empty one."""
    return [re.split(r" {2,}", line.rstrip()) for line in printed.splitlines()]


def without_labels(path: Path, n: int, seed: int = 0, *, n_negatives: int = 0) -> Path:
    """A pair store of learnable pairs without labels, as prepare_data.py makes it; negatives are other pairs' sentences."""
    sentences, first, second, labels = learnable_pairs(np.random.default_rng(seed), n)
    with create_store(path, 32) as writer:
        for tokens in sentences:
            writer.append(tokens)
        extra = {"first": first, "second": second, "labels": np.full_like(labels, 5)}
        extra["sentences"] = pack_json([""] * len(sentences))
        extra["reading"] = pack_json({"has_labels": False, "scale": "", "skipped": 0})
        if n_negatives:
            extra["negatives"] = np.stack([np.roll(second, shift + 1) for shift in range(n_negatives)], axis=1)
        writer.finish(extra, {})
    return path


def test_evaluate_prints_a_table_and_json_with_the_same_figures(files, run_here):
    model, data = files
    table = cells_of(run_here("evaluate.py", "--model", model, "--data", data).stdout)
    figures = figures_of(run_here("evaluate.py", "--model", model, "--data", data, "--json"))
    assert table[0] == ["data", "encoder", "pairs", "Spearman", "Pearson", "error", "bias", "unrelated"]
    assert figures["data"].keys() == {"x.store"} and figures["data"]["x.store"].keys() == {"mean pooling", "encoder"}
    encoders = {"mean pooling": mean_pooling(32), "encoder": load_encoder(model)}
    for line, first_cell, (name, encoder) in zip(table[1:], ("x.store", ""), encoders.items(), strict=False):
        expected, own = score(encoder, open_pairs([data])), figures["data"]["x.store"][name]
        for metric in ("spearman", "pearson", "mse", "mae", "bias", "unrelated"):
            assert own[metric] == pytest.approx(getattr(expected, metric), abs=1e-6)
        shown = [f"{own[metric]:.4f}" for metric in ("spearman", "pearson", "mse", "bias", "unrelated")]
        assert line == [first_cell, name, "80", *shown] and own["pairs"] == 80
        cost = figures["encoders"][name]
        assert cost["output dim"] == encoder.config.output_dim and cost["sentences/s"] > 0
        assert cost["parameters"] == sum(parameter.numel() for parameter in encoder.parameters())
    assert [line[0].split(":")[0] for line in table[4:]] == ["mean pooling", "encoder", str(model)]
    assert figures["bytes"] == model.stat().st_size


def test_unrelated_sentences_are_a_first_one_and_the_next_pairs_second():
    first, second = (torch.nn.functional.normalize(torch.randn(7, 5), dim=1) for _ in "ab")
    expected = np.mean([float(first[i] @ second[(i + 1) % 7]) for i in range(7)])
    labels = np.arange(7, dtype=np.float32)
    assert score_embeddings(first, second, labels).unrelated == pytest.approx(expected, abs=1e-6)
    assert np.isnan(score_embeddings(first[:1], second[:1], labels[:1]).unrelated)


def test_a_single_pair_has_no_unrelated_sentences(files, tmp_path, run_here):
    data = store_pairs(tmp_path / "one.store", *learnable_pairs(np.random.default_rng(0), 1))
    arguments = ("--model", files[0], "--data", data, "--meaning")
    figures = figures_of(run_here("evaluate.py", *arguments, "--json"))
    assert figures["data"]["one.store"]["encoder"]["unrelated"] is None
    assert figures["meaning"]["unrelated"]["encoder"] == {"pairs": 0, "mean cosine": None}
    assert "nan" not in run_here("evaluate.py", *arguments).stdout


def test_correlations_with_equal_labels_are_empty_and_have_no_mean(files, tmp_path, run_here, monkeypatch):
    """With different labels, an encoder whose cosines are all equal has a correlation of 0."""
    *sides, labels = learnable_pairs(np.random.default_rng(5), 30)
    equal = store_pairs(tmp_path / "equal.store", *sides, np.full_like(labels, 4))
    one = store_pairs(tmp_path / "one.store", *learnable_pairs(np.random.default_rng(0), 1))
    arguments = ("--model", files[0], "--data", files[1], equal, one)
    figures = figures_of(run_here("evaluate.py", *arguments, "--json"))
    for own in (figures["data"]["equal.store"]["encoder"], figures["data"]["one.store"]["encoder"], figures["mean"]["encoder"]):
        assert own["spearman"] is own["pearson"] is None and own["mse"] > 0
    _, *lines = cells_of(run_here("evaluate.py", *arguments).stdout)
    mse, bias, unrelated = (f"{figures['data']['equal.store']['encoder'][name]:.4f}" for name in ("mse", "bias", "unrelated"))
    assert lines[3] == ["", "encoder", "30", mse, bias, unrelated]
    same = torch.eye(1, 32).expand(80, 32)
    monkeypatch.setattr(comparison, "encode_pairs", lambda *_: (same, same))
    assert comparison.evaluate(mean_pooling(32), open_pairs([files[1]])).scores["spearman"] == 0


def test_several_data_sets_are_rows_of_one_table_with_their_means_last(files, tmp_path, run_here):
    """Data sets without labels have a table of their own."""
    model, sets = files[0], {}
    for seed, name in enumerate(("a/test.store", "b/test.store", "dev.store")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        sets[name] = store_pairs(tmp_path / name, *learnable_pairs(np.random.default_rng(seed), 40 + seed))
    unlabelled = {"plain.store": without_labels(tmp_path / "plain.store", 30)}
    unlabelled["hard.store"] = without_labels(tmp_path / "hard.store", 30, n_negatives=2)
    arguments = ("--model", model, "--data", *sets.values(), *unlabelled.values())
    figures = figures_of(run_here("evaluate.py", *arguments, "--json"))
    assert list(figures["data"]) == [*sets, *unlabelled]
    encoders = {"mean pooling": mean_pooling(32), "encoder": load_encoder(model)}
    for name, path in (sets | unlabelled).items():
        for who, encoder in encoders.items():
            for metric, value in asdict(score(encoder, open_pairs([path]))).items():
                found = figures["data"][name][who][metric]
                assert found is None if np.isnan(value) else found == pytest.approx(value, abs=1e-6)
    for who, means in figures["mean"].items():
        assert means.keys() == {"spearman", "pearson", "mse", "mae", "bias", "unrelated"}
        for metric, value in means.items():
            assert value == pytest.approx(np.mean([figures["data"][name][who][metric] for name in sets]), abs=1e-12)
    printed = run_here("evaluate.py", *arguments).stdout
    table, title, ranking, _ = printed.split("\n\n")
    lines = cells_of(table)[1:]
    assert [line[:2] for line in lines] == [
        [name, who] for data in (*sets, "mean") for name, who in zip((data, ""), encoders, strict=True)
    ]
    shown = [f"{figures['mean']['encoder'][metric]:.4f}" for metric in ("spearman", "pearson", "mse", "bias", "unrelated")]
    assert lines[-1] == ["", "encoder", *shown]
    assert title == "Pairs without labels"
    header, *lines = cells_of(ranking)
    assert header == ["data", "encoder", "pairs", "MRR@10", "triplet accuracy"]
    plain, hard = (figures["data"][name]["mean pooling"] for name in unlabelled)
    assert lines[0] == ["plain.store", "mean pooling", "30", f"{plain['mrr']:.4f}"]  # no negatives, no accuracy
    assert lines[2] == ["hard.store", "mean pooling", "30", f"{hard['mrr']:.4f}", f"{hard['triplet_accuracy']:.4f}"]


def test_the_means_are_over_data_sets_that_all_have_the_score():
    scores = [{"a": {"spearman": 0.2, "pairs": 3, "accuracy": 1.0}, "b": {"spearman": 1.0}}, {"a": {"spearman": 0.4, "pairs": 5}}]
    assert comparison.mean_scores(scores) == {"a": {"spearman": pytest.approx(0.3)}}


def test_data_sets_have_the_shortest_names_that_tell_them_apart():
    paths = ["x/a/test.csv", "x/b/test.csv", "f/1.dat", "dev.csv", "f/2.dat.gz", "hf:org/name:test", "f/3.dat", "f/4.dat"]
    dat_files = ["f/1.dat", "f/2.dat.gz", "f/3.dat", "f/4.dat"]
    assert evaluate.group_by_data_set(paths) == {
        "a/test.csv": ["x/a/test.csv"],
        "b/test.csv": ["x/b/test.csv"],
        "f": dat_files,
        "dev.csv": ["dev.csv"],
        "name:test": ["hf:org/name:test"],
    }
    assert evaluate.group_by_data_set(["/test.csv", "/b/test.csv"]) == {"/test.csv": ["/test.csv"], "b/test.csv": ["/b/test.csv"]}
    for paths in (["test.csv", "x/../test.csv"], [*dat_files, "f"]):
        with pytest.raises(InputError, match="is given twice"):
            evaluate.group_by_data_set(paths)


def test_the_challenges_files_are_one_data_set_next_to_others(challenge, tmp_path, run_here):
    save_encoder(tmp_path / "model.bin", SentenceEncoder(EncoderConfig(output_dim=8)))
    other = store_pairs(tmp_path / "x.store", *learnable_pairs(np.random.default_rng(0), 20, dim=768))
    paths = sorted(challenge.glob("*.dat"))
    result = run_here("evaluate.py", "--model", tmp_path / "model.bin", "--data", *paths[:2], other, *paths[2:], "--json")
    figures = figures_of(result)["data"]
    assert {name: scores["encoder"]["pairs"] for name, scores in figures.items()} == {"challenge": 12, "x.store": 20}
    expected = score(load_encoder(tmp_path / "model.bin"), open_pairs([challenge]))
    assert figures["challenge"]["encoder"]["spearman"] == pytest.approx(expected.spearman, abs=1e-6)


def test_an_error_names_the_data_set(files, tmp_path, run_here):
    model, data = files
    narrow = store_pairs(tmp_path / "narrow.store", *learnable_pairs(np.random.default_rng(0), 20, dim=16))
    for bad in (narrow, tmp_path / "nowhere.csv"):
        assert last_line(run_here("evaluate.py", "--model", model, "--data", data, bad)).startswith(f"error: {bad}: ")
        assert last_line(run_here("evaluate.py", "--model", model, "--data", data, "--validation", bad)).startswith(
            f"error: {bad}: "
        )


def test_evaluate_fits_labels_on_the_validation_pairs(files, tmp_path, run_here):
    """Against scipy's isotonic regression, joined by straight lines and clipped at the ends."""
    model, data = files
    other = store_pairs(tmp_path / "other.store", *learnable_pairs(np.random.default_rng(1), 90))
    plot = tmp_path / "plot.png"
    arguments = ("--model", model, "--data", data, "--validation", other, "--plot", plot)
    figures = figures_of(run_here("evaluate.py", *arguments, "--json"))["data"]["x.store"]
    header, *lines = cells_of(run_here("evaluate.py", *arguments).stdout)
    test, validation = open_pairs([data]), open_pairs([other])
    for line, (name, encoder) in zip(lines, (("mean pooling", mean_pooling(32)), ("encoder", load_encoder(model))), strict=False):
        x, new = (cosines(*encode_pairs(encoder, pairs)).astype(np.float64) for pairs in (validation, test))
        order = np.argsort(x)
        fitted = isotonic_regression(validation.labels[order].astype(np.float64)).x
        error = np.interp(new, x[order], np.clip(fitted, 0, 5)) - test.labels
        assert figures[name]["mse of label"] == pytest.approx(np.mean(error**2), rel=1e-4)
        assert figures[name]["mae of label"] == pytest.approx(np.mean(abs(error)), rel=1e-4)
        assert (header[-1], line[-1]) == ("label MAE", f"{figures[name]['mae of label']:.4f}")
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_plot_of_predictions_needs_labelled_pairs_to_calibrate_on_and_one_data_set(files, tmp_path, run_here):
    model, data = files
    plain = without_labels(tmp_path / "plain.store", 30)
    refused = {
        ("--data", data): "give --validation",
        ("--data", data, plain, "--validation", data): "--plot draws one data set, expected one in --data, not 2",
        ("--data", plain, "--validation", data): "--plot needs pairs with labels, and those of --data have none",
        ("--data", data, "--validation", plain): "--plot needs pairs with labels, and those of --validation have none",
    }
    for arguments, message in refused.items():
        assert message in last_line(run_here("evaluate.py", "--model", model, *arguments, "--plot", tmp_path / "plot.png"))
    assert not (tmp_path / "plot.png").exists()


def test_pairs_that_match_or_not_have_a_threshold_and_an_accuracy(files, tmp_path, run_here):
    sentences, first, second, labels = learnable_pairs(np.random.default_rng(2), 60)
    matches = store_pairs(tmp_path / "matches.store", sentences, first, second, np.where(labels > 2.5, 5, 0).astype(np.float32))
    arguments = ("--model", files[0], "--data", files[1], matches)
    figures = figures_of(run_here("evaluate.py", *arguments, "--json"))["data"]
    header, *lines = cells_of(run_here("evaluate.py", *arguments).stdout)
    assert header[-3:] == ["unrelated", "threshold", "accuracy"] and len(lines[0]) == len(header) - 2
    assert "threshold" not in figures["x.store"]["encoder"]
    for line, (name, encoder) in zip(
        lines[2:], (("mean pooling", mean_pooling(32)), ("encoder", load_encoder(files[0]))), strict=False
    ):
        cosine, own = cosines(*encode_pairs(encoder, open_pairs([matches]))), figures["matches.store"][name]
        right = [np.mean((cosine >= threshold) == (labels > 2.5)) for threshold in [*cosine, 2]]
        assert own["accuracy"] == pytest.approx(max(right)) and own["accuracy"] > 0.6
        assert np.mean((cosine >= own["threshold"]) == (labels > 2.5)) == pytest.approx(max(right))
        assert line[-2:] == [f"{own['threshold']:.4f}", f"{own['accuracy']:.4f}"] and own["spearman"] > 0.2


def test_the_meaning_of_cosines_is_the_labels_of_the_pairs_in_each_range(files, tmp_path, run_here):
    model, data = files
    other = store_pairs(tmp_path / "other.store", *learnable_pairs(np.random.default_rng(3), 50))
    *sides, labels = learnable_pairs(np.random.default_rng(4), 40)
    yes_or_no = store_pairs(
        tmp_path / "matches.store", *sides, np.where(labels > 2.5, 5, 0).astype(np.float32)
    )  # counts alone only
    arguments = ("--model", model, "--data", data, without_labels(tmp_path / "plain.store", 30), other, yes_or_no, "--meaning")
    alone = figures_of(run_here("evaluate.py", "--model", model, "--data", yes_or_no, "--meaning", "--json"))
    assert alone["meaning"]["unrelated"]["encoder"]["pairs"] == 40
    figures = figures_of(run_here("evaluate.py", *arguments, "--json"))
    printed = run_here("evaluate.py", *arguments).stdout
    header, *lines = cells_of(printed.split("of pairs by their cosine\n\n")[1].split("\n\n")[0])
    assert header == ["cosine", "mean pooling: pairs", "label", "encoder: pairs", "label"]
    limits = np.array([-1.1, 0, 0.2, 0.4, 0.6, 0.8, 1.1])
    both, n_shown = [open_pairs([data]), open_pairs([other])], 0
    labels = np.concatenate([pairs.labels for pairs in both])
    for column, (who, encoder) in enumerate((("mean pooling", mean_pooling(32)), ("encoder", load_encoder(model)))):
        place = np.digitize(np.concatenate([cosines(*encode_pairs(encoder, pairs)) for pairs in both]), limits) - 1
        for number, (name, line) in enumerate(zip(list(figures["meaning"])[:-1], lines, strict=False)):
            inside, own = labels[place == number], figures["meaning"][name][who]
            assert own["pairs"] == len(inside) and line[0] == name
            if len(inside):
                assert own["mean label"] == pytest.approx(inside.mean(), rel=1e-5)
                assert own["standard deviation"] == pytest.approx(inside.std(), rel=1e-4, abs=1e-6)
                assert f"{own['mean label']:.2f} ± {own['standard deviation']:.2f}" in line
                n_shown += 1
        unrelated = [figures["data"][name][who]["unrelated"] for name in ("x.store", "other.store")]
        mean = (80 * unrelated[0] + 50 * unrelated[1]) / 130
        assert figures["meaning"]["unrelated"][who] == {"pairs": 130, "mean cosine": pytest.approx(mean)}
        assert lines[-1][0] == "unrelated sentences" and lines[-1][2 + 2 * column] == f"cosine {mean:.2f}"
    assert n_shown > 6
    assert "--meaning needs pairs with labels" in last_line(
        run_here("evaluate.py", "--model", model, "--data", tmp_path / "plain.store", "--meaning")
    )


def test_each_cosine_is_in_one_range_and_one_that_is_not_finite_in_none():
    cosine = np.array([-1, -1e-9, 0, 0.2, 0.4, 0.6, 0.8, 1, 1 + 1e-7, np.nan], np.float32)
    data = comparison.DataSet("", np.arange(10, dtype=np.float32), True, {})
    for who in ("mean pooling", "encoder"):
        data.evaluations[who] = Evaluation({"pairs": 10, "unrelated": 0.5}, cosine, None, 8, 0, 10, 1.0)
    table = comparison.meaning([data])
    assert [by_encoder["encoder"]["pairs"] for name, by_encoder in table.items() if name != "unrelated"] == [2, 1, 1, 1, 1, 3]
    assert table["0.8 to 1"]["encoder"]["mean label"] == 7


def test_evaluate_writes_its_tables_as_markdown(files, tmp_path, run_here):
    model, data = files
    out = tmp_path / "new" / "scores.md"
    arguments = ("--model", model, "--data", data, without_labels(tmp_path / "my plain.store", 30), "--meaning", "--out", out)
    printed = run_here("evaluate.py", *arguments).stdout
    first_line, *lines = out.read_text(encoding="utf-8").splitlines()
    assert first_line == f"`{shlex.join(['python', 'evaluate.py', *map(str, arguments)])}`"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    ours = [[cell for cell in row if cell] for row in rows if row[0] != "---"]
    shown = [[cell for cell in line if cell] for line in cells_of(printed) if len(line) > 2]
    assert len(ours) == 3 + 3 + 8 and ours == shown
    titles = ["## Pairs without labels", "## What a cosine means: the labels, 0-5, of pairs by their cosine"]
    assert [line for line in lines if line[:1] == "#"] == titles and printed.endswith(f"{out}: the tables as Markdown\n")


SHELF = ["A man plays a guitar.", "Somebody makes music in the park while it rains.", "", "Stocks fell.", "Two dogs run."]


def store_of(folder: Path, settings: BackboneSettings) -> PairData:
    """Pairs of neighbouring sentences of SHELF with the tokens of a backbone."""
    (folder / "shelf.tsv").write_text("".join(f"{a or '.'}\t{b or '.'}\t{i}\n" for i, (a, b) in enumerate(pairwise(SHELF))))
    text_store(folder / "shelf.tsv", settings, store_path=folder / "shelf.store")
    return open_pairs([folder / "shelf.store"])


def shelf_embeddings(folder: str, pairs: PairData) -> tuple[np.ndarray, np.ndarray]:
    """What sentence-transformers gives for the sentences of pairs, at unit length."""
    model, text = SentenceTransformer(folder, device="cpu"), pairs.text()
    return model.encode(text.first, normalize_embeddings=True), model.encode(text.second, normalize_embeddings=True)


TOKENS_OF_LAST_LAYER = [(None, False), ("-1, 2", False), ("word,-1,0", False), ("-1", False), (None, True)]


@pytest.mark.parametrize(("layers", "pooled"), TOKENS_OF_LAST_LAYER)
def test_off_the_shelf_is_what_sentence_transformers_gives(layers, pooled, tmp_path):
    pairs = store_of(tmp_path, BackboneSettings(layers=layers, pooled=pooled))
    ((name, encoder),) = off_the_shelf(pairs.tokens).items()
    assert name == "all-MiniLM-L6-v2, off the shelf" and encoder.config.output_dim == 384
    for ours, theirs in zip(encode_pairs(encoder, pairs), shelf_embeddings(source_of(DEFAULT_BACKBONE), pairs), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_evaluate_shows_the_backbone_off_the_shelf_where_it_is_known(tmp_path, run_here):
    pairs = store_of(tmp_path, BackboneSettings())
    save_encoder(tmp_path / "model.bin", SentenceEncoder(EncoderConfig(output_dim=8)))
    figures = figures_of(run_here("evaluate.py", "--model", tmp_path / "model.bin", "--data", tmp_path / "shelf.store", "--json"))
    first, second = shelf_embeddings(source_of(DEFAULT_BACKBONE), pairs)
    own = figures["data"]["shelf.store"]["all-MiniLM-L6-v2, off the shelf"]
    assert own["pearson"] == pytest.approx(np.corrcoef((first * second).sum(1), pairs.labels)[0, 1], abs=1e-5)
    assert figures["encoders"]["all-MiniLM-L6-v2, off the shelf"].items() >= {"output dim": 384, "parameters": 0}.items()
    lines = cells_of(run_here("evaluate.py", "--model", tmp_path / "model.bin", "--data", tmp_path / "shelf.store").stdout)
    assert [line[1] for line in lines[1:4]] == ["mean pooling", "encoder", "all-MiniLM-L6-v2, off the shelf"]
    for description in ({"layers": "2"}, {"layers": "-1,word", "backbone": "no/such-backbone"}, {"backbone": None}):
        tokens = replace(pairs.tokens, description={**pairs.tokens.description, **description})
        assert off_the_shelf(tokens) == {}


def shelf_folder(folder: Path, bert: Path, mode: str | tuple[str, ...], *last: torch.nn.Module, prompt: str | None = None) -> str:
    """A folder that sentence-transformers writes for a backbone."""
    modules = [Transformer(str(bert)), Pooling(16, pooling_mode=mode), *last]
    prompts = {"prompts": {"query": "the cat "}, "default_prompt_name": prompt} if prompt else {}
    SentenceTransformer(modules=modules, device="cpu", **prompts).save_pretrained(str(folder), create_model_card=False)
    return str(folder)


def test_a_folder_is_known_to_mean_pool_if_it_says_so(tiny_bert, tmp_path):
    known = {
        shelf_folder(tmp_path / "plain", tiny_bert, "mean"): True,
        shelf_folder(tmp_path / "unit", tiny_bert, "mean", Normalize()): True,
        shelf_folder(tmp_path / "cls", tiny_bert, "cls"): False,
        shelf_folder(tmp_path / "two", tiny_bert, ("mean", "max")): False,
        shelf_folder(tmp_path / "dense", tiny_bert, "mean", Dense(16, 16)): False,
        shelf_folder(tmp_path / "prompt", tiny_bert, "mean", prompt="query"): False,
        str(tiny_bert): False,
        str(tmp_path / "nowhere"): False,
        "sentence-transformers/some-model": False,
        DEFAULT_BACKBONE: True,
    }
    assert {name: is_known_to_mean_pool(name) for name in known} == known
    config, modules = tmp_path / "plain" / "1_Pooling" / "config.json", tmp_path / "plain" / "modules.json"
    for older, expected in (
        ({"mean_tokens": True}, True),
        ({"mean_tokens": True, "max_tokens": True}, False),
        ({"cls_token": True}, False),
    ):
        chosen = {f"pooling_mode_{mode}": older.get(mode, False) for mode in ("cls_token", "mean_tokens", "max_tokens")}
        config.write_text(json.dumps({"word_embedding_dimension": 16} | chosen))
        assert is_known_to_mean_pool(str(tmp_path / "plain")) == expected
    for damaged in ("[]", "{", "3", '{"pooling_mode": 1}'):
        config.write_text(damaged)
        assert not is_known_to_mean_pool(str(tmp_path / "plain"))
    config.write_text('{"pooling_mode": "mean"}')
    assert is_known_to_mean_pool(str(tmp_path / "plain"))
    modules.write_text(modules.read_text().replace('"sentence_transformers.base', '"own_code'))
    assert not is_known_to_mean_pool(str(tmp_path / "plain"))


def test_a_folder_off_the_shelf_is_what_sentence_transformers_gives(tiny_bert, tmp_path):
    folder = shelf_folder(tmp_path / "mine", tiny_bert, "mean")
    pairs = store_of(tmp_path, BackboneSettings(folder, "0,-1,2"))
    ((name, encoder),) = off_the_shelf(pairs.tokens).items()
    assert name == "mine, off the shelf"
    for ours, theirs in zip(encode_pairs(encoder, pairs), shelf_embeddings(folder, pairs), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


OUTPUTS = {
    "FOLDER": "is a folder, expected the name of a file to write",
    "NEW/": "is a folder, expected the name of a file to write",
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
    places = {"FOLDER": str(tmp_path), "NEW/": f"{tmp_path}/new/", "DATA": str(data), "DATA/x.png": f"{data}/x.png"}
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
        "evaluate.py --data DATA --out OUT.md",
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
    assert ours.bias == pytest.approx(float((first * second).sum(1).mean()) - labels.mean() / 5, abs=1e-6)


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
