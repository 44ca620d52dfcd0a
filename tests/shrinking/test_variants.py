"""Variants are edits of the sentences they come from."""

from __future__ import annotations

from difflib import SequenceMatcher

import numpy as np

from shrinking.variants import BLOCK, variants_file, with_variants

rng = np.random.default_rng(0)
SENTENCES = [" ".join(f"w{word}" for word in rng.integers(100_000, size=length)) for length in rng.integers(3, 20, size=300)]


def is_edit(variant: str, sentence: str) -> bool:
    """Whether words were left out, exchanged one for one, or the sentence begins the variant."""
    ours, whole = variant.split(), sentence.split()
    blocks = SequenceMatcher(None, ours, whole, autojunk=False).get_matching_blocks()
    left_out = sum(block.size for block in blocks) == len(ours)
    exchanged = len(ours) == len(whole)
    return left_out or exchanged or ours[0] == whole[0]


def test_each_sentence_is_there_once_and_its_variants_are_edits_of_it():
    written = list(with_variants(SENTENCES, 4))
    assert len(written) == 5 * len(SENTENCES)
    originals, variants = written[: len(SENTENCES)], written[len(SENTENCES) :]
    assert sorted(originals) == sorted(SENTENCES) and originals != SENTENCES
    known = {word for sentence in SENTENCES for word in sentence.split()}
    for number, variant in enumerate(variants):
        assert is_edit(variant, originals[number // 4])
        assert set(variant.split()) <= known
    kept = [
        len(set(own.split()) & set(originals[i // 4].split())) / len(originals[i // 4].split()) for i, own in enumerate(variants)
    ]
    assert 0.5 < np.mean(kept) < 0.9  # alike, but not the same
    assert not any(own == originals[number // 4] for number, own in enumerate(variants))


def test_variants_are_always_the_same_and_differ_from_each_other():
    first = list(with_variants(SENTENCES, 3))
    assert first == list(with_variants(SENTENCES, 3))
    assert len(set(first)) > 0.8 * len(first)


def test_short_sentences_have_no_variants_and_blocks_are_complete():
    many = ["one two"] * (BLOCK + 10)
    assert list(with_variants(many, 2)) == many


def test_no_variant_is_the_sentence_itself():
    assert "the the the" not in list(with_variants(["the the the"], 50))[1:]


def test_a_file_has_one_sentence_a_line_and_is_written_once(tmp_path):
    parts = [(["a  line\nwith a break", "a line with a break", " "], 2), (["three more words", "a line with a break"], 3)]
    path = variants_file(parts, tmp_path)
    lines = path.read_text().splitlines()
    assert lines[0] == "a line with a break" and lines[3] == "three more words" and len(lines) == 1 + 2 + 1 + 3
    assert set(" ".join(lines[:3]).split()) == {"a", "line", "with", "break"}  # words of its own part only
    path.write_text("kept")
    assert variants_file([(["a line with a break"], 2), (["three more words"], 3)], tmp_path).read_text() == "kept"
    assert variants_file([(["a line with a break"], 3), (["three more words"], 3)], tmp_path) != path
