"""The policy as a `Stepwise`: who sees whom, its cache, its sites, its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.adapters.weights import applied
from interp.errors import LoadError
from interp.loading.readers import family_of
from interp.models.policy.checkpoints import policy_of, read_policy, save_policy
from interp.models.policy.policy import Policy, PolicyConfig

SIZES = {"width": 16, "depth": 2, "heads": 2, "hidden": 24}
SHAPES = {
    "items": PolicyConfig(**SIZES),
    "chunks": PolicyConfig(**SIZES, chunk=3),
    "patches": PolicyConfig(**SIZES, patches=3, patch=4),
}


@pytest.fixture(params=SHAPES)
def policy(request: pytest.FixtureRequest) -> interp.Subject:
    return interp.load(Policy(SHAPES[request.param], seed=1).double())


def with_given(batch: interp.Batch, changes: Mapping[str, Tensor]) -> interp.Batch:
    return replace(batch, conditioning={**batch.conditioning, **changes})


def test_the_cache_changes_nothing(policy: interp.Subject):
    batch = policy.stepwise.example()
    assert policy.decoding.cached
    cached = policy.generate(batch)
    tokens = torch.empty(len(batch), 0, dtype=torch.long)
    for _ in range(batch.length):
        longer = torch.cat([tokens, torch.zeros(len(batch), 1, dtype=torch.long)], 1)
        logits = policy.target_logits(replace(batch, tokens=longer))
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(cached, tokens)


def test_a_token_changes_only_what_is_predicted_after_it(policy: interp.Subject):
    batch = policy.stepwise.example()
    logits = policy.target_logits(batch)
    for place in range(batch.length):
        tokens = batch.tokens.clone()
        tokens[:, place] = (tokens[:, place] + 5) % 21
        changed = policy.target_logits(replace(batch, tokens=tokens))
        assert torch.equal(changed[:, : place + 1], logits[:, : place + 1])
        if place + 1 < batch.length:
            assert not torch.allclose(changed[:, place + 1], logits[:, place + 1])


def test_every_part_of_the_input_counts(policy: interp.Subject):
    batch = policy.stepwise.example()
    logits = policy.target_logits(batch)
    for name, value in batch.conditioning.items():
        flipped = with_given(batch, {name: value.flip(0)})
        assert not torch.allclose(policy.target_logits(flipped), logits)


def test_what_is_not_there_is_not_seen():
    policy = interp.load(Policy(SHAPES["items"], seed=1).double())
    batch = policy.stepwise.example()
    items = batch.conditioning["items"].clone()
    items[:, 3:, -1] = 0
    words = batch.conditioning["words"].clone()
    words[:, 5:] = 0
    some = with_given(batch, {"items": items, "words": words})
    logits = policy.target_logits(some)
    other = items.clone()
    other[:, 3:, :-1] = 7.0
    torch.testing.assert_close(policy.target_logits(with_given(some, {"items": other})), logits)
    # As if there had never been places for them.
    module = policy_of(policy.module)
    fewer = Policy(replace(SHAPES["items"], items=3, words=5), seed=1).double()
    state = {
        name: value[:5] if name == "word_places" else value
        for name, value in module.state_dict().items()
    }
    fewer.load_state_dict(state)
    cut = with_given(some, {"items": items[:, :3], "words": words[:, :5]})
    torch.testing.assert_close(interp.load(fewer).target_logits(cut), logits)


def test_the_order_of_the_items_does_not_matter_and_that_of_the_words_does():
    policy = interp.load(Policy(SHAPES["items"], seed=1).double())
    batch = policy.stepwise.example()
    logits = policy.target_logits(batch)
    items = batch.conditioning["items"].flip(1)
    torch.testing.assert_close(policy.target_logits(with_given(batch, {"items": items})), logits)
    words = batch.conditioning["words"].flip(1)
    changed = policy.target_logits(with_given(batch, {"words": words}))
    assert not torch.allclose(changed, logits)


def test_all_usual_sites_are_found_and_hooks_equal_weights(policy: interp.Subject):
    names = {str(site) for site in policy.anatomy.places}
    for block in range(2):
        assert {f"blocks.{block}.{point}" for point in ("heads", "neurons", "resid_post")} <= names
    batch = policy.stepwise.example()
    plan = interp.Zero(policy.units("blocks.1.neurons", [0, 3, 7]))
    with policy.intervened(plan):
        hooked = policy.target_logits(batch)
    with applied(policy, plan):
        written = policy.target_logits(batch)
    torch.testing.assert_close(hooked, written)
    assert not torch.allclose(hooked, policy.target_logits(batch))


def test_segments_cover_all_positions(policy: interp.Subject):
    module = policy_of(policy.module)
    ends = [(segment.start, segment.stop) for segment in module.segments]
    assert ends[0][0] == 0
    assert all(one[1] == two[0] for one, two in pairwise(ends))
    # The last token is predicted and never read.
    assert ends[-1][1] == module.positions(module.config.length) - 1


def test_scan_localize_and_ablate_as_for_text(policy: interp.Subject):
    batch = policy.stepwise.example()
    continued = replace(batch, tokens=policy.generate(batch))
    found = interp.scan(policy, continued)
    assert found["exact"].all()
    units = interp.localize(policy, found).top(0.3)
    with policy.intervened(interp.Zero(units)):
        after = interp.scan(policy, interp.Batch.from_frame(found))
    assert after["log_p"].sum() != pytest.approx(found["log_p"].sum())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": None}, r"conditioning\['words'\] must have the shape \(2, 12\), got none"),
        ({"items": torch.zeros(2, 5, 8)}, r"must have the shape \(2, 6, 8\), got shape \(2, 5, 8"),
        ({"image": torch.zeros(2, 3)}, "'image': this policy reads words, state, items"),
        ({"state": torch.full((2, 5), float("nan"))}, "not finite"),
        ({"words": torch.full((2, 12), 32)}, "expected 0 to 31"),
    ],
)
def test_conditioning_that_is_none_is_refused(changes: dict[str, Any], message: str):
    policy = interp.load(Policy(SHAPES["items"]))
    batch = policy.stepwise.example()
    given = {**batch.conditioning, **changes}
    given = {name: value for name, value in given.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        policy.logits(replace(batch, conditioning=given))


def test_more_tokens_than_a_chunk_and_a_width_that_does_not_divide_are_refused():
    policy = interp.load(Policy(SHAPES["items"]))
    batch = policy.stepwise.example()
    longer = replace(batch, tokens=torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="5 tokens: a chunk of this policy has 4"):
        policy.logits(longer)
    with pytest.raises(ValueError, match="3 heads do not divide a width of 16"):
        PolicyConfig(**{**SIZES, "heads": 3})


def test_a_policy_is_read_as_it_was_written(policy: interp.Subject, tmp_path: Path):
    folder = save_policy(policy.module, tmp_path / "policy")
    assert family_of(folder) == "policy"
    again = interp.load(folder)
    assert policy_of(again.module).config == policy_of(policy.module).config
    batch = policy.stepwise.example()
    torch.testing.assert_close(again.target_logits(batch), policy.target_logits(batch))


def test_files_that_do_not_fit_are_refused(tmp_path: Path):
    folder = save_policy(Policy(SHAPES["items"]), tmp_path)
    shape = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps({**shape, "width": 32}))
    with pytest.raises(LoadError, match=r"do not fit policy\.json"):
        interp.load(folder)
    (folder / "policy.json").write_text(json.dumps({**shape, "breadth": 32}))
    with pytest.raises(LoadError, match="is not the shape of a policy"):
        interp.load(folder)
    with pytest.raises(LoadError, match="expected no tokenizer="):
        read_policy(folder, tokenizer="gpt2")
    with pytest.raises(ValueError, match="Linear is not a policy"):
        policy_of(torch.nn.Linear(2, 2))


def test_the_seed_decides_about_the_weights_and_leaves_torch_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = (Policy(SHAPES["items"], seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
