"""The benchmarks compare functions that do the same work; how long they take is not tested."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, learnable_pairs, random_sentences, store_pairs

from common.errors import InputError
from common.text_tables import markdown
from data import open_pairs
from model import EncoderConfig, SentenceEncoder
from tokens.text_pairs import read_text_pairs
from training.recipe import LossTerm, Phase, Recipe

sys.path.append(str(ROOT / "benchmarks"))
inference = pytest.importorskip("inference")
reading, run, table_speed, text_speed, timing, training_speed = (
    pytest.importorskip(name) for name in ("reading", "run", "table_speed", "text_speed", "timing", "training_speed")
)


@pytest.fixture
def pairs(tmp_path):
    return open_pairs([store_pairs(tmp_path / "pairs.store", *learnable_pairs(np.random.default_rng(0), 100))])


@pytest.mark.parametrize("reader", ["fromstring", "polars"])
def test_each_reader_finds_the_numbers(reader):
    if reader == "polars":
        pytest.importorskip("polars")
    tokens = random_sentences(np.random.default_rng(0), 1)[0]
    numbers = reading.parse_row(reader, reading.format_token_row(tokens))
    assert np.array_equal(numbers, np.array([*tokens.shape, *tokens.ravel()], np.float32))


def test_each_reader_reads_the_same_rows(tmp_path):
    paths, size = table_speed.write_tables(tmp_path, 100)
    (made,) = table_speed.make_rows(100)
    for path in paths.values():
        pairs = read_text_pairs(path)
        assert (pairs.first, pairs.second, pairs.labels.tolist()) == (*made[:2], pytest.approx(made[2].tolist()))
        for reader in table_speed.READERS.values():
            rows, seconds, memory = timing.run_script(table_speed.__file__, reader, str(path))
            assert rows == 100 and seconds > 0 and memory >= 0
    assert size == sum(map(len, pairs.first + pairs.second))


def test_the_plain_published_encoder_is_the_published_encoder():
    torch.manual_seed(0)
    plain, ours = inference.PlainPublished(768).eval(), SentenceEncoder(EncoderConfig("published")).eval()
    ours.pooling.token_encoder.load_state_dict(plain.project.state_dict())
    ours.pooling.score.load_state_dict(plain.score.state_dict())
    ours.head.load_state_dict(plain.out.state_dict())
    tokens = torch.randn(5, 9, 768)
    tokens[2, 4:] = 0
    with torch.inference_mode():
        torch.testing.assert_close(plain(tokens), ours(tokens), atol=1e-5, rtol=0)


def test_both_text_encoders_encode_all_sentences():
    theirs, ours = (encode() for encode in text_speed.encode_functions(str(ROOT / "model.bin"), ["one", "and two"], 1).values())
    assert (theirs.shape, ours.shape) == ((2, 384), (2, 256))


def test_the_plain_loop_trains_the_same_encoder(pairs):
    encoder = EncoderConfig(output_dim=16, heads=4, hidden_dim=16, dropout=0.0)
    phases = {"graded": Phase(epochs=6, losses={"cosent": LossTerm()})}
    recipe = Recipe(encoder=encoder, phases=phases, batch_size=100, learning_rate=3e-3)
    plain, ours = (kind(recipe, pairs, pairs).run() for kind in (training_speed.PlainTrainer, training_speed.Trainer))
    for one, other in zip(plain.history, ours.history, strict=True):  # batches of all pairs: their order makes no difference
        assert one.validation_score == pytest.approx(other.validation_score, abs=1e-3)


def test_timing_is_interleaved_after_a_warm_up():
    calls = []
    seconds = timing.time_interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert [len(values) for values in seconds.values()] == [2, 2] and min(map(min, seconds.values())) >= 0


def test_medians_ranges_and_ratios():
    assert timing.median_and_range([3, 1, 2]) == "2.0 (1.0 - 3.0)"
    assert timing.median_and_range([1234.5, 99.94]) == "667 (99.9 - 1,234)"
    rates = {"a": [1, 2, 3], "b": [3, 9, 4]}
    assert timing.rate_rows(rates, "a") == [("a", "2.0 (1.0 - 3.0)", "1.00"), ("b", "4.0 (3.0 - 9.0)", "2.00")]
    assert markdown(("x", "y"), [("1", "2")]) == "| x | y |\n| --- | --- |\n| 1 | 2 |\n"


@pytest.mark.parametrize(("flag", "expected"), [("avx512_vnni", "Some CPU, with VNNI"), ("avx2", "Some CPU, without VNNI")])
def test_the_processor_has_vnni_or_not(monkeypatch, flag, expected):
    facts = f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu {flag} sse\npower management:\n\nprocessor\t: 1\n"
    monkeypatch.setattr(timing.Path, "read_text", lambda path: facts)
    assert timing.processor() == expected


def test_a_goal_is_met_or_not_and_sections_stay(tmp_path):
    assert timing.goal("ratio", 4.0, 4) == "Goal: ratio, at least 4; met: 4.\n"
    assert timing.goal("ratio", 2.51, 2.5, at_most=True) == "Goal: ratio, at most 2.5; not met: 2.51.\n"
    path = tmp_path / "speed.md"
    assert run.read_sections(path) == {}
    path.write_text("# Speed\n\nIntro.\n\n## One\n\n| a |\n\nGoal.\n\n## Two\n\n| b |\n")
    assert run.read_sections(path) == {"One": "| a |\n\nGoal.\n", "Two": "| b |\n"}


def test_the_ladder_compares_encoders_that_do_the_same_work(tmp_path):
    ladder = pytest.importorskip("ladder")
    for name in ("3_layers-0", "3_layers-1", "static-0", "other", "empty-0"):
        (tmp_path / name).mkdir()
        if name != "empty-0":
            (tmp_path / name / "encoder.onnx").touch()
    found = {name: [path.name for path in paths] for name, paths in ladder.find_ladder(tmp_path).items()}
    assert found == {"3 layers": ["3_layers-0", "3_layers-1"], "static": ["static-0"]}
    with pytest.raises(InputError, match="holds no small encoders"):
        ladder.find_ladder(tmp_path / "other")
    calls = []

    def encode(texts, batch):
        calls.append((len(texts), batch))
        return np.ones((len(texts), 2), dtype=np.float32)

    for batch, expected in ((32, {(256, 32)}), (1, {(1, 1)})):
        calls.clear()
        ratios = ladder.measure({ladder.IN_TORCH: [encode], "ours": [encode]}, ["a"] * 256, batch)
        assert set(ratios) == {ladder.IN_TORCH, "ours"} and ratios[ladder.IN_TORCH] == 1 and set(calls) == expected
    assert ladder.installed_bytes(["numpy"]) > 10**7 and ladder.installed_bytes(["no-such-package"]) == 0
    ladder.draw(tmp_path / "picture.png", {ladder.IN_TORCH: (1.0, 0.82, 87.0), "3 layers": (9.0, 0.86, 15.0)}, own=["3 layers"])
    assert (tmp_path / "picture.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
