"""BEIR's layout: scores against trec_eval's own code, and one line for what is wrong with a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
import torch
import torch.nn.functional as F
from conftest import last_line
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.checkpoint import save_encoder
from model import EncoderConfig, SentenceEncoder
from retrieval import beir
from retrieval.beir import BeirTask, read_beir, relevant_ranks, score_ranks

MEASURES = {"recall_10": "recall@10", "ndcg_cut_10": "nDCG@10", "map": "MAP"}


def random_task(rng: np.random.Generator, n_documents: int, n_queries: int) -> BeirTask:
    """Gains of -1 to 3; the last query has no relevant document, and the ids of some queries are documents' too."""
    ids = sorted((f"d{i}" for i in range(n_documents)), reverse=True)
    query_ids = [f"d{q}" if q % 3 == 0 else f"q{q}" for q in range(n_queries)]
    judged = [rng.choice(n_documents, rng.integers(1, n_documents), replace=False) for _ in query_ids]
    gains = [rng.integers(-1, 4, len(own)) for own in judged]
    gains[-1] = np.zeros_like(gains[-1])
    return BeirTask(ids, ids, query_ids, query_ids, judged, gains)


def scored_by_trec_eval(task: BeirTask, cosines: np.ndarray) -> dict[str, float]:
    judgements = {
        query: {task.document_ids[d]: int(gain) for d, gain in zip(judged, gains, strict=True)}
        for query, judged, gains in zip(task.query_ids, task.judged, task.gains, strict=True)
    }
    run = {
        query: {document: float(c) for document, c in zip(task.document_ids, row, strict=True) if document != query}
        for query, row in zip(task.query_ids, cosines, strict=True)
    }
    results = pytrec_eval.RelevanceEvaluator(judgements, set(MEASURES)).evaluate(run).values()
    scores = {ours: np.mean([result[theirs] for result in results]) for theirs, ours in MEASURES.items()}
    top = {query: dict(sorted(own.items(), key=lambda item: (item[1], item[0]), reverse=True)[:10]) for query, own in run.items()}
    results = pytrec_eval.RelevanceEvaluator(judgements, {"recip_rank"}).evaluate(top).values()
    return scores | {"MRR@10": np.mean([result["recip_rank"] for result in results])}


@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(1, 8), st.booleans())
@settings(max_examples=100, deadline=None)
def test_scores_are_those_of_trec_eval(seed, n_documents, n_queries, with_ties):
    rng = np.random.default_rng(seed)
    task = random_task(rng, n_documents, n_queries)
    queries, documents = (torch.from_numpy(rng.standard_normal((n, 4))).float() for n in (n_queries, n_documents))
    if with_ties:  # small whole numbers: many documents have exactly the same score
        queries, documents = queries.round(), documents.round()
    else:
        queries, documents = F.normalize(queries, dim=1), F.normalize(documents, dim=1)
    found = score_ranks(relevant_ranks(queries, documents, task), task)
    assert found == pytest.approx(scored_by_trec_eval(task, (queries @ documents.T).numpy()), abs=1e-6)


def test_searching_in_blocks_finds_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    task = random_task(rng, 50, 20)
    queries, documents = (torch.from_numpy(rng.integers(-2, 3, (n, 4))).float() for n in (20, 50))
    whole = relevant_ranks(queries, documents, task)
    monkeypatch.setattr(beir, "COSINES_AT_A_TIME", 150)
    for one, other in zip(whole, relevant_ranks(queries, documents, task), strict=True):
        assert np.array_equal(one, other)


def write_beir(folder: Path) -> Path:
    """Three documents, one without a title and two alike; three queries, one not judged."""
    (folder / "qrels").mkdir(parents=True)
    corpus = [
        {"_id": "4", "title": "Music", "text": "A man plays a guitar.", "metadata": {}},
        {"_id": "10", "text": "The stock market fell today."},
        {"_id": "7", "title": "", "text": "The stock market fell today."},
    ]
    queries = [{"_id": f"q{i}", "text": text} for i, text in enumerate(("somebody makes music", "shares lose value", "a cat"))]
    for name, records in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t10\t2\nq1\t7\t1\nq0\t4\t1\nq0\t7\t0\n")
    return folder


def test_a_folder_is_scored_by_the_command(tmp_path, run_here):
    folder = write_beir(tmp_path / "small")
    task = read_beir(folder)
    assert task.document_ids == ["7", "4", "10"] and task.documents[1] == "Music A man plays a guitar."
    assert task.documents[0] == task.documents[2] == "The stock market fell today."
    assert task.query_ids == ["q1", "q0"] and [own.tolist() for own in task.gains] == [[2, 1], [1, 0]]
    done = run_here("train_retrieval.py", "--dataset", folder, "--evaluate", "model.bin")
    assert done.returncode == 0, done.stderr
    first, _, *rows = done.stdout.splitlines()
    assert first == "3 documents, 2 queries, 3 relevant documents"
    ndcg = (1 + (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))) / 2  # documents of the same text: the higher id comes first, as text
    assert [row.split() for row in rows] == [
        ["MRR@10", "1.0000", "1.0000"],
        ["nDCG@10", *[f"{ndcg:.4f}"] * 2],
        ["recall@10", "1.0000", "1.0000"],
        ["MAP", "1.0000", "1.0000"],
    ]
    changed = (tmp_path / "small.store").stat().st_mtime_ns
    assert run_here("train_retrieval.py", "--dataset", folder, "--evaluate", "baseline").stdout.startswith(first)
    assert (tmp_path / "small.store").stat().st_mtime_ns == changed  # opened, not built again


def test_an_encoder_of_other_tokens_is_found_before_the_corpus_is_encoded(tmp_path, run_here):
    folder = write_beir(tmp_path / "small")
    save_encoder(tmp_path / "other.bin", SentenceEncoder(EncoderConfig(input_dim=32, heads=4, output_dim=8)))
    done = run_here("train_retrieval.py", "--dataset", folder, "--evaluate", tmp_path / "other.bin")
    assert "the encoder takes token embeddings 32 wide, these data have 768" in last_line(done)
    assert not (tmp_path / "small.store").exists()


def test_embeddings_that_are_not_finite_find_nothing():
    task = random_task(np.random.default_rng(0), 5, 2)
    ranks = relevant_ranks(torch.full((2, 4), torch.nan), torch.ones(5, 4), task)
    assert set(score_ranks(ranks, task).values()) == {0.0}


def test_a_folder_is_not_for_training(tmp_path, run_here):
    folder = write_beir(tmp_path / "small")
    done = run_here("train_retrieval.py", "--dataset", folder, "--run_dir", tmp_path / "run")
    assert "small: is a BEIR folder, for --evaluate" in last_line(done)


BAD = {
    ("corpus.jsonl", None): "corpus.jsonl: no such file; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/test.tsv",
    ("queries.jsonl", None): "queries.jsonl: no such file",
    ("qrels/test.tsv", None): "qrels/test.tsv: no such file",
    ("corpus.jsonl", "nonsense"): "corpus.jsonl:4: not a JSON object, expected one per line",
    ("corpus.jsonl", "[1, 2]"): "corpus.jsonl:4: not a JSON object",
    ("corpus.jsonl", '{"text": "a"}'): "corpus.jsonl:4: _id is missing, expected a string that is not empty",
    ("corpus.jsonl", '{"_id": 4, "text": "a"}'): "corpus.jsonl:4: _id is 4, expected a string",
    ("corpus.jsonl", '{"_id": "4", "text": "a"}'): "corpus.jsonl:4: _id '4' is there twice",
    ("corpus.jsonl", '{"_id": "5", "title": "a"}'): "corpus.jsonl:4: text is missing, expected text",
    ("corpus.jsonl", '{"_id": "5", "title": 1, "text": "a"}'): "corpus.jsonl:4: title is 1, expected text",
    ("queries.jsonl", '{"_id": "5", "text": "\\ud800"}'): "queries.jsonl:4: text is '\\ud800', expected text",
    ("queries.jsonl", b"\xff"): "queries.jsonl:4: not UTF-8",
    ("qrels/test.tsv", "q0\t10"): "qrels/test.tsv:6: 2 columns, expected query-id, corpus-id and score with tabs",
    ("qrels/test.tsv", "q0\t10\t1.5"): "qrels/test.tsv:6: score '1.5' is not a whole number",
    ("qrels/test.tsv", "q9\t10\t1"): "qrels/test.tsv:6: query 'q9' is not in queries.jsonl",
    ("qrels/test.tsv", "q0\t11\t1"): "qrels/test.tsv:6: document '11' is not in corpus.jsonl",
    ("qrels/test.tsv", "q0\t4\t2"): "qrels/test.tsv:6: document '4' of query 'q0' is judged twice",
}


@pytest.mark.parametrize(("name", "line"), BAD, ids=str)
def test_a_bad_folder_gives_one_line(name, line, tmp_path, run_here):
    path = write_beir(tmp_path / "small") / name
    if line is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    assert BAD[name, line] in last_line(run_here("train_retrieval.py", "--dataset", tmp_path / "small", "--evaluate", "baseline"))
    assert not (tmp_path / "small.store").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q0\t4\t1\n", "test.tsv:1: no header, expected query-id, corpus-id and score"),
        ("query-id\tcorpus-id\tscore\n", "no query has a relevant document"),
        ("query-id\tcorpus-id\tscore\nq0\t4\t0\n", "no query has a relevant document"),
    ],
)
def test_judgements_need_a_header_and_something_to_find(text, message, tmp_path, run_here):
    path = write_beir(tmp_path / "small") / "qrels" / "test.tsv"
    path.write_text(text)
    assert message in last_line(run_here("train_retrieval.py", "--dataset", tmp_path / "small", "--evaluate", "baseline"))
