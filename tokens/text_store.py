"""Text pairs to a token store: a transformer backbone encodes each distinct sentence once."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.errors import InputError
from common.progress import Progress
from tokens.backbone import DEFAULT_BACKBONE, DEFAULT_MAX_LENGTH, DEFAULT_WIDTH, Backbone, default_layers
from tokens.tables import HUB_PREFIX, is_on_hub
from tokens.text_pairs import ReadOptions, TextPairs, read_text_pairs
from tokens.token_store import TokenStore, cached_store, create_store, identity_of, identity_of_folder, pack_json

BACKBONE_FILES = ("*.safetensors", "*.bin", "config.json", "tokenizer*", "vocab*")  # of a folder: what its tokens depend on
PART_SENTENCES = 16_384  # a minute or less of one core, a few hundred MiB


@dataclass
class BackboneSettings:
    """The arguments of a `Backbone`, which is loaded only if a store has to be built."""

    name: str = DEFAULT_BACKBONE
    layers: str | None = None
    max_length: int = DEFAULT_MAX_LENGTH
    device: str = "cpu"
    pooled: bool = False

    @cached_property
    def backbone(self) -> Backbone:
        """The loaded backbone."""
        return Backbone(self.name, self.layers, pooled=self.pooled, max_length=self.max_length, device=self.device)

    def description(self) -> dict[str, Any]:
        """Return what a token store records about its backbone; of a folder also what changes when its weights do."""
        layers = self.layers
        if layers is None:
            layers = default_layers(DEFAULT_WIDTH, self.pooled) if self.name == DEFAULT_BACKBONE else self.backbone.layers
        description = {"backbone": self.name, "layers": layers, "max_length": self.max_length}
        if self.name != DEFAULT_BACKBONE and Path(self.name).is_dir():
            description["weights"] = identity_of_folder(Path(self.name), BACKBONE_FILES)
        return description | ({"pooled": True} if self.pooled else {})


def text_store(
    source: str | os.PathLike[str],
    settings: BackboneSettings | None = None,
    *,
    options: ReadOptions | None = None,
    store_path: str | os.PathLike[str] | None = None,
) -> TokenStore:
    """Return the token store of a table of text pairs; build it unless one of the same table and settings exists.

    Each distinct sentence is encoded once.

    Args:
        source: a table of any form, see `read_text_pairs`.
        settings: the backbone; None takes the default.
        options: how to read the table.
        store_path: the store; by default next to the table, for datasets of the hub in `stores/`.

    Raises:
        InputError: if the table cannot be read or the backbone cannot be loaded.
    """
    options = options or ReadOptions()
    settings = settings or BackboneSettings()
    description = {"source": Path(source).name, "identity": _identity(source), **settings.description()}
    description |= {name: value for name, value in asdict(options).items() if value}
    target = Path(store_path) if store_path else default_store(source)

    def build(cache: Path) -> None:
        _write_store(cache, read_text_pairs(source, options), settings.backbone, description)

    return cached_store(target, description, build)


def sentence_store(
    sentences: Sequence[str], store_path: str | os.PathLike[str], settings: BackboneSettings | None = None
) -> TokenStore:
    """Return the token store of sentences, in their order; build it unless one of the same sentences and settings exists.

    Args:
        sentences: the sentences, best without duplicates: each is encoded and stored.
        store_path: the store.
        settings: the backbone; None takes the default.

    Raises:
        InputError: if the backbone cannot be loaded or the store's folder is not writable.
    """
    settings = settings or BackboneSettings()
    identity = hashlib.blake2b(digest_size=16)
    for sentence in sentences:
        identity.update(json.dumps(sentence).encode("utf-8"))
    target = Path(store_path)
    description = {"source": target.stem, "identity": identity.hexdigest(), **settings.description()}

    def build(cache: Path) -> None:
        _write_sentences(cache, sentences, settings.backbone, description, {})

    return cached_store(target, description, build)


def _identity(source: str | os.PathLike[str]) -> dict[str, Any]:
    """What changes when the table does; a dataset of the hub is known by its name, a folder by its files."""
    path = Path(os.fspath(source).removeprefix(HUB_PREFIX).partition(":")[0] if is_on_hub(source) else source)
    if path.is_dir():  # of the datasets library
        return identity_of_folder(path)
    if is_on_hub(source):
        return {"hub": os.fspath(source)}
    if not path.is_file():
        raise InputError(
            "no such file or folder, expected a .store file, a table of pairs (CSV, TSV, JSON lines, Parquet), .dat files or their "
            "folder, or hf:NAME",
            path=path,
        )
    return identity_of(path)


def default_store(source: str | os.PathLike[str]) -> Path:
    """The store of a table: next to it, for datasets of the hub in `stores/`."""
    if is_on_hub(source):
        return Path("stores") / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', os.fspath(source))}.store"
    return Path(source).with_name(f"{Path(source).name}.store")


def _write_store(path: Path, pairs: TextPairs, backbone: Backbone, description: dict[str, Any]) -> None:
    negatives = [sentence for row in pairs.negatives for sentence in row]
    sentences = list(dict.fromkeys(pairs.first + pairs.second + negatives))
    number = {sentence: i for i, sentence in enumerate(sentences)}
    extra = {
        "first": np.array([number[sentence] for sentence in pairs.first], dtype=np.int64),
        "second": np.array([number[sentence] for sentence in pairs.second], dtype=np.int64),
        "labels": pairs.labels,
        "sentences": pack_json(sentences),
        "reading": pack_json({"has_labels": pairs.has_labels, "scale": pairs.scale, "skipped": pairs.skipped}),
    }
    if negatives:
        rows = [[number[sentence] for sentence in row] for row in pairs.negatives]
        extra["negatives"] = np.array(rows, dtype=np.int64)
    _write_sentences(path, sentences, backbone, description, extra)


def _write_sentences(
    path: Path, sentences: Sequence[str], backbone: Backbone, description: dict[str, Any], extra: Mapping[str, np.ndarray]
) -> None:
    """Many sentences are encoded in parts, each a store of its own, so that a stopped run goes on with those that are missing."""
    ids, truncated = backbone.tokenize(sentences)
    if truncated:
        tqdm.write(f"{description['source']}: {truncated} sentences were truncated to {backbone.max_length} tokens (--max_length)")
    with Progress(total=len(ids), unit="sentence", desc=f"encoding {description['source']}") as progress:
        if len(ids) <= PART_SENTENCES:
            _write_tokens(path, ids, backbone, progress, description, extra)
            return
        folder, parts = path.with_name(f"{path.name}.parts"), []
        for start in range(0, len(ids), PART_SENTENCES):
            part, of_part = folder / f"{start}.store", ids[start : start + PART_SENTENCES]
            about_part = {**description, "from_sentence": start}
            build = partial(_write_tokens, ids=of_part, backbone=backbone, progress=progress, description=about_part)
            parts.append((part, cached_store(part, about_part, build)))
            if progress.n == start:  # an earlier run encoded it, at no cost to this one
                progress.n = progress.initial = start + len(of_part)
    with create_store(path, backbone.dim) as writer:
        while parts:
            part, store = parts.pop(0)
            for number in range(len(store)):
                writer.append(store.sentence(number))
            part.unlink(missing_ok=True)  # at once, as tokens are large; another process may have done the same
        writer.finish(extra, description)
    with suppress(OSError):  # another process writes there
        folder.rmdir()


def _write_tokens(
    path: Path,
    ids: Sequence[Sequence[int]],
    backbone: Backbone,
    progress: Progress,
    description: dict[str, Any],
    extra: Mapping[str, np.ndarray] | None = None,
) -> None:
    order = []
    with create_store(path, backbone.dim) as writer:
        for i, tokens in backbone.token_embeddings(ids):
            writer.append(tokens)
            order.append(i)
            progress.update()
        writer.finish(extra or {}, description, order)
