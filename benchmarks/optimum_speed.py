"""Speed of sentence-transformers' ONNX backend, in an environment of its own; prints a JSON list of table rows.

It imports nothing of this project: that environment has an older transformers.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

REPEATS, SENTENCES, SINGLE = 7, 1280, 128


def main(backbone: str, test_file: str) -> None:
    """Time the backbone in torch, ONNX float32 and ONNX int8, in turn."""
    torch.set_num_threads(1)
    with open(test_file, encoding="utf-8", newline="") as file:
        first, second, labels = zip(*csv.reader(file), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        models = {"torch": SentenceTransformer(backbone, device="cpu")}
        exported = SentenceTransformer(backbone, backend="onnx", model_kwargs={"export": True, "session_options": options})
        exported.save_pretrained(folder)
        export_dynamic_quantized_onnx_model(exported, "avx512_vnni", folder)
        files = {"ONNX, float32": "onnx/model.onnx", "ONNX, int8": "onnx/model_qint8_avx512_vnni.onnx"}
        sizes = {"torch": 0.0}
        for name, path in files.items():
            models[name] = SentenceTransformer(folder, backend="onnx", model_kwargs={"file_name": path, "session_options": options})
            sizes[name] = Path(folder, path).stat().st_size / 2**20
        quality = {}
        for name, model in models.items():
            a, b = (model.encode(list(side), normalize_embeddings=True) for side in (first, second))
            quality[name] = spearmanr((a * b).sum(1), [float(label) for label in labels]).statistic
        seconds: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in models for batch in (32, 1)}
        few = first[:SENTENCES][:: SENTENCES // SINGLE]
        for _ in range(REPEATS):
            for name, model in models.items():
                begin = time.perf_counter()
                model.encode(list(first[:SENTENCES]), batch_size=32)
                middle = time.perf_counter()
                for one in few:
                    model.encode([one])
                seconds[name, 32].append(middle - begin)
                seconds[name, 1].append(time.perf_counter() - middle)
        medians = {key: statistics.median(values) for key, values in seconds.items()}
        ratios = {name: [f"{medians['torch', batch] / medians[name, batch]:.1f}" for batch in (32, 1)] for name in models}
        print(json.dumps([[name, f"{sizes[name]:.1f}", f"{quality[name]:.4f}", *ratios[name]] for name in files]))


if __name__ == "__main__":
    main(*sys.argv[1:])
