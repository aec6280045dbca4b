"""Laws of interventions: each equals the same change made by a plain torch hook, under generation
too; plans are plain data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import interp
from interp.engine.sweeping import sweep, sweep_growing, sweep_naively, sweep_resuming
from interp.hooks.clock import prompt_length
from interp.hooks.hooks import lower_plans, tapped
from interp.interventions.edit import Edit, apply
from interp.interventions.plan import KINDS

PLACES = [
    "blocks.1.heads",
    "blocks.1.neurons",
    "blocks.0.attn_out",
    "blocks.2.resid_pre",
    "blocks.1.resid_mid",
    "blocks.1.mlp_out",
    "embed",
]
HEADED = ["gpt2", "llama", "neox_sequential", "opt", "phi3"]


def values(width: int, rows: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def projected(x: Tensor, rows: np.ndarray) -> Tensor:
    """x minus its least-squares fit by the rows."""
    basis = torch.tensor(rows, dtype=torch.float64).T
    flat = x.double().reshape(-1, x.shape[-1]).T
    return (flat - basis @ torch.linalg.lstsq(basis, flat).solution).T.reshape(x.shape).to(x.dtype)


def resampled(x: Tensor, pool: np.ndarray, seed: int) -> Tensor:
    draws = np.random.default_rng(seed).random(interp.Resample.period)
    return torch.tensor(pool)[(draws[: x.shape[1]] * len(pool)).astype(int)].expand_as(x)


def cases(
    units: interp.Units, width: int
) -> dict[str, tuple[interp.Intervention, Callable[[Tensor], Tensor]]]:
    """Each kind of intervention, and what it should do to all columns of a value, written without
    it."""
    site = units.sites[0]
    row, rows = {site: values(width, 1)[0]}, {site: values(width, 9)}
    donors, basis = {site: values(width, 18).reshape(2, 9, width)}, {site: values(width, 2)}
    return {
        "Zero": (interp.Zero(units), torch.zeros_like),
        "Scale": (interp.Scale(units, factor=-1.5), lambda x: x * -1.5),
        "Mean": (interp.Mean(units, values=row), lambda x: torch.tensor(row[site]).expand_as(x)),
        "Add": (interp.Add(units, values=row), lambda x: x + torch.tensor(row[site])),
        "Patch": (
            interp.Patch(units, values=rows),
            lambda x: torch.tensor(rows[site]).expand_as(x),
        ),
        "Interchange": (
            interp.Interchange(units, values=donors),
            lambda x: torch.tensor(donors[site]),
        ),
        "Resample": (
            interp.Resample(units, values=rows, seed=7),
            lambda x: resampled(x, rows[site], 7),
        ),
        "Project": (interp.Project(units, values=basis), lambda x: x),
    }


ACTIVATIONS = [kind for kind in KINDS if kind != "AddWeights"]  # which has a file of its own


def test_every_kind_is_tested():
    units = interp.Units({"embed": [0]}, {"embed": 2})
    assert list(cases(units, 2)) == ACTIVATIONS


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HEADED)
def test_an_intervention_equals_a_plain_hook(name: str, place: str, kind: str):
    subject, batch = tiny.subject(name), tiny.batch(name)
    units = tiny.units(subject, place, [0, 2])
    site, width = units.sites[0], subject.anatomy.place(place).width
    columns = subject.anatomy.columns(site, units[site])
    plan, change = cases(units, width)[kind]

    def by_hand(value: Tensor) -> Tensor:
        new = value.clone()
        new[..., columns] = (
            projected(value[..., columns], values(width, 2)[:, columns])
            if kind == "Project"
            else change(value)[..., columns]
        )
        return new

    with torch.no_grad():
        with tiny.by_hand(subject.module, subject.anatomy.place(site), by_hand):
            wanted = subject.logits(batch)
        with subject.intervened(plan):
            given = subject.logits(batch)
    torch.testing.assert_close(given, wanted, rtol=0, atol=2e-5 if kind == "Project" else 1e-6)
    assert not torch.allclose(given, subject.logits(batch), atol=1e-4)


def test_a_projection_is_idempotent_and_leaves_nothing_of_the_subspace(llama: interp.Subject):
    units, basis = llama.anatomy.units("blocks.1.resid_mid"), values(32, 3)
    plan = interp.Project(units, values={units.sites[0]: basis})
    batch = tiny.batch("llama")
    with llama.intervened(plan):
        once = tiny.values_by_hand(llama, batch, "blocks.1.mlp_out"), llama.logits(batch)
        left = interp.record(llama, batch, "blocks.1.resid_mid", reduce="rows")[
            "blocks.1.resid_mid"
        ]
    with llama.intervened(plan, plan):
        torch.testing.assert_close(llama.logits(batch), once[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(left @ basis.T, 0, atol=1e-4)


def test_a_projection_around_a_center_is_its_formula_and_leaves_the_center(llama: interp.Subject):
    units, basis, center = (
        llama.anatomy.units("blocks.1.resid_mid"),
        values(32, 3),
        values(32, 1, seed=5)[0],
    )
    site, rows = units.sites[0], torch.tensor(values(32, 6, seed=6)).double()
    around = {site: center}
    edit = lower_plans(llama.anatomy, interp.Project(units, values={site: basis}, center=around))[0]
    orthonormal = torch.tensor(np.linalg.qr(basis.T.astype(float))[0].T)
    c = torch.tensor(center).double()
    by_hand = rows - (rows - c) @ orthonormal.T @ orthonormal
    once = removed(edit, rows)
    torch.testing.assert_close(once, by_hand)
    torch.testing.assert_close(removed(edit, once), once)
    torch.testing.assert_close(removed(edit, c[None]), c[None])
    mean = lower_plans(
        llama.anatomy,
        interp.Project(units, values={site: basis}, center={site: rows.mean(0).numpy()}),
    )[0]
    torch.testing.assert_close(removed(mean, rows).mean(0), rows.mean(0))
    nothing = [
        lower_plans(llama.anatomy, interp.Project(units, values={site: basis}, center=c))[0]
        for c in (None, {site: 0 * center})
    ]
    torch.testing.assert_close(removed(nothing[0], rows), removed(nothing[1], rows))


def removed(edit: Edit, rows: Tensor) -> Tensor:
    return apply(edit, rows[None], 0, torch.arange(len(rows)))[0]


def test_a_center_at_some_heads_is_that_of_their_columns(llama: interp.Subject):
    units = tiny.units(llama, "blocks.1.heads", [1, 3])
    site, width = units.sites[0], llama.anatomy.place("blocks.1.heads").width
    center, columns = (
        values(width, 1, seed=5)[0],
        llama.anatomy.columns(units.sites[0], units[units.sites[0]]),
    )
    flat, shaped = (
        lower_plans(
            llama.anatomy, interp.Project(units, values={site: values(width, 2)}, center={site: c})
        )[0]
        for c in (center, center.reshape(tiny.HEADS, -1))
    )
    row = torch.tensor(center).double()[None]
    torch.testing.assert_close(removed(flat, row), row)
    assert torch.equal(flat.add, shaped.add)
    assert flat.basis.shape == (2, len(columns))


def interchange(
    subject: interp.Subject, donors: interp.Batch, *sites: interp.Site | str, **narrow: Any
) -> interp.Interchange:
    chosen = [subject.anatomy.resolve(site) for site in sites]
    return interp.Interchange(
        subject.anatomy.units(chosen),
        values={s: tiny.values_by_hand(subject, donors, s).numpy() for s in chosen},
        **narrow,
    )


@pytest.mark.parametrize("name", tiny.ALL)
def test_an_interchange_with_the_batch_itself_changes_nothing(name: str):
    subject, batch = tiny.subject(name), tiny.batch(name, rows=3)
    with torch.no_grad():
        clean = subject.logits(batch)
    for site in subject.sites:
        with torch.no_grad(), subject.intervened(interchange(subject, batch, site)):
            torch.testing.assert_close(
                subject.logits(batch), clean, rtol=0, atol=1e-5, msg=str(site)
            )


@pytest.mark.parametrize("name", tiny.ALL)
def test_an_interchange_of_the_first_residual_gives_the_donors_logits_row_by_row(name: str):
    subject, batch, donors = (
        tiny.subject(name),
        tiny.batch(name, rows=3),
        tiny.batch(name, rows=3, seed=1),
    )
    twice = batch.rows(torch.arange(3).repeat(2))
    plan = interchange(
        subject, donors, interp.Site("resid_pre", 0, list(subject.anatomy.stacks)[-1])
    )
    with torch.no_grad():
        wanted = subject.logits(donors)
        with subject.intervened(plan):
            torch.testing.assert_close(subject.logits(batch), wanted, rtol=0, atol=1e-5)
            torch.testing.assert_close(
                subject.logits(twice), wanted.repeat(2, 1, 1), rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("site", ["blocks.1.heads", "blocks.1.resid_mid", "blocks.0.block_out"])
@pytest.mark.parametrize(
    "narrow",
    [{}, {"positions": (1, 3)}, {"when": "decode"}, {"positions": (0, 6), "when": "prompt"}],
)
def test_an_interchange_is_a_patch_of_every_row_alone(
    llama: interp.Subject, site: str, narrow: dict[str, Any]
):
    batch, donors = (
        tiny.batch("llama", rows=3, prompt=4),
        tiny.batch("llama", rows=3, length=7, seed=1),
    )
    plan = interchange(llama, donors, site, **narrow)
    with torch.no_grad(), llama.intervened(plan):
        given = llama.logits(batch)
    for row, one in enumerate(batch.split(1)):
        patch = interp.Patch(
            plan.units, values={s: v[row] for s, v in plan.values.items()}, **narrow
        )
        single = interp.Interchange(
            plan.units, values={s: v[row : row + 1] for s, v in plan.values.items()}, **narrow
        )
        for alone in (patch, single):
            with torch.no_grad(), llama.intervened(alone):
                torch.testing.assert_close(llama.logits(one)[0], given[row], rtol=0, atol=1e-5)
        with torch.no_grad(), llama.intervened(patch):
            for_all = llama.logits(batch)
        with torch.no_grad(), llama.intervened(single):
            torch.testing.assert_close(llama.logits(batch), for_all, rtol=0, atol=0)


def test_donors_by_head_are_donors_by_column(llama: interp.Subject):
    plan = interchange(llama, tiny.batch("llama"), "blocks.1.heads")
    by_head = {site: v.reshape(*v.shape[:2], tiny.HEADS, -1) for site, v in plan.values.items()}
    one, other = (
        lower_plans(llama.anatomy, p)[0].add
        for p in (plan, interp.Interchange(plan.units, values=by_head))
    )
    assert torch.equal(one, other)


def test_a_sweep_gives_every_row_its_donor(llama: interp.Subject):
    batch, donors = tiny.batch("llama", rows=3, prompt=2), tiny.batch("llama", rows=3, seed=1)
    plans = [
        interchange(llama, donors, site)
        for site in ("embed", "blocks.0.resid_pre", "blocks.1.heads", "blocks.1.mlp_out", "final")
    ]
    plans += [
        interchange(llama, donors, "blocks.0.heads", "blocks.2.neurons", positions=(3,)),
        interp.Zero(llama.anatomy.units("heads")),
    ]

    def under(method: Callable[..., list[Any]]) -> Tensor:
        return torch.stack(method(llama, batch, plans, lambda logits, _: logits.clone()))

    for method in (sweep, sweep_resuming, sweep_growing):
        torch.testing.assert_close(under(method), under(sweep_naively), rtol=0, atol=1e-5)


def test_rows_without_donors_are_refused(llama: interp.Subject):
    plan = interchange(llama, tiny.batch("llama", rows=2), "blocks.1.neurons")
    with (
        pytest.raises(
            ValueError,
            match=r"blocks.1.neurons: the number of rows, 3, is not a multiple of the 2 donors",
        ),
        llama.intervened(plan),
    ):
        llama.logits(tiny.batch("llama", rows=3))


@pytest.mark.parametrize("name", tiny.ALL)
def test_patching_a_whole_residual_gives_the_donors_logits(name: str):
    subject, donor, other = (
        tiny.subject(name),
        tiny.batch(name, rows=1, seed=1),
        tiny.batch(name, rows=2, seed=2),
    )
    last_stack = list(subject.anatomy.stacks)[-1]
    for block in range(tiny.BLOCKS):
        site = interp.Site("resid_post", block, last_stack)
        plan = interp.Patch(
            subject.anatomy.units(site),
            values={site: tiny.values_by_hand(subject, donor, site)[0].numpy()},
        )
        with torch.no_grad(), subject.intervened(plan):
            torch.testing.assert_close(
                subject.logits(other), subject.logits(donor).expand(2, -1, -1), rtol=0, atol=1e-5
            )


def test_patching_changes_only_the_donors_positions(llama: interp.Subject):
    site, batch = interp.Site("resid_pre", 1), tiny.batch("llama")
    plan = interp.Patch(llama.anatomy.units(site), values={site: values(32, 4)}, positions=(1, 3))
    clean = tiny.values_by_hand(llama, batch, site)
    with llama.intervened(plan):
        patched = tiny.values_by_hand(llama, batch, "blocks.1.resid_mid") - tiny.values_by_hand(
            llama, batch, "blocks.1.attn_out"
        )
    torch.testing.assert_close(
        patched[:, [0, 2, *range(4, 9)]], clean[:, [0, 2, *range(4, 9)]], rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        patched[:, [1, 3]], torch.tensor(values(32, 4))[[1, 3]].expand(2, -1, -1), rtol=0, atol=1e-5
    )


def generated_without_cache(subject: interp.Subject, prompt: Tensor, length: int) -> Tensor:
    ids = prompt
    with torch.no_grad(), prompt_length(prompt.shape[1]):
        for _ in range(length):
            ids = torch.cat(
                [ids, subject.module(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1
            )
    return ids[:, prompt.shape[1] :]


@pytest.mark.parametrize("name", tiny.HUGGING_FACE)
@pytest.mark.parametrize(
    "narrow",
    [
        {},
        {"when": "prompt"},
        {"when": "decode"},
        {"positions": (2, 7, 9)},
        {"positions": (1, 8), "when": "decode"},
    ],
)
def test_generation_under_a_plan_equals_recomputation_without_cache(
    name: str, narrow: dict[str, Any]
):
    subject, prompt = tiny.subject(name), tiny.batch(name, length=6, seed=8).tokens
    site = interp.Site("mlp_out", 1)
    units = tiny.units(subject, site, list(range(0, 32, 2)))
    plans = (
        interp.Add(units, values={site: 3 * values(32, 1)[0]}, **narrow),
        interp.Resample(
            tiny.units(subject, "blocks.0.attn_out", [0, 1, 2]),
            values={interp.Site("attn_out", 0): values(32, 5)},
            **narrow,
        ),
    )
    with subject.intervened(*plans):
        cached = subject.generate(prompt, 6)
    with subject.intervened(*plans):
        assert torch.equal(cached, generated_without_cache(subject, prompt, 6))


def test_when_and_positions_choose_what_is_changed(llama: interp.Subject):
    """A value at `final` is seen by the logits of its own position alone, so each position tells
    whether it was changed."""
    batch = tiny.batch("llama", length=9, prompt=5)
    clean = llama.logits(batch)
    units = llama.anatomy.units("final")
    for narrow, wanted in (
        ({}, range(9)),
        ({"when": "prompt"}, range(5)),
        ({"when": "decode"}, range(5, 9)),
        ({"positions": (0, 6)}, (0, 6)),
        ({"positions": (0, 6), "when": "decode"}, (6,)),
    ):
        with torch.no_grad(), llama.intervened(interp.Zero(units, **narrow)):
            changed = (llama.logits(batch) != clean).any(-1).all(0)
        assert changed[1:].tolist() == [t in wanted for t in range(8)]


def test_plans_apply_in_order(llama: interp.Subject):
    units, batch = llama.anatomy.units("blocks.1.neurons"), tiny.batch("llama")
    site = units.sites[0]
    row = values(48, 1)[0]
    add, scale = interp.Add(units, values={site: row}), interp.Scale(units, factor=2.0)
    place = llama.anatomy.place(site)
    for plans, by_hand in (
        ((add, scale), lambda v: (v + torch.tensor(row)) * 2),
        ((scale, add), lambda v: v * 2 + torch.tensor(row)),
    ):
        with torch.no_grad(), tiny.by_hand(llama.module, place, by_hand):
            wanted = llama.logits(batch)
        with torch.no_grad(), llama.intervened(*plans):
            torch.testing.assert_close(llama.logits(batch), wanted, rtol=0, atol=1e-6)
        with torch.no_grad(), llama.intervened(plans):
            torch.testing.assert_close(llama.logits(batch), wanted, rtol=0, atol=1e-6)
        with torch.no_grad(), llama.intervened(plans[0]), llama.intervened(plans[1]):
            torch.testing.assert_close(llama.logits(batch), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "reduce"),
    [
        ("Mean", "mean"),
        ("Add", "mean"),
        ("Resample", "rows"),
        ("Project", "rows"),
        ("Patch", "rows"),
    ],
)
@pytest.mark.parametrize("site", ["blocks.0.heads", "blocks.0.neurons"])
def test_recordings_are_values(llama: interp.Subject, site: str, kind: str, reduce: str):
    batch = tiny.batch("llama")
    recording = interp.record(llama, batch, site, reduce=reduce)
    units = tiny.units(llama, site, [1, 3])
    edit = lower_plans(llama.anatomy, KINDS[kind](units, values=recording))[0]
    columns = llama.anatomy.columns(units.sites[0], units[site])
    if kind != "Project":
        assert edit.add is not None
        rows = {
            row.tobytes()
            for row in recording[site]
            .reshape(-1 if reduce == "rows" else 1, llama.anatomy.place(site).width)[:, columns]
            .astype(float)
        }
        assert {row.tobytes() for row in edit.add.numpy()} <= rows


WIDTHS = {interp.Site("neurons", 0): 5, interp.Site("heads", 1): 3}
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def plans(draw: Any) -> interp.Intervention:
    kind = draw(st.sampled_from(sorted(KINDS)))
    sites = draw(st.lists(st.sampled_from(list(WIDTHS)), min_size=1, unique=True))
    chosen = interp.Units(
        {s: draw(st.lists(st.integers(0, WIDTHS[s] - 1), min_size=1)) for s in sites}, WIDTHS
    )
    rows = {"Mean": 1, "Add": 1}.get(kind, 3)
    table = {
        s: np.array(
            draw(st.lists(finite, min_size=rows * WIDTHS[s], max_size=rows * WIDTHS[s]))
        ).reshape(rows, -1)
        for s in sites
    }
    if kind == "AddWeights":
        table = {site: rows.T for site, rows in table.items()}  # [outputs, inputs]
    if kind == "Interchange":
        table = {site: np.stack([rows, -rows]) for site, rows in table.items()}
    options = {"Zero": {}, "Scale": {"factor": draw(finite)}}.get(kind, {"values": table})
    if kind == "Project" and draw(st.booleans()):
        options["center"] = {site: rows[0] for site, rows in table.items()}
    if kind == "Resample":
        options["seed"] = draw(st.integers(0, 99))
    positions = draw(st.none() | st.lists(st.integers(0, 2), min_size=1, unique=True).map(tuple))
    return KINDS[kind](
        chosen,
        positions=positions,
        when=draw(st.sampled_from(["all", "prompt", "decode"])),
        **options,
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(plans(), min_size=1, max_size=3))
def test_plans_round_trip_through_files(
    tmp_path_factory: pytest.TempPathFactory, given_plans: list[interp.Intervention]
):
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    interp.save_plan(given_plans, file)
    again = interp.load_plan(file)
    assert list(map(type, again)) == list(map(type, given_plans))
    for one, other in zip(given_plans, again, strict=True):
        for left, right in zip(one.edits(lambda _, u: u), other.edits(lambda _, u: u), strict=True):
            assert (left.site, left.multiply, left.positions, left.when) == (
                right.site,
                right.multiply,
                right.positions,
                right.when,
            )
            for name in ("columns", "add", "basis", "weight"):
                a, b = getattr(left, name), getattr(right, name)
                assert (a is None and b is None) or torch.equal(a, b)


UNITS = interp.Units({"blocks.0.neurons": [0, 3]}, {"blocks.0.neurons": 48})
SITE = UNITS.sites[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: interp.Zero(interp.Units({}, {})), "no units"),
        (lambda: interp.Zero(UNITS, when="decoding"), "nearest: decode"),
        (lambda: interp.Zero(UNITS, positions=(-1,)), "absolute positions >= 0"),
        (lambda: interp.Zero(UNITS, positions=()), "absolute positions >= 0"),
        (
            lambda: interp.Mean(UNITS, values={interp.Site("neurons", 1): np.zeros(48)}),
            "values are given for blocks.1.neurons",
        ),
        (lambda: interp.Mean(UNITS, values={SITE: np.zeros(47)}), r"48 wide; got shape \(47,\)"),
        (
            lambda: interp.Mean(UNITS, values={SITE: np.zeros((2, 48))}),
            "takes one row of values; got 2",
        ),
        (
            lambda: interp.Patch(UNITS, values={SITE: np.zeros((2, 48))}, positions=(2,)),
            "positions 0 to 1",
        ),
        (
            lambda: interp.Interchange(UNITS, values={SITE: np.zeros((3, 2, 48))}, positions=(2,)),
            "positions 0 to 1",
        ),
        (
            lambda: interp.Interchange(UNITS, values={SITE: np.zeros((2, 48))}),
            r"\[rows, positions, width\]; got shape \(2, 48\)",
        ),
        (
            lambda: interp.Interchange(UNITS, values={SITE: np.zeros((3, 2, 47))}),
            r"48 wide; got shape \(3, 2, 47\)",
        ),
        (
            lambda: interp.Interchange(UNITS, values={SITE: np.zeros((5, 3, 2, 48))}),
            r"got shape \(5, 3, 2, 48\)",
        ),
        (lambda: interp.Project(UNITS, values={SITE: np.ones(48)}, center={}), "no values for it"),
        (
            lambda: interp.Project(
                UNITS, values={SITE: np.ones(48)}, center={SITE: np.zeros((2, 48))}
            ),
            "takes one row of values; got 2",
        ),
    ],
)
def test_impossible_interventions_are_refused(
    llama: interp.Subject, make: Callable[[], interp.Intervention], message: str
):
    with pytest.raises(ValueError, match=message):
        lower_plans(llama.anatomy, make())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"kind": "Zeroo"}]', "nearest: Zero"),
        ("[{}]", "unknown intervention 'None'"),
        (
            '[{"kind": "Scale", "units": {"widths": {}, "indices": {}}, "positions": null, "when": "all"}]',
            "missing or unknown: factor",
        ),
        (
            '[{"kind": "Zero", "units": {"widths": {}, "indices": {}}, "positions": null, "when": "all", "by": 1}]',
            "missing or unknown: by",
        ),
    ],
)
def test_damaged_plan_files_are_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        interp.load_plan(tmp_path / "plan.json")


def test_what_has_a_default_may_be_missing_from_a_plan_file(tmp_path: Path):
    plan = interp.Project(UNITS, values={SITE: np.eye(48)[:2]})
    saved = plan.to_json()
    (tmp_path / "plan.json").write_text(
        json.dumps([{name: saved[name] for name in ("kind", "units", "values")}])
    )
    (again,) = interp.load_plan(tmp_path / "plan.json")
    assert isinstance(again, interp.Project)
    assert (again.positions, again.when, again.center) == (None, "all", None)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20))
def test_resampling_is_decided_by_the_seed(seed: int):
    subject, site = tiny.subject("llama"), interp.Site("resid_post", 0)
    pool = {site: values(32, 6)}
    plans = [
        interp.Resample(subject.anatomy.units(site), values=pool, seed=s)
        for s in (seed, seed, seed + 1)
    ]
    same, again, other = (lower_plans(subject.anatomy, plan)[0].add for plan in plans)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


@pytest.mark.parametrize("rows", [None, 2])
def test_what_is_added_repeats_after_its_period(rows: int | None):
    """By absolute position: a forward that starts at 4, as under a KV cache, reads the table where
    the whole one does."""
    period, width, length = 3, 2, 8
    shape = (period, width) if rows is None else (rows, period, width)
    table = torch.arange(np.prod(shape), dtype=torch.float32).reshape(shape)
    edit = Edit(interp.Site("neurons", 0), torch.arange(width), add=table)
    found = edit.addend(2, torch.arange(4, length))
    assert torch.equal(found, table[..., [1, 2, 0, 1], :])


@pytest.mark.parametrize(
    ("place", "shape"),
    [
        ("blocks.1.neurons", (48,)),
        ("blocks.1.neurons", (0, 48)),
        ("blocks.1.neurons", (3, 5, 48)),
        ("blocks.1.heads", (32,)),
        ("blocks.1.heads", (4, 8)),
    ],
)
def test_a_pool_that_is_not_rows_is_refused(llama: interp.Subject, place: str, shape: tuple):
    plan = interp.Resample(
        llama.anatomy.units(place), values={interp.Site.parse(place): np.ones(shape)}
    )
    with pytest.raises(ValueError, match=r"draws from rows, \[rows, width\]"):
        lower_plans(llama.anatomy, plan)


def test_a_pool_by_head_is_a_pool_by_column(llama: interp.Subject):
    [site], units = llama.anatomy.expand("blocks.1.heads"), llama.anatomy.units("blocks.1.heads")
    pool = values(32, 5)
    [flat] = lower_plans(llama.anatomy, interp.Resample(units, values={site: pool}))
    [split] = lower_plans(
        llama.anatomy, interp.Resample(units, values={site: pool.reshape(5, 4, 8)})
    )
    assert torch.equal(flat.add, split.add)
    assert {tuple(row) for row in flat.add.float().tolist()} == {
        tuple(row) for row in pool.tolist()
    }


def test_a_patch_of_several_donors_is_refused(llama: interp.Subject):
    [site], units = llama.anatomy.expand("blocks.1.heads"), llama.anatomy.units("blocks.1.heads")
    for shape in ((9, 32), (1, 9, 32), (9, 4, 8), (1, 9, 4, 8), (32,), (4, 8)):
        [edit] = lower_plans(llama.anatomy, interp.Patch(units, values={site: np.ones(shape)}))
        assert len(edit.positions) == np.prod(shape) // 32
    for shape in ((2, 9, 32), (2, 9, 4, 8)):
        with pytest.raises(ValueError, match=r"takes one donor.*Interchange takes one per row"):
            lower_plans(llama.anatomy, interp.Patch(units, values={site: np.ones(shape)}))


def test_samples_of_one_prompt_share_its_donor(llama: interp.Subject):
    [site] = llama.anatomy.expand("blocks.1.neurons")
    donors = {site: values(48, 2 * 9).reshape(2, 9, 48)}
    plan = interp.Interchange(llama.anatomy.units(site), values=donors)
    seen: list[Tensor] = []
    prompts = tiny.batch("llama", rows=2, length=5).tokens
    with (
        llama.intervened(plan),
        tapped(llama, {site: lambda value, _: seen.append(value.clone())}),
    ):
        llama.module.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=2,
            do_sample=True,
            num_return_sequences=3,
        )
    first = seen[0]
    assert len(first) == 6
    for row, value in enumerate(first):
        np.testing.assert_allclose(value, donors[site][row // 3][:5], rtol=1e-6)
