"""The trained encoder as a folder that sentence-transformers loads.

    python export.py --model model.bin --out exported

In Python, where this project need not be:

    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer("exported", trust_remote_code=True)
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from common.cli import make_parser, run_command
from common.errors import InputError
from common.files import ordinary_mode, write_text_atomically
from text import TextEncoder
from tokens.backbone import WORD_LAYER, source_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, sentence-similarity, feature-extraction]
---
# Sentence encoder

Turns a sentence into a vector of {dim} numbers and unit length; the cosine of two is their similarity.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{folder}"{trust})
vectors = model.encode(["A man plays a guitar.", "Somebody makes music."])
print(model.similarity(vectors[0], vectors[1]))
```

{code}

| | |
| --- | --- |
| backbone | {backbone} |
| hidden states | {layers} |
| encoder on top | {architecture}, {parameters:,} parameters |
| longest sentence | {max_length} tokens, longer ones are cut |

It was made with the training package for lightweight sentence encoders. The licences of the backbone and of the data it was
trained on apply.
"""
ITS_OWN_CODE = """sentence-transformers asks for `trust_remote_code=True` before it runs code that is not its own. Here that is
`sentence_module.py` and `model.py` in this folder, and nothing else."""
NO_CODE = "It consists of modules of sentence-transformers alone."


def sentence_transformer(encoder: TextEncoder) -> SentenceTransformer:
    """The same encoder as a SentenceTransformer, on the CPU; it shares the weights of the head.

    Mean pooling of one layer, with or without a projection, becomes modules of sentence-transformers; any other head becomes
    this project's own.

    Raises:
        InputError: where it takes word embeddings, which sentence-transformers does not hand on, or sentence embeddings.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    from portable.sentence_module import EncoderModule

    backbone, head = encoder.backbone, encoder.head.cpu()
    if backbone.pooled:
        raise InputError("the encoder takes sentence embeddings (--pooled), and this export hands on tokens")
    layers = backbone.layers.replace(" ", "").split(",")
    if WORD_LAYER in layers:
        raise InputError(
            f"the encoder takes word embeddings (layers {backbone.layers}), which sentence-transformers cannot give it"
        )
    plain = layers == ["-1"] and head.config.architecture in ("mean", "projection")
    source = source_of(backbone.name)
    dtype = {"dtype": torch.float32}
    states = {} if plain else {"output_hidden_states": True}
    transformer = Transformer(source, max_seq_length=backbone.max_length, model_kwargs=dtype, config_kwargs=states)
    transformer.tokenizer.padding_side = "right"
    transformer.tokenizer.pad_token = transformer.tokenizer.pad_token or transformer.tokenizer.eos_token  # some have none
    modules: list[torch.nn.Module] = [transformer]
    if plain:
        modules.append(Pooling(backbone.dim, pooling_mode="mean"))
        if isinstance(head.head, torch.nn.Linear):
            weight, bias = head.head.weight.detach(), head.head.bias.detach()
            modules.append(Dense(backbone.dim, head.config.output_dim, True, torch.nn.Identity(), weight, bias))
        modules.append(Normalize())
    else:
        modules.append(EncoderModule(head, [int(layer) for layer in layers]))
    return SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")


def export(encoder: TextEncoder, folder: Path) -> None:
    """Write a folder that `SentenceTransformer(folder)` loads, whole or not at all.

    Raises:
        InputError: where the folder is there already, or see `sentence_transformer`.
    """
    if folder.exists():
        raise InputError("exists already, expected a new folder", path=folder)
    model = sentence_transformer(encoder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        model.save_pretrained(str(temporary), create_model_card=False)
        write_text_atomically(temporary / "README.md", _card(encoder, folder.name, (temporary / "sentence_module.py").exists()))
        for path in (temporary, *temporary.rglob("*")):
            path.chmod(ordinary_mode(0o777 if path.is_dir() else 0o666))  # mkdtemp and safetensors make private ones
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _card(encoder: TextEncoder, name: str, own_code: bool) -> str:
    return CARD.format(
        dim=encoder.output_dim,
        folder=name,
        trust=", trust_remote_code=True" if own_code else "",
        code=ITS_OWN_CODE if own_code else NO_CODE,
        backbone=encoder.backbone.name,
        layers=encoder.backbone.layers,
        architecture=encoder.head.config.architecture,
        parameters=sum(parameter.numel() for parameter in encoder.head.parameters()),
        max_length=encoder.backbone.max_length,
    )


def main() -> None:
    """Command line."""
    parser = make_parser("export.py", __doc__)
    parser.add_argument("--model", default="model.bin", help="checkpoint")
    parser.add_argument("--out", default="exported", help="the folder to make")
    parser.add_argument("--backbone", help="hub name or local folder (default: the one the checkpoint was trained on)")
    parser.add_argument("--max_length", type=int, default=256, help="tokens of a sentence that are kept")
    options = parser.parse_args()
    encoder = TextEncoder(options.model, backbone=options.backbone, max_length=options.max_length, device="cpu")
    export(encoder, Path(options.out))
    print(f'{options.out}: load it with SentenceTransformer("{options.out}", trust_remote_code=True)')


if __name__ == "__main__":
    run_command(main)
