"""What a policy reads and writes on the tabletop: instructions, scenes and hands as tensors, and
actions as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from interp.data.tabletop.scenes import HELD_OUT_PHRASING, ITEMS, MOST_ITEMS, PHRASINGS
from interp.data.tabletop.simulator import ACTION_WIDTH, Observation
from interp.models.policy.policy import BINS, ITEM_FEATURES, PAD, STATE_FEATURES, UNKNOWN

WORDS = 12  # the most an instruction has

# Positions are read relative to this, in these units, in metres: then they are within about 1.
_CENTRE = np.array([-0.03, 0.0, 0.12])
_SCALE = np.array([0.25, 0.25, 0.12])
_COLOUR_SCALE = 4.0  # colours have to tell items apart as clearly as positions

# No name of an item is in the phrasings, and those of unseen items are not known either.
VOCABULARY: Mapping[str, int] = {
    word: number
    for number, word in enumerate(
        sorted(
            {
                word
                for text in (*PHRASINGS, HELD_OUT_PHRASING, *ITEMS)
                for word in text.replace("{}", "").split()
            }
        ),
        start=2,
    )
}


def word_ids(instruction: str) -> list[int]:
    """Returns the words of an instruction as ids, padded to `WORDS`; unknown ones are all the same.

    Raises:
        ValueError: an instruction with too many words.

    Example:
        >>> from interp.data.tabletop.observations import word_ids
        >>> ids = word_ids("put the xxx")
        >>> len(ids), ids[2:4]
        (12, [1, 0])
    """
    words = instruction.lower().split()
    if len(words) > WORDS:
        raise ValueError(f"an instruction of {len(words)} words: the policy reads at most {WORDS}")
    ids = [VOCABULARY.get(word, UNKNOWN) for word in words]
    return ids + [PAD] * (WORDS - len(ids))


def conditioning_of(
    observations: Sequence[Observation], instructions: Sequence[str]
) -> dict[str, Tensor]:
    """Returns what a policy is conditioned on, one row per observation.

    Args:
        observations: what is seen.
        instructions: what is asked for at each.

    Returns:
        `words` [batch, 12] ids; `items` [batch, 6, 8]: position, colour, whether it is a box, and 1
        where there is an item; `state` [batch, 5]: position of the hand, whether it holds
        something, and whether it sucks.

    Raises:
        ValueError: not one instruction for each observation, or one that is too long.
    """
    if len(observations) != len(instructions):
        raise ValueError(
            f"{len(instructions)} instructions for {len(observations)} observations: expected one "
            "for each"
        )
    words = torch.tensor([word_ids(instruction) for instruction in instructions])
    items = torch.zeros(len(observations), MOST_ITEMS, ITEM_FEATURES)
    state = torch.zeros(len(observations), STATE_FEATURES)
    for row, seen in enumerate(observations):
        count = len(seen.looks)
        colours = np.array([look.colour for look in seen.looks])
        is_box = np.array([[look.shape == "box"] for look in seen.looks], dtype=float)
        there = np.ones((count, 1))
        # [items, 8], in the order in which the policy reads them.
        features = np.concatenate(
            [_scaled(seen.positions), _COLOUR_SCALE * (colours - 0.5), is_box, there], 1
        )
        items[row, :count] = torch.from_numpy(features).float()
        state[row, :3] = torch.from_numpy(_scaled(seen.hand)).float()
        state[row, 3:] = torch.tensor([float(seen.holding), float(seen.suction)])
    return {"words": words, "items": items, "state": state}


def _scaled(positions: Float[np.ndarray, "*any 3"]) -> Float[np.ndarray, "*any 3"]:
    return (positions - _CENTRE) / _SCALE


def scaled_height(metres: float) -> float:
    """Returns a height as it stands in `state` and `items`."""
    return float((metres - _CENTRE[2]) / _SCALE[2])


def action_tokens(actions: ArrayLike) -> Int[Tensor, "batch 4"]:
    """Returns actions as tokens: the bins of x, y and z, and the last or first bin for suction.

    Args:
        actions: [batch, 7] in [-1, 1].

    Example:
        >>> from interp.data.tabletop.observations import action_tokens
        >>> action_tokens([[1, 0, -1, 0, 0, 0, 1]])
        tensor([[20, 10,  0, 20]])
    """
    given = np.asarray(actions, dtype=float)
    bins = np.rint((given[:, :3] + 1) / 2 * (BINS - 1))
    suction = np.where(given[:, 6:] > 0, BINS - 1, 0)
    return torch.from_numpy(np.concatenate([bins, suction], 1)).long()


def tokens_to_actions(tokens: Int[Tensor, "batch 4"]) -> Float[np.ndarray, "batch 7"]:
    """Returns the actions in the middle of the bins of tokens.

    Example:
        >>> from interp.data.tabletop.observations import action_tokens, tokens_to_actions
        >>> bool((action_tokens(tokens_to_actions(torch.arange(4)[None])) == torch.tensor(
        ...     [[0, 1, 2, 0]])).all())
        True
    """
    values = tokens.double().numpy() / (BINS - 1) * 2 - 1
    actions = np.zeros((len(values), ACTION_WIDTH))
    actions[:, :3] = values[:, :3]
    actions[:, 6] = np.where(values[:, 3] > 0, 1, -1)
    return actions
