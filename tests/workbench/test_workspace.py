"""A workbench without a browser: what it measures is what the rest of the toolkit measures, and the
model is left as it was."""

from __future__ import annotations

import contextlib
from typing import Any

import letters
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.memorization.evaluation import measure_under
from interp.memorization.halves import halve
from interp.workbench.treatment import Treatment
from interp.workbench.workspace import Workspace

TEXTS = letters.noise(8, 32, seed=0)


@pytest.fixture(scope="module")
def learner() -> interp.Subject:
    return letters.overfitted(TEXTS[:4])


@pytest.fixture(scope="module")
def frame(learner: interp.Subject) -> pd.DataFrame:
    return interp.scan(learner, TEXTS, prefix=8, length=8)


@pytest.fixture
def space(learner: interp.Subject, frame: pd.DataFrame) -> Workspace:
    memorized, control = interp.split(frame)
    return Workspace(learner, memorized, control[:6], control[6:])


def scored(space: Workspace) -> Workspace:
    space.use_method("gradient_x_activation")
    space.finish()
    return space


TREATMENTS = [
    {"kind": "zero"},
    {"kind": "scale", "factor": -0.5},
    {"kind": "mean"},
    {"kind": "add", "factor": 2.0},
    {"kind": "zero", "where": "suffix"},
    {"kind": "mean", "where": "chosen", "tokens": (9, 12)},
    {"kind": "zero", "when": "prompt"},
    {"kind": "scale", "when": "decode", "factor": 0.0},
]


@pytest.mark.parametrize("changes", TREATMENTS, ids=str)
def test_what_is_shown_is_what_measure_under_and_generate_give(
    space: Workspace, changes: dict[str, Any]
):
    scored(space).take_top(15)
    space.treat(**changes)
    space.finish()
    expected = measure_under(space.subject, [[], space.plan], space.data)
    for where, plan in (("before", 0), ("now", 1)):
        for name, measures in space.measured(where).items():
            rows = expected[(expected["data"] == name) & (expected["plan"] == plan)]
            for measure, values in measures.items():
                np.testing.assert_allclose(values, rows[measure], atol=1e-6)
    window = space.data["memorized"].rows(slice(0, 1))
    with space.subject.intervened(space.plan):
        assert space.continuation() == space.subject.generate(window)[0].tolist()
        losses = space.subject.losses(window)[0].detach()
    found = space.tokens()
    assert found is not None
    np.testing.assert_allclose(-found.log_p[window.prompt :], losses.numpy(), atol=1e-5)
    assert np.isnan(found.log_p[0])


@pytest.mark.parametrize("changes", TREATMENTS, ids=str)
def test_the_code_makes_the_same_plan(
    space: Workspace, learner: interp.Subject, frame: pd.DataFrame, changes: dict[str, Any]
):
    memorized, control = interp.split(frame)
    scored(space).take_top(15)
    space.paint(learner.units("blocks.1.neurons", range(10, 20)), on=True)
    space.treat(**changes)
    names: dict[str, Any] = {
        "subject": learner,
        "memorized": memorized,
        "control": control[:6],
    }
    exec(space.code(), names)
    ours = [intervention.to_json() for intervention in space.plan]
    theirs = [intervention.to_json() for intervention in names["plan"]]
    for one, other in zip(ours, theirs, strict=True):
        assert one["units"]["indices"] == other["units"]["indices"]
        assert one.keys() == other.keys()
        for key in one.keys() - {"units", "values"}:
            assert one[key] == other[key]
        for site, values in one.get("values", {}).items():
            np.testing.assert_allclose(values, other["values"][site], atol=1e-6)


def run_code(space: Workspace, **names: Any) -> list[dict[str, Any]]:
    given: dict[str, Any] = {"subject": space.subject, **names}
    exec(space.code(), given)
    return [intervention.to_json() for intervention in given["plan"]]


def test_the_code_reads_what_was_given(learner: interp.Subject, frame: pd.DataFrame):
    """Batches cannot be cut as tables can, and the sets of `of_scan` come from the scan."""
    memorized, control = map(interp.Batch.from_frame, interp.split(frame))
    space = Workspace(learner, memorized, control, windows=5)
    space.select(learner.units("blocks.1.heads", [1, 3]))
    space.treat(kind="add")
    [ours] = [intervention.to_json() for intervention in space.plan]
    [theirs] = run_code(space, memorized=memorized, control=control)
    assert theirs["units"]["indices"] == ours["units"]["indices"]
    np.testing.assert_allclose(
        np.ravel(theirs["values"]["blocks.1.heads"]), np.ravel(ours["values"]["blocks.1.heads"])
    )

    scanned = interp.scan(learner, [*TEXTS, *(text[::-1] for text in TEXTS)], 8, 8, stride=16)
    space = Workspace.of_scan(learner, scanned)
    space.select(learner.units("blocks.0.neurons", [1]))
    space.treat(kind="mean")
    [ours] = [intervention.to_json() for intervention in space.plan]
    [theirs] = run_code(space, frame=scanned)
    assert theirs["values"] == ours["values"]


def test_the_code_of_several_stacks_keeps_their_positions_apart(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
):
    first = interp.Zero(space.subject.units("blocks.0.neurons", [1]), positions=(3, 4))
    second = interp.Zero(space.subject.units("blocks.1.neurons", [2]), positions=(7, 8))
    space.select(first.units | second.units)
    monkeypatch.setattr(Workspace, "plan", (first, second))
    positions = [plan["positions"] for plan in run_code(space)]
    assert positions == [[3, 4], [7, 8]]


def test_a_plan_is_made_once(space: Workspace, monkeypatch: pytest.MonkeyPatch):
    """To find the positions takes a backward pass."""
    from interp.workbench import workspace

    calls: list[object] = []
    find = workspace.positions_of
    monkeypatch.setattr(
        workspace, "positions_of", lambda *given: calls.append(given) or find(*given)
    )
    space.select(space.subject.units("blocks.0.neurons", [1]))
    space.treat(where="suffix")
    space.finish()
    space.code()
    assert len(calls) <= 2  # the selection at all positions, then at those of the suffix


def test_scores_of_another_model_are_said_to_be(learner: interp.Subject, frame: pd.DataFrame):
    memorized, control = interp.split(frame)
    for scored, is_foreign in ((letters.subject(), True), (learner, False)):
        scores = interp.localize(scored, memorized, method="activation")
        space = Workspace(learner, memorized, control, scores=scores)
        space.finish()
        assert ("made on another model" in space.notice) == is_foreign


def test_positions_are_those_that_predict_the_tokens(space: Workspace):
    """By hand, in a language model: the position before the token."""
    space.select(space.subject.units("blocks.0.neurons", [1]))
    space.treat(where="chosen", tokens=(8, 15))
    assert [plan.positions for plan in space.plan] == [(7, 14)]
    space.treat(where="suffix")
    assert [plan.positions for plan in space.plan] == [tuple(range(7, 15))]
    with pytest.raises(ValueError, match="nothing predicts the first token"):
        space.treat(where="chosen", tokens=(0,))
    with pytest.raises(ValueError, match="expected 0 to 15"):
        space.treat(where="chosen", tokens=(8, 16))
    assert space.state.treatment.where == "suffix"  # nothing was changed


def test_chosen_positions_change_nothing_before_them(space: Workspace):
    space.select(space.subject.units("neurons"))
    space.treat(where="chosen", tokens=(12,))
    space.finish()
    before, now = space.tokens("before"), space.tokens("now")
    assert before is not None
    assert now is not None
    np.testing.assert_array_equal(before.log_p[:12], now.log_p[:12])
    assert before.log_p[12] != now.log_p[12]


def test_an_image_model_of_scales_is_treated_where_its_tokens_are():
    subject = interp.load(tiny.image_model("var"))
    images = tiny.image_batch("var", rows=4)
    space = Workspace(subject, images, images)
    space.select(subject.units("blocks.0.neurons", [0, 1, 2]))
    space.treat(where="chosen", tokens=(5,))
    space.finish()
    before, now = space.tokens("before"), space.tokens("now")
    assert before is not None
    assert now is not None
    same = before.log_p == now.log_p
    assert same[:5].all()
    assert not same[5]
    rows = space.pictures()
    assert list(rows) == ["original", "generated before", "generated now"]
    assert all(picture.shape == rows["original"].shape for picture in rows.values())


def test_undo_brings_back_the_kind_of_unit(space: Workspace):
    space.select(space.subject.units("blocks.0.neurons", [1, 2]))
    space.use_method("activation", "heads")
    assert not len(space.units)
    space.select(space.subject.units("blocks.0.heads", [1]))
    space.undo()
    space.undo()
    assert space.point == "neurons"
    assert len(space.units) == 2
    space.redo()
    assert (space.point, len(space.units)) == ("heads", 0)


def test_a_random_control_of_most_units_is_refused(space: Workspace):
    space.select(space.subject.units("blocks.0.neurons", range(40)))
    with pytest.raises(ValueError, match="8 other units at the sites of these 40"):
        space.take_control("random")
    assert len(space.units) == 40


def test_controls_have_the_same_size_and_other_units(space: Workspace):
    scored(space).take_top(10)
    chosen = space.units
    for name in ("random", "lowest", "as active"):
        space.select(chosen)
        space.take_control(name, seed=3)
        assert len(space.units) == 10
        assert not len(space.units & chosen)
        if name != "lowest":
            per_site = {site: len(chosen[site]) for site in chosen.sites}
            assert {site: len(space.units[site]) for site in space.units.sites} == per_site
    space.select(chosen)
    space.take_control("random", seed=3)
    assert space.units == chosen.draw_matched(3)


@given(
    st.lists(
        st.sampled_from(["top", "toggle", "treat", "random", "clear", "undo", "redo", "show"]),
        max_size=12,
    ),
    st.integers(0, 2**31),
)
@settings(max_examples=15)
def test_whatever_is_done_undo_goes_back_and_the_model_stays(actions: list[str], seed: int):
    rng = np.random.default_rng(seed)
    subject = tiny.subject("llama")
    batch = tiny.batch("llama", rows=3)
    widths = subject.anatomy.widths("neurons")
    scores = interp.UnitScores({site: rng.random(width) for site, width in widths.items()})
    space = Workspace(subject, batch, batch, scores=scores)
    site = space.sites[0]
    with tiny.untouched(subject.module):
        fingerprint = subject.fingerprint
        for action in actions:
            before = space.state
            if action == "top":
                space.take_top(int(rng.integers(0, 20)))
            elif action == "toggle":
                space.toggle(subject.units(str(site), [int(rng.integers(48))]))
            elif action == "treat":
                space.treat(kind=str(rng.choice(["zero", "mean", "scale", "add"])))
            elif action == "random" and len(space.units):
                space.take_control("random", int(rng.integers(5)))
            elif action == "show":
                space.show(int(rng.integers(3)))
            elif action in ("clear", "undo", "redo"):
                getattr(space, action)()
            if action not in ("undo", "redo") and space.state != before and space.can_undo:
                changed = space.state
                space.undo()
                assert space.units == before.units
                space.redo()
                assert space.state == changed
            space.measure_next()
        while space.can_undo:
            space.undo()
        assert not len(space.units)
        assert subject.fingerprint == fingerprint


def test_an_error_in_the_middle_leaves_the_model_as_it_was(space: Workspace):
    scored(space).take_top(5)
    fingerprint = space.subject.fingerprint

    def fail() -> torch.Tensor:
        raise KeyboardInterrupt

    broken = Workspace(space.subject, space.data["memorized"], space.data["control"], film=fail)
    broken.select(space.units)
    with tiny.untouched(space.subject.module), pytest.raises(KeyboardInterrupt):
        broken.finish()
    assert space.subject.fingerprint == fingerprint
    assert broken.measured("now")["memorized"]["exact"].shape == (12,)  # what was done is kept


def test_a_selection_that_comes_back_is_not_measured_again(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
):
    scored(space).take_top(5)
    space.finish()
    shown = space.changes()
    space.clear()
    space.undo()
    monkeypatch.setattr(space.subject, "logits", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(space.subject, "target_logits", lambda *_: pytest.fail("measured again"))
    space.finish()
    assert space.changes() == shown


def test_tries_are_those_measured_to_the_end(space: Workspace):
    scored(space).take_top(5)
    space.measure_next()
    assert space.tries().empty
    space.finish()
    space.take_control("random", 1)
    space.finish()
    tries = space.tries()
    assert tries["selection"].tolist() == ["top 5 by gradient x activation", "5 random, seed 1"]
    assert tries["units"].tolist() == [5, 5]
    [exact] = [change.now for change in space.changes() if change.measure == "exact"]
    assert tries["memorized exact"].iloc[1] == exact


def test_of_a_scan_units_are_scored_on_other_windows(learner: interp.Subject, frame: pd.DataFrame):
    other = [text[::-1] for text in TEXTS]
    scanned = interp.scan(learner, [*TEXTS, *other], 8, 8, stride=16)
    space = Workspace.of_scan(learner, scanned)
    assert space.scored_apart
    space.use_method("activation")
    space.finish()
    halves = halve(scanned)
    expected = interp.localize(learner, *halves.scored, method="activation")
    assert space.scores is not None
    for site in space.sites:
        np.testing.assert_array_equal(space.scores[site], expected[site])


def test_membership_is_that_of_the_token_map(learner: interp.Subject, frame: pd.DataFrame):
    memorized, control = interp.split(frame)
    space = Workspace(learner, memorized, control, reference=letters.subject())
    space.show(2)
    assert space.membership() is None
    space.finish()
    ids = memorized["tokens"].iloc[2]
    expected = interp.token_map(learner, list(ids), letters.subject(), bos=False)
    np.testing.assert_array_equal(space.membership(), expected.frame["score"])


def test_bad_input_is_refused_and_changes_nothing(
    space: Workspace, learner: interp.Subject, frame: pd.DataFrame
):
    memorized, control = interp.split(frame)
    with pytest.raises(ValueError, match="the control set is empty"):
        Workspace(learner, memorized, control[:0])
    shorter = interp.scan(learner, TEXTS, prefix=4, length=8)
    with pytest.raises(ValueError, match=r"prefixes of one length, got .*'control': 4"):
        Workspace(learner, memorized, shorter)
    with pytest.raises(ValueError, match="got Linear: make one with interp"):
        Workspace(torch.nn.Linear(2, 2), memorized, control)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the control set is a list"):
        Workspace(learner, memorized, [[1, 2, 3]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="windows=0"):
        Workspace(learner, memorized, control, windows=0)
    for sizes, message in (((7, 7), "scores of another model"), ((48,), "in every block")):
        sites = [interp.Site("neurons", block) for block in range(len(sizes))]
        scores = {site: np.ones(size) for site, size in zip(sites, sizes, strict=True)}
        with pytest.raises(ValueError, match=message):
            Workspace(learner, memorized, control, scores=interp.UnitScores(scores))
    before = space.state
    for act, message in (
        (lambda: space.take_top(3), "not scored by"),
        (lambda: scored(space).take_top(0.1), "whole number"),  # type: ignore[arg-type]
        (lambda: space.take_control("random"), "nothing is selected"),
        (lambda: space.take_control("randon"), "nearest: random"),
        (lambda: space.use_method("gradient_x"), "nearest: .*gradient_x_activation"),
        (lambda: space.use_method("activation", "head"), "nearest: heads"),
        (lambda: space.treat(kind="zeros"), "nearest: zero"),
        (lambda: space.treat(factor=float("nan")), "finite"),
        (lambda: space.treat(size=3), "unknown size"),
        (lambda: space.show(99), "expected 0 to 11"),
    ):
        with pytest.raises(ValueError, match=message):
            act()
        assert space.state == before
    with pytest.raises(interp.SiteError):
        space.select(interp.Units({"blocks.9.neurons": [1]}))


def test_treatments_read_as_one_would_say_them():
    assert Treatment("mean", where="suffix").in_words == (
        "mean of the control where the suffix is predicted"
    )
    assert Treatment("add", 1.5, when="decode").in_words == (
        "add 1.5 x (control - memorized), after the prompt alone"
    )


@pytest.mark.parametrize("change", ["trained", "edited", "hooked"])
def test_a_model_that_was_changed_meanwhile_is_measured_anew(frame: pd.DataFrame, change: str):
    """What was measured on another model must not be shown as if it were of this one."""
    subject = letters.overfitted(TEXTS[:4])
    memorized, control = interp.split(frame)
    space = Workspace(subject, memorized, control)
    scored(space).take_top(5)
    space.finish()
    before = space.measured("before")["memorized"]["loss"]
    space.clear()
    with contextlib.ExitStack() as stack:
        if change == "trained":
            interp.fit(subject, [subject.encode_all(TEXTS[4:])] * 3, 3, 1e-2)
        elif change == "edited":
            subject.module.get_submodule("model.layers.0.mlp.down_proj").weight.data[3] = 0
        else:
            stack.enter_context(subject.intervened(interp.Zero(subject.units("blocks.0.heads"))))
        space.finish()
        assert "measured anew" in space.notice
        now = space.measured("before")["memorized"]["loss"]
        expected = measure_under(subject, [[]], {"memorized": memorized})["loss"]
        np.testing.assert_allclose(now, expected, atol=1e-6)
        assert not np.allclose(now, before)
        space.take_top(5)
        space.finish()
        assert space.tries()["model"].tolist() == [1, 2]
