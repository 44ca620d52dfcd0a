"""Encode a corpus on many machines with Ray Data (`pip install "ray[data]"`). They share its folders, and this project's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.optional import import_optional
from corpus.encoding import PartEncoder
from corpus.index import CorpusFolder

PROJECT = Path(__file__).parent.parent


class _Worker:
    """Encodes the parts of a batch on some machine; keeps its model from one to the next."""

    def __init__(self, folder: CorpusFolder) -> None:
        self._encode = PartEncoder(folder.path, folder.plan)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"item": batch["item"], "truncated": np.array([self._encode(int(number)) for number in batch["item"]])}


def encode_on_ray(folder: CorpusFolder, numbers: list[int], workers: int | None, address: str) -> Iterator[tuple[int, int]]:
    """Encode parts on a Ray cluster; yields the number of each when it is there, and how many sentences were truncated.

    Args:
        folder: on storage that all machines share.
        numbers: the parts.
        workers: processes of one CPU each, at most; None takes all CPUs of the cluster.
        address: of the cluster, `auto` for the one that this machine belongs to, or `local` for one made here.

    Raises:
        InputError: if Ray is not installed, or there is no cluster.
    """
    ray, data = (import_optional(module, '--ray needs Ray: pip install "ray[data]"') for module in ("ray", "ray.data"))
    try:
        ray.init(
            address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            ignore_reinit_error=True,
            runtime_env={"env_vars": {"PYTHONPATH": str(PROJECT)}},
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"--ray {address}: {error}") from error
    workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data.DataContext.get_current().enable_progress_bars = False
    parts = data.from_items(numbers, override_num_blocks=len(numbers))
    done = parts.map_batches(
        _Worker, fn_constructor_args=(folder,), batch_size=1, num_cpus=1, concurrency=(1, min(workers, len(numbers)))
    )
    for row in done.iter_rows():
        yield int(row["item"]), int(row["truncated"])
