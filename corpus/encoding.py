"""Encode a corpus part by part, in processes of one thread each.

A part is a number: whoever computes it reads the corpus for itself, so that parts can be shared out to processes and machines, and
a stopped run goes on with those that are missing.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from common.errors import InputError
from corpus.index import CorpusFolder, Plan
from corpus.records import Record, Records, visible_files
from evaluation.quantization import int8_range
from text import TextEncoder, is_small_encoder

RANGE_FROM = 4096  # sentences
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def load_model(model: str, backbone: str | None = None, device: str = "cpu") -> TextEncoder:
    """Load a small encoder's folder, a checkpoint with its backbone, or a backbone with mean pooling.

    Raises:
        InputError: if it cannot be loaded, or is an export for sentence-transformers.
    """
    if Path(model).is_file() or needs_no_torch(model):
        return TextEncoder(model, backbone=backbone, device=device)
    if backbone is not None:
        raise InputError(f"is not a checkpoint, expected no --backbone {backbone} with it", path=model)
    return TextEncoder(backbone=model, layers="-1", device=device)


def needs_no_torch(model: str) -> bool:
    """Whether a model is a small encoder, not a checkpoint nor the folder of a backbone."""
    return is_small_encoder(model) and not any(Path(model).glob("*.safetensors"))


def identity_of_model(model: str, backbone: str | None) -> str:
    """A hash of the files of a model and its backbone, but for hidden ones, caches, cards, code; of a name on the hub, the name."""
    contents = hashlib.blake2b(digest_size=16)
    for source in (model, backbone):
        path = Path(source or "")
        files = visible_files(path) if source and path.is_dir() else [path]
        for file in files:
            if file.suffix in (".md", ".py"):  # a new card or small_encoder.py changes no embedding, and a corpus takes hours
                continue
            contents.update(file.read_bytes() if source and file.is_file() else str(source).encode())
    return contents.hexdigest()


def value_range(encoder: TextEncoder, records: Iterable[Record]) -> list[list[float]]:
    """The lowest and the highest value of each dimension over the first few thousand sentences."""
    return int8_range(_encode(encoder, [record.text for record in islice(records, RANGE_FROM)])[0]).tolist()


def _encode(encoder: TextEncoder, texts: list[str]) -> tuple[np.ndarray, int]:
    """Embeddings `(n, K)`, and how many texts were truncated."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        vectors = encoder.encode(texts)
    return vectors, encoder.truncated(texts) if warned else 0


class PartEncoder:
    """Encodes parts of a corpus by their numbers, and writes them."""

    def __init__(self, path: str | Path, plan: Plan, device: str = "cpu") -> None:
        """Load the model of a plan for the folder at `path`."""
        self._folder = CorpusFolder(path, plan)
        self._encoder = load_model(plan.model, plan.backbone, device)
        self._records: Iterator[Record] = iter(())
        self._next: int | None = None  # the part that the next record belongs to

    def __call__(self, number: int) -> int:
        """Write a part, and return how many of its sentences were truncated.

        Raises:
            InputError: if the corpus has changed.
        """
        plan = self._folder.plan
        if self._next is None or number < self._next:
            self._records, self._next = iter(Records(plan.data, plan.columns, skip_bad_rows=plan.skip_bad_rows)), 0
        skip = (number - self._next) * plan.part_rows
        records = list(islice(self._records, skip, skip + plan.part_rows))
        self._next = number + 1
        if len(records) != plan.rows_of(number):
            raise InputError("has changed while it was encoded; encode it to another folder", path=plan.data)
        texts = [record.text for record in records]
        vectors, truncated = _encode(self._encoder, texts)
        self._folder.write(number, [record.id for record in records], texts, vectors)
        return truncated


_worker: PartEncoder


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _begin_worker(path: str, plan: Plan, device: str) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()  # it may be killed without a chance to end this process
    if not needs_no_torch(plan.model):
        import torch

        torch.set_num_threads(1)
    _worker = PartEncoder(path, plan, device)


def _run_worker(number: int) -> int:
    return _worker(number)


def encode_here(folder: CorpusFolder, numbers: list[int], processes: int, device: str = "cpu") -> Iterator[tuple[int, int]]:
    """Encode parts on this machine; yields the number of each when it is there, and how many sentences were truncated.

    Raises:
        InputError: if a process died.
    """
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # for the processes that start now
    pool = ProcessPoolExecutor(
        min(processes, len(numbers)),
        multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
        initargs=(str(folder.path), folder.plan, device),
    )
    waiting, running = iter(numbers), dict[Future[int], int]()
    # Not as_completed: it locks all that run, and Ctrl-C at that moment would leave them locked, and this process waiting.
    finished: SimpleQueue[Future[int]] = SimpleQueue()

    def begin(parts: int) -> None:
        # What starts now inherits the mask and never sees Ctrl-C: this process, which does in a moment, ends the others.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for number in islice(waiting, parts):
                part = pool.submit(_run_worker, number)
                running[part] = number
                part.add_done_callback(finished.put)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        begin(2 * processes)  # a second one each, so that none has to wait for this process; all at once would take long
        while running:
            done = finished.get()
            begin(1)
            yield running.pop(done), done.result()
    except BrokenProcessPool as error:
        raise InputError("a process died, perhaps for want of memory; the same command resumes") from error
    except BaseException:
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
