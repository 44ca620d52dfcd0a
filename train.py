"""Train a sentence encoder and compare it with mean pooling.

Examples:

    python train.py                                              on data/*.dat, or else on the starter pairs
    python train.py --data my_folder                             on the challenge's .dat files
    python train.py --data train.csv --validation dev.csv        on text
    python train.py --preset distilled --data train.csv --validation dev.csv --teacher teacher
    python train.py --preset published --phases.graded.epochs 40
    python train.py --run_dir runs/mine --resume                 go on with a run that was stopped
    torchrun --nproc-per-node 2 train.py                         in two processes
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from common.cli import PAIRS_HELP, command_to_resume, make_parser, output_file, output_folder, run_command
from common.devices import choose_device
from common.errors import InputError
from data import DATA, STARTER_DEV, STARTER_TEST, STARTER_TRAIN, PairData, open_pairs, split_by_groups
from evaluation.checkpoint import save_encoder
from evaluation.scores import score, score_table
from model import mean_pooling
from tokens.dat_files import has_dat_files
from tokens.text_files import labels_note
from training import processes
from training.distillation import with_teacher_targets
from training.recipe import Recipe, add_recipe_arguments, parse_recipe
from training.reports import data_facts, draw_history, write_history, write_metrics, write_recipe
from training.resume import SAVE_SECONDS, SavedRun, identity_of_run
from training.trainer import Trained, Trainer

FEW_PAIRS = 30  # a rank correlation of fewer is mostly chance


@dataclass(frozen=True)
class Run:
    """One training run: on which pairs, by which recipe, and where its files go.

    `test` is read once, at the end. `split_from` is a hash of the pairs that training and validation were parted from, by the seed.
    """

    recipe_name: str
    training: PairData
    validation: PairData
    test: PairData | None
    out: Path
    folder: Path
    split_from: str | None


def main() -> None:
    """Command line."""
    parser = make_parser("train.py", __doc__)
    parser.add_argument("--data", nargs="+", help=f"training pairs: {PAIRS_HELP} (default: data/*.dat, else the starter pairs)")
    parser.add_argument("--validation", nargs="+", help="pairs to choose the best weights by (default: part of the training pairs)")
    parser.add_argument("--test", nargs="+", help="pairs to report on at the end")
    parser.add_argument("--teacher", help="folder that teacher.py made, to learn its similarities too; with --preset distilled")
    parser.add_argument("--out", help="the checkpoint (default: model.bin; runs/starter/model.bin for the starter pairs)")
    parser.add_argument("--run_dir", help="folder for history, figures, curve (default: runs/ and date, time and preset)")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --run_dir that was stopped, to the same result"
    )
    parser.add_argument("--save_seconds", type=float, default=SAVE_SECONDS, help="how often a run is saved within an epoch")
    parser.add_argument("--cache_dir", help="folder for token stores, instead of beside their sources")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    # The encoder is small: a second thread saves a quarter of the time on an idle machine, but on a busy one the threads
    # wait for each other and training takes ten times as long.
    parser.add_argument("--threads", type=int, default=1, help="threads for the arithmetic; more helps only on an idle machine")
    add_recipe_arguments(parser)
    recipe, options = parse_recipe(parser, sys.argv[1:])
    if options.threads < 1:
        raise InputError(f"--threads is {options.threads}, expected 1 or more")
    device = processes.local_device(choose_device(options.device))
    processes.join(device)
    with processes.one_after_another():
        run = open_run(options, recipe)
    torch.set_num_threads(options.threads)  # after the data: a backbone that encodes text uses all of them
    identity = identity_of_run(recipe, run.training, run.validation, device.type)
    saved = SavedRun(run.folder, identity, save_seconds=options.save_seconds, command=command_to_resume(run.folder))
    if options.resume and (summary := saved.finished()):
        print(f"The run in {run.folder}/ is finished: {summary}")
    else:
        trained = train_with_progress(recipe, run, device, saved, options.resume)
        if processes.is_first():
            finish(recipe, run, trained, saved)
    processes.leave()


def open_run(options, recipe: Recipe) -> Run:  # type: ignore[no-untyped-def]
    """Find the data that the options name, or the default data."""
    on_starter = options.data is None and not has_dat_files(DATA)
    if options.resume and not (options.run_dir or on_starter):
        raise InputError("--resume needs to know which run: give its folder with --run_dir")
    folder = output_folder(options.run_dir or ("runs/starter" if on_starter else f"runs/{time.strftime('%Y%m%d-%H%M%S')}"))
    read = [*(options.data or []), *(options.validation or []), *(options.test or []), options.config]
    out = output_file(options.out or (folder / "model.bin" if on_starter else "model.bin"), read)
    if on_starter:
        print("No .dat files in data/: training on the starter pairs, a demonstration.")
    default = [STARTER_TRAIN] if on_starter else [DATA]
    training = open_pairs(options.data or default, cache_dir=options.cache_dir)
    if note := labels_note(training.labels):
        print(note)
    validation = test = set_aside = split_from = None
    if options.validation or on_starter:
        validation = open_pairs(options.validation or [STARTER_DEV], cache_dir=options.cache_dir)
    if options.test or on_starter:
        test = open_pairs(options.test or [STARTER_TEST], cache_dir=options.cache_dir)
    if validation is None:
        split_from = training.identity()
        training, validation = split_by_groups(training, recipe.validation_fraction, recipe.seed)
        set_aside = {"fraction": recipe.validation_fraction, "seed": recipe.seed}
    for name, pairs in (("validation", validation), ("test", test)):
        if pairs is not None and pairs.tokens.dim != training.tokens.dim:
            raise InputError(f"{name} tokens are {pairs.tokens.dim} wide, expected {training.tokens.dim} as the training tokens")
    if options.teacher:
        training = with_teacher_targets(training, Path(options.teacher), set_aside)
    return Run(Path(options.config or options.preset).stem, training, validation, test, out, folder, split_from)


def train_with_progress(recipe: Recipe, run: Run, device: torch.device, saved: SavedRun, resume: bool) -> Trained:
    """Train, with a progress bar that shows the loss, the validation Spearman and the time left; the run is saved on the way."""
    trainer = Trainer(recipe, run.training, run.validation, device=device)
    for note in trainer.left_out:
        print(f"{note[0].upper()}{note[1:]}.")
    parameters = sum(parameter.numel() for parameter in trainer.encoder.parameters())
    print(f"{len(run.training):,} training pairs, {len(run.validation):,} validation pairs, {parameters:,} parameters, {device}")
    if len(run.validation) < FEW_PAIRS:
        print(f"{len(run.validation)} validation pairs are too few to choose weights by: give --validation, or more pairs.")
    print(f"Mean pooling, before training: validation Spearman {trainer.baseline.spearman:.4f}")
    print(saved.begin(trainer, resume))
    is_quiet = None if processes.is_first() else True
    bar = tqdm(total=trainer.total_batches, initial=trainer.batches_done, unit="batch", disable=is_quiet)
    with bar, saved.keeping(trainer):

        def show(phase: str, loss: float, spearman: float) -> None:
            bar.set_description(phase, refresh=False)
            bar.set_postfix(loss=f"{loss:.3f}", validation=f"{spearman:.4f}", refresh=False)
            bar.update()

        trainer.on_step = show
        return trainer.run()


def finish(recipe: Recipe, run: Run, trained: Trained, saved: SavedRun) -> None:
    """Write the checkpoint and the run's files, and print the encoder beside mean pooling."""
    seconds = saved.seconds
    before = run.out.read_bytes() if run.out.exists() else None
    size = save_encoder(run.out, trained.encoder)
    write_history(run.folder / "history.csv", trained.history)
    write_recipe(run.folder / "recipe.yaml", recipe)
    draw_history(run.folder / "training.png", trained, recipe.phases)
    scores = {"validation": {"mean pooling": asdict(trained.baseline), "encoder": asdict(trained.validation)}}
    if run.test is not None:
        candidates = {"mean pooling": mean_pooling(run.test.tokens.dim), "encoder": trained.encoder}
        scores["test"] = {name: asdict(score(encoder, run.test)) for name, encoder in candidates.items()}
    parts = {"training": run.training, "validation": run.validation, "test": run.test}
    metrics = {
        "recipe": run.recipe_name,
        "seed": recipe.seed,
        **scores,
        "epoch": trained.epoch,
        "fell_back": trained.fell_back,
        "seconds": round(seconds, 1),
        "bytes": size,
        "parameters": sum(parameter.numel() for parameter in trained.encoder.parameters()),
        "training_pairs": len(run.training),
        "split_from": run.split_from,
        "data": {name: data_facts(pairs) for name, pairs in parts.items() if pairs is not None},
        "tokens": dict(run.training.tokens.description),
        "teacher": run.training.targets is not None,
    }
    write_metrics(run.folder / "metrics.json", metrics)
    saved.finish(f"{run.out}, weights of epoch {trained.epoch}, validation Spearman {trained.validation.spearman:.4f}")
    print_result(recipe, run, trained, scores, size, seconds)
    if before not in (None, run.out.read_bytes()):
        print(f"The {run.out.name} that was there is kept as {run.out.name}.previous.")


def print_result(  # type: ignore[type-arg]
    recipe: Recipe, run: Run, trained: Trained, scores: dict[str, dict[str, dict]], size: int, seconds: float
) -> None:
    """The comparison that every run ends with."""
    columns = {
        name: {f"{part} {metric}": scores[part][name][metric] for part in scores for metric in ("spearman", "pearson")}
        for name in ("mean pooling", "encoder")
    }
    if trained.diverged_in:
        print(f"The loss of epoch {trained.diverged_in} was not a number; a lower --learning_rate may help.")
    print(f"\n{score_table(columns)}\n")
    last = list(scores)[-1]
    before, after = (scores[last][name]["spearman"] for name in ("mean pooling", "encoder"))
    if trained.fell_back:
        print("Training did not do better than mean pooling on the validation pairs, so the result is mean pooling itself.")
    elif recipe.start == "centred":  # small vectors: mean pooling is what they are made from, and no alternative
        few, many = trained.encoder.config.output_dim, run.training.tokens.dim
        print(f"On the {last} pairs: your encoder with {few} numbers {after:.4f}, mean pooling with {many} numbers {before:.4f}.")
    else:
        verdict = "your encoder" if after >= before else "your encoder, which is worse than doing nothing,"
        print(f"On the {last} pairs: mean pooling {before:.4f}, {verdict} {after:.4f} (weights of epoch {trained.epoch}).")
    print(f"{run.out}: {size / 2**20:.2f} MiB of at most 20, trained in {seconds:.0f} s. Curve, history, recipe: {run.folder}/")


if __name__ == "__main__":
    run_command(main)
