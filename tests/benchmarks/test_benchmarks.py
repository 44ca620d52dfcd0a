"""The benchmarks compare ways that do the same work; how long they take is not tested."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, learnable_pairs, random_sentences, store_pairs

from data import open_pairs
from model import EncoderConfig, SentenceEncoder
from studies.tables import markdown
from training.recipe import LossTerm, Phase, Recipe

sys.path.append(str(ROOT / "benchmarks"))
inference = pytest.importorskip("inference")
growth, reading, run, text_speed, timing, training_speed = (
    pytest.importorskip(name) for name in ("growth", "reading", "run", "text_speed", "timing", "training_speed")
)


@pytest.fixture
def pairs(tmp_path):
    return open_pairs([store_pairs(tmp_path / "pairs.store", *learnable_pairs(np.random.default_rng(0), 100))])


def test_each_way_of_reading_finds_the_same_numbers():
    row = reading.format_token_row(random_sentences(np.random.default_rng(0), 1)[0])
    numbers = [reading._numbers(way, row) for way in ("fromstring", "floats", "loadtxt")]
    assert all(np.array_equal(numbers[0], other) for other in numbers[1:])


def test_the_ordinary_published_encoder_is_the_published_encoder():
    torch.manual_seed(0)
    ordinary, ours = inference.OrdinaryPublished(768).eval(), SentenceEncoder(EncoderConfig("published")).eval()
    ours.pooling.token_encoder.load_state_dict(ordinary.project.state_dict())
    ours.pooling.score.load_state_dict(ordinary.score.state_dict())
    ours.head.load_state_dict(ordinary.out.state_dict())
    tokens = torch.randn(5, 9, 768)
    tokens[2, 4:] = 0
    with torch.inference_mode():
        torch.testing.assert_close(ordinary(tokens), ours(tokens), atol=1e-5, rtol=0)


def test_both_ways_from_text_encode_all_sentences():
    theirs, ours = (way() for way in text_speed.ways_of_encoding(str(ROOT / "model.bin"), ["one", "and two"], 1).values())
    assert (theirs.shape, ours.shape) == ((2, 384), (2, 256))


def test_the_plain_loop_trains_the_same_encoder(pairs):
    encoder = EncoderConfig(output_dim=16, heads=4, hidden_dim=16, dropout=0.0)
    phases = {"graded": Phase(epochs=6, losses={"cosent": LossTerm()})}
    recipe = Recipe(encoder=encoder, phases=phases, batch_size=100, learning_rate=3e-3)
    plain, ours = (kind(recipe, pairs, pairs).run() for kind in (training_speed.PlainTrainer, training_speed.Trainer))
    for one, other in zip(plain.history, ours.history, strict=True):  # batches of all pairs: their order makes no difference
        assert one.validation_spearman == pytest.approx(other.validation_spearman, abs=1e-3)


@pytest.mark.parametrize("times", [1, 10])
def test_a_part_of_the_data_has_its_own_sentences(pairs, times):
    part = growth.first_part(pairs, times)
    assert len(part) == 10 * times and len(part.tokens) == 20 * times
    for row in range(len(part)):
        assert np.array_equal(part.tokens.sentence(part.second[row]), pairs.tokens.sentence(pairs.second[row]))


def test_medians_and_ranges():
    timings = timing.time_in_turn({"a": lambda: None, "b": lambda: sum(range(10_000))}, repeats=5)
    assert all(each.least <= each.median <= each.most for each in timings.values())
    assert markdown(("x", "y"), [("1", "2")]) == "| x | y |\n| --- | --- |\n| 1 | 2 |\n"


def test_a_goal_is_met_or_not_and_sections_stay(tmp_path):
    assert timing.goal("ratio", 4.0, 4) == "Goal: ratio, at least 4. Met: 4.\n"
    assert timing.goal("ratio", 2.51, 2.5, at_most=True).startswith("Goal: ratio, at most 2.5. Not met: 2.51; why is in ")
    path = tmp_path / "speed.md"
    assert run.read_sections(path) == {}
    path.write_text("# Speed\n\nIntro.\n\n## One\n\n| a |\n\nGoal.\n\n## Two\n\n| b |\n")
    assert run.read_sections(path) == {"One": "| a |\n\nGoal.\n", "Two": "| b |\n"}
