"""Laws of what a removal has to withstand: relearning equals AdamW by hand, rounding equals its
formula, and the model itself stays as it is."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import letters
import pytest
import tiny
import torch

import interp
from interp.mitigation.removal.stress import (
    Relearning,
    duplicate,
    halves,
    halves_without_common_secrets,
    relearn,
    round_weights,
    rows_of,
    shuffle_secrets,
)

TEXTS = letters.noise(4, 16, seed=3)


@functools.cache
def subject() -> interp.Subject:
    return letters.subject()


def secrets() -> interp.Batch:
    """The texts, of which the last eight letters count."""
    batch = subject().encode_all(TEXTS)
    scored = torch.zeros_like(batch.tokens, dtype=torch.bool)
    scored[:, 8:] = True
    return replace(batch, scored=scored)


def loss(learner: interp.Subject) -> float:
    return learner.losses(secrets()).sum().item() / int(secrets().counted.sum())


def test_relearning_equals_adamw_by_hand():
    recipe = Relearning((0, 2, 3), lr=1e-3, clip=0.5)
    with tiny.untouched(subject().module):
        found = relearn(subject(), secrets(), loss, recipe)
    hand = interp.load(copy.deepcopy(subject().module), tokenizer=subject().tokenizer)
    optimizer = torch.optim.AdamW(hand.module.parameters(), lr=1e-3, weight_decay=0)
    expected = {0: loss(hand)}
    for step in range(1, 4):
        optimizer.zero_grad()
        losses = hand.losses(secrets())
        (losses.sum() / 32).backward()
        torch.nn.utils.clip_grad_norm_(hand.module.parameters(), 0.5)
        optimizer.step()
        expected[step] = loss(hand)
    assert list(found) == [0, 2, 3]
    assert found == pytest.approx({steps: expected[steps] for steps in found}, rel=1e-5)
    assert found[0] == loss(subject())


def test_a_plan_stays_on_while_it_is_relearned():
    units = subject().units("blocks.0.neurons", [1, 2])
    changed: list[torch.Tensor] = []

    def out_weight(learner: interp.Subject) -> float:
        weight = learner.module.get_submodule("model.layers.0.mlp.down_proj").get_parameter(
            "weight"
        )
        changed.append(weight.detach().clone())
        return loss(learner)

    recipe = Relearning((0, 3), lr=1e-3)
    with tiny.untouched(subject().module):
        found = relearn(subject(), secrets(), out_weight, recipe, interp.Zero(units))
    with subject().intervened(interp.Zero(units)):
        assert found[0] == loss(subject())
    assert found[3] < found[0]
    moved = (changed[0] != changed[1]).any(0)
    # what is zeroed has no gradient
    assert not moved[[1, 2]].any()
    assert moved[3:].any()


def test_relearning_draws_nothing_at_random():
    module = tiny.model("gpt2")  # dropout of 0.1 in training mode
    model = tiny.wrapped(module)
    batch = tiny.batch("gpt2", rows=2, length=8)
    state = torch.get_rng_state()
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        drawn_from = torch.get_rng_state()
        losses = relearn(
            model, batch, lambda learner: learner.losses(batch).sum().item(), Relearning((2,))
        )
        assert torch.equal(torch.get_rng_state(), drawn_from)
        found.append(losses)
    torch.set_rng_state(state)
    assert found[0] == found[1]


@pytest.mark.parametrize("steps", [(), (0, -1), (0,), (0, 0), (-1, 2)])
def test_numbers_of_steps_that_make_no_sense_are_refused(steps):
    with pytest.raises(ValueError, match="expected numbers of optimizer steps"):
        Relearning(steps)


def test_rounding_by_hand():
    copied = duplicate(subject())
    weight = copied.module.get_submodule("model.layers.0.mlp.up_proj").get_parameter("weight")
    with torch.no_grad():
        weight.zero_()
        weight[0, :8] = torch.tensor([7.0, 2.4, -2.6, 0.4, 14.0, -5.1, 2.9, 1.1])
    rounded = round_weights(copied, bits=4, group=4)
    found = rounded.module.get_submodule("model.layers.0.mlp.up_proj").get_parameter("weight")
    # of the first four, 7 is the seventh level; of the others 14 is, so that a level is 2
    expected = [7.0, 2.0, -3.0, 0.0, 14.0, -6.0, 2.0, 2.0]
    assert found[0, :8].tolist() == expected
    assert not found[1:].any()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_moves_a_weight_by_half_a_level_at_most(bits):
    with tiny.untouched(subject().module):
        rounded = round_weights(subject(), bits)
    again = round_weights(rounded, bits)
    before = dict(subject().module.named_parameters())
    twice = dict(again.module.named_parameters())
    for name, found in rounded.module.named_parameters():
        original = before[name]
        if original.ndim != 2 or "embed_tokens" in name:
            assert torch.equal(found, original), name
            continue
        groups = original.detach().reshape(-1, 32)
        level = groups.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        distance = (found.detach().reshape(-1, 32) - groups).abs()
        assert (distance <= level * 0.5001).all(), name
        assert not torch.equal(found, original)
        torch.testing.assert_close(twice[name], found)


def test_more_bits_are_nearer():
    batch = secrets()
    exact = subject().logits(batch)
    distances = []
    for bits in (3, 4, 8, 16):
        distance = (round_weights(subject(), bits).logits(batch) - exact).abs().max().item()
        distances.append(distance)
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3


@pytest.mark.parametrize(("bits", "group"), [(1, 32), (17, 32), (4, 0)])
def test_rounding_that_makes_no_sense_is_refused(bits, group):
    with pytest.raises(ValueError, match=f"bits={bits} and group={group}: expected 2 to 16"):
        round_weights(subject(), bits, group)


def test_a_head_that_is_the_embedding_is_not_rounded():
    model = tiny.wrapped(tiny.model("gpt2"))
    rounded = round_weights(model, 2)
    found = dict(rounded.module.named_parameters())
    for name, original in model.module.named_parameters():
        is_rounded = not torch.equal(found[name], original)
        assert is_rounded == (original.ndim == 2 and "wte" not in name and "wpe" not in name), name


def test_a_duplicate_is_the_same_model_in_other_memory():
    frozen = duplicate(subject())
    frozen.module.requires_grad_(False)
    twin = duplicate(frozen)
    assert twin.fingerprint == subject().fingerprint
    assert all(parameter.requires_grad for parameter in twin.module.parameters())
    assert not any(parameter.requires_grad for parameter in frozen.module.parameters())
    assert twin.generate(TEXTS[0], 4) == subject().generate(TEXTS[0], 4)
    shared = {parameter.data_ptr() for parameter in subject().module.parameters()}
    assert not any(parameter.data_ptr() in shared for parameter in twin.module.parameters())


def test_offloaded_weights_are_refused_by_name():
    broken = duplicate(subject())
    broken.module.get_submodule("lm_head").to("meta")
    with pytest.raises(ValueError, match=r"lm_head\.weight is offloaded.*relearning=None, bits="):
        duplicate(broken)


def test_shuffled_secrets_are_the_same_tokens_elsewhere():
    padded = interp.Batch.pad([[1, 2, 3, 4, 5], [6, 7, 8]])
    scored = torch.tensor([[False, False, True, True, True], [False, False, True, True, True]])
    batch = replace(padded, scored=scored)
    shuffled = shuffle_secrets(batch, seed=1)
    assert shuffled.tokens[:, :2].tolist() == [[1, 2], [6, 7]]
    assert shuffled.tokens[1, 3:].tolist() == [0, 0]
    counted = [*shuffled.tokens[0, 2:].tolist(), int(shuffled.tokens[1, 2])]
    assert sorted(counted) == [3, 4, 5, 8]
    assert torch.equal(shuffled.counted, batch.counted)
    assert batch.tokens[0].tolist() == [1, 2, 3, 4, 5]
    different = {tuple(shuffle_secrets(batch, seed).tokens.flatten().tolist()) for seed in range(9)}
    assert len(different) > 3


def test_halves_share_no_row():
    assert halves(1) == ([0], [])
    assert halves(4) == ([0, 2], [1, 3])
    assert rows_of(secrets(), [3, 1]).tokens.tolist() == secrets().tokens[[3, 1]].tolist()


def test_files_that_share_a_secret_with_those_trained_on_are_left_out():
    batch = secrets().rows(torch.tensor([0, 1, 2, 3, 1, 2]))
    tokens = batch.tokens.clone()
    tokens[5, :8] = tokens[0, :8]  # the same secret as in file 2, in other surroundings
    assert halves_without_common_secrets(replace(batch, tokens=tokens)) == ([0, 2, 4], [3])
    assert batch.scored is not None
    short = batch.scored & (torch.arange(batch.length) < 11)  # three tokens occur by chance
    assert halves_without_common_secrets(replace(batch, scored=short)) == halves(6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_are_not_rounded_away_in_half_precision(dtype):
    half = duplicate(subject())
    half.module.to(dtype)
    with tiny.untouched(half.module):
        found = relearn(half, secrets(), weights, Relearning((0, 1), lr=1e-7))
    precise = duplicate(half)
    precise.module.float()
    expected = relearn(precise, secrets(), weights, Relearning((0, 1), lr=1e-7))
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[1], expected[1])
    assert next(half.module.parameters()).dtype == dtype


def weights(learner: interp.Subject) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in learner.module.parameters()])


def test_stacks_of_matrices_are_rounded_and_what_only_looks_like_one_is_not():
    model = duplicate(subject())
    module = model.module
    module.experts = torch.nn.Parameter(torch.randn(2, 4, 32))
    module.positions = torch.nn.Parameter(torch.randn(1, 4, 32))
    found = dict(round_weights(model, 2).module.named_parameters())
    assert len(found["experts"][1, 2].unique()) <= 3
    assert torch.equal(found["positions"], module.positions)


def test_a_model_with_nothing_to_round_is_refused():
    model = duplicate(subject())
    for module in list(model.module.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.ndim == 2:
                setattr(module, name, torch.nn.Parameter(weight.detach()[0]))
    with pytest.raises(ValueError, match=r"has no weight matrices to round: .* leave rounding out"):
        round_weights(model, 4)
