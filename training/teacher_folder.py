"""A teacher in a folder: a backbone that teacher.py fine-tuned, or a small encoder that shrink.py made."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import make_readable, write_text_atomically
from common.progress import Progress
from text import SMALL, load_small_encoder
from tokens.backbone import Backbone
from tokens.sentence_files import SentenceFiles
from tokens.token_store import cached_store, create_store, identity_of, short_hash
from training.whole_encoder import WholeEncoder

FACTS, WEIGHTS = "teacher.json", "model.safetensors"
GRAPH = "encoder.onnx"  # of a small encoder
ENCODED_TOGETHER = 1024  # sentences


def teacher_folders(names: Sequence[str] | None) -> list[str]:
    """The folders of teachers by the names given for them: `small` is the encoder that ships, unless a folder here has the name.

    Raises:
        InputError: if one of them is no teacher's; this early because encoding the pairs may take an hour.
    """
    folders = [str(SMALL) if name == SMALL.name and not Path(name).exists() else name for name in names or []]
    for folder in folders:
        read_teacher(Path(folder))
    return folders


def save_teacher(folder: Path, teacher: WholeEncoder, facts: dict[str, Any]) -> None:
    """Write the fine-tuned backbone as a folder that transformers loads, with `facts` in teacher.json."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".teacher.", dir=folder) as temporary:
        written = Path(temporary)
        teacher.model.save_pretrained(written)
        teacher.backbone.tokenizer.save_pretrained(written)
        write_text_atomically(written / FACTS, json.dumps({**facts, "max_length": teacher.backbone.max_length}, indent=2) + "\n")
        make_readable(written)
        for path in sorted(
            written.iterdir(), key=lambda path: (path.name == FACTS, path.name)
        ):  # it says that all the rest is there
            os.replace(path, folder / path.name)


def read_teacher(folder: Path) -> dict[str, Any]:
    """The contents of a teacher's teacher.json; of a small encoder, only what it was made from.

    Raises:
        InputError: if neither teacher.py nor shrink.py wrote the folder, or it is damaged.
    """
    if _is_small(folder):
        return {"origin": load_small_encoder(folder).config}
    try:
        return json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("not a teacher, expected a folder written by teacher.py or shrink.py", path=folder) from error


def load_teacher(folder: Path, *, bfloat16: bool = False, device: str = "cpu") -> WholeEncoder:
    """Load a fine-tuned backbone from its folder; `bfloat16` computes in half precision.

    Raises:
        InputError: if teacher.py did not write the folder.
    """
    backbone = Backbone(str(folder), "-1", max_length=read_teacher(folder)["max_length"], device=device)
    return WholeEncoder(backbone, bfloat16=bfloat16)


def identity_of_teacher(folder: Path) -> dict[str, Any]:
    """What changes when the weights in a teacher's folder do."""
    return identity_of(folder / (GRAPH if _is_small(folder) else WEIGHTS))


def teacher_embeddings(
    folder: Path,
    sentences: Sequence[str] | SentenceFiles,
    *,
    cache: Path,
    identity: str,
    bfloat16: bool = False,
    device: str = "cpu",
) -> np.ndarray:
    """A teacher's embeddings `(n, G)` of n sentences, unit length, memory-mapped, from an earlier run or computed now.

    Args:
        folder: the teacher.
        sentences: read once.
        cache: folder for the embeddings.
        identity: a hash of the sentences.
        bfloat16: compute in half precision; a small encoder does not.
        device: where a backbone runs; a small encoder runs on the CPU.

    Raises:
        InputError: if the folder holds no teacher or is damaged, or the cache is not writable.
    """
    description: dict[str, Any] = {"teacher": identity_of_teacher(folder), "sentences": identity}
    description |= {"bfloat16": True} if bfloat16 and not _is_small(folder) else {}

    def write(path: Path) -> None:
        width, encode = _open(folder, bfloat16, device)
        rest = iter(sentences)
        with (
            create_store(path, width) as writer,
            Progress(total=len(sentences), unit="sentence", desc=f"embeddings of {folder.name}") as bar,
        ):
            while part := list(islice(rest, ENCODED_TOGETHER)):
                rows = encode(part)
                rows[~rows.any(axis=1), 0] = 1  # a store leaves out tokens of zeros, as padding
                for row in rows:
                    writer.append(row[None])
                bar.update(len(part))
            writer.finish({}, description)

    return cached_store(cache / f"targets-{short_hash(description)}.store", description, write).tokens[0]


def _open(folder: Path, bfloat16: bool, device: str) -> tuple[int, Callable[[list[str]], np.ndarray]]:
    """The width G of a teacher's embeddings, and what turns n sentences into them: `(n, G)`."""
    if _is_small(folder):
        small = load_small_encoder(folder)
        return small.output_dim, small.encode
    teacher = load_teacher(folder, bfloat16=bfloat16, device=device)
    return teacher.backbone.width, lambda sentences: teacher.encode(sentences).numpy()


def _is_small(folder: Path) -> bool:
    return (folder / GRAPH).is_file() and not (folder / FACTS).exists()
