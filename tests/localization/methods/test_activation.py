"""Laws of the scores that are read off activations: what a naive reading of their formulas gives,
by plain torch hooks."""

from __future__ import annotations

import memory
import numpy as np
import pytest
import tiny
import torch

import interp
from interp.localization import localize, localize_each
from interp.sites.anatomy import Place

NAMES = ("llama", "gpt2", "neox", "policy")
PROMPT = 4


def batch(name: str, rows: int = 3, seed: int = 0, *, padded: bool = True) -> interp.Batch:
    return tiny.batch(name, rows, prompt=PROMPT, seed=seed, padded=padded, dtype=torch.float64)


def _written(
    subject: interp.Subject, place: Place, value: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """What some columns add to the residual: what their projection makes of them alone, without its
    bias."""
    if place.side == "out":
        return value[columns]
    projection, alone = subject.module.get_submodule(place.path), torch.zeros_like(value)
    alone[columns] = value[columns]
    with torch.no_grad():
        return projection(alone[None]) - projection(torch.zeros_like(alone)[None])


def naive(
    subject: interp.Subject, window: interp.Batch, site: interp.Site, *, abs_after_mean: bool
) -> np.ndarray:
    """[units] of one window, unit after unit and position after position."""
    place = subject.anatomy.place(site)
    values = tiny.values_by_hand(subject, window, site)[0]
    length = window.length if window.mask is None else int(window.mask.sum())
    positions = list(range(len(values)))
    if (
        site.stack != "vision"
    ):  # the policy sees a camera image before its first token, and so predicts a token at the token's own position
        shift = 0 if site.stack == "decoder" else 1
        positions = list(range(PROMPT - shift, length - shift))
    scores = []
    for columns in torch.arange(place.width).chunk(place.units):
        written = [_written(subject, place, values[t], columns) for t in positions]
        of_mean = torch.stack(written).mean(0).norm()
        scores.append(
            float(of_mean if abs_after_mean else torch.stack([w.norm() for w in written]).mean())
        )
    return np.array(scores)


@pytest.mark.parametrize("abs_after_mean", [False, True])
@pytest.mark.parametrize("point", ["neurons", "heads", "mlp_out", "block_out"])
@pytest.mark.parametrize("name", NAMES)
def test_activation_is_the_length_of_what_a_unit_writes_where_the_suffix_is_predicted(
    name, point, abs_after_mean
):
    subject, windows = tiny.subject(name, torch.float64), batch(name)
    scores = localize_each(
        subject, windows, method="activation", site=point, abs_after_mean=abs_after_mean
    )
    for window, row in zip(windows.split(1), scores, strict=True):
        for site in subject.anatomy.expand(point):
            expected = naive(subject, window, site, abs_after_mean=abs_after_mean)
            np.testing.assert_allclose(row[site], expected, rtol=1e-6, atol=1e-9, err_msg=str(site))


def test_the_two_forms_differ_for_units_of_both_signs_only():
    subject, windows = tiny.subject("gpt2", torch.float64), batch("gpt2")
    (mean_of_abs, abs_of_mean) = (
        localize(subject, windows, method="activation", abs_after_mean=form)
        for form in (False, True)
    )
    for site in subject.anatomy.expand("neurons"):
        assert (mean_of_abs[site] >= abs_of_mean[site] - 1e-12).all()
        assert (mean_of_abs[site] > abs_of_mean[site] * 1.01).any()


def activity(subject: interp.Subject, windows: interp.Batch, site: interp.Site) -> np.ndarray:
    """[windows, units] mean |activation| over each window's positions and each unit's columns."""
    rows = []
    for window in windows.split(1):
        values = tiny.values_by_hand(subject, window, site)[0].abs().numpy()
        length = (
            len(values) if window.mask is None or site.stack == "vision" else int(window.mask.sum())
        )
        rows.append(values[:length].mean(0).reshape(subject.anatomy.place(site).units, -1).mean(1))
    return np.array(rows)


@pytest.mark.parametrize("point", ["neurons", "heads"])
@pytest.mark.parametrize("name", NAMES)
def test_z_score_is_the_formula(name, point):
    subject, windows, reference = (
        tiny.subject(name, torch.float64),
        batch(name),
        batch(name, 6, seed=1),
    )
    each = localize_each(subject, windows, reference, "z_score", point)
    together = localize(subject, windows, reference, "z_score", point)
    for site in subject.anatomy.expand(point):
        ours, theirs = activity(subject, windows, site), activity(subject, reference, site)
        expected = (ours - theirs.mean(0)) / theirs.std(0, ddof=1)
        np.testing.assert_allclose(
            np.stack([row[site] for row in each]), expected, rtol=1e-3, atol=1e-3
        )
        np.testing.assert_allclose(together[site], expected.mean(0), rtol=1e-3, atol=1e-3)


def test_a_unit_that_never_varies_in_the_reference_gets_a_finite_score():
    subject, site = tiny.subject("llama", torch.float64), interp.Site("neurons", 1)
    with subject.intervened(interp.Zero(tiny.units(subject, site, [3]))):
        scores = localize(subject, batch("llama"), batch("llama", seed=1), "z_score", site)
    assert scores[site][3] == 0
    assert np.abs(scores[site]).max() > 0


def test_z_score_needs_a_spread():
    subject, windows = tiny.subject("llama"), memory.frame(memory.random_tokens(3, 1))
    with pytest.raises(ValueError, match="expected at least 2 windows, got 1"):
        localize(subject, windows, windows[:1], method="z_score")
