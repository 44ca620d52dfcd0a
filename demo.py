"""A page in the browser: two sentences compared, lines ranked by a query, the map of the starter sentences.

python demo.py
"""

from __future__ import annotations

import html
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.cli import make_parser, run_command
from common.errors import InputError
from data import STARTER_DEV, STARTER_TEST
from evaluation.calibration import Calibration
from evaluation.explanation import Explanation
from evaluation.maps import METHODS, interactive_map, to_plane
from evaluation.metrics import mae
from model import mean_pooling
from text import TextEncoder
from tokens.text_files import MAX_LABEL, TextPairs, read_text_pairs

if TYPE_CHECKING:
    import gradio
    import plotly.graph_objects as go

EXAMPLE = ("A man plays a guitar on the street.", "Somebody makes music outside.")
EXAMPLE_QUERY = "How do I get rid of a stain?"
EXAMPLE_LINES = """Red wine comes out of a tablecloth with salt and cold water.
The tablecloth is red.
Wash the mark at once, before it dries.
Trains to the coast leave every hour.
A stainless pan lasts for decades."""
LONGEST_HEAT_MAP = 48  # tokens; a larger table cannot be read
CSS = """
.score {font-size: 2.6rem; font-weight: 650; line-height: 1.1}
.score small, .note {font-size: .9rem; font-weight: 400; opacity: .75}
.scale {height: .6rem; border-radius: .3rem; background: #8884; margin: .5rem 0 1rem}
.scale div {height: 100%; border-radius: .3rem; background: #2563eb}
.note {margin: .6rem 0}
table.figures, .shares table {width: auto; border: 0 !important}
.figures {border-collapse: collapse; margin: .5rem 0 1rem}
.figures tr, .shares tr {border: 0 !important; background: none !important}
.figures td, .figures th {padding: .15rem 1.2rem .15rem 0; text-align: left; border: 0 !important}
.tokens {line-height: 2.2; margin: .2rem 0 .8rem; overflow-wrap: anywhere}
.tokens span {padding: .2rem .35rem; margin: 0 .1rem; border-radius: .3rem; color: #111; white-space: nowrap}
.shares {overflow-x: auto; margin-top: .3rem}
.shares table {border-collapse: separate; border-spacing: 1px; font-size: .8rem}
.shares th {font-weight: 400; padding: .1rem .4rem; text-align: right; border: 0 !important; white-space: nowrap}
.shares thead th {writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; padding: .3rem .1rem}
.shares td {min-width: 1.7rem; height: 1.5rem; border: 0 !important; padding: 0}
.ranks {list-style: none; padding: 0; margin: 0}
.ranks li {display: flex; gap: .8rem; padding: .35rem 0; border-top: 1px solid #8883; overflow-wrap: anywhere}
.ranks b {min-width: 3.2rem; font-variant-numeric: tabular-nums}
"""


@dataclass(frozen=True)
class Fit:
    """Labels 0-5 from an encoder's cosines, and by how much they are off on pairs that they were not fitted on."""

    calibration: Calibration
    error: float

    def label(self, cosine: float) -> float:
        """The label, 0-5, of one cosine."""
        return float(self.calibration.predict(np.array([cosine]))[0])


class Demo:
    """What the page shows, as HTML: the trained encoder beside mean pooling of the same tokens."""

    def __init__(self, encoder: TextEncoder) -> None:
        """Fit labels 0-5 to cosines on the starter pairs' validation part; measure them on the test part."""
        self.encoder = encoder
        self.baseline = TextEncoder(mean_pooling(encoder.backbone.dim), backbone=encoder.backbone)
        self.validation, self.test = read_text_pairs(STARTER_DEV), read_text_pairs(STARTER_TEST)
        self.pairs = TextPairs(
            self.validation.first + self.test.first,
            self.validation.second + self.test.second,
            np.concatenate([self.validation.labels, self.test.labels]),
        )
        vectors = encode_with_heads([encoder, self.baseline], self.pairs.first + self.pairs.second)
        self.vectors = vectors[0]
        self.fit, self.baseline_fit = map(self._fit, vectors)

    def _fit(self, vectors: np.ndarray) -> Fit:
        first, second = np.split(vectors, 2)
        validation, test = np.split((first * second).sum(1), [len(self.validation.labels)])
        calibration = Calibration(validation, self.validation.labels)
        return Fit(calibration, mae(calibration.predict(test), self.test.labels))

    def compare(self, first: str, second: str) -> str:
        """The similarity of two sentences, 0-5, both cosines, and the tokens shaded by their weight."""
        if not first.strip() or not second.strip():
            return '<p class="note">Type two sentences.</p>'
        explanation = self.encoder.explain(first, second)
        label = self.fit.label(explanation.similarity)
        baseline = float(self.baseline.similarity(first, second))
        return f"""
<div class="score" id="score">{label:.1f} <small>of {MAX_LABEL:g}</small></div>
<div class="scale" aria-hidden="true"><div style="width: {label / MAX_LABEL:.0%}"></div></div>
<table class="figures"><tr><th></th><th>cosine</th><th>similarity</th></tr>
<tr><td>trained encoder</td><td>{explanation.similarity:.3f}</td><td>{label:.1f}</td></tr>
<tr><td>mean pooling</td><td>{baseline:.3f}</td><td>{self.baseline_fit.label(baseline):.1f}</td></tr></table>
{self._cut_note([first, second])}
<div>How much pooling listens to each token:</div>
{_shaded(explanation.first, explanation.first_weights)}
{_shaded(explanation.second, explanation.second_weights)}
{_heat_map(explanation)}
<p class="note">Similarity: labels 0-5 fitted to cosines on {len(self.validation.labels)} labelled starter pairs; on
{len(self.test.labels)} others it is off by {self.fit.error:.1f} on average, mean pooling by {self.baseline_fit.error:.1f}.</p>"""

    def rank(self, query: str, lines: str) -> str:
        """Lines by their similarity to a query."""
        documents = [line.strip() for line in lines.splitlines() if line.strip()]
        if not query.strip() or not documents:
            return '<p class="note">Type a query, and one line or more to rank.</p>'
        matches = self.encoder.rank(query, documents)
        items = "".join(f"<li><b>{match.similarity:.3f}</b><span>{html.escape(match.document)}</span></li>" for match in matches)
        return f'{self._cut_note([query, *documents])}<ol class="ranks">{items}</ol><p class="note">Cosine with the query.</p>'

    def _cut_note(self, sentences: Sequence[str]) -> str:
        backbone = self.encoder.backbone
        _, cut = backbone.tokenize(sentences)
        return f'<p class="note">Cut to {backbone.max_length} tokens: {cut} of {len(sentences)} texts.</p>' if cut else ""

    def map(self) -> go.Figure:
        """The starter sentences of validation and test, each shown under the pointer."""
        title = f"{len(self.vectors)} starter sentences"
        return interactive_map({title: to_plane(self.vectors)}, self.pairs, METHODS["tsne"])


@torch.inference_mode()
def encode_with_heads(encoders: Sequence[TextEncoder], sentences: Sequence[str]) -> list[np.ndarray]:
    """What the `encode` of each gives, `(n, output_dim)`, for encoders that share a backbone: it runs once."""
    backbone = encoders[0].backbone
    vectors = [np.empty((len(sentences), encoder.output_dim), dtype=np.float32) for encoder in encoders]
    for numbers, tokens, lengths in backbone.batches(backbone.tokenize(sentences)[0], batch_size=32):
        for encoder, rows in zip(encoders, vectors, strict=True):
            rows[numbers] = encoder.head(tokens, lengths).cpu().numpy()
    return vectors


def _shaded(tokens: Sequence[str], weights: np.ndarray) -> str:
    """A sentence's tokens, darker where pooling listens more."""
    spans = (
        f'<span style="background: {_colour(weight / weights.max())}" title="{weight:.1%}">{html.escape(token)}</span>'
        for token, weight in zip(tokens, weights, strict=True)
    )
    return f'<div class="tokens">{" ".join(spans)}</div>'


def _heat_map(explanation: Explanation) -> str:
    """What each pair of tokens adds, as a table that opens; nothing for texts too long to read it."""
    shares = explanation.shares
    if max(shares.shape) > LONGEST_HEAT_MAP:
        return ""
    largest = np.abs(shares).max()
    columns = "".join(f"<th>{html.escape(token)}</th>" for token in explanation.second)
    rows = (
        f"<tr><th>{html.escape(token)}</th>"
        + "".join(f'<td style="background: {_colour(share / largest)}" title="{share:+.3f}"></td>' for share in row)
        + "</tr>"
        for token, row in zip(explanation.first, shares, strict=True)
    )
    return f"""<details><summary>Where the cosine comes from</summary>
<p class="note">What each token of the first sentence (rows) adds together with each of the second (columns).
All of them sum to {explanation.similarity:.3f}; blue takes away.</p>
<div class="shares"><table><thead><tr><th></th>{columns}</tr></thead>{"".join(rows)}</table></div></details>"""


def _colour(strength: float) -> str:
    """White at 0, orange at 1, blue at -1; dark text can be read on all of them."""
    far = np.array([251, 146, 60] if strength > 0 else [96, 165, 250])
    red, green, blue = (255 + abs(strength) * (far - 255)).astype(int)
    return f"rgb({red}, {green}, {blue})"


def build_page(demo: Demo) -> gradio.Blocks:
    """The page with its three tabs."""
    gr = _import_gradio()
    with gr.Blocks(title="Lightweight sentence encoder", analytics_enabled=False) as page:
        gr.Markdown("# Lightweight sentence encoder")
        with gr.Tab("Compare"):
            with gr.Row():
                first = gr.Textbox(EXAMPLE[0], label="First sentence", min_width=300, elem_id="first")
                second = gr.Textbox(EXAMPLE[1], label="Second sentence", min_width=300, elem_id="second")
            compare = gr.Button("Compare", variant="primary", elem_id="compare")
            compared = gr.HTML(demo.compare(*EXAMPLE), elem_id="compared")
            gr.on([compare.click, first.submit, second.submit], demo.compare, [first, second], compared, show_progress="minimal")
        with gr.Tab("Rank"):
            query = gr.Textbox(EXAMPLE_QUERY, label="Query", elem_id="query")
            lines = gr.Textbox(EXAMPLE_LINES, label="Lines to rank", lines=6, max_lines=20, elem_id="lines")
            rank = gr.Button("Rank", variant="primary", elem_id="rank")
            ranked = gr.HTML(demo.rank(EXAMPLE_QUERY, EXAMPLE_LINES), elem_id="ranked")
            gr.on([rank.click, query.submit], demo.rank, [query, lines], ranked, show_progress="minimal")
        with gr.Tab("Map") as tab:
            gr.Markdown("Touch a point, or move the pointer over it, to read its sentence.")
            plot = gr.Plot(show_label=False, elem_id="map")
            tab.select(cache(demo.map), None, plot)
    return page


def start(demo: Demo, **options: Any) -> str:
    """Start the server in the background and return the page's address; `gradio.Blocks.launch` says what else it takes."""
    gr = _import_gradio()
    # Fonts of the system: the default ones would come from another server.
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page = build_page(demo)
    quiet = {"quiet": True, "prevent_thread_lock": True, "share": False, "footer_links": []}
    try:
        return page.launch(theme=theme, css=CSS, **{**quiet, **options})[1]
    except OSError as error:
        raise InputError(f"no page at --host {options.get('server_name')} --port {options.get('server_port')}: {error}") from error


def _import_gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise InputError("the demo needs gradio: pip install -r requirements-demo.txt") from error
    return gradio


def main() -> None:
    """Command line."""
    parser = make_parser("demo.py", __doc__)
    parser.add_argument("--model", default="model.bin", help="checkpoint")
    parser.add_argument("--backbone", help="hub name or local folder (default: the one the checkpoint was trained on)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    options = parser.parse_args()
    if options.port is not None and not 0 < options.port < 2**16:
        raise InputError(f"--port is {options.port}, expected 1 to 65535")
    _import_gradio()
    demo = Demo(TextEncoder(options.model, backbone=options.backbone, device=options.device))
    print("Stop with Ctrl-C.", flush=True)
    print(start(demo, server_name=options.host, server_port=options.port), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    run_command(main)
