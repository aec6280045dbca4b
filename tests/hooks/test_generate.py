"""Laws of interp.hooks.clock: under Hugging Face's own `generate`, what is prompt and whose donor is
whose do not depend on how it decodes; what cannot be known is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from transformers import DynamicCache, MambaConfig, MambaForCausalLM, RwkvConfig, RwkvForCausalLM

import interp
from interp.hooks.clock import prompt_length

NAMES = ["llama", "gpt2", "gemma3"]
PROMPT, LENGTH = 6, 5
PLANS = [{"when": "prompt"}, {"when": "decode"}, {"positions": (2, 7)}]


def prompts(rows: int = 2) -> Tensor:
    return tiny.batch("llama", rows=rows, length=PROMPT, seed=8).tokens % 60 + 1


def plan(subject: interp.Subject, **narrow: Any) -> interp.Intervention:
    units = subject.units("blocks.1.mlp_out", range(0, 32, 2))
    steering = {units.sites[0]: 3 * np.random.default_rng(1).normal(size=32)}
    return interp.Add(units, values=steering, **narrow)


def generate(subject: interp.Subject, ids: Tensor, **options: Any) -> Tensor:
    options = {"max_new_tokens": LENGTH, "do_sample": False} | options
    whole = subject.module.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return whole[:, -LENGTH:]


def half_full_cache(subject: interp.Subject) -> DynamicCache:
    """A cache that holds what of the prompt the last two tokens do not cover."""
    cache = DynamicCache(config=subject.module.config)
    with torch.no_grad():
        subject.module(prompts()[:, : PROMPT - 2], past_key_values=cache, use_cache=True)
    return cache


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("narrow", PLANS, ids=str)
def test_every_way_of_decoding_gives_the_same_tokens(name: str, narrow: dict[str, Any]):
    subject, ids = tiny.subject(name), prompts()
    with subject.intervened(plan(subject, **narrow)):
        ours = subject.generate(ids, LENGTH)
    ways: list[dict[str, Any]] = [
        {},
        {"use_cache": False},
        {"prefill_chunk_size": 4},
        {"cache_implementation": "static"},
    ]
    for way in ways:
        with tiny.untouched(subject.module), subject.intervened(plan(subject, **narrow)):
            assert torch.equal(generate(subject, ids, **way), ours), way
    with subject.intervened(plan(subject, **narrow)):
        looked_up = generate(subject, ids[:1], prompt_lookup_num_tokens=3)
    assert torch.equal(looked_up, ours[:1])


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_that_is_partly_in_the_cache_is_still_prompt(name: str):
    subject, ids = tiny.subject(name), prompts()
    with subject.intervened(plan(subject, when="decode")):
        wanted = generate(subject, ids)
    cache = half_full_cache(subject)
    with subject.intervened(plan(subject, when="decode")):
        assert torch.equal(generate(subject, ids, past_key_values=cache), wanted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {"num_return_sequences": 2, "do_sample": True},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "use_cache": False},
    ],
    ids=str,
)
def test_every_sample_and_beam_takes_the_donor_of_its_prompt(name: str, options: dict[str, Any]):
    subject, ids = tiny.subject(name), prompts(rows=2)
    site = interp.Site("resid_post", 0)
    donors = np.random.default_rng(0).normal(size=(2, PROMPT, 32)).astype("float32")
    units = subject.units(site)
    with subject.intervened(interp.Interchange(units, values={site: donors})):
        together = subject.module.generate(
            ids,
            max_new_tokens=1,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    rows = together.logits[0].chunk(2)
    for row, logits in enumerate(rows):
        own = interp.Patch(units, values={site: donors[row]})
        with torch.no_grad(), subject.intervened(own):
            alone = subject.module(ids[row : row + 1]).logits[:, -1].expand(len(logits), -1)
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-4)


def test_a_deep_copy_generates_with_its_own_weights(llama: interp.Subject):
    ids = prompts()
    with llama.intervened(plan(llama)):
        other = copy.deepcopy(llama.module)
        torch.nn.init.zeros_(other.lm_head.weight)
        generated = other.generate(ids, max_new_tokens=1, do_sample=False)
        llama.generate(ids, 1)
    assert not generated[:, -1].any()


def by_hand_without_cache(subject: interp.Subject) -> None:
    ids = prompts()
    for _ in range(2):
        logits = subject.module(ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)


def by_hand_with_a_filled_cache(subject: interp.Subject) -> None:
    subject.module(prompts()[:, -2:], past_key_values=half_full_cache_outside, use_cache=True)


def guided(subject: interp.Subject) -> None:
    generate(subject, prompts(), guidance_scale=1.5)


def without_a_prompt(subject: interp.Subject) -> None:
    subject.module.generate(max_new_tokens=2, bos_token_id=1)


half_full_cache_outside: Any = None


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (by_hand_without_cache, "again, and 1 more, which may be decoded ones"),
        (by_hand_with_a_filled_cache, "the cache held 4 positions when the first forward was seen"),
        (guided, "classifier-free guidance"),
        (without_a_prompt, "without a prompt"),
    ],
)
def test_what_cannot_be_known_is_refused(
    llama: interp.Subject, run: Any, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(globals(), "half_full_cache_outside", half_full_cache(llama))
    with (
        torch.no_grad(),
        pytest.raises(interp.HookError, match=reason),
        llama.intervened(plan(llama, when="prompt")),
    ):
        run(llama)
    monkeypatch.setitem(globals(), "half_full_cache_outside", half_full_cache(llama))
    with torch.no_grad(), llama.intervened(plan(llama)):  # at all positions alike: no need to know
        run(llama)


def test_a_declared_prompt_is_enough(llama: interp.Subject):
    narrow = plan(llama, when="prompt")
    with llama.intervened(narrow):
        ours = llama.generate(prompts(), 2)
    ids = prompts()
    with torch.no_grad(), llama.intervened(narrow), prompt_length(PROMPT):
        for _ in range(2):
            logits = llama.module(ids, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(ids[:, PROMPT:], ours)


@pytest.mark.parametrize("when", ["prompt", "decode"])
def test_a_cache_that_was_filled_inside_says_what_is_prompt(llama: interp.Subject, when: str):
    narrow, cache = plan(llama, when=when), DynamicCache(config=llama.module.config)
    ids = new = prompts()
    with llama.intervened(narrow):
        wanted = llama.generate(ids, LENGTH)
    with torch.no_grad(), llama.intervened(narrow):
        for _ in range(LENGTH):
            new = llama.module(new, past_key_values=cache).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, new], dim=1)
    assert torch.equal(ids[:, PROMPT:], wanted)


def recurrent(kind: str) -> Any:
    if kind == "mamba":
        config = MambaConfig(vocab_size=67, hidden_size=16, num_hidden_layers=2, state_size=4)
        return tiny.seeded(lambda: MambaForCausalLM(config), torch.float32, 0)
    config = RwkvConfig(vocab_size=67, hidden_size=16, num_hidden_layers=2)
    return tiny.seeded(lambda: RwkvForCausalLM(config), torch.float32, 0)


@pytest.mark.parametrize("kind", ["mamba", "rwkv"])
def test_a_memory_that_counts_no_positions_needs_whole_forwards(kind: str):
    subject, ids = interp.load(recurrent(kind)), prompts()
    site = next(site for site in subject.sites if site.point == "resid_post")
    narrow = interp.Scale(subject.units(site, range(8)), factor=-1.0, when="prompt")
    with (
        pytest.raises(interp.HookError, match="generate with use_cache=False"),
        subject.intervened(narrow),
    ):
        generate(subject, ids)
    with subject.intervened(narrow):
        generate(subject, ids, use_cache=False)
