"""A fine-tuned backbone as a teacher: on a tiny backbone made in the test."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, last_line, run_script

from backbone import Backbone
from data import PairData, open_pairs, split_by_groups, with_teacher
from errors import InputError
from teacher import Teacher, fine_tune, teacher_vectors, validate
from text_store import BackboneSettings, text_store


def write_pairs(path: Path, seed: int, n: int = 60) -> Path:
    """Pairs labelled by whether the words of meaning agree; the other words are noise."""
    rng, lines = np.random.default_rng(seed), []
    meaning, noise = WORDS[:3], WORDS[3:]
    for _ in range(n):
        first, second = ([*rng.choice(meaning, 2), *rng.choice(noise, 3)] for _ in "ab")
        lines.append(f"{' '.join(first)}\t{' '.join(second)}\t{2.5 * len({*first[:2]} & {*second[:2]}):g}\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture
def pairs(tiny_bert, tmp_path) -> tuple[PairData, PairData]:
    stores = []
    for name, seed in (("train", 0), ("dev", 1)):
        text_store(
            write_pairs(tmp_path / f"{name}.tsv", seed), BackboneSettings(str(tiny_bert)), store_path=tmp_path / f"{name}.store"
        )
        stores.append(open_pairs([tmp_path / f"{name}.store"]))
    return stores[0], stores[1]


def test_before_training_it_is_the_mean_pooled_backbone(tiny_bert, pairs):
    """Against sentence-transformers' encode."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    word = Transformer(str(tiny_bert))
    theirs = SentenceTransformer(modules=[word, Pooling(word.get_embedding_dimension())], device="cpu")
    first, second = teacher_vectors(Teacher(Backbone(str(tiny_bert))), pairs[0])
    for vectors, text in ((first, pairs[0].text().first), (second, pairs[0].text().second)):
        np.testing.assert_allclose(vectors, theirs.encode(text, normalize_embeddings=True), atol=1e-5)


def test_fine_tuning_learns_and_keeps_the_best_epoch(tiny_bert, pairs):
    teacher = Teacher(Backbone(str(tiny_bert)))
    words = teacher.model.get_input_embeddings().weight.clone()
    before = validate(teacher, pairs[1])
    best = fine_tune(teacher, *pairs, epochs=4, batch_size=10, learning_rate=3e-3, seed=0)
    assert best > before + 0.02
    assert validate(teacher, pairs[1]) == pytest.approx(best)
    assert torch.equal(teacher.model.get_input_embeddings().weight, words)


def test_harmful_fine_tuning_leaves_the_backbone_as_it_was(tiny_bert, pairs):
    teacher = Teacher(Backbone(str(tiny_bert)))
    start = copy.deepcopy(teacher.model.state_dict())
    labels = -np.asarray(pairs[0].labels)
    upside_down = PairData(pairs[0].tokens, pairs[0].first, pairs[0].second, 5 + labels, pairs[0].sentences)
    before = validate(teacher, pairs[1])
    assert fine_tune(teacher, upside_down, pairs[1], epochs=1, batch_size=10, learning_rate=3e-3, seed=0) == before
    assert all(torch.equal(value, start[name]) for name, value in teacher.model.state_dict().items())


def test_the_command_writes_what_training_reads(tiny_bert, pairs, tmp_path):
    out = tmp_path / "teacher.store"
    options = ("--data", tmp_path / "train.store", "--backbone", tiny_bert, "--epochs", "1", "--batch_size", "10")
    result = run_script("teacher.py", *options, "--validation", tmp_path / "dev.store", "--out", out)
    assert result.returncode == 0, result.stderr
    taught = with_teacher(pairs[0], out, set_aside=None)
    assert taught.teacher.shape == (60, 2, 16)
    np.testing.assert_allclose(np.linalg.norm(taught.teacher, axis=2), 1, atol=1e-6)
    some = np.array([3, 1])
    assert np.array_equal(taught.select(some).teacher, taught.teacher[some])
    same = [i for i in range(60) if pairs[0].first[i] == pairs[0].first[0]]
    np.testing.assert_allclose(taught.teacher[same, 0], taught.teacher[[0] * len(same), 0], atol=1e-5)
    with pytest.raises(InputError, match="60 other pairs, expected one of these 59"):
        with_teacher(pairs[0].select(np.arange(59)), out, set_aside=None)
    with pytest.raises(InputError, match=r"pairs that would be set aside for validation; give --validation"):
        with_teacher(pairs[0], out, set_aside={"fraction": 0.1, "seed": 0})
    with pytest.raises(InputError, match="token embeddings, expected the sentence vectors"):
        with_teacher(pairs[0], tmp_path / "train.store", set_aside=None)


def test_without_validation_pairs_teacher_and_training_set_the_same_part_aside(tiny_bert, pairs, tmp_path):
    out = tmp_path / "teacher.store"
    options = ("--data", tmp_path / "train.store", "--backbone", tiny_bert, "--epochs", "1", "--batch_size", "10")
    assert run_script("teacher.py", *options, "--out", out).returncode == 0
    taught = with_teacher(pairs[0], out, set_aside={"fraction": 0.1, "seed": 0})
    training, validation = split_by_groups(taught, 0.1, 0)
    assert len(training.teacher) == len(training) and len(validation) + len(training) == 60
    with pytest.raises(InputError, match="with --seed 1"):
        with_teacher(pairs[0], out, set_aside={"fraction": 0.1, "seed": 1})


def test_pairs_without_text_are_one_clear_line(challenge, tmp_path):
    (challenge / "sentences.dat").unlink()
    assert "text of these sentences is not known" in last_line(
        run_script("teacher.py", "--data", challenge, "--validation", challenge, "--out", tmp_path / "x.store", "--batch_size", "4")
    )
    assert not (tmp_path / "x.store").exists()
