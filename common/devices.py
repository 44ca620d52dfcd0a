"""Device selection: the CPU or an accelerator."""

from __future__ import annotations

import torch

from common.errors import InputError


def choose_device(name: str) -> torch.device:
    """Return the named device; `auto` prefers CUDA, then MPS, then the CPU.

    Raises:
        InputError: if the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name} is not available: {str(error).splitlines()[0]}") from error
