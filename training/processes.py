"""Several processes that train one encoder, started by torchrun; a process alone is the special case of one.

    torchrun --nproc-per-node 2 train.py

Every process draws the same batches and encodes its share of the sentences of each. It gets the vectors of the other
processes as constants, so its loss is the loss of the whole batch, and the gradient that reaches its weights is the part
that goes through its own vectors. The sum of these parts over the processes is the gradient that one process would have.

So one sum is all that is exchanged beside the vectors. DistributedDataParallel takes the mean instead, wraps one call of one
module where training here has two (pooling, then the head; twice for a batch in parts), and hides the exchange behind the
backward pass, which for an encoder of 2 MiB saves nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

PATIENCE = timedelta(days=1)  # others wait while the first encodes a large file


def join(device: torch.device) -> None:
    """Join the other processes, where torchrun has started some; only the first of all prints from here on.

    Args:
        device: where this process computes: NCCL connects GPUs, gloo everything else.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        if not is_first():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def leave() -> None:
    """Part from the other processes."""
    if count() > 1:
        distributed.destroy_process_group()


def count() -> int:
    """How many processes there are, P."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 to P - 1."""
    return distributed.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Whether this is process 0, which alone writes files."""
    return rank() == 0


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process where several share a machine: `cuda` becomes `cuda:1` for the second.

    A GPU with a number becomes the current one, whose random generator is saved and put back.
    """
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


@contextmanager
def one_after_another() -> Iterator[None]:
    """A block that one process of each machine runs before the others: what it leaves on disk, they find there."""
    goes_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if count() > 1 and not goes_first:
        distributed.barrier()
    yield
    if count() > 1 and goes_first:
        distributed.barrier()


def gather(own: Tensor, total: int) -> Tensor:
    """The rows of all processes, those of process 0 first; gradients reach this process's own.

    Args:
        own: `(n, K)`, where n is `total / P`, one more in the first `total % P` processes.
        total: rows of all processes.

    Returns:
        `(total, K)`.
    """
    if count() == 1:
        return own
    most = -(-total // count())
    sent = own.new_zeros(most, *own.shape[1:])
    sent[: len(own)] = own.detach()
    received = [torch.empty_like(sent) for _ in range(count())]
    distributed.all_gather(received, sent)
    rows = [received[r][: len(range(r, total, count()))] for r in range(count())]
    rows[rank()] = own
    return torch.cat(rows)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make every gradient the sum over the processes, in one exchange."""
    if count() == 1:
        return
    parameters = list(parameters)
    gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
    everything = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(everything)
    for parameter, values in zip(parameters, everything.split([gradient.numel() for gradient in gradients]), strict=True):
        parameter.grad = values.view_as(parameter)


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of process 0."""
    if count() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor.detach(), src=0)


def agree(values: Sequence[float], device: torch.device) -> list[float]:
    """The values that process 0 has, in all of them; `device` as in `join`."""
    if count() == 1:
        return list(values)
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.broadcast(shared, src=0)
    return shared.tolist()


def any_process(value: bool, device: torch.device) -> bool:
    """Whether `value` holds in any of the processes."""
    if count() == 1:
        return value
    flag = torch.tensor(float(value), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag)
