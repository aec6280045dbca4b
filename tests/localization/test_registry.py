"""Laws of localize: methods by name, one clear error for what cannot be scored, no hook left behind."""

from __future__ import annotations

import memory
import numpy as np
import pytest
import tiny
import torch

import interp
from interp.localization import localize, method, methods, registry

NAMES = ("absolute_gradient_x_activation", "gradient_x_activation", "unitmem")
MEMORIZED, CONTROL = memory.frame(memory.random_tokens(3, 1)), memory.frame(memory.random_tokens(3, 2))


@pytest.fixture
def mine(monkeypatch):
    """A method of a user's, which remembers its options."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    seen: dict[str, object] = {}

    @method("mine")
    def _(subject, memorized, control, sites, **options):
        seen.update(options)
        return {site: np.arange(width) for site, width in subject.anatomy.widths(sites).items()}

    return seen


def test_a_decorated_function_is_a_method(llama, mine):
    scores = localize(llama, MEMORIZED, CONTROL, method="mine", site="heads", scale=3)
    assert "mine" in methods()
    assert mine == {"scale": 3}
    assert (scores.method, scores.about) == ("mine", {"model": llama.fingerprint, "scale": 3})
    assert scores.widths == llama.anatomy.widths("heads")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("site", ["neurons", "blocks.1.neurons", ["heads", "mlp_out"]])
def test_every_method_scores_every_unit_asked_for(llama, name, site):
    with tiny.untouched(llama.module):
        scores = localize(llama, MEMORIZED, CONTROL, method=name, site=site)
    assert scores.widths == llama.anatomy.widths(site)


def test_an_unknown_method_offers_the_nearest(llama):
    with pytest.raises(ValueError, match=r"expected one of .*gradient_x_activation, unitmem; nearest: gradient_x_activation"):
        localize(llama, MEMORIZED, CONTROL, method="gradient_x_activations")


def test_an_unknown_site_offers_the_nearest(llama):
    with pytest.raises(interp.SiteError, match="nearest: "):
        localize(llama, MEMORIZED, CONTROL, site="blocks.*.neuron")


@pytest.mark.parametrize("name", NAMES)
def test_no_site_gets_one_clear_error(llama, name):
    with pytest.raises(ValueError, match="no site to score"):
        localize(llama, MEMORIZED, CONTROL, method=name, site=[])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["memorized", "control"])
def test_an_empty_set_is_named(llama, name, which):
    sets = {"memorized": MEMORIZED, "control": CONTROL} | {which: MEMORIZED[:0]}
    with pytest.raises(ValueError, match=f"the {which} set is empty"):
        localize(llama, method=name, **sets)


@pytest.mark.parametrize("name", NAMES)
def test_activations_that_are_not_finite_are_refused_and_leave_no_hook(llama, name):
    block = llama.module.model.layers[1]
    broken = block.register_forward_hook(lambda *_: torch.tensor(float("nan")) * _[2])
    try:
        with tiny.untouched(llama.module), pytest.raises(ValueError, match="scores are not finite"):
            localize(llama, MEMORIZED, CONTROL, method=name)
    finally:
        broken.remove()
