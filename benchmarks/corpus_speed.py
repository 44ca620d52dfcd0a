"""Encoding and searching a corpus: rows per second and memory, next to sentence-transformers' pool of processes and to faiss.

Example:

    python benchmarks/corpus_speed.py --rows 1000000 --questions questions.tsv --out results/corpus.md

Sentences are made of the words of the starter pairs. All commands run in processes of their own, one after the other.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from jsonargparse.typing import PositiveInt
from sklearn.metrics import precision_recall_fscore_support
from timing import goal

from common.cli import make_parser, output_file, run_command
from common.files import write_text_atomically
from common.starter import STARTER_TRAIN
from common.text_tables import markdown
from corpus.index import CorpusFolder, Plan
from corpus.nearest import Corpus
from tokens.backbone import source_of
from tokens.text_pairs import read_text_pairs

ROOT = Path(__file__).parent.parent
BACKBONE = "all-MiniLM-L6-v2"
POOL = """
import sys
from sentence_transformers import SentenceTransformer
if __name__ == "__main__":
    model, sentences = SentenceTransformer(sys.argv[1], device="cpu"), open(sys.argv[2]).read().splitlines()
    pool = model.start_multi_process_pool(["cpu"] * int(sys.argv[3]))
    print(model.encode(sentences, pool=pool, batch_size=32).shape)
    model.stop_multi_process_pool(pool)
"""
WORDS = 3, 8  # of a sentence, at least and at most
WIDTH, QUERIES = 256, 1000


def main() -> None:
    """Command line."""
    parser = make_parser("benchmarks/corpus_speed.py", __doc__)
    parser.add_argument("--rows", type=PositiveInt, default=1_000_000, help="sentences; a tenth and twice as many are encoded too")
    parser.add_argument("--kills", type=PositiveInt, default=20, help="times that a run is killed")
    parser.add_argument("--questions", help="question pairs with labels, to find duplicates in")
    parser.add_argument("--ray", action="store_true", help="also encode on a local Ray")
    parser.add_argument("--out", default="results/corpus.md", help="Markdown file")
    options = parser.parse_args()
    out, rows = output_file(options.out, suffix=".md"), options.rows
    parts = ["# A corpus of sentences\n\nMade by `make corpus`.\n"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = write_sentences(place / "sentences.txt", rows)
        whole = encode(data, place / "whole")
        for part in (
            lambda: compared(place, data, rows, whole, ray=options.ray),
            lambda: growing(place, rows, whole),
            lambda: killed(place, rows // 10, options.kills),
            lambda: searched(place, rows),
            *([lambda: duplicates(place, options.questions)] if options.questions else []),
        ):
            parts.append(part())
            print(parts[-1], flush=True)
            write_text_atomically(out, "\n".join(parts))


def write_sentences(path: Path, rows: int) -> Path:
    """Write short sentences, always the same ones, a line each."""
    pairs = read_text_pairs(STARTER_TRAIN)
    words = sorted({word for sentence in pairs.first for word in sentence.split()})
    chance = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            file.write(" ".join(chance.choices(words, k=chance.randint(*WORDS))) + "\n")
    return path


def measure(*command: str | Path) -> tuple[float, float]:
    """Seconds of a command of this Python, and the peak of the memory of all its processes in MB, shared pages counted once."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    peak, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.5):
            peak = max(peak, memory_of_group(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    seconds = time.perf_counter() - begin
    ended.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{command} failed:\n{errors.decode()}")
    print(f"{seconds:,.0f} s, {peak:,.0f} MB: {' '.join(map(str, command))}", file=sys.stderr, flush=True)
    return seconds, peak


def memory_of_group(group: int) -> float:
    """The memory of a group of processes in MB (Linux)."""
    kilobytes = 0
    for status in Path("/proc").glob("[0-9]*/smaps_rollup"):
        try:
            if os.getpgid(int(status.parent.name)) == group:
                kilobytes += int(status.read_text().split("\nPss:")[1].split()[0])
        except (OSError, IndexError):
            continue  # it has ended
    return kilobytes / 1024


def encode(data: Path, out: Path, *options: str | Path) -> tuple[float, float]:
    """Seconds and memory of encode.py."""
    return measure("encode.py", "--data", data, "--out", out, *options)


def compared(place: Path, data: Path, rows: int, whole: tuple[float, float], *, ray: bool) -> str:
    """The same sentences by sentence-transformers and by encode.py; `whole` is what small/ took."""
    processes = os.cpu_count() or 1
    (place / "pool.py").write_text(POOL)
    theirs = f"sentence-transformers, {BACKBONE}, a pool of {processes} processes"
    ours, small, on_ray = f"encode.py, {BACKBONE}", "encode.py, small/", "encode.py, small/, on a local Ray"
    measured = {
        theirs: measure(place / "pool.py", source_of(BACKBONE), data, str(processes)),
        ours: encode(data, place / "same", "--model", source_of(BACKBONE)),
        small: whole,
    }
    if ray:
        measured[on_ray] = encode(data, place / "ray", "--ray", "local", "--processes", str(processes))
        one, other = CorpusFolder.open(place / "whole"), CorpusFolder.open(place / "ray")
        for number in range(one.plan.parts):
            np.testing.assert_allclose(other.vectors(number), one.vectors(number), atol=1e-6)
    rates = {name: rows / seconds for name, (seconds, _) in measured.items()}
    table = [
        (name, f"{rates[name]:,.0f}", f"{rates[name] / rates[theirs]:.2f}", "" if name == on_ray else f"{memory:,.0f}")
        for name, (_, memory) in measured.items()
    ]
    # Ray's own processes are not children of the command: what they take is not known.
    titles = (
        f"{rows:,} sentences of {WORDS[0]} to {WORDS[1]} words, {processes} cores",
        "sentences/s",
        "sentence-transformers = 1",
        "peak memory, MB",
    )
    goals = [goal("the same backbone", rates[ours] / rates[theirs], 1), goal("the whole encoder", rates[small] / rates[theirs], 4)]
    return "\n".join([markdown(titles, table), *goals])


def growing(place: Path, rows: int, whole: tuple[float, float]) -> str:
    """Time and memory by the size of the corpus: a tenth of the rows, all of them, which took `whole`, and twice as many."""
    measured = {rows: whole}
    for size in (rows // 10, 2 * rows):
        measured[size] = encode(write_sentences(place / "growing.txt", size), place / f"growing-{size}")
    table_rows = [
        (f"{size:,}", f"{seconds:,.0f}", f"{size / seconds:,.0f}", f"{memory:,.0f}")
        for size, (seconds, memory) in sorted(measured.items())
    ]
    table = markdown(("sentences, small/", "seconds", "sentences/s", "peak memory, MB"), table_rows)
    return f"{table}\n{goal('peak memory in MB', max(memory for _, memory in measured.values()), 1500, at_most=True)}"


def killed(place: Path, rows: int, kills: int) -> str:
    """A run in small parts that is killed at random moments, compared with an undisturbed one."""
    data, small_parts = write_sentences(place / "killed.txt", rows), ("--part_rows", "1024")
    seconds, _ = encode(data, place / "undisturbed", *small_parts)
    chance, hit = random.Random(0), 0
    command = [sys.executable, "encode.py", "--data", str(data), "--out", str(place / "killed"), *small_parts]
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(chance.uniform(0.5, max(1, 2 * seconds / kills)))
        hit += process.poll() is None
        with suppress(ProcessLookupError):  # it had ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    encode(data, place / "killed", *small_parts)
    contents = [{path.name: path.read_bytes() for path in (place / name).glob("[!.]*")} for name in ("killed", "undisturbed")]
    if contents[0] != contents[1]:
        raise RuntimeError("a killed run wrote other bytes")
    return f"{rows:,} sentences, killed {hit} times while running: every row once, byte for byte as in an uninterrupted run.\n"


def searched(place: Path, rows: int) -> str:
    """Search among random vectors, next to NumPy and faiss with all vectors in memory."""
    import faiss

    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[:QUERIES] + 0.5 * vectors[-QUERIES:]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    plan = Plan("", None, "", "", None, False, "", rows, 8192, "npy", "float32", False, WIDTH)
    folder = CorpusFolder.begin(place / "searched", plan)
    for number in range(plan.parts):
        numbers = range(number * plan.part_rows, number * plan.part_rows + plan.rows_of(number))
        folder.write(number, list(numbers), [""] * len(numbers), vectors[numbers.start : numbers.stop])
    corpus, flat = Corpus(folder.path, method="exact"), faiss.IndexFlatIP(WIDTH)
    flat.add(vectors)
    methods: dict[str, Callable] = {"search.py, exact, read from the folder": corpus.nearest, "faiss, all in memory": flat.search}
    table, found = [], {}
    for name, search in methods.items():
        cells = []
        for asked in (queries[:1], queries):
            begin = time.perf_counter()
            found[name] = search(asked, 10)[1]
            cells.append(f"{time.perf_counter() - begin:.2f}")
        table.append((name, *cells))
    wanted = np.argsort(-(queries[:100] @ vectors.T), axis=1, kind="stable")[:, :10]
    if not np.array_equal(found[next(iter(methods))][:100], wanted):
        raise RuntimeError("not what NumPy finds")
    titles = (f"{rows:,} vectors of {WIDTH}, ten nearest", "one query, seconds", f"{QUERIES:,} queries, seconds")
    return markdown(titles, table)


def duplicates(place: Path, questions: str) -> str:
    """Question pairs in one group of near-duplicates, against their labels; the threshold is chosen on half of them."""
    pairs = read_text_pairs(questions)
    sentences = list(dict.fromkeys(pairs.first + pairs.second))
    number = {sentence: i for i, sentence in enumerate(sentences)}
    (place / "questions.jsonl").write_text(
        "".join(json.dumps({"text": sentence}) + "\n" for sentence in sentences), encoding="utf-8"
    )
    encode(place / "questions.jsonl", place / "questions")
    corpus, labels = Corpus(place / "questions", method="exact"), pairs.labels > pairs.labels.mean()
    rows = []
    for threshold in np.arange(0.7, 0.96, 0.05):
        group = np.arange(len(sentences))
        for members in corpus.duplicates(float(threshold)):
            group[members] = members[0]
        together = np.array([group[number[a]] == group[number[b]] for a, b in zip(pairs.first, pairs.second, strict=True)])
        halves = [(labels[half], together[half]) for half in np.array_split(np.random.default_rng(0).permutation(len(pairs)), 2)]
        chosen, reported = (precision_recall_fscore_support(*half, average="binary", zero_division=0) for half in halves)
        rows.append((chosen[2], f"{threshold:.2f}", f"{reported[0]:.3f}", f"{reported[1]:.3f}", f"{reported[2]:.3f}"))
    best = max(rows)
    table = markdown(("threshold", "precision", "recall", "F1"), [row[1:] for row in rows])
    return f"{len(pairs):,} question pairs, half of them to choose the threshold ({best[1]}), figures of the other half.\n\n{table}"


if __name__ == "__main__":
    run_command(main)
