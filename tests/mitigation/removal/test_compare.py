"""Laws of removal_report: its rows equal what the toolkit measures by itself, what is not given is
not measured, a plan equals the same edit of weights, and no model is changed."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import letters
import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import interp
from interp.memorization.recitation import by_row, levels, recitation
from interp.mitigation.removal.report import RemovalReport
from interp.mitigation.removal.stress import Relearning, duplicate, round_weights, shuffle_secrets
from interp.mitigation.unlearning.stopping import Stop
from interp.reporting.stats import Interval, bootstrap, paired_interval

TEXTS = letters.noise(18, 16, seed=3)
SECRET = 8  # letters at the end of each text


@functools.cache
def memorized() -> interp.Subject:
    """A model that knows the first twelve texts; no test may change it."""
    subject = letters.subject()
    interp.fit(subject, [subject.encode_all(TEXTS[:12])] * 80, 80, lr=1e-2)
    return subject


@functools.cache
def unlearned() -> interp.Subject:
    subject = duplicate(memorized())
    sets = data()
    stop = Stop({"ma": 0.25, "el_3": 0.1}, epochs=40)
    interp.unlearn(subject, sets["forget"], sets["retain"], stop=stop, lr=2e-3)
    return subject


def with_secrets(texts: list[str]) -> interp.Batch:
    batch = memorized().encode_all(texts)
    scored = torch.zeros_like(batch.tokens, dtype=torch.bool)
    scored[:, -SECRET:] = True
    return replace(batch, scored=scored)


@functools.cache
def data() -> dict[str, interp.Batch]:
    pairs = zip(TEXTS[:5], TEXTS[12:17], strict=True)
    never_seen = [known[:SECRET] + new[SECRET:] for known, new in pairs]
    return {
        "forget": with_secrets(TEXTS[:5]),
        "retain": memorized().encode_all(TEXTS[5:7]),
        "memorized": memorized().encode_all(TEXTS[7:9]),
        "others": with_secrets(TEXTS[9:12]),
        "twins": with_secrets(never_seen),
        "unseen": with_secrets(TEXTS[12:]),
        "held_out": memorized().encode_all(TEXTS[12:]),
    }


def compare(after: Any, *names: str, **options: Any) -> RemovalReport:
    sets: dict[str, Any] = {name: data()[name] for name in names}
    given: dict[str, Any] = {"relearning": None, "bits": (), "ngrams": (3,)}
    return interp.removal_report(memorized(), after, data()["forget"], **sets, **(given | options))


@functools.cache
def full() -> RemovalReport:
    """Every set, a control, relearning and rounding."""
    return compare(
        unlearned(),
        *(name for name in data() if name != "forget"),
        control=interp.Zero(memorized().units("blocks.0.neurons", [1, 2])),
        relearning=Relearning((0, 2, 4), lr=1e-3),
        bits=(8, 3),
        depths={"after": Interval(0.5, 0.4, 0.6, 5)},
    )


def level(row: pd.Series) -> tuple[float, float, float]:
    return row["estimate"], row["low"], row["high"]


def ends(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


@pytest.mark.parametrize("model", ["before", "after", "control"])
def test_levels_are_those_of_recitation(model):
    subject: Callable[[], interp.Subject] = unlearned if model == "after" else memorized
    plan = interp.Zero(memorized().units("blocks.0.neurons", [1, 2]))
    context = memorized().intervened(plan) if model == "control" else contextlib.nullcontext()
    with context:
        forget = by_row(recitation(subject(), data()["forget"], (3,)))
        for name in ("retain", "memorized", "others"):
            expected = bootstrap(by_row(recitation(subject(), data()[name], ()))["ma"])
            assert level(full().row("damage", name, "ma", model=model)) == ends(expected)
        losses = subject().losses(data()["held_out"]).mean(1).detach().double()
        own = -subject().losses(data()["forget"]).sum(1).detach() / SECRET
        other = -subject().losses(data()["twins"]).sum(1).detach() / SECRET
        logits = subject().logits(data()["forget"])
        hits = (logits.argmax(-1) == data()["forget"].tokens)[:, 1:-SECRET]
    for name in ("ma", "el_3"):
        expected = bootstrap(forget[name])
        assert level(full().row("forgetting", "forget", name, model=model)) == ends(expected)
    around = bootstrap(hits.double().mean(1))
    found = full().row("damage", "context", "accuracy", model=model)
    assert level(found) == pytest.approx(ends(around))
    perplexity = full().row("damage", "held_out", "perplexity", model=model)
    assert level(perplexity) == pytest.approx(tuple(np.exp(ends(bootstrap(losses)))), rel=1e-5)
    scores = torch.cat([own, other])
    auc = interp.roc(scores, [1] * 5 + [0] * 5).auc
    assert level(full().row("membership", "forget and twins", "auc", model=model)) == ends(auc)
    assert found["files"] == 5


def test_changes_are_paired_file_by_file():
    before = by_row(recitation(memorized(), data()["forget"], ()))["ma"]
    after = by_row(recitation(unlearned(), data()["forget"], ()))["ma"]
    row = full().row("forgetting", "forget", "ma")
    expected = ends(paired_interval(after, before))
    assert (row["change"], row["change_low"], row["change_high"]) == expected
    untouched = full().row("forgetting", "forget", "ma", model="before")
    assert np.isnan(untouched["change"])


def test_the_change_of_perplexity_is_that_of_the_loss():
    row = full().row("damage", "held_out", "perplexity")
    before = full().row("damage", "held_out", "perplexity", model="before")
    assert row["change"] == pytest.approx(row["estimate"] - before["estimate"])
    losses = [
        subject.losses(data()["held_out"]).mean(1).detach().double()
        for subject in (unlearned(), memorized())
    ]
    rise = paired_interval(*losses)
    assert row["change_low"] == pytest.approx(before["estimate"] * np.expm1(rise.low), rel=1e-4)
    assert row["change_high"] == pytest.approx(before["estimate"] * np.expm1(rise.high), rel=1e-4)


@pytest.mark.parametrize(("bits", "model"), [(8, "after"), (3, "before")])
def test_rounded_levels_are_those_of_the_rounded_model(bits, model):
    subject = unlearned() if model == "after" else memorized()
    expected = levels(recitation(round_weights(subject, bits), data()["forget"], ()))["ma"]
    assert full().row("rounding", "forget", "ma", bits, model)["estimate"] == expected


def test_relearning_begins_where_the_removal_ended():
    ma = by_row(recitation(unlearned(), data()["forget"], ()))["ma"].to_numpy()
    of_twins = by_row(recitation(unlearned(), data()["twins"], ()))["ma"].to_numpy()
    for part, rows in (("trained on", [0, 2, 4]), ("not trained on", [1, 3])):
        found = full().row("relearning", f"forget, {part}", "ma", 0)
        assert level(found) == ends(bootstrap(ma[rows]))
        difference = full().row("relearning", f"forget minus never seen, {part}", "ma", 0)
        assert level(difference) == ends(paired_interval(ma[rows], of_twins[rows]))


def test_relearning_equals_fit_by_hand():
    learner = duplicate(unlearned())
    trained_on = data()["forget"].rows(slice(0, None, 2))
    interp.fit(learner, [trained_on] * 4, 4, lr=1e-3, clip=1.0)
    ma = by_row(recitation(learner, data()["forget"], ()))["ma"]
    for part, rows in (("trained on", [0, 2, 4]), ("not trained on", [1, 3])):
        found = full().row("relearning", f"forget, {part}", "ma", 4)
        assert found["estimate"] == pytest.approx(ma[rows].mean())
    assert full().row("relearning", "forget, trained on", "ma", 4, "control")["estimate"] == 1.0
    with pytest.raises(LookupError, match="no row for relearning"):
        full().row("relearning", "forget, trained on", "ma", 4, "before")


def test_the_control_is_subtracted_file_by_file():
    row = full().row("forgetting", "after minus control", "ma")
    after = by_row(recitation(unlearned(), data()["forget"], ()))["ma"]
    plan = interp.Zero(memorized().units("blocks.0.neurons", [1, 2]))
    with memorized().intervened(plan):
        control = by_row(recitation(memorized(), data()["forget"], ()))["ma"]
    assert level(row) == ends(paired_interval(after, control))


def test_a_depth_is_there_when_it_is_given():
    assert level(full().row("depth", "forget", "depth")) == (0.5, 0.4, 0.6)
    assert "depth is 0.50 [0.40, 0.60] of 1" in full().verdict
    assert "depth" not in set(compare(unlearned(), "unseen").frame["group"])


def test_a_plan_equals_the_same_edit_of_weights():
    units = memorized().units("blocks.1.neurons", range(40))
    edited = duplicate(memorized())
    weight = edited.module.get_submodule("model.layers.1.mlp.down_proj").get_parameter("weight")
    with torch.no_grad():
        weight[:, :40] = 0
    sets = ("twins", "retain", "held_out")
    plan = compare(interp.Zero(units), *sets).frame
    weights = compare(edited, *sets).frame
    pd.testing.assert_frame_equal(plan, weights, rtol=1e-4)
    assert plan["estimate"][plan["model"] == "after"].min() < 0.5


def test_no_removal_at_all_has_failed():
    report = compare(duplicate(memorized()), "unseen", "retain", "held_out")
    after = report.frame[report.frame["model"] == "after"]
    assert (after["change"] == 0).all()
    assert report.outcome == "failed"
    assert report.verdict.startswith(
        "The removal failed: MA of the forget set (5 files) goes from 1.00 to "
    )


def test_nothing_is_left_changed():
    plan = interp.Zero(memorized().units("blocks.0.neurons", [3]))
    state = torch.get_rng_state()
    with tiny.untouched(memorized().module), tiny.untouched(unlearned().module):
        compare(
            unlearned(),
            "twins",
            "retain",
            control=plan,
            relearning=Relearning((0, 1)),
            bits=(4,),
        )
    assert torch.equal(state, torch.get_rng_state())
    for subject in (memorized(), unlearned()):
        assert all(parameter.grad is None for parameter in subject.module.parameters())


def test_the_same_twice():
    again = compare(unlearned(), "twins", relearning=Relearning((0, 2), lr=1e-3), bits=(4,))
    first = compare(unlearned(), "twins", relearning=Relearning((0, 2), lr=1e-3), bits=(4,))
    pd.testing.assert_frame_equal(first.frame, again.frame, check_exact=True)


@pytest.mark.parametrize(
    ("names", "absent"),
    [
        (("unseen",), {"twins", "retain", "memorized", "others", "held_out", "forget and twins"}),
        (("twins", "retain"), {"memorized", "others", "held_out"}),
        (("unseen", "others", "held_out"), {"twins", "retain", "memorized"}),
    ],
)
def test_what_is_not_given_is_not_measured(names, absent):
    report = compare(unlearned(), *names)
    there = set(report.frame["data"])
    assert not there & absent
    assert {"forget", "context"} <= there
    assert set(report.frame["model"]) == {"before", "after"}
    assert {name for name in names if name != "unseen"} <= there
    assert report.verdict.endswith(".")


def test_a_copy_without_a_tokenizer_completes_code_too():
    bare = interp.load(copy.deepcopy(memorized().module))
    assert bare.tokenizer is None
    found = compare(bare, "unseen").frame.query("data == 'completions'")
    assert found["model"].tolist() == ["before", "after"]
    assert found["estimate"].nunique() == 1
    assert bare.tokenizer is None


def test_thresholds_are_those_of_data_that_was_not_seen_under_the_model_before():
    from_unseen = compare(unlearned(), "unseen", "twins")
    assert from_unseen.source == "unseen data"
    expected = levels(recitation(memorized(), data()["unseen"], (3,)))
    assert from_unseen.thresholds == expected
    from_twins = compare(unlearned(), "twins")
    assert from_twins.source == "never-seen twins"
    assert from_twins.thresholds == levels(recitation(memorized(), data()["twins"], (3,)))
    given = compare(unlearned(), "unseen", thresholds={"ma": 0.9})
    assert (given.thresholds, given.source) == ({"ma": 0.9}, "given")


@pytest.mark.parametrize(
    ("names", "control", "compared_with"),
    [
        (("twins", "unseen"), "twins", "never-seen twins"),
        (("unseen",), "unseen", "unseen data"),
        ((), "shuffled", "the secrets shuffled"),
    ],
)
def test_what_relearning_is_compared_with(names, control, compared_with):
    report = compare(
        unlearned(), *names, thresholds={"ma": 0.3}, relearning=Relearning((0, 2), lr=1e-3)
    )
    if control == "shuffled":
        batch = shuffle_secrets(data()["forget"])
    else:
        batch = data()[control].rows(slice(0, 5))
    learner = duplicate(unlearned())
    trained_on = batch.rows(slice(0, None, 2))
    interp.fit(learner, [trained_on] * 2, 2, lr=1e-3, clip=1.0)
    ma = by_row(recitation(learner, batch, ()))["ma"]
    found = report.row("relearning", "never seen, trained on", "ma", 2)
    assert found["estimate"] == pytest.approx(ma[[0, 2, 4]].mean())
    assert report.about["relearning compared with"] == compared_with
    own = report.row("relearning", "forget, trained on", "ma", 2)["estimate"]
    difference = report.row("relearning", "forget minus never seen, trained on", "ma", 2)
    assert difference["estimate"] == pytest.approx(own - found["estimate"])


def test_a_single_file_has_no_half_that_is_not_trained_on():
    report = interp.removal_report(
        memorized(),
        unlearned(),
        data()["forget"].rows(slice(0, 1)),
        thresholds={"ma": 0.5},
        ngrams=(),
        bits=(),
        relearning=Relearning((0, 1)),
    )
    assert "forget, trained on" in set(report.frame["data"])
    assert "forget, not trained on" not in set(report.frame["data"])
    assert report.returned is not None
    assert "MA of the forget set (1 file) goes from 1.00 to " in report.verdict
    assert " (1 file, so no interval), at most 0.50 (as given)" in report.verdict


def test_relearning_is_not_measured_on_files_whose_secrets_were_trained_on():
    forget = data()["forget"].rows(torch.tensor([0, 1, 2, 0, 4]))
    report = interp.removal_report(
        memorized(),
        unlearned(),
        forget,
        twins=data()["twins"],
        ngrams=(),
        bits=(),
        relearning=Relearning((0, 2), lr=1e-3),
    )
    learner = duplicate(unlearned())
    interp.fit(learner, [forget.rows(slice(0, None, 2))] * 2, 2, lr=1e-3, clip=1.0)
    ma = by_row(recitation(learner, forget, ()))["ma"]
    for data_of in ("forget", "never seen", "forget minus never seen"):
        assert report.row("relearning", f"{data_of}, not trained on", "ma", 2)["files"] == 1
        assert report.row("relearning", f"{data_of}, trained on", "ma", 2)["files"] == 3
    found = report.row("relearning", "forget, not trained on", "ma", 2)
    assert found["estimate"] == pytest.approx(ma[1])


def test_a_perplexity_beyond_all_numbers_is_infinite():
    broken = duplicate(unlearned())
    with torch.no_grad():
        broken.module.lm_head.weight.mul_(1e4)
    report = compare(broken, "unseen", "held_out")
    row = report.row("damage", "held_out", "perplexity")
    assert np.isinf(row["estimate"])
    assert np.isinf(row["change"])
    assert "held_out" in set(report.damage["data"])


def test_shares_of_files_that_agree_have_the_interval_of_their_number():
    row = full().row("forgetting", "forget", "exact", model="before")
    # 0.025 ** (1 / 5): Clopper and Pearson's lower end for 5 of 5
    assert level(row) == pytest.approx((1.0, 0.4782, 1.0), abs=1e-4)


@pytest.mark.parametrize("name", tiny.IMAGE)
def test_images_and_models_without_a_tokenizer(name):
    before = tiny.wrapped(tiny.model(name))
    after = tiny.wrapped(copy.deepcopy(before.module))
    forget, twins = (tiny.image_batch(name, seed=seed) for seed in (0, 1))
    with tiny.untouched(before.module), tiny.untouched(after.module):
        report = interp.removal_report(
            before,
            after,
            forget,
            twins=twins,
            ngrams=(),
            thresholds={"ma": 1.0},
            relearning=Relearning((0, 1)),
            bits=(8,),
        )
    assert report.outcome == "nothing to remove"
    assert set(report.frame["group"]) == {"forgetting", "membership", "rounding", "relearning"}


def test_what_makes_no_sense_is_refused():
    forget = data()["forget"]
    other_shape = interp.load(tiny.model("llama"))
    padded = memorized().encode_all([*TEXTS[12:14], TEXTS[0], TEXTS[1] + "abc"])
    for options, message in (
        ({"after": []}, "the plan of after is empty: expected at least one intervention"),
        ({"control": ()}, "the plan of control is empty"),
        ({"after": other_shape}, r"after is a model of another shape than before: \d+ weights"),
        ({"twins": data()["unseen"]}, "6 twins of 5 files: expected for each file of forget"),
        ({"twins": forget}, "row 0 of twins is also in forget"),
        ({"unseen": padded}, "row 2 of unseen is also in forget: .* leave it out"),
        ({"held_out": padded}, "row 2 of held_out is also in forget: expected data that no model"),
        ({"retain": padded}, "row 2 of retain is also in forget: .* would count as damage"),
        ({"memorized": padded}, "row 2 of memorized is also in forget: .* would count as damage"),
        ({"others": padded}, "row 2 of others is also in forget: .* would count as damage"),
        ({"thresholds": {"ma": 30}}, "the threshold of ma is 30: expected 0 to 1"),
        ({"thresholds": {"ma": math.nan}}, "the threshold of ma is nan: expected 0 to 1"),
        ({"unseen": None}, "no thresholds: expected thresholds=.*unseen= or twins="),
        ({"thresholds": {"el_5": 0.1}}, "a threshold of 'el_5': expected one of .*: ma, el_3"),
        ({"depths": {"afterwards": Interval(0, 0, 0, 1)}}, r"depths of \['afterwards'\]: expected"),
    ):
        given: dict[str, Any] = {"after": unlearned(), "unseen": data()["unseen"]} | options
        after = given.pop("after")
        with tiny.untouched(memorized().module), pytest.raises(ValueError, match=message):
            interp.removal_report(memorized(), after, forget, ngrams=(3,), bits=(), **given)
