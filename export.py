"""Export the encoder and its backbone as a sentence-transformers model folder.

    python export.py --model model.bin --out exported

The folder loads without this project:

    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer("exported", trust_remote_code=True)

With --onnx, backbone and head become one graph in int8, without torch; the folder's README.md says how to use it:

    python export.py --model model.bin --out exported --onnx
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from common.cli import make_parser, output_folder, run_command
from common.errors import InputError
from common.files import make_readable, size_of, write_text_atomically
from common.starter import STARTER_TRAIN
from evaluation.checkpoint import DEFAULT_CHECKPOINT
from text import TextEncoder
from tokens.backbone import DEFAULT_MAX_LENGTH, WORD_LAYER, source_of
from tokens.text_pairs import read_text_pairs

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CALIBRATION = 512  # sentences
MODEL_CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, sentence-similarity, feature-extraction]
---
# Sentence encoder

Maps a sentence to a {dim}-dimensional embedding of unit length. Compare embeddings by cosine similarity.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{folder}"{trust})
embeddings = model.encode(["A man plays a guitar.", "Somebody makes music."])
print(model.similarity(embeddings[0], embeddings[1]))
```

{code}

| | |
| --- | --- |
| backbone | {backbone} |
| hidden states | {layers} |
| head | {architecture}, {parameters:,} parameters |
| max length | {max_length} tokens, longer sentences are truncated |

The licences of the backbone and of its training data apply.
"""
CUSTOM_CODE = "`trust_remote_code=True` lets sentence-transformers run `sentence_module.py` and `model.py` in this folder."
NO_CUSTOM_CODE = "The model contains only sentence-transformers modules."


def sentence_transformer(encoder: TextEncoder) -> SentenceTransformer:
    """Convert an encoder to a SentenceTransformer on the CPU, which shares the head's weights.

    Mean pooling of the last layer, with or without a projection, becomes sentence-transformers modules; any other head becomes
    an EncoderModule.

    Raises:
        InputError: if the head takes sentence embeddings or word embeddings, which a SentenceTransformer cannot give it.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    from portable.sentence_module import EncoderModule

    backbone, head = encoder.backbone, encoder.head.cpu()
    layers = _hidden_states(encoder)
    plain = layers == [-1] and head.config.architecture in ("mean", "projection")
    transformer = Transformer(
        source_of(backbone.name),
        max_seq_length=backbone.max_length,
        model_kwargs={"dtype": torch.float32},
        config_kwargs={} if plain else {"output_hidden_states": True},
    )
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
        modules.append(EncoderModule(head, layers))
    return SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")


def export(encoder: TextEncoder, folder: Path) -> None:
    """Write a folder that `SentenceTransformer(folder)` loads; nothing remains of it if writing fails.

    Raises:
        InputError: if the folder exists, or the encoder cannot be exported.
    """
    if folder.exists():
        raise InputError("exists already, expected a new folder", path=folder)
    model = sentence_transformer(encoder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        written = Path(temporary, folder.name)
        model.save_pretrained(str(written), create_model_card=False)
        has_code = (written / "sentence_module.py").exists()
        write_text_atomically(written / "README.md", _model_card(encoder, folder.name, has_code))
        make_readable(written)
        written.rename(folder)


def export_onnx(encoder: TextEncoder, folder: Path, *, int8: bool) -> None:
    """Write a folder that `SmallEncoder(folder)` loads, without torch.

    Raises:
        InputError: if the folder is not a small encoder's, or the encoder cannot be exported.
    """
    from shrinking.folder import write_card, write_folder  # here because it needs packages that a plain export does without

    backbone, head, layers = encoder.backbone, encoder.head, _hidden_states(encoder)
    starter = read_text_pairs(STARTER_TRAIN)
    sentences = list(dict.fromkeys(starter.first + starter.second))
    calibration = backbone.tokenize(sentences[:CALIBRATION])[0] if int8 else None
    facts = {
        "backbone": backbone.name,
        "layers": backbone.layers,
        "vocabulary": len(backbone.tokenizer),
        "parameters": sum(parameter.numel() for module in (backbone.model, head) for parameter in module.parameters()),
    }
    write_folder(folder, backbone, head, calibration, facts, layers)
    write_card(folder, {})


def _hidden_states(encoder: TextEncoder) -> list[int]:
    """The numbers of the hidden states that an encoder takes.

    Raises:
        InputError: if it takes sentence embeddings or word embeddings.
    """
    if encoder.backbone.pooled:
        raise InputError("the encoder takes sentence embeddings (--pooled), export supports token embeddings only")
    layers = encoder.backbone.layers.replace(" ", "").split(",")
    if WORD_LAYER in layers:
        raise InputError(
            f"the encoder takes word embeddings (layers {encoder.backbone.layers}), export supports hidden states only"
        )
    return [int(layer) for layer in layers]


def _model_card(encoder: TextEncoder, name: str, has_code: bool) -> str:
    return MODEL_CARD.format(
        dim=encoder.output_dim,
        folder=name,
        trust=", trust_remote_code=True" if has_code else "",
        code=CUSTOM_CODE if has_code else NO_CUSTOM_CODE,
        backbone=encoder.backbone.name,
        layers=encoder.backbone.layers,
        architecture=encoder.head.config.architecture,
        parameters=sum(parameter.numel() for parameter in encoder.head.parameters()),
        max_length=encoder.backbone.max_length,
    )


def main() -> None:
    """Command line."""
    parser = make_parser("export.py", __doc__)
    parser.add_argument("--model", default=DEFAULT_CHECKPOINT, help="checkpoint (default: model.bin beside the program)")
    parser.add_argument("--out", default="exported", help="folder to write")
    parser.add_argument("--backbone", help="hub name or local folder (default: the one the checkpoint was trained on)")
    parser.add_argument(
        "--max_length", type=int, help=f"tokens per sentence; longer ones are truncated (default: {DEFAULT_MAX_LENGTH})"
    )
    parser.add_argument(
        "--onnx", action="store_true", help="one graph that needs no torch, in place of a sentence-transformers folder"
    )
    parser.add_argument("--float32", action="store_true", help="with --onnx: float32 in place of int8")
    options = parser.parse_args()
    if options.float32 and not options.onnx:
        raise InputError("--float32 needs --onnx: a sentence-transformers folder is in float32 already")
    out = output_folder(options.out)
    encoder = TextEncoder(options.model, backbone=options.backbone, max_length=options.max_length, device="cpu")
    if options.onnx:
        export_onnx(encoder, out, int8=not options.float32)
        print(f"{options.out}: {size_of(out) / 2**20:.1f} MiB, see {options.out}/README.md")
        return
    export(encoder, out)
    print(f'{options.out}: load it with SentenceTransformer("{options.out}", trust_remote_code=True)')


if __name__ == "__main__":
    run_command(main)
