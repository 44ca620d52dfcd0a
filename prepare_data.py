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
from common.files import write_atomically
from data import open_pairs, write_dat_pairs
from tokens.backbone import DEFAULT_BACKBONE, DEFAULT_MAX_LENGTH
from tokens.text_files import MAX_LABEL
from tokens.text_store import BackboneSettings, text_store


def load_stsb(folder: Path) -> list[Path]:
    """Download STS-B from the Hugging Face hub into `folder` as train.tsv, dev.tsv and test.tsv.

    Raises:
        InputError: if the `datasets` package is not installed or the hub cannot be reached.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError("--source stsb needs the datasets library: pip install datasets") from error
    try:
        splits = datasets.load_dataset("sentence-transformers/stsb")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load STS-B from the hub: {str(error).splitlines()[0]}") from error
    paths = []
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        path = folder / f"{name}.tsv"
        with write_atomically(path) as file:
            for row in splits[split]:
                first, second = (" ".join(row[key].split()) for key in ("sentence1", "sentence2"))
                file.write(f"{first}\t{second}\t{row['score'] * MAX_LABEL:.9g}\n".encode())
        paths.append(path)
    return paths


def main() -> None:
    """Command line."""
    parser = make_parser("prepare_data.py", __doc__)
    parser.add_argument("files", nargs="*", help="text pairs: .csv or .tsv with sentence1, sentence2, label 0-5")
    parser.add_argument("--source", choices=["stsb"], help="download STS-B from the Hugging Face hub instead")
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
    options = parser.parse_args()
    out = output_folder(options.out)
    files = load_stsb(out) if options.source else [Path(file) for file in options.files]
    if not files:
        raise InputError("no input: give files of text pairs or --source stsb")
    names = [path.name.removesuffix(".gz").rpartition(".")[0] for path in files]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two files would be written to {out / repeated[0]}.store; prepare them separately")
    device = str(choose_device(options.device))
    backbone = BackboneSettings(options.backbone, options.layers, options.max_length, device, options.pooled)
    for path, name in zip(files, names, strict=True):
        store = out / f"{name}.store"
        text_store(path, backbone, store_path=store)
        pairs = open_pairs([store])
        print(f"{store}: {len(pairs):,} pairs, {len(pairs.tokens):,} sentences, {pairs.tokens.lengths.sum():,} tokens")
        if options.dat:
            write_dat_pairs(out / name, pairs)
            print(f"{out / name}/: four .dat files")


if __name__ == "__main__":
    run_command(main)
