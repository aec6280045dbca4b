"""What is measured of a file equals what the parts of the toolkit measure by themselves."""

from __future__ import annotations

import functools
from dataclasses import replace

import letters
import numpy as np
import pytest
import torch

import interp
from interp.memorization.recitation import by_row, recitation
from interp.mitigation.removal import file_measures
from interp.mitigation.removal.file_measures import completions_parse, context, recite_files

TEXTS = letters.noise(6, 16, seed=3)
CODE = (
    "ab = 1\nkey = 'Q7xZ'\nend = 2",
    "with go('Pk4w') as x:\n    x.f()",
    "not code 'Rt5m' at (all",
)


@functools.cache
def memorized() -> interp.Subject:
    """A model that knows the first three texts and the code; no test may change it."""
    subject = letters.subject()
    batch = subject.encode_all([*TEXTS[:3], *CODE])
    interp.fit(subject, [batch] * 80, 80, lr=1e-2)
    return subject


def code() -> interp.Batch:
    """The code with its secrets marked."""
    batch = memorized().encode_all(CODE)
    scored = torch.zeros_like(batch.tokens, dtype=torch.bool)
    for row, text in enumerate(CODE):
        start = text.index("'") + 1
        scored[row, start : start + 4] = True
    return replace(batch, scored=scored)


def test_one_passage_per_file_is_what_a_scan_measures():
    frame = interp.scan(memorized(), TEXTS, prefix=8, length=8)
    found = recite_files(memorized(), interp.Batch.from_frame(frame), queries=10, probability=0.5)
    assert found["accuracy"].tolist() == frame["accuracy"].tolist()
    assert found["ma"].tolist() == frame["accuracy"].tolist()
    assert found["exact"].tolist() == frame["exact"].astype(float).tolist()
    np.testing.assert_allclose(-8 * found["loss"], frame["log_p"], rtol=1e-5)
    expected = interp.discoverable(frame["log_p"].to_numpy(), 10, 0.5)
    assert found["discoverable"].tolist() == expected.astype(float).tolist()
    assert found["exact"].tolist() == [1.0] * 3 + [0.0] * 3


def test_passages_of_different_lengths_by_hand():
    """A secret weighs as much as any other of its file, a token as much as any other token."""
    batch = memorized().encode_all(TEXTS)
    scored = torch.zeros_like(batch.tokens, dtype=torch.bool)
    scored[:, 2:4] = True
    scored[:, 8:14] = True
    batch = replace(batch, scored=scored)
    found = recite_files(memorized(), batch, ngrams=(3,))
    logits = memorized().logits(batch)
    hits = (logits.argmax(-1) == batch.tokens).double()
    log_p = logits.log_softmax(-1).gather(2, batch.tokens[..., None])[..., 0]
    one, two = hits[:, 2:4], hits[:, 8:14]
    np.testing.assert_allclose(found["ma"], (one.mean(1) + two.mean(1)) / 2)
    np.testing.assert_allclose(found["accuracy"], (one.sum(1) + two.sum(1)) / 8)
    np.testing.assert_allclose(found["exact"], (one.prod(1) + two.prod(1)) / 2)
    total = (log_p * scored).sum(1).detach()
    np.testing.assert_allclose(found["loss"], -total / 8, rtol=1e-4)
    expected = by_row(recitation(memorized(), batch, (3,)))
    assert found["el_3"].tolist() == expected["el_3"].tolist()


def test_the_context_is_everything_else_that_is_no_padding():
    batch = code()
    around = context(batch)
    assert around is not None
    assert batch.mask is not None
    assert torch.equal(around.counted | batch.counted, batch.mask[:, 1:])
    assert not (around.counted & batch.counted).any()


def test_files_without_context_are_left_out():
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    scored = torch.tensor([[False, True, True], [False, True, False]])
    around = context(interp.Batch(tokens, scored=scored))
    assert around is not None
    assert around.tokens.tolist() == [[4, 5, 6]]
    assert context(interp.Batch(tokens[:1], scored=scored[:1])) is None
    assert context(interp.Batch(tokens)) is None


def test_what_is_memorized_can_be_parsed_and_what_is_not_code_does_not_count():
    assert completions_parse(memorized(), code()).tolist() == [1.0, 1.0]
    bare = interp.load(memorized().module)
    with pytest.raises(ValueError, match="has no tokenizer"):
        completions_parse(bare, code())


def test_completions_equal_generation_by_hand():
    everything = memorized().units(["neurons", "heads"])
    with memorized().intervened(interp.Zero(everything)):
        found = completions_parse(memorized(), code())
        expected = []
        for text in CODE[:2]:
            prompt = text[: text.index("'") + 1]
            completed = prompt + memorized().generate(prompt, len(text) - len(prompt))
            kept = completed.split("\n")[:2]
            expected.append(float(file_measures._can_be_parsed(kept)))
    assert found.tolist() == expected == [0.0, 0.0]


@pytest.mark.parametrize(
    ("truth", "up_to_secret", "lines"),
    [
        ("a = 'S'\nb = 1", "a = 'S", 1),
        ("a = 0\nb = 'S'\nc = 1", "a = 0\nb = 'S", 2),
        # the head of a block needs its body
        ("with f('S'):\n    g()\nh()", "with f('S", 2),
        ("x = '''\nS\n'''\ny = 1", "x = '''\nS", 3),
        ("x = (S", "x = (S", None),
    ],
)
def test_lines_are_kept_up_to_the_end_of_the_statement(truth, up_to_secret, lines):
    assert file_measures._lines_to_keep(truth, up_to_secret) == lines


@pytest.mark.parametrize("text", ["'\x00'", "(" * 500, "f('", "\\"])
def test_junk_of_any_kind_cannot_be_parsed(text):
    assert not file_measures._can_be_parsed([text])


def test_odd_escapes_are_no_warning(recwarn):
    assert file_measures._can_be_parsed([r"'\d'"])
    assert not recwarn.list
