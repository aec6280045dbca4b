from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

import interp
from interp import Scale, Zero
from interp.adapters import weights

from .plans import WITH_NEURONS, block_site, close, example, expected, plan


@pytest.mark.parametrize("kind", ["zero", "scale"])
@pytest.mark.parametrize(
    ("name", "point"), [*((n, "neurons") for n in WITH_NEURONS), *((n, "heads") for n in tiny.ALL)]
)
def test_equals_hooks_and_restores_every_bit(name, point, kind):
    subject, batch = tiny.subject(name), example(name)
    some = plan(subject, kind, block_site(subject, point))
    clean, wanted = subject.logits(batch), expected(subject, some, batch)
    with tiny.untouched(subject.module), weights.applied(subject, some):
        close(subject.logits(batch), wanted, 1e-5)
        assert tiny.hook_count(subject.module) == 0
    assert not torch.allclose(clean, wanted, atol=1e-4)


def test_plans_on_one_unit_compose_in_one_block_and_in_nested_blocks():
    subject, batch = tiny.subject("llama"), example("llama")
    once = plan(subject, "scale", "blocks.1.neurons")
    wanted = expected(subject, Scale(once.units, factor=once.factor**2), batch)
    with tiny.untouched(subject.module), weights.applied(subject, once, [once]):
        close(subject.logits(batch), wanted, 1e-5)
    with (
        tiny.untouched(subject.module),
        weights.applied(subject, once),
        weights.applied(subject, once),
    ):
        close(subject.logits(batch), wanted, 1e-5)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_restores_after_errors_and_interrupts(error):
    subject = tiny.subject("gpt2")
    with (
        tiny.untouched(subject.module),
        pytest.raises(error),
        weights.applied(subject, plan(subject, "zero", "blocks.0.heads")),
    ):
        raise error


@pytest.mark.parametrize(
    ("kind", "site", "reason"),
    [
        ("mean", "blocks.1.neurons", "Mean at blocks.1.neurons.*adds values"),
        ("add", "blocks.1.neurons", "Add at blocks.1.neurons.*adds values"),
        ("patch", "blocks.1.heads", "Patch at blocks.1.heads.*adds values"),
        ("interchange", "blocks.1.heads", "Interchange at blocks.1.heads.*adds values"),
        ("project", "blocks.1.neurons", "Project at blocks.1.neurons.*subspace"),
        ("project_around", "blocks.1.neurons", "Project at blocks.1.neurons.*subspace"),
        ("zero_at", "blocks.1.neurons", r"Zero at blocks.1.neurons.*positions \(1, 4\)"),
        ("scale_decode", "blocks.1.neurons", "Scale at blocks.1.neurons.*when='decode'"),
        (
            "zero",
            "blocks.1.resid_mid",
            "Zero at blocks.1.resid_mid.*not the input of an out-projection",
        ),
        (
            "zero",
            "blocks.1.resid_pre",
            "Zero at blocks.1.resid_pre.*not the input of an out-projection",
        ),
        (
            "zero",
            "blocks.1.mlp_out",
            "Zero at blocks.1.mlp_out.*not the input of an out-projection",
        ),
    ],
)
def test_refuses_by_name_what_weights_cannot_express(kind, site, reason):
    subject = tiny.subject("llama")
    mixed = [plan(subject, "zero", "blocks.0.neurons"), plan(subject, kind, site)]
    with (
        tiny.untouched(subject.module),
        pytest.raises(ValueError, match=f"{reason}.*subject.intervened"),
        weights.applied(subject, mixed),
    ):
        pytest.fail("a refused plan must not run")


def test_refuses_weights_that_others_use():
    subject = tiny.wrapped(tiny.model("llama"))
    first, second = (
        subject.module.get_submodule(f"model.layers.{i}.mlp.down_proj") for i in (0, 1)
    )
    first.weight = second.weight
    with pytest.raises(ValueError, match=r"shared by model.layers.0.* and model.layers.1"):
        weights.applied(subject, plan(subject, "zero", "blocks.1.neurons")).__enter__()


def test_refuses_weights_that_it_would_miss():
    subject = tiny.wrapped(tiny.model("llama"))
    nn.utils.parametrizations.weight_norm(
        subject.module.get_submodule("model.layers.1.mlp.down_proj")
    )
    with pytest.raises(
        ValueError,
        match=r"blocks.1.neurons: the weight of model.layers.1.mlp.down_proj is computed",
    ):
        weights.applied(subject, plan(subject, "zero", "blocks.1.neurons")).__enter__()


@pytest.mark.parametrize("point", ["heads", "neurons"])
def test_refuses_rows_that_are_not_what_units_write(point):
    subject = tiny.subject("llama")
    places = dict(subject.anatomy.places)
    site = interp.Site.parse(f"blocks.1.{point}")
    places[site] = replace(places[site], goes_on=True)
    anatomy = replace(subject.anatomy, places=places)
    mapped_on = interp.Subject(subject.module, anatomy, subject.forward)
    with (
        tiny.untouched(subject.module),
        pytest.raises(ValueError, match=rf"{site}: .* mapped on .*; run it with subject.interv"),
        weights.applied(mapped_on, plan(subject, "zero", str(site))),
    ):
        pytest.fail("a refused plan must not run")


def test_a_raw_path_is_written_where_it_names_a_linear_layer():
    subject, batch = tiny.subject("llama"), example("llama")
    path = "model.layers.1.self_attn"
    some = Zero(interp.Units({f"{path}.q_proj:in": [0, 3]}))
    with tiny.untouched(subject.module), weights.applied(subject, some):
        close(subject.logits(batch), expected(subject, some, batch), 1e-5)
    norm = Zero(interp.Units({"model.layers.1.input_layernorm:in": [0]}))
    with pytest.raises(ValueError, match="is not a matrix"):
        weights.applied(subject, norm).__enter__()


@pytest.mark.slow
def test_works_under_compile():
    subject, batch = tiny.subject("llama"), example("llama")
    # A changed weight could be baked into the graph and its guards; making kernels of them takes
    # longer than all else here.
    compiled = torch.compile(subject.module, fullgraph=True, backend="eager")
    some = plan(subject, "zero", "blocks.1.neurons")
    with torch.no_grad():
        clean = compiled(batch.tokens, use_cache=False).logits
        with weights.applied(subject, some):
            changed = compiled(batch.tokens, use_cache=False).logits
        again = compiled(batch.tokens, use_cache=False).logits
    close(changed[:, :-1], expected(subject, some, batch)[:, 1:], 1e-5)
    assert torch.equal(clean, again)
    assert not torch.allclose(clean, changed, atol=1e-4)


def test_units_of_another_model_are_refused():
    units = interp.Units({"blocks.1.neurons": [0]}, {"blocks.1.neurons": 7})
    with (
        pytest.raises(ValueError, match="another model"),
        weights.applied(tiny.subject("llama"), Zero(units)),
    ):
        pytest.fail("a refused plan must not run")
