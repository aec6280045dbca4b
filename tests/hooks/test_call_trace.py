"""Laws of the trace: which operations count as attention, and heads that are off at one of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from interp.errors import HookError
from interp.hooks.call_trace import attention_zeroed, watch_calls

ROWS, HEADS, LENGTH, WIDTH = 2, 3, 5, 4


class Weighted(nn.Module):
    """Softmax over scores that are given, the later positions masked."""

    def forward(self, scores: Tensor) -> Tensor:
        queries = scores.shape[-2]
        later = torch.ones(queries, queries, dtype=torch.bool).triu(1)
        masked = scores.clone()
        masked[..., :queries].masked_fill_(later, -torch.inf)
        return masked.softmax(-1)


class Fused(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)


def scores(keys: int) -> Tensor:
    return torch.randn(ROWS, HEADS, LENGTH, keys, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("keys", [LENGTH, LENGTH + 1, LENGTH + 4])
def test_weights_over_positions_are_attention_with_more_keys_behind_them_too(keys: int):
    part = Weighted()
    [operation] = watch_calls(part, lambda: part(scores(keys))).attentions
    assert (operation.maps, operation.queries, operation.number) == (ROWS * HEADS, LENGTH, 0)


@pytest.mark.parametrize("keys", [LENGTH + 4, LENGTH - 1])
def test_other_weights_are_not(keys: int):
    part = nn.Softmax(-1)
    assert watch_calls(part, lambda: part(scores(keys))).attentions == []


@pytest.mark.parametrize("part", [Weighted(), Fused()])
def test_heads_that_are_off_give_zeros_and_the_others_what_they_gave(part: nn.Module):
    x = scores(LENGTH if isinstance(part, Weighted) else WIDTH)
    before = part(x)
    off = torch.tensor([True, False, True])
    with attention_zeroed({0: off}, operations=1):
        now = part(x)
    assert not bool(now[:, off].any())
    assert torch.equal(now[:, ~off], before[:, ~off])
    assert torch.equal(part(x), before)


def test_a_forward_with_other_operations_is_an_error():
    off = {1: torch.tensor([True])}
    with pytest.raises(HookError, match="1 times, and 2"), attention_zeroed(off, operations=2):
        Fused()(scores(WIDTH))


def test_each_call_of_a_module_has_its_turn():
    part = nn.Linear(2, 2)
    calls = watch_calls(part, lambda: part(part(torch.ones(1, 2)))).calls
    assert [call.turn for call in calls] == [0, 1]
