"""Train an encoder to find matches: questions that ask the same, a title's text. Ends with it beside mean pooling.

Examples:

    python train_retrieval.py --dataset questions.tsv
    python train_retrieval.py --dataset questions.tsv --config mine.yaml --tensorboard
    python train_retrieval.py --dataset questions.tsv --mine false --label_weight 0
    python train_retrieval.py --dataset questions.tsv --evaluate model.bin

The dataset is labelled pairs of sentences, matching and not. Parts for validation and test are set aside so that no
sentence is in two of them; then: scores of mean pooling, mining of hard negatives, training, scores.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentError, ArgumentParser
from dataclasses import fields
from pathlib import Path

import torch
from jsonargparse.typing import PositiveInt

from common.cli import command_to_resume, make_parser, output_file, output_folder, run_command
from common.errors import InputError
from retrieval.pipeline import Pipeline, evaluate, run
from training.recipe import CONFIGS, as_arguments, read_recipe_file

NESTED = ("encoder", "mining")


def main() -> None:
    """Command line."""
    parser = make_parser("train_retrieval.py", __doc__)
    parser.add_argument("--config", default=str(CONFIGS / "retrieval.yaml"), help="settings of your own, YAML")
    parser.add_argument("--run_dir", help="folder for figures, history, curve (default: runs/retrieval- and date and time)")
    parser.add_argument("--out", help="the checkpoint (default: model.bin in that folder)")
    parser.add_argument("--evaluate", metavar="FILE", help="train nothing: scores of this checkpoint on the parts set aside")
    parser.add_argument("--resume", action="store_true", help="go on with the training in --run_dir that was stopped")
    parser.add_argument("--tensorboard", action="store_true", help="write to TensorBoard too, in that folder")
    parser.add_argument("--threads", type=PositiveInt, default=1, help="threads for the arithmetic of training")
    parser.add_class_arguments(Pipeline, None)
    first = ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", default=str(CONFIGS / "retrieval.yaml"))
    chosen, _ = first.parse_known_args(sys.argv[1:])
    settings = as_arguments(read_recipe_file(Path(chosen.config), NESTED), NESTED)
    try:
        parser.parse_args(settings)
    except ArgumentError as error:
        raise InputError(" ".join(str(error).split()), path=chosen.config) from error
    options = parser.instantiate(parser.parse_args([*settings, *sys.argv[1:]]))
    pipeline = Pipeline(**{item.name: options[item.name] for item in fields(Pipeline)})
    torch.set_num_threads(options.threads)
    if options.evaluate:
        evaluate(pipeline, options.evaluate)
        return
    if options.resume and not options.run_dir:
        raise InputError("--resume needs to know which run: give its folder with --run_dir")
    folder = output_folder(options.run_dir or f"runs/retrieval-{time.strftime('%Y%m%d-%H%M%S')}")
    out = output_file(options.out or folder / "model.bin", [pipeline.dataset, pipeline.mining_model, chosen.config])
    command = command_to_resume(folder)
    run(pipeline, folder, out, tensorboard=options.tensorboard, resume=options.resume, command=command)


if __name__ == "__main__":
    run_command(main)
