"""`model.bin`: a plain state dict, at most 20 MiB, written whole or not at all, read without unpickling objects."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from common.files import write_atomically
from model import SentenceEncoder, read_config

MAX_BYTES = 20 * 2**20
CHECKPOINT, ADVICE = "a checkpoint of this project", "give one that train.py wrote"


def save_encoder(path: str | os.PathLike[str], encoder: SentenceEncoder) -> int:
    """Write an encoder's state dict; a file it replaces is kept as `NAME.previous`.

    Returns:
        The size in bytes.

    Raises:
        InputError: where the file would be larger than 20 MiB; then nothing is written.
    """
    path = Path(path)
    buffer = io.BytesIO()  # to memory first: the size is known before anything is replaced
    torch.save({name: value.cpu().contiguous() for name, value in encoder.state_dict().items()}, buffer)
    if buffer.tell() > MAX_BYTES:
        raise InputError(
            f"the encoder takes {buffer.tell() / 2**20:.1f} MiB, expected at most 20 MiB; choose a smaller "
            "output_dim or hidden_dim",
            path=path,
        )
    if path.exists() and path.read_bytes() != buffer.getvalue():  # a run that goes on may write the same again
        with write_atomically(path.with_name(f"{path.name}.previous")) as file:
            file.write(path.read_bytes())
    with write_atomically(path) as file:
        file.write(buffer.getvalue())
    return buffer.tell()


def load_encoder(path: str | os.PathLike[str]) -> SentenceEncoder:
    """Rebuild an encoder of any architecture from its checkpoint alone, in evaluation mode, on the CPU.

    Raises:
        InputError: where the file is missing, damaged, or not a checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file, expected a checkpoint such as model.bin", path=path)
    state = load_tensors(path, CHECKPOINT, ADVICE)
    try:
        with torch.device("meta"):  # without memory: a configuration may claim any size, the tensors in the file are what they are
            encoder = SentenceEncoder(read_config(state))
        encoder.load_state_dict(state, assign=True)
        if any(parameter.dtype != torch.float32 for parameter in encoder.parameters()):
            raise ValueError("its weights are not float32")
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, OverflowError, ArithmeticError) as error:
        raise InputError(_not_what_was_expected(CHECKPOINT, error, ADVICE), path=path) from error
    return encoder.eval()


def load_tensors(path: Path, expected: str, advice: str) -> dict[str, Any]:
    """A dictionary of tensors, numbers and text that `torch.save` wrote; nothing in the file can execute, nor can it claim more
    memory than it is long.

    Args:
        path: the file.
        expected: what it should be, and
        advice: what to do where it is not, for the message of an error.

    Raises:
        InputError: where it is damaged or something else.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                raise ValueError("it would unpack to more than it is long")
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
        contents = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(contents, dict):
            raise ValueError(f"it holds a {type(contents).__name__}")
        if _largest_tensor(contents) > size:
            raise ValueError("a tensor claims to be larger than the file")
        return contents
    except Exception as error:  # a damaged pickle ends in an exception of any kind
        raise InputError(_not_what_was_expected(expected, error, advice), path=path) from error


def _largest_tensor(value: Any) -> int:
    """Bytes of the largest tensor in nested containers, as its shape has it; what it is a view of may be smaller."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return max(map(_largest_tensor, parts), default=0)


def _not_what_was_expected(expected: str, error: Exception, advice: str) -> str:
    reason = str(error).split("\n", 1)[0][:200]
    return f"not {expected}, or damaged: {reason}; {advice}"
