"""Backbones with fewer layers, or none: one static embedding per token."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.progress import Progress
from tokens.backbone import Backbone
from training.whole_encoder import WholeEncoder

ZIPF = 1e-4  # the frequency at which a token counts half; see Arora et al. 2017, A Simple but Tough-to-Beat Baseline


class StaticModel(nn.Module):
    """One embedding per token, independent of its context, in place of a transformer."""

    def __init__(self, embeddings: Tensor, config: Any) -> None:
        """Start from the embeddings `(V, G)` of all tokens, with the configuration of the transformer they came from."""
        super().__init__()
        self.words = nn.Embedding.from_pretrained(embeddings, freeze=False)
        self.config = copy.deepcopy(config)
        self.config.num_hidden_layers = 0

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of embeddings."""
        return self.words

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """Token ids `(B, T)` to `last_hidden_state` `(B, T, G)`."""
        return SimpleNamespace(last_hidden_state=self.words(input_ids))


def parse_layers(text: str, depth: int) -> list[int]:
    """The layers named by `all`, `none`, or numbers from 0 with commas between them, of a backbone with `depth`.

    Raises:
        InputError: if the text names no such layers, or one twice.
    """
    if text in ("all", "none"):
        return list(range(depth)) if text == "all" else []
    numbers = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]+", part) and int(part) < depth for part in numbers) or len(set(numbers)) < len(numbers):
        raise InputError(f"--layers is {text}, expected all, none, or different numbers of 0 to {depth - 1} such as 0,2,4")
    return [int(part) for part in numbers]


def keep_layers(backbone: Backbone, layers: Sequence[int]) -> None:
    """Leave a backbone, in place, only these of its layers; without any, one embedding per token.

    A static embedding starts as the whole backbone's embedding of the token alone, weighted by its rarity.

    Raises:
        InputError: if the layers are not a list of modules, one per layer.
    """
    if not layers:
        backbone.model = StaticModel(_embeddings_of_tokens(backbone), backbone.model.config)
        return
    depth = backbone.model.config.num_hidden_layers
    lists = [
        (name, module)
        for name, module in backbone.model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if len(lists) != 1:
        raise InputError(f"cannot tell the layers of {backbone.name} from its other modules, expected a BERT-like encoder")
    (name, module) = lists[0]
    backbone.model.set_submodule(name, nn.ModuleList(module[layer] for layer in layers))
    backbone.model.config.num_hidden_layers = len(layers)


@torch.no_grad()
def narrow_layers(backbone: Backbone, size: int) -> None:
    """Leave each feed-forward block of a backbone, in place, `size` inner dimensions: those with the largest weights.

    Raises:
        InputError: if its feed-forward blocks are not built as BERT's are, or have fewer dimensions.
    """
    blocks, config = _feed_forward_blocks(backbone), backbone.model.config
    if size > config.intermediate_size:
        raise InputError(f"--intermediate_size is {size}, expected at most the {config.intermediate_size} of {backbone.name}")
    for block in blocks:
        into, out = block.intermediate.dense, block.output.dense
        kept = (into.weight.norm(dim=1) * out.weight.norm(dim=0)).topk(size).indices.sort().values
        into.weight, into.bias = nn.Parameter(into.weight[kept]), nn.Parameter(into.bias[kept])
        out.weight = nn.Parameter(out.weight[:, kept])
        into.out_features = out.in_features = size
    config.intermediate_size = size


def use_relu(backbone: Backbone) -> None:
    """Replace the activation of a backbone's feed-forward blocks with ReLU, in place; training makes up for the change.

    Raises:
        InputError: if its feed-forward blocks are not built as BERT's are.
    """
    for block in _feed_forward_blocks(backbone):
        block.intermediate.intermediate_act_fn = nn.ReLU()
    backbone.model.config.hidden_act = "relu"


def _feed_forward_blocks(backbone: Backbone) -> list[Any]:
    blocks = [module for module in backbone.model.modules() if hasattr(module, "intermediate") and hasattr(module, "output")]
    if len(blocks) != backbone.model.config.num_hidden_layers:
        raise InputError(f"cannot tell the feed-forward blocks of {backbone.name}, expected a BERT-like encoder")
    return blocks


@torch.no_grad()
def _embeddings_of_tokens(backbone: Backbone) -> Tensor:
    """The embedding `(V, G)` of each token of the vocabulary; those of special tokens are zero."""
    size = len(backbone.tokenizer)
    first, last = backbone.tokenizer("a")["input_ids"][0], backbone.tokenizer("a")["input_ids"][-1]
    encoder = WholeEncoder(backbone)
    with Progress(total=size, unit="token", desc="tokens of the vocabulary") as bar:
        embeddings = encoder.embed([[first, token, last] for token in range(size)], batch_size=256, bar=bar)
    embeddings -= embeddings.mean(0)
    ranks = 1 + torch.arange(size, device=embeddings.device)  # tokens are numbered by frequency, nearly
    frequency = 1 / ranks / torch.log(torch.tensor(float(size)))
    embeddings *= (ZIPF / (ZIPF + frequency))[:, None]
    embeddings[backbone.tokenizer.all_special_ids] = 0
    return embeddings.clone()
