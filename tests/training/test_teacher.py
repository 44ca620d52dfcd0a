"""The fine-tuned teacher and its targets, on a tiny backbone made in the test."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SENTENCES, WORDS, last_line, stopped_and_resumed

from common.errors import InputError
from common.files import ordinary_mode
from data import PairData, open_pairs, split_by_groups, training_batches
from model import mean_pooling
from portable.small_encoder import SmallEncoder
from shrinking.folder import write_folder
from tokens.backbone import Backbone
from tokens.text_store import BackboneSettings, text_store
from training.distillation import make_pieces, with_teacher_targets
from training.teacher import TeacherSettings, TeacherTrainer
from training.teacher_folder import load_teacher, save_teacher, teacher_embeddings, teacher_folders
from training.whole_encoder import WholeEncoder, validate


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


@pytest.fixture
def folder(tiny_bert, tmp_path) -> Path:
    """A teacher that has not learned anything."""
    save_teacher(tmp_path / "teacher", WholeEncoder(Backbone(str(tiny_bert), max_length=9)), {"set_aside": None})
    return tmp_path / "teacher"


def test_small_names_the_encoder_that_ships_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "own/small"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "teacher.json").write_text("{}")
    assert teacher_folders(["small", "small", "mine"]) == [str(ROOT / "small")] * 2 + ["mine"] and teacher_folders(None) == []
    monkeypatch.chdir(tmp_path / "own")
    assert teacher_folders(["small"]) == ["small"]


def test_before_training_it_is_the_mean_pooled_backbone(tiny_bert, pairs):
    """Against sentence-transformers' encode."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    word = Transformer(str(tiny_bert))
    theirs = SentenceTransformer(modules=[word, Pooling(word.get_embedding_dimension())], device="cpu")
    sentences = pairs[0].text().first
    ours = WholeEncoder(Backbone(str(tiny_bert))).encode(sentences)
    np.testing.assert_allclose(ours, theirs.encode(sentences, normalize_embeddings=True), atol=1e-5)


def trainer_of(tiny_bert: Path, pairs: tuple[PairData, PairData], loss: str = "squared", epochs: int = 4) -> TeacherTrainer:
    settings = TeacherSettings(loss, epochs, batch_size=10, learning_rate=3e-3)
    return TeacherTrainer(WholeEncoder(Backbone(str(tiny_bert))), pairs[0].text(), pairs[1].text(), settings)


@pytest.mark.parametrize("loss", ["squared", "cosent"])
def test_fine_tuning_learns_and_keeps_the_best_epoch(tiny_bert, pairs, loss):
    trainer = trainer_of(tiny_bert, pairs, loss)
    words = trainer.encoder.model.get_input_embeddings().weight.clone()
    before = validate(trainer.encoder, pairs[1].text())
    teacher = trainer.run()
    best = trainer.history[trainer.best]
    assert trainer.history[0] == before
    assert best.spearman == max(scores.spearman for scores in trainer.history) > before.spearman + 0.02
    assert validate(teacher, pairs[1].text()).spearman == pytest.approx(best.spearman)
    assert (best.mse < before.mse / 2) == (loss == "squared")
    assert torch.equal(teacher.model.get_input_embeddings().weight, words)


def test_harmful_fine_tuning_leaves_the_backbone_as_it_was(tiny_bert, pairs):
    labels = -np.asarray(pairs[0].labels)
    upside_down = PairData(pairs[0].tokens, pairs[0].first, pairs[0].second, 5 + labels, pairs[0].sentences)
    trainer = trainer_of(tiny_bert, (upside_down, pairs[1]), "cosent", epochs=1)
    start = copy.deepcopy(trainer.encoder.model.state_dict())
    teacher = trainer.run()
    assert trainer.best == 0
    assert all(torch.equal(value, start[name]) for name, value in teacher.model.state_dict().items())


@pytest.mark.parametrize("stop", [1, 6, 8])
def test_a_teacher_that_is_stopped_anywhere_ends_in_the_same_bits_with_its_dropout(tiny_bert, pairs, stop):
    stopped_and_resumed(lambda: trainer_of(tiny_bert, pairs, epochs=2), stop)


def test_every_file_of_a_teacher_has_the_ordinary_mode_and_others_keep_theirs(tiny_bert, tmp_path):
    (tmp_path / "key").touch(mode=0o600)
    save_teacher(tmp_path, WholeEncoder(Backbone(str(tiny_bert), "-1")), {})
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes.pop("key") == 0o600 and "model.safetensors" in modes
    assert set(modes.values()) == {ordinary_mode(0o666)}


def test_a_teacher_survives_its_folder(folder, pairs, tiny_bert):
    sentences = pairs[0].text().first
    loaded = load_teacher(folder)
    assert loaded.backbone.max_length == 9
    assert torch.equal(loaded.encode(sentences), WholeEncoder(Backbone(str(tiny_bert), max_length=9)).encode(sentences))


def test_the_command_writes_a_teacher_and_training_learns_from_it(tiny_bert, pairs, tmp_path, run_here):
    out = tmp_path / "teacher"
    stores = ("--data", tmp_path / "train.store", "--validation", tmp_path / "dev.store")
    result = run_here("teacher.py", *stores, "--backbone", tiny_bert, "--epochs", "1", "--batch_size", "10", "--out", out)
    assert result.returncode == 0, result.stderr
    assert f"--out {out} --resume" in result.stdout and "training pairs too" not in result.stderr
    assert "is finished: validation Spearman" in run_here("teacher.py", "--out", out, "--resume").stdout
    assert "epochs was 1, now 2" in last_line(run_here("teacher.py", "--out", out, "--resume", "--epochs", "2"))
    assert "no run to resume" in last_line(run_here("teacher.py", "--out", tmp_path / "other", "--resume"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "holds a model already; give another --out" in last_line(run_here("teacher.py", *stores, "--out", out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    small = ("--phases.graded.epochs", "1", "--encoder.output_dim", "8", "--batch_size", "16")
    places = ("--run_dir", tmp_path / "run", "--out", tmp_path / "model.bin", "--device", "cpu")
    result = run_here("train.py", "--preset", "distilled", "--teacher", out, *stores, *small, *places)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "model.bin").exists()
    (tmp_path / "text.txt").write_text("one two three\n\nfour five\n")
    more = ("--teacher", out, "--sentences", tmp_path / "text.txt")
    before = json.loads((tmp_path / "run" / "metrics.json").read_text())["unlabelled_sentences"]
    result = run_here("train.py", "--preset", "distilled", *more, *stores, *small, *places)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["teachers"], metrics["sentences"]) == ([str(out)], [str(tmp_path / "text.txt")])
    after = metrics["unlabelled_sentences"]
    assert after == before + 2 and f"60 training pairs, {after} sentences without labels, 60 validation" in result.stdout
    assert "is finished" in run_here("train.py", "--resume", "--run_dir", tmp_path / "run").stdout
    (tmp_path / "text.txt").write_text("six\n")
    assert "the training pairs differ" in last_line(run_here("train.py", "--resume", "--run_dir", tmp_path / "run"))
    untaught = run_here("train.py", "--sentences", tmp_path / "text.txt", *stores, *small, *places)
    assert "--sentences needs --teacher" in last_line(untaught)
    without = run_here("train.py", "--preset", "distilled", *stores, *small, *places)
    assert "phase graded needs a teacher; give --teacher to train.py" in last_line(without)
    unheard = run_here("train.py", "--teacher", out, *stores, *small, *places)
    assert "no loss of the recipe uses it; choose --preset imitation" in last_line(unheard)


def centred_by(teacher: WholeEncoder, pairs: PairData) -> Callable[[np.ndarray], np.ndarray]:
    """Subtracts the mean embedding of the pairs' sentences and scales to unit length."""
    mean = np.concatenate([teacher.encode(side) for side in (pairs.text().first, pairs.text().second)]).mean(0)
    return lambda embeddings: (embeddings - mean) / np.linalg.norm(embeddings - mean, axis=1, keepdims=True)


@pytest.mark.parametrize("text", [[], ["one two three", "a sentence of the pairs", "two one", "one two three"]])
def test_targets_are_the_teachers_embeddings_without_what_all_have_in_common(folder, pairs, text):
    """All cosines are those of the centred embeddings; along the first direction the pairs' sentences differ most."""
    training, teacher = pairs[0], load_teacher(folder)
    known = list(dict.fromkeys(training.text().first + training.text().second))
    text = [known[0] if sentence == "a sentence of the pairs" else sentence for sentence in text]
    taught = with_teacher_targets(training, [folder], text, cache=folder)
    unlabelled = make_pieces(known, seed=0) + list(dict.fromkeys(sentence for sentence in text if sentence not in known))
    assert len(taught.targets.unlabelled) == len(unlabelled) == len(taught.tokens) - len(training.tokens) > 50
    sides = [training.text().first, training.text().second, unlabelled]
    centred = centred_by(teacher, training)
    expected = centred(np.concatenate([teacher.encode(side).numpy() for side in sides]))
    targets = np.concatenate([*taught.targets.pairs.swapaxes(0, 1), taught.targets.embeddings])
    np.testing.assert_allclose(targets @ targets.T, expected @ expected.T, atol=1e-5)
    of_pairs = np.square(targets[: 2 * len(training)]).sum(0)
    assert of_pairs[0] > 1.1 * of_pairs[-1] and np.all(np.diff(of_pairs) < 1e-3)
    assert of_pairs[0] == pytest.approx(np.linalg.norm(expected[: 2 * len(training)], ord=2) ** 2, rel=1e-4)
    pooled = np.stack([taught.tokens.sentence(number).mean(0) for number in taught.targets.unlabelled])
    own = centred(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))  # the tokens' backbone is here the teacher
    np.testing.assert_allclose(own @ own.T, taught.targets.embeddings @ taught.targets.embeddings.T, atol=1e-5)
    some = np.array([3, 1])
    assert np.array_equal(taught.select(some).targets.pairs, taught.targets.pairs[some])


def test_the_cosines_of_several_teachers_are_averaged(folder, pairs, tiny_bert, tmp_path):
    other = WholeEncoder(Backbone(str(tiny_bert)))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    save_teacher(tmp_path / "other", other, {"set_aside": None})

    def cosines(*folders: Path) -> tuple[np.ndarray, np.ndarray]:
        targets = with_teacher_targets(pairs[0], folders, cache=tmp_path).targets
        return (targets.pairs[:, 0] * targets.pairs[:, 1]).sum(1), targets.embeddings @ targets.embeddings.T

    for both, *single in zip(cosines(folder, tmp_path / "other"), cosines(folder), cosines(tmp_path / "other"), strict=True):
        assert np.abs(single[0] - single[1]).max() > 0.05
        np.testing.assert_allclose(both, np.mean(single, axis=0), atol=1e-5)


def test_targets_and_tokens_are_made_once_for_the_same_pairs(folder, pairs, tmp_path):
    cache = tmp_path / "cache"

    def made() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}

    with_teacher_targets(pairs[0], [folder], cache=cache)
    before = made()
    with_teacher_targets(pairs[0], [folder], cache=cache)
    assert made() == before and sorted(name.split("-")[0] for name in before) == ["targets", "unlabelled"]
    with_teacher_targets(pairs[0].select(np.arange(30)), [folder], cache=cache)
    assert len(made()) == 4 and made().items() > before.items()


def test_embeddings_in_half_precision_are_cached_apart(folder, tmp_path):
    exact, rounded, again = (
        teacher_embeddings(folder, SENTENCES, cache=tmp_path, identity="these", bfloat16=bfloat16)
        for bfloat16 in (False, True, False)
    )
    assert np.array_equal(exact, again) and not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=0.05)


def test_a_sentence_of_zeros_keeps_its_row(folder, tmp_path, monkeypatch):
    rows = np.eye(3, 16, dtype=np.float32)
    rows[1] = 0
    monkeypatch.setattr("training.teacher_folder._open", lambda *_: (16, lambda sentences: rows.copy()))
    embeddings = teacher_embeddings(folder, SENTENCES[:3], cache=tmp_path, identity="these")
    assert embeddings.shape == (3, 16) and np.array_equal(embeddings[[0, 2]], rows[[0, 2]])


def test_pairs_without_labels_are_refused_from_a_table_and_from_its_store(tiny_bert, tmp_path, run_here):
    (tmp_path / "pairs.tsv").write_text("anchor\tpositive\n" + "the cat sat\ta dog\n" * 40)
    text_store(tmp_path / "pairs.tsv", BackboneSettings(str(tiny_bert), "-1"))
    for name in ("pairs.tsv", "pairs.tsv.store"):
        files = ("--data", tmp_path / name, "--validation", tmp_path / name)
        for command in (("teacher.py", "--out", tmp_path / "teacher"), ("shrink.py", "--run_dir", tmp_path / "run")):
            assert f"{name}: the pairs have no labels" in last_line(run_here(*command, "--backbone", tiny_bert, *files))


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_a_small_encoder_is_a_teacher_as_well(tiny_bert, pairs, tmp_path, precision):
    """The same backbone, fine-tuned and as a small encoder, teaches the same, up to rounding to int8."""
    folders, cache = [tmp_path / "torch", tmp_path / "onnx"], tmp_path / "cache"
    backbone = Backbone(str(tiny_bert), max_length=9)
    save_teacher(folders[0], WholeEncoder(backbone), {"set_aside": None})
    sentences = [*pairs[0].text().first, *pairs[0].text().second]
    calibration = backbone.tokenize(sentences)[0] if precision == "int8" else None
    write_folder(folders[1], backbone, mean_pooling(16), calibration, {})
    taught = [with_teacher_targets(pairs[0], [folder], cache=cache).targets for folder in folders]
    embeddings = [np.concatenate([*targets.pairs.swapaxes(0, 1), targets.embeddings]) for targets in taught]
    torch_cosines, onnx_cosines = (own @ own.T for own in embeddings)
    difference = np.abs(torch_cosines - onnx_cosines).max()
    assert difference < 1e-4 if precision == "float32" else 1e-4 < difference < 0.2
    with_teacher_targets(pairs[0], [folders[1]], cache=cache, set_aside={"fraction": 0.1, "seed": 3})  # of pairs it has not seen
    expected = SmallEncoder(folders[1]).encode(sentences)
    assert np.array_equal(teacher_embeddings(folders[1], sentences, cache=cache, identity="these"), expected)
    with pytest.raises(InputError, match="is damaged"):
        (folders[1] / "encoder.onnx").write_bytes(b"no graph")
        with_teacher_targets(pairs[0], [folders[1]], cache=cache)


def test_batches_carry_the_teacher_in_the_order_of_their_sentences(folder, pairs):
    """Tokens and teacher are of the same backbone: mean-pooled tokens must be the teacher's embeddings, centred."""
    taught = with_teacher_targets(pairs[0], [folder], cache=folder)
    centred = centred_by(load_teacher(folder), pairs[0])
    for batch in training_batches(taught, 16, np.random.default_rng(0), unlabelled=5):
        pooled = torch.cat([tokens.sum(1) for tokens, _ in batch.buckets])[batch.position]
        assert len(pooled) == 2 * (len(batch.labels) + 5)
        expected = centred(torch.nn.functional.normalize(pooled, dim=1).numpy())
        np.testing.assert_allclose(expected @ expected.T, batch.teacher @ batch.teacher.T, atol=1e-5)
    everything = next(training_batches(taught, 16, np.random.default_rng(0), unlabelled=10**6))
    assert len(everything.position) == 2 * (16 + len(taught.targets.unlabelled) // 2)


def test_if_the_backbone_of_the_tokens_is_unknown_there_are_no_pieces(folder, pairs):
    unknown = replace(pairs[0], tokens=replace(pairs[0].tokens, description={}))
    taught = with_teacher_targets(unknown, [folder], cache=folder)
    assert len(taught.targets.unlabelled) == 0 and taught.targets.pairs.shape == (60, 2, 16)
    batch = next(training_batches(taught, 16, np.random.default_rng(0), unlabelled=5))
    assert len(batch.position) == len(batch.teacher) == 32
    with pytest.raises(InputError, match=r"backbone of these tokens is not known.*leave out --sentences"):
        with_teacher_targets(unknown, [folder], ["one two three"], cache=folder)


def test_validation_pairs_that_are_trained_on_are_said_to_be(tiny_bert, pairs, tmp_path, run_here):
    sentences = (tmp_path / "train.tsv").read_text().splitlines()[:20]
    swapped = ["\t".join([line.split("\t")[1], line.split("\t")[0], line.split("\t")[2]]) for line in sentences]
    (tmp_path / "both.tsv").write_text("\n".join(swapped) + "\n" + (tmp_path / "dev.tsv").read_text())
    files = ("--data", tmp_path / "train.tsv", "--validation", tmp_path / "both.tsv")
    done = run_here("teacher.py", *files, "--backbone", tiny_bert, "--epochs", "1", "--out", tmp_path / "my teacher")
    assert done.stdout.endswith(f"Next: python train.py --preset imitation --teacher small '{tmp_path}/my teacher'\n")
    assert "warning: 20 of the 80 validation pairs are training pairs too" in done.stderr


def test_pairs_set_aside_are_the_same_for_teacher_and_training(tiny_bert, pairs, tmp_path, run_here):
    out = tmp_path / "teacher"
    options = ("--data", tmp_path / "train.store", "--backbone", tiny_bert, "--epochs", "1", "--batch_size", "10")
    assert run_here("teacher.py", *options, "--out", out).returncode == 0
    training, validation = split_by_groups(pairs[0], 0.1, 0)
    taught = with_teacher_targets(training, [out], cache=tmp_path, set_aside={"fraction": 0.1, "seed": 0})
    assert len(taught.targets.pairs) == len(training) == 60 - len(validation)
    with pytest.raises(InputError, match="with --seed 1"):
        with_teacher_targets(training, [out], cache=tmp_path, set_aside={"fraction": 0.1, "seed": 1})


def test_pieces_are_of_the_words_of_the_sentences_and_none_is_known():
    sentences = ["a b c d e f", "g h i j", "k l", "a"]
    pieces = make_pieces(sentences, seed=1)
    assert pieces == make_pieces(sentences, seed=1) != make_pieces(sentences, seed=2)
    assert len(set(pieces)) == len(pieces) and not set(pieces) & set(sentences)
    assert {word for piece in pieces for word in piece.split()} <= set("abcdefghijkl")
    assert make_pieces(["one"], seed=0) == [] == make_pieces([], seed=0)


def test_folders_that_are_no_teacher_are_named_before_anything_is_encoded(tmp_path, run_here):
    (tmp_path / "pairs.tsv").write_text("a cat\ta dog\t1\n" * 40)
    refused = run_here("train.py", "--data", tmp_path / "pairs.tsv", "--teacher", "small", tmp_path, "--preset", "imitation")
    assert f"{tmp_path}: not a teacher, expected a folder written by teacher.py or shrink.py" in last_line(refused)
    assert not list(tmp_path.glob("*.store"))


def test_pairs_without_text_are_one_clear_line(challenge, tmp_path, run_here):
    (challenge / "sentences.dat").unlink()
    assert "text of these pairs is not known" in last_line(
        run_here("teacher.py", "--data", challenge, "--validation", challenge, "--out", tmp_path / "teacher", "--batch_size", "4")
    )
    assert not (tmp_path / "teacher").exists()
