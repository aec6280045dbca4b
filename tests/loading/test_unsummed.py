"""Laws of units in blocks of which it is not known what they add: each is where a hook of torch's
own finds it, and is refused where nothing tells it from something else."""

from __future__ import annotations

import pytest
import tiny
import torch
import unsummed_blocks as blocks
from blocks import WIDTH
from torch import Tensor, nn

import interp
from benchmarks.coverage import architectures
from interp.adapters import captum, nnsight, weights

# A block, its decoder, and where its heads and neurons are. None where it has none.
OWN = {
    blocks.HyperConnected: (blocks.Streams, "attn.out", "down"),
    blocks.GatedInput: (blocks.Streams, "attn.out", "down"),
    blocks.SquareMLP: (blocks.Streams, "attn.out", "down"),
    blocks.SharedInStreams: (blocks.Streams, "attn.out", "mixture.shared.down"),
    blocks.Grouped: (blocks.Streams, "attn.first", "down"),
    blocks.InFront: (blocks.StreamsInFront, "attn.out", "down"),
    blocks.SideBySide: (blocks.StreamsSideBySide, "attn.out", "down"),
    blocks.Adapter: (tiny.Language, "attn.out", "down"),
    blocks.FeedsMixer: (tiny.Language, "attn.out", "down"),
    blocks.NormedMixture: (tiny.Language, "attn.out", "mixture.shared.down"),
    blocks.NormInside: (tiny.Language, "attn.out", "mixture.shared.down"),
    blocks.NormAtStart: (tiny.Language, "attn.out", "down"),
    blocks.RMSNormAtStart: (tiny.Language, "attn.out", "down"),
    blocks.OtherSoftmax: (tiny.Language, "attn.out", None),
}
# Architectures of transformers, with the number of a block and where its units are.
THEIRS = {
    "gemma3n_text": (1, "self_attn.o_proj", "mlp.down_proj"),  # streams in front
    "hy_v4": (1, "self_attn.o_proj", "mlp.shared_experts.down_proj"),  # hyper-connections
    "deepseek_v4": (1, "self_attn.o_a_proj", "mlp.shared_experts.down_proj"),  # heads in groups
    "qwen4_exp_text": (1, "self_attn.o_proj", "mlp.shared_expert.down_proj"),  # side by side
    "xmod": (1, "attention.output.dense", "output.dense"),  # an adapter behind the MLP
    "zamba2": (
        1,
        "shared_transformer.self_attn.o_proj",
        "shared_transformer.feed_forward.down_proj",
    ),  # they feed a mixer
    "kolibri1": (1, "self_attn.o_proj", "mlp.shared_experts.down_proj"),  # a norm behind experts
    "axk1": (1, "self_attn.o_proj", "mlp.shared_experts.down_proj"),  # the same, inside
    "rwkv": (0, None, "feed_forward.value"),  # a norm as the stream enters
    "inkling2_text": (1, "self_attn.o_proj", None),  # a softmax over earlier blocks
}


def subject(kind: type[nn.Module], language: type[nn.Module] | None = None) -> interp.Subject:
    language = language or OWN[kind][0]
    return interp.load(tiny.seeded(lambda: language(kind(), kind())))


def check_units(found: interp.Subject, batch: interp.Batch, site: str, path: str) -> None:
    """The values of a site are a module's input, and zeroing units is zeroing columns of it."""
    place = found.anatomy.place(site)
    assert str(place) == f"{path}:in"
    columns = place.width // place.units
    module = found.module.get_submodule(path)
    seen: list[Tensor] = []

    def without_unit_1(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0])
        by_column = args[0].reshape(-1, place.width).clone()
        by_column[:, columns : 2 * columns] = 0
        return (by_column.reshape(args[0].shape), *args[1:])

    handle = module.register_forward_pre_hook(without_unit_1)
    with torch.no_grad():
        by_hand = found.logits(batch)
    handle.remove()

    [site_found] = found.anatomy.expand(site)
    with interp.captured(found, (site_found,)) as values:
        clean = found.logits(batch)
    value = values[site_found]
    assert value.shape == (*batch.tokens.shape, place.width)
    torch.testing.assert_close(value.detach().reshape(seen[0].shape), seen[0])
    with torch.no_grad(), found.intervened(interp.Zero(found.units(site, [1]))):
        ours = found.logits(batch)
    torch.testing.assert_close(ours, by_hand)
    assert not torch.allclose(ours, clean)
    gradients = torch.autograd.grad(clean.sum(), [value])
    assert bool(gradients[0].any())


@pytest.mark.parametrize("kind", OWN)
def test_units_of_blocks_of_our_own_are_at_their_projections(kind):
    found = subject(kind)
    batch = tiny.batch("llama")
    for point, path in zip(("heads", "neurons"), OWN[kind][1:], strict=True):
        if path is not None:
            check_units(found, batch, f"blocks.1.{point}", f"trunk.1.{path}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", THEIRS)
def test_units_of_architectures_of_transformers_are_at_their_projections(name):
    found = interp.load(architectures.build(name, "causal"))
    index, *paths = THEIRS[name]
    block = found.anatomy.blocks()[index]
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, architectures.LARGEST_ID, (2, 12), generator=generator)
    batch = interp.Batch(tokens)
    for point, path in zip(("heads", "neurons"), paths, strict=True):
        if path is not None:
            check_units(found, batch, f"blocks.{index}.{point}", f"{block}.{path}")


@pytest.mark.parametrize("kind", [blocks.HyperConnected, blocks.InFront])
def test_without_all_units_what_the_half_gives_is_its_bias(kind):
    found = subject(kind)
    for point, path in (("heads", "attn.out"), ("neurons", "down")):
        given: list[Tensor] = []
        projection = found.module.get_submodule(f"trunk.0.{path}")
        handle = projection.register_forward_hook(lambda _, __, out, given=given: given.append(out))
        with torch.no_grad(), found.intervened(interp.Zero(found.units(f"blocks.0.{point}"))):
            found.logits(tiny.batch("llama"))
        handle.remove()
        assert isinstance(projection, nn.Linear)
        torch.testing.assert_close(given[0], projection.bias.expand_as(given[0]))


@pytest.mark.parametrize("kind", [blocks.HyperConnected, blocks.InFront])
def test_in_streams_only_units_have_a_name(kind):
    found = subject(kind)
    assert {site.point for site in found.sites if site.block is not None} == {"heads", "neurons"}
    for point in ("resid_pre", "attn_out", "mlp_out", "resid_post"):
        with pytest.raises(interp.SiteError, match="several residual streams"):
            found.anatomy.place(f"blocks.0.{point}")


def test_a_stream_that_is_normalized_as_it_enters_is_what_the_halves_are_added_to():
    found = subject(blocks.NormAtStart)
    sites = found.anatomy.expand(["blocks.0.attn_out", "blocks.0.resid_mid", "blocks.0.mlp_out"])
    normed: list[Tensor] = []
    start = found.module.get_submodule("trunk.0.start")
    handle = start.register_forward_hook(lambda _, __, out: normed.append(out))
    end = found.anatomy.resolve("blocks.0.resid_post")
    with interp.captured(found, (*sites, end)) as values, torch.no_grad():
        found.logits(tiny.batch("llama"))
    handle.remove()
    attention, middle, mlp = (values[site] for site in sites)
    torch.testing.assert_close(middle, normed[0] + attention)
    torch.testing.assert_close(values[end], middle + mlp)
    assert "trunk.0" not in found.anatomy.additive


@pytest.mark.parametrize(
    ("kind", "language", "point"),
    [
        (blocks.Rotated, blocks.Streams, "heads"),  # a column is not of one head
        (blocks.Bypassed, blocks.Streams, "heads"),  # without the units, something is left
        (blocks.TwoAttentions, blocks.Streams, "heads"),  # which of the two?
        (blocks.ToAnotherSequence, blocks.Streams, "heads"),  # it mixes nothing that enters
        (blocks.TwoMLPs, blocks.Streams, "neurons"),
        (blocks.OneAfterTheOther, blocks.Streams, "neurons"),
        (blocks.Multiplied, blocks.Streams, "neurons"),
        (blocks.BesideAttention, blocks.Streams, "neurons"),
        (blocks.RoutedThenAdapter, blocks.Streams, "neurons"),
        (blocks.HiddenBranch, blocks.Streams, "neurons"),  # without the units, something is left
    ],
)
def test_what_no_law_tells_apart_stays_refused(kind, language, point):
    found = subject(kind, language)
    with pytest.raises(interp.SiteError, match="several residual streams"):
        found.anatomy.place(f"blocks.1.{point}")
    if point == "neurons":
        check_units(found, tiny.batch("llama"), "blocks.1.heads", "trunk.1.attn.out")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [blocks.GatedInput, blocks.InFront, blocks.Multiplied])
def test_no_precision_gives_units_another_place(kind, dtype):
    language = blocks.StreamsInFront if kind is blocks.InFront else blocks.Streams
    module = tiny.seeded(lambda: language(kind(), kind()), dtype)
    with torch.no_grad():
        module.embed.weight[:, 3] += 300  # one column that sets the rounding of all
    found = interp.load(module)
    expected = {"heads": "attn.out", "neurons": "down"}
    if kind is blocks.Multiplied:
        del expected["neurons"]
    for site, place in found.anatomy.places.items():
        if site.block is not None:
            assert str(place) == f"trunk.{site.block}.{expected[site.point]}:in"


def test_rows_of_a_weight_are_given_only_where_they_are_added():
    mixed = subject(blocks.FeedsMixer)
    for site in ("blocks.0.heads", "blocks.0.neurons"):
        with pytest.raises(interp.SiteError, match="mapped on"):
            mixed.anatomy.out_weight(mixed.module, site)
    streams = subject(blocks.HyperConnected)
    for site in ("blocks.0.heads", "blocks.0.neurons"):
        assert streams.anatomy.out_weight(streams.module, site).shape[1] == WIDTH


def test_heads_in_groups_are_not_what_another_library_is_given():
    found = subject(blocks.Grouped)
    plan = interp.Zero(found.units("blocks.0.heads", [0]))
    with pytest.raises(interp.SiteError, match="captum cannot name"):
        captum.layers(found, "blocks.0.heads")
    with pytest.raises(interp.HookError, match="one tensor"):
        nnsight.logits(found, plan, tiny.batch("llama"))
    with pytest.raises(ValueError, match="mapped on"), weights.applied(found, plan):
        pass


def test_a_plan_for_decoded_tokens_works_on_several_streams():
    found = subject(blocks.HyperConnected)
    plan = interp.Zero(found.units("blocks.*.neurons"), when="decode")
    prompt = tiny.batch("llama").tokens[:, :5]
    with found.intervened(plan):
        changed = found.generate(prompt, 6)
    clean = found.generate(prompt, 6)
    assert torch.equal(changed[:, 0], clean[:, 0])  # the prompt is read as it was
