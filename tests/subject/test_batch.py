"""Laws of interp.subject.batch: what is measured, rows and columns that stay together, batches of
several."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import interp
from interp.subject.batch import token_ids

few = settings(max_examples=15, deadline=None)


def some(shape: torch.Size | tuple[int, ...], seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@st.composite
def full(draw: st.DrawFn) -> interp.Batch:
    """A batch with everything that a batch can have."""
    rows, length, seed = draw(st.integers(1, 5)), draw(st.integers(3, 9)), draw(st.integers(0, 99))
    batch = tiny.batch("policy", rows, length, seed, draw(st.integers(0, 2)))
    lengths = torch.tensor(draw(st.lists(st.integers(0, length), min_size=rows, max_size=rows)))
    scored = some(batch.tokens.shape, seed)
    return replace(
        batch,
        mask=torch.arange(length) < lengths[:, None],
        scored=scored,
        groups=((0, 2), (2, length)),
    )


@st.composite
def several(draw: st.DrawFn) -> list[interp.Batch]:
    """Batches that can be joined."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        length, seed = draw(st.integers(2, 9)), draw(st.integers(0, 99))
        batch = tiny.batch(
            "gpt2", draw(st.integers(1, 3)), length, seed, draw(st.integers(0, length - 1))
        )
        if draw(st.booleans()):
            batch = replace(batch, scored=some(batch.tokens.shape, seed))
        if draw(st.booleans()):
            kept = torch.randint(
                1, length + 1, (len(batch), 1), generator=torch.Generator().manual_seed(seed)
            )
            batch = replace(batch, mask=torch.arange(length) < kept)
        found.append(batch)
    return found


def same(one: interp.Batch, tokens: Tensor, mask: Tensor, scored: Tensor, image: Tensor) -> bool:
    pairs = [
        (one.tokens, tokens),
        (one.mask, mask),
        (one.scored, scored),
        (one.conditioning["image"], image),
    ]
    return all(torch.equal(found, wanted) for found, wanted in pairs)


@given(full())
def test_what_counts_is_real_scored_and_not_given(batch: interp.Batch):
    def counted(mask: Tensor | None, scored: Tensor | None) -> list[list[bool]]:
        found = replace(batch, mask=mask, scored=scored).counted
        assert found.shape == batch.targets.shape
        return found.tolist()

    rows, places = range(len(batch)), range(batch.prompt, batch.length)
    assert counted(batch.mask, batch.scored) == [
        [bool(batch.mask[r, p] and batch.scored[r, p]) for p in places] for r in rows
    ]
    assert counted(None, batch.scored) == [[bool(batch.scored[r, p]) for p in places] for r in rows]
    assert counted(batch.mask, None) == [[bool(batch.mask[r, p]) for p in places] for r in rows]
    assert counted(None, None) == [[True for _ in places] for _ in rows]


def test_only_what_is_scored_costs_anything():
    subject, batch = tiny.subject("gpt2"), tiny.batch("gpt2", rows=3, prompt=2, padded=True)
    scored = some(batch.tokens.shape, 0)
    with torch.no_grad():
        every, found = subject.losses(batch), subject.losses(replace(batch, scored=scored))
    assert torch.equal(found, every * scored[:, 2:])
    assert 0 < found.count_nonzero() < every.count_nonzero()


@given(full(), st.data())
def test_rows_carry_all_that_is_theirs(batch: interp.Batch, data: st.DataObject):
    chosen = torch.tensor(
        data.draw(st.lists(st.integers(0, len(batch) - 1), min_size=1, max_size=7))
    )
    found = batch.rows(chosen)
    assert same(
        found,
        *(
            tensor[chosen]
            for tensor in (batch.tokens, batch.mask, batch.scored, batch.conditioning["image"])
        ),
    )
    assert (found.prompt, found.groups) == (batch.prompt, batch.groups)


@given(full(), st.integers(1, 6))
def test_parts_of_a_batch_are_the_batch(batch: interp.Batch, size: int):
    parts = list(batch.split(size))
    starts = range(0, len(batch), size)
    assert [len(part) for part in parts] == [min(size, len(batch) - start) for start in starts]
    assert same(
        batch,
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.mask for part in parts]),
        torch.cat([part.scored for part in parts]),
        torch.cat([part.conditioning["image"] for part in parts]),
    )
    assert {(part.prompt, part.groups) for part in parts} == {(batch.prompt, batch.groups)}


@given(full(), st.integers(1, 12))
def test_until_cuts_columns_and_nothing_else(batch: interp.Batch, stop: int):
    if stop <= batch.prompt:
        with pytest.raises(
            ValueError, match=f"prompt={batch.prompt} leaves nothing to predict of {stop} tokens"
        ):
            batch.until(stop)
        return
    found = batch.until(stop)
    assert same(
        found,
        batch.tokens[:, :stop],
        batch.mask[:, :stop],
        batch.scored[:, :stop],
        batch.conditioning["image"],
    )
    assert torch.equal(found.counted, batch.counted[:, : stop - batch.prompt])
    assert found.prompt == batch.prompt


def test_everything_moves_to_the_device():
    batch = replace(tiny.batch("policy"), scored=torch.ones(2, 9, dtype=torch.bool))
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in (moved.tokens, moved.scored, moved.conditioning["image"])} == {
        "meta"
    }


@given(several())
def test_what_counts_in_each_counts_in_all_joined(parts: list[interp.Batch]):
    joined = interp.Batch.join(parts)
    wanted = [
        row[counts].tolist()
        for part in parts
        for row, counts in zip(part.targets, part.counted, strict=True)
    ]
    assert [
        row[counts].tolist() for row, counts in zip(joined.targets, joined.counted, strict=True)
    ] == wanted


@few
@given(several())
def test_losses_of_a_joined_batch_are_those_of_its_parts(parts: list[interp.Batch]):
    subject, joined = tiny.subject("gpt2"), interp.Batch.join(parts)
    with torch.no_grad():
        together = subject.losses(joined).split([len(part) for part in parts])
        for part, found in zip(parts, together, strict=True):
            wanted = torch.zeros_like(found)
            wanted[:, part.prompt - joined.prompt : part.length - joined.prompt] = subject.losses(
                part
            )
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_two_batches_joined_by_hand():
    parts = [
        interp.Batch(torch.tensor([[1, 2, 3, 4]]), prompt=3),
        interp.Batch(torch.tensor([[5, 6], [7, 8]])),
    ]
    joined = interp.Batch.join(parts)
    assert joined.tokens.tolist() == [[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 0, 0]]
    assert joined.prompt == 1
    assert joined.counted.tolist() == [
        [False, False, True],
        [True, False, False],
        [True, False, False],
    ]


def test_padding_groups_and_conditioning_stay_with_their_rows():
    padded = interp.Batch.pad([[1, 2, 3], [4, 5]])
    joined = interp.Batch.join([padded, interp.Batch(torch.tensor([[6, 7, 8, 9]]))])
    assert joined.mask is not None
    assert joined.mask.sum(1).tolist() == [3, 2, 4]
    assert joined.sequences() == [[1, 2, 3], [4, 5], [6, 7, 8, 9]]

    parts = [replace(tiny.batch("policy", rows), groups=((0, 2), (2, 12))) for rows in (1, 2)]
    joined = interp.Batch.join(parts)
    assert joined.groups == parts[0].groups
    assert joined.mask is None
    for name, value in joined.conditioning.items():
        assert torch.equal(value[:1], parts[0].conditioning[name])
        assert torch.equal(value[1:], parts[1].conditioning[name])


PLAIN = interp.Batch(torch.ones(2, 9, dtype=torch.long))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "there are no batches to join"),
        ([PLAIN, tiny.batch("policy")], "expected the same names and shapes in all"),
        ([replace(PLAIN, groups=((0, 9),)), PLAIN], r"groups \(\(0, 9\),\) and None cannot be"),
    ],
    ids=["nothing", "conditioning", "groups"],
)
def test_what_cannot_be_joined_is_refused(parts: list[interp.Batch], message: str):
    with pytest.raises(ValueError, match=message):
        interp.Batch.join(parts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: replace(PLAIN, scored=torch.ones(2, 9)),
            r"scored must be boolean of the shape of tokens; got \(2, 9\) of torch\.float32",
        ),
        (
            lambda: replace(PLAIN, scored=torch.ones(2, 8, dtype=torch.bool)),
            r"got \(2, 8\) of torch\.bool",
        ),
        (
            lambda: PLAIN.rows(torch.tensor([], dtype=torch.long)),
            r"tokens must be integers of shape .* got \(0, 9\)",
        ),
    ],
)
def test_impossible_batches_are_refused(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "ids",
    [
        [5, 6],
        (5, 6),
        range(5, 7),
        np.array([5, 6], np.uint16),
        torch.tensor([5, 6]),
        pd.Series([5, 6]),
        [np.int64(5), torch.tensor(6)],
    ],
)
def test_whole_numbers_of_any_kind_are_token_ids(ids: Any):
    assert token_ids(ids) == [5, 6]
    assert all(type(token) is int for token in token_ids(ids))
    assert interp.Batch.pad([ids]).tokens.tolist() == [[5, 6]]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (b"ab", "got bytes: expected a text"),
        (bytearray(b"ab"), "got bytearray"),
        ({"text": "ab", "id": 1}, r"got a dict of 'text', 'id': .*row\[\"text\"\] for row"),
        ({5, 6}, "got a set of 5, 6"),
        ([5, 1.9], "token 1 is 1.9, a float"),
        ([5, 6.0], "token 1 is 6.0, a float"),
        (np.array([5, 1.9]), "token 0 is 5.0, a float"),
        (torch.tensor([1.5]), "token 0 is 1.5"),
        (["5", "6"], "token 0 is '5', a str"),
        ([5, None], "token 1 is None"),
        ([[5, 6]], r"token 0 is \[5, 6\], a list"),
        ([True, False], "token 0 is True, a bool"),
        (torch.tensor([True]), "token 0 is True"),
        (7, r"got 7: to scan one sequence, pass \[tokens\]"),
        (torch.tensor(7), "to scan one sequence"),
    ],
)
def test_what_only_looks_like_token_ids_is_refused(ids: Any, message: str):
    with pytest.raises(ValueError, match=message):
        token_ids(ids)
    with pytest.raises(ValueError, match=message):
        interp.Batch.from_frame(pd.DataFrame({"tokens": [ids], "prefix": 1}))


def test_a_batch_holds_whole_numbers():
    for tokens in (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)):
        with pytest.raises(ValueError, match="tokens must be integers"):
            interp.Batch(tokens)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_is_split_into_parts_with_rows(size: int):
    with pytest.raises(ValueError, match=f"batch_size={size}: expected a number of rows"):
        list(PLAIN.split(size))


@pytest.mark.parametrize(
    "values",
    [
        pd.DataFrame({"n": [2, 0]})["n"],
        pd.DataFrame({"n": [2, 0]})["n"].to_numpy(),
        np.array([2, 0])[::-1][::-1],
        [2, 0],
        torch.tensor([2, 0]),
    ],
    ids=lambda values: type(values).__name__,
)
@pytest.mark.filterwarnings("error")
def test_rows_and_answers_may_be_columns_of_a_table(values):
    """Columns of pandas cannot be written, of which torch warns; negative strides it refuses."""
    import letters

    from interp.analysis.logit_lens import lens
    from interp.mitigation.reweighting import weighted

    batch = interp.Batch(torch.arange(12).reshape(3, 4))
    assert batch.rows(values).tokens.tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    two = batch.rows(slice(0, 2))
    assert len(lens(letters.subject(), two, {"answer": values}, position=2)) == 2
    weighted(np.asarray(values, dtype=float), iter([[0, 1]]))
