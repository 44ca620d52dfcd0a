"""The retrieval task against sentence-transformers' evaluator, and the commands of the pipeline from a file to a table."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import last_line, run_script, store_pairs
from datasets import Dataset
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_retrieval
from common.cli import run_command
from data import PairData, open_pairs, split_by_groups
from evaluation.encoding import encode, encode_pairs
from model import mean_pooling
from retrieval.mining import MiningConfig, add_hard_negatives
from retrieval.pipeline import Pipeline, Scoring, open_splits
from retrieval.scores import find_documents, score_retrieval
from tokens.text_pairs import read_text_pairs
from training.trainer import Trainer

DIM = 32


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> PairData:
    """150 topics of two to four questions each; half of the pairs are of one topic, the others of two neighbours."""
    rng = np.random.default_rng(0)
    topics = np.repeat(np.arange(150), rng.integers(2, 5, 150))
    centres = np.zeros((150, DIM))
    centres[:, :8] = rng.standard_normal((150, 8))  # the other dimensions are noise, which mean pooling does not know
    sentences = [(centres[topic] + rng.standard_normal((rng.integers(3, 6), DIM))).astype(np.float32) for topic in topics]
    same = [(i, j) for i in range(len(topics)) for j in range(i) if topics[i] == topics[j]]
    other = [(i, int(rng.choice(np.flatnonzero(topics == (topics[i] ^ 1))))) for i, _ in same]  # topics 2n and 2n + 1
    first, second = np.array(same + other).T
    labels = np.repeat([1.0, 0.0], [len(same), len(other)]).astype(np.float32)
    path = tmp_path_factory.mktemp("questions") / "questions.store"
    text = [f"question {i} of topic {topic}" for i, topic in enumerate(topics)]
    store_pairs(path, sentences, first, second, labels, text)
    return open_pairs([path])


def test_scores_agree_with_sentence_transformers(questions):
    part, _ = split_by_groups(questions, 0.4, seed=0)
    encoder, documents = mean_pooling(DIM), find_documents(questions.tokens, questions, 1)
    found = score_retrieval(encode(encoder, part.tokens, documents.sentences), part, documents, 1)
    vectors = encode(encoder, questions.tokens, np.arange(len(questions.tokens)))
    queries = sorted(set(part.first[part.labels == 1].tolist()))
    topics = [sentence.split()[-1] for sentence in questions.sentences]
    relevant = {str(q): {str(d) for d in range(len(topics)) if topics[d] == topics[q] and d != q} for q in queries}
    hits = []
    for q in queries:
        cosines = (vectors @ vectors[q]).tolist()
        ranked = sorted((d for d in range(len(topics)) if d != q), key=lambda d: -cosines[d])
        hits.append([{"corpus_id": str(d), "score": cosines[d]} for d in ranked[:10]])
    corpus = {str(d): "" for d in range(len(topics))}
    theirs = InformationRetrievalEvaluator({str(q): "" for q in queries}, corpus, relevant).compute_metrics(hits)
    assert found.mrr == pytest.approx(theirs["mrr@k"][10], abs=1e-9)
    assert found.recall == pytest.approx(theirs["recall@k"][10], abs=1e-9)
    assert found.ndcg == pytest.approx(theirs["ndcg@k"][10], abs=1e-9)
    assert 0.2 < found.mrr < 1 and 0.5 < found.average_precision <= 1


def test_a_query_whose_only_match_is_itself_written_twice_does_not_count(questions):
    """It has nothing to find."""
    lonely = int(questions.first[0])
    topic = questions.sentences[lonely].split()[-1]
    others = questions.select(np.array([questions.sentences[i].split()[-1] != topic for i in questions.first]))
    scores = []
    for extra in (0, 1):
        pairs = replace(
            others,
            first=np.append(others.first, [lonely] * extra).astype(int),
            second=np.append(others.second, [lonely] * extra).astype(int),
            labels=np.append(others.labels, np.ones(extra, np.float32)),
        )
        documents = find_documents(pairs.tokens, pairs, 1)
        vectors = encode(mean_pooling(DIM), pairs.tokens, documents.sentences)
        scores.append(score_retrieval(vectors, pairs, documents, 1).mrr)
    assert scores[0] == scores[1] > 0


@pytest.mark.parametrize("num_negatives", [1, 8])
def test_mined_negatives_never_match_and_come_from_the_same_pairs(questions, num_negatives):
    training, _ = split_by_groups(questions, 0.4, seed=0)
    pairs, mined = add_hard_negatives(mean_pooling(DIM), training, 1, MiningConfig(num_negatives, relative_margin=0.1))
    topics = np.array([int(sentence.split()[-1]) for sentence in questions.sentences])
    assert pairs.negatives.shape == (len(training), num_negatives)
    assert (topics[pairs.negatives] != topics[training.first][:, None]).all()
    assert set(pairs.negatives.ravel()) <= set(training.first) | set(training.second)
    first, _ = encode_pairs(mean_pooling(DIM), training)
    negatives = encode(mean_pooling(DIM), training.tokens, pairs.negatives[:, 0])
    hardest = (first * negatives).sum(1).mean()
    by_chance = (first * negatives[torch.randperm(len(negatives), generator=torch.Generator().manual_seed(0))]).sum(1).mean()
    assert hardest > by_chance + 0.1
    assert mined.report()


def test_given_negatives_stay_first_and_are_not_mined_again(questions):
    training, _ = split_by_groups(questions, 0.4, seed=0)
    config = MiningConfig(2)
    mined = add_hard_negatives(mean_pooling(DIM), training, 1, config)[0].negatives
    given = np.stack([mined[:, 1], np.full(len(training), np.setdiff1d(questions.first, training.first)[0])], axis=1)
    both = add_hard_negatives(mean_pooling(DIM), replace(training, negatives=given), 1, config)[0].negatives
    assert np.array_equal(both[:, :2], given) and np.array_equal(both[:, 2], mined[:, 0])
    assert (both[:, 3] != mined[:, 1]).all()
    topics = np.array([int(sentence.split()[-1]) for sentence in questions.sentences])
    assert (topics[both[:, 2:]] != topics[training.first][:, None]).all()


def test_negatives_are_mined_for_matching_pairs_alone_from_all_sentences(questions, tmp_path, run_here):
    pairs = replace(questions, labels=questions.labels * (questions.first % 2))  # half of the first sentences match nothing
    is_match = pairs.labels == 1
    every, _ = add_hard_negatives(mean_pooling(DIM), pairs, 1, MiningConfig(2))
    only, mined = add_hard_negatives(mean_pooling(DIM), pairs, 1, MiningConfig(2), matching_only=True)
    n_anchors = len(set(only.first))
    assert np.array_equal(only.first, pairs.first[is_match]) and np.array_equal(only.negatives, every.negatives[is_match])
    assert len(mined.negatives) == n_anchors < len(set(pairs.first))
    sentences = [pairs.tokens.sentence(i) for i in range(len(pairs.tokens))]
    store_pairs(tmp_path / "a.store", sentences, pairs.first, pairs.second, pairs.labels, list(pairs.sentences))
    out = tmp_path / "a.tsv"
    done = run_here("mine_negatives.py", "--data", tmp_path / "a.store", "--out", out, "--num_negatives", "2")
    assert f"{2 * n_anchors:,} negatives for {n_anchors:,} anchors" in done.stdout
    text = [[pairs.sentences[i] for i in row] for row in np.column_stack([only.first, only.second, only.negatives])]
    assert [line.split("\t") for line in out.read_text().splitlines()[1:]] == text


SMALL = ("--encoder.output_dim", "16", "--encoder.heads", "4", "--encoder.hidden_dim", "16", "--epochs", "3", "--batch_size", "16")


@pytest.fixture(scope="module")
def dataset(questions, tmp_path_factory):
    path = tmp_path_factory.mktemp("dataset") / "questions.store"
    sentences = [questions.tokens.sentence(i) for i in range(len(questions.tokens))]
    store_pairs(path, sentences, questions.first, questions.second, questions.labels, list(questions.sentences))
    return path


@pytest.mark.parametrize(("sample_size", "split_seed"), [(150, 0), (5, 16)])
def test_a_sample_is_scored_as_a_file_of_its_pairs_alone(questions, dataset, tmp_path, sample_size, split_seed):
    """Matches among the other pairs are not known; a small sample has fewer sentences than are retrieved."""
    sizes = {"validation_size": 0.3, "test_size": 0.3}
    sample, splits = open_splits(Pipeline(str(dataset), sample_size, **sizes, split_seed=split_seed))
    assert len(sample) == sample_size
    used, numbers = np.unique([sample.first, sample.second], return_inverse=True)
    first, second = numbers.reshape(2, -1)
    store = tmp_path / "sample.store"
    text = [questions.sentences[i] for i in used]
    store_pairs(store, [questions.tokens.sentence(i) for i in used], first, second, sample.labels / 5, text)
    alone, own_splits = open_splits(Pipeline(str(store), **sizes, split_seed=split_seed))
    found, wanted = Scoring(sample, splits), Scoring(alone, own_splits)
    for split in ("validation", "test"):
        ours, theirs = (asdict(scoring.scores[split]["mean pooling"]) for scoring in (found, wanted))
        assert ours == pytest.approx(theirs, abs=1e-6, nan_ok=True) and 0 < ours["recall"] <= 1


def test_the_pipeline_from_one_command(dataset, tmp_path, run_here):
    out = tmp_path / "run"
    done = run_script("train_retrieval.py", "--dataset", str(dataset), "--run_dir", str(out), "--tensorboard", *SMALL)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    test = metrics["test"]
    assert test["encoder"]["average_precision"] > test["mean pooling"]["average_precision"]
    assert f"{test['encoder']['mrr']:.4f}" in done.stdout and f"{test['mean pooling']['mrr']:.4f}" in done.stdout
    assert "negatives for" in done.stdout
    assert len(list(csv.reader((out / "history.csv").open()))) == 1 + 1 + 3
    assert list((out / "tensorboard").iterdir()) and (out / "model.bin").exists() and (out / "training.png").exists()
    scored = run_here("train_retrieval.py", "--dataset", str(dataset), "--evaluate", str(out / "model.bin"))
    count, table = scored.stdout.split("\n", 1)
    assert count in done.stdout and table in done.stdout and f"{test['encoder']['mrr']:.4f}" in table, scored.stderr
    logged = EventAccumulator(str(out / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in logged] == list(range(1, len(logged) + 1)) and len(logged) >= 3
    command = ["train_retrieval.py", "--dataset", str(dataset), "--run_dir", str(out), *SMALL]
    resumed = run_here(*command, "--resume")
    assert f"The run in {out}/ is finished" in resumed.stdout, resumed.stderr
    trained = (out / "model.bin").rename(tmp_path / "first.bin")
    again = run_here(*command, "--resume")
    assert (out / "model.bin").read_bytes() == trained.read_bytes(), again.stderr
    mined = run_here("mine_negatives.py", "--data", str(dataset), "--out", str(tmp_path / "negatives.tsv"), "--num_negatives", "2")
    assert mined.returncode == 0, mined.stderr
    rows = [line.split("\t") for line in (tmp_path / "negatives.tsv").read_text().splitlines()]
    assert rows.pop(0) == ["anchor", "positive", "negative_1", "negative_2"]
    assert {len(row) for row in rows} == {4}
    assert all(row[0].split()[-1] == row[1].split()[-1] not in {row[2].split()[-1], row[3].split()[-1]} for row in rows)


SUBJECTS = ("guitar", "piano", "dog", "cat", "horse", "stock", "bank", "river", "sea", "mountain", "forest", "train", "car", "tea")
ASKED = ("how do i buy a {}", "where can i get a {}", 'what is a good "{}"', '"{}", where to buy it')


@pytest.fixture(scope="module")
def asked() -> list[tuple[str, str]]:
    """Pairs of questions about the same subject, some in quotes."""
    return [(one.format(subject), other.format(subject)) for subject in SUBJECTS for one, other in pairwise(ASKED)]


def write_rows(path, rows) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_the_output_of_mining_is_an_input_of_both_commands(asked, tmp_path, run_here):
    """Pairs without labels are mined, trained on, mined again, and read by the datasets library."""
    pairs, once, twice = tmp_path / "pairs.csv", tmp_path / "once.tsv", tmp_path / "twice.tsv"
    write_rows(pairs, [("anchor", "positive"), *asked])
    done = run_here("mine_negatives.py", "--data", pairs, "--out", once, "--num_negatives", "2")
    assert done.returncode == 0, done.stderr
    assert f"{len(asked)} matching pairs, each with 2 negatives" in done.stdout
    read = read_text_pairs(once)
    assert list(zip(read.first, read.second, strict=True)) == asked and not read.has_labels
    for first, negatives in zip(read.first, read.negatives, strict=True):
        subject = next(subject for subject in SUBJECTS if subject in first)
        assert len(negatives) == 2 and not any(subject in negative for negative in negatives)

    run = tmp_path / "run"
    done = run_here("train_retrieval.py", "--dataset", once, "--run_dir", run, "--mining.num_negatives", "1", *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("No labels: every pair matches, and the loss on labels (cosent) is left out.") == 1
    assert "average precision" not in done.stdout and "test MRR@10" in done.stdout
    metrics = json.loads((run / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert set(metrics["test"]["encoder"]) == {"mrr", "recall", "ndcg"} and metrics["pipeline"]["label_weight"] == 0
    scored = run_here("train_retrieval.py", "--dataset", once, "--evaluate", run / "model.bin")
    assert scored.returncode == 0 and "average precision" not in scored.stdout

    done = run_here("mine_negatives.py", "--data", once, "--out", twice, "--num_negatives", "1", "--model", run / "model.bin")
    assert done.returncode == 0, done.stderr
    again = read_text_pairs(twice)
    assert [row[:2] for row in again.negatives] == read.negatives and {len(row) for row in again.negatives} == {3}
    assert not any(row[2] in row[:2] for row in again.negatives)
    table = Dataset.from_csv(str(twice), sep="\t", cache_dir=str(tmp_path / "cache"))
    assert table.column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert list(zip(table["anchor"], table["positive"], strict=True)) == asked
    assert [list(row) for row in zip(*(table[f"negative_{i}"] for i in (1, 2, 3)), strict=True)] == again.negatives


def test_training_sees_given_negatives_alone_if_nothing_is_mined(asked, tmp_path, monkeypatch, run_here):
    path = tmp_path / "tuples.csv"
    write_rows(path, [("query", "document", "negative"), *((*pair, asked[i - 9][1]) for i, pair in enumerate(asked))])
    seen = []

    class Seeing(Trainer):
        def __init__(self, recipe, training, validation, **options) -> None:
            seen.append(training)
            super().__init__(recipe, training, validation, **options)

    monkeypatch.setattr("retrieval.pipeline.Trainer", Seeing)
    done = run_here("train_retrieval.py", "--dataset", path, "--run_dir", tmp_path / "run", "--mine", "false", *SMALL)
    assert done.returncode == 0, done.stderr
    (training,) = seen
    given = {(*pair, asked[i - 9][1]) for i, pair in enumerate(asked)}
    found = [
        (training.sentences[a], training.sentences[b], *(training.sentences[c] for c in row))
        for a, b, row in zip(training.first, training.second, training.negatives, strict=True)
    ]
    assert 0 < len(found) < len(given) and set(found) <= given


def test_columns_scales_and_bad_rows_of_tables(asked, tmp_path, run_here):
    """Ratings of 1 to 3 in columns of unknown names, one row broken, through both commands."""
    path = tmp_path / "odd.csv"
    rows = [(3, *pair) for pair in asked]
    rows += [(1, pair[0], asked[3 * ((i // 3) ^ 1) + i % 3][1]) for i, pair in enumerate(asked)]  # of subjects 2n and 2n + 1
    write_rows(path, [("rating", "left", "right"), *rows, (1, "no other", "")])
    reading = ("--columns", "first=left,second=right,label=rating", "--label_range", "1,3")
    mined = tmp_path / "negatives.tsv"
    assert f"odd.csv:{len(rows) + 2}: column 3 is empty" in last_line(
        run_here("mine_negatives.py", "--data", path, "--out", mined, *reading)
    )
    reading += ("--skip_bad_rows",)
    done = run_here("mine_negatives.py", "--data", path, "--out", mined, "--num_negatives", "1", *reading)
    assert f"{len(asked)} matching pairs, each with 1 negatives" in done.stdout, done.stderr
    done = run_here(
        "train_retrieval.py", "--dataset", path, "--run_dir", tmp_path / "run", *reading, "--validation_size", "0.2", *SMALL
    )
    assert done.returncode == 0 and "test average precision" in done.stdout, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["data"]["training"]["skipped_rows"] == 1
    write_rows(path, [("anchor", "positive", "label"), *((*pair, 1) for pair in asked)])
    done = run_here("train_retrieval.py", "--dataset", path, "--run_dir", tmp_path / "other", *SMALL)
    assert "all pairs match (match_label 1), expected both kinds, or no labels" in last_line(done)


BAD = {
    ("--dataset", "missing.tsv"): "missing.tsv: no such file",
    (): "no dataset; give --dataset FILE",
    ("--dataset", "DATA", "--match_label", "7"): "no pair matches",
    ("--dataset", "DATA", "--test_size", "0.9"): "test_size is 0.9, expected above 0 and at most 0.5",
    ("--dataset", "DATA", "--test_size", "0.5", "--validation_size", "0.5"): "leave nothing for training",
    ("--dataset", "DATA", "--mining.absolute_margin", "5"): "no negatives found: absolute_margin 5.0 skipped",
    ("--dataset", "DATA", "--mining.num_negatives", "100000"): "documents are too few for num_negatives 100000",
    ("--dataset", "DATA", "--mining_model", "nothing.bin"): "nothing.bin",
    ("--dataset", "DATA", "--config", "CONFIG"): "num_negative",
    ("--dataset", "DATA", "--threads", "0"): "threads",
    ("--dataset", "DATA", "--sample_size", "-4"): "sample_size is -4, expected 0 or more",
    ("--dataset", "DATA", "--sample_size", "9", "--split_seed", "-1"): "split_seed is -1, expected 0 or more",
    ("--dataset", "DATA", "--epochs", "-1"): "epochs is -1, expected 0 or more",
    ("--dataset", "DATA", "--label_weight", "-1"): "label_weight is -1.0, expected 0 or more",
    ("--dataset", "DATA", "--scale", "0"): "scale is 0.0, expected above 0",
    ("--dataset", "DATA", "--warmup_ratio", "3"): "warmup_ratio is 3.0, expected 0 to 1",
    ("--dataset", "DATA", "--mining.seed", "-1"): "error: seed is -1, expected 0 or more",
    ("--dataset", "DATA", "--evaluate", "model.bin"): "the encoder takes token embeddings 768 wide, these data have 32",
    ("--evaluate", "model.bin", "--out", "x.bin"): "--evaluate does not train, expected no --out with it",
    ("--evaluate", "model.bin", "--resume"): "--evaluate does not train, expected no --resume with it",
    ("--evaluate", "model.bin", "--tensorboard"): "--evaluate does not train, expected no --tensorboard with it",
    ("--evaluate", "model.bin", "--run_dir", "RUN"): "--evaluate does not train, expected no --run_dir with it",
}


@pytest.mark.parametrize("options", BAD, ids=" ".join)
def test_bad_settings_give_one_line(options, dataset, tmp_path, monkeypatch, capsys):
    config = tmp_path / "mine.yaml"
    config.write_text("epochs: 1\nmining: {num_negative: 3}\n")
    given = [{"DATA": str(dataset), "CONFIG": str(config), "RUN": str(tmp_path / "run")}.get(option, option) for option in options]
    run_dir = [] if "--evaluate" in options else ["--run_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train_retrieval.py", *given, *run_dir])
    with pytest.raises(SystemExit) as ended:
        run_command(train_retrieval.main)
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and BAD[options] in lines[0]
    assert not (tmp_path / "run").exists()


def test_text_is_encoded_on_all_cores_and_tensorboard_is_missed_at_once(tmp_path, monkeypatch, run_here):
    """Training alone is held to --threads, and nobody waits for the encoding to hear what to install."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("before the pairs are open"))
    options = ("train_retrieval.py", "--run_dir", tmp_path / "run", "--dataset")
    assert "nowhere.csv: no such file" in last_line(run_here(*options, tmp_path / "nowhere.csv"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    done = run_here(*options, tmp_path / "nowhere.csv", "--tensorboard")
    assert "--tensorboard needs a package that is not installed: pip install tensorboard" in last_line(done)


def test_a_study_of_retrieval_has_its_scores(dataset, tmp_path, monkeypatch, run_here, run_all_here):
    monkeypatch.setattr("study.run_all", run_all_here)
    study, options = tmp_path / "small.yaml", " ".join(SMALL)
    study.write_text(
        f"command: train_retrieval.py\noptions: --dataset {{data}}\nout: {tmp_path}/runs\nseeds: [0, 1]\n"
        f"data: {{questions: {dataset}}}\nscores: [mrr, average_precision]\nfigure: [mrr]\n"
        f"arms:\n  ranking: --mine false {options}\n  frozen: --epochs 0 {options}\n"
    )
    done = run_here("study.py", study, "--results", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "results" / "small.csv").open()))
    assert [(row["encoder"], row["seed"]) for row in rows] == [("ranking", "0"), ("frozen", "0"), ("ranking", "1"), ("frozen", "1")]
    table = (tmp_path / "results" / "small.md").read_text()
    mean = np.mean([float(row["test encoder mrr"]) for row in rows if row["encoder"] == "ranking"])
    assert table in done.stdout and f"{mean:.4f} ± " in table and "validation MRR@10 | validation average precision" in table
    assert f"| mean pooling, nothing learned | {float(rows[0]['validation mean pooling mrr']):.4f} |" in table
