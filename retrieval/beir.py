"""Retrieval in BEIR's layout: a folder of documents, queries and judgements, scored as trec_eval does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from common.errors import InputError
from evaluation.encoding import encode
from evaluation.metrics import graded_ndcg, mean_average_precision, recall, reciprocal_rank
from evaluation.scores import score_table
from model import mean_pooling
from retrieval.mining import baseline_or_checkpoint
from tokens.dat_files import TOKEN_DIM
from tokens.tables import BadRow, text_lines
from tokens.text_store import BackboneSettings, sentence_store

CORPUS, QUERIES, JUDGEMENTS = "corpus.jsonl", "queries.jsonl", "qrels/test.tsv"
LAYOUT = f"a BEIR folder has {CORPUS}, {QUERIES} and {JUDGEMENTS}"
COSINES_AT_A_TIME = 1 << 25  # 128 MiB


@dataclass(frozen=True)
class BeirTask:
    """m documents, and the Q queries that have judgements.

    Attributes:
        document_ids: in descending order, in which trec_eval ranks documents of equal scores.
        documents: title and text of each.
        query_ids: in the order of the judgements.
        queries: their text.
        judged: for each query `(J,)`, the numbers of its judged documents.
        gains: for each query `(J,)`, the judgements; above 0 is relevant.
    """

    document_ids: list[str]
    documents: list[str]
    query_ids: list[str]
    queries: list[str]
    judged: list[np.ndarray]
    gains: list[np.ndarray]

    def relevant(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers `(R,)` and gains `(R,)` of a query's relevant documents."""
        is_relevant = self.gains[query] > 0
        return self.judged[query][is_relevant], self.gains[query][is_relevant]


def is_beir(path: str | Path) -> bool:
    """Whether a folder has any of the files of BEIR's layout."""
    return any((Path(path) / name).is_file() for name in (CORPUS, QUERIES, JUDGEMENTS))


def read_beir(folder: Path) -> BeirTask:
    """Read a BEIR folder.

    Raises:
        InputError: if a file is missing, a row is bad, or the judgements name an unknown document or query.
    """
    for name in (CORPUS, QUERIES, JUDGEMENTS):
        if not (folder / name).is_file():
            raise InputError(f"no such file; {LAYOUT}", path=folder / name)
    corpus = _read_texts(folder / CORPUS, ("title", "text"))
    queries = _read_texts(folder / QUERIES, ("text",))
    document_ids = sorted(corpus, reverse=True)
    number = {document: i for i, document in enumerate(document_ids)}
    judgements: dict[str, dict[int, int]] = {}
    path = folder / JUDGEMENTS
    for line, query, document, gain in _read_judgements(path):
        if query not in queries:
            raise InputError(f"query {query!r} is not in {QUERIES}, expected an _id of it", path=path, line=line)
        if document not in corpus:
            raise InputError(f"document {document!r} is not in {CORPUS}, expected an _id of it", path=path, line=line)
        own = judgements.setdefault(query, {})
        if number[document] in own:
            raise InputError(f"document {document!r} of query {query!r} is judged twice, expected once", path=path, line=line)
        own[number[document]] = gain
    if not any(gain > 0 for own in judgements.values() for gain in own.values()):
        raise InputError("no query has a relevant document, expected scores above 0", path=path)
    return BeirTask(
        document_ids=document_ids,
        documents=[corpus[document] for document in document_ids],
        query_ids=list(judgements),
        queries=[queries[query] for query in judgements],
        judged=[np.array(list(own), np.int64) for own in judgements.values()],
        gains=[np.array(list(own.values()), np.int64) for own in judgements.values()],
    )


def _read_texts(path: Path, fields: tuple[str, ...]) -> dict[str, str]:
    """The text of each `_id`: its fields, joined by a space; only the last must be there."""
    texts: dict[str, str] = {}
    *optional, _ = fields
    for number, line in _lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise InputError("not a JSON object, expected one per line", path=path, line=number)
        own = record.get("_id")
        if not isinstance(own, str) or not own:
            raise InputError(f"_id is {_shown(own)}, expected a string that is not empty", path=path, line=number)
        if own in texts:
            raise InputError(f"_id {own!r} is there twice, expected once", path=path, line=number)
        parts: list[Any] = [record.get(name, "" if name in optional else None) for name in fields]
        for name, part in zip(fields, parts, strict=True):
            if not isinstance(part, str) or re.search("[\ud800-\udfff]", part):
                raise InputError(f"{name} is {_shown(part)}, expected text", path=path, line=number)
        texts[own] = " ".join(parts).strip()
    return texts


def _read_judgements(path: Path) -> Iterator[tuple[int, str, str, int]]:
    """Line, query, document and score of each judgement."""
    for row, (number, line) in enumerate(_lines(path)):
        cells = line.split("\t")
        if len(cells) != 3:
            raise InputError(f"{len(cells)} columns, expected query-id, corpus-id and score with tabs", path=path, line=number)
        is_judgement = re.fullmatch("[-+]?[0-9]{1,9}", cells[2]) is not None
        if row == 0:
            if is_judgement:
                raise InputError("no header, expected query-id, corpus-id and score", path=path, line=number)
            continue
        if not is_judgement:
            raise InputError(f"score {cells[2]!r:.40} is not a whole number", path=path, line=number)
        yield number, cells[0], cells[1], int(cells[2])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers of lines and lines, without ends and without blank ones."""
    for number, line in text_lines(path):
        if isinstance(line, BadRow):
            raise InputError(line, path=path, line=number)
        if line.strip():
            yield number, line.rstrip("\r\n")


def _shown(value: Any) -> str:
    return "missing" if value is None else f"{value!a:.40}"


def relevant_ranks(queries: Tensor, documents: Tensor, task: BeirTask) -> list[np.ndarray]:
    """The ranks, from 1, of each query's relevant documents among all documents by cosine; inf for one never retrieved.

    A document with the id of the query is never retrieved, as in BEIR's own scoring.

    Args:
        queries: `(Q, K)`, unit length.
        documents: `(m, K)`, unit length.
        task: which documents are relevant.
    """
    number = {document: i for i, document in enumerate(task.document_ids)}
    ranks = []
    block = max(1, COSINES_AT_A_TIME // len(documents))
    for start in range(0, len(queries), block):
        for query, cosines in enumerate((queries[start : start + block] @ documents.T).numpy(), start=start):
            if (itself := number.get(task.query_ids[query])) is not None:
                cosines[itself] = -np.inf
            own = [
                np.count_nonzero(cosines > cosines[document])
                + np.count_nonzero(cosines[: document + 1] == cosines[document])  # those before it in trec_eval's order, and it
                if np.isfinite(cosines[document])
                else np.inf
                for document in task.relevant(query)[0].tolist()
            ]
            ranks.append(np.array(own, float))
    return ranks


def score_ranks(ranks: list[np.ndarray], task: BeirTask, k: int = 10) -> dict[str, float]:
    """MRR@k, nDCG@k, recall@k, and MAP over the full ranking, each 0 to 1 and equal to trec_eval's.

    Args:
        ranks: as `relevant_ranks` returns them.
        task: the judgements.
        k: documents retrieved per query.
    """
    gains, best_gains = np.zeros((2, len(ranks), k))
    for query, own in enumerate(ranks):
        _, relevant_gains = task.relevant(query)
        shown = own <= k
        gains[query, own[shown].astype(int) - 1] = relevant_gains[shown]
        best = np.sort(relevant_gains)[::-1][:k]
        best_gains[query, : len(best)] = best
    n_relevant = np.array([max(1, len(own)) for own in ranks])  # a query without relevant documents counts 0
    return {
        f"MRR@{k}": reciprocal_rank(gains > 0),
        f"nDCG@{k}": graded_ndcg(gains, best_gains),
        f"recall@{k}": recall(gains > 0, n_relevant),
        "MAP": mean_average_precision(ranks),
    }


def evaluate_beir(folder: Path, checkpoint: str) -> None:
    """Print the scores of a checkpoint and of mean pooling; the default backbone's tokens stay in a store next to the folder."""
    task = read_beir(folder)
    settings = BackboneSettings()
    trained = baseline_or_checkpoint(checkpoint, TOKEN_DIM, settings.description())  # before the corpus is encoded
    sentences = list(dict.fromkeys(task.documents + task.queries))
    number = {sentence: i for i, sentence in enumerate(sentences)}
    folder = folder.resolve()  # `.` has no name
    tokens = sentence_store(sentences, folder.with_name(f"{folder.name}.store"), settings)
    columns = {}
    for name, encoder in {"mean pooling": mean_pooling(TOKEN_DIM), "encoder": trained}.items():
        queries, documents = (
            encode(encoder, tokens, np.array([number[sentence] for sentence in side])) for side in (task.queries, task.documents)
        )
        columns[name] = score_ranks(relevant_ranks(queries, documents, task), task)
    n_relevant = sum(int((gains > 0).sum()) for gains in task.gains)
    print(f"{len(task.documents):,} documents, {len(task.queries):,} queries, {n_relevant:,} relevant documents")
    print(score_table(columns))
