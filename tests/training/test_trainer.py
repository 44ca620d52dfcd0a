"""Training from end to end, on small data made here."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import last_line, learnable_pairs, run_script, store_pairs, store_parts
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from data import PairData, TeacherTargets, open_pairs, write_dat_pairs
from evaluation.checkpoint import load_encoder
from evaluation.encoding import encode, encode_pairs
from evaluation.scores import score, score_embeddings
from losses import LOSSES
from model import EncoderConfig, SentenceEncoder, mean_pooling
from tokens.token_store import open_store
from training.gradient_cache import backward_in_parts
from training.objective import BatchEmbeddings, nested_loss, phase_loss
from training.recipe import LossTerm, Phase, Recipe
from training.trainer import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """train.store and dev.store, 32 wide, on which training must help."""
    return store_parts(tmp_path_factory.mktemp("stores"), train=300, dev=100)


@pytest.fixture(scope="module")
def sides(folder) -> tuple[PairData, PairData]:
    return open_pairs([folder / "train.store"]), open_pairs([folder / "dev.store"])


def recipe(**changes) -> Recipe:
    phases = {
        "contrastive": Phase(epochs=1, losses={"nt_xent": LossTerm(options={"temperature": 0.1})}, min_label=3),
        "graded": Phase(epochs=4, losses={"cosine_mse": LossTerm(weight=100, options={"lowest": 0})}),
    }
    encoder = EncoderConfig(output_dim=16, heads=4, hidden_dim=16, dropout=0.1)
    return Recipe(**{"encoder": encoder, "phases": phases, "learning_rate": 3e-3, "batch_size": 32} | changes)


def test_training_helps_and_says_by_how_much(sides):
    trained = Trainer(recipe(), *sides).run()
    assert not trained.fell_back
    assert trained.validation.spearman > trained.baseline.spearman + 0.03
    assert score(trained.encoder, sides[1]) == trained.validation
    assert score(mean_pooling(32), sides[1]) == trained.baseline


def test_history_has_epoch_0_and_the_best_epoch_is_the_result(sides):
    trained = Trainer(recipe(), *sides).run()
    assert [record.epoch for record in trained.history] == [0, 1, 2, 3, 4, 5]
    assert [record.phase for record in trained.history] == ["", "contrastive", *["graded"] * 4]
    best = max(record.validation_score for record in trained.history)
    assert trained.validation.spearman == pytest.approx(best, abs=1e-9)
    assert trained.history[trained.epoch].validation_score == best
    assert [r.epoch for r in trained.history if r.selected][-1] == trained.epoch


def test_the_same_seed_gives_the_same_bits_and_another_does_not(sides):
    weights = [Trainer(recipe(seed=seed), *sides).run().encoder.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_starting_as_the_baseline_epoch_0_is_the_baseline(sides):
    exact = recipe(encoder=EncoderConfig(output_dim=32, heads=4, hidden_dim=16), start="baseline")
    trained = Trainer(exact, *sides).run()
    assert trained.history[0].validation_score == pytest.approx(trained.baseline.spearman, abs=1e-4)


def with_labels(pairs: PairData, labels: np.ndarray) -> PairData:
    return replace(pairs, labels=labels.astype(np.float32))


HOSTILE = {
    "shuffled labels": lambda pairs: with_labels(pairs, np.random.default_rng(3).permutation(pairs.labels)),
    "labels upside down": lambda pairs: with_labels(pairs, 5 - pairs.labels),
    "all labels 4": lambda pairs: with_labels(pairs, np.full(len(pairs), 4)),
    "all labels 2": lambda pairs: with_labels(pairs, np.full(len(pairs), 2)),
    "two labels": lambda pairs: with_labels(pairs, np.where(pairs.labels > 4, 5, 4)),
    "50 pairs": lambda pairs: pairs.select(np.arange(50)),
    "5 pairs": lambda pairs: pairs.select(np.argsort(-pairs.labels)[:5]),
    "one pair, many times": lambda pairs: pairs.select(np.zeros(200, int)),
    "every pair three times": lambda pairs: pairs.select(np.repeat(np.arange(60), 3)),
    "a sentence with itself": lambda pairs: replace(pairs, second=pairs.first),
    "one-token sentences": lambda pairs: replace(pairs, tokens=replace(pairs.tokens, lengths=np.ones_like(pairs.tokens.lengths))),
}


@pytest.mark.parametrize(
    ("hostile", "learning_rate"), [*((name, 3e-3) for name in HOSTILE), ("shuffled labels", 0.3), ("honest", 0.3), ("honest", 10.0)]
)
def test_training_never_ends_below_the_baseline(sides, hostile, learning_rate):
    training, validation = sides
    trained = Trainer(recipe(learning_rate=learning_rate), HOSTILE.get(hostile, lambda pairs: pairs)(training), validation).run()
    assert trained.validation.spearman >= trained.baseline.spearman
    assert trained.validation.mse <= trained.baseline.mse
    assert score(trained.encoder, validation) == trained.validation
    assert trained.baseline == score(mean_pooling(32), validation)


def test_one_token_sentences_on_both_sides(sides):
    training, validation = (HOSTILE["one-token sentences"](pairs) for pairs in sides)
    trained = Trainer(recipe(learning_rate=0.3), training, validation).run()
    assert trained.validation.spearman >= score(mean_pooling(32), validation).spearman


def test_where_nothing_helps_the_result_is_mean_pooling_itself(sides):
    """Two random directions of 32, and a learning rate of almost nothing."""
    poor = recipe(encoder=EncoderConfig(output_dim=2, heads=4, hidden_dim=0), start="random", learning_rate=1e-9)
    trained = Trainer(poor, *sides).run()
    assert trained.fell_back and trained.epoch == 0
    assert trained.encoder.config.architecture == "mean"
    assert trained.validation == trained.baseline
    honest = Trainer(recipe(**vars(poor) | {"never_below_baseline": False}), *sides).run()
    assert not honest.fell_back and honest.validation.spearman < honest.baseline.spearman


def test_an_encoder_that_only_ranks_better_is_replaced_unless_the_guard_is_for_ranks(sides):
    """Labels divided by 50 keep their order, and ask for cosines near 0."""
    training, validation = sides
    ranks = recipe(phases={"graded": Phase(epochs=4, losses={"cosent": LossTerm()})}, start="baseline")
    flattened = with_labels(validation, validation.labels / 50)
    results = {
        guard: Trainer(replace(ranks, never_below_baseline=guard), training, flattened).run() for guard in (True, "spearman", False)
    }
    assert all(result.trained.spearman > result.baseline.spearman for result in results.values())
    assert all(result.worse_in == ["mse"] for result in results.values())
    assert {guard: result.fell_back for guard, result in results.items()} == {True: True, "spearman": False, False: False}
    assert results[True].validation == results[True].baseline


@pytest.mark.parametrize(("climb", "epochs", "start_is_best"), [(2, 2, True), (8, 8, False)])
def test_selection_by_loss_takes_the_lowest_loss_of_the_last_phase(sides, climb, epochs, start_is_best):
    """The weights the phase starts from compete. The first phase climbs the loss that the second descends: from a
    little way up it overshoots and does not come below its start, from far up it does."""
    phases = {
        "climb": Phase(epochs=climb, losses={"cosine_mse": LossTerm(-10)}, select="none"),
        "graded": Phase(epochs=epochs, losses={"cosine_mse": LossTerm()}, select="loss"),
    }
    changes = {"phases": phases, "start": "baseline", "learning_rate": 1e-2, "never_below_baseline": False}
    trained = Trainer(recipe(**changes), *sides).run()
    vectors = encode_pairs(trained.encoder, sides[1])
    batches = zip(*(side.split(32) for side in (*vectors, torch.from_numpy(sides[1].labels))), strict=True)
    kept = float(np.mean([LOSSES["cosine_mse"](*batch).item() for batch in batches]))
    graded = [record for record in trained.history if record.phase == "graded"]
    lowest = min(graded, key=lambda record: record.validation_loss)
    assert trained.epoch == (climb if start_is_best else lowest.epoch)
    assert kept < lowest.validation_loss if start_is_best else kept == pytest.approx(lowest.validation_loss, abs=1e-7)
    assert not any(record.selected for record in trained.history if record.phase == "climb")


def test_a_phase_begins_with_the_best_weights_so_far(sides):
    """A first phase that only harms leaves no trace: its weights are not what the second begins with."""
    harmful = {
        "harm": Phase(epochs=1, losses={"cosent": LossTerm(weight=-1)}),
        "still": Phase(epochs=1, losses={"cosent": LossTerm()}),
    }
    trainer = Trainer(recipe(phases=harmful, warmup_epochs=0), *sides)
    start = {name: value.clone() for name, value in trainer.encoder.state_dict().items()}
    trainer._begin_phase("harm", harmful["harm"], 0)
    trainer._train_epoch("harm", harmful["harm"], 1)
    assert any(not torch.equal(start[name], value) for name, value in trainer.encoder.state_dict().items())
    trainer._begin_phase("still", harmful["still"], 1)
    assert all(torch.equal(start[name], value) for name, value in trainer.encoder.state_dict().items())


def test_phase_loss_is_the_weighted_sum_and_every_counts_batches():
    first, second, labels = torch.eye(3), torch.eye(3).roll(1, 0), torch.tensor([0.0, 2.0, 5.0])
    phase = Phase(losses={"cosine_mse": LossTerm(weight=2), "hard_negative_margin": LossTerm(every=3, options={"margin": 0.7})})
    mse = LOSSES["cosine_mse"](first, second, labels)
    margin = LOSSES["hard_negative_margin"](first, second, labels, margin=0.7)
    for number in range(1, 7):
        expected = 2 * mse + (margin if number in (3, 6) else 0)
        torch.testing.assert_close(phase_loss(phase, BatchEmbeddings(first, second), labels, {}, number), expected)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), n=st.integers(2, 9), seed=st.integers(0, 99),
    loss=st.sampled_from(["cosent", "cosine_mse", "pearson", "nt_xent", "ranking", "distillation"]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_nested_loss_is_the_mean_of_losses_on_shortened_vectors(lengths, n, seed, loss):
    generator = torch.Generator().manual_seed(seed)
    first, second, negatives, guide = (
        F.normalize(torch.randn(*shape, generator=generator), dim=-1) for shape in ((n, 12), (n, 12), (n, 2, 12), (2 * n, 7))
    )
    labels = torch.rand(n, generator=generator) * 5
    phase = Phase(losses={loss: LossTerm(guide="baseline" if loss == "distillation" else "none")})
    guides = {"baseline": BatchEmbeddings(*guide.chunk(2))}
    total = 0.0
    for length in lengths:
        short = [side[..., :length] / side[..., :length].norm(dim=-1, keepdim=True) for side in (first, second, negatives)]
        total += phase_loss(phase, BatchEmbeddings(*short), labels, guides, 1)
    nested = nested_loss(lengths, phase, BatchEmbeddings(first, second, negatives), labels, guides, 1)
    torch.testing.assert_close(nested, total / len(lengths), atol=1e-5, rtol=1e-5)
    plain = phase_loss(phase, BatchEmbeddings(first, second, negatives), labels, guides, 1)
    assert nested_loss([], phase, BatchEmbeddings(first, second, negatives), labels, guides, 1) == plain


def test_nested_training_is_training_of_the_first_numbers(sides):
    """On the training pairs themselves: what is minimised there must come out better than where it is not."""
    pairs = sides[0]

    def spearman_of_first(length: int, nested: list[int]) -> float:
        encoder = EncoderConfig(output_dim=16, heads=4, hidden_dim=0, dropout=0.0)
        phases = {"graded": Phase(epochs=4, losses={"cosent": LossTerm()}, select="none")}
        changes = {"encoder": encoder, "phases": phases, "start": "random", "learning_rate": 1e-2, "never_below_baseline": False}
        trained = Trainer(recipe(**changes, nested=nested), *sides).run().encoder
        first, second = (F.normalize(side[:, :length]) for side in encode_pairs(trained, pairs))
        return score_embeddings(first, second, pairs.labels).spearman

    for length in (4, 8):
        assert spearman_of_first(length, [length, 16]) > spearman_of_first(length, []) + 0.02


def test_accumulated_batches_make_fewer_steps(sides):
    one, three = Trainer(recipe(), *sides), Trainer(recipe(accumulation=3), *sides)
    assert (one.total_batches, one.total_steps) == (three.total_batches, one.total_batches)
    assert three.total_steps < one.total_steps
    three.run()
    assert three.schedule.last_epoch == three.total_steps


@pytest.mark.parametrize("select", ["loss", "spearman", "none"])
@pytest.mark.parametrize("guarded", [True, False])
def test_a_loss_that_is_not_finite_is_reported_and_never_selected(sides, select, guarded):
    training, validation = sides
    terms = {"nt_xent": LossTerm(options={"temperature": 0.0})}
    phases = {"a": Phase(losses=terms, select=select), "b": Phase(losses={"cosent": LossTerm()}, select=select)}
    upside_down = replace(validation, labels=5 - validation.labels)  # any weights are better than these
    trainer = Trainer(recipe(phases=phases, never_below_baseline=guarded), training, upside_down)
    if select != "spearman" and not guarded:  # no weights were ever chosen
        with pytest.raises(InputError, match="choose a lower --learning_rate"):
            trainer.run()
        return
    trained = trainer.run()
    assert trained.diverged_in == 1
    assert all(torch.isfinite(parameter).all() for parameter in trained.encoder.parameters())
    if guarded:
        assert trained.validation.spearman >= trained.baseline.spearman


def test_diverged_weights_are_refused_or_replaced_by_the_baseline(sides):
    phases = {"a": Phase(losses={"cosent": LossTerm()}, select="none")}
    with pytest.raises(InputError, match="choose a lower --learning_rate"):
        Trainer(recipe(phases=phases, learning_rate=1e30, never_below_baseline=False), *sides).run()
    assert Trainer(recipe(phases=phases, learning_rate=1e30), *sides).run().fell_back


def test_a_validation_batch_of_a_single_pair_does_not_count(sides):
    training, validation = sides
    losses = []
    for n in (32, 33):  # batches of 32
        part = validation.select(np.arange(n))
        phases = {"graded": Phase(epochs=0, losses={"pearson": LossTerm()})}
        trainer = Trainer(recipe(phases=phases), training, part)
        losses.append(trainer._validate(phases["graded"])[0])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("change", [{"heads": 7}, {"output_dim": 400_000}])
def test_an_encoder_that_does_not_fit_the_tokens_is_refused_before_training(sides, change):
    sizes = {"output_dim": 16, "heads": 4, "hidden_dim": 16, **change}
    with pytest.raises(InputError, match=r"heads is 7, expected a divisor of input_dim 32|MiB, expected at most 20"):
        Trainer(recipe(encoder=EncoderConfig(**sizes)), *sides)


def test_the_learning_rate_rises_then_falls_over_the_whole_run(sides):
    trainer = Trainer(recipe(warmup_epochs=1, min_learning_rate=1e-5), *sides)
    rates = []
    trainer.on_batch = lambda *_: rates.append(trainer.optimizer.param_groups[0]["lr"])
    trainer.run()
    assert len(rates) == trainer.total_batches
    assert max(rates) == pytest.approx(3e-3, rel=1e-6)
    assert rates[-1] == pytest.approx(1e-5, rel=1e-6)


SMALL = (
    *("--encoder.output_dim", "16", "--encoder.heads", "4", "--encoder.hidden_dim", "16", "--learning_rate", "0.003"),
    *("--phases.graded.epochs", "3", "--device", "cpu"),
)


def train(run, folder: Path, tmp_path: Path, *options: str):
    return run(
        "train.py", "--data", folder / "train.store", "--validation", folder / "dev.store", "--test", folder / "dev.store",
        "--run_dir", tmp_path / "run", "--out", tmp_path / "model.bin", *SMALL, *options,
    )  # fmt: skip


def test_the_command_leaves_a_model_and_a_record_and_prints_both_numbers(folder, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"what was there")
    result = train(run_script, folder, tmp_path)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    before, after = (metrics["test"][name]["spearman"] for name in ("mean pooling", "encoder"))
    assert f"mean pooling {before:.4f}, your encoder {after:.4f}" in result.stdout
    assert (
        f"Mean pooling, before training: validation Spearman {metrics['validation']['mean pooling']['spearman']:.4f}"
        in result.stdout
    )
    assert (tmp_path / "model.bin.previous").read_bytes() == b"what was there"
    encoder = load_encoder(tmp_path / "model.bin")
    assert score(encoder, open_pairs([folder / "dev.store"])).spearman == pytest.approx(after, abs=1e-6)
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").open()))
    assert [row["epoch"] for row in rows] == [str(i) for i in range(6)]
    assert max(float(row["validation_spearman"]) for row in rows) == pytest.approx(
        metrics["validation"]["encoder"]["spearman"], abs=1e-5
    )
    assert (tmp_path / "run" / "training.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["phases"]["graded"]["epochs"] == 3


def test_the_last_line_says_what_is_worse_than_mean_pooling(folder, tmp_path, run_here):
    """Validation labels divided by 50 ask for cosines near 0: ranks improve, the error does not."""
    store = open_store(folder / "dev.store")
    sentences = [store.sentence(i) for i in range(len(store))]
    sides = (store.extra[name] for name in ("first", "second"))
    flat = store_pairs(tmp_path / "flat.store", sentences, *sides, store.extra["labels"] / 50)
    options = ("--preset", "ranks", "--validation", flat)
    kept = train(run_here, folder, tmp_path, *options)
    assert kept.returncode == 0, kept.stderr
    assert re.fullmatch(
        r"Test Spearman: mean pooling 0\.\d{4}, your encoder 0\.\d{4} \(epoch \d\)\. "
        r"On the validation pairs it is worse in error \(0\.\d{4}, mean pooling 0\.\d{4}\)\.",
        kept.stdout.splitlines()[-1],
    )
    error = [line for line in kept.stdout.splitlines() if line.startswith("validation error")]
    assert len(error) == 1 and error[0].split()[2] < error[0].split()[3]
    replaced = train(run_here, folder, tmp_path, *options, "--never_below_baseline", "true")
    assert re.fullmatch(
        r"Training ended below mean pooling in validation error \(0\.\d{4}, mean pooling 0\.\d{4}\), "
        r"so the result is mean pooling\.",
        replaced.stdout.splitlines()[-1],
    )
    assert load_encoder(tmp_path / "model.bin").config.architecture == "mean"


def test_from_dat_files_the_numbers_are_those_from_the_store(folder, tmp_path):
    """The challenge's text files, written and read, take part in a run exactly as the store they came from."""
    metrics = []
    for name in ("train", "dev"):
        write_dat_pairs(tmp_path / name, open_pairs([folder / f"{name}.store"]))
    sources = ({}, {"train": tmp_path / "train", "dev": tmp_path / "dev"})
    for source in sources:
        training, validation = (open_pairs([source.get(name, folder / f"{name}.store")], dim=32) for name in ("train", "dev"))
        trained = Trainer(recipe(), training, validation).run()
        metrics.append((trained.validation, trained.history[1:], [w.tolist() for w in trained.encoder.parameters()]))
    assert metrics[0] == metrics[1]


def test_without_validation_pairs_a_part_is_set_aside(folder, tmp_path, run_here):
    result = run_here(
        "train.py", "--data", folder / "train.store", "--run_dir", tmp_path / "run", "--out", tmp_path / "model.bin", *SMALL
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "270 training pairs, 30 validation pairs" in result.stdout and "too few" not in result.stdout
    few = run_here(
        "train.py", "--data", folder / "train.store", "--run_dir", tmp_path / "few", "--out", tmp_path / "model.bin", *SMALL,
        "--validation_fraction", "0.05", "--phases.graded.epochs", "1",
    )  # fmt: skip
    assert "15 validation pairs are too few to choose the best weights" in few.stdout
    assert "The earlier model.bin is kept as model.bin.previous" in few.stdout


def test_validation_pairs_that_are_trained_on_are_said_to_be(tmp_path, run_here):
    rng, stores = np.random.default_rng(0), {}
    for name, start in (("train", 0), ("dev", 30), ("test", 60)):  # half of dev is in train
        text = [f"sentence {number}" for number in range(2 * start, 2 * start + 120)]
        stores[name] = store_pairs(tmp_path / f"{name}.store", *learnable_pairs(rng, 60), text)
    command = ("train.py", "--data", stores["train"], "--run_dir", tmp_path / "run", "--out", tmp_path / "model.bin", *SMALL)
    done = run_here(*command, "--phases.graded.epochs", "1", "--validation", stores["dev"], "--test", stores["test"])
    assert "warning: 30 of the 60 validation pairs are training pairs too" in done.stderr and "test pairs" not in done.stderr
    done = run_here(*command, "--phases.graded.epochs", "1", "--validation", stores["test"], "--test", stores["train"])
    assert "warning: 60 of the 60 test pairs are training pairs too" in done.stderr and "validation pairs" not in done.stderr


def test_the_published_preset_runs(folder, tmp_path, run_here):
    result = train(run_here, folder, tmp_path, "--preset", "published", "--phases.contrastive.epochs", "1")
    assert result.returncode == 0, result.stderr
    assert load_encoder(tmp_path / "model.bin").config.architecture == "published"
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["recipe"] == "published"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "nowhere.store"), "nowhere.store: no such file"),
        (("--device", "abacus"), "--device abacus is not available"),
        (("--phases.contrastive.min_label", "6"), "recipe: phases.contrastive.min_label is 6, expected a label, 0 to 5"),
        (("--encoder.output_dim", "5000000"), "MiB, expected at most 20"),
    ],
)
def test_bad_requests_end_in_one_line_and_replace_nothing(folder, tmp_path, options, message, run_here):
    (tmp_path / "model.bin").write_bytes(b"what was there")
    assert message in last_line(train(run_here, folder, tmp_path, *options))
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]
    assert (tmp_path / "model.bin").read_bytes() == b"what was there"


def test_a_phase_without_pairs_is_skipped_with_a_message(sides, folder, tmp_path, run_here):
    training, validation = sides
    unlike = training.select(training.labels < 3)
    trainer = Trainer(recipe(), unlike, validation)
    assert trainer.skipped[0].startswith(
        f"phase contrastive is skipped: 0 of {len(unlike)} training pairs have a label of at least 3"
    )
    assert {record.phase for record in trainer.run().history} == {"", "graded"}
    assert Trainer(recipe(), *sides).skipped == []
    with pytest.raises(InputError, match=r"nothing to train on: phase contrastive is skipped: 1 of 1 .*; phase graded"):
        Trainer(recipe(), training.select(np.argsort(-training.labels)[:1]), validation)
    result = train(run_here, folder, tmp_path, "--phases.contrastive.min_label", "5")
    assert result.returncode == 0 and "Phase contrastive is skipped: 0 of 300" in result.stdout


def test_a_teacher_teaches_where_labels_do_not(sides):
    """The teacher sees the meaning and labels are noise; half of the sentences have no label."""
    training, validation = sides
    vectors = np.stack([training.tokens.sentence(i).mean(0)[:4] for i in range(len(training.tokens))])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    few, rest = training.select(np.arange(60)), np.arange(120, 600)
    targets = TeacherTargets(vectors[np.stack([few.first, few.second], 1)], rest, vectors[rest])
    noise = with_labels(replace(few, targets=targets), np.random.default_rng(0).permutation(few.labels))
    taught = recipe(encoder=EncoderConfig(output_dim=16, heads=4, hidden_dim=16, dropout=0.0))
    del taught.phases["contrastive"]
    taught.phases["graded"] = Phase(epochs=10, losses={"distillation": LossTerm(weight=100, guide="teacher")})
    alone = Trainer(taught, noise, validation).run()
    taught.phases["graded"].unlabelled = 32
    more = Trainer(taught, noise, validation).run()
    assert alone.validation.spearman > alone.baseline.spearman + 0.03
    assert more.validation.spearman > alone.validation.spearman


def test_phase_loss_gives_sentences_without_label_to_distillation_only():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.nn.functional.normalize(torch.randn(7, 5, generator=generator), dim=1) for _ in "ab")
    guide, labels = torch.nn.functional.normalize(torch.randn(14, 3, generator=generator), dim=1), torch.arange(4.0)
    phase = Phase(losses={"cosent": LossTerm(), "distillation": LossTerm(weight=3, guide="teacher")})
    expected = LOSSES["cosent"](first[:4], second[:4], labels) + 3 * LOSSES["distillation"](first, second, None, guide)
    torch.testing.assert_close(
        phase_loss(phase, BatchEmbeddings(first, second), labels, {"teacher": BatchEmbeddings(*guide.chunk(2))}, 1), expected
    )
    masked = Phase(losses={"nt_xent": LossTerm(guide="baseline")})
    expected = LOSSES["nt_xent"](first[:4], second[:4], labels, torch.cat([guide[:4], guide[7:11]]))
    torch.testing.assert_close(
        phase_loss(masked, BatchEmbeddings(first, second), labels, {"baseline": BatchEmbeddings(*guide.chunk(2))}, 1), expected
    )


def test_a_guide_of_mean_pooling_masks_negatives(sides):
    """Against the loss on mean-pooled vectors made by hand, on one batch of all pairs."""
    masked = recipe(batch_size=300, learning_rate=1e-12)
    masked.phases = {"contrastive": Phase(losses={"nt_xent": LossTerm(guide="baseline")}, select="loss")}
    masked = replace(masked, encoder=replace(masked.encoder, dropout=0.0))
    trainer = Trainer(masked, *sides)
    history = trainer.run().history
    for pairs, found in ((sides[0], history[1].loss), (sides[1], history[1].validation_loss)):
        vectors, guide = (torch.cat(encode_pairs(encoder, pairs)) for encoder in (trainer.encoder, mean_pooling(32)))
        expected = LOSSES["nt_xent"](*vectors.chunk(2), None, guide)
        assert expected < LOSSES["nt_xent"](*vectors.chunk(2)) - 0.01
        assert found == pytest.approx(expected.item(), rel=1e-4)


def test_mined_negatives_reach_the_ranking_loss_with_their_guide(sides):
    """Against the loss on vectors made by hand, on one batch of all pairs."""
    pairs = sides[0]
    pairs = replace(pairs, negatives=np.random.default_rng(0).integers(0, len(pairs.tokens), (len(pairs), 3)))
    terms = {"ranking": LossTerm(guide="baseline", options={"scale": 7})}
    one = recipe(batch_size=300, learning_rate=1e-12, phases={"ranking": Phase(losses=terms)})
    trainer = Trainer(replace(one, encoder=replace(one.encoder, dropout=0.0)), pairs, sides[1])
    loss = trainer.run().history[1].loss
    columns, guides = [], []
    for vectors, encoder in ((columns, trainer.encoder), (guides, mean_pooling(32))):
        vectors += encode_pairs(encoder, pairs)
        vectors.append(encode(encoder, pairs.tokens, pairs.negatives.ravel()))
    expected = LOSSES["ranking"](
        *columns[:2], None, torch.cat(guides), negatives=columns[2].unflatten(0, pairs.negatives.shape), scale=7
    )
    assert loss == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_batches_encoded_in_parts_have_the_same_gradients(dropout):
    """As one graph over the same parts, with the same values dropped."""
    torch.manual_seed(0)
    encoder = SentenceEncoder(EncoderConfig(input_dim=8, output_dim=6, heads=2, hidden_dim=8, dropout=dropout)).double().train()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    parts = [torch.randn(n, 4, 8, dtype=torch.float64) for n in (3, 5, 2)]

    def loss_of(vectors: torch.Tensor) -> torch.Tensor:
        first, second = vectors.chunk(2)
        return LOSSES["ranking"](first, second, scale=5)

    gradients, randoms = [], []
    for in_parts in (True, False):
        encoder.zero_grad()
        torch.manual_seed(1)
        if in_parts:
            loss = backward_in_parts(parts, encoder, loss_of)
        else:
            whole = loss_of(torch.cat([encoder(part) for part in parts]))
            whole.backward()
            assert loss == pytest.approx(whole.item(), abs=1e-12)
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])
        randoms.append(torch.rand(1).item())  # the generator goes on as if nothing had been encoded twice
    assert randoms[0] == randoms[1]
    for cached, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(cached, plain, atol=1e-12, rtol=1e-9)


def test_training_in_parts_is_training(sides):
    """Without dropout the parts make no difference, whatever their size."""
    results = []
    for size in (0, 7, 1000):
        parted = recipe(sentences_at_a_time=size)
        parted.phases["graded"].epochs = 2
        parted = replace(parted, encoder=replace(parted.encoder, dropout=0.0))
        results.append([record.loss for record in Trainer(parted, *sides).run().history[1:]])
    assert results[1] == pytest.approx(results[0], rel=1e-3)
    assert results[2] == pytest.approx(results[0], rel=1e-3)
