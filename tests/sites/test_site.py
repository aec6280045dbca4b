"""Laws of interp.sites.site: names round trip, order is the order of data, what is no site offers
what is nearest."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.errors import closest
from interp.sites.site import BLOCK_POINTS, END_POINTS, Site

stacks = st.sampled_from(["", "vision", "model.encoder", "policy_2"])
in_blocks = st.builds(Site, st.sampled_from(BLOCK_POINTS), st.integers(0, 200), stacks)
at_ends = st.builds(Site, st.sampled_from(END_POINTS), st.none(), stacks)
raw = st.builds(Site, st.from_regex(r"\A[a-z_]{1,8}(\.[a-z0-9_]{1,8}){0,3}:(in|out)\Z"))
sites = in_blocks | at_ends | raw


@given(sites)
def test_a_site_is_what_its_name_parses_to(site: Site):
    assert Site.parse(str(site)) == site


@given(in_blocks | at_ends)
def test_transformer_lens_names_round_trip(site: Site):
    if site.stack:
        with pytest.raises(interp.SiteError, match="one stack"):
            _ = site.transformer_lens
    elif site.point in ("block_out", "mixer_out"):
        with pytest.raises(interp.SiteError, match=f"nearest: blocks.{site.block}.hook_resid_post"):
            _ = site.transformer_lens
    else:
        assert Site.parse(site.transformer_lens) == site


@given(
    st.integers(0, 50),
    st.integers(0, 50),
    st.sampled_from(BLOCK_POINTS),
    st.sampled_from(BLOCK_POINTS),
    stacks,
)
def test_sites_sort_in_the_order_data_meets_them(i: int, j: int, p: str, q: str, stack: str):
    one, other = Site(p, i, stack), Site(q, j, stack)
    assert (one.order < other.order) == ((i, BLOCK_POINTS.index(p)) < (j, BLOCK_POINTS.index(q)))
    assert Site("embed", None, stack).order < one.order < Site("final", None, stack).order


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("blocks.3.neuron", "blocks.3.neurons"),
        ("block.3.neurons", "blocks.3.neurons"),
        ("vision.blocks.3.head", "vision.blocks.3.heads"),
        ("blocks.3.hook_mlp_ou", "blocks.3.hook_mlp_out"),
        ("embedd", "embed"),
        ("model.layers.3", ""),
    ],
)
def test_what_is_no_site_offers_the_nearest(wrong: str, nearest: str):
    with pytest.raises(interp.SiteError) as error:
        Site.parse(wrong)
    assert repr(wrong) in str(error.value)
    assert f"nearest: {nearest}" in str(error.value)


@given(st.text(max_size=12))
def test_any_text_is_a_site_or_a_site_error(text: str):
    with contextlib.suppress(interp.SiteError):
        assert Site.parse(str(Site.parse(text))) == Site.parse(text)


def test_closest_of_nothing_is_none():
    assert closest("x", []) == "none"
