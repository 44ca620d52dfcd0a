"""The trained encoder as a module of a sentence-transformers model: `Transformer`, then this.

This file and model.py are copied into every exported folder. With them sentence-transformers loads the folder where nothing else
of this project is.
"""

from __future__ import annotations

import inspect
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Module
from torch import Tensor

try:
    from .model import EncoderConfig, SentenceEncoder  # in an exported folder
except ImportError:
    from model import EncoderConfig, SentenceEncoder


class EncoderModule(Module):
    """Hidden states of chosen layers side by side, then a SentenceEncoder: its vector is the sentence embedding."""

    __module__ = "sentence_module"  # the name of this file in an exported folder, whose modules.json refers to it
    config_keys: list[str] = ["encoder", "layers"]  # noqa: RUF012, declared so by sentence-transformers

    def __init__(self, encoder: dict[str, Any] | SentenceEncoder, layers: list[int]) -> None:
        """Take over an encoder, or build one with fresh weights.

        Args:
            encoder: the encoder, or the fields of its EncoderConfig.
            layers: hidden states to put side by side, as numbered in transformers.
        """
        super().__init__()
        self.head = encoder if isinstance(encoder, SentenceEncoder) else SentenceEncoder(EncoderConfig(**encoder))
        self.layers = layers

    @property
    def encoder(self) -> dict[str, Any]:
        """The encoder's configuration."""
        return asdict(self.head.config)

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Add `sentence_embedding` `(B, output_dim)`, unit length.

        Args:
            features: `all_layer_embeddings`, each `(B, T, D)`, and `attention_mask` `(B, T)`, padded on the right.

        Raises:
            ValueError: where sentences are padded on the left, or the hidden states are missing.
        """
        mask = features["attention_mask"]
        if (mask[:, 1:] > mask[:, :-1]).any():
            raise ValueError('sentences are padded on the left, expected tokenizer.padding_side = "right"')
        if "all_layer_embeddings" not in features:
            raise ValueError("no hidden states, expected a Transformer with output_hidden_states in its configuration")
        states = features["all_layer_embeddings"]
        precision = next((parameter.dtype for parameter in self.head.parameters()), torch.float32)
        tokens = torch.cat([states[layer] for layer in self.layers], dim=2).to(precision)
        tokens = tokens.masked_fill(mask[:, :, None] == 0, 0)
        features["sentence_embedding"] = self.head(tokens, mask.sum(1))
        return features

    def get_embedding_dimension(self) -> int:
        """Width of a sentence embedding."""
        return self.head.config.output_dim

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write configuration and weights into the module's folder, and the code into the model's.

        sentence-transformers looks for a module's code at the top of a model's folder.
        """
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)
        for source in (Path(__file__), Path(inspect.getfile(SentenceEncoder))):
            shutil.copyfile(source, Path(output_path).parent / source.name)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> EncoderModule:
        """Read what `save` has written, from a folder or the hub."""
        place: dict[str, Any] = {
            "subfolder": subfolder,
            "token": token,
            "cache_folder": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        module = cls(**cls.load_config(model_name_or_path, **place))
        return cls.load_torch_weights(model_name_or_path, model=module, **place)
