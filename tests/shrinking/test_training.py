"""Targets, losses and the loop of small encoders."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, last_line, stopped_and_resumed
from scipy.stats import spearmanr
from transformers import AutoModel

from common.errors import InputError
from evaluation.scores import Scores
from portable.small_encoder import SmallEncoder
from shrinking.layers import keep_layers
from shrinking.targets import SentenceTargets, open_states, sentence_sets
from shrinking.trainer import Settings, ShrinkTrainer
from tokens.backbone import Backbone
from tokens.sentence_files import SentenceFiles
from tokens.text_pairs import TextPairs
from training.teacher_folder import load_teacher, save_teacher
from training.whole_encoder import WholeEncoder


def some_sentences(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(2, 7))) for _ in range(n)]


@pytest.fixture
def text(tmp_path: Path) -> SentenceFiles:
    (tmp_path / "text.txt").write_text("\n".join(some_sentences(300)))
    return SentenceFiles([tmp_path / "text.txt"])


@pytest.fixture
def pairs(tiny_bert) -> TextPairs:
    """Pairs whose labels are what another backbone says of them."""
    return labelled_by(changed(tiny_bert, 0.4, seed=5))


def labelled_by(encoder: WholeEncoder) -> TextPairs:
    first, second = some_sentences(120, 1), some_sentences(120, 2)
    cosine = (encoder.encode(first) * encoder.encode(second)).sum(1).numpy()
    return TextPairs(first, second, (5 * (cosine - cosine.min()) / np.ptp(cosine)).astype(np.float32))


def changed(folder: Path, by: float, seed: int) -> WholeEncoder:
    encoder, generator = WholeEncoder(Backbone(str(folder))), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return encoder


def cut(folder: Path, layers: list[int]) -> WholeEncoder:
    backbone = Backbone(str(folder))
    keep_layers(backbone, layers)
    return WholeEncoder(backbone, train_words=not layers)


def centred(encoder: WholeEncoder, sentences: list[str]) -> np.ndarray:
    embeddings = encoder.encode(sentences).numpy()
    embeddings = embeddings - embeddings.mean(0)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def test_the_targets_of_one_teacher_have_its_cosines_and_are_rotated_to_the_student(tiny_bert, text, pairs, tmp_path):
    teacher, student = changed(tiny_bert, 0.3, 1), WholeEncoder(Backbone(str(tiny_bert)))
    save_teacher(tmp_path / "teacher", teacher, {"set_aside": None})
    targets = SentenceTargets([tmp_path / "teacher"], sentence_sets(text, pairs), student, tmp_path)
    teacher.bfloat16 = True  # as it computes targets
    sentences = list(text)
    expected = centred(teacher, sentences)
    ours = targets.of("text", np.arange(len(sentences))).numpy()
    np.testing.assert_allclose(ours @ ours.T, expected @ expected.T, atol=2e-3)  # batches differ, and with them the rounding
    left, _, right = np.linalg.svd(expected.T @ student.encode(sentences).numpy())
    np.testing.assert_allclose(ours, expected @ left @ right, atol=5e-3)
    both = [pairs.first[7], pairs.second[7]]
    embeddings = teacher.encode(sentences).numpy()
    of_pair = teacher.encode(both).numpy() - embeddings.mean(0)
    of_pair /= np.linalg.norm(of_pair, axis=1, keepdims=True)
    first, second = targets.of("pairs", np.array([14, 15])).numpy()
    assert first @ second == pytest.approx(of_pair[0] @ of_pair[1], abs=2e-2)


def test_an_epoch_with_a_lower_error_is_kept_for_a_slightly_lower_spearman(tiny_bert, pairs, monkeypatch):
    best = Scores(spearman=0.8912, pearson=0.9, mse=0.0264, mae=0.1, bias=0.0, unrelated=0.1, pairs=120)
    scripted = [
        replace(best, spearman=0.5),
        best,
        replace(best, spearman=0.8907, mse=0.0233),
        replace(best, spearman=0.88, mse=0.0232),
    ]
    monkeypatch.setattr("training.whole_trainer.validate", lambda encoder, pairs: scripted.pop(0))
    student = WholeEncoder(Backbone(str(tiny_bert)))
    trainer = ShrinkTrainer(student, None, None, pairs, pairs, None, Settings(pair_epochs=3))
    trainer.run()
    assert trainer.best == 2


def test_several_teachers_are_averaged_and_computed_once(tiny_bert, text, tmp_path, monkeypatch):
    names = [tmp_path / "one", tmp_path / "two"]
    teachers = [changed(tiny_bert, 0.05, seed) for seed in (1, 2)]  # alike, so that half of their dimensions hold nearly all
    for name, teacher in zip(names, teachers, strict=True):
        save_teacher(name, teacher, {"set_aside": None})
        teacher.bfloat16 = True
    student = WholeEncoder(Backbone(str(tiny_bert)))
    targets = SentenceTargets(names, sentence_sets(text, None), student, tmp_path)
    expected = np.mean([own @ own.T for own in (centred(teacher, list(text)) for teacher in teachers)], axis=0)
    ours = targets.of("text", np.arange(len(text))).numpy()
    assert np.abs(ours @ ours.T - expected).mean() < 0.02
    monkeypatch.setattr("training.teacher_folder.load_teacher", None)  # cached
    again = SentenceTargets(names, sentence_sets(text, None), student, tmp_path)
    assert torch.equal(again.of("text", np.arange(9)), targets.of("text", np.arange(9)))


@pytest.mark.parametrize("layers", [[0, 2], []])
def test_text_alone_teaches_what_the_whole_backbone_gives(tiny_bert, text, layers):
    source = changed(tiny_bert, 0.3, 0)
    backbone = copy.copy(source.backbone)
    backbone.model = copy.deepcopy(source.model)
    keep_layers(backbone, layers)
    student = WholeEncoder(backbone, train_words=not layers)
    held_out = some_sentences(50, 9)

    def distance() -> float:
        return float(1 - (source.encode(held_out) * student.encode(held_out)).sum(1).mean())

    before = distance()
    settings = Settings(text_epochs=15, text_learning_rate=1e-2, text_batch=32)
    trainer = ShrinkTrainer(student, source, text, None, labelled_by(source), None, settings)
    distances = []
    trainer.on_safe_point = lambda: distances.append(distance())  # of the last weights: validation may like others best
    trainer.run()
    assert distances[-1] < before / 2


def test_labels_are_learned_and_the_best_epoch_is_kept(tiny_bert, pairs):
    student = WholeEncoder(Backbone(str(tiny_bert)))
    settings = Settings(pair_epochs=6, pair_learning_rate=5e-3, pair_batch=20)
    trainer = ShrinkTrainer(student, None, None, pairs, pairs, None, settings)
    trainer.run()
    reached = [scores.spearman for scores in trainer.history]
    assert len(reached) == 7 and max(reached) > reached[0] + 0.1
    embeddings = student.encode(pairs.first), student.encode(pairs.second)
    mse = float((((embeddings[0] * embeddings[1]).sum(1).numpy() - pairs.labels / 5) ** 2).mean())
    kept = trainer.history[trainer.best]
    assert kept.mse == pytest.approx(mse)
    assert kept.spearman - kept.mse == max(scores.spearman - scores.mse for scores in trainer.history)


def test_the_loss_is_what_the_settings_say(tiny_bert, text, pairs):
    source, student = changed(tiny_bert, 0, 0), cut(tiny_bert, [1])
    settings = Settings(text_epochs=0, token_weight=3.0, sentence_weight=7.0, label_weight=11.0, pair_text=4, pair_batch=5)
    trainer = ShrinkTrainer(student, source, text, pairs, pairs, None, settings)
    batch = next(trainer.batches())
    sentences = [list(text)[i] for i in batch.numbers]
    of_pairs = [sentence for row in batch.rows for sentence in (pairs.first[row], pairs.second[row])]
    assert len(sentences) == 4 and len(of_pairs) == 10
    expected = 0.0
    for group in (sentences, of_pairs):
        squares, total, cosines = 0.0, 0.0, []
        for sentence in group:  # one at a time, without padding
            ids = student.backbone.tokenize([sentence])[0]
            ours, whole = (encoder.hidden(ids)[0][0].detach().numpy().astype(float) for encoder in (student, source))
            squares += ((ours - whole) ** 2).sum()
            total += (whole**2).sum()
            first, second = ours.mean(0), whole.mean(0)
            cosines.append(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
        expected += 3 * squares / total + 7 * (1 - np.mean(cosines))
    for row in batch.rows:
        first, second = student.encode([pairs.first[row], pairs.second[row]]).numpy()
        expected += 11 * (first @ second - pairs.labels[row] / 5) ** 2 / len(batch.rows)
    assert trainer.loss(batch).item() == pytest.approx(expected, rel=1e-4)


def test_states_on_disk_are_those_of_the_backbone(tiny_bert, text, pairs, tmp_path):
    source = changed(tiny_bert, 0, 0)
    states = {own.name: open_states(source, own, tmp_path) for own in sentence_sets(text, pairs)}
    settings = Settings(text_batch=16, text_epochs=1, pair_batch=16)
    losses = []
    for known in (None, states):
        trainer = ShrinkTrainer(cut(tiny_bert, [1]), source, text, pairs, pairs, None, settings, known)
        losses.append([trainer.loss(batch).item() for trainer.epoch in (0, 1) for batch in trainer.batches()])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert (states["text"].dim, len(states["text"]), len(states["pairs"])) == (16, 300, 2 * len(pairs))


@pytest.mark.parametrize("stop", [1, 9, 10, 12, 15])
def test_a_run_that_is_stopped_anywhere_ends_in_the_same_bits(tiny_bert, text, pairs, stop):
    settings = Settings(text_epochs=2, text_batch=64, pair_epochs=2, pair_batch=30, pair_text=16, text_learning_rate=1e-3)

    def trainer() -> ShrinkTrainer:
        return ShrinkTrainer(cut(tiny_bert, [0, 2]), changed(tiny_bert, 0, 0), text, pairs, pairs, None, settings)

    stopped_and_resumed(trainer, stop)


def test_a_learning_rate_that_diverges_is_one_clear_line(tiny_bert, pairs):
    student = WholeEncoder(Backbone(str(tiny_bert)))
    with torch.no_grad():
        next(iter(student.parameters())).fill_(float("nan"))
    with pytest.raises(InputError, match="training diverged before training"):
        ShrinkTrainer(student, None, None, pairs, pairs, None, Settings(pair_batch=20)).run()


def word_embeddings(folder: Path) -> torch.Tensor:
    return AutoModel.from_pretrained(folder).get_input_embeddings().weight


def test_the_command_shrinks_reports_and_resumes(tiny_bert, pairs, tmp_path, run_here):
    for name, own in (("train", slice(0, 80)), ("dev", slice(80, 120))):
        rows = zip(pairs.first[own], pairs.second[own], pairs.labels[own], strict=True)
        (tmp_path / f"{name}.tsv").write_text("".join(f"{first}\t{second}\t{label:.2f}\n" for first, second, label in rows))
    (tmp_path / "text.txt").write_text("\n".join(some_sentences(100)))
    files = ("--text", tmp_path / "text.txt", "--data", tmp_path / "train.tsv", "--validation", tmp_path / "dev.tsv")
    run = ("--run_dir", tmp_path / "run", "--out", tmp_path / "small")
    small = ("--backbone", tiny_bert, "--layers", "0,2", "--text_epochs", "1", "--pair_epochs", "1", "--pair_batch", "16")
    done = run_here("shrink.py", *files, *run, *small)
    assert done.returncode == 0, done.stderr
    assert re.search(r"validation Spearman +0?\.?[-\d.]+ +[-\d.]+ +[-\d.]+\n", done.stdout)
    assert done.stdout.splitlines()[-1].startswith("Validation Spearman: tiny-bert")
    again = run_here("shrink.py", "--run_dir", tmp_path / "run", "--resume")
    assert again.stdout.startswith(f"The run in {tmp_path / 'run'}/ is finished: {tmp_path / 'small'}")
    other = run_here("shrink.py", "--run_dir", tmp_path / "run", "--resume", "--seed", "7")
    assert "this folder holds a different run: seed was 0, now 7" in last_line(other)
    assert "nothing to learn from" in last_line(run_here("shrink.py"))
    only_int8 = ("--backbone", tiny_bert, "--layers", "all", "--text", tmp_path / "text.txt", "--validation", tmp_path / "dev.tsv")
    done = run_here("shrink.py", *only_int8, "--vocabulary", "10", "--run_dir", tmp_path / "int8", "--out", tmp_path / "whole")
    assert done.returncode == 0 and "Epoch" not in done.stdout, done.stderr
    first, second = (WholeEncoder(Backbone(str(tiny_bert))).encode(side[80:120]) for side in (pairs.first, pairs.second))
    with_all_words = spearmanr((first * second).sum(1), np.round(pairs.labels[80:120], 2)).statistic
    metrics = json.loads((tmp_path / "int8" / "metrics.json").read_text())
    assert metrics["vocabulary"] == 10
    assert metrics["scores"]["validation"][Path(tiny_bert).name]["spearman"] == pytest.approx(with_all_words)
    assert torch.equal(word_embeddings(tmp_path / "run" / "encoder"), word_embeddings(tiny_bert))
    words = ("--train_words", "--run_dir", tmp_path / "words", "--out", tmp_path / "words-out")
    done = run_here("shrink.py", *files, *small, *words, "--test", tmp_path / "train.tsv")
    assert done.returncode == 0, done.stderr
    assert "warning: 80 of the 80 test pairs are training pairs too" in done.stderr and "validation pairs are" not in done.stderr
    assert not torch.equal(word_embeddings(tmp_path / "words" / "encoder"), word_embeddings(tiny_bert))
    thinner = ("--relu", "--intermediate_size", "24", "--variants", "2", "--pair_variants", "5", "--float32")
    done = run_here("shrink.py", *files, *small, *thinner, "--run_dir", tmp_path / "thin", "--out", tmp_path / "thin-out")
    assert done.returncode == 0, done.stderr
    config = AutoModel.from_pretrained(tmp_path / "thin" / "encoder").config
    assert (config.hidden_act, config.intermediate_size) == ("relu", 24)
    lines = next((tmp_path / "thin").glob("variants-*.txt")).read_text().splitlines()
    of_pairs = set(pairs.first[:80] + pairs.second[:80]) - set(some_sentences(100))
    assert set(some_sentences(100)) | of_pairs <= set(lines)
    assert 3 * 100 + 4 * len(of_pairs) < len(lines) <= 3 * 100 + 6 * len(of_pairs)
    whole = load_teacher(tmp_path / "thin" / "encoder").encode(pairs.first)
    np.testing.assert_allclose(SmallEncoder(tmp_path / "thin-out").encode(pairs.first), whole, atol=1e-5)
    assert "leaves no feed-forward blocks" in last_line(run_here("shrink.py", *files, "--layers", "none", "--relu"))
    card = (tmp_path / "thin-out" / "README.md").read_text()
    assert "24 inner dimensions, ReLU" in card
    assert "2 random edits of each sentence of the text; 5 random edits of each sentence of the pairs" in card
    taught = ("--backbone", tmp_path / "thin" / "encoder", "--layers", "all", "--teacher", tmp_path / "run" / "encoder")
    more = ("--text_epochs", "1", "--pair_epochs", "0", "--run_dir", tmp_path / "more", "--out", tmp_path / "more-out")
    done = run_here("shrink.py", *files, *taught, *more)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "more-out" / "README.md").read_text()
    assert "layers 0,2," in card and f"| teachers | {Path(tiny_bert).name} shrunk (layers 0,2) |" in card
    alone = run_here("shrink.py", "--text", tmp_path / "text.txt", "--pair_variants", "2")
    assert "--pair_variants needs --data" in last_line(alone)
    assert "--data needs --validation" in last_line(run_here("shrink.py", "--data", tmp_path / "train.tsv"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep")
    refused = run_here("shrink.py", *files, *small, "--out", tmp_path / "mine")
    assert "mine: exists and is not a small encoder's" in last_line(refused)
    for option, path, message in (
        ("--teacher", "mine", "mine: not a teacher, expected a folder written by teacher.py or shrink.py"),
        ("--cache_dir", "train.tsv", "train.tsv: is a file, expected a folder"),
    ):
        refused = run_here("shrink.py", *files, *small, option, tmp_path / path, "--run_dir", tmp_path / "refused")
        assert message in last_line(refused) and not (tmp_path / "refused" / "arguments.json").exists()
