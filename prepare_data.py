"""Text pairs to token embeddings, with any transformer backbone.

    python prepare_data.py train.csv dev.csv test.csv --out stores/stsb

It makes stores/stsb/train.store and so on, which train.py, evaluate.py and visualize_tsne.py read.
With --pooled a sentence is one token, its sentence embedding, to make small vectors of.
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
    """Download the STS benchmark from the Hugging Face hub into `folder` as TSV files, one for each split.

    Raises:
        InputError: where the `datasets` package is not installed or the hub cannot be reached.
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
    parser.add_argument("--source", choices=["stsb"], help="download STS-B from the Hugging Face hub instead of reading files")
    parser.add_argument("--out", default="stores", help="folder for the stores")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="model on the Hugging Face hub or local folder")
    parser.add_argument(
        "--layers", type=str, help="hidden states put side by side for each token, as numbered in transformers, and 'word' "
        "for the input word embeddings: 2,-1 or word,-1 (default: 2,-1 for a backbone 384 wide, otherwise and --pooled -1)",
    )  # fmt: skip
    parser.add_argument(
        "--pooled", action="store_true", help="one token for each sentence: its sentence embedding, the mean of the layers "
        "(default: -1) at unit length",
    )  # fmt: skip
    parser.add_argument("--max_length", type=int, default=DEFAULT_MAX_LENGTH, help="longest sentence in tokens")
    parser.add_argument("--device", default="cpu", help="where the backbone runs: cpu, cuda, mps")
    parser.add_argument("--dat", action="store_true", help="write the challenge's four text files too, in a folder per file")
    options = parser.parse_args()
    out = output_folder(options.out)
    files = load_stsb(out) if options.source else [Path(file) for file in options.files]
    if not files:
        raise InputError("nothing to do: give files of text pairs, or --source stsb")
    names = [path.name.removesuffix(".gz").rpartition(".")[0] for path in files]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two files are called {name}, and both would become {out / name}.store; prepare them one by one")
    device = str(choose_device(options.device))
    backbone = BackboneSettings(options.backbone, options.layers, options.max_length, device, options.pooled)
    for path, stem in zip(files, names, strict=True):
        text_store(path, backbone, store_path=out / f"{stem}.store")
        pairs = open_pairs([out / f"{stem}.store"])
        print(f"{out / stem}.store: {len(pairs):,} pairs, {len(pairs.tokens):,} sentences, {pairs.tokens.lengths.sum():,} tokens")
        if options.dat:
            write_dat_pairs(out / stem, pairs)
            print(f"{out / stem}/: four .dat files")


if __name__ == "__main__":
    run_command(main)
