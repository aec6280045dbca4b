"""Laws of interp.interventions: each equals the same change made by a plain torch hook, under generation too; plans are plain data."""

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
from interp.hooks import lowered, prompt_length
from interp.interventions import KINDS

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


def cases(units: interp.Units, width: int) -> dict[str, tuple[interp.Intervention, Callable[[Tensor], Tensor]]]:
    """Each kind of intervention, and what it should do to all columns of a value, written without it."""
    site = units.sites[0]
    row, rows = {site: values(width, 1)[0]}, {site: values(width, 9)}
    basis = {site: values(width, 2)}
    return {
        "Zero": (interp.Zero(units), torch.zeros_like),
        "Scale": (interp.Scale(units, factor=-1.5), lambda x: x * -1.5),
        "Mean": (interp.Mean(units, values=row), lambda x: torch.tensor(row[site]).expand_as(x)),
        "Add": (interp.Add(units, values=row), lambda x: x + torch.tensor(row[site])),
        "Patch": (interp.Patch(units, values=rows), lambda x: torch.tensor(rows[site]).expand_as(x)),
        "Resample": (interp.Resample(units, values=rows, seed=7), lambda x: resampled(x, rows[site], 7)),
        "Project": (interp.Project(units, values=basis), lambda x: x),
    }


def test_every_kind_is_tested():
    units = interp.Units({"embed": [0]}, {"embed": 2})
    assert cases(units, 2).keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
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
            projected(value[..., columns], values(width, 2)[:, columns]) if kind == "Project" else change(value)[..., columns]
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
        left = interp.record(llama, batch, "blocks.1.resid_mid", reduce="rows")["blocks.1.resid_mid"]
    with llama.intervened(plan, plan):
        torch.testing.assert_close(llama.logits(batch), once[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(left @ basis.T, 0, atol=1e-4)


@pytest.mark.parametrize("name", tiny.ALL)
def test_patching_a_whole_residual_gives_the_donors_logits(name: str):
    subject, donor, other = tiny.subject(name), tiny.batch(name, rows=1, seed=1), tiny.batch(name, rows=2, seed=2)
    last_stack = list(subject.anatomy.stacks)[-1]
    for block in range(tiny.BLOCKS):
        site = interp.Site("resid_post", block, last_stack)
        plan = interp.Patch(subject.anatomy.units(site), values={site: tiny.values_by_hand(subject, donor, site)[0].numpy()})
        with torch.no_grad(), subject.intervened(plan):
            torch.testing.assert_close(subject.logits(other), subject.logits(donor).expand(2, -1, -1), rtol=0, atol=1e-5)


def test_patching_changes_only_the_donors_positions(llama: interp.Subject):
    site, batch = interp.Site("resid_pre", 1), tiny.batch("llama")
    plan = interp.Patch(llama.anatomy.units(site), values={site: values(32, 4)}, positions=(1, 3))
    clean = tiny.values_by_hand(llama, batch, site)
    with llama.intervened(plan):
        patched = tiny.values_by_hand(llama, batch, "blocks.1.resid_mid") - tiny.values_by_hand(llama, batch, "blocks.1.attn_out")
    torch.testing.assert_close(patched[:, [0, 2, *range(4, 9)]], clean[:, [0, 2, *range(4, 9)]], rtol=0, atol=1e-5)
    torch.testing.assert_close(patched[:, [1, 3]], torch.tensor(values(32, 4))[[1, 3]].expand(2, -1, -1), rtol=0, atol=1e-5)


def generated_without_cache(subject: interp.Subject, prompt: Tensor, length: int) -> Tensor:
    ids = prompt
    with torch.no_grad(), prompt_length(prompt.shape[1]):
        for _ in range(length):
            ids = torch.cat([ids, subject.module(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids[:, prompt.shape[1] :]


@pytest.mark.parametrize("name", tiny.HUGGING_FACE)
@pytest.mark.parametrize(
    "narrow", [{}, {"when": "prompt"}, {"when": "decode"}, {"positions": (2, 7, 9)}, {"positions": (1, 8), "when": "decode"}]
)
def test_generation_under_a_plan_equals_recomputation_without_cache(name: str, narrow: dict[str, Any]):
    subject, prompt = tiny.subject(name), tiny.batch(name, length=6, seed=8).tokens
    site = interp.Site("mlp_out", 1)
    units = tiny.units(subject, site, list(range(0, 32, 2)))
    plans = (
        interp.Add(units, values={site: 3 * values(32, 1)[0]}, **narrow),
        interp.Resample(tiny.units(subject, "blocks.0.attn_out", [0, 1, 2]), values={interp.Site("attn_out", 0): values(32, 5)}, **narrow),
    )
    with subject.intervened(*plans):
        cached = subject.generate(prompt, 6)
    with subject.intervened(*plans):
        assert torch.equal(cached, generated_without_cache(subject, prompt, 6))


def test_when_and_positions_choose_what_is_changed(llama: interp.Subject):
    """A value at `final` is seen by the logits of its own position alone, so each position tells whether it was changed."""
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
    for plans, by_hand in (((add, scale), lambda v: (v + torch.tensor(row)) * 2), ((scale, add), lambda v: v * 2 + torch.tensor(row))):
        with torch.no_grad(), tiny.by_hand(llama.module, place, by_hand):
            wanted = llama.logits(batch)
        with torch.no_grad(), llama.intervened(*plans):
            torch.testing.assert_close(llama.logits(batch), wanted, rtol=0, atol=1e-6)
        with torch.no_grad(), llama.intervened(plans):
            torch.testing.assert_close(llama.logits(batch), wanted, rtol=0, atol=1e-6)
        with torch.no_grad(), llama.intervened(plans[0]), llama.intervened(plans[1]):
            torch.testing.assert_close(llama.logits(batch), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "reduce"), [("Mean", "mean"), ("Add", "mean"), ("Resample", "rows"), ("Project", "rows"), ("Patch", "rows")]
)
@pytest.mark.parametrize("site", ["blocks.0.heads", "blocks.0.neurons"])
def test_recordings_are_values(llama: interp.Subject, site: str, kind: str, reduce: str):
    batch = tiny.batch("llama")
    recording = interp.record(llama, batch, site, reduce=reduce)
    units = tiny.units(llama, site, [1, 3])
    edit = lowered(llama.anatomy, KINDS[kind](units, values=recording))[0]
    columns = llama.anatomy.columns(units.sites[0], units[site])
    if kind != "Project":
        assert edit.add is not None
        rows = {
            row.tobytes()
            for row in recording[site].reshape(-1 if reduce == "rows" else 1, llama.anatomy.place(site).width)[:, columns].astype(float)
        }
        assert {row.tobytes() for row in edit.add.numpy()} <= rows


WIDTHS = {interp.Site("neurons", 0): 5, interp.Site("heads", 1): 3}
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def plans(draw: Any) -> interp.Intervention:
    kind = draw(st.sampled_from(sorted(KINDS)))
    sites = draw(st.lists(st.sampled_from(list(WIDTHS)), min_size=1, unique=True))
    chosen = interp.Units({s: draw(st.lists(st.integers(0, WIDTHS[s] - 1), min_size=1)) for s in sites}, WIDTHS)
    rows = {"Mean": 1, "Add": 1}.get(kind, 3)
    table = {s: np.array(draw(st.lists(finite, min_size=rows * WIDTHS[s], max_size=rows * WIDTHS[s]))).reshape(rows, -1) for s in sites}
    options = {"Zero": {}, "Scale": {"factor": draw(finite)}}.get(kind, {"values": table})
    if kind == "Resample":
        options["seed"] = draw(st.integers(0, 99))
    positions = draw(st.none() | st.lists(st.integers(0, 2), min_size=1, unique=True).map(tuple))
    return KINDS[kind](chosen, positions=positions, when=draw(st.sampled_from(["all", "prompt", "decode"])), **options)


@settings(max_examples=40, deadline=None)
@given(st.lists(plans(), min_size=1, max_size=3))
def test_plans_round_trip_through_files(tmp_path_factory: pytest.TempPathFactory, given_plans: list[interp.Intervention]):
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    interp.save_plan(given_plans, file)
    again = interp.load_plan(file)
    assert list(map(type, again)) == list(map(type, given_plans))
    for one, other in zip(given_plans, again, strict=True):
        for left, right in zip(one.edits(lambda _, u: u), other.edits(lambda _, u: u), strict=True):
            assert (left.site, left.multiply, left.positions, left.when) == (right.site, right.multiply, right.positions, right.when)
            for name in ("columns", "add", "basis"):
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
        (lambda: interp.Mean(UNITS, values={interp.Site("neurons", 1): np.zeros(48)}), "values are given for blocks.1.neurons"),
        (lambda: interp.Mean(UNITS, values={SITE: np.zeros(47)}), r"48 wide; got shape \(47,\)"),
        (lambda: interp.Mean(UNITS, values={SITE: np.zeros((2, 48))}), "takes one row of values; got 2"),
        (lambda: interp.Patch(UNITS, values={SITE: np.zeros((2, 48))}, positions=(2,)), "positions 0 to 1"),
    ],
)
def test_impossible_interventions_are_refused(llama: interp.Subject, make: Callable[[], interp.Intervention], message: str):
    with pytest.raises(ValueError, match=message):
        lowered(llama.anatomy, make())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"kind": "Zeroo"}]', "nearest: Zero"),
        ("[{}]", "unknown intervention 'None'"),
        ('[{"kind": "Scale", "units": {"widths": {}, "indices": {}}, "positions": null, "when": "all"}]', "missing or unknown: factor"),
        ('[{"kind": "Zero", "units": {"widths": {}, "indices": {}}, "positions": null, "when": "all", "by": 1}]', "missing or unknown: by"),
    ],
)
def test_damaged_plan_files_are_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        interp.load_plan(tmp_path / "plan.json")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20))
def test_resampling_is_decided_by_the_seed(seed: int):
    subject, site = tiny.subject("llama"), interp.Site("resid_post", 0)
    pool = {site: values(32, 6)}
    plans = [interp.Resample(subject.anatomy.units(site), values=pool, seed=s) for s in (seed, seed, seed + 1)]
    same, again, other = (lowered(subject.anatomy, plan)[0].add for plan in plans)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
