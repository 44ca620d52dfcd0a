"""Make a small text-to-embedding encoder from a backbone; it runs in int8 and without torch.

Examples:

    python shrink.py --layers 0,2,4 --vocabulary 23000 --text sentences.txt --out mine
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
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from common.cli import PAIRS_HELP, command_to_resume, make_parser, output_folder, run_command, settings_among
from common.devices import choose_device
from common.errors import InputError
from common.files import absolute_if_exists, size_of
from common.starter import STARTER_DEV
from data import open_text
from evaluation.metrics import spearman
from evaluation.scores import METRICS, Scores, cosines, score_embeddings, score_table, warn_of_shared
from model import mean_pooling
from portable.small_encoder import SmallEncoder
from shrinking.folder import check_replaceable, write_card, write_folder
from shrinking.layers import keep_layers, narrow_layers, parse_layers, use_relu
from shrinking.targets import SentenceTargets, open_states, sentence_sets
from shrinking.trainer import Settings, ShrinkTrainer
from shrinking.variants import variants_file
from shrinking.vocabulary import choose_tokens, cut_vocabulary
from tokens.backbone import DEFAULT_BACKBONE, DEFAULT_MAX_LENGTH, Backbone
from tokens.sentence_files import SentenceFiles, sample
from tokens.text_pairs import TextPairs, add_read_arguments, read_options
from tokens.token_store import short_hash
from training.reports import write_metrics
from training.resume import SavedRun, arguments_to_save, with_saved_arguments
from training.teacher_folder import identity_of_teacher, read_teacher, save_teacher, teacher_folders
from training.whole_encoder import WholeEncoder

SAVE_SECONDS = 300.0
CALIBRATION = 512  # sentences
IN_FLOAT, SMALL = "in float32", "this encoder"
Embedded = tuple[torch.Tensor, torch.Tensor]  # both sides of pairs, `(n, K)` each
FILES = ("text", "data", "validation", "test", "teacher", "cache_dir", "out", "backbone")  # options whose values are paths


@dataclass(frozen=True)
class Inputs:
    """What an encoder is made from: text without labels, and pairs."""

    text: SentenceFiles | None
    training: TextPairs | None
    validation: TextPairs
    test: TextPairs | None


def main() -> None:
    """Command line."""
    arguments = with_saved_arguments(sys.argv[1:])
    options = parse_options(arguments)
    torch.set_num_threads(options.threads)
    folder, out = output_folder(options.run_dir), output_folder(options.out)
    check_replaceable(out)
    output_folder(cache_of(options))
    saved = SavedRun(folder, save_seconds=options.save_seconds, command=command_to_resume(folder, []))
    with saved.hold(arguments_to_save(arguments, options, FILES), resume=options.resume):
        inputs = open_inputs(options)
        saved.identity = identity_of(options, inputs)
        if options.resume and (summary := saved.finished(out / "encoder.onnx")):
            print(f"The run in {folder}/ is finished: {summary}")
            return
        for name, part in (("validation", inputs.validation), ("test", inputs.test)):
            if part and inputs.training:
                warn_of_shared(name, part.count_shared(inputs.training), len(part))
        backbone = open_backbone(options)
        before = scores_of(embed_parts(WholeEncoder(backbone), inputs), inputs)
        source, student = build(options, inputs, backbone)
        imitated = None if is_whole(options) else source
        sets, cache = sentence_sets(inputs.text, inputs.training), cache_of(options)
        states, targets = {}, None
        learns_tokens = options.token_weight > 0 and options.layers != "none"
        if imitated and options.cache_states and (learns_tokens or not options.teacher):
            states = {own.name: open_states(source, own, cache) for own in sets}
        if options.teacher:
            targets = SentenceTargets([Path(teacher) for teacher in options.teacher], sets, source, cache)
        settings = settings_among(options, Settings)
        text = inputs.text if imitated or targets else None  # otherwise there is nothing to learn from it
        trainer = ShrinkTrainer(student, imitated, text, inputs.training, inputs.validation, targets, settings, states)
        print(saved.begin(trainer, options.resume))
        saved.run(trainer)
        report(options, inputs, student, before, saved)


def parse_options(arguments: list[str]) -> Any:
    """All options, checked."""
    parser = make_parser("shrink.py", __doc__)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="Hugging Face model name or local folder")
    parser.add_argument("--layers", default="0,2,4", help="layers to keep, from 0: 0,2,4, or all, or none for static embeddings")
    parser.add_argument("--vocabulary", type=PositiveInt, help="tokens to keep (default: all)")
    parser.add_argument(
        "--intermediate_size", type=PositiveInt, help="inner dimensions of each feed-forward block to keep (default: all)"
    )
    parser.add_argument("--relu", action="store_true", help="ReLU in place of GELU: faster in int8; needs much text")
    parser.add_argument("--train_words", action="store_true", help="train word embeddings too: helps with much text or one layer")
    parser.add_argument("--max_length", type=int, default=DEFAULT_MAX_LENGTH, help="tokens per sentence; longer ones are truncated")
    parser.add_argument("--text", nargs="+", help="text files without labels, one sentence a line")
    parser.add_argument("--variants", type=PositiveInt, help="random edits to add per sentence of --text")
    parser.add_argument(
        "--pair_variants", type=PositiveInt, help="random edits to add per sentence of the training pairs (default: --variants)"
    )
    parser.add_argument("--data", nargs="+", help=f"training pairs: {PAIRS_HELP}")
    parser.add_argument(
        "--validation", nargs="+", help="pairs that choose the best epoch (required with --data, otherwise the starter's)"
    )
    parser.add_argument("--test", nargs="+", help="held-out pairs, scored once at the end")
    parser.add_argument("--teacher", nargs="+", help="small, or folders of teacher.py or shrink.py; one named twice counts twice")
    parser.add_argument("--out", help="folder to write (default: small in --run_dir)")
    parser.add_argument("--run_dir", help="folder for the run's state, metrics and torch weights (default: runs/DATE-TIME)")
    parser.add_argument("--resume", action="store_true", help="resume the stopped run in --run_dir, to the same result")
    parser.add_argument("--save_seconds", type=float, default=SAVE_SECONDS, help="seconds between saves within an epoch")
    parser.add_argument(
        "--cache_dir", help="folder for embeddings of teachers, states of the backbone and variants (default: the run's)"
    )
    parser.add_argument("--cache_states", action="store_true", help="keep the backbone's token states on disk, 30 KB per sentence")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, mps")
    parser.add_argument("--threads", type=PositiveInt, default=1, help="CPU threads")
    parser.add_argument("--float32", action="store_true", help="write float32 instead of int8")
    add_read_arguments(parser)
    parser.add_class_arguments(Settings, None)
    options = parser.parse_args(arguments)
    if options.data and not options.validation:
        raise InputError("--data needs --validation, pairs that share no sentence with the training pairs")
    if options.pair_variants and not options.data:
        raise InputError("--pair_variants needs --data, the pairs whose sentences are edited")
    if options.text_batch < 1 or options.pair_batch < 2:
        raise InputError("expected --text_batch 1 or more, --pair_batch 2 or more")
    if not options.text and not options.data:
        raise InputError("nothing to learn from; give --text, --data or both")
    if options.layers == "none" and (options.relu or options.intermediate_size):
        raise InputError("--layers none leaves no feed-forward blocks; leave out --relu and --intermediate_size")
    options.validation = options.validation or [str(STARTER_DEV)]
    options.backbone, options.device = absolute_if_exists(options.backbone), str(choose_device(options.device))
    options.teacher = teacher_folders(options.teacher)
    options.run_dir = options.run_dir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}"
    options.out = options.out or f"{options.run_dir}/small"
    return options


def cache_of(options: Namespace) -> Path:
    """The folder for what later runs can use again."""
    return Path(options.cache_dir or options.run_dir)


def is_whole(options: Namespace) -> bool:
    """Whether the student keeps all of its backbone's layers as they are, so that it has only teachers to imitate."""
    return options.layers == "all" and not options.intermediate_size and not options.relu


def open_inputs(options: Namespace) -> Inputs:
    """Open all text, and check that there is something to learn."""
    reading = read_options(options)
    parts = {
        name: open_text(paths, options=reading) if (paths := options[name]) else None for name in ("data", "validation", "test")
    }
    if parts["data"] is not None and len(parts["data"]) < options.pair_batch:
        raise InputError(f"{len(parts['data'])} training pairs, expected at least --pair_batch {options.pair_batch}")
    text = SentenceFiles(options.text) if options.text else None
    training, validation = parts["data"], parts["validation"]
    assert validation is not None
    of_text, of_pairs = edits(options)
    if of_text or of_pairs:
        to_edit = ((all_sentences(text, None), of_text), (all_sentences(None, training), of_pairs))
        text = SentenceFiles([variants_file(to_edit, cache_of(options))])
    return Inputs(text, training, validation, parts["test"])


def edits(options: Namespace) -> tuple[int, int]:
    """How many random edits are added per sentence of the text, and per sentence of the training pairs."""
    of_text, of_pairs = options.variants or 0, options.pair_variants or options.variants or 0
    return (of_text if options.text else 0), (of_pairs if options.data else 0)


def identity_of(options: Namespace, inputs: Inputs) -> dict[str, Any]:
    """Everything that must be the same when a run resumes."""
    names = ("backbone", "layers", "intermediate_size", "vocabulary", "train_words", "max_length", "device", "float32")
    identity = {name: options[name] for name in names} | asdict(settings_among(options, Settings))
    identity["teacher"] = [short_hash(identity_of_teacher(Path(teacher))) for teacher in options.teacher or []]
    identity["relu"] = options.relu or None  # as in runs from before there was this option
    identity["text"] = inputs.text.identity if inputs.text else None
    for name, pairs in (("training pairs", inputs.training), ("validation pairs", inputs.validation)):
        identity[name] = pairs and pairs.identity()
    return json.loads(json.dumps(identity))


def open_backbone(options: Namespace) -> Backbone:
    """The whole backbone."""
    backbone = Backbone(options.backbone, "-1", max_length=options.max_length, device=options.device)
    if options.device == "cpu" and hasattr(backbone.model, "set_attn_implementation"):
        backbone.model.set_attn_implementation("eager")  # in half precision on a CPU it is half as slow again otherwise
    return backbone


def build(options: Namespace, inputs: Inputs, backbone: Backbone) -> tuple[WholeEncoder, WholeEncoder]:
    """Cut the backbone's vocabulary; return the backbone, to imitate, and the student made from it."""
    layers = parse_layers(options.layers, backbone.model.config.num_hidden_layers)
    if options.vocabulary and options.vocabulary < len(backbone.tokenizer):
        cut_vocabulary(backbone, choose_tokens(backbone, all_sentences(inputs.text, inputs.training), options.vocabulary))
    cut = copy.copy(backbone)
    cut.model = copy.deepcopy(backbone.model)
    if options.layers != "all":
        keep_layers(cut, layers)
    if options.intermediate_size:
        narrow_layers(cut, options.intermediate_size)
    if options.relu:
        use_relu(cut)
    student = WholeEncoder(cut, bfloat16=bool(layers), train_words=options.train_words or not layers)
    return WholeEncoder(backbone, bfloat16=True), student


def all_sentences(text: SentenceFiles | None, training: TextPairs | None) -> Iterator[str]:
    """The sentences of the text, then of the training pairs."""
    if text:
        yield from text
    if training:
        yield from training.first + training.second


def embed_parts(encoder: WholeEncoder | SmallEncoder, inputs: Inputs) -> dict[str, Embedded]:
    """An encoder's embeddings of both sides of the validation and test pairs, in float32."""
    if isinstance(encoder, WholeEncoder):
        encoder = copy.copy(encoder)
        encoder.bfloat16 = False
    parts = {"validation": inputs.validation, **({"test": inputs.test} if inputs.test else {})}
    return {
        name: (torch.as_tensor(encoder.encode(pairs.first)), torch.as_tensor(encoder.encode(pairs.second)))
        for name, pairs in parts.items()
    }


def scores_of(embedded: Mapping[str, Embedded], inputs: Inputs) -> dict[str, Scores]:
    """The scores of embeddings of the validation and test pairs."""
    return {name: score_embeddings(*sides, getattr(inputs, name).labels) for name, sides in embedded.items()}


def report(options: Namespace, inputs: Inputs, student: WholeEncoder, before: Mapping[str, Scores], saved: SavedRun) -> None:
    """Write the encoder's folder and the run's files, and print its scores next to the backbone's."""
    student.bfloat16 = False
    out, folder, seconds = Path(options.out), Path(options.run_dir), saved.seconds
    of_text, of_pairs = edits(options)
    facts = origin_of(options) | {
        "variants": of_text,
        "pair_variants": of_pairs,
        "vocabulary": len(student.backbone.tokenizer),
        "parameters": sum(parameter.numel() for parameter in student.model.parameters()),
        "seed": options.seed,
    }
    first = facts.pop("scores", {})
    calibration = None if options.float32 else student.backbone.tokenize(calibration_sentences(inputs))[0]
    write_folder(out, student.backbone, mean_pooling(student.backbone.width), calibration, facts)
    small = SmallEncoder(out)
    in_float, in_small = embed_parts(student, inputs), embed_parts(small, inputs)
    names = (Path(options.backbone).name, IN_FLOAT, SMALL)
    evaluated = dict(zip(names, (before, scores_of(in_float, inputs), scores_of(in_small, inputs)), strict=True))
    scores = {
        part: first.get(part, {}) | {who: asdict(own[part]) for who, own in evaluated.items() if not (first and own is before)}
        for part in before
    }
    write_card(out, scores)
    if student.model.config.num_hidden_layers:  # so that more can be cut from it
        origin = {name: facts[name] for name in ("backbone", "layers", "teachers", "data")}
        origin["scores"] = {part: dict([next(iter(own.items()))]) for part, own in scores.items()}
        save_teacher(folder / "encoder", student, {"origin": origin})
    agreement = spearman(cosines(*in_small["validation"]), cosines(*in_float["validation"]))
    metrics = {
        **facts,
        "settings": asdict(settings_among(options, Settings)),
        "scores": scores,
        "bytes": size_of(out),
        "agreement": agreement,
    }
    write_metrics(folder / "metrics.json", {**metrics, "seconds": round(seconds, 1)})
    part = "test" if inputs.test else "validation"
    baseline, reached = (next(iter(scores[part].values())), scores[part][SMALL])
    saved.finish(f"{out}, {part} Spearman {reached['spearman']:.4f}")
    by_encoder = {who: {name: own[who] for name, own in scores.items()} for who in scores[part]}
    columns = {
        who: {f"{part} {METRICS[name]}": own[part][name] for part in own for name in own[part] if name in METRICS}
        for who, own in by_encoder.items()
    }
    print(f"\n{score_table(columns)}\n")
    print(f"{out}/: {size_of(out) / 2**20:.1f} MiB, made in {seconds:.0f} s. Agreement with float32: {agreement:.4f} (Spearman).")
    name = next(iter(scores[part]))
    print(f"{part.capitalize()} Spearman: {name} {baseline['spearman']:.4f}, {SMALL} {reached['spearman']:.4f}.")


def origin_of(options: Namespace) -> dict[str, Any]:
    """What an encoder is made from: a backbone, its layers, teachers, data; through a backbone that was shrunk, from all before it.

    With the scores of the first backbone, if there was one before.
    """
    own = {
        "backbone": Path(options.backbone).name if Path(options.backbone).exists() else options.backbone,
        "layers": options.layers,
        "teachers": [name_of_teacher(Path(teacher)) for teacher in options.teacher],
        "data": [Path(path).name for name in ("text", "data") for path in options[name] or []],
    }
    with suppress(InputError):  # an ordinary backbone
        if origin := read_teacher(Path(options.backbone)).get("origin"):
            lists = {name: list(dict.fromkeys(origin[name] + own[name])) for name in ("teachers", "data")}
            layers = origin.get("layers", "all") if options.layers == "all" else options.layers
            return {"backbone": origin["backbone"], "layers": layers, **lists, "scores": origin["scores"]}
    return own


def name_of_teacher(folder: Path) -> str:
    """The backbone that a teacher was made from and how, or the folder's name if that is not recorded."""
    facts = read_teacher(folder)
    if origin := facts.get("origin"):
        return f"{origin['backbone']} shrunk (layers {origin.get('layers', 'all')})"
    if "backbone" not in facts:
        return folder.name
    return f"{Path(facts['backbone']).name} fine-tuned" + (f" ({facts['loss']})" if "loss" in facts else "")


def calibration_sentences(inputs: Inputs) -> list[str]:
    """Some hundred sentences of the text, or else of the pairs, for the ranges of int8."""
    size = len(inputs.text) if inputs.text else 2 * len(inputs.training or [])
    return sample(all_sentences(inputs.text, inputs.training), size, CALIBRATION)[1]


if __name__ == "__main__":
    run_command(main)
