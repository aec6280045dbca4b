from __future__ import annotations

import functools
from typing import Any

import pytest
import tiny
import torch

import interp
from interp import HookError, SiteError, Zero
from interp.adapters import transformer_lens as adapter

from .plans import KINDS, close, example, expected, plan, sites

KNOWN = tiny.HUGGING_FACE  # a policy written by hand has no adapter in TransformerLens


@functools.cache
def bridge(name: str) -> Any:
    return adapter.bridge(tiny.subject(name))


@pytest.mark.parametrize("name", KNOWN)
def test_equals_hooks_at_every_point(name):
    subject, batch = tiny.subject(name), example(name)
    close(
        adapter.logits(bridge(name), subject.anatomy, [], batch),
        subject.logits(batch),
        1e-4,
        "no plan",
    )
    for site in sites(subject):
        some = plan(subject, "all_at_once", site)
        close(
            adapter.logits(bridge(name), subject.anatomy, some, batch),
            expected(subject, some, batch),
            1e-4,
            site,
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "site"),
    [("llama", "blocks.1.neurons"), ("opt", "blocks.1.heads"), ("gpt2", "blocks.1.resid_mid")],
)
def test_equals_hooks_for_every_kind(name, site, kind):
    subject, batch = tiny.subject(name), example(name)
    some = plan(subject, kind, site)
    found = adapter.logits(bridge(name), subject.anatomy, some, batch)
    close(found, expected(subject, some, batch), 1e-4)
    assert not torch.allclose(found, subject.logits(batch), atol=1e-4)


def test_the_users_model_is_not_touched():
    subject, batch = tiny.subject("qwen2"), example("qwen2")
    kinds, clean = [type(m) for m in subject.module.modules()], subject.logits(batch)
    with tiny.untouched(subject.module):
        adapter.logits(
            adapter.bridge(subject),
            subject.anatomy,
            plan(subject, "zero", "blocks.1.neurons"),
            batch,
        )
    assert [type(m) for m in subject.module.modules()] == kinds
    assert torch.equal(clean, subject.logits(batch))


@pytest.mark.parametrize("kind", ["zero", "resample", "scale_decode", "zero_at"])
def test_positions_are_absolute_under_generation(kind):
    subject, prompt = tiny.subject("llama"), example("llama").tokens[:1, :4]
    some = plan(subject, kind, "blocks.1.neurons")
    with subject.intervened(some):
        wanted = subject.generate(prompt, 8)
    with bridge("llama").hooks(fwd_hooks=adapter.fwd_hooks(subject, some)):
        found = bridge("llama").generate(
            prompt, max_new_tokens=8, do_sample=False, stop_at_eos=False, verbose=False
        )
    assert found[:, 4:].tolist() == wanted.tolist()


def test_a_bridge_whose_cache_decodes_other_tokens_decodes_without_it(monkeypatch):
    from transformer_lens.model_bridge import TransformerBridge

    right = TransformerBridge.generate

    def with_a_broken_cache(self, prompt, *, use_past_kv_cache=True, **settings):
        found = right(self, prompt, use_past_kv_cache=False, **settings)
        return (found + 1) % tiny.VOCABULARY if use_past_kv_cache else found

    monkeypatch.setattr(TransformerBridge, "generate", with_a_broken_cache)
    subject, prompt = tiny.subject("llama"), example("llama").tokens[:1, :4]
    with pytest.warns(
        UserWarning, match="transformer-lens .* with transformers .* decodes without"
    ):
        found = adapter.bridge(subject).generate(
            prompt, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False
        )
    assert found[:, 4:].tolist() == subject.generate(prompt, 4).tolist()


def test_sites_it_cannot_name_are_refused():
    policy = tiny.subject("policy")
    with pytest.raises(SiteError, match=r"decoder.blocks.1.neurons has no TransformerLens name"):
        adapter.fwd_hooks(policy, plan(policy, "zero", "decoder.blocks.1.neurons"))


def test_models_it_does_not_know_are_refused():
    with pytest.raises(ValueError, match="TransformerLens cannot wrap Policy"):
        adapter.bridge(tiny.subject("policy"))


def test_what_would_change_nothing_is_an_error():
    subject = tiny.subject("llama")
    with pytest.raises(HookError, match="selects none of the"):
        adapter.logits(
            bridge("llama"),
            subject.anatomy,
            Zero(subject.anatomy.units("heads"), positions=(99,)),
            example("llama"),
        )


def test_takes_an_anatomy_as_well():
    subject = tiny.subject("llama")
    names = [
        name
        for name, _ in adapter.fwd_hooks(subject.anatomy, plan(subject, "zero", "blocks.2.heads"))
    ]
    assert names == ["blocks.2.attn.hook_z"]
    assert interp.Site.parse(names[0]) == interp.Site("heads", 2)
