"""Make a small whole encoder, text to embedding, in int8 and without torch, from a backbone.

Examples:

    python shrink.py --layers 0,2,4 --vocabulary 23000 --text sentences.txt --out small
    python shrink.py --layers 0,2,4 --text sentences.txt --data train.csv --validation dev.csv --test test.csv --teacher teacher
    python shrink.py --backbone runs/small-six/encoder --layers none --text sentences.txt
    python shrink.py --run_dir runs/small --resume           resume a stopped run

Without --text it learns from the labelled pairs alone, without --data from text alone. The folder it writes needs onnxruntime,
tokenizers and numpy: see README.md in it.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from common.cli import PAIRS_HELP, command_to_resume, make_parser, output_folder, run_command, take_options
from common.errors import InputError
from common.files import size_of
from common.starter import STARTER_DEV
from data import open_text
from evaluation.metrics import spearman
from evaluation.scores import METRICS, Scores, cosines, score_embeddings, score_table
from model import mean_pooling
from portable.small_encoder import SmallEncoder
from shrinking.folder import check_replaceable, write_card, write_folder
from shrinking.layers import keep_layers, parse_layers
from shrinking.targets import TeacherVectors, open_states
from shrinking.trainer import Settings, ShrinkTrainer
from shrinking.vocabulary import choose_tokens, cut_vocabulary
from tokens.backbone import DEFAULT_BACKBONE, DEFAULT_MAX_LENGTH, Backbone
from tokens.sentence_files import SentenceFiles
from tokens.text_pairs import TextPairs, add_read_arguments, read_options
from training.reports import write_metrics
from training.resume import SavedRun, read_arguments
from training.whole_encoder import WholeEncoder, save_teacher

SAVE_SECONDS = 300.0
CALIBRATION = 512  # sentences
FILES = ("text", "data", "validation", "test", "teacher", "out")  # options whose values are paths


@dataclass(frozen=True)
class Inputs:
    """What an encoder is made from: text without labels, and pairs."""

    text: SentenceFiles | None
    training: TextPairs | None
    validation: TextPairs
    test: TextPairs | None


def main() -> None:
    """Command line."""
    options = parse_options(sys.argv[1:])
    torch.set_num_threads(options.threads)
    folder, out = output_folder(options.run_dir), output_folder(options.out)
    check_replaceable(out)
    saved = SavedRun(folder, save_seconds=options.save_seconds, command=command_to_resume(folder, []))
    with saved.hold(arguments_to_save(options), resume=options.resume):
        inputs = open_inputs(options)
        saved.identity = identity_of(options, inputs)
        if options.resume and (summary := saved.finished()):
            print(f"The run in {folder}/ is finished: {summary}")
            return
        source, student = build(options, inputs)
        before = validate_parts(source, inputs)
        imitated = None if is_whole(options.layers) else source
        cache, states, targets = Path(options.cache_dir or folder), None, None
        if imitated and inputs.text and options.cache_states:
            states = open_states(source, inputs.text, cache)
        if options.teacher:
            teachers = [Path(teacher) for teacher in options.teacher]
            targets = TeacherVectors(teachers, inputs.text, inputs.training, student, cache)
        settings = settings_of(options)
        trainer = ShrinkTrainer(student, imitated, inputs.text, inputs.training, inputs.validation, targets, settings, states)
        print(saved.begin(trainer, options.resume))
        saved.run(trainer)
        report(options, inputs, student, before, saved)


def parse_options(arguments: list[str]) -> Any:
    """All options; with --resume those that the run keeps in its folder, then the given ones, which win."""
    given, _ = take_options(arguments, ("resume", "run_dir"))
    if given.resume is not None and given.run_dir and (kept := read_arguments(Path(given.run_dir[-1]))):
        arguments = ["--run_dir", given.run_dir[-1], *kept, *arguments]
    parser = make_parser("shrink.py", __doc__)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="Hugging Face model name or local folder")
    parser.add_argument("--layers", default="0,2,4", help="layers to keep, from 0: 0,2,4, or all, or none for static embeddings")
    parser.add_argument("--vocabulary", type=PositiveInt, help="tokens to keep (default: all)")
    parser.add_argument("--max_length", type=int, default=DEFAULT_MAX_LENGTH, help="tokens per sentence; longer ones are truncated")
    parser.add_argument("--text", nargs="+", help="text files without labels, one sentence a line")
    parser.add_argument("--data", nargs="+", help=f"training pairs: {PAIRS_HELP}")
    parser.add_argument("--validation", nargs="+", help="pairs that choose the best epoch (default: the starter's)")
    parser.add_argument("--test", nargs="+", help="held-out pairs, scored once at the end")
    parser.add_argument("--teacher", nargs="+", help="folders written by teacher.py, one or more")
    parser.add_argument("--out", default="small", help="folder to write")
    parser.add_argument("--run_dir", help="folder for the run's state, metrics and torch weights (default: runs/DATE-TIME)")
    parser.add_argument("--resume", action="store_true", help="resume the stopped run in --run_dir, to the same result")
    parser.add_argument("--save_seconds", type=float, default=SAVE_SECONDS, help="seconds between saves within an epoch")
    parser.add_argument("--cache_dir", help="folder for what teachers and backbone give (default: the run's)")
    parser.add_argument("--cache_states", action="store_true", help="keep the backbone's token states on disk, 30 KB per sentence")
    parser.add_argument("--threads", type=PositiveInt, default=1, help="CPU threads")
    parser.add_argument("--float32", action="store_true", help="write float32 instead of int8")
    add_read_arguments(parser)
    parser.add_class_arguments(Settings, None)
    options = parser.parse_args(arguments)
    if options.data and not options.validation:
        raise InputError("--data needs --validation, pairs that share no sentence with the training pairs")
    if not options.text and not options.data:
        raise InputError("nothing to learn from; give --text, --data or both")
    options.validation = options.validation or [str(STARTER_DEV)]
    options.run_dir = options.run_dir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}"
    return options


def is_whole(layers: str) -> bool:
    """Whether the student keeps all layers: then it has no more to imitate than its teachers."""
    return layers == "all"


def settings_of(options: Namespace) -> Settings:
    """The settings of the training among the options."""
    return Settings(**{name: options[name] for name in asdict(Settings())})


def arguments_to_save(options: Namespace) -> list[str]:
    """The arguments that resume the run from any folder, all files by absolute paths."""
    arguments = []
    for name, value in vars(options).items():
        if name in ("run_dir", "resume") or value is None or value is False:
            continue
        values = value if isinstance(value, list) else [value]
        if name in FILES:
            values = [each if str(each).startswith("hf:") else Path(each).absolute() for each in values]
        arguments += [f"--{name}", *([] if value is True else map(str, values))]
    return arguments


def open_inputs(options: Namespace) -> Inputs:
    """Open all text, and check that there is something to learn."""
    reading = read_options(options)
    parts = {
        name: open_text(paths, options=reading) if (paths := options[name]) else None for name in ("data", "validation", "test")
    }
    if parts["data"] is not None and len(parts["data"]) < options.pair_batch:
        raise InputError(f"{len(parts['data'])} training pairs, expected at least --pair_batch {options.pair_batch}")
    text = SentenceFiles(options.text) if options.text else None
    validation = parts["validation"]
    assert validation is not None
    return Inputs(text, parts["data"], validation, parts["test"])


def identity_of(options: Namespace, inputs: Inputs) -> dict[str, Any]:
    """Everything that must be the same when a run resumes."""
    names = ("backbone", "layers", "vocabulary", "max_length", "teacher", "float32")
    identity = {name: options[name] for name in names} | asdict(settings_of(options))
    identity["text"] = inputs.text.identity if inputs.text else None
    for name, pairs in (("training pairs", inputs.training), ("validation pairs", inputs.validation)):
        identity[name] = pairs and pairs.identity()
    return json.loads(json.dumps(identity))


def build(options: Namespace, inputs: Inputs) -> tuple[WholeEncoder, WholeEncoder]:
    """The whole backbone, with the vocabulary that is kept, and the student cut out of it."""
    backbone = Backbone(options.backbone, "-1", max_length=options.max_length)
    if hasattr(backbone.model, "set_attn_implementation"):
        backbone.model.set_attn_implementation("eager")  # in half precision on a CPU it is half as slow again otherwise
    layers = parse_layers(options.layers, backbone.model.config.num_hidden_layers)
    if options.vocabulary and options.vocabulary < len(backbone.tokenizer):
        cut_vocabulary(backbone, choose_tokens(backbone, all_sentences(inputs), options.vocabulary))
    cut = copy.copy(backbone)
    cut.model = copy.deepcopy(backbone.model)
    if not is_whole(options.layers):
        keep_layers(cut, layers)
    return WholeEncoder(backbone, bfloat16=True), WholeEncoder(cut, bfloat16=bool(layers), train_words=not layers)


def all_sentences(inputs: Inputs) -> Any:
    """The sentences of the text, then of the training pairs."""
    if inputs.text:
        yield from inputs.text
    if inputs.training:
        yield from inputs.training.first + inputs.training.second


def validate_parts(encoder: WholeEncoder | SmallEncoder, inputs: Inputs) -> dict[str, Scores]:
    """An encoder's scores on the validation and test pairs, in float32."""
    if isinstance(encoder, WholeEncoder):
        encoder = copy.copy(encoder)
        encoder.bfloat16 = False
    parts = {"validation": inputs.validation, **({"test": inputs.test} if inputs.test else {})}
    return {name: score_embeddings(*embed_pairs(encoder, pairs), pairs.labels) for name, pairs in parts.items()}


def embed_pairs(encoder: WholeEncoder | SmallEncoder, pairs: TextPairs) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings of both sides of pairs."""
    first, second = encoder.encode(pairs.first), encoder.encode(pairs.second)
    return torch.as_tensor(first), torch.as_tensor(second)


def report(options: Namespace, inputs: Inputs, student: WholeEncoder, before: Mapping[str, Scores], saved: SavedRun) -> None:
    """Write the encoder's folder and the run's files, and print its scores next to the backbone's."""
    student.bfloat16 = False
    out, folder, seconds = Path(options.out), Path(options.run_dir), saved.seconds
    if student.model.config.num_hidden_layers:
        save_teacher(folder / "encoder", student, {"set_aside": None})
    sentences = list(inputs.text) if inputs.text else list(all_sentences(inputs))
    chosen = np.random.default_rng(0).permutation(len(sentences))[:CALIBRATION]
    calibration = student.backbone.tokenize([sentences[i] for i in chosen])[0]
    facts = {
        "backbone": options.backbone,
        "layers": options.layers,
        "vocabulary": len(student.backbone.tokenizer),
        "parameters": sum(parameter.numel() for parameter in student.model.parameters()),
        "teachers": [Path(teacher).name for teacher in options.teacher or []],
        "data": [Path(path).name for name in ("text", "data") for path in options[name] or []],
        "seed": options.seed,
    }
    write_folder(out, student.backbone, mean_pooling(student.backbone.width), None if options.float32 else calibration, facts)
    small = SmallEncoder(out)
    in_float, in_folder = validate_parts(student, inputs), validate_parts(small, inputs)
    encoders = {Path(options.backbone).name: before, "in float32": in_float, "small": in_folder}
    scores = {part: {who: asdict(own[part]) for who, own in encoders.items()} for part in before}
    write_card(out, {part: {who: own for who, own in by.items() if who != "in float32"} for part, by in scores.items()})
    size = size_of(out)
    agreement = spearman(*(cosines(*embed_pairs(encoder, inputs.validation)) for encoder in (small, student)))
    metrics = {**facts, "settings": asdict(settings_of(options)), "scores": scores, "bytes": size, "agreement": agreement}
    write_metrics(folder / "metrics.json", {**metrics, "seconds": round(seconds, 1)})
    saved.finish(f"{out}, validation Spearman {in_folder['validation'].spearman:.4f}")
    columns = {
        who: {f"{part} {METRICS[name]}": value for part in own for name, value in asdict(own[part]).items() if name in METRICS}
        for who, own in encoders.items()
    }
    print(f"\n{score_table(columns)}\n")
    print(
        f"{out}/: {size / 2**20:.1f} MiB, made in {seconds:.0f} s. Spearman of its cosines with those in float32: {agreement:.4f}."
    )
    part, name = "test" if inputs.test else "validation", Path(options.backbone).name
    print(f"{part.capitalize()} Spearman: {name} {before[part].spearman:.4f}, {out.name} {in_folder[part].spearman:.4f}.")


if __name__ == "__main__":
    run_command(main)
