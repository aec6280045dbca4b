"""Laws of integrated gradients: completeness, and the same numbers as a naive loop over the path
and as captum's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import interp
from interp.localization import localize_each
from interp.localization.methods.integrated_gradients import path
from interp.subject.subject import evaluating

PROMPT, LENGTH = 4, 7
IN_DOUBLES = ("gpt2", "neox", "policy")  # llama normalizes in float32


def batch(name: str, rows: int = 2, *, padded: bool = True) -> interp.Batch:
    return tiny.batch(name, rows, LENGTH, prompt=PROMPT, padded=padded, dtype=torch.float64)


def places(
    name: str, windows: interp.Batch, row: int, site: interp.Site, positions: str
) -> list[tuple[int, int | slice]]:
    """Which suffix token is looked at, and which position is scaled for it."""
    length = LENGTH if windows.mask is None else int(windows.mask[row].sum())
    first = PROMPT if name == "policy" else PROMPT - 1
    everywhere = positions == "all" or site.stack == "vision"
    return [(n, slice(None) if everywhere else first + n) for n in range(length - PROMPT)]


def probability(subject: interp.Subject, window: interp.Batch, number: int) -> Tensor:
    """Of suffix token `number`."""
    return subject.target_logits(window)[0, number].softmax(-1)[window.targets[0, number]]


def scaled(
    site: interp.Site, subject: interp.Subject, alpha: float, at: int | slice, leaves: list[Tensor]
) -> AbstractContextManager[None]:
    def change(value: Tensor) -> Tensor:
        new = value.detach().clone()
        leaf = (new[:, at] * alpha).requires_grad_()
        leaves[:] = [leaf]
        new[:, at] = leaf
        return new

    return tiny.by_hand(subject.module, subject.anatomy.place(site), change)


Points = tuple[Sequence[float], Sequence[float]]


def naive(
    subject: interp.Subject,
    name: str,
    windows: interp.Batch,
    row: int,
    site: interp.Site,
    points: Points,
    positions: str,
) -> np.ndarray:
    """The path integral of one window, one point and one token at a time."""
    window = list(windows.split(1))[row]
    values = tiny.values_by_hand(subject, window, site)
    cells = places(name, windows, row, site, positions)
    total = torch.zeros(values.shape[-1], dtype=torch.float64)
    for number, at in cells:
        for alpha, weight in zip(*points, strict=True):
            leaves: list[Tensor] = []
            with scaled(site, subject, alpha, at, leaves):
                p = probability(subject, window, number)
            slope = torch.autograd.grad(p, leaves[0])[0]
            product = values[:, at].double() * slope.double()
            total += weight * product.reshape(-1, product.shape[-1]).sum(0) / len(cells)
    return total.reshape(subject.anatomy.place(site).units, -1).sum(1).numpy()


@pytest.mark.parametrize("positions", ["all", "predicting"])
@pytest.mark.parametrize("rule", ["released", "right", "gauss"])
@pytest.mark.parametrize("name", IN_DOUBLES)
def test_it_is_the_naive_sum_over_the_path(name, rule, positions):
    subject, windows, points = tiny.subject(name, torch.float64), batch(name), 3
    nodes, sizes = np.polynomial.legendre.leggauss(points)
    weighted = {
        "released": ([0, 1 / 2, 1], [1 / 3] * 3),
        "right": ([1 / 3, 2 / 3, 1], [1 / 3] * 3),
        "gauss": ((nodes + 1) / 2, sizes / 2),
    }[rule]
    sites = [
        subject.anatomy.expand(point)[n]
        for point, n in (("neurons", 0), ("heads", -1), ("block_out", 1))
    ]
    scores = localize_each(
        subject,
        windows,
        method="integrated_gradients",
        site=sites,
        points=points,
        rule=rule,
        positions=positions,
    )
    for row in range(len(windows)):
        for site in sites:
            expected = naive(subject, name, windows, row, site, weighted, positions)
            np.testing.assert_allclose(
                scores[row][site], expected, rtol=1e-5, atol=1e-10, err_msg=str(site)
            )


def rise(
    subject: interp.Subject,
    name: str,
    windows: interp.Batch,
    row: int,
    site: interp.Site,
    positions: str,
) -> float:
    """P(h) - P(0), the mean over the suffix tokens."""
    window = list(windows.split(1))[row]
    rises = []
    for number, at in places(name, windows, row, site, positions):
        with evaluating(subject):
            clean = probability(subject, window, number)
        with torch.no_grad(), scaled(site, subject, 0.0, at, []):
            rises.append(float(clean - probability(subject, window, number)))
    return float(np.mean(rises))


@pytest.mark.parametrize(
    ("rule", "points", "tolerance"), [("released", 300, 0.02), ("gauss", 40, 1e-5)]
)
@pytest.mark.parametrize("positions", ["all", "predicting"])
@pytest.mark.parametrize("name", ["gpt2", "policy"])
def test_the_units_of_a_site_add_up_to_what_the_site_adds_to_the_probability(
    name, positions, rule, points, tolerance
):
    subject, windows = tiny.subject(name, torch.float64), batch(name)
    for site in (subject.anatomy.expand("neurons")[0], subject.anatomy.expand("heads")[-1]):
        scores = localize_each(
            subject,
            windows,
            method="integrated_gradients",
            site=site,
            points=points,
            rule=rule,
            positions=positions,
        )
        for row in range(len(windows)):
            expected = rise(subject, name, windows, row, site, positions)
            assert abs(expected) > 1e-5
            assert scores[row][site].sum() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(
    ("rule", "method"), [("right", "riemann_right"), ("gauss", "gausslegendre")]
)
@pytest.mark.parametrize("name", ["gpt2", "neox"])
@pytest.mark.parametrize("point", ["neurons", "heads"])
def test_it_equals_captums(name, point, rule, method):
    from captum.attr import LayerIntegratedGradients

    subject, windows = tiny.subject(name, torch.float64), batch(name, padded=False)
    site = subject.anatomy.resolve(f"blocks.1.{point}")
    layer = subject.module.get_submodule(subject.anatomy.place(site).path)
    ours = localize_each(
        subject,
        windows,
        method="integrated_gradients",
        site=site,
        points=6,
        rule=rule,
        positions="all",
    )

    gates: list[Tensor] = []

    def probabilities(gate: Tensor, tokens: Tensor) -> Tensor:
        gates[:] = [gate]
        logits = subject.module(tokens).logits[:, PROMPT - 1 : -1].softmax(-1)
        return logits.gather(-1, tokens[:, PROMPT:, None])[..., 0].mean(1)

    # captum's baseline is what the layer gets for the baseline of the input: the input is a gate on
    # the layer, and 0 its baseline
    gating = layer.register_forward_pre_hook(lambda _, args: (args[0] * gates[0],))
    opened = torch.ones(len(windows), 1, 1, dtype=torch.float64)
    found = LayerIntegratedGradients(probabilities, layer).attribute(
        opened,
        torch.zeros_like(opened),
        additional_forward_args=windows.tokens,
        n_steps=6,
        method=method,
        attribute_to_layer_input=True,
    )
    gating.remove()
    by_unit = (
        (found[0] if isinstance(found, tuple) else found)
        .sum(1)
        .unflatten(1, (subject.anatomy.place(site).units, -1))
        .sum(-1)
    )
    assert by_unit.abs().max() > 1e-5
    torch.testing.assert_close(
        torch.tensor(np.stack([s[site] for s in ours])),
        by_unit.detach().double(),
        rtol=1e-5,
        atol=1e-9,
    )


@pytest.mark.parametrize("name", ["gpt2", "policy"])
def test_windows_do_not_mix(name):
    subject, windows = tiny.subject(name, torch.float64), batch(name, 3)
    runs = [
        localize_each(
            subject, windows, method="integrated_gradients", site="heads", points=2, batch_size=size
        )
        for size in (1, 3)
    ]
    for one, other in zip(*runs, strict=True):
        for site in subject.anatomy.expand("heads"):
            np.testing.assert_allclose(one[site], other[site], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("rule", ["released", "right", "gauss"])
@pytest.mark.parametrize("points", [1, 2, 20])
def test_a_path_stays_between_0_and_1_and_weighs_1(rule, points):
    at, weights = path(points, rule)
    assert len(at) == len(weights) == points
    assert ((at >= 0) & (at <= 1)).all()
    assert weights.sum() == pytest.approx(1)


def test_an_unknown_rule_or_position_offers_the_nearest_and_no_step_is_refused():
    subject = tiny.subject("llama")
    for options, message in (
        ({"rule": "gaus"}, "rule='gaus': expected one of released, right, gauss; nearest: gauss"),
        ({"positions": "al"}, "positions='al': expected one of predicting, all; nearest: all"),
        ({"points": 0}, "points=0: expected at least one point"),
    ):
        with tiny.untouched(subject.module), pytest.raises(ValueError, match=message):
            localize_each(subject, batch("llama"), method="integrated_gradients", **options)
