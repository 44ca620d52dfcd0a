"""Search finds what NumPy finds, and near-duplicates are the groups that a slow search of all pairs gives."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import last_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from common.errors import InputError
from corpus.index import CorpusFolder, Plan
from corpus.nearest import Corpus
from portable.small_encoder import SmallEncoder


def corpus_of(path, vectors: np.ndarray, part_rows: int, **changes: Any) -> Corpus:
    """A corpus of given vectors, in parts."""
    n, width = vectors.shape
    plan = replace(Plan("", None, "", "", None, False, "", n, part_rows, "npy", "float32", True, width), **changes)
    folder = CorpusFolder.begin(path, plan)
    for number in range(plan.parts):
        rows = range(number * part_rows, number * part_rows + plan.rows_of(number))
        folder.write(number, list(rows), [f"sentence {row}" for row in rows], vectors[rows.start : rows.stop])
    return Corpus(path)


def random_vectors(n: int, width: int = 8, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("n", "part_rows", "top_k"), [(500, 64, 10), (100, 200, 10), (7, 2, 10), (50, 7, 1)])
def test_it_finds_what_scikit_learn_finds(tmp_path, n, part_rows, top_k):
    vectors, queries = random_vectors(n), random_vectors(20, seed=1)
    cosines, numbers = corpus_of(tmp_path / "corpus", vectors, part_rows).nearest(queries, top_k)
    distances, wanted = NearestNeighbors(n_neighbors=min(top_k, n), metric="cosine").fit(vectors).kneighbors(queries)
    np.testing.assert_array_equal(numbers, wanted)
    np.testing.assert_allclose(cosines, 1 - distances, atol=1e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 1e-3), ("int8", 0.02), ("bits", 0.06)])
def test_cosines_mean_what_they_say_in_every_precision(tmp_path, precision, tolerance):
    vectors = random_vectors(400, 256)
    queries = random_vectors(400, 256, seed=1) + 2 * vectors  # as similar as paraphrases
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    bounds = [vectors.min(0).tolist(), vectors.max(0).tolist()] if precision == "int8" else []
    cosines, numbers = corpus_of(tmp_path / "corpus", vectors, 100, precision=precision, value_range=bounds).nearest(queries, 1)
    wanted = (queries * vectors).sum(1)
    np.testing.assert_array_equal(numbers[:, 0], np.arange(400))
    assert abs((cosines[:, 0] - wanted).mean()) < tolerance / 4 and np.abs(cosines[:, 0] - wanted).max() < 2 * tolerance


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_identical_sentences_are_duplicates_in_every_precision(tmp_path, precision):
    vectors = np.tile(random_vectors(300, 384), (2, 1))
    groups = corpus_of(tmp_path / "corpus", vectors, 100, precision=precision).duplicates(1.0)
    assert sorted(map(sorted, groups)) == [[row, row + 300] for row in range(300)]


def test_faiss_finds_nearly_the_same_and_its_index_is_kept(tmp_path):
    pytest.importorskip("faiss")
    vectors, queries = random_vectors(5000, 16), random_vectors(50, 16, seed=1)
    exact = corpus_of(tmp_path / "corpus", vectors, 1000)
    ours = Corpus(tmp_path / "corpus", method="faiss").nearest(queries, 10)[1]
    wanted = exact.nearest(queries, 10)[1]
    assert np.mean([len(set(own) & set(other)) / 10 for own, other in zip(ours, wanted, strict=True)]) > 0.8
    changed = (tmp_path / "corpus" / "corpus.faiss").stat().st_mtime_ns
    np.testing.assert_array_equal(Corpus(tmp_path / "corpus", method="faiss").nearest(queries, 10)[1], ours)
    assert (tmp_path / "corpus" / "corpus.faiss").stat().st_mtime_ns == changed


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.999])
def test_a_damaged_faiss_index_is_made_again(tmp_path, share):
    pytest.importorskip("faiss")
    vectors, path = random_vectors(500, 16), tmp_path / "corpus" / "corpus.faiss"
    corpus_of(tmp_path / "corpus", vectors, 100)
    wanted = Corpus(tmp_path / "corpus", method="faiss").nearest(vectors, 5)[1]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    np.testing.assert_array_equal(Corpus(tmp_path / "corpus", method="faiss").nearest(vectors, 5)[1], wanted)
    assert path.read_bytes() == whole


def test_faiss_with_few_rows_finds_them_all(tmp_path):
    pytest.importorskip("faiss")
    vectors = random_vectors(12)
    corpus_of(tmp_path / "corpus", vectors, 5)
    found = Corpus(tmp_path / "corpus", method="faiss").nearest(vectors, 50)[1]
    np.testing.assert_array_equal(found[:, 0], np.arange(12))
    assert np.sort(found).tolist() == [list(range(12))] * 12


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(2, 60), st.integers(1, 20), st.sampled_from([0.5, 0.9, 0.99, 1.0]), st.integers(0, 1000))
def test_duplicates_are_the_groups_of_all_pairs_one_by_one(tmp_path_factory, n, part_rows, threshold, seed):
    vectors = random_vectors(n, 3, seed)
    vectors[n // 2 :: 3] = vectors[0]
    groups = corpus_of(tmp_path_factory.mktemp("corpus") / "corpus", vectors, part_rows).duplicates(threshold)
    similar = vectors @ vectors.T >= threshold - 1e-6
    wanted, seen = [], set()
    for start in range(n):
        group, waiting = set(), [start]
        while waiting:
            row = waiting.pop()
            if row not in group:
                group.add(row)
                waiting += np.flatnonzero(similar[row]).tolist()
        if len(group) > 1 and start not in seen:
            wanted.append(sorted(group))
        seen |= group
    assert sorted(groups) == sorted(wanted) and [len(group) for group in groups] == sorted(map(len, groups), reverse=True)


def test_the_command_finds_the_question_itself_and_writes_all(tiny_small, tmp_path, run_here):
    lines = ["the cat sat", "a dog ran far away", "the cat sat", "cat", "a cat ran"]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    run_here("encode.py", "--data", tmp_path / "a.txt", "--model", tiny_small, "--out", tmp_path / "out", "--processes", "1")
    done = run_here("search.py", "--index", tmp_path / "out", "the cat sat", "--top_k", "3", "--out", tmp_path / "found.jsonl")
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert done.returncode == 0 and [row["id"] for row in found[:2]] == [0, 2] and found[0]["cosine"] == pytest.approx(1, abs=1e-5)
    cosines = SmallEncoder(tiny_small).similarity("the cat sat", lines)
    assert found[2]["cosine"] == pytest.approx(np.sort(cosines)[-3], abs=1e-5) and found[2]["text"] in done.stdout
    done = run_here("search.py", "--index", tmp_path / "out", "--duplicates", "0.9999")
    assert "2 of 5 sentences are in 1 groups" in done.stdout


def test_bad_input_is_one_clear_line(tiny_small, tmp_path, run_here):
    assert "corpus.json: is missing" in last_line(run_here("search.py", "--index", tmp_path, "cat"))
    corpus = corpus_of(tmp_path / "corpus", random_vectors(5), 2)
    for arguments, message in (
        ([], "expected a question"),
        ([" "], "the question is empty"),
        (["--duplicates", "2"], "expected a cosine"),
        (["--duplicates", "0.9", "--method", "faiss"], "leave out --model and --method faiss"),
        (["--duplicates", "0.9", "--model", "small"], "leave out --model and --method faiss"),
        (["cat"], "not the model"),
        (["--duplicates", "0.9", "--out", tmp_path / "corpus" / "corpus.json"], "is inside --index"),
        (["--duplicates", "0.9", "--out", tmp_path / "corpus" / "groups" / ".." / "part-00000.jsonl"], "is inside --index"),
    ):
        assert message in last_line(run_here("search.py", "--index", tmp_path / "corpus", *arguments))
    with pytest.raises(InputError, match="top_k is 0"):
        corpus.nearest(random_vectors(1), 0)
