"""Laws of MA and EL_n: golden cases by hand, and the definitions run naively with
`subject.generate` from every beginning."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import letters
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.memorization.recitation import (
    by_row,
    extraction_likelihood,
    levels,
    overlap,
    passages,
    recitation,
    reduction,
    retention,
)
from interp.subject.stepwise import plain_forward


class Next(torch.nn.Module):
    """A model whose most likely next token depends on the last token alone."""

    def __init__(self, table: dict[int, int], vocabulary: int = 12) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(vocabulary, 4)
        self.blocks = torch.nn.ModuleList([tiny.Block(4, 2, causal=True)])
        self.register_buffer("table", torch.zeros(vocabulary, dtype=torch.long))
        for token, following in table.items():
            self.table[token] = following

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        _ = self.blocks[0](self.embed(tokens))
        return torch.nn.functional.one_hot(self.table[tokens], len(self.table)).float()


def follows(table: dict[int, int]) -> interp.Subject:
    module = Next(table)
    anatomy = interp.Anatomy({"": ("blocks.0",)}, {})
    return interp.Subject(module, anatomy, plain_forward)


def ma(subject: interp.Subject, *sequences: list[int], **options: Any) -> list[float]:
    batch = interp.Batch.pad(list(sequences))
    return recitation(subject, replace(batch, **options), ngrams=())["ma"].tolist()


def test_ma_by_hand():
    """Tokens 5 7 7 9, of which 7, 7 and 8 are most likely after each beginning."""

    class Fixed(Next):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            said = torch.tensor([7, 7, 8, 0])[: tokens.shape[1]].expand(len(tokens), -1)
            return torch.nn.functional.one_hot(said, 12).float()

    subject = follows({})
    subject.module = Fixed({})
    assert ma(subject, [5, 7, 7, 9]) == pytest.approx([2 / 3])


def test_the_example_of_the_paper():
    """Table 1: 6 of 11 predictions are right; nine overlaps of 3-grams."""
    row = [1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8]
    subject = follows({1: 2, 2: 3, 3: 4, 4: 5, 5: 6, 6: 7, 7: 1, 8: 1})
    assert ma(subject, row) == pytest.approx([0.5455], abs=1e-4)
    overlaps = [2 / 9, 2 / 8, 1 / 7, 1 / 6, 1 / 5, 0, 0, 0, 0]
    assert sum(overlaps) == pytest.approx(0.9817, abs=1e-4)
    assert np.mean(overlaps) == pytest.approx(0.1091, abs=1e-4)
    # continuations with these overlaps, after each beginning of twelve tokens
    truth = list("bcdefghijkl")
    shared = [2, 2, 1, 1, 1, 0, 0, 0, 0]
    recited = []
    for start, count in enumerate(shared):
        known = truth[start : start + count + 2] if count else []
        recited.append([*known, *"?" * (len(truth) - start - len(known))])
    assert extraction_likelihood(recited, truth, 3) == pytest.approx(0.1091, abs=1e-4)


def test_el_by_hand():
    recited = ["bcxe", "cde", "dx"]
    assert extraction_likelihood(recited, "bcde", 2) == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert extraction_likelihood(["12x", "23"], "123", 2) == 0.75


@pytest.mark.parametrize(
    ("generated", "truth", "expected"),
    [("bcbcb", "bcdef", 0.5), ("aaaaa", "aabcd", 1.0), ("ab", "ab", 1.0), ("ab", "ba", 0.0)],
)
def test_repeats_of_what_was_generated_all_count(generated, truth, expected):
    assert overlap(generated, truth, 2) == expected


def test_an_overlap_needs_an_ngram():
    with pytest.raises(ValueError, match="1 tokens have no 2-gram: expected at least 2 tokens"):
        overlap("a", "a", 2)


def test_secrets_of_a_row_are_averaged():
    """Predictions 1 2 9 against 1 2 3, then 4; the second secret is perfect."""
    subject = follows({0: 1, 1: 2, 2: 9, 3: 4, 5: 6, 6: 7})
    batch = interp.Batch(
        torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]]),
        scored=torch.tensor([[False, True, True, True, True, False, True, True]]),
    )
    frame = recitation(subject, batch, ngrams=(2, 10))
    assert frame["ma"].tolist() == [0.75, 1.0]
    assert frame["exact"].tolist() == [False, True]
    assert frame["el_10"].tolist() == [0.0, 1.0]
    assert levels(frame)["ma"] == 0.875
    assert by_row(frame)["el_2"].tolist() == [frame["el_2"].mean()]


@pytest.mark.parametrize(("wrong", "expected"), [(False, 1.0), (True, 0.0)])
def test_a_secret_shorter_than_n(wrong, expected):
    subject = follows({0: 1, 1: 2, 2: 9 if wrong else 3, 3: 4})
    frame = recitation(subject, interp.Batch(torch.arange(5)[None]), ngrams=(10,))
    assert frame["el_10"].tolist() == [expected]


def test_rows_count_the_same_however_many_secrets_they_have():
    subject = follows({0: 1, 2: 9, 3: 9})
    scored = torch.zeros(2, 5, dtype=torch.bool)
    scored[0, 1] = True
    scored[1, [1, 3]] = True
    batch = interp.Batch(torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]), scored=scored)
    assert levels(recitation(subject, batch, ngrams=()))["ma"] == pytest.approx((1 + 0.5) / 2)


def naive(subject: interp.Subject, batch: interp.Batch, n: int) -> list[float]:
    """EL_n from its definition: every beginning is continued by `subject.generate`."""
    found = []
    for passage in passages(batch):
        row = batch.tokens[passage.row : passage.row + 1]
        truth = row[0, passage.start : passage.stop].tolist()
        recited = []
        for start in range(passage.start, passage.stop):
            length = passage.stop - start
            recited.append(subject.generate(row[:, :start], length)[0].tolist())
        found.append(extraction_likelihood(recited, truth, n))
    return found


def spotted(batch: interp.Batch, seed: int) -> interp.Batch:
    """The batch with some of its tokens scored, at least one in each row."""
    generator = torch.Generator().manual_seed(seed)
    scored = torch.rand(batch.tokens.shape, generator=generator) < 0.6
    scored[:, batch.prompt] = True
    return replace(batch, scored=scored)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_equals_greedy_decoding_from_every_beginning(name, cached):
    subject = tiny.subject(name)
    if not cached:
        subject = interp.Subject(subject.module, subject.anatomy, subject.forward)
    batch = tiny.batch(name, rows=3, length=10, prompt=2, padded=True)
    # rows that the model gets right for a while
    start = batch.tokens[:, :4]
    known = subject.generate(start, 3)
    batch.tokens[:, 4:7] = known
    with tiny.untouched(subject.module):
        for tokens in (batch, spotted(batch, 3)):
            frame = recitation(subject, tokens, ngrams=(1, 2, 3), batch_size=2)
            for n in (1, 2, 3):
                assert frame[f"el_{n}"].tolist() == naive(subject, tokens, n)
    assert frame["ma"].between(0.01, 0.99).any()


def test_holds_under_an_intervention():
    subject = tiny.subject("llama")
    batch = tiny.batch("llama", rows=2, length=8)
    plan = interp.Zero(subject.units("blocks.1.neurons", range(20)))
    before = recitation(subject, batch, ngrams=(2,))
    with subject.intervened(plan):
        batch.tokens[:, 3:] = subject.generate(batch.tokens[:, :3], 5)
        frame = recitation(subject, batch, ngrams=(2,))
        assert frame["el_2"].tolist() == naive(subject, batch, 2)
        assert frame["ma"].min() >= 5 / 7
    assert frame["ma"].mean() > before["ma"].mean()


def test_a_model_that_knows_everything_is_not_decoded(monkeypatch):
    texts = letters.noise(3, 16, seed=5)
    subject = letters.subject()
    batch = subject.encode_all(texts)
    interp.fit(subject, [batch] * 60, 60, lr=1e-2)
    monkeypatch.setattr(interp.memorization.recitation, "_decode", None)
    frame = recitation(subject, batch)
    assert frame[["ma", "el_3", "el_5", "el_10"]].to_numpy().min() == 1.0
    log_p = -subject.losses(batch).sum(1)
    assert frame["log_p"].tolist() == pytest.approx(log_p.tolist(), rel=1e-5)


@given(extra=st.integers(1, 5), seed=st.integers(0, 20))
def test_padding_changes_nothing(extra, seed):
    subject = tiny.subject("llama", torch.float64)
    batch = spotted(tiny.batch("llama", rows=2, length=7, seed=seed, padded=True), seed)
    assert batch.mask is not None
    wider = interp.Batch(
        torch.nn.functional.pad(batch.tokens, (0, extra), value=3),
        mask=torch.nn.functional.pad(batch.mask, (0, extra)),
        scored=torch.nn.functional.pad(batch.scored, (0, extra), value=True),
    )
    plain, padded = (recitation(subject, each, ngrams=(1, 2)) for each in (batch, wider))
    assert np.allclose(plain.drop(columns="exact"), padded.drop(columns="exact"))


@given(st.data())
def test_passages_are_the_runs_of_what_counts(data):
    width = data.draw(st.integers(2, 12))
    scored = data.draw(st.lists(st.booleans(), min_size=width, max_size=width))
    prompt = data.draw(st.integers(0, width - 1))
    batch = interp.Batch(
        torch.zeros(1, width, dtype=torch.long), prompt, scored=torch.tensor([scored])
    )
    if not any(scored[prompt:]):
        with pytest.raises(ValueError, match="row 0 has no token that counts"):
            passages(batch)
        return
    found = passages(batch)
    covered = [n for passage in found for n in range(passage.start, passage.stop)]
    assert covered == [n for n in range(prompt, width) if scored[n]]
    assert all(first.stop < second.start for first, second in pairwise(found))


def test_what_cannot_be_continued_is_refused():
    var = tiny.subject("var")
    batch = tiny.image_batch("var")
    assert recitation(var, batch, ngrams=())["ma"].between(0, 1).all()
    with pytest.raises(ValueError, match=r"several tokens together.*pass ngrams=\(\)"):
        recitation(var, batch)
    llama = tiny.subject("llama")
    with pytest.raises(ValueError, match="sees nothing before the first token"):
        recitation(llama, tiny.batch("llama", prompt=0))
    with pytest.raises(ValueError, match=r"ngrams=\(0,\): expected numbers of tokens"):
        recitation(llama, tiny.batch("llama"), ngrams=(0,))
    rar = tiny.image_batch("rar", prompt=3)
    frame = recitation(tiny.subject("rar"), rar, ngrams=(2,))
    assert frame["el_2"].between(0, 1).all()


def test_reduction_and_retention_of_the_paper():
    names = ("ma", "el_3", "el_5", "el_10")
    before = dict(zip(names, (96.26, 84.71, 81.07, 75.15), strict=True))
    after = dict(zip(names, (8.49, 4.93, 3.99, 3.68), strict=True))
    assert 100 * reduction(before, after) == pytest.approx(93.89, abs=0.01)
    tasks = ("pass_1", "pass_5", "pass_10")
    able = dict(zip(tasks, (61.07, 73.61, 77.23), strict=True))
    still = dict(zip(tasks, (61.65, 73.41, 76.69), strict=True))
    assert 100 * retention(able, still) == pytest.approx(99.99, abs=0.01)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({}, {}, "before has nothing and after nothing: expected the same measures"),
        ({"ma": 1.0}, {"el_3": 1.0}, "before has ma and after el_3"),
        ({"ma": 0.0}, {"ma": 0.0}, "ma was 0.0 before.*leave this measure out"),
    ],
)
def test_what_has_no_ratio_is_refused(before, after, message):
    with pytest.raises(ValueError, match=message):
        reduction(before, after)
