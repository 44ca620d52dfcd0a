"""Convert text pairs to token embeddings with any transformer backbone.

    python prepare_data.py train.csv dev.csv test.csv --out stores/stsb

Writes stores/stsb/train.store and so on, which train.py, evaluate.py and visualize_tsne.py read.
--pooled stores one sentence embedding per sentence instead, to train compression.
"""

from __future__ import annotations

from pathlib import Path

from common.cli import make_parser, output_folder, run_command
from common.devices import choose_device
from common.errors import InputError
from data import check_labelled, open_pairs, write_dat_pairs
from tokens.backbone import DEFAULT_BACKBONE, DEFAULT_MAX_LENGTH
from tokens.tables import is_on_hub
from tokens.text_pairs import add_read_arguments, read_options
from tokens.text_store import BackboneSettings, text_store

SPLITS = {"train": "train", "validation": "dev", "test": "test"}
STSB = {f"hf:sentence-transformers/stsb:{split}": name for split, name in SPLITS.items()}


def _stem(source: str) -> str:
    """The name of a table's store: the file's without its endings, the dataset's and split's of the hub."""
    if is_on_hub(source):
        return source.removeprefix("hf:").replace("/", "-").replace(":", "-")
    return Path(source).name.split(".")[0] if not Path(source).is_dir() else Path(source).name


def main() -> None:
    """Command line."""
    parser = make_parser("prepare_data.py", __doc__)
    parser.add_argument("files", nargs="*", help="tables of text pairs: CSV, TSV, JSON lines, Parquet, hf:NAME[/CONFIG][:SPLIT]")
    parser.add_argument("--source", choices=["stsb"], help="STS-B from the Hugging Face hub: short for its three splits")
    parser.add_argument("--out", default="stores", help="folder for the stores")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="hub name or local folder")
    parser.add_argument(
        "--layers",
        help="hidden states to concatenate per token, numbered as in transformers; 'word' is the input word embeddings: "
        "2,-1 or word,-1 (default: -1, or 2,-1 for a 384-dimensional backbone without --pooled)",
    )
    parser.add_argument(
        "--pooled", action="store_true", help="store the mean of a sentence's tokens, normalised, as its only token"
    )
    parser.add_argument("--max_length", type=int, default=DEFAULT_MAX_LENGTH, help="tokens per sentence; longer ones are truncated")
    parser.add_argument("--device", default="cpu", help="device of the backbone: cpu, cuda, mps")
    parser.add_argument("--dat", action="store_true", help="also write the challenge's four .dat files, in a folder per input file")
    add_read_arguments(parser)
    options = parser.parse_args()
    reading = read_options(options)
    out = output_folder(options.out)
    files = STSB if options.source else {file: _stem(file) for file in options.files}
    if not files or (options.source and options.files):
        raise InputError(f"{'no input' if not files else 'two kinds of input'}: give either files of text pairs or --source stsb")
    names = list(files.values())
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two files would be written to {out / repeated[0]}.store; prepare them separately")
    device = str(choose_device(options.device))
    backbone = BackboneSettings(options.backbone, options.layers, options.max_length, device, options.pooled)
    for source, name in files.items():
        store = out / f"{name}.store"
        text_store(source, backbone, options=reading, store_path=store)
        pairs = open_pairs([store])
        print(f"{store}: {len(pairs):,} pairs, {len(pairs.tokens):,} sentences, {pairs.tokens.lengths.sum():,} tokens")
        if options.dat:
            check_labelled(pairs, source)
            write_dat_pairs(out / name, pairs)
            print(f"{out / name}/: four .dat files")


if __name__ == "__main__":
    run_command(main)
