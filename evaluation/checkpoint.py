"""`model.bin`: a plain state dict of at most 20 MiB, written atomically and loaded without unpickling objects."""

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

DEFAULT_CHECKPOINT = Path(__file__).parent.parent / "model.bin"
MAX_BYTES = 20 * 2**20
CHECKPOINT, ADVICE = "a checkpoint of this project", "give one that train.py wrote"


def save_encoder(path: str | os.PathLike[str], encoder: SentenceEncoder) -> int:
    """Write an encoder's state dict and return its size in bytes; a different file there is kept as `NAME.previous`.

    Raises:
        InputError: if the file would exceed 20 MiB; nothing is written then.
    """
    path = Path(path)
    buffer = io.BytesIO()  # the size must be known before a file is replaced
    torch.save({name: value.cpu().contiguous() for name, value in encoder.state_dict().items()}, buffer)
    if buffer.tell() > MAX_BYTES:
        size = f"{buffer.tell() / 2**20:.1f} MiB"
        raise InputError(f"the encoder takes {size}, expected at most 20 MiB; choose a smaller output_dim or hidden_dim", path=path)
    if path.exists() and path.read_bytes() != buffer.getvalue():  # a resumed run may write the same file again
        with write_atomically(path.with_name(f"{path.name}.previous")) as file:
            file.write(path.read_bytes())
    with write_atomically(path) as file:
        file.write(buffer.getvalue())
    return buffer.tell()


def load_encoder(path: str | os.PathLike[str]) -> SentenceEncoder:
    """Rebuild an encoder of any architecture from its checkpoint, in evaluation mode, on the CPU.

    Raises:
        InputError: if the file is missing, damaged, or not a checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file, expected a checkpoint such as model.bin", path=path)
    state = load_tensors(path, CHECKPOINT, ADVICE)
    try:
        with torch.device("meta"):  # allocates nothing, whatever sizes the configuration claims
            encoder = SentenceEncoder(read_config(state))
        encoder.load_state_dict(state, assign=True)
        if any(parameter.dtype != torch.float32 for parameter in encoder.parameters()):
            raise ValueError("its weights are not float32")
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise _load_error(path, CHECKPOINT, error, ADVICE) from error
    return encoder.eval()


def load_tensors(path: Path, expected: str, advice: str) -> dict[str, Any]:
    """Load a dictionary of tensors, numbers and text that `torch.save` wrote.

    Nothing in the file is executed, and it cannot claim more memory than its own size.

    Args:
        path: the file.
        expected: what the file should be, for error messages.
        advice: what to do if it is not, for error messages.

    Raises:
        InputError: if the file is damaged or something else.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                raise ValueError("it would unpack to more than its own size")
            if any(entry.external_attr & 0x10 for entry in archive.infolist()):
                raise ValueError("an entry is marked as a folder")  # torch would leave its tensor uninitialised
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
        contents = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(contents, dict):
            raise ValueError(f"it holds a {type(contents).__name__}")
        if _largest_tensor(contents) > size:
            raise ValueError("a tensor claims to be larger than the file")
        return contents
    except Exception as error:  # a damaged pickle can raise anything
        raise _load_error(path, expected, error, advice) from error


def _largest_tensor(value: Any) -> int:
    """Bytes of the largest tensor in nested containers, by its shape: an expanded view can exceed its storage."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return max(map(_largest_tensor, parts), default=0)


def _load_error(path: Path, expected: str, error: Exception, advice: str) -> InputError:
    reason = str(error).split("\n", 1)[0][:200]
    return InputError(f"not {expected}, or damaged: {reason}; {advice}", path=path)
