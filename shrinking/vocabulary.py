"""A smaller vocabulary: the tokens that a text needs, renumbered in the tokenizer and in the word embeddings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Any

from torch import nn

from common.errors import InputError
from tokens.backbone import Backbone

TOKENIZED_TOGETHER = 4096


def choose_tokens(backbone: Backbone, sentences: Iterable[str], size: int) -> list[int]:
    """The ids of `size` tokens, in order: special ones, single characters, those of the sentences, then the most frequent.

    Tokens with letters beyond ASCII that do not occur in the sentences come last; unused ones are never chosen.

    Raises:
        InputError: if not even the special tokens and single characters fit.
    """
    counts: Counter[int] = Counter()
    rest = iter(sentences)
    while part := list(islice(rest, TOKENIZED_TOGETHER)):
        for ids in backbone.tokenize(part)[0]:
            counts.update(ids)
    special = set(backbone.tokenizer.all_special_ids)

    def rank(token: int) -> tuple[bool, bool, int, bool, int]:
        name = names[token].removeprefix("##")
        plain = name.isascii()
        return token not in special, not (plain and len(name) == 1), -counts[token], not plain, token  # ids: by frequency, nearly

    names = {token: name for name, token in backbone.tokenizer.get_vocab().items()}
    usable = [token for token in names if token in special or not names[token].startswith("[unused")]
    needed = sum(not rank(token)[0] or not rank(token)[1] for token in usable)
    if size < needed:
        raise InputError(f"--vocabulary is {size}, expected at least the {needed} special tokens and single characters")
    return sorted(sorted(usable, key=rank)[:size])


def cut_vocabulary(backbone: Backbone, kept: list[int]) -> None:
    """Leave a backbone, in place, only these tokens, numbered in their order. Other words are split into smaller pieces.

    Raises:
        InputError: if its tokenizer is not WordPiece, where every piece can do without every other.
    """
    from transformers import PreTrainedTokenizerFast

    old = backbone.tokenizer
    contents = json.loads(old.backend_tokenizer.to_str())
    if contents["model"].get("type") != "WordPiece":
        raise InputError(f"the tokenizer of {backbone.name} is not WordPiece, its vocabulary cannot be cut; leave out --vocabulary")
    number = {token: i for i, token in enumerate(kept)}
    vocabulary = {name: number[token] for name, token in contents["model"]["vocab"].items() if token in number}
    contents["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
    contents["added_tokens"] = [{**token, "id": number[token["id"]]} for token in contents["added_tokens"] if token["id"] in number]
    contents["truncation"] = contents["padding"] = None
    _renumber_special(contents.get("post_processor") or {}, number)
    from tokenizers import Tokenizer

    backbone.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(contents)), model_max_length=old.model_max_length, **old.special_tokens_map
    )
    words = backbone.model.get_input_embeddings()
    padding = number.get(words.padding_idx) if words.padding_idx is not None else None
    backbone.model.set_input_embeddings(nn.Embedding(len(kept), words.embedding_dim, padding, _weight=words.weight[kept].detach()))
    backbone.model.config.vocab_size = len(kept)
    backbone.model.config.pad_token_id = padding


def _renumber_special(processor: dict[str, Any], number: dict[int, int]) -> None:
    """Renumber the tokens that a tokenizer adds around a sentence, in place."""
    for name in ("sep", "cls"):  # BertProcessing: a token and its id
        if name in processor:
            processor[name][1] = number[processor[name][1]]
    for token in (processor.get("special_tokens") or {}).values():  # TemplateProcessing
        token["ids"] = [number[i] for i in token["ids"]]
    for each in processor.get("processors") or []:
        _renumber_special(each, number)
