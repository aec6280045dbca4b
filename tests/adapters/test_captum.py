from __future__ import annotations

import pytest
import tiny
import torch

from interp import SiteError
from interp.adapters import captum as adapter
from interp.hooks.hooks import captured

from .plans import block_site, close, example

POINTS = dict.fromkeys(tiny.ALL, ("neurons", "heads", "mlp_out")) | {"mixtral": ("heads",)}


@pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:Input Tensor")
@pytest.mark.parametrize("name", tiny.ALL)
def test_equals_our_own_gradients(name):
    subject, batch = tiny.subject(name), example(name)
    sites = subject.anatomy.expand([block_site(subject, point) for point in POINTS[name]])
    with captured(subject, sites) as values:
        loss = subject.losses(batch).mean(1).sum()
    gradients = torch.autograd.grad(loss, [values[s] for s in sites])
    with tiny.untouched(subject.module):
        found = adapter.gradient_x_activation(subject, batch, sites)
    assert list(found) == list(sites)
    for site, gradient in zip(sites, gradients, strict=True):
        own = -(values[site] * gradient).detach().sum(1)
        own = own.unflatten(1, (subject.anatomy.place(site).units, -1)).sum(-1)
        close(found[site].float(), own, 1e-5, str(site))
        assert own.abs().max() > 1e-4


def test_layers_name_the_module_and_its_side():
    subject = tiny.subject("llama")
    (down, inward), (block, outward) = adapter.layers(
        subject, ["blocks.1.neurons", "blocks.1.resid_post"]
    )
    assert (down, inward) == (subject.module.get_submodule("model.layers.1.mlp.down_proj"), True)
    assert (block, outward) == (subject.module.get_submodule("model.layers.1"), False)


def test_a_sum_is_no_layer():
    with pytest.raises(SiteError, match=r"resid_mid is .* which captum cannot name"):
        adapter.layers(tiny.subject("llama"), "blocks.1.resid_mid")


def test_modules_that_answer_with_more_than_tensors_are_refused():
    with pytest.raises(SiteError, match="captum reads modules that return nothing but tensors"):
        adapter.gradient_x_activation(tiny.subject("llama"), example("llama"), "blocks.1.attn_out")
