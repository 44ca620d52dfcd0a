"""The encoder as a sentence-transformers module, which follows `Transformer`.

Exported folders contain a copy of this file and model.py, so that sentence-transformers loads them without this project.
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
    """Concatenates the hidden states of some layers per token and encodes them with a SentenceEncoder."""

    __module__ = "sentence_module"  # modules.json of an exported folder refers to this name
    config_keys: list[str] = ["encoder", "layers"]  # noqa: RUF012, as the base class declares it

    def __init__(self, encoder: dict[str, Any] | SentenceEncoder, layers: list[int]) -> None:
        """Wrap an encoder, or build an untrained one.

        Args:
            encoder: the encoder, or the fields of its EncoderConfig.
            layers: hidden states to concatenate, numbered as in transformers.
        """
        super().__init__()
        self.head = encoder if isinstance(encoder, SentenceEncoder) else SentenceEncoder(EncoderConfig(**encoder))
        self.layers = layers

    @property
    def encoder(self) -> dict[str, Any]:
        """The fields of the encoder's EncoderConfig."""
        return asdict(self.head.config)

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Add `sentence_embedding` `(B, output_dim)`, unit length.

        Args:
            features: `all_layer_embeddings`, each `(B, T, D)`, and `attention_mask` `(B, T)`, padded on the right.

        Raises:
            ValueError: if sentences are padded on the left or hidden states are missing.
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
        """Dimensions of a sentence embedding."""
        return self.head.config.output_dim

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write configuration and weights to the module's folder, and the code to its parent, as sentence-transformers expects."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)
        for source in (Path(__file__), Path(inspect.getfile(SentenceEncoder))):
            shutil.copyfile(source, Path(output_path).parent / source.name)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> EncoderModule:  # type: ignore[override]
        """Load a saved module from a folder or the hub."""
        names = ("token", "cache_folder", "revision", "local_files_only")
        source = {"subfolder": subfolder} | {name: kwargs[name] for name in names if name in kwargs}
        config = cls.load_config(model_name_or_path, **source)
        return cls.load_torch_weights(model_name_or_path, model=cls(**config), **source)
