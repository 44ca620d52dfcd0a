"""Text pairs to a token store: a transformer backbone encodes each distinct sentence once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tokens.backbone import DEFAULT_BACKBONE, DEFAULT_MAX_LENGTH, DEFAULT_WIDTH, Backbone, default_layers
from tokens.text_files import TextPairs, read_text_pairs
from tokens.token_store import TokenStore, cached_store, create_store, identity_of, pack_json


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
        """Return what a token store records about its backbone."""
        layers = self.layers
        if layers is None:
            layers = default_layers(DEFAULT_WIDTH, self.pooled) if self.name == DEFAULT_BACKBONE else self.backbone.layers
        description = {"backbone": self.name, "layers": layers, "max_length": self.max_length}
        return description | ({"pooled": True} if self.pooled else {})


def text_store(
    path: str | os.PathLike[str],
    settings: BackboneSettings | None = None,
    *,
    store_path: str | os.PathLike[str] | None = None,
) -> TokenStore:
    """Return the token store of a file of text pairs; build it unless one of the same file and settings exists.

    Each distinct sentence is encoded once.

    Args:
        path: `.csv` or `.tsv` with sentence1, sentence2, label.
        settings: the backbone; None takes the default.
        store_path: the store; by default next to the file.

    Raises:
        InputError: if a row is malformed or the backbone cannot be loaded.
    """
    path = Path(path)
    pairs = read_text_pairs(path)
    settings = settings or BackboneSettings()
    description = {"source": path.name, "identity": identity_of(path), **settings.description()}
    target = Path(store_path) if store_path else path.with_name(f"{path.name}.store")
    return cached_store(target, description, lambda cache: _write_store(cache, pairs, settings.backbone, description))


def _write_store(path: Path, pairs: TextPairs, backbone: Backbone, description: dict[str, Any]) -> None:
    sentences = list(dict.fromkeys(pairs.first + pairs.second))
    number = {sentence: i for i, sentence in enumerate(sentences)}
    ids, truncated = backbone.tokenize(sentences)
    if truncated:
        tqdm.write(f"{description['source']}: {truncated} sentences were truncated to {backbone.max_length} tokens (--max_length)")
    order = []
    with create_store(path, backbone.dim) as writer:
        encoded = backbone.token_embeddings(ids)
        for i, tokens in tqdm(encoded, total=len(ids), unit="sentence", desc=f"encoding {description['source']}", disable=None):
            writer.append(tokens)
            order.append(i)
        extra = {
            "first": np.array([number[sentence] for sentence in pairs.first], dtype=np.int64),
            "second": np.array([number[sentence] for sentence in pairs.second], dtype=np.int64),
            "labels": pairs.labels,
            "sentences": pack_json(sentences),
        }
        writer.finish(extra, description, order)
