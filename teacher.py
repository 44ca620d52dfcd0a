"""Fine-tune a whole backbone on the training pairs, as a teacher for distillation.

Examples:

    python teacher.py --data train.csv --validation dev.csv --out teacher
    python train.py --preset distilled --data train.csv --validation dev.csv --teacher teacher

The text of the pairs must be known: a .csv or .tsv file, a store made from one, or .dat files with the
sentences. The trained encoder works without the teacher. STS-B takes about five minutes on two cores.
"""

from __future__ import annotations

from common.cli import PAIRS_HELP, make_parser, output_folder, run_command
from common.devices import choose_device
from common.errors import InputError
from data import open_pairs, split_by_groups
from tokens.backbone import DEFAULT_BACKBONE, DEFAULT_MAX_LENGTH, Backbone
from tokens.text_pairs import add_read_arguments, read_options
from training.recipe import Recipe
from training.teacher import LOSSES, fine_tune
from training.whole_encoder import WholeEncoder, save_teacher


def main() -> None:
    """Command line."""
    parser = make_parser("teacher.py", __doc__)
    parser.add_argument("--data", nargs="+", required=True, help=f"training pairs with their text: {PAIRS_HELP}")
    parser.add_argument("--validation", nargs="+", help="pairs that choose the best epoch (default: the part train.py sets aside)")
    parser.add_argument("--out", default="teacher", help="folder to write")
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
    options = parser.parse_args()
    reading = read_options(options)
    out = output_folder(options.out)
    pairs = open_pairs(options.data, options=reading, cache_dir=options.cache_dir)
    if options.batch_size < 2 or options.epochs < 1 or options.learning_rate <= 0:
        raise InputError("expected --batch_size 2 or more, --epochs 1 or more, --learning_rate above 0")
    set_aside = None
    if options.validation:
        training, validation = pairs, open_pairs(options.validation, options=reading, cache_dir=options.cache_dir)
    else:
        set_aside = {"fraction": Recipe.validation_fraction, "seed": options.seed}
        training, validation = split_by_groups(pairs, Recipe.validation_fraction, options.seed)
    if len(training) < options.batch_size:
        raise InputError(f"{len(training)} training pairs, expected at least one batch of {options.batch_size}")
    device = str(choose_device(options.device))
    backbone = Backbone(options.backbone, "-1", max_length=options.max_length, device=device)
    teacher = WholeEncoder(backbone, bfloat16=options.bfloat16)
    scores = fine_tune(
        teacher,
        training.text(),
        validation.text(),
        loss=options.loss,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    facts = {
        "backbone": options.backbone,
        "loss": options.loss,
        "seed": options.seed,
        "validation_spearman": scores.spearman,
        "validation_mse": scores.mse,
        "set_aside": set_aside,
    }
    save_teacher(out, teacher, facts)
    reached = f"validation Spearman {scores.spearman:.4f}, error {scores.mse:.4f}"
    print(f"{options.out}: {reached}. Next: train.py --preset distilled --teacher {options.out}")


if __name__ == "__main__":
    run_command(main)
