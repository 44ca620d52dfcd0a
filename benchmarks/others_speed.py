"""Speed of sentence-transformers' ONNX backend and of model2vec, in an environment of their own; prints JSON.

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
from typing import Any

import numpy as np
import torch
from model2vec.distill import distill
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

REPEATS, SENTENCES, SINGLE = 7, 1280, 128


def main(backbone: str, test_file: str) -> None:
    """Time the backbone in torch, in ONNX float32 and int8, and distilled by model2vec, in turn.

    Prints a list of name, MiB, Spearman on the test pairs, and the speeds in batches of 32 and one at a time, torch = 1.
    """
    torch.set_num_threads(1)
    with open(test_file, encoding="utf-8", newline="") as file:
        first, second, labels = zip(*csv.reader(file), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        models: dict[str, Any] = {"torch": SentenceTransformer(backbone, device="cpu")}
        exported = SentenceTransformer(backbone, backend="onnx", model_kwargs={"export": True, "session_options": options})
        exported.save_pretrained(folder)
        export_dynamic_quantized_onnx_model(exported, "avx512_vnni", folder)
        files = {"ONNX, float32": "onnx/model.onnx", "ONNX, int8": "onnx/model_qint8_avx512_vnni.onnx"}
        sizes = {"torch": 0.0}
        for name, path in files.items():
            models[name] = SentenceTransformer(folder, backend="onnx", model_kwargs={"file_name": path, "session_options": options})
            sizes[name] = Path(folder, path).stat().st_size / 2**20
        models["model2vec"] = distill(backbone)
        sizes["model2vec"] = models["model2vec"].embedding.nbytes / 2**20
        quality = {}
        for name, model in models.items():
            a, b = (np.asarray(model.encode(list(side))) for side in (first, second))
            cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            quality[name] = float(spearmanr(cosine, [float(label) for label in labels]).statistic)
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
        speed = {key: medians["torch", key[1]] / value for key, value in medians.items()}
        print(
            json.dumps([[name, sizes[name], quality[name], speed[name, 32], speed[name, 1]] for name in models if name != "torch"])
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
