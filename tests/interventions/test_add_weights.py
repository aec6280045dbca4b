"""Laws of AddWeights: it equals the same matrix written into the weights of a copy, under
generation, caches, sweeps and other interventions too."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch

import interp
from interp.adapters import transformer_lens, weights
from interp.adapters.plan_steps import plan_steps
from interp.engine.sweeping import sweep_growing, sweep_naively, sweep_resuming
from interp.mitigation.curvature import singular_spectra
from interp.sites.anatomy import out_rows

# A wide and a narrow linear map of block 1 in each family, of nn.Linear and of GPT-2's Conv1D.
MAPS = {
    "llama": ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.down_proj"),
    "phi3": ("model.layers.1.mlp.gate_up_proj", "model.layers.1.mlp.down_proj"),
    "gpt2": ("transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj"),
    "opt": ("model.decoder.layers.1.fc1", "model.decoder.layers.1.fc2"),
    "bloom": ("transformer.h.1.mlp.dense_h_to_4h", "transformer.h.1.mlp.dense_4h_to_h"),
    "var": ("blocks.1.ffn.fc1", "blocks.1.ffn.fc2"),
    "rar": ("blocks.1.mlp.fc1", "blocks.1.mlp.fc2"),
}


def batch_of(name: str) -> interp.Batch:
    if name in tiny.IMAGE:
        return tiny.image_batch(name, rows=2)
    return tiny.batch(name, rows=2, length=9, prompt=4)


def matrix(subject: interp.Subject, path: str, seed: int = 0) -> np.ndarray:
    inputs, outputs = out_rows(subject.module.get_submodule(path)).shape
    return np.random.default_rng(seed).normal(size=(outputs, inputs))


def plan_of(subject: interp.Subject, *paths: str, **options: object) -> list[interp.AddWeights]:
    plans: list[interp.AddWeights] = []
    for path in paths:
        site = subject.anatomy.resolve(f"{path}:out")
        values = {site: matrix(subject, path)}
        plans.append(interp.AddWeights(subject.units(site), values=values, **options))
    return plans


def written(name: str, *paths: str, dtype: torch.dtype = torch.float64) -> interp.Subject:
    """A copy of a subject with the matrices in its weights."""
    module = copy.deepcopy(tiny.subject(name, dtype).module)
    for path in paths:
        projection = module.get_submodule(path)
        delta = torch.tensor(matrix(tiny.subject(name), path), dtype=dtype)
        with torch.no_grad():
            out_rows(projection).add_(delta.T)
    return interp.load(module)


@pytest.mark.parametrize("name", MAPS)
def test_the_plan_is_the_edited_weights(name: str):
    subject, batch = tiny.subject(name, torch.float64), batch_of(name)
    edited = written(name, *MAPS[name])
    clean = subject.logits(batch)
    with tiny.untouched(subject.module):
        with subject.intervened(plan_of(subject, *MAPS[name])):
            found, generated = subject.logits(batch), subject.generate(batch)
        assert torch.equal(subject.logits(batch), clean)
    torch.testing.assert_close(found, edited.logits(batch), rtol=0, atol=1e-9)
    assert torch.equal(generated, edited.generate(batch))
    assert (found - clean).abs().max() > 1e-3


@pytest.mark.parametrize("order", ["outside", "inside", "before", "after"])
def test_it_reads_what_other_interventions_leave(order: str):
    """As the weight itself does, whichever of the two hooks was set first."""
    path = MAPS["llama"][1]
    subject, batch = tiny.subject("llama", torch.float64), batch_of("llama")
    zero = interp.Zero(subject.units("blocks.1.neurons", [0, 3, 40]))
    added = plan_of(subject, path)
    edited = written("llama", path)
    with edited.intervened(zero):
        wanted = edited.logits(batch)
    if order == "outside":
        with subject.intervened(zero), subject.intervened(added):
            found = subject.logits(batch)
    elif order == "inside":
        with subject.intervened(added), subject.intervened(zero):
            found = subject.logits(batch)
    else:
        plans = [zero, *added] if order == "before" else [*added, zero]
        with subject.intervened(plans):
            found = subject.logits(batch)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_sweeps_equal_separate_runs(name: str):
    subject, batch = tiny.subject(name), batch_of(name)
    wide, narrow = MAPS[name]
    plans = [
        plan_of(subject, narrow),
        interp.Zero(subject.units("blocks.0.neurons", [1])),
        plan_of(subject, wide),
        [*plan_of(subject, narrow, positions=(1, 2)), *plan_of(subject, wide)],
    ]
    alone = sweep_naively(subject, batch, plans)
    assert sweep_resuming(subject, batch, plans) == alone
    np.testing.assert_allclose(sweep_growing(subject, batch, plans), alone, rtol=1e-5)
    assert len(set(alone)) == 4


def test_only_chosen_units_and_positions_change():
    subject, batch = tiny.subject("llama"), batch_of("llama")
    path = MAPS["llama"][0]
    site = interp.Site.parse(f"{path}:out")
    before = tiny.values_by_hand(subject, batch, site)
    read = tiny.values_by_hand(subject, batch, f"{path}:in")
    delta = torch.tensor(matrix(subject, path)).float()
    plan = interp.AddWeights(
        subject.units(site, [2, 5]), values={site: delta.numpy()}, positions=(1, 3)
    )
    with subject.intervened(plan):
        after = tiny.values_by_hand(subject, batch, site)
    wanted = before.clone()
    for position in (1, 3):
        for unit in (2, 5):
            wanted[:, position, unit] += read[:, position] @ delta[unit]
    torch.testing.assert_close(after, wanted, rtol=0, atol=1e-5)


def test_gradients_flow_through_it():
    subject, batch = tiny.subject("llama", torch.float64), batch_of("llama")
    path = MAPS["llama"][1]
    site = interp.Site.parse("blocks.1.neurons")
    gradients: list[torch.Tensor] = []
    for model, plans in ((subject, plan_of(subject, path)), (written("llama", path), [])):
        with model.intervened(*plans), interp.captured(model, (site,)) as values:
            loss = model.losses(batch).sum()
        gradients += torch.autograd.grad(loss, [values[site]])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9)


def test_the_fingerprint_knows_it():
    subject = tiny.subject("llama")
    [plan] = plan_of(subject, MAPS["llama"][0])
    [site] = plan.values
    other = interp.AddWeights(plan.units, values={site: 2 * plan.values[site]})
    seen = {subject.fingerprint}
    for each in (plan, other):
        with subject.intervened(each):
            seen.add(subject.fingerprint)
            subject.touch(batch_of("llama"))
    assert len(seen) == 3


LLAMA_OUT = "model.layers.1.mlp.gate_proj:out"


@pytest.mark.parametrize(
    ("name", "site", "given", "shape", "message"),
    [
        ("llama", LLAMA_OUT, "blocks.0.mlp_out", (48, 32), "values are given for blocks.0.mlp_out"),
        ("llama", LLAMA_OUT, LLAMA_OUT, (32, 48), r"48 outputs; got shape \(32, 48\)"),
        ("llama", LLAMA_OUT, LLAMA_OUT, (48,), r"48 outputs; got shape \(48,\)"),
        ("llama", LLAMA_OUT, LLAMA_OUT, (48, 31), "the matrix has 31 inputs; .*gate_proj has 32"),
        ("llama", "blocks.1.neurons", "blocks.1.neurons", (48, 48), "output of a linear map"),
        ("llama", "blocks.1.resid_mid", "blocks.1.resid_mid", (32, 32), "output of a linear map"),
    ],
)
def test_errors(name: str, site: str, given: str, shape: tuple[int, ...], message: str):
    subject = tiny.subject(name)
    values = {interp.Site.parse(given): np.zeros(shape)}
    plan = interp.AddWeights(subject.units(site), values=values)
    with (
        tiny.untouched(subject.module),
        pytest.raises(ValueError, match=message),
        subject.intervened(plan),
    ):
        pytest.fail("a refused plan must not run")


def test_executors_that_cannot_run_it_say_so():
    subject = tiny.subject("opt")
    plan = plan_of(subject, MAPS["opt"][1])
    batch = batch_of("opt")
    with pytest.raises(interp.HookError, match=r"adds to a weight.*subject\.intervened"):
        plan_steps(subject.anatomy, plan, batch)
    with pytest.raises(interp.SiteError, match=r"adds to a weight.*subject\.intervened"):
        transformer_lens.fwd_hooks(subject, plan)


@pytest.mark.parametrize("name", MAPS)
def test_it_can_be_written_into_the_weights(name: str):
    subject, batch = tiny.subject(name, torch.float64), batch_of(name)
    plans = plan_of(subject, *MAPS[name])
    with subject.intervened(plans):
        wanted = subject.logits(batch)
    with tiny.untouched(subject.module), weights.applied(subject, plans):
        assert tiny.hook_count(subject.module) == 0
        torch.testing.assert_close(subject.logits(batch), wanted, rtol=0, atol=1e-9)


def test_what_is_written_is_zeroed_with_the_unit():
    subject, batch = tiny.subject("llama", torch.float64), batch_of("llama")
    added = plan_of(subject, MAPS["llama"][1])
    zero = interp.Zero(subject.units("blocks.1.neurons", [0, 3, 40]))
    with subject.intervened(added, zero):
        wanted = subject.logits(batch)
    for plans in ([zero, *added], [*added, zero]):
        with tiny.untouched(subject.module), weights.applied(subject, *plans):
            torch.testing.assert_close(subject.logits(batch), wanted, rtol=0, atol=1e-9)
    with (
        tiny.untouched(subject.module),
        weights.applied(subject, added),
        weights.applied(subject, zero),
    ):
        torch.testing.assert_close(subject.logits(batch), wanted, rtol=0, atol=1e-9)


def test_what_cannot_be_written_says_so():
    subject = tiny.subject("llama")
    [limited] = plan_of(subject, MAPS["llama"][0], positions=(1,))
    norm = interp.Site.parse("model.layers.1.input_layernorm:out")
    at_norm = interp.AddWeights(subject.units(norm), values={norm: np.eye(32)})
    for plan, message in (
        (limited, r"limited to positions \(1,\).*subject\.intervened"),
        (at_norm, r"is not a matrix \(its shape is \(32,\)\).*subject\.intervened"),
    ):
        with (
            tiny.untouched(subject.module),
            pytest.raises(ValueError, match=message),
            weights.applied(subject, plan_of(subject, MAPS["llama"][1]), plan),
        ):
            pytest.fail("a refused plan must not run")


@pytest.mark.parametrize(
    "name", ["blocks.1.attn_out", "blocks.1.mlp_out", "blocks.1.resid_post", "input_norm"]
)
def test_what_is_no_linear_map_is_refused(name: str):
    """Their inputs and outputs are as wide as an out-projection, whose matrix would fit."""
    subject = tiny.subject("llama")
    path = "model.layers.1.input_layernorm:out" if name == "input_norm" else name
    site = interp.Site.parse(path)
    plan = interp.AddWeights(subject.units(site), values={site: np.eye(32)})
    both = [plan, interp.Zero(subject.units("blocks.0.neurons", [1]))]
    for run in (sweep_naively, sweep_growing, sweep_resuming):
        with pytest.raises(ValueError, match=r"of a Llama\w+: weights are added to the output of"):
            run(subject, batch_of("llama"), [plan, both])


class Square(torch.nn.Module):
    """A linear map that stores [outputs, inputs] as nn.Linear does, and is none."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value @ self.weight.T


def test_a_square_weight_whose_axes_are_not_known_is_not_written():
    module = copy.deepcopy(tiny.model("llama"))
    attention = module.get_submodule("model.layers.1.self_attn")
    attention.q_proj = Square(attention.q_proj.weight.detach().clone())
    subject, batch = interp.load(module), batch_of("llama")
    path = "model.layers.1.self_attn.q_proj"
    site = interp.Site.parse(f"{path}:out")
    plan = interp.AddWeights(subject.units(site), values={site: matrix(subject, path)})
    with subject.intervened(plan):
        assert subject.logits(batch).isfinite().all()
    with (
        tiny.untouched(subject.module),
        pytest.raises(ValueError, match=r"which axis .* of a Square is its inputs"),
        weights.applied(subject, plan),
    ):
        pytest.fail("a refused plan must not run")
    with pytest.raises(interp.SiteError, match=r"\(Square\) is not the output of a linear map"):
        singular_spectra(subject, site)
