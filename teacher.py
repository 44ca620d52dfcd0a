"""Fine-tune a whole backbone on the training pairs, as a teacher for distillation.

Examples:

    python teacher.py --data train.csv --validation dev.csv --out teacher
    python teacher.py --out teacher --resume      resume a stopped run
    python train.py --preset imitation --data train.csv --validation dev.csv --teacher small teacher

The text of the pairs must be known: a table, a store made from one, or .dat files with the sentences. The
trained encoder works without the teacher. STS-B takes about five minutes on two cores.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from typing import Any

from jsonargparse import Namespace

from common.cli import PAIRS_HELP, command_to_resume, make_parser, output_folder, run_command, settings_among
from common.devices import choose_device
from common.errors import InputError
from common.files import absolute_if_exists
from data import check_labelled, open_pairs, open_text, split_by_groups
from evaluation.scores import warn_of_shared
from tokens.backbone import DEFAULT_BACKBONE, DEFAULT_MAX_LENGTH, Backbone
from tokens.text_pairs import TextPairs, add_read_arguments, read_options
from training.recipe import Recipe
from training.resume import SavedRun, arguments_to_save, with_saved_arguments
from training.teacher import LOSSES, TeacherSettings, TeacherTrainer
from training.teacher_folder import FACTS, save_teacher
from training.whole_encoder import WholeEncoder

OUT = "teacher"
SAVE_SECONDS = 300.0  # the state of a large backbone is gigabytes
FILES = ("data", "validation", "cache_dir", "backbone")  # options whose values are paths


def main() -> None:
    """Command line."""
    arguments = with_saved_arguments(sys.argv[1:], "out", OUT)
    options = parse_options(arguments)
    out = output_folder(options.out)
    saved = SavedRun(out, save_seconds=options.save_seconds, command=command_to_resume(out, [], "out"), place="out")
    if (out / "config.json").exists() and not (options.resume and saved.path.exists()):  # an earlier teacher, or any other model
        raise InputError("holds a model already; give another --out, or --resume if its run was stopped", path=out)
    with saved.hold(arguments_to_save(arguments, options, FILES, "out"), resume=options.resume):
        training, validation, set_aside = open_parts(options)
        settings = settings_among(options, TeacherSettings)
        saved.identity = identity_of(options, settings, training, validation)
        if options.resume and (summary := saved.finished(out / FACTS)):
            print(f"The run in {out}/ is finished: {summary}")
            return
        teacher = WholeEncoder(
            Backbone(options.backbone, "-1", max_length=options.max_length, device=options.device), bfloat16=options.bfloat16
        )
        trainer = TeacherTrainer(teacher, training, validation, settings)
        warn_of_shared("validation", validation.count_shared(training), len(validation))
        print(saved.begin(trainer, options.resume), flush=True)
        saved.run(trainer)
        scores = trainer.history[trainer.best]
        facts = {
            "backbone": options.backbone,
            "loss": settings.loss,
            "seed": settings.seed,
            "validation_spearman": scores.spearman,
            "validation_mse": scores.mse,
            "set_aside": set_aside,
        }
        save_teacher(out, teacher, facts)
        saved.finish(f"validation Spearman {scores.spearman:.4f}")
    reached = f"validation Spearman {scores.spearman:.4f}, error {scores.mse:.4f}"
    if trainer.best == 0:
        print("No epoch was better than the backbone before training: the teacher is that backbone.")
    print(f"{options.out}: {reached}. Next: python train.py --preset imitation --teacher small {shlex.quote(options.out)}")


def parse_options(arguments: list[str]) -> Any:
    """All options, checked."""
    parser = make_parser("teacher.py", __doc__)
    parser.add_argument("--data", nargs="+", required=True, help=f"training pairs with their text: {PAIRS_HELP}")
    parser.add_argument("--validation", nargs="+", help="pairs that choose the best epoch (default: the part train.py sets aside)")
    parser.add_argument("--out", default=OUT, help="folder to write, also for the state of the run")
    parser.add_argument("--resume", action="store_true", help="resume the stopped run in --out, to the same result")
    parser.add_argument("--save_seconds", type=float, default=SAVE_SECONDS, help="seconds between saves within an epoch")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="Hugging Face model name or local folder")
    parser.add_argument("--max_length", type=int, default=DEFAULT_MAX_LENGTH, help="tokens per sentence; longer ones are truncated")
    parser.add_argument(
        "--loss", choices=list(LOSSES), default="squared", help="squared: cosines close to label / 5; cosent: ranks only"
    )
    parser.add_argument("--epochs", type=int, default=2, help="passes over the training pairs")
    parser.add_argument("--batch_size", type=int, default=32, help="pairs per batch")
    parser.add_argument("--learning_rate", type=float, default=3e-5, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="random seed, also of the validation split")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, mps")
    parser.add_argument("--bfloat16", action="store_true", help="half precision, faster if the hardware supports it")
    parser.add_argument("--cache_dir", help="folder for token stores (default: next to the data)")
    add_read_arguments(parser)
    options = parser.parse_args(arguments)
    if options.batch_size < 2 or options.epochs < 1 or options.learning_rate <= 0:
        raise InputError("expected --batch_size 2 or more, --epochs 1 or more, --learning_rate above 0")
    options.backbone, options.device = absolute_if_exists(options.backbone), str(choose_device(options.device))
    return options


def open_parts(options: Namespace) -> tuple[TextPairs, TextPairs, dict[str, float] | None]:
    """The training and validation pairs; if the latter are not given, how they were set aside."""
    reading, set_aside = read_options(options), None
    if options.validation:
        training, validation = (
            open_text(paths, options=reading, cache_dir=options.cache_dir) for paths in (options.data, options.validation)
        )
    else:  # the part that train.py sets aside, which opens pairs with their tokens
        set_aside = {"fraction": Recipe.validation_fraction, "seed": options.seed}
        pairs = open_pairs(options.data, options=reading, cache_dir=options.cache_dir)
        check_labelled(pairs, options.data[0])
        training, validation = (part.text() for part in split_by_groups(pairs, Recipe.validation_fraction, options.seed))
    if len(training) < options.batch_size:
        raise InputError(f"{len(training)} training pairs, expected at least one batch of {options.batch_size}")
    return training, validation, set_aside


def identity_of(options: Namespace, settings: TeacherSettings, training: TextPairs, validation: TextPairs) -> dict[str, Any]:
    """Everything that must be the same when a run resumes."""
    identity = {name: options[name] for name in ("backbone", "max_length", "bfloat16", "device")} | asdict(settings)
    pairs = {"training pairs": training.identity(), "validation pairs": validation.identity()}
    return json.loads(json.dumps(identity | pairs))


if __name__ == "__main__":
    run_command(main)
