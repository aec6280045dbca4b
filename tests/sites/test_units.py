"""Laws of interp.sites.units: sets behave as sets of (site, index), scores rank as a plain sort
does, files round trip."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import interp
from interp import Site, Units, UnitScores

WIDTHS = {Site("neurons", 0): 7, Site("neurons", 1): 5, Site("heads", 1): 3}
TOTAL = sum(WIDTHS.values())
indices = st.fixed_dictionaries(
    {s: st.lists(st.integers(0, w - 1), max_size=8) for s, w in WIDTHS.items()}
)
sets = indices.map(lambda chosen: Units(chosen, WIDTHS))
scores = st.fixed_dictionaries(
    {s: npst.arrays(np.float64, w, elements=st.floats(-9, 9, width=16)) for s, w in WIDTHS.items()}
).map(UnitScores)


@given(sets, sets)
def test_set_algebra(a: Units, b: Units):
    assert set(a | b) == set(a) | set(b)
    assert set(a & b) == set(a) & set(b)
    assert set(a - b) == set(a) - set(b)
    assert a | ~a == Units({s: range(w) for s, w in WIDTHS.items()}, WIDTHS)
    assert not len(a & ~a)
    assert len(a) == len(set(a)) == len(a.to_frame())
    assert (a == b) == (set(a) == set(b))
    assert a != b or hash(a) == hash(b)
    assert all(unit in a for unit in a)


@given(sets)
def test_json_round_trips(a: Units):
    again = Units.from_json(a.to_json())
    assert again == a
    assert again.widths == a.widths


def test_files_round_trip(tmp_path: Path):
    units = Units({"blocks.0.neurons": [4, 1, 1]}, {"blocks.0.neurons": 7, "blocks.1.neurons": 5})
    units.save(tmp_path / "new" / "units.json")
    assert Units.load(tmp_path / "new" / "units.json") == units
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["units.json"]


@given(sets, st.integers(0, 2**32))
def test_matched_units_are_as_many_and_other(a: Units, seed: int):
    control = a.draw_matched(seed)
    assert not len(control & a)
    assert {s: len(control[s]) for s in WIDTHS} == {
        s: min(len(a[s]), WIDTHS[s] - len(a[s])) for s in WIDTHS
    }
    assert control == a.draw_matched(seed)


@given(sets, sets, st.integers(0, 99))
def test_matched_units_stay_in_the_pool(a: Units, pool: Units, seed: int):
    assert set(a.draw_matched(seed, among=pool)) <= set(pool) - set(a)


@given(scores, st.integers(1, TOTAL))
def test_top_and_lowest_rank_as_a_sort_does(ranked: UnitScores, count: int):
    by_unit = {(s, i): v for s, row in ranked.values.items() for i, v in enumerate(row)}
    for chosen, ordered in (
        (ranked.top(count), sorted(by_unit.values(), reverse=True)),
        (ranked.lowest(count), sorted(by_unit.values())),
        (ranked.smallest(count), sorted(by_unit.values(), key=abs)),
    ):
        assert len(chosen) == count
        sizes = sorted(abs(by_unit[u]) for u in chosen)
        assert sizes == sorted(map(abs, ordered[:count]))
    assert set(ranked.top(count)) <= set(ranked.top(min(count + 1, TOTAL)))
    assert (
        not len(ranked.top(count) & ranked.lowest(TOTAL - count))
        if count < TOTAL and len(set(by_unit.values())) == TOTAL
        else True
    )


few_values = st.fixed_dictionaries(
    {s: npst.arrays(np.float64, w, elements=st.sampled_from((-1, 0, 1))) for s, w in WIDTHS.items()}
).map(UnitScores)


@given(few_values, st.integers(1, TOTAL // 2), st.integers(1, TOTAL // 2))
def test_of_equal_scores_no_unit_is_both_the_top_and_the_lowest(
    ranked: UnitScores, count: int, other: int
):
    top = ranked.top(count)
    assert not len(top & ranked.lowest(count))
    for control in (ranked.lowest(other, top), ranked.smallest(other, top)):
        assert len(control) == other
        assert not len(control & top)
    # Whoever is lowest, the scores are those of a sort.
    by_unit = {(s, i): v for s, row in ranked.values.items() for i, v in enumerate(row)}
    lowest = sorted(by_unit[unit] for unit in ranked.lowest(count))
    assert lowest == sorted(by_unit.values())[:count]
    left = sorted(value for unit, value in by_unit.items() if unit not in set(top))
    assert sorted(by_unit[unit] for unit in ranked.lowest(other, top)) == left[:other]
    smallest = sorted(abs(by_unit[unit]) for unit in ranked.smallest(other, top))
    assert smallest == sorted(map(abs, left))[:other]


@given(few_values, st.integers(1, TOTAL))
def test_the_table_of_scores_begins_with_the_top_units(ranked: UnitScores, count: int):
    table = ranked.to_frame()
    assert table["score"].is_monotonic_decreasing
    first = table.head(count)
    rows = zip(first["site"], first["unit"], strict=True)
    assert {(Site.parse(site), unit) for site, unit in rows} == set(ranked.top(count))


def test_units_without_widths_are_taken_off_and_met_with_others():
    """A width is needed only where units are left."""
    site, other = Site("neurons", 0), Site("neurons", 1)
    known = Units({site: [1, 2]}, {site: 7})
    unknown = Units({site: [2], other: [3]})
    assert set(known - unknown) == {(site, 1)}
    assert set(known & unknown) == {(site, 2)}
    assert (known - unknown).widths == known.widths
    assert set(unknown & known) == {(site, 2)}
    left = unknown - known
    assert set(left) == {(other, 3)}
    assert left.widths == {}
    with pytest.raises(ValueError, match=r"units at blocks\.1\.neurons need its width"):
        known | unknown


@given(scores, st.floats(0.01, 1))
def test_top_per_site_takes_the_fraction_of_each_site(ranked: UnitScores, fraction: float):
    chosen = ranked.top_per_site(fraction)
    for site, row in ranked.values.items():
        count = max(1, round(fraction * row.size))
        assert sorted(row[chosen[site]]) == sorted(sorted(row, reverse=True)[:count])


@given(ranked=scores)
def test_score_files_round_trip(tmp_path_factory: pytest.TempPathFactory, ranked: UnitScores):
    file = tmp_path_factory.mktemp("scores") / "scores.parquet"
    UnitScores(ranked.values, "some_method", {"seed": 3}).save(file)
    again = UnitScores.load(file)
    assert (again.method, again.about) == ("some_method", {"seed": 3})
    assert again.values.keys() == ranked.values.keys()
    assert all(np.array_equal(again[s], ranked[s]) for s in WIDTHS)


@pytest.mark.parametrize(
    ("chosen", "widths", "message"),
    [
        ({"blocks.0.neurons": [7]}, {"blocks.0.neurons": 7}, "units 0 to 6; got 7 to 7"),
        ({"blocks.0.neurons": [-1, 2]}, {"blocks.0.neurons": 7}, "units 0 to 6; got -1 to 2"),
        (
            {"blocks.0.neurons": [1]},
            {"blocks.1.neurons": 7},
            "need its width; widths were given for blocks.1.neurons",
        ),
        ({"blocks.0.neurons": [0.5]}, {"blocks.0.neurons": 7}, "integer indices; got float64"),
        ({"blocks.0.neurons": np.array([True, False])}, {"blocks.0.neurons": 7}, "flatnonzero"),
    ],
)
def test_what_is_no_unit_is_refused(
    chosen: dict[str, list[int]], widths: dict[str, int], message: str
):
    with pytest.raises(ValueError, match=message):
        Units(chosen, widths)


def test_units_of_two_models_do_not_mix():
    with pytest.raises(ValueError, match=r"7 wide in one set and 9 in the other"):
        _ = Units({"blocks.0.neurons": [1]}, {"blocks.0.neurons": 7}) | Units(
            {"blocks.0.neurons": [1]}, {"blocks.0.neurons": 9}
        )


@pytest.mark.parametrize("amount", [0, -1, TOTAL + 1, 0.0, -0.5, 1.5])
def test_impossible_amounts_are_refused(amount: float):
    with pytest.raises(ValueError, match=f"of {TOTAL} units"):
        UnitScores({s: np.zeros(w) for s, w in WIDTHS.items()}).top(amount)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_scores_must_be_finite(broken: float):
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        UnitScores({Site("neurons", 0): np.array([0.0, broken])})


def test_sites_of_one_unit_stand_for_each_other_as_controls():
    widths = {Site("block_out", n): 1 for n in range(6)} | {Site("neurons", 0): 9}
    chosen = Units(
        {Site("block_out", 1): [0], Site("block_out", 4): [0], Site("neurons", 0): [2, 3]}, widths
    )
    for seed in range(20):
        drawn = chosen.draw_matched(seed)
        assert len(drawn) == len(chosen)
        assert not len(drawn & chosen)
        assert len(drawn[Site("neurons", 0)]) == 2
    assert len(chosen.draw_matched(0, times=5)) == 4 + 7  # all the blocks and neurons that are left
    assert (
        len(
            {
                frozenset(
                    s.block for s in chosen.draw_matched(seed).sites if s.point == "block_out"
                )
                for seed in range(30)
            }
        )
        > 3
    )


@given(ranked=scores)
def test_blocks_are_summed_up_by_hand(ranked: UnitScores):
    found = ranked.by_block(top=0.25)
    best = ranked.top(0.25)
    assert found["share"].sum() == pytest.approx(1)
    for row in found.itertuples():
        parts = {
            s: v for s, v in ranked.values.items() if (s.stack, s.block) == (row.stack, row.block)
        }
        together = np.concatenate(list(parts.values()))
        assert (row.mean, row.max) == pytest.approx((together.mean(), together.max()))
        assert row.share == pytest.approx(sum(len(best[s]) for s in parts) / len(best))


def test_only_keeps_the_widths():
    every = Units(
        {"blocks.0.neurons": [1, 2], "blocks.1.neurons": [0]},
        {"blocks.0.neurons": 7, "blocks.1.neurons": 7},
    )
    one = every.only("blocks.1.neurons", [4])
    assert list(one) == [(Site("neurons", 1), 4)]
    assert one.widths == every.widths


def test_units_without_widths_are_checked_where_they_are_used(llama: interp.Subject):
    here = llama.anatomy.widths("blocks.1.neurons")
    bare, known = Units({"blocks.1.neurons": [5, 0, 3]}), llama.units("blocks.1.neurons", [0, 3, 5])
    assert bare == known
    assert Units.from_json(bare.to_json()) == bare
    assert llama.anatomy.fit(bare).widths == here
    batch = tiny.batch("llama")
    with torch.no_grad():
        with llama.intervened(interp.Zero(known)):
            wanted = llama.losses(batch)
        with llama.intervened(interp.Zero(bare)):
            assert torch.equal(llama.losses(batch), wanted)
    outside = interp.Zero(Units({"blocks.1.neurons": [3, 48]}))
    with pytest.raises(ValueError, match="units 0 to 47; got 3 to 48"), llama.intervened(outside):
        pass
    with pytest.raises(ValueError, match="counted from 0; got -1"):
        Units({"blocks.1.neurons": [-1]})
    for need in (lambda: ~bare, lambda: bare.draw_matched(0)):
        with pytest.raises(ValueError, match=r"need the width of blocks\.1\.neurons, which"):
            need()
    assert not len(bare.draw_matched(0, among=llama.units("neurons")) & bare)
    assert len(bare | known) == 3


def test_units_of_a_subject_are_said_in_one_call(llama: interp.Subject):
    assert llama.units("neurons") == llama.anatomy.units("neurons")
    assert len(llama.units("blocks.*.heads", [1, 2])) == 2 * tiny.BLOCKS
    mapping = {"blocks.0.mlp.hook_post": [1], "blocks.2.heads": [0], "blocks.*.heads": [3]}
    assert sorted(map(str, llama.units(mapping).sites)) == [
        "blocks.0.heads",
        "blocks.0.neurons",
        "blocks.1.heads",
        "blocks.2.heads",
    ]
    with pytest.raises(ValueError, match=r"blocks\.1\.heads has units 0 to 3; got 4 to 4"):
        llama.units("blocks.1.heads", [4])
    with pytest.raises(ValueError, match="has its own"):
        llama.units({"blocks.1.heads": [0]}, [1])
    with pytest.raises(interp.SiteError, match="nearest"):
        llama.units("blocks.9.heads", [0])


def test_controls_are_drawn_from_units_of_other_sites():
    """A pool at sites of which the selection knows no width."""
    selected = Units({"blocks.0.block_out": [0]}, {"blocks.0.block_out": 1})
    pool = Units({"blocks.1.block_out": [0]}, {"blocks.1.block_out": 1})
    assert selected.draw_matched(0, among=pool) == pool
