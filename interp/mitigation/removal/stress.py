"""What a removal has to withstand: relearning, and rounding of the weights.

A model that only hides what it knew relearns it in fewer steps than it takes to learn something
new, and may show it again when its weights are rounded. Both tests work on copies.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from interp.hooks.modes import dropout_off
from interp.interventions.plan import Plan
from interp.memorization.recitation import passages
from interp.mitigation.unlearning.sets import SHORTEST_SECRET
from interp.subject.batch import Batch
from interp.subject.offloading import refuse_not_whole
from interp.subject.subject import Subject, evaluating, token_losses
from interp.training.fit import Step, fit

Found = TypeVar("Found")

_GROUP = 32  # weights that are rounded on one scale


@dataclass(frozen=True)
class Relearning:
    """How a copy of the model is fine-tuned to bring back what was removed.

    It is trained on every second file, all of them in each step, by AdamW without dropout and in
    single precision at least. What it then recites of other files, without any of the same secrets,
    was not relearned: it was still there.

    Attributes:
        steps: after how many optimizer steps to measure; 0 is before the first, and shows nothing
            alone.
        lr: learning rate, above 0: without one nothing would come back, whatever is left.
        clip: largest norm of the gradient, above 0.

    Raises:
        ValueError: no number of steps above 0, or one below 0; a learning rate or a norm out of
            range.

    Example:
        >>> from interp.mitigation.removal.stress import Relearning
        >>> Relearning(steps=(0, 5)).last
        5
    """

    steps: tuple[int, ...] = (0, 10, 50)
    lr: float = 1e-4
    clip: float = 1.0

    def __post_init__(self) -> None:
        # Before the first step nothing can have come back: such a test would never fail.
        if not self.steps or min(self.steps) < 0 or max(self.steps) == 0:
            raise ValueError(
                f"steps={self.steps}: expected numbers of optimizer steps, none below 0 and at "
                "least one above it, such as (0, 10, 50)"
            )
        if not (0 < self.lr < math.inf and self.clip > 0):
            raise ValueError(
                f"lr={self.lr} and clip={self.clip}: expected a learning rate above 0, such as "
                "1e-4, and a largest norm of the gradient above 0, such as 1.0"
            )

    @property
    def last(self) -> int:
        """The number of steps of the whole training."""
        return max(self.steps)


def relearn(
    subject: Subject,
    batch: Batch,
    measure: Callable[[Subject], Found],
    recipe: Relearning,
    plan: Plan = (),
) -> dict[int, Found]:
    """Fine-tunes a copy of a model on some sequences, and measures it on the way.

    Args:
        subject: the model, which stays as it is.
        batch: what the copy is trained on; the loss is the mean over the tokens that count.
        measure: what to measure of the copy, without dropout and gradients.
        recipe: how it is trained, and after which steps it is measured.
        plan: interventions that stay on while it is trained and measured.

    Returns:
        What was measured, by the number of steps before.

    Raises:
        ValueError: weights are offloaded, or the loss is not finite.

    Example:
        >>> from interp.mitigation.removal.stress import Relearning, relearn
        >>> def loss(learner):
        ...     return learner.losses(batch).mean().item()
        >>> losses = relearn(untrained, batch, loss, Relearning((0, 5), lr=1e-2))
        >>> losses[5] < losses[0], losses[0] == loss(untrained)
        (True, True)
    """
    learner = duplicate(subject)
    # Half-precision weights are too coarse for small steps, which would be rounded away: nothing
    # would come back, whatever is still there.
    parameters = learner.module.parameters()
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in parameters):
        learner.module.float()
    found: dict[int, Found] = {}

    def measure_after(steps: int) -> None:
        if steps in recipe.steps:
            with evaluating(learner):
                found[steps] = measure(learner)

    def objective(trained: Subject, part: Batch, _: int) -> Tensor:
        # Without dropout: it would draw from the global generator, and two runs would differ.
        with dropout_off(trained.module):
            logits = trained.run(part, keep=part.length - part.prompt)
        counted = part.counted.sum()
        return token_losses(logits, part).sum() / counted.to(logits.device)

    def callback(step: Step) -> None:
        # Steps are numbered from 0; `recipe.steps` counts those that are done.
        measure_after(step.number + 1)

    with learner.intervened(plan):
        measure_after(0)
        fit(
            learner,
            [batch] * recipe.last,
            recipe.last,
            recipe.lr,
            clip=recipe.clip,
            objective=objective,
            callback=callback,
        )
    return found


def round_weights(subject: Subject, bits: int, group: int = _GROUP) -> Subject:
    """Returns a copy of a model whose weight matrices are rounded to a number of bits.

    Each group of neighbouring weights is rounded to the nearest of 2^bits - 1 levels, which are
    evenly spaced and reach to its largest absolute value. So are stacks of matrices, as of experts.
    Embeddings, with a head that shares their weights, biases and norms stay as they are, as they do
    in common quantized models.

    Args:
        subject: the model, which stays as it is.
        bits: number of bits per weight, 2 to 16.
        group: number of weights that share a scale.

    Raises:
        ValueError: another number of bits, a group without weights, weights that are offloaded, or
            no weights that are rounded.

    Example:
        >>> from interp.mitigation.removal.stress import round_weights
        >>> rounded = round_weights(subject, bits=4)
        >>> weight = rounded.module.model.layers[0].mlp.down_proj.weight
        >>> len(weight.flatten()[:32].unique()) <= 15
        True
    """
    if not 2 <= bits <= 16 or group < 1:
        raise ValueError(
            f"bits={bits} and group={group}: expected 2 to 16 bits, and groups of at least 1 weight"
        )
    rounded = duplicate(subject)
    # Tensors are hashed by identity: a head that shares the embedding's weight is found in here.
    embeddings: set[Tensor] = set()
    for module in rounded.module.modules():
        if isinstance(module, nn.Embedding):
            embeddings.add(module.weight)
    weights = [
        parameter
        for parameter in rounded.module.parameters()
        if _is_matrix(parameter) and parameter not in embeddings
    ]
    if not weights:
        raise ValueError(
            f"{subject.name} has no weight matrices to round: expected at least one apart from "
            "embeddings; leave rounding out (bits=())"
        )
    with torch.no_grad():
        for parameter in weights:
            parameter.copy_(_nearest_level(parameter, bits, group))
    return rounded


def _is_matrix(weight: Tensor) -> bool:
    """Whether a weight is a matrix, or a stack of matrices."""
    # With a length of 1 it is no stack: position embeddings, and convolutions of each channel.
    is_stack = weight.ndim == 3 and min(weight.shape) > 1
    return weight.is_floating_point() and (weight.ndim == 2 or is_stack)


def duplicate(subject: Subject) -> Subject:
    """Returns a model with the same weights in memory of its own, all of them trainable.

    Args:
        subject: the model.

    Raises:
        ValueError: weights are offloaded.

    Example:
        >>> from interp.mitigation.removal.stress import duplicate
        >>> twin = duplicate(subject)
        >>> torch.equal(twin.logits(batch), subject.logits(batch)), twin.module is subject.module
        (True, False)
    """
    refuse_not_whole(
        subject.module,
        "it cannot be copied to be trained or rounded; load the model whole on one device, or "
        "leave out relearning and rounding (relearning=None, bits=())",
    )
    module = copy.deepcopy(subject.module)
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return subject.with_module(module)


def shuffle_secrets(batch: Batch, seed: int = 0) -> Batch:
    """Returns the same sequences with the tokens that count shuffled among all of them.

    Nobody has seen these secrets: what it takes to learn them is what relearning is compared with
    where there are no twins.

    Args:
        batch: the sequences.
        seed: seed of the shuffle.

    Example:
        >>> from interp.mitigation.removal.stress import shuffle_secrets
        >>> shuffled = shuffle_secrets(batch)
        >>> bool((shuffled.targets != batch.targets).any())
        True
        >>> torch.equal(shuffled.targets.flatten().sort()[0], batch.targets.flatten().sort()[0])
        True
    """
    counted = torch.zeros_like(batch.tokens, dtype=torch.bool)
    # `batch.counted` begins behind the prompt; here it is widened to all positions.
    counted[:, batch.prompt :] = batch.counted
    tokens = batch.tokens.clone()
    secret = tokens[counted]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(secret), generator=generator)
    tokens[counted] = secret[order.to(secret.device)]
    return replace(batch, tokens=tokens)


def halves(count: int) -> tuple[list[int], list[int]]:
    """Returns which files are trained on in relearning, every second one, and which are not.

    Args:
        count: number of files.

    Example:
        >>> from interp.mitigation.removal.stress import halves
        >>> halves(5)
        ([0, 2, 4], [1, 3])
    """
    return list(range(0, count, 2)), list(range(1, count, 2))


def halves_without_common_secrets(batch: Batch) -> tuple[list[int], list[int]]:
    """Returns the rows that are trained on in relearning, and those that can be compared with them.

    The second half lacks every file with a secret, or other run of tokens that count, that is also
    in the first: what is recited of it may have been relearned from there. Runs of fewer than four
    tokens are not compared, because they occur by chance.

    Args:
        batch: the files.

    Example:
        >>> from interp.mitigation.removal.stress import halves_without_common_secrets
        >>> twice = batch.rows(torch.tensor([0, 1, 2, 0]))
        >>> halves_without_common_secrets(twice)
        ([0, 2], [1])
    """
    secrets: dict[int, set[tuple[int, ...]]] = {row: set() for row in range(len(batch))}
    for passage in passages(batch):
        if passage.stop - passage.start < SHORTEST_SECRET:
            continue
        tokens = batch.tokens[passage.row, passage.start : passage.stop]
        secrets[passage.row].add(tuple(tokens.tolist()))
    trained, others = halves(len(batch))
    known: set[tuple[int, ...]] = set()
    for row in trained:
        known |= secrets[row]
    return trained, [row for row in others if not secrets[row] & known]


def _nearest_level(weight: Tensor, bits: int, group: int) -> Tensor:
    # In the order of storage: a group may reach over the end of a row.
    flat = weight.detach().flatten().float()
    # Zeros fill the last group, and do not change its largest absolute value.
    padding = -len(flat) % group
    groups = nn.functional.pad(flat, (0, padding)).view(-1, group)
    levels_on_a_side = 2 ** (bits - 1) - 1
    scale = groups.abs().amax(1, keepdim=True) / levels_on_a_side
    # A group of zeros has no scale, and stays as it is.
    scale = scale.masked_fill(scale == 0, 1)
    nearest = (groups / scale).round() * scale
    return nearest.flatten()[: len(flat)].view_as(weight).to(weight.dtype)


def rows_of(batch: Batch, chosen: Iterable[int]) -> Batch:
    """Returns some rows of a batch by their numbers.

    Args:
        batch: the batch.
        chosen: numbers of rows.

    Example:
        >>> from interp.mitigation.removal.stress import rows_of
        >>> len(rows_of(batch, [0, 2]))
        2
    """
    return batch.rows(torch.tensor(list(chosen), dtype=torch.long))
