"""Pairs and tuples without labels, from a file to a checkpoint, and what they are scored by."""

from __future__ import annotations

import copy
import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import last_line, learnable_pairs, store_pairs

from common.errors import InputError
from data import PairData, count_batches, open_pairs
from evaluation.encoding import encode_pairs
from evaluation.scores import RankingScores, score
from model import EncoderConfig, mean_pooling
from training.recipe import LossTerm, Phase, Recipe
from training.trainer import Trainer


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> PairData:
    """60 pairs that mean the same, each with the second sentences of two others as negatives."""
    sentences, first, second, _ = learnable_pairs(np.random.default_rng(0), 60)
    path = store_pairs(tmp_path_factory.mktemp("pairs") / "x.store", sentences, first, second, np.full(60, 5, np.float32))
    negatives = np.stack([np.roll(second, 1), np.roll(second, 2)], axis=1)
    return replace(open_pairs([path]), has_labels=False, negatives=negatives)


def test_scores_are_what_slow_obvious_code_finds(pairs):
    encoder = mean_pooling(32)
    first, second = (side.numpy() for side in encode_pairs(encoder, pairs))
    ranks = [1 + sum(first[i] @ other > first[i] @ second[i] for other in second) for i in range(len(pairs))]
    expected = np.mean([1 / rank if rank <= 10 else 0 for rank in ranks])
    ahead = [first[i] @ second[i] > first[i] @ second[i - k] for i in range(len(pairs)) for k in (1, 2)]
    scores = score(encoder, pairs)
    assert isinstance(scores, RankingScores)
    assert scores.mrr == pytest.approx(expected, abs=1e-6) and scores.triplet_accuracy == pytest.approx(np.mean(ahead))
    assert np.isnan(score(encoder, replace(pairs, negatives=None)).triplet_accuracy)


def test_a_sentence_of_several_pairs_has_several_right_answers(pairs):
    """Its other positives are not counted as ranked before, and it never finds itself."""
    twice = replace(pairs.select(np.arange(2)), first=pairs.first[[0, 0]], second=pairs.second[[0, 1]], negatives=None)
    assert score(mean_pooling(32), twice).mrr == 1
    itself = replace(pairs.select(np.arange(2)), second=np.array([pairs.second[0], pairs.first[0]]), negatives=None)
    assert score(mean_pooling(32), itself).mrr > 0


@pytest.mark.parametrize("with_negatives", [True, False])
def test_training_chooses_by_triplets_or_mrr_and_gets_better(pairs, with_negatives):
    data = pairs if with_negatives else replace(pairs, negatives=None)
    recipe = Recipe(phases={"ranking": Phase(epochs=4, losses={"ranking": LossTerm()})}, batch_size=16, learning_rate=3e-3)
    recipe = replace(recipe, encoder=replace(recipe.encoder, output_dim=16, heads=4, hidden_dim=0))
    result = Trainer(recipe, data.select(np.arange(40)), data.select(np.arange(40, 60))).run()
    assert result.metric == ("triplet_accuracy" if with_negatives else "mrr")
    best = max(record.validation_score for record in result.history)
    assert getattr(result.validation, result.metric) == pytest.approx(max(best, getattr(result.baseline, result.metric)))


def ranking(**changes) -> Recipe:
    phases = {"ranking": Phase(epochs=2, losses={"ranking": LossTerm()}, without_duplicates=True)}
    return Recipe(encoder=EncoderConfig(output_dim=16, heads=4, hidden_dim=0), phases=phases, batch_size=16, **changes)


def test_epochs_have_as_many_batches_as_repeated_sentences_need(pairs, capsys):
    """Steps, schedule and resuming agree on their number, which the number of pairs alone does not say."""
    popular = replace(pairs, second=pairs.second[np.minimum(np.arange(60) // 10, 4)], negatives=None)  # one in 20 pairs
    trainer, seen, states = Trainer(ranking(accumulation=3), popular, pairs), [], []
    assert re.fullmatch(
        r"phase ranking: up to \d+ of 60 pairs are left out of each epoch, not always the same ones: their sentences are in many "
        r"pairs, and no batch may hold one twice\n",
        capsys.readouterr().err,
    )
    trainer.on_batch = lambda *_: seen.append(trainer.batches_done)
    trainer.on_safe_point = lambda: states.append(copy.deepcopy(trainer.state_dict()))
    expected = trainer.run()
    assert len(seen) == seen[-1] == trainer.total_batches > 2 * count_batches(60, 16)
    assert trainer.schedule.last_epoch == trainer.total_steps and trainer.optimizer.param_groups[0]["lr"] == 1e-6
    resumed = Trainer(ranking(accumulation=3), popular, pairs)
    resumed.load_state_dict(states[len(states) // 2 + 2])
    assert resumed.losses
    assert repr(resumed.run().history) == repr(expected.history)
    capsys.readouterr()
    Trainer(ranking(), pairs, pairs)
    assert not capsys.readouterr().err


def test_pairs_that_all_share_a_sentence_are_an_error_before_training(pairs):
    shared = replace(pairs, second=np.zeros(60, int))
    with pytest.raises(InputError, match=r"^nothing to train on: phase ranking is skipped: any two of its 60 training pairs share"):
        Trainer(ranking(), shared, pairs)


def test_a_loss_on_labels_says_that_there_are_none(pairs):
    recipe = Recipe(phases={"graded": Phase(losses={"cosent": LossTerm(), "pearson": LossTerm()})})
    with pytest.raises(InputError, match=r"no labels, which phase graded learns from \(cosent, pearson\); choose --preset pairs"):
        Trainer(recipe, pairs, pairs)


def test_train_from_a_file_without_labels(tmp_path, run_here):
    names = ["anchor", "positive", "negative_1"]
    rows = [[f"the number {i} is nice", f"nice is number {i}", f"letters, not {i}"] for i in range(24)]
    with (tmp_path / "tuples.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    places = ("--run_dir", tmp_path / "run", "--out", tmp_path / "model.bin")
    done = run_here("train.py", "--data", tmp_path / "tuples.csv", "--preset", "pairs", "--phases.ranking.epochs", "1", *places)
    assert done.returncode == 0, done.stderr
    assert "validation triplet accuracy" in done.stdout and (tmp_path / "model.bin").exists()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 <= metrics["validation"]["encoder"]["triplet_accuracy"] <= 1
    assert next(csv.DictReader((tmp_path / "run" / "history.csv").open()))["validation_triplet_accuracy"]
    assert "no labels" in last_line(run_here("train.py", "--data", tmp_path / "tuples.csv", *places))
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([row[:2] for row in (names, *rows)])
    done = run_here("train.py", "--data", tmp_path / "pairs.csv", "--preset", "pairs", "--phases.ranking.epochs", "1", *places)
    assert "validation MRR" in done.stdout and "triplet" not in done.stdout  # which needs negatives


def test_equal_labels_are_an_error_before_training(tmp_path, run_here):
    (tmp_path / "x.csv").write_text("".join(f"sentence {i},another {i},3\n" for i in range(12)))
    message = last_line(run_here("train.py", "--data", tmp_path / "x.csv", "--out", tmp_path / "model.bin"))
    assert "all 12 training pairs have the label 3 (of 0 to 5), expected different ones" in message
    assert not (tmp_path / "model.bin").exists()
