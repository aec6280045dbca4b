"""Masks of sinks: the published arithmetic by hand, and what each scheme promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.mitigation.sink_masks import sink_masks

IDS = st.lists(st.integers(1, 2**63 - 1), min_size=1, max_size=6)


def by_hand(document: int, units: int, active: float) -> list[bool]:
    """The reference with Python's integers, which do not overflow: its wraps are made here."""

    def wrapped(number: int) -> int:
        return (number + 2**63) % 2**64 - 2**63

    modulus = 4294967291
    found: list[bool] = []
    for unit in range(units):
        power = wrapped(1588635695**unit) % modulus
        hashed = wrapped(wrapped(document * 2**16) * power) % modulus
        found.append(hashed / modulus < active)
    return found


def test_the_reference_gives_the_golden_masks():
    masks = sink_masks(torch.tensor([1, 2, 3]), 16, 0.3, "reference")
    on = [mask.nonzero().flatten().tolist() for mask in masks]
    assert on == [[0, 9, 13, 15], [0, 9, 13, 15], [0, 2, 5, 7, 9, 10, 12, 13, 15]]


@given(IDS, st.sampled_from([0.05, 0.3, 0.9]))
def test_the_reference_is_that_of_integers_that_wrap_by_hand(ids, active):
    masks = sink_masks(torch.tensor(ids), 40, active, "reference")
    assert masks.tolist() == [by_hand(document, 40, active) for document in ids]


def test_ids_of_32_bits_give_the_masks_of_64_bits():
    # In 32 bits, 40,000 * 2**16 would overflow.
    narrow = torch.tensor([59, 40_000], dtype=torch.int32)
    for scheme in ("reference", "counter"):
        assert torch.equal(
            sink_masks(narrow, 64, 0.3, scheme), sink_masks(narrow.long(), 64, 0.3, scheme)
        )


def test_the_reference_overlaps_where_an_id_is_twice_another():
    masks = sink_masks(torch.arange(1, 501), 1024, 0.1, "reference").double()
    shared = masks @ masks.T / 1024
    each = torch.arange(1, 251)
    assert 0.045 < shared[each - 1, 2 * each - 1].mean() < 0.055  # chance is 0.01


@given(IDS, st.integers(2, 200), st.integers(0, 3), st.integers(0, 3))
def test_the_counter_turns_on_the_same_number_for_each_id(ids, units, seed, layer):
    masks = sink_masks(torch.tensor(ids), units, 0.5, seed=seed, layer=layer)
    assert (masks.sum(1) == round(0.5 * units)).all()
    again = sink_masks(torch.tensor([ids, ids]), units, 0.5, seed=seed, layer=layer)
    assert torch.equal(again[0], masks)
    assert torch.equal(again[1], masks)


def test_the_counter_uses_all_units_alike_and_overlaps_by_chance():
    documents = 2000
    masks = sink_masks(torch.arange(1, documents + 1), 256, 0.1).double()
    share = round(0.1 * 256) / 256
    use = masks.mean(0)
    # Four standard deviations of a mean of independent draws, of the most extreme of 256 units.
    spread = (share * (1 - share) / documents) ** 0.5
    assert (use - share).abs().max() < 4.5 * spread
    shared = masks @ masks.T / 256
    pairs = (shared.sum() - shared.trace()) / (documents * (documents - 1))
    assert pairs == pytest.approx(share**2, rel=0.02)
    # Where the reference has its structure: ids k and 2k.
    each = torch.arange(1, documents // 2 + 1)
    assert shared[each - 1, 2 * each - 1].mean() == pytest.approx(share**2, rel=0.1)


def test_seeds_and_layers_give_masks_of_their_own():
    ids = torch.arange(1, 200)
    plain = sink_masks(ids, 100, 0.2).double()
    for other in (sink_masks(ids, 100, 0.2, seed=1), sink_masks(ids, 100, 0.2, layer=1)):
        assert (plain * other.double()).mean() == pytest.approx(0.04, rel=0.1)


def test_disjoint_documents_share_no_unit_and_have_an_end():
    masks = sink_masks(torch.arange(1, 6), 11, 0.2, "disjoint")
    assert masks.sum(1).tolist() == [2] * 5
    assert masks.sum(0).max() == 1
    with pytest.raises(ValueError, match="has 5 disjoint slices of 2, and an id is 6"):
        sink_masks(torch.tensor([6]), 11, 0.2, "disjoint")


@pytest.mark.parametrize("scheme", ["counter", "reference", "disjoint"])
def test_what_has_no_masks_is_refused(scheme):
    for wrong in (0, -3):
        with pytest.raises(ValueError, match=f"document is {wrong}: expected ids from 1 on"):
            sink_masks(torch.tensor([5, wrong]), 8, 0.5, scheme)
    with pytest.raises(ValueError, match="whole numbers"):
        sink_masks(torch.tensor([1.0]), 8, 0.5, scheme)
    with pytest.raises(ValueError, match=r"active=0\.01 of 8 sink units"):
        sink_masks(torch.tensor([1]), 8, 0.01, scheme)
    for share in (0.0, 1.2, float("nan")):
        with pytest.raises(ValueError, match="a share above 0"):
            sink_masks(torch.tensor([1]), 8, share, scheme)


def test_an_unknown_scheme_names_the_nearest():
    with pytest.raises(ValueError, match="nearest: counter"):
        sink_masks(torch.tensor([1]), 8, 0.5, "count")  # pyright: ignore[reportArgumentType]
