"""Text pairs to a token store: every different sentence is encoded once by a transformer backbone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tokens.backbone import DEFAULT_BACKBONE, DEFAULT_MAX_LENGTH, DEFAULT_WIDTH, Backbone, default_layers
from tokens.text_files import TextPairs, read_text_pairs
from tokens.token_store import TokenStore, cached_store, create_store, identity_of, pack_json


class BackboneSettings:
    """Which backbone makes the tokens; it is loaded only when a store has to be made."""

    def __init__(
        self,
        name: str = DEFAULT_BACKBONE,
        layers: str | None = None,
        max_length: int = DEFAULT_MAX_LENGTH,
        device: str = "cpu",
        pooled: bool = False,
    ) -> None:
        self.name, self.layers, self.max_length, self.device, self.pooled = name, layers, max_length, device, pooled
        self._backbone: Backbone | None = None

    def load(self) -> Backbone:
        """The backbone, loaded once."""
        if self._backbone is None:
            self._backbone = Backbone(self.name, self.layers, pooled=self.pooled, max_length=self.max_length, device=self.device)
        return self._backbone

    def description(self) -> dict[str, Any]:
        """What a token store says of where its tokens come from."""
        if self.layers is None:
            self.layers = default_layers(DEFAULT_WIDTH, self.pooled) if self.name == DEFAULT_BACKBONE else self.load().layers
        description = {"backbone": self.name, "layers": self.layers, "max_length": self.max_length}
        return description | ({"pooled": True} if self.pooled else {})


def text_store(
    path: str | os.PathLike[str],
    backbone: BackboneSettings | None = None,
    *,
    store_path: str | os.PathLike[str] | None = None,
) -> TokenStore:
    """The token store of a file of text pairs, made where it is not there yet.

    Each different sentence is encoded once. A store that was made from the same file with the same backbone and layers
    is opened as it is.

    Args:
        path: `.csv` or `.tsv` with sentence1, sentence2, label.
        backbone: what makes the tokens.
        store_path: the store; by default beside the file.

    Raises:
        InputError: for bad rows, or a backbone that cannot be loaded.
    """
    path = Path(path)
    pairs = read_text_pairs(path)
    settings = backbone or BackboneSettings()
    description = {"source": path.name, "identity": identity_of(path), **settings.description()}
    target = Path(store_path) if store_path else path.with_name(f"{path.name}.store")
    return cached_store(target, description, lambda cache: _write_store(cache, pairs, settings.load(), description))


def _write_store(path: Path, pairs: TextPairs, backbone: Backbone, description: dict[str, Any]) -> None:
    sentences = list(dict.fromkeys(pairs.first + pairs.second))
    number = {sentence: i for i, sentence in enumerate(sentences)}
    ids, cut = backbone.tokenize(sentences)
    if cut:
        tqdm.write(f"{description['source']}: {cut} sentences were cut to {backbone.max_length} tokens (--max_length)")
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
