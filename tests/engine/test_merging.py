"""Laws of recordings that several processes made: merged, they are one recording over everything,
however the examples were divided; what is not of one recording is refused."""

from __future__ import annotations

import pickle
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.engine.recording import Recording
from interp.engine.reducers import REDUCERS, Raw, Reducer

SITES = ["blocks.0.heads", "blocks.1.neurons", "embed"]
NUMBERED = {"top": ["example"], "selectivity": ["argmax"]}
LISTED = ("rows", "rows_abs")


def fed(kind: str, values: torch.Tensor, mask: torch.Tensor, views: int = 1) -> Reducer:
    """A reducer that has seen [examples, position, width], none of them if there are none."""
    made = REDUCERS[kind]()
    made.views = views
    if len(values):
        made.update(values, mask)
        made.end_batch()
    return made


@st.composite
def divided(draw: Any) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Activations with ties and a mask, and the numbers of examples in each of some shards, of
    which some are empty."""
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(sum))
    # Few values, so that many are equal: the first example has to win in every reducer.
    number = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1e4])
    count = sum(sizes)
    flat = draw(st.lists(number, min_size=count * 6, max_size=count * 6))
    lengths = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    mask = torch.arange(3) < torch.tensor(lengths)[:, None]
    return torch.tensor(flat).reshape(count, 3, 2), mask, sizes


@pytest.mark.parametrize("kind", REDUCERS)
@settings(max_examples=40)
@given(case=divided())
def test_any_division_merged_is_the_whole(kind: str, case: Any):
    values, mask, sizes = case
    pairs = zip(values.split(sizes), mask.split(sizes), strict=True)
    shards = [fed(kind, *pair) for pair in pairs]
    before = [dict(vars(shard)) for shard in shards]
    together = reduce(Reducer.merge, shards)
    for shard, was in zip(shards, before, strict=True):
        assert vars(shard).keys() == was.keys()
        assert all(vars(shard)[name] is was[name] for name in was)
    merged = together.result()
    whole = fed(kind, values, mask).result()
    assert list(merged) == list(whole)
    for name, array in whole.items():
        assert merged[name].dtype == array.dtype
        np.testing.assert_allclose(merged[name], array, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", REDUCERS)
@settings(max_examples=25)
@given(case=divided(), data=st.data())
def test_the_order_of_shards_changes_only_the_numbers_of_examples(kind: str, case: Any, data: Any):
    values, mask, sizes = case
    pairs = list(zip(values.split(sizes), mask.split(sizes), strict=True))
    order = data.draw(st.permutations(range(len(pairs))))
    one = reduce(Reducer.merge, [fed(kind, *pair) for pair in pairs]).result()
    other = reduce(Reducer.merge, [fed(kind, *pairs[place]) for place in order]).result()
    for name, array in one.items():
        if name in NUMBERED.get(kind, []):
            continue
        if kind in LISTED:
            listed, again = sorted(array.tolist()), sorted(other[name].tolist())
            assert listed == again
        else:
            np.testing.assert_allclose(other[name], array, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", REDUCERS)
@settings(max_examples=20)
@given(case=divided())
def test_how_merges_are_nested_changes_nothing(kind: str, case: Any):
    values, mask, _ = case
    a, b, c = (
        fed(kind, *part) for part in zip(values.tensor_split(3), mask.tensor_split(3), strict=True)
    )
    left, right = a.merge(b).merge(c).result(), a.merge(b.merge(c)).result()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", REDUCERS)
def test_a_merged_reducer_goes_on_by_itself(kind: str):
    values = torch.arange(24.0).reshape(4, 3, 2).sin()
    mask = torch.ones(4, 3, dtype=torch.bool)
    whole = fed(kind, values, mask).result()
    halves = fed(kind, values[:2], mask[:2]), fed(kind, values[2:3], mask[2:3])
    merged = halves[0].merge(halves[1])
    merged.update(values[3:], mask[3:])
    merged.end_batch()
    for name, array in merged.result().items():
        np.testing.assert_allclose(array, whole[name], rtol=1e-12)
    again = halves[0].merge(halves[1]).result()
    for name, array in again.items():
        wanted = fed(kind, values[:3], mask[:3]).result()[name]
        np.testing.assert_allclose(array, wanted, rtol=1e-12)


def test_by_hand():
    """Two shards of one site: 1, 2 and 3 with 6."""
    ones = torch.ones(1, 2, dtype=torch.bool)
    shards = [
        fed("moments", torch.tensor([[[1.0], [2.0]]]), ones),
        fed("moments", torch.tensor([[[3.0], [6.0]]]), ones),
    ]
    found = shards[0].merge(shards[1]).result()
    assert {name: array.tolist() for name, array in found.items()} == {
        "mean": [3.0],
        "variance": [3.5],  # (4 + 1 + 0 + 9) / 4
        "count": [4],
    }
    tops = [
        fed("top", torch.tensor([[[1.0]], [[5.0]]]), torch.ones(2, 1, dtype=torch.bool)),
        fed("top", torch.tensor([[[7.0]], [[5.0]]]), torch.ones(2, 1, dtype=torch.bool)),
    ]
    found = tops[0].merge(tops[1]).result()
    assert found["top"].ravel().tolist() == [7, 5, 5, 1]
    assert found["example"].ravel().tolist() == [2, 1, 3, 0]


def test_what_is_not_of_one_recording_is_refused(tmp_path: Path):
    values, mask = torch.ones(2, 3, 2), torch.ones(2, 3, dtype=torch.bool)
    mean = fed("mean", values, mask)
    with pytest.raises(ValueError, match="a Mean cannot take in a MeanAbs"):
        mean.merge(fed("mean_abs", values, mask))
    with pytest.raises(ValueError, match="1 views of each example and the other 2"):
        fed("top", values, mask).merge(fed("top", values, mask, views=2))
    with pytest.raises(ValueError, match="is 2 wide and the other 1"):
        mean.merge(fed("mean", values[..., :1], mask))
    raw = Raw(tmp_path / "raw.f32")
    with pytest.raises(ValueError, match=r"raw recordings are not merged: raw\.f32"):
        raw.merge(raw)


# Recordings


def recorded(batch: interp.Batch, kind: str, sites: Any = SITES) -> Recording:
    return interp.record(tiny.subject("llama", torch.float64), batch, sites, kind, batch_size=2)


@pytest.mark.parametrize("kind", REDUCERS)
def test_recordings_of_other_processes_merge_to_one(kind: str):
    batch = tiny.batch("llama", rows=7, padded=True, seed=4)
    parts = list(batch.split(3))
    # As they come out of the files that other processes have written.
    first, *others = [pickle.loads(pickle.dumps(recorded(part, kind))) for part in parts]
    merged, whole = first.merge(*others), recorded(batch, kind)
    assert list(merged) == list(whole)
    for site in whole:
        assert list(merged.parts[site]) == list(whole.parts[site])
        for name, array in whole.parts[site].items():
            assert merged.parts[site][name].shape == array.shape
            np.testing.assert_allclose(merged.parts[site][name], array, rtol=1e-6, atol=1e-9)


def test_a_recording_that_is_changed_by_hand_is_merged_as_it_was_made():
    one, other = (recorded(tiny.batch("llama", seed=seed), "max") for seed in (0, 1))
    wanted = one.merge(other)["embed"].copy()
    one["embed"][:] = 1e6
    np.testing.assert_array_equal(one.merge(other)["embed"], wanted)


def test_recordings_of_something_else_are_refused(tmp_path: Path):
    batch = tiny.batch("llama")
    one = recorded(batch, "mean")
    with pytest.raises(ValueError, match=r"by 'mean' and by 'max'"):
        one.merge(recorded(batch, "max"))
    with pytest.raises(ValueError, match=r"different sites: embed only in one"):
        one.merge(recorded(batch, "mean", SITES[:2]))
    raw = interp.record(tiny.subject("llama"), batch, "embed", "raw", folder=tmp_path)
    with pytest.raises(ValueError, match="raw recordings are not merged"):
        raw.merge(raw)
