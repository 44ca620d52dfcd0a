"""Training one encoder in several processes, started by torchrun.

    torchrun --nproc-per-node 2 train.py

All processes draw the same batches, and each encodes its share of the sentences. It gathers the embeddings of the others
as constants, so every process computes the loss of the whole batch, and its gradient is the part that flows through its
own embeddings. The sum of these parts over the processes is the gradient of the whole batch.

DistributedDataParallel takes the mean instead and wraps one call of one module, but training calls two (pooling and head),
twice for a batch in parts; and overlapping communication with the backward pass saves nothing for an encoder of 2 MiB.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

TIMEOUT = timedelta(days=1)  # the others wait while the main process encodes a large file


def join(device: torch.device) -> None:
    """Join the process group if torchrun started several processes; from here on only the main process prints.

    Args:
        device: where this process computes: NCCL connects GPUs, gloo everything else.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        if not is_main():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def leave() -> None:
    """Leave the process group."""
    if world_size() > 1:
        distributed.destroy_process_group()


def world_size() -> int:
    """The number of processes, P."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 to P - 1."""
    return distributed.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is process 0, the only one that writes files."""
    return rank() == 0


def local_device(device: torch.device) -> torch.device:
    """This process's own GPU if several share a machine: `cuda` becomes `cuda:1` for the second.

    A numbered GPU becomes the current one, because saving a run stores the random state of the current GPU.
    """
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block in one process per machine before the others, which then find the files it cached."""
    goes_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if world_size() > 1 and not goes_first:
        distributed.barrier()
    yield
    if world_size() > 1 and goes_first:
        distributed.barrier()


def gather(own: Tensor, total: int) -> Tensor:
    """Concatenate the rows of all processes in rank order; gradients reach this process's own rows only.

    Args:
        own: `(n, K)`, where n is `total / P`, one more in the first `total % P` processes.
        total: rows of all processes.

    Returns:
        `(total, K)`.
    """
    if world_size() == 1:
        return own
    most = -(-total // world_size())
    sent = own.new_zeros(most, *own.shape[1:])
    sent[: len(own)] = own.detach()
    received = [torch.empty_like(sent) for _ in range(world_size())]
    distributed.all_gather(received, sent)
    rows = [received[r][: len(range(r, total, world_size()))] for r in range(world_size())]
    rows[rank()] = own
    return torch.cat(rows)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over the processes, in one all-reduce."""
    if world_size() == 1:
        return
    parameters = list(parameters)
    gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for parameter, values in zip(parameters, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        parameter.grad = values.view_as(parameter)


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the main process."""
    if world_size() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor.detach(), src=0)


def broadcast_values(values: Sequence[float], device: torch.device) -> list[float]:
    """The main process's values; `device` as in `join`."""
    if world_size() == 1:
        return list(values)
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    broadcast_tensors([shared])
    return shared.tolist()


def any_process(value: bool, device: torch.device) -> bool:
    """Whether `value` is true in any process."""
    if world_size() == 1:
        return value
    flag = torch.tensor(float(value), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag)
