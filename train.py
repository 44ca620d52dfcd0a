"""Train a sentence encoder and compare it with mean pooling.

Examples:

    python train.py                                          data/*.dat, else the starter pairs
    python train.py --data my_folder                         the challenge's .dat files
    python train.py --data train.csv --validation dev.csv    text
    python train.py --data train.csv --preset imitation --teacher small
    python train.py --preset published --phases.graded.epochs 40
    python train.py --run_dir runs/mine --resume             resume a stopped run
    torchrun --nproc-per-node 2 train.py                     two processes
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt

from common.cli import PAIRS_HELP, command_to_resume, make_parser, output_file, output_folder, run_command, take_options
from common.devices import choose_device
from common.errors import InputError
from common.starter import STARTER_DEV, STARTER_TEST, STARTER_TRAIN
from data import DATA, PairData, count_shared, open_pairs, split_by_groups, store_folder
from evaluation.encoding import difference_of_tokens
from evaluation.scores import METRICS, Scores, score, score_table, selection_metric, warn_of_shared
from model import mean_pooling
from tokens.dat_files import list_dat_files
from tokens.sentence_files import SentenceFiles
from tokens.text_pairs import add_read_arguments, read_options
from training import processes
from training.distillation import with_teacher_targets
from training.recipe import Recipe, add_recipe_arguments, parse_recipe
from training.reports import data_facts, draw_history, write_history, write_metrics, write_recipe
from training.resume import SAVE_SECONDS, SavedRun, arguments_to_save, identity_of_run, read_arguments
from training.teacher_folder import teacher_folders
from training.trainer import Trainer, TrainingResult

MIN_VALIDATION_PAIRS = 30  # a rank correlation of fewer pairs is mostly noise
STARTER_RUN = "runs/starter"
FILES = ("data", "validation", "test", "teacher", "sentences", "out", "cache_dir", "config")  # options whose values are paths


@dataclass(frozen=True)
class Run:
    """A training run: its recipe, its pairs, and where its files go."""

    recipe: Recipe
    recipe_name: str
    training: PairData
    validation: PairData
    test: PairData | None
    others: dict[str, list[str]]  # absolute paths of what else it learns from: teachers, sentences
    split_from: str | None  # hash of the pairs before the validation split, None if validation pairs were given
    out: Path
    folder: Path


def main() -> None:
    """Command line."""
    arguments = with_saved_arguments(sys.argv[1:])
    recipe, options = parse_options(arguments)
    device = processes.local_device(choose_device(options.device))
    processes.join(device)
    choose_files(options)
    folder = output_folder(options.run_dir)
    saved = SavedRun(folder, save_seconds=options.save_seconds, command=command_to_resume(folder, []))
    with saved.hold(arguments_to_save(arguments, options, FILES), resume=options.resume):
        with processes.main_process_first():
            run = open_run(recipe, options, device)
        torch.set_num_threads(options.threads)  # only now: a backbone that encodes text uses all cores
        saved.identity = identity_of_run(recipe, run.training, run.validation, device.type)
        if options.resume and (summary := saved.finished(run.out, folder / "metrics.json")):
            print(f"The run in {folder}/ is finished: {summary}")
        else:
            result = train(run, device, saved, options.resume)
            if processes.is_main():
                report(run, result, saved)
    processes.leave()


def with_saved_arguments(given: list[str]) -> list[str]:
    """With --resume, the arguments that the run keeps in its folder, then the given ones, which win.

    Raises:
        InputError: if the folder is not given, or holds no run and there is no --data for a new one.
    """
    options, _ = take_options(given, ("resume", "run_dir", "data", "preset", "config"))
    if options.resume is None:
        return given
    if not options.run_dir and (options.data or list_dat_files(DATA)):
        raise InputError("--resume needs --run_dir, the folder of the stopped run")
    folder = Path(options.run_dir[-1] if options.run_dir else STARTER_RUN)
    saved = read_arguments(folder)
    if saved is None and options.run_dir and not options.data and not (folder / "state.pt").exists():
        raise InputError("no run to resume in this folder; give the folder of one, or --data to start a new one", path=folder)
    if saved and (options.preset or options.config):
        _, saved = take_options(saved, ["preset", "config"])
    return ["--run_dir", str(folder), *(saved or []), *given]


def parse_options(arguments: Sequence[str]) -> tuple[Recipe, Any]:
    """The recipe and all options of the command line."""
    parser = make_parser("train.py", __doc__)
    parser.add_argument("--data", nargs="+", help=f"training pairs: {PAIRS_HELP} (default: data/*.dat, else the starter pairs)")
    parser.add_argument("--validation", nargs="+", help="pairs that choose the best weights (default: part of the training pairs)")
    parser.add_argument("--test", nargs="+", help="held-out pairs, scored once at the end")
    parser.add_argument("--teacher", nargs="+", help="small, or folders of teacher.py or shrink.py; one named twice counts twice")
    parser.add_argument("--sentences", nargs="+", help="text without labels for the teacher, one sentence a line")
    parser.add_argument("--out", help="checkpoint to write (default: model.bin, for the starter pairs runs/starter/model.bin)")
    parser.add_argument("--run_dir", help="folder for history, metrics, recipe, curve (default: runs/DATE-TIME or runs/starter)")
    parser.add_argument("--resume", action="store_true", help="resume the stopped run in --run_dir, to the same result")
    parser.add_argument("--save_seconds", type=float, default=SAVE_SECONDS, help="seconds between saves within an epoch")
    parser.add_argument("--cache_dir", help="folder for token stores (default: next to the data)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    # The encoder is small: a second thread saves a quarter of the time on an idle machine, but on a busy one the threads
    # wait for each other and training takes ten times as long.
    parser.add_argument("--threads", type=PositiveInt, default=1, help="CPU threads; more than 1 helps only on an idle machine")
    add_read_arguments(parser)
    add_recipe_arguments(parser)
    return parse_recipe(parser, arguments)


def choose_files(options: Any) -> None:
    """Fill in what is read and written where it is not given: `.dat` files in data/, else the starter pairs."""
    if options.data is None and not list_dat_files(DATA):
        print("No .dat files in data/, training on the starter pairs.")
        options.run_dir = options.run_dir or STARTER_RUN
        options.out = options.out or f"{options.run_dir}/model.bin"
        options.data = [str(STARTER_TRAIN)]
        options.validation = options.validation or [str(STARTER_DEV)]
        options.test = options.test or [str(STARTER_TEST)]
    options.data = options.data or [str(DATA)]
    options.teacher = teacher_folders(options.teacher)
    options.out = options.out or "model.bin"
    options.run_dir = options.run_dir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}"


def open_run(recipe: Recipe, options: Any, device: torch.device) -> Run:
    """Check the checkpoint to write and open the pairs."""
    if options.sentences and not options.teacher:
        raise InputError("--sentences needs --teacher, which says what they mean; give both or neither")
    out = output_file(options.out, [*options.data, *(options.validation or []), *(options.test or []), options.config])
    reading = read_options(options)
    sources = {"training": options.data, "validation": options.validation, "test": options.test}
    pairs = {name: open_pairs(paths, options=reading, cache_dir=options.cache_dir) for name, paths in sources.items() if paths}
    training, validation, test = pairs["training"], pairs.get("validation"), pairs.get("test")
    for name, part in pairs.items():
        if part.has_labels and len(part) > 1 and part.labels.min() == part.labels.max():
            raise InputError(f"all {len(part)} {name} pairs have the label {part.labels[0]:g} (of 0 to 5), expected different ones")
        if part.tokens.dim != training.tokens.dim:
            raise InputError(f"{name} tokens have {part.tokens.dim} dimensions, expected {training.tokens.dim} as in training")
        if difference := difference_of_tokens(training.tokens.description, part.tokens.description):
            what, expected, found = difference
            raise InputError(f"{name} tokens are {'of ' if what else ''}{what}{found}, expected {expected} as in training")
    set_aside = split_from = None
    if validation is None:
        split_from = training.identity()
        training, validation = split_by_groups(training, recipe.validation_fraction, recipe.seed)
        set_aside = {"fraction": recipe.validation_fraction, "seed": recipe.seed}
    if options.teacher:
        teachers = [Path(folder) for folder in options.teacher]
        text = SentenceFiles(options.sentences) if options.sentences else None
        cache = store_folder(options.data, options.cache_dir)
        training = with_teacher_targets(training, teachers, text, cache=cache, set_aside=set_aside, device=str(device))
    name, folder = Path(options.config or options.preset).stem, Path(options.run_dir)
    others = {"teachers": options.teacher, "sentences": options.sentences or []}
    others = {what: [str(Path(path).absolute()) for path in paths] for what, paths in others.items()}
    return Run(recipe, name, training, validation, test, others, split_from, out, folder)


def train(run: Run, device: torch.device, saved: SavedRun, resume: bool) -> TrainingResult:
    """Say what is trained on, and train."""
    trainer = Trainer(run.recipe, run.training, run.validation, device=device)
    for message in trainer.skipped:
        print(f"{message[0].upper()}{message[1:]}.")
    parameters = sum(parameter.numel() for parameter in trainer.encoder.parameters())
    unlabelled = f"{unlabelled_sentences(run):,} sentences without labels, " if unlabelled_sentences(run) else ""
    pairs = f"{len(run.training):,} training pairs, {unlabelled}{len(run.validation):,} validation pairs"
    print(f"{pairs}, {parameters:,} parameters, {device}")
    if len(run.validation) < MIN_VALIDATION_PAIRS:
        print(f"{len(run.validation)} validation pairs are too few to choose the best weights; give --validation, or more pairs.")
    for name, part in (("validation", run.validation), ("test", run.test)):
        if part and processes.is_main():
            warn_of_shared(name, count_shared(part, run.training), len(part))
    error = f", error {trainer.baseline.mse:.4f}" if isinstance(trainer.baseline, Scores) else ""
    baseline = f"{METRICS[trainer.metric]} {getattr(trainer.baseline, trainer.metric):.4f}{error}"
    print(f"Mean pooling, before training: validation {baseline}")
    print(saved.begin(trainer, resume))
    return saved.run(trainer)


def unlabelled_sentences(run: Run) -> int:
    """How many sentences have no label but a teacher's embedding."""
    return 0 if run.training.targets is None else len(run.training.targets.unlabelled)


def report(run: Run, result: TrainingResult, saved: SavedRun) -> None:
    """Write the checkpoint and the run's files, and print the encoder's scores next to those of mean pooling."""
    seconds = saved.seconds
    replaced = run.out.read_bytes() if run.out.exists() else None
    size = saved.save_result(run.out, result.encoder)
    write_history(run.folder / "history.csv", result.history, result.metric)
    write_recipe(run.folder / "recipe.yaml", run.recipe)
    draw_history(run.folder / "training.png", result, run.recipe.phases)
    scores = {"validation": {"mean pooling": asdict(result.baseline), "encoder": asdict(result.validation)}}
    data = {"training": run.training, "validation": run.validation}
    if run.test is not None:
        encoders = {"mean pooling": mean_pooling(run.test.tokens.dim), "encoder": result.encoder}
        scores["test"] = {name: asdict(score(encoder, run.test)) for name, encoder in encoders.items()}
        data["test"] = run.test
    metrics = {
        "recipe": run.recipe_name,
        "seed": run.recipe.seed,
        **scores,
        "epoch": result.epoch,
        "fell_back": result.fell_back,
        "seconds": round(seconds, 1),
        "bytes": size,
        "parameters": sum(parameter.numel() for parameter in result.encoder.parameters()),
        "training_pairs": len(run.training),
        "split_from": run.split_from,
        "data": {name: data_facts(pairs) for name, pairs in data.items()},
        "tokens": dict(run.training.tokens.description),
        **run.others,
        "unlabelled_sentences": unlabelled_sentences(run),
    }
    write_metrics(run.folder / "metrics.json", metrics)
    reached = getattr(result.validation, result.metric)
    saved.finish(f"{run.out}, weights of epoch {result.epoch}, validation {METRICS[result.metric]} {reached:.4f}")
    print_scores(run, result, scores)
    if replaced not in (None, run.out.read_bytes()):
        print(f"The earlier {run.out.name} is kept as {run.out.name}.previous.")
    print(
        f"{run.out}: {size / 2**20:.2f} MiB (limit 20), trained in {seconds:.0f} s. Curve, history, metrics, recipe: {run.folder}/"
    )
    print(verdict(run, result, scores))


def print_scores(run: Run, result: TrainingResult, scores: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print a table of the scores, by pairs, encoder and metric."""
    if result.diverged_in:
        print(f"Training diverged in epoch {result.diverged_in} (the loss is not finite); try a lower --learning_rate.")
    columns = {
        name: {
            f"{pairs} {METRICS[metric]}": value
            for pairs in scores
            for metric, value in scores[pairs][name].items()
            if metric in METRICS
        }
        for name in ("mean pooling", "encoder")
    }
    print(f"\n{score_table(columns)}\n")


def verdict(run: Run, result: TrainingResult, scores: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Whether training helped: the main score of both encoders, on test if there is one, and what is worse than mean pooling."""
    worse = [
        f"{METRICS[name]} ({getattr(result.trained, name):.4f}, mean pooling {getattr(result.baseline, name):.4f})"
        for name in result.worse_in
    ]
    if result.fell_back:
        return f"Training ended below mean pooling in validation {' and '.join(worse)}, so the result is mean pooling."
    part, pairs = ("validation", run.validation) if run.test is None else ("test", run.test)
    metric = selection_metric(pairs)
    baseline, trained = (scores[part][name][metric] for name in ("mean pooling", "encoder"))
    line = f"{part.capitalize()} {METRICS[metric]}: mean pooling {baseline:.4f}, your encoder {trained:.4f}"
    line += "" if trained >= baseline else ", worse than mean pooling"
    if run.training.tokens.description.get("pooled"):  # one token per sentence: the encoder only compresses
        line += f", with {result.encoder.config.output_dim} instead of {run.training.tokens.dim} dimensions"
    line += f" (epoch {result.epoch})."
    return f"{line} On the validation pairs it is worse in {' and '.join(worse)}." if worse else line


if __name__ == "__main__":
    run_command(main)
