"""What is unlearned and what is kept: `Sets`, and what must not be the case of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from jaxtyping import Bool, Float
from torch import Tensor

from interp.memorization.recitation import passages
from interp.subject.batch import Batch
from interp.subject.subject import Subject, token_losses

# A shorter run of tokens stands in other texts by chance.
SHORTEST_SECRET = 4


@dataclass(frozen=True, eq=False)
class Sets:
    """The sequences of an unlearning.

    Attributes:
        forget: what is to be forgotten; where its `scored` is given, the tokens of its secrets.
        retain: what is to be kept; None for a method that needs none.
    """

    forget: Batch
    retain: Batch | None = None

    @property
    def kept(self) -> Batch:
        """The retained set, which a method that needs one was given."""
        assert self.retain is not None
        return self.retain


def real(batch: Batch) -> Bool[Tensor, "batch predicted"]:
    """Returns which targets are no padding, whether they are scored or not.

    Args:
        batch: the batch.

    Example:
        >>> from interp.mitigation.unlearning.sets import real
        >>> real(interp.Batch.pad([[5, 6, 7], [8, 9]]))
        tensor([[ True,  True],
                [ True, False]])
    """
    return replace(batch, scored=None).counted


def losses_and_logits(
    subject: Subject, batch: Batch
) -> tuple[Float[Tensor, "batch predicted"], Float[Tensor, "batch predicted vocabulary"]]:
    """Returns the loss of every target that is no padding, in nats, and the logits, in one forward.

    Args:
        subject: the model.
        batch: the sequences.
    """
    logits = subject.run(batch, keep=batch.length - batch.prompt)
    return token_losses(logits, replace(batch, scored=None)), logits


def losses_of(subject: Subject, batch: Batch) -> Float[Tensor, "batch predicted"]:
    """Returns the loss of every target that is no padding, in nats; 0 on padding.

    Args:
        subject: the model.
        batch: the sequences.

    Example:
        >>> from interp.mitigation.unlearning.sets import losses_of
        >>> torch.equal(losses_of(subject, batch), subject.losses(batch))
        True
    """
    losses, _ = losses_and_logits(subject, batch)
    return losses


def check_sets(subject: Subject, sets: Sets) -> None:
    """Checks that there is something to forget, and that it is not also to be kept.

    With a tokenizer, secrets are compared as texts, without the quotes and spaces around them: the
    same secret has other tokens in another place. Runs of fewer than four tokens are not compared,
    because they occur by chance.

    Args:
        subject: the model; its tokenizer decodes.
        sets: the sequences.

    Raises:
        ValueError: a sequence without a token that counts, one that is in both sets, or a retained
            sequence that contains a secret.

    Example:
        >>> from interp.mitigation.unlearning.sets import Sets, check_sets
        >>> check_sets(subject, Sets(batch, batch))
        Traceback (most recent call last):
        ValueError: row 0 of retain is row 0 of forget: expected two sets without a common ...
    """
    try:
        # `passages` refuses a row in which no token counts, but does not know of which set.
        secrets = passages(sets.forget)
    except ValueError as error:
        raise ValueError(f"forget: {error}") from error
    retain = sets.retain
    if retain is None:
        return
    try:
        passages(retain)
    except ValueError as error:
        raise ValueError(f"retain: {error}") from error

    forgotten = sets.forget.sequences()
    kept = retain.sequences()
    for row, sequence in enumerate(kept):
        if sequence in forgotten:
            raise ValueError(
                f"row {row} of retain is row {forgotten.index(sequence)} of forget: expected two "
                "sets without a common sequence; leave it out of one of them"
            )

    shown = [_shown(subject, sequence) for sequence in kept]
    for secret in secrets:
        if secret.stop - secret.start < SHORTEST_SECRET:
            continue
        tokens = sets.forget.tokens[secret.row, secret.start : secret.stop].tolist()
        needle = _shown(subject, tokens)
        if subject.tokenizer is not None:
            needle = re.sub(r"^\W+|\W+$", "", needle)
        for row, sequence in enumerate(shown):
            # A secret of quotes or spaces alone leaves nothing to look for.
            if needle and needle in sequence:
                raise ValueError(
                    f"row {row} of retain contains the secret of row {secret.row} of forget "
                    f"(tokens {secret.start} to {secret.stop}): it would be trained to be kept; "
                    "leave that row out of retain"
                )


def _shown(subject: Subject, tokens: list[int]) -> str:
    """A sequence as a text in which others can be found: its own, or the numbers of its tokens."""
    if subject.tokenizer is not None:
        return subject.decode(tokens)
    # With a space at both ends, so that 12 is not found in 123.
    return f" {' '.join(map(str, tokens))} "
