"""A page in the browser: compare two sentences, rank lines or search a corpus, see a map of the starter sentences.

Examples:

    python demo.py
    python demo.py --index vectors    search a corpus that encode.py wrote
"""

from __future__ import annotations

import html
import os
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.cli import make_parser, run_command
from common.errors import InputError
from common.optional import import_optional
from common.starter import STARTER_DEV, STARTER_TEST
from corpus.nearest import Corpus
from evaluation.calibration import Calibration
from evaluation.explanation import Explanation
from evaluation.maps import METHODS, interactive_map, project_to_2d
from evaluation.metrics import mae
from text import SMALL, Match, TextEncoder
from tokens.text_pairs import MAX_LABEL, TextPairs, read_text_pairs

if TYPE_CHECKING:
    import gradio
    import plotly.graph_objects as go

EXAMPLE = ("A man plays a guitar on the street.", "Somebody makes music outside.")
EXAMPLE_QUERY = "How do I get rid of a stain?"
EXAMPLE_LINES = """Salt and cold water take red wine out of a tablecloth.
The tablecloth is red.
Rinse the spot right away, before it dries.
Trains to the coast leave every hour.
A stainless steel pan lasts for decades."""
MAX_HEAT_MAP = 48  # tokens; a larger table is unreadable


class Demo:
    """The page's contents as HTML: an encoder, compared with mean pooling of the same tokens where there are any."""

    def __init__(self, encoder: TextEncoder, corpus: Corpus | None = None) -> None:
        """Calibrate cosines to labels 0-5 on the starter validation pairs and measure the error on the test pairs.

        Args:
            encoder: the encoder to show.
            corpus: sentences to search, encoded by it.
        """
        self.corpus = corpus
        self.validation, self.test = read_text_pairs(STARTER_DEV), read_text_pairs(STARTER_TEST)
        self.pairs = TextPairs(
            self.validation.first + self.test.first,
            self.validation.second + self.test.second,
            np.concatenate([self.validation.labels, self.test.labels]),
        )
        self.encoder, name = encoder, "small encoder" if encoder.is_small else "trained encoder"
        self.encoders = {name: encoder} | ({} if encoder.is_small else {"mean pooling": _mean_pooling_of(encoder)})
        embeddings = {who: each.encode(self.pairs.first + self.pairs.second) for who, each in self.encoders.items()}
        self.embeddings = embeddings[name]
        self.calibrations = {who: self._calibrate(own) for who, own in embeddings.items()}

    def _calibrate(self, embeddings: np.ndarray) -> tuple[Calibration, float]:
        """The calibration from cosine to label, and its mean absolute error on the test pairs."""
        first, second = np.split(embeddings, 2)
        validation, test = np.split((first * second).sum(1), [len(self.validation)])
        calibration = Calibration(validation, self.validation.labels)
        return calibration, mae(calibration.predict(test), self.test.labels)

    def compare(self, first: str, second: str) -> str:
        """The similarity of two sentences, 0-5, the cosine of each encoder, and the tokens shaded by how much they count."""
        if not first.strip() or not second.strip():
            return '<p class="note">Enter two sentences.</p>'
        explanation = self.encoder.explain(first, second)
        cosines = {who: float(each.similarity(first, second)) for who, each in self.encoders.items()}
        labels = {who: float(self.calibrations[who][0].predict(np.array([cosine]))[0]) for who, cosine in cosines.items()}
        rows = "".join(f"<tr><td>{who}</td><td>{cosines[who]:.3f}</td><td>{labels[who]:.1f}</td></tr>\n" for who in cosines)
        label = next(iter(labels.values()))
        errors = ", ".join(
            f"{error:.1f} for the {who}".replace("the mean", "mean") for who, (_, error) in self.calibrations.items()
        )
        return f"""
<div class="score" id="score">{label:.1f} <small>out of {MAX_LABEL:g}</small></div>
<div class="scale" aria-hidden="true"><div style="width: {label / MAX_LABEL:.0%}"></div></div>
<table class="figures"><tr><th></th><th>cosine</th><th>similarity</th></tr>
{rows}</table>
{self._truncation_note([first, second])}
<div>How much each token counts (darker means more):</div>
{_shaded(explanation.first, explanation.first_weights)}
{_shaded(explanation.second, explanation.second_weights)}
{_heat_map(explanation)}
<p class="note">Similarity is the cosine calibrated to the labels, 0-5, of {len(self.validation)} starter pairs. On {len(self.test)}
held-out pairs its mean absolute error is {errors}.</p>"""

    def rank(self, query: str, lines: str) -> str:
        """Lines ranked by their cosine with a query."""
        documents = [line.strip() for line in lines.splitlines() if line.strip()]
        if not query.strip() or not documents:
            return '<p class="note">Enter a query and at least one line to rank.</p>'
        note = "Each score is the cosine with the query."
        return self._truncation_note([query, *documents]) + _ranks(self.encoder.rank(query, documents), note)

    def search(self, query: str) -> str:
        """The sentences of the corpus nearest to a query."""
        assert self.corpus is not None
        if not query.strip():
            return '<p class="note">Enter a query.</p>'
        note = f"The nearest of {len(self.corpus):,} sentences. Each score is the cosine with the query."
        return self._truncation_note([query]) + _ranks(self.corpus.search(query), note)

    def _truncation_note(self, sentences: Sequence[str]) -> str:
        truncated, limit = self.encoder.truncated(sentences), self.encoder.max_length
        if not truncated:
            return ""
        return f'<p class="note">Only the first {limit} tokens are used ({truncated} of {len(sentences)} texts truncated).</p>'

    def map(self) -> go.Figure:
        """An interactive map of the starter sentences of both parts."""
        title = f"{len(self.embeddings)} starter sentences"
        return interactive_map({title: project_to_2d(self.embeddings)}, self.pairs, METHODS["tsne"])


def _mean_pooling_of(encoder: TextEncoder) -> TextEncoder:
    """Mean pooling of the tokens that an encoder pools."""
    from model import mean_pooling  # here because a small encoder needs no torch

    return TextEncoder(mean_pooling(encoder.backbone.dim), backbone=encoder.backbone)


def _ranks(matches: Sequence[Match], note: str) -> str:
    """Ranked documents as a list, with a note below."""
    rows = ((match.similarity, match.document or f"[{getattr(match, 'id', match.index)}]") for match in matches)
    items = "".join(f"<li><b>{similarity:.3f}</b><span>{html.escape(text)}</span></li>" for similarity, text in rows)
    return f'<ol class="ranks">{items}</ol><p class="note">{note}</p>'


def _shaded(tokens: Sequence[str], weights: np.ndarray) -> str:
    """A sentence's tokens, darker for a larger weight."""
    spans = (
        f'<span style="background: {_colour(weight / np.abs(weights).max())}" title="{weight:.1%}">{html.escape(token)}</span>'
        for token, weight in zip(tokens, weights, strict=True)
    )
    return f'<div class="tokens">{" ".join(spans)}</div>'


def _heat_map(explanation: Explanation) -> str:
    """The share of each token pair as a collapsible table; empty if the sentences are too long for one."""
    shares = explanation.shares
    if max(shares.shape) > MAX_HEAT_MAP:
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
<p class="note">What each pair of tokens contributes: rows are the first sentence, columns the second. Orange raises the cosine,
blue lowers it, and all cells add up to {explanation.similarity:.3f}.</p>
<div class="shares"><table><thead><tr><th></th>{columns}</tr></thead>{"".join(rows)}</table></div></details>"""


def _colour(strength: float) -> str:
    """White at 0, orange at 1, blue at -1; dark text is readable on all of them."""
    extreme = np.array([251, 146, 60] if strength > 0 else [96, 165, 250])
    red, green, blue = (255 + abs(strength) * (extreme - 255)).astype(int)
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
            lines = gr.Textbox(
                EXAMPLE_LINES, label="Lines to rank", lines=6, max_lines=20, elem_id="lines", visible=demo.corpus is None
            )
            rank = gr.Button("Rank", variant="primary", elem_id="rank")
            own, inputs = (demo.rank, [query, lines]) if demo.corpus is None else (demo.search, [query])
            ranked = gr.HTML(own(*(field.value for field in inputs)), elem_id="ranked")
            gr.on([rank.click, query.submit], own, inputs, ranked, show_progress="minimal")
        with gr.Tab("Map") as tab:
            gr.Markdown("Hover over a point, or tap it, to read its sentence.")
            plot = gr.Plot(show_label=False, elem_id="map")
            tab.select(cache(demo.map), None, plot)
    return page


def start(demo: Demo, host: str = "127.0.0.1", port: int | None = None) -> str:
    """Start the server in the background and return the page's address; without a port, the first free one from 7860."""
    gr = _import_gradio()
    # System fonts: gradio's default ones are loaded from another server.
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = build_page(demo).launch(
            server_name=host,
            server_port=port,
            theme=theme,
            css_paths=Path(__file__).with_name("demo.css"),
            footer_links=[],
            share=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        place = host if port is None else f"{host}:{port}"
        reason = str(error).split(". ", 1)[0]  # what follows is advice about gradio's own options
        raise InputError(f"cannot serve the page at {place}: {reason}; choose another --host or --port") from error
    return address


def _import_gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    return import_optional("gradio", "the demo needs gradio: pip install -r requirements-demo.txt")


def main() -> None:
    """Command line."""
    parser = make_parser("demo.py", __doc__)
    parser.add_argument("--model", help="small encoder's folder, or checkpoint (default: small/, or what encoded the corpus)")
    parser.add_argument("--index", help="folder that encode.py wrote: search it instead of pasted lines")
    parser.add_argument("--backbone", help="hub name or local folder (default: the one the checkpoint was trained on)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 makes the page reachable from other machines")
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    options = parser.parse_args()
    if options.port is not None and not 0 < options.port < 2**16:
        raise InputError(f"--port is {options.port}, expected 1 to 65535")
    if options.index and (options.backbone or options.device != "auto"):
        raise InputError("--index says which backbone encodes questions, on the CPU; leave out --backbone and --device")
    _import_gradio()  # fail before the encoder is loaded
    corpus = Corpus(options.index, model=options.model) if options.index else None
    encoder = corpus.encoder if corpus else TextEncoder(options.model or SMALL, backbone=options.backbone, device=options.device)
    demo = Demo(encoder, corpus)
    print(f"{start(demo, options.host, options.port)} (stop with Ctrl-C)", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    run_command(main)
