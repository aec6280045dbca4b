"""Laws of the curvature edit: factors against plain torch hooks and closed forms, the edit by hand
and as written weights, its controls."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import interp
from interp.mitigation.curvature import (
    Factors,
    Spectrum,
    curvature_edit,
    decompose,
    kronecker_factors,
    mlp_maps,
    singular_spectra,
)
from interp.sites.anatomy import Place, out_rows
from interp.subject.stepwise import plain_forward

FAMILIES = ("llama", "gpt2", "phi3", "opt", "bloom", "gemma3", "var", "rar")


def batch_of(name: str, *, padded: bool = False) -> interp.Batch:
    if name in tiny.IMAGE:
        return tiny.image_batch(name, rows=3)
    return tiny.batch(name, rows=3, length=9, padded=padded)


class Layer(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.map = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)


class Linear(nn.Module):
    """A linear model: the logits of the next token are W times the vector of this one."""

    def __init__(self, vectors: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(vectors.double())
        self.blocks = nn.ModuleList([Layer(*weight.T.shape)])
        self.blocks[0].map.weight = nn.Parameter(weight.double())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.blocks[0](self.embed(tokens))


MAP = interp.Site("blocks.0.map:out")


def linear(vectors: Tensor, weight: Tensor) -> interp.Subject:
    outputs, inputs = weight.shape
    places = {
        interp.Site("blocks.0.map:in"): Place("blocks.0.map", "in", inputs),
        MAP: Place("blocks.0.map", "out", outputs),
    }
    anatomy = interp.Anatomy({"": ("blocks.0",)}, {}, modules=places)
    return interp.Subject(Linear(vectors, weight), anatomy, plain_forward)


def test_a_linear_model_by_hand():
    """Two tokens with the vectors (2, 0) and (0, 1), and no weights: both are predicted alike."""
    vectors = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    subject = linear(vectors, torch.zeros(2, 2))
    batch = interp.Batch(torch.tensor([[0, 0, 1, 0]]))
    factors = kronecker_factors(subject, batch, MAP, labels="gold")[MAP]
    assert factors.positions == 4
    # (2, 0) three times and (0, 1) once
    torch.testing.assert_close(factors.inputs, torch.tensor([[3.0, 0.0], [0.0, 0.25]]).double())
    # Three positions predict something, each with the gradient +-(0.5, -0.5).
    sixteenths = torch.tensor([[3.0, -3.0], [-3.0, 3.0]]).double() / 16
    torch.testing.assert_close(factors.gradients, sixteenths)

    # G has the eigenvalues 3/8, of (1, -1), and 0, of (1, 1); A has 3 and 1/4. So the curvatures
    # are 9/8, 3/32, 0 and 0, of which the first alone is 92%.
    edited = linear(vectors, torch.tensor([[3.0, 1.0], [1.0, 5.0]]))
    spectrum = decompose(edited, {MAP: factors})[MAP]
    wanted = torch.tensor([9 / 8, 3 / 32, 0.0, 0.0]).double()
    found = spectrum.curvature.flatten().sort(descending=True).values
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert spectrum.concentration == pytest.approx(3 / 3.25)
    kept = spectrum.sharpest(0.9)
    assert kept.sum() == 1
    # (1, -1)/sqrt 2 times the weight's first column is sqrt 2
    only_first = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    torch.testing.assert_close(spectrum.restrict(kept), only_first)
    assert spectrum.sharpest(0.93).sum() == 2
    plan = curvature_edit({MAP: spectrum}, mass=0.9)
    change = np.array([[-2.0, -1.0], [-2.0, -5.0]])
    np.testing.assert_allclose(plan.values[MAP], change, atol=1e-12)


def test_sampled_labels_give_the_fisher_information():
    """With labels from the model, E[g g^T] is diag(p) - p p^T."""
    weight = torch.tensor([[1.0], [0.0], [-1.0], [0.5]])
    subject = linear(torch.ones(4, 1), weight)
    rows = torch.randint(0, 4, (40, 501), generator=torch.Generator().manual_seed(0))
    factors = kronecker_factors(subject, interp.Batch(rows), MAP)[MAP]
    p = weight[:, 0].double().softmax(0)
    predicting = 500 / 501  # the last position of a row predicts nothing
    fisher = (torch.diag(p) - torch.outer(p, p)) * predicting
    torch.testing.assert_close(factors.gradients, fisher, rtol=0, atol=0.006)
    # Gold labels are uniform: E[g g^T] is then another matrix.
    gold = kronecker_factors(subject, interp.Batch(rows), MAP, labels="gold")[MAP]
    assert (gold.gradients - fisher).abs().max() > 0.05


def test_gaussian_inputs_have_their_covariance():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, -1.0, 1.0]])
    vectors = torch.randn(800, 3, generator=generator) @ mixing
    every_token_once = interp.Batch(torch.randperm(800, generator=generator).view(80, 10))
    subject = linear(vectors, torch.zeros(800, 3))
    factors = kronecker_factors(subject, every_token_once, MAP, batch_size=40)[MAP]
    exact = vectors.double().T @ vectors.double() / 800
    torch.testing.assert_close(factors.inputs, exact)
    covariance = (mixing.T @ mixing).double()
    torch.testing.assert_close(factors.inputs, covariance, rtol=0, atol=0.5)


def factors_by_hand(
    subject: interp.Subject, batch: interp.Batch, path: str, skip: int = 0
) -> tuple[Tensor, Tensor, int]:
    """One row and one position at a time, with plain torch hooks."""
    module = subject.module.get_submodule(path)
    seen: dict[str, Tensor] = {}

    def keep(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        seen["input"] = args[0].detach()
        seen["output"] = output
        output.retain_grad()

    inputs, outputs = out_rows(module).shape
    of_inputs, of_gradients = torch.zeros(inputs, inputs), torch.zeros(outputs, outputs)
    sums = of_inputs.double(), of_gradients.double()
    count = 0
    for number in range(len(batch)):
        row = batch.rows(np.array([number]))
        handle = module.register_forward_hook(keep)
        subject.losses(row).sum().backward()
        handle.remove()
        subject.module.zero_grad()
        xs = seen["input"].reshape(-1, inputs)
        gs = seen["output"].grad.reshape(-1, outputs)
        real = len(xs) if row.mask is None else int(row.mask.sum())
        for position in range(skip, real):
            sums[0].add_(torch.outer(xs[position], xs[position]))
            sums[1].add_(torch.outer(gs[position], gs[position]))
            count += 1
    return sums[0] / count, sums[1] / count, count


@pytest.mark.parametrize(
    ("name", "padded"),
    [*product(FAMILIES, [False]), *product(["llama", "gpt2", "opt", "bloom"], [True])],
)
def test_factors_equal_plain_hooks(name: str, *, padded: bool):
    subject, batch = tiny.subject(name, torch.float64), batch_of(name, padded=padded)
    maps = mlp_maps(subject, blocks=[1])
    with tiny.untouched(subject.module):
        found = kronecker_factors(subject, batch, maps, labels="gold", batch_size=2, skip=1)
    assert tuple(found) == maps
    assert all(parameter.grad is None for parameter in subject.module.parameters())
    copied = interp.Subject(
        copy.deepcopy(subject.module), subject.anatomy, subject.forward, lead=subject.lead
    )
    for site in maps:
        path = subject.anatomy.place(site).path
        of_inputs, of_gradients, count = factors_by_hand(copied, batch, path, skip=1)
        assert found[site].positions == count
        torch.testing.assert_close(found[site].inputs, of_inputs)
        torch.testing.assert_close(found[site].gradients, of_gradients)


@pytest.mark.parametrize("labels", ["sampled", "gold"])
def test_neither_order_nor_batches_matter(labels: str):
    subject = tiny.subject("llama", torch.float64)
    batch = tiny.batch("llama", rows=5, padded=True)
    site = mlp_maps(subject, blocks=[2])[0]
    shuffled = batch.rows(np.array([3, 0, 4, 2, 1]))
    alone = [batch.rows(np.array([number])) for number in range(5)]
    one, *others = (
        kronecker_factors(subject, source, site, labels, batch_size=size)[site]
        for source, size in (
            (batch, 5),
            (batch, 2),
            (shuffled, 3),
            (alone, 1),
        )
    )
    for other in others:
        assert other.positions == one.positions
        torch.testing.assert_close(other.inputs, one.inputs)
        torch.testing.assert_close(other.gradients, one.gradients)


def test_a_row_has_the_same_labels_beside_a_longer_one():
    subject = tiny.subject("llama", torch.float64)
    site = mlp_maps(subject, blocks=[2])[0]
    alone = interp.Batch.pad([[5, 6, 7, 8]])
    padded = interp.Batch.pad([[5, 6, 7, 8], list(range(1, 10))]).rows(slice(1))
    one, other = (kronecker_factors(subject, each, site)[site] for each in (alone, padded))
    torch.testing.assert_close(other.gradients, one.gradients)


def test_sampled_labels_depend_on_the_seed_alone():
    subject, batch = tiny.subject("gpt2"), tiny.batch("gpt2", rows=4)
    site = mlp_maps(subject, blocks=[0])[0]
    state = torch.get_rng_state()
    first, again, other = (
        kronecker_factors(subject, batch, site, seed=seed)[site].gradients for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch):
    subject, batch = tiny.subject("llama", torch.float64), tiny.batch("llama", rows=5)
    site = mlp_maps(subject, blocks=[1])[0]
    wanted = kronecker_factors(subject, batch, site)[site]
    whole = interp.Subject.target_logits

    def out_of_memory(self: interp.Subject, batch: interp.Batch) -> Tensor:
        logits = whole(self, batch)
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return logits

    monkeypatch.setattr(interp.Subject, "target_logits", out_of_memory)
    with tiny.untouched(subject.module):
        found = kronecker_factors(subject, batch, site, batch_size=5)[site]
    assert found.positions == wanted.positions
    torch.testing.assert_close(found.inputs, wanted.inputs)
    torch.testing.assert_close(found.gradients, wanted.gradients)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "var"])
@pytest.mark.parametrize("drop", ["flattest", "random", "sharpest"])
def test_the_plan_is_the_edited_weights(name: str, drop: str):
    subject, batch = tiny.subject(name, torch.float64), batch_of(name)
    # More positions than inputs: otherwise many components have no curvature, and no order.
    text = tiny.image_batch(name, 14) if name in tiny.IMAGE else tiny.batch(name, 14)
    factors = kronecker_factors(subject, text, mlp_maps(subject, blocks=[1, 2]))
    spectra = decompose(subject, factors)
    plan = curvature_edit(spectra, mass=0.8, drop=drop, seed=1)
    module = copy.deepcopy(subject.module)
    for site, own in factors.items():
        projection = module.get_submodule(subject.anatomy.place(site).path)
        # by numpy, with a loop over components
        of_outputs, left = np.linalg.eigh(own.gradients.numpy())
        of_inputs, right = np.linalg.eigh(own.inputs.numpy())
        products = np.outer(of_outputs.clip(0), of_inputs.clip(0))
        if drop != "flattest":
            # Flat directions have no order but by rounding: those of the spectrum itself.
            left = spectra[site].output_basis.numpy()
            right = spectra[site].input_basis.numpy()
            products = spectra[site].curvature.numpy()
        rows = out_rows(projection)
        weight = rows.detach().T.numpy().copy()
        order = np.argsort(-products, axis=None, kind="stable")
        number = int(np.searchsorted(products.flatten()[order].cumsum(), 0.8 * products.sum())) + 1
        if drop == "flattest":
            kept = order[:number]
        elif drop == "sharpest":
            kept = order[len(order) - number :]
        else:
            restricted = weight + plan.values[site]
            by_component = left.T @ restricted @ right
            original = left.T @ weight @ right
            is_kept = np.isclose(by_component, original, rtol=0, atol=1e-9)
            assert is_kept.sum() == number
            assert np.allclose(by_component[~is_kept], 0, atol=1e-9)
            kept = np.flatnonzero(is_kept)
        edited = np.zeros_like(weight)
        for component in kept:
            i, j = np.unravel_index(component, products.shape)
            edited += left[:, i] @ weight @ right[:, j] * np.outer(left[:, i], right[:, j])
        with torch.no_grad():
            rows.copy_(torch.tensor(edited.T))
    with tiny.untouched(subject.module), subject.intervened(plan):
        found = subject.logits(batch)
    wanted = interp.load(module).logits(batch)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8)
    assert (found - subject.logits(batch)).abs().max() > 1e-3


def spectra_of(name: str = "llama") -> dict[interp.Site, Spectrum]:
    subject = tiny.subject(name, torch.float64)
    return decompose(subject, kronecker_factors(subject, batch_of(name), mlp_maps(subject, [1])))


def test_the_whole_mass_leaves_the_weights():
    subject = tiny.subject("llama", torch.float64)
    for spectra in (spectra_of(), singular_spectra(subject, mlp_maps(subject, [1]))):
        for drop in ("flattest", "random", "sharpest"):
            plan = curvature_edit(spectra, mass=1.0, drop=drop)
            for change in plan.values.values():
                np.testing.assert_allclose(change, 0, atol=1e-12)


def test_the_edit_is_linear_in_the_weight_and_a_projection():
    for spectrum in spectra_of().values():
        kept = spectrum.sharpest(0.7)
        other = torch.randn(spectrum.weight.shape, dtype=torch.float64)
        mixed = replace(spectrum, weight=2 * spectrum.weight - 3 * other)
        one, two = spectrum.restrict(kept), replace(spectrum, weight=other).restrict(kept)
        torch.testing.assert_close(mixed.restrict(kept), 2 * one - 3 * two)
        torch.testing.assert_close(replace(spectrum, weight=one).restrict(kept), one)
        lengths = one.square().sum() / spectrum.weight.square().sum()
        assert spectrum.energy(kept) == pytest.approx(float(lengths))


@settings(max_examples=60)
@given(
    st.lists(st.just(0.0) | st.floats(1e-6, 1e6), min_size=6, max_size=6).filter(any),
    st.floats(0.01, 0.999),
)
def test_the_set_is_the_smallest(values: list[float], mass: float):
    curvature = torch.tensor(values, dtype=torch.float64).view(2, 3)
    eye = torch.eye(3, dtype=torch.float64)
    kept = Spectrum(curvature, eye[:2, :2], eye, curvature).sharpest(mass)
    total = curvature.sum() * mass
    chosen = curvature[kept].sort().values
    assert chosen.sum() >= total * (1 - 1e-12)
    assert chosen[1:].sum() < total * (1 + 1e-12)  # without the flattest of them it is too little
    if not kept.all():
        assert chosen[0] >= curvature[~kept].max()


def test_a_truncation_is_the_best_of_its_rank():
    subject = tiny.subject("gpt2", torch.float64)
    site = mlp_maps(subject, [0])[1]
    spectrum = singular_spectra(subject, site)[site]
    kept = spectrum.sharpest(0.6)
    left, sizes, right = np.linalg.svd(spectrum.weight.numpy(), full_matrices=False)
    rank = int(np.searchsorted((sizes**2).cumsum(), 0.6 * (sizes**2).sum())) + 1
    wanted = left[:, :rank] * sizes[:rank] @ right[:rank]
    np.testing.assert_allclose(spectrum.restrict(kept).numpy(), wanted, atol=1e-10)
    energy = (sizes[:rank] ** 2).sum() / (sizes**2).sum()
    assert spectrum.energy(kept) == pytest.approx(energy)


def test_controls_draw_for_each_map_by_itself():
    spectra = spectra_of()
    first, second, _ = spectra
    together = curvature_edit(spectra, 0.8, drop="random", seed=5)
    alone = curvature_edit({second: spectra[second]}, 0.8, drop="random", seed=5)
    np.testing.assert_array_equal(together.values[second], alone.values[second])
    other = curvature_edit(spectra, 0.8, drop="random", seed=6)
    assert not np.allclose(together.values[first], other.values[first])
    each = curvature_edit(spectra, dict.fromkeys(spectra, 0.8), drop="random", seed=5)
    np.testing.assert_array_equal(together.values[first], each.values[first])
    # Maps that are alike lose other components each.
    alike = curvature_edit(dict.fromkeys([first, second], spectra[first]), 0.8, drop="random")
    assert not np.allclose(alike.values[first], alike.values[second])


def test_a_model_in_half_precision_keeps_its_factors_in_double():
    subject = tiny.subject("llama", torch.bfloat16)
    [site, *_] = maps = mlp_maps(subject, [1])
    factors = kronecker_factors(subject, batch_of("llama"), maps)
    assert factors[site].inputs.dtype == torch.float64
    plan = curvature_edit(decompose(subject, factors, torch.float32), mass=0.9)
    assert plan.values[site].dtype == np.float32
    with tiny.untouched(subject.module), subject.intervened(plan):
        assert subject.logits(batch_of("llama")).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("llama", ["gate_proj", "up_proj", "down_proj"]),
        ("phi3", ["gate_up_proj", "down_proj"]),
        ("gpt2", ["c_fc", "c_proj"]),
        ("policy", ["up", "down"]),
    ],
)
def test_maps_of_families(name: str, maps: list[str]):
    subject = tiny.subject(name)
    found = mlp_maps(subject, [1])
    paths = [subject.anatomy.place(site).path for site in found]
    assert [path.rpartition(".")[2] for path in paths] == maps * len(subject.anatomy.stacks)
    assert len(mlp_maps(subject)) >= 3 * len(maps)


GATE = "model.layers.1.mlp.gate_proj:out"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda s, b: kronecker_factors(s, b, GATE, labels="golden"),
            ValueError,
            "expected one of sampled, gold; nearest: gold",
        ),
        (
            lambda s, b: kronecker_factors(s, b, "blocks.1.neurons"),
            interp.SiteError,
            r"blocks.1.neurons \(Linear\) is not the output of a linear map.*mlp_maps",
        ),
        (
            lambda s, b: kronecker_factors(s, b, "model.layers.1.mlp.act_fn:out"),
            interp.SiteError,
            "is not the output of a linear map",
        ),
        (
            lambda s, b: kronecker_factors(s, b, "model.layers.1.mlp:out"),
            interp.SiteError,
            "is not the output of a linear map",
        ),
        (
            lambda s, b: singular_spectra(s, "model.layers.1.mlp.gate:out"),
            interp.SiteError,
            "nearest: model.layers.1.mlp.gate_proj:out",
        ),
        (
            lambda s, b: kronecker_factors(s, b, GATE, skip=9),
            ValueError,
            "texts longer than the 9 positions",
        ),
        (lambda s, b: kronecker_factors(s, [], GATE), ValueError, "no positions"),
        (lambda s, b: curvature_edit({}, 0.9), ValueError, "at least one linear map"),
        (
            lambda s, b: curvature_edit(singular_spectra(s, GATE), 0.9, drop="sharp"),
            ValueError,
            "nearest: sharpest",
        ),
        (lambda s, b: curvature_edit(singular_spectra(s, GATE), 1.5), ValueError, "mass=1.5"),
        (lambda s, b: curvature_edit(singular_spectra(s, GATE), 0.0), ValueError, "mass=0.0"),
        (
            lambda s, b: curvature_edit(singular_spectra(s, GATE), {interp.Site("embed"): 0.5}),
            ValueError,
            "has no share for .*gate_proj:out; it has some for embed",
        ),
        (lambda s, b: mlp_maps(s, [3]), interp.SiteError, "blocks.3.neurons"),
        (lambda s, b: mlp_maps(tiny.subject("mixtral")), interp.SiteError, "neurons"),
        (
            lambda s, b: decompose(
                s, {interp.Site(GATE): Factors(torch.eye(31), torch.eye(48), 1)}
            ),
            ValueError,
            r"of \[48, 31\]; here it is \[48, 32\]: another model's factors",
        ),
        (
            lambda s, b: Spectrum(
                torch.ones(1, 1), torch.eye(1), torch.eye(1), torch.zeros(1, 1)
            ).sharpest(0.5),
            ValueError,
            "no component has any curvature",
        ),
    ],
)
def test_errors(call, error, message):
    subject = tiny.subject("llama")
    with tiny.untouched(subject.module), pytest.raises(error, match=message):
        call(subject, batch_of("llama"))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_curvature_that_is_not_finite_orders_nothing(value: float):
    curvature = torch.tensor([[value, 1.0], [1.0, 2.0]])
    spectrum = Spectrum(torch.ones(2, 2), torch.eye(2), torch.eye(2), curvature)
    with pytest.raises(ValueError, match="expected finite numbers"):
        spectrum.sharpest(0.9)


def test_gradients_that_overflow_are_named():
    subject = copy.deepcopy(tiny.model("llama"))
    path = "model.layers.1.mlp.up_proj"

    loaded = interp.load(subject)
    subject.get_submodule(path).register_forward_hook(
        lambda _, __, output: _Overflowing.apply(output)
    )
    with pytest.raises(ValueError, match=r"the gradients at .*gate_proj:out are not finite"):
        kronecker_factors(loaded, batch_of("llama"), "model.layers.0.mlp.gate_proj:out")


class _Overflowing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradient, float("inf"))
