"""Laws of in_weights: a plan that is, to the last digits, the edited weights, and leaves none of it
behind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch

import interp
from interp.mitigation.controls import randomize
from interp.mitigation.weight_edits import in_weights

FC1 = {
    "var": "blocks.{}.ffn.fc1",
    "rar": "blocks.{}.mlp.fc1",
    "gpt2": "transformer.h.{}.mlp.c_fc",
    "opt": "model.decoder.layers.{}.fc1",
}
CHOSEN = {0: [3, 0, 40], 2: [7]}


def batch_of(name: str) -> interp.Batch:
    return tiny.image_batch(name, rows=3) if name in tiny.IMAGE else tiny.batch(name, rows=3)


def neurons(subject: interp.Subject, chosen: dict[int, list[int]] = CHOSEN) -> interp.Units:
    sites = {interp.Site("neurons", block): units for block, units in chosen.items()}
    return interp.Units(sites, subject.anatomy.widths("neurons"))


def edited(name: str, units: interp.Units, factor: float, *, bias: bool) -> interp.Subject:
    """A copy with the rows of the public weights multiplied."""
    module = copy.deepcopy(tiny.subject(name, torch.float64).module)
    with torch.no_grad():
        for site in units.sites:
            fc1 = module.get_submodule(FC1[name].format(site.block))
            rows = units[site].tolist()
            (fc1.weight if isinstance(fc1, torch.nn.Linear) else fc1.weight.T)[rows] *= factor
            if bias:
                fc1.bias[rows] *= factor
    return interp.load(module)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("factor", [0.5, 0.0, -1.5])
@pytest.mark.parametrize("name", FC1)
def test_the_plan_is_the_edited_weights(name, factor, bias):
    subject, batch = tiny.subject(name, torch.float64), batch_of(name)
    plan = in_weights(subject, neurons(subject), factor, bias=bias)
    clean = subject.logits(batch)
    with tiny.untouched(subject.module):
        with subject.intervened(plan):
            found, said = subject.logits(batch), subject.generate(batch)
        assert torch.equal(subject.logits(batch), clean)
    really = edited(name, neurons(subject), factor, bias=bias)
    torch.testing.assert_close(found, really.logits(batch), rtol=0, atol=1e-12)
    assert torch.equal(said, really.generate(batch))
    assert (found - clean).abs().max() > 1e-6
    other = edited(name, neurons(subject), factor, bias=not bias)
    assert (found - other.logits(batch)).abs().max() > 1e-9


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", FC1)
def test_random_controls_are_edited_weights_too(name, bias):
    """The values that keep the bias are those of the units drawn, and both parts draw the same."""
    subject, batch = tiny.subject(name, torch.float64), batch_of(name)
    plan = randomize(in_weights(subject, neurons(subject), 0.5, bias=bias), seed=5)
    assert len({tuple(i.units) for i in plan}) == 1
    drawn = {
        int(
            str(site).split("blocks.")[-1].split("layers.")[-1].split("h.")[-1].split(".")[0]
        ): plan[0].units[site]
        for site in plan[0].units.sites
    }
    units = neurons(subject, {block: rows.tolist() for block, rows in drawn.items()})
    assert {block: len(rows) for block, rows in drawn.items()} == {
        block: len(rows) for block, rows in CHOSEN.items()
    }
    assert not set(units) & set(neurons(subject))
    with subject.intervened(plan):
        found = subject.logits(batch)
    torch.testing.assert_close(
        found, edited(name, units, 0.5, bias=bias).logits(batch), rtol=0, atol=1e-12
    )


def test_a_factor_of_one_changes_nothing_and_half_a_neuron_is_something_else():
    subject, batch = tiny.subject("var", torch.float64), batch_of("var")
    clean, units = subject.logits(batch), neurons(subject)
    with subject.intervened(in_weights(subject, units, 1.0)):
        torch.testing.assert_close(subject.logits(batch), clean, rtol=0, atol=1e-13)
    with subject.intervened(in_weights(subject, units, 0.5)):
        found = subject.logits(batch)
    with subject.intervened(interp.Scale(units, factor=0.5)):
        assert (subject.logits(batch) - found).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2"])
def test_gated_neurons_are_refused(name):
    subject = tiny.subject(name)
    with (
        tiny.untouched(subject.module),
        pytest.raises(
            ValueError,
            match=r"blocks.0.neurons: expected neurons that one projection feeds.*found 2",
        ),
    ):
        in_weights(subject, neurons(subject), 0.5)


@pytest.mark.parametrize("site", ["blocks.0.heads", "blocks.1.mlp_out", "blocks.1.resid_mid"])
def test_other_units_are_refused(site):
    subject = tiny.subject("var")
    with pytest.raises(ValueError, match=f"{site}: expected neurons that one projection feeds"):
        in_weights(subject, tiny.units(subject, site, [0]), 0.5)


def test_plans_can_be_saved(tmp_path):
    subject, batch = tiny.subject("rar", torch.float64), batch_of("rar")
    plan = in_weights(subject, neurons(subject), 0.5)
    interp.save_plan(plan, tmp_path / "plan.json")
    logits = []
    for one in (plan, interp.load_plan(tmp_path / "plan.json")):
        with subject.intervened(one):
            logits.append(subject.logits(batch))
    np.testing.assert_array_equal(*(each.detach().numpy() for each in logits))
