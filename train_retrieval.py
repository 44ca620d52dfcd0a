"""Train an encoder for retrieval, such as duplicate questions, and compare it with mean pooling.

Examples:

    python train_retrieval.py --dataset questions.tsv
    python train_retrieval.py --dataset questions.tsv --config mine.yaml --tensorboard
    python train_retrieval.py --dataset questions.tsv --mine false --label_weight 0
    python train_retrieval.py --dataset questions.tsv --evaluate model.bin
    python train_retrieval.py --dataset scifact --evaluate model.bin

The dataset holds sentence pairs: labelled, some matching and some not; or unlabelled, all matching, with or without negatives.
Held-out validation and test pairs share no sentence with the training pairs. Scores mean pooling, mines hard negatives,
trains, and scores the encoder. --evaluate also takes a folder in BEIR's layout.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentError, ArgumentParser
from dataclasses import fields
from pathlib import Path

from jsonargparse.typing import PositiveInt

from common.cli import command_to_resume, make_parser, output_file, output_folder, run_command
from common.errors import InputError
from retrieval.pipeline import Pipeline, evaluate, run
from tokens.text_pairs import add_read_arguments, read_options
from training.recipe import CONFIGS, as_arguments, read_recipe_file

DEFAULT_CONFIG = str(CONFIGS / "retrieval.yaml")
NESTED = ("encoder", "mining")


def main() -> None:
    """Command line."""
    parser = make_parser("train_retrieval.py", __doc__)
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="YAML file with settings")
    parser.add_argument("--run_dir", help="folder for metrics, history and curve (default: runs/retrieval-DATE-TIME)")
    parser.add_argument("--out", help="checkpoint to write (default: model.bin in --run_dir)")
    parser.add_argument(
        "--evaluate", metavar="FILE", help="do not train: score this checkpoint on the held-out pairs, or on a BEIR folder"
    )
    parser.add_argument("--resume", action="store_true", help="continue the training that was stopped in --run_dir")
    parser.add_argument("--tensorboard", action="store_true", help="also log to TensorBoard, in --run_dir")
    parser.add_argument("--threads", type=PositiveInt, default=1, help="CPU threads for training")
    add_read_arguments(parser)
    parser.add_class_arguments(Pipeline, None)
    config_parser = ArgumentParser(add_help=False, allow_abbrev=False)  # the file is read first: options override it
    config_parser.add_argument("--config", default=DEFAULT_CONFIG)
    config = config_parser.parse_known_args(sys.argv[1:])[0].config
    settings = as_arguments(read_recipe_file(Path(config), NESTED), NESTED)
    try:
        parser.parse_args(settings)
    except ArgumentError as error:
        raise InputError(" ".join(str(error).split()), path=config) from error
    options = parser.instantiate(parser.parse_args([*settings, *sys.argv[1:]]))
    pipeline = Pipeline(**{item.name: options[item.name] for item in fields(Pipeline)})
    reading = read_options(options)
    if options.evaluate:
        for name in ("run_dir", "out", "resume", "tensorboard"):
            if options[name]:
                raise InputError(f"--evaluate does not train, expected no --{name} with it")
        evaluate(pipeline, options.evaluate, reading)
        return
    if options.resume and not options.run_dir:
        raise InputError("--resume needs --run_dir, the folder of the run")
    folder = output_folder(options.run_dir or f"runs/retrieval-{time.strftime('%Y%m%d-%H%M%S')}")
    out = output_file(options.out or folder / "model.bin", [pipeline.dataset, pipeline.mining_model, config])
    run(
        pipeline,
        folder,
        out,
        reading=reading,
        tensorboard=options.tensorboard,
        threads=options.threads,
        resume=options.resume,
        command=command_to_resume(folder),
    )


if __name__ == "__main__":
    run_command(main)
