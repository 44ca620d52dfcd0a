"""The folder of a small encoder: graph, tokenizer, configuration, card, and the module that runs it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import make_readable, size_of
from common.text_tables import markdown
from evaluation.scores import METRICS
from model import SentenceEncoder
from portable import small_encoder
from shrinking.onnx_export import EncoderGraph, export, export_int8
from tokens.backbone import Backbone

MODULE = Path(small_encoder.__file__)
CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, sentence-similarity, feature-extraction, onnx]
---
# Small sentence encoder

Maps a sentence to a {output_dim}-dimensional embedding of unit length. It takes {mib:.1f} MiB and needs no torch:

```
pip install onnxruntime tokenizers numpy
```

```python
from small_encoder import SmallEncoder

print(SmallEncoder().similarity("A man plays a guitar.", "Somebody makes music."))
```

| | |
| --- | --- |
| made from | {made_from} |
| teachers | {teachers} |
| data | {data} |
| weights | {precision} |
| max length | {max_length} tokens, longer sentences are truncated |

{scores}

With sentence-transformers and its ONNX backend (`pip install "sentence-transformers[onnx]"`):

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("this/folder", backend="onnx", model_kwargs={{"file_name": "encoder.onnx"}})
```

The licences of the backbone and of the data apply.
"""


def write_folder(
    folder: Path,
    backbone: Backbone,
    head: SentenceEncoder,
    calibration: Sequence[Sequence[int]] | None,
    facts: Mapping[str, Any],
    layers: Sequence[int] = (-1,),
) -> None:
    """Write a whole encoder's folder; an earlier one of the same name is kept as `NAME.previous`.

    Args:
        folder: the folder.
        backbone: tokenizer and transformer.
        head: hidden states to sentence embeddings.
        calibration: tokenized sentences for int8; None writes float32.
        facts: where the encoder comes from, for config.json.
        layers: hidden states that the head takes, concatenated.

    Raises:
        InputError: if there is another kind of folder, or the tokenizer is not one of the tokenizers library.
    """
    check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as temporary:
        written = Path(temporary) / folder.name
        written.mkdir()
        graph, path = EncoderGraph(backbone.model, head, backbone.max_length, layers), written / "encoder.onnx"
        if calibration is None:
            export(graph, path)
        else:
            export_int8(graph, path, calibration)
        _write_tokenizer(written, backbone)
        _write_sentence_transformers_files(written, head.config.output_dim)
        shutil.copyfile(MODULE, written / MODULE.name)
        own = {
            "format": small_encoder.FORMAT,
            "output_dim": head.config.output_dim,
            "max_length": backbone.max_length,
            "precision": "float32" if calibration is None else "int8",
            "has_token_states": graph.has_token_states,
            "sha256": {name: hashlib.sha256((written / name).read_bytes()).hexdigest() for name in small_encoder.FILES},
            **facts,
        }
        transformer = {name: value for name, value in backbone.model.config.to_diff_dict().items() if name[0] != "_"}
        _write_json(written / "config.json", {**transformer, "hidden_size": head.config.output_dim, "small_encoder": own})
        make_readable(written)
        previous = folder.with_name(f"{folder.name}.previous")
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            os.replace(folder, previous)
        os.replace(written, folder)


def check_replaceable(folder: Path) -> None:
    """Check that a folder does not exist, or is an encoder's.

    Raises:
        InputError: otherwise.
    """
    if folder.exists() and not (folder / small_encoder.FILES[0]).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("exists and is not a small encoder's, expected a new folder", path=folder)


def write_card(folder: Path, scores: Mapping[str, Mapping[str, Mapping[str, float | int]]]) -> None:
    """Write an encoder's README.md: what it is made from, and its scores by pairs and encoder, which also go to config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    own = config["small_encoder"]
    own["scores"] = scores
    _write_json(path, config)
    rows = [
        [pairs, encoder, *(f"{values[name]:.4f}" for name in METRICS if name in values)]
        for pairs, by_encoder in scores.items()
        for encoder, values in by_encoder.items()
    ]
    titles = [
        "pairs",
        "encoder",
        *(METRICS[name] for name in METRICS if any(name in v for e in scores.values() for v in e.values())),
    ]
    made_from = [own["backbone"], f"layers {own['layers']}", f"{own['vocabulary']:,} tokens"]
    has_layers = config.get("num_hidden_layers") != 0
    if has_layers and "intermediate_size" in config:
        made_from.append(f"{config['intermediate_size']:,} inner dimensions")
    if has_layers and config.get("hidden_act") == "relu":
        made_from.append("ReLU")
    data = list(own.get("data", []))
    for name, edited in (("variants", "sentence of the text"), ("pair_variants", "sentence of the pairs")):
        if own.get(name):
            data.append(f"{own[name]} random edits of each {edited}")
    card = CARD.format(
        output_dim=own["output_dim"],
        mib=size_of(folder) / 2**20,
        made_from=", ".join(made_from),
        teachers=", ".join(own.get("teachers", [])) or "none",
        data="; ".join(data) or "none",
        precision=own["precision"],
        max_length=own["max_length"],
        scores=markdown(titles, rows) if rows else "",
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_tokenizer(folder: Path, backbone: Backbone) -> None:
    backend = getattr(backbone.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"the tokenizer of {backbone.name} is not one of the tokenizers library, so it needs transformers")
    contents = json.loads(backend.to_str())
    contents["truncation"] = contents["padding"] = None
    text = json.dumps(contents, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    special = {name: str(token) for name, token in backbone.tokenizer.special_tokens_map.items() if isinstance(token, str)}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": backbone.max_length, **special}
    _write_json(folder / "tokenizer_config.json", settings)


def _write_sentence_transformers_files(folder: Path, width: int) -> None:
    """What sentence-transformers needs to load the graph: it pools the hidden states itself."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    _write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    _write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
