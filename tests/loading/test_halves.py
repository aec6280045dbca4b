"""Laws of discovery on blocks that are put together in other ways than most: a site's name says
what a hand-made change of the same part says, and what cannot be told is refused."""

from collections.abc import Callable

import blocks
import pytest
import tiny
import torch
from torch import Tensor, nn

import interp
from interp.adapters import captum, transformer_lens

# The path of the module that gives each half; None where there is no such half.
HALVES = {
    blocks.MLPFirst: ("attn", "down"),
    blocks.Parallel: ("attn", "down"),
    blocks.Scaled: ("attn", "down"),
    blocks.PostNorm: ("attn", "down"),
    blocks.Convolving: ("attn", "down"),
    blocks.Routed: ("attn", "mixture"),
    blocks.Shared: ("attn", "mixture"),
    blocks.Adapted: ("attn", "down"),
    blocks.Unused: ("attn", "down"),
    blocks.InWholeNumbers: ("attn", "down"),
    blocks.Gated: ("attn", "down"),
    blocks.OnlyMLP: (None, "down"),
}


def subject(kind: type[nn.Module]) -> interp.Subject:
    language = blocks.InStreams if kind is blocks.Streams else tiny.Language
    return interp.load(tiny.seeded(lambda: language(kind(), kind())))


def with_hook(found: interp.Subject, path: str, side: str, change: Callable[[Tensor], Tensor]):
    """Logits by plain torch, with what enters or leaves a module changed."""
    part = found.module.get_submodule(path)
    if side == "out":
        handle = part.register_forward_hook(lambda _, __, out: change(out))
    else:
        handle = part.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    try:
        with torch.no_grad():
            return found.logits(tiny.batch("llama"))
    finally:
        handle.remove()


def zeroed(found: interp.Subject, site: str, units: list[int] | None = None):
    with torch.no_grad(), found.intervened(interp.Zero(found.units(site, units))):
        return found.logits(tiny.batch("llama"))


@pytest.mark.parametrize(("kind", "halves"), HALVES.items())
def test_each_name_is_the_half_it_says(kind, halves):
    found = subject(kind)
    mixer = "mixer_out" if kind is blocks.Convolving else "attn_out"
    for point, path in zip((mixer, "mlp_out"), halves, strict=True):
        site = f"blocks.1.{point}"
        if path is None:
            with pytest.raises(interp.SiteError):
                found.anatomy.place(site)
            continue
        by_hand = with_hook(found, f"trunk.1.{path}", "out", torch.zeros_like)
        torch.testing.assert_close(zeroed(found, site), by_hand)
    other = {"attn_out", "mixer_out"} - {mixer}
    assert not any(site.point in other for site in found.sites)


@pytest.mark.parametrize(
    ("kind", "point", "path"),
    [
        (blocks.Scaled, "heads", "attn.out"),
        (blocks.MLPFirst, "neurons", "down"),
        (blocks.PostNorm, "neurons", "down"),
        (blocks.Convolving, "neurons", "down"),
        (blocks.Shared, "neurons", "mixture.shared.down"),
        (blocks.SilentShared, "neurons", "mixture.shared.down"),
        (blocks.Adapted, "neurons", "down"),
        (blocks.Adapted, "heads", "attn.out"),
        (blocks.Unused, "neurons", "down"),
        (blocks.InWholeNumbers, "neurons", "down"),
        (blocks.Gated, "heads", "attn.out"),
        (blocks.OnlyMLP, "neurons", "down"),
        (blocks.Listed, "neurons", "layers.2"),
    ],
)
def test_units_are_at_the_module_whose_input_they_are(kind, point, path):
    found = subject(kind)
    place = found.anatomy.place(f"blocks.1.{point}")
    assert str(place) == f"trunk.1.{path}:in"
    columns = place.width // place.units

    def without_unit_1(value: Tensor) -> Tensor:
        value = value.clone()
        value[..., columns : 2 * columns] = 0
        return value

    by_hand = with_hook(found, f"trunk.1.{path}", "in", without_unit_1)
    torch.testing.assert_close(zeroed(found, f"blocks.1.{point}", [1]), by_hand)


@pytest.mark.parametrize("kind", [blocks.Shared, blocks.SilentShared])
def test_a_shared_expert_is_found_by_the_sum_of_its_block(kind, monkeypatch):
    """Also where it gives nothing for some tokens: a multiple of nothing is nothing, not NaN."""
    monkeypatch.setattr("interp.loading.discovery.find_unsummed", lambda *_: None)
    assert str(subject(kind).anatomy.place("blocks.1.neurons")) == "trunk.1.mixture.shared.down:in"


def test_an_adapter_that_is_trained_later_is_part_of_the_units_already():
    found = subject(blocks.Unused)
    for part in found.module.modules():
        if isinstance(part, blocks.LowRank):
            nn.init.normal_(part.up.weight)
    everything = zeroed(found, "blocks.1.neurons")
    bias = found.module.get_submodule("trunk.1.down.base").bias
    by_hand = with_hook(found, "trunk.1.down", "out", bias.expand_as)
    torch.testing.assert_close(everything, by_hand)


def test_a_scaled_addition_is_given_as_the_stream_gets_it():
    found = subject(blocks.Scaled)
    batch = tiny.batch("llama")
    sites = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    at = {name: tiny.values_by_hand(found, batch, f"blocks.0.{name}") for name in sites}
    torch.testing.assert_close(at["resid_pre"] + at["attn_out"], at["resid_mid"])
    torch.testing.assert_close(1.5 * (at["resid_mid"] + at["mlp_out"]), at["resid_post"])


def test_two_mixers_side_by_side_have_a_name_each():
    found = subject(blocks.Both)
    assert str(found.anatomy.place("blocks.0.attn_out")) == "trunk.0.beside:out"
    assert str(found.anatomy.place("blocks.0.mixer_out")) == "trunk.0.attn:out"
    assert str(found.anatomy.place("blocks.0.heads")) == "trunk.0.beside.out:in"


@pytest.mark.parametrize("kind", [blocks.Both, blocks.AttentionThenMixer])
def test_the_stream_after_two_mixers_holds_both_in_whatever_order_they_run(kind):
    found = subject(kind)
    sites = ["resid_pre", "attn_out", "mixer_out"]
    batch = tiny.batch("llama")
    at = {name: tiny.values_by_hand(found, batch, f"blocks.0.{name}") for name in sites}
    added = at["resid_pre"] + at["attn_out"] + at["mixer_out"]
    [site] = found.anatomy.expand("blocks.0.resid_mid")
    with interp.captured(found, (site,)) as values:
        found.logits(batch)
    torch.testing.assert_close(values[site].detach(), added)


@pytest.mark.parametrize(
    ("kind", "site", "reason"),
    [
        (blocks.Routed, "neurons", "mixture of experts"),
        (blocks.Narrow, "neurons", "mixture of experts"),
        (blocks.NarrowFused, "neurons", "mixture of experts"),
        (blocks.Beside, "neurons", "no projection|not resid_post"),
        (blocks.Streams, "resid_post", "several residual streams"),
        (blocks.Streams, "neurons", "several residual streams"),
        (blocks.OnlyMLP, "heads", "0 attention operations"),
        (blocks.Parallel, "resid_mid", "parallel"),
        (blocks.Convolving, "attn_out", "no attention"),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_reason(kind, site, reason):
    with pytest.raises(interp.SiteError, match=reason):
        subject(kind).anatomy.place(f"blocks.0.{site}")


@pytest.mark.parametrize("kind", [blocks.Adapted, blocks.InWholeNumbers])
def test_no_weight_is_given_where_there_is_no_plain_one(kind):
    found = subject(kind)
    with pytest.raises(interp.SiteError, match="no plain weight"):
        found.anatomy.out_weight(found.module, "blocks.0.neurons")


def test_blocks_of_several_classes_are_one_stack():
    module = tiny.seeded(lambda: tiny.Language(blocks.Convolving(), blocks.PostNorm()))
    assert interp.load(module).anatomy.blocks() == ("trunk.0", "trunk.1")


def test_a_block_that_adds_nothing_yet_is_refused_with_the_way_out():
    module = tiny.seeded(lambda: tiny.Language(blocks.OnlyMLP(), blocks.OnlyMLP()))
    for block in module.trunk:
        nn.init.zeros_(block.down.weight)
        nn.init.zeros_(block.down.bias)
    with pytest.raises(interp.SiteError, match="once it is trained"):
        interp.load(module).anatomy.place("blocks.0.neurons")


@pytest.mark.parametrize(
    ("site", "run"),
    [
        ("blocks.0.attn_out", transformer_lens.fwd_hooks),
        ("blocks.0.mlp_out", lambda found, _: captum.layers(found, "blocks.0.mlp_out")),
    ],
)
def test_a_scaled_addition_is_not_what_another_library_is_given(site, run):
    found = subject(blocks.Scaled)
    with pytest.raises(interp.SiteError, match=r"0\.\d+ \* trunk"):
        run(found, interp.Zero(found.units(site, [0])))


def test_a_name_for_the_mlp_leaves_another_mixer_what_it_is():
    module = tiny.seeded(lambda: tiny.Language(blocks.Convolving(), blocks.Convolving()))
    found = interp.load(module, anatomy=interp.Layout(mlp_out="down"))
    assert str(found.anatomy.place("blocks.0.mixer_out")) == "trunk.0.attn:out"
    assert interp.Site("attn_out", 0) in found.anatomy.refused


def test_a_layout_that_names_a_module_of_another_width_is_refused():
    module = tiny.seeded(lambda: tiny.Language(blocks.Scaled(), blocks.Scaled()))
    with pytest.raises(interp.SiteError, match=r"attn\.qkv returns .*cannot be added"):
        interp.load(module, anatomy=interp.Layout(attn_out="attn.qkv"))


def test_attention_that_is_seen_to_carry_nothing_gives_no_half_its_name():
    module = tiny.seeded(lambda: tiny.Language(blocks.Alone(), blocks.Alone()))
    with pytest.raises(interp.SiteError, match="not seen to carry"):
        interp.load(module).anatomy.place("blocks.0.mlp_out")
