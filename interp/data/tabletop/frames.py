"""Demonstrations as training batches of a policy, and the loss that it is trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.data.tabletop.expert import Demonstration
from interp.data.tabletop.observations import action_tokens, conditioning_of, scaled_height
from interp.files import replaced
from interp.subject.batch import Batch
from interp.subject.subject import Subject, token_losses

_HIGH = 0.10  # metres: a hand above that which holds nothing is on its way to an item
_WEIGHT = 4.0  # of x and y there: which item it goes to is decided by few tokens


def demonstration_batch(demonstrations: Sequence[Demonstration], chunk: int = 1) -> Batch:
    """Returns every frame as one row: the tokens of its action and of those after it, and what was
    seen and asked for as conditioning.

    Args:
        demonstrations: the episodes.
        chunk: number of actions in a row; frames with fewer actions left are no rows.

    Raises:
        ValueError: no demonstration has so many frames.

    Example:
        >>> from interp.data.tabletop.expert import demonstrations
        >>> from interp.data.tabletop.frames import demonstration_batch
        >>> shown = demonstrations("tabletop_goal", 2, seed=0)
        >>> frames = demonstration_batch(shown)
        >>> len(frames) == sum(len(each.actions) for each in shown), frames.length
        (True, 4)
    """
    tokens: list[Tensor] = []
    rows: list[dict[str, Tensor]] = []
    for each in demonstrations:
        starts = len(each.actions) - chunk + 1
        if starts < 1:
            continue
        own = action_tokens(each.actions)
        # Row i holds the actions i to i + chunk - 1, one behind the other.
        tokens.append(torch.cat([own[start : starts + start] for start in range(chunk)], 1))
        instructions = [each.scene.instruction] * starts
        rows.append(conditioning_of(each.observations[:starts], instructions))
    if not rows:
        raise ValueError(
            f"none of {len(demonstrations)} demonstrations has {chunk} frames: expected a smaller "
            "chunk or more demonstrations"
        )
    names = rows[0]
    conditioning = {name: torch.cat([row[name] for row in rows]) for name in names}
    return Batch(torch.cat(tokens), 0, conditioning=conditioning)


_TOKENS = "tokens"


def save_frames(frames: Batch, file: str | Path) -> Path:
    """Writes frames to a safetensors file, from which `load_frames` and `interp scan` read them.

    Args:
        frames: what `demonstration_batch` returned.
        file: the file.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written.

    Example:
        >>> import tempfile, pathlib
        >>> from interp.data.tabletop.expert import demonstrations
        >>> from interp.data.tabletop.frames import demonstration_batch, load_frames, save_frames
        >>> frames = demonstration_batch(demonstrations("tabletop_goal", 1, seed=0))
        >>> file = save_frames(frames, pathlib.Path(tempfile.mkdtemp()) / "frames.safetensors")
        >>> torch.equal(load_frames(file).tokens, frames.tokens)
        True
    """
    from safetensors.torch import save_file

    tensors = {_TOKENS: frames.tokens, **frames.conditioning}
    with replaced(file) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
    return Path(file)


def load_frames(file: str | Path) -> Batch:
    """Reads frames that `save_frames` wrote.

    Raises:
        ValueError: a file that is none of these.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{file} holds no demonstrations: expected a file that save_frames wrote ({error})"
        ) from error
    if _TOKENS not in tensors:
        raise ValueError(
            f"{file} holds {', '.join(sorted(tensors))}: expected the tokens of demonstrations, as "
            "save_frames writes them"
        )
    tokens = tensors.pop(_TOKENS)
    return Batch(tokens, 0, conditioning=tensors)


def is_approach(batch: Batch) -> Bool[Tensor, " batch"]:
    """Returns in which rows the hand is on its way to an item: high, and holding nothing."""
    state = batch.conditioning["state"]
    # Column 2 is the height of the hand, column 3 whether it holds something.
    return (state[:, 3] == 0) & (state[:, 2] > scaled_height(_HIGH))


def training_batches(frames: Batch, steps: int, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yields batches of random frames, half of which are on the way to an item: there it shows
    which one the policy goes to, but there are few of them.

    Args:
        frames: what `demonstration_batch` returned.
        steps: number of batches.
        batch_size: rows of each.
        seed: seed of the draws.
    """
    rng = np.random.default_rng(seed)
    approach = is_approach(frames).nonzero()[:, 0].numpy()
    for _ in range(steps):
        some = rng.integers(len(frames), size=batch_size - batch_size // 2)
        early = approach[rng.integers(len(approach), size=batch_size // 2)]
        yield frames.rows(np.concatenate([some, early]))


def weighted_loss(subject: Subject, batch: Batch, step: int) -> Float[Tensor, ""]:  # noqa: ARG001
    """An objective for `fit`: the mean cross-entropy of the tokens in nats, where x and y of the
    first action count four times on the way to an item."""
    losses = token_losses(subject.run(batch, batch.length), batch)
    weights = torch.ones_like(losses)
    weights[is_approach(batch).to(losses.device), :2] = _WEIGHT
    return (weights * losses).sum() / weights.sum()
