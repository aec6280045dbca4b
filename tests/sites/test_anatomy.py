"""Laws of anatomy and discovery: what the sites found structurally mean, on inputs that discovery
has not seen."""

import copy

import pytest
import tiny
import torch

import interp
from interp.sites.site import BLOCK_POINTS

LANGUAGE_MODELS = pytest.mark.parametrize("name", tiny.HUGGING_FACE)


def expected(name: str) -> set[str]:
    absent = {"mixer_out"}
    if name in tiny.PARALLEL:
        absent.add("resid_mid")
    if name == "mixtral":
        absent.add("neurons")
    return set(BLOCK_POINTS) - absent


def test_every_point_of_every_block_is_found(name: str, subject: interp.Subject):
    for stack, blocks in subject.anatomy.stacks.items():
        for block in range(len(blocks)):
            assert {
                s.point for s in subject.sites if (s.stack, s.block) == (stack, block)
            } == expected(name)
    assert (
        {s.point for s in subject.sites if s.block is None} >= {"final"}
        if name == "policy"
        else {"embed", "final"}
    )


def test_both_stacks_of_a_policy_are_found():
    anatomy = tiny.subject("policy").anatomy
    assert {stack: len(blocks) for stack, blocks in anatomy.stacks.items()} == {
        "vision": 2,
        "decoder": tiny.BLOCKS,
    }


def test_residual_laws_hold_on_other_inputs(name: str, subject: interp.Subject):
    batch = tiny.batch(name, rows=3, length=7, seed=5)
    for stack, blocks in subject.anatomy.stacks.items():
        for block in range(len(blocks)):
            at = {
                p: tiny.values_by_hand(subject, batch, interp.Site(p, block, stack))
                for p in expected(name) - {"heads", "neurons"}
            }
            torch.testing.assert_close(
                at["resid_pre"] + at["attn_out"] + at["mlp_out"],
                at["resid_post"],
                rtol=0,
                atol=1e-4,
            )
            torch.testing.assert_close(
                at["resid_pre"] + at["block_out"], at["resid_post"], rtol=0, atol=1e-6
            )
            if "resid_mid" in at:
                torch.testing.assert_close(
                    at["resid_mid"] + at["mlp_out"], at["resid_post"], rtol=0, atol=1e-4
                )
            if block + 1 < len(blocks):
                assert torch.equal(
                    at["resid_post"],
                    tiny.values_by_hand(subject, batch, interp.Site("resid_pre", block + 1, stack)),
                )


@LANGUAGE_MODELS
def test_heads_are_counted_under_grouped_and_fused_projections(name: str):
    subject = tiny.subject(name)
    assert set(subject.anatomy.widths("heads").values()) == {tiny.HEADS}


@pytest.mark.parametrize("point", ["neurons", "heads"])
def test_zeroing_a_unit_equals_zeroing_its_rows_of_the_out_projection(
    name: str, subject: interp.Subject, point: str
):
    if point not in expected(name):
        pytest.skip("refused by name")
    batch = tiny.batch(name)
    for site in subject.anatomy.expand(point):
        chosen = tiny.units(subject, site, [0, 1])
        edited = copy.deepcopy(subject.module)
        with torch.no_grad():
            subject.anatomy.out_weight(edited, site)[
                subject.anatomy.columns(site, chosen[site])
            ] = 0
        with torch.no_grad(), subject.intervened(interp.Zero(chosen)):
            ablated = subject.logits(batch)
        with torch.no_grad():
            torch.testing.assert_close(
                ablated, tiny.wrapped(edited).logits(batch), rtol=0, atol=1e-5
            )


def test_each_head_holds_what_attention_gave_it(
    llama: interp.Subject, monkeypatch: pytest.MonkeyPatch
):
    """Under grouped queries: head h of the site is head h of the attention's result, not of the
    keys and values."""
    plain, results = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *a, **k: results.append(plain(*a, **k)) or results[-1],
    )
    batch = tiny.batch("llama")
    with torch.no_grad():
        values = tiny.values_by_hand(llama, batch, "blocks.1.heads").unflatten(-1, (tiny.HEADS, -1))
    assert torch.equal(values, results[1].transpose(1, 2))


def test_experts_are_refused_and_mlp_out_offered():
    subject = tiny.subject("mixtral")
    with pytest.raises(interp.SiteError, match=r"mixture of experts.*nearest: blocks\.1\.mlp_out"):
        subject.anatomy.place("blocks.1.neurons")
    with pytest.raises(interp.SiteError, match="mixture of experts"):
        subject.anatomy.expand("neurons")


@pytest.mark.parametrize("name", tiny.PARALLEL)
def test_resid_mid_is_refused_where_attention_and_mlp_run_in_parallel(name: str):
    with pytest.raises(interp.SiteError, match=r"parallel.*nearest: blocks\.0\.resid_p"):
        tiny.subject(name).anatomy.place("blocks.0.resid_mid")


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("blocks.0.neuron", "blocks.0.neurons"),
        ("blocks.7.neurons", "blocks.1.neurons|blocks.0.neurons|blocks.2.neurons"),
        ("blocks.0.mlp.hook_pots", "blocks.0.mlp.hook_post"),
        ("model.layers.1.mlp.down_prj:in", "model.layers.1.mlp.down_proj:in"),
        ("hook_embd", "hook_embed"),
    ],
)
def test_an_unknown_site_offers_the_nearest(llama: interp.Subject, asked: str, nearest: str):
    with pytest.raises(interp.SiteError) as error:
        llama.anatomy.place(asked)
    assert asked in str(error.value)
    assert any(f"nearest: {n}" in str(error.value) for n in nearest.split("|"))


def test_all_spellings_of_a_site_mean_one_place(llama: interp.Subject):
    for site in llama.sites:
        anatomy = llama.anatomy
        assert anatomy.resolve(str(site)) == anatomy.resolve(site) == site
        if site.point != "block_out":
            assert anatomy.resolve(site.transformer_lens) == site
        if site.point not in ("resid_mid", "block_out"):
            assert anatomy.place(str(anatomy.place(site))) == anatomy.place(site)
    assert (
        llama.anatomy.expand("blocks.*.mlp.hook_post")
        == llama.anatomy.expand("neurons")
        == llama.anatomy.expand("blocks.*.neurons")
    )


def test_raw_module_paths_can_be_hooked(llama: interp.Subject):
    site = "model.layers.1.mlp.gate_proj:out"
    seen: list[torch.Tensor] = []
    handle = llama.module.get_submodule("model.layers.1.mlp.gate_proj").register_forward_hook(
        lambda _, __, out: seen.append(out)
    )
    batch = tiny.batch("llama")
    recorded = interp.record(llama, batch, site, reduce="mean")[site]
    handle.remove()
    torch.testing.assert_close(
        torch.tensor(recorded), seen[0].double().mean((0, 1)), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("llama", "blocks.0.mlp_out"), ("llama", "embed"), ("opt", "blocks.0.resid_mid")],
)
def test_only_projections_have_out_weights(name: str, wrong: str):
    subject = tiny.subject(name)
    with pytest.raises(interp.SiteError, match="only neurons and heads"):
        subject.anatomy.out_weight(subject.module, wrong)


def test_units_of_another_model_are_refused(llama: interp.Subject):
    foreign = interp.Units({"blocks.0.neurons": [0]}, {"blocks.0.neurons": 999})
    with (
        pytest.raises(ValueError, match=r"999 wide; here it is 48"),
        llama.intervened(interp.Zero(foreign)),
    ):
        pass


def test_what_the_model_scales_in_place_after_the_hook_is_scaled_in_the_place_too():
    module = tiny.seeded(
        lambda: tiny.Language(*(tiny.ScalingBlock(32, tiny.HEADS, causal=True) for _ in range(2)))
    )
    subject = interp.load(module)
    assert subject.anatomy.place("blocks.1.attn_out").scale == pytest.approx(0.5)
    with (
        pytest.raises(interp.HookError, match="in place"),
        interp.captured(subject, (interp.Site("trunk.0.attn:out"),)),
    ):
        subject.touch(tiny.batch("llama"))


def hidden_kernel_model() -> tiny.Language:
    kinds = (tiny.Block, tiny.OtherBlock)
    return tiny.seeded(
        lambda: tiny.Language(
            *(kind(32, tiny.HEADS, causal=True, attention=tiny.Invisible) for kind in kinds)
        )
    )


def test_a_layout_says_what_structure_does_not():
    module = hidden_kernel_model()
    without = interp.load(module)
    with pytest.raises(interp.SiteError, match="0 attention operations"):
        without.anatomy.place("blocks.0.heads")
    assert str(without.anatomy.place("blocks.0.mixer_out")) == "trunk.0.attn:out"
    subject = interp.load(
        module,
        anatomy=interp.Layout(
            blocks="trunk", heads="attn.out", n_heads=tiny.HEADS, attn_out="attn", mlp_out="down"
        ),
    )
    assert {s.point for s in subject.sites} == {*BLOCK_POINTS, "embed", "final"} - {"mixer_out"}
    assert set(subject.anatomy.widths("heads").values()) == {tiny.HEADS}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (interp.Layout(blocks="trunc"), "nearest: trunk"),
        (
            interp.Layout(blocks="trunk", heads="attn.oot", n_heads=4),
            r"nearest: trunk\.0\.attn\.out",
        ),
        (interp.Layout(blocks="trunk", neurons="dawn"), r"nearest: trunk\.0\.down"),
    ],
)
def test_a_wrong_layout_offers_the_nearest_path(layout: interp.Layout, message: str):
    with pytest.raises(interp.SiteError, match=message):
        interp.load(hidden_kernel_model(), anatomy=layout)


def test_a_module_without_blocks_is_refused():
    with pytest.raises(interp.SiteError, match="no stack of blocks"):
        interp.load(torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5)))


def test_discovery_disturbs_neither_random_state_nor_training_mode(name: str):
    module = tiny.model(name).train()
    next(module.children()).eval()
    state = torch.random.get_rng_state()
    with tiny.untouched(module):
        tiny.wrapped(module)
    assert torch.equal(torch.random.get_rng_state(), state)
