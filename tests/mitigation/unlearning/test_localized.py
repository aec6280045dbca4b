"""Laws of localized training: gradients are those of full training inside the chosen units, and
exactly 0 elsewhere; nothing stays behind."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch.testing import assert_close

import interp
from interp.mitigation.unlearning.localized import gradients_only_into

CHOSEN = {"blocks.0.neurons": [3, 7, 40], "blocks.2.heads": [1]}
WEIGHTS = {
    "llama": ("model.layers.0.mlp.down_proj", "model.layers.2.self_attn.o_proj"),
    "gpt2": ("transformer.h.0.mlp.c_proj", "transformer.h.2.attn.c_proj"),
    "opt": ("model.decoder.layers.0.fc2", "model.decoder.layers.2.self_attn.out_proj"),
}


def gradients(subject: interp.Subject, name: str) -> dict[str, torch.Tensor]:
    subject.losses(tiny.batch(name, rows=3)).sum().backward()
    found = {}
    for path, parameter in subject.module.named_parameters():
        if parameter.grad is not None:
            found[path] = parameter.grad
    return found


def columns(subject: interp.Subject, path: str, gradient: torch.Tensor) -> torch.Tensor:
    """[columns of the activation, d_model], however the projection stores it."""
    projection = subject.module.get_submodule(path)
    return gradient.T if isinstance(projection, torch.nn.Linear) else gradient


@pytest.mark.parametrize("name", WEIGHTS)
def test_gradients_are_0_outside_the_units_and_the_same_inside(name):
    free, confined = (tiny.wrapped(tiny.model(name)) for _ in range(2))
    expected = gradients(free, name)
    units = confined.units(CHOSEN)
    with tiny.untouched(confined.module), gradients_only_into(confined, units):
        found = gradients(confined, name)
        neurons, heads = WEIGHTS[name]
        assert found.keys() == {f"{neurons}.weight", f"{heads}.weight"}
        for path, inside in ((neurons, [3, 7, 40]), (heads, list(range(8, 16)))):
            own = columns(confined, path, found[f"{path}.weight"])
            whole = columns(free, path, expected[f"{path}.weight"])
            assert_close(own[inside], whole[inside])
            assert own[inside].abs().min() > 0
            outside = [n for n in range(len(own)) if n not in inside]
            assert not own[outside].any()


@pytest.mark.parametrize("raises", [False, True])
def test_nothing_stays_behind(raises):
    subject = tiny.wrapped(tiny.model("llama"))
    frozen = subject.module.lm_head.weight
    frozen.requires_grad_(False)
    before = [parameter.requires_grad for parameter in subject.module.parameters()]
    weight = subject.module.get_parameter("model.layers.0.mlp.down_proj.weight")
    try:
        with gradients_only_into(subject, subject.units(CHOSEN)):
            assert weight._backward_hooks
            if raises:
                raise KeyError
    except KeyError:
        pass
    assert [parameter.requires_grad for parameter in subject.module.parameters()] == before
    assert not any(parameter._backward_hooks for parameter in subject.module.parameters())
    assert frozen.requires_grad is False


def test_a_gradient_that_is_nan_stays_where_the_units_are():
    subject = tiny.wrapped(tiny.model("llama"))
    with gradients_only_into(subject, subject.units("blocks.0.neurons", [3])):
        weight = subject.module.get_parameter("model.layers.0.mlp.down_proj.weight")
        (weight.sum() * float("nan")).backward()
        assert weight.grad.isnan().any(0).nonzero().tolist() == [[3]]


def test_fit_changes_only_the_units():
    subject = tiny.wrapped(tiny.model("gpt2"))
    before = copy.deepcopy(subject.module.state_dict())
    with gradients_only_into(subject, subject.units("blocks.1.neurons", [5, 6])):
        interp.fit(subject, [tiny.batch("gpt2")] * 3, 3, lr=1e-2)
    changed = {}
    for path, value in subject.module.state_dict().items():
        if not torch.equal(value, before[path]):
            changed[path] = (value != before[path]).any(1).nonzero()[:, 0].tolist()
    assert changed == {"transformer.h.1.mlp.c_proj.weight": [5, 6]}


def test_what_has_no_weight_of_its_own_is_refused():
    subject = tiny.subject("llama")
    with tiny.untouched(subject.module):
        for units, message in (
            (subject.units("blocks.1.resid_post", [3]), "only neurons and heads have out-weights"),
            (interp.Units({}, {}), "there are no units: expected at least one neuron or head"),
            (
                interp.Units({"blocks.0.neurons": [3]}, {"blocks.0.neurons": 9}),
                "another model's plan",
            ),
        ):
            with (
                pytest.raises((ValueError, interp.SiteError), match=message),
                gradients_only_into(subject, units),
            ):
                pass
    shared = tiny.wrapped(tiny.model("llama"))
    layers = shared.module.model.layers
    layers[0].mlp.down_proj.weight = layers[1].mlp.down_proj.weight
    with (
        pytest.raises(interp.SiteError, match=r"is shared by model.layers.0.*and model.layers.1"),
        gradients_only_into(shared, shared.units("blocks.0.neurons", [3])),
    ):
        pass
