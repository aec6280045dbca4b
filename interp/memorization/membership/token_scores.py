"""Membership scores of single tokens, from the logits of a target and of reference models.

A text of k tokens gives k - 1 examples, each a prefix with its next token, and the population that
an example is compared with is the vocabulary: what else could have come next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Mix = Literal["probabilities", "log_probabilities", "log_probabilities_normalized"]
Over = Literal["vocabulary", "other_tokens", "other_tokens_normalized"]

# Positions are taken in pieces of this many logits (4 MB in float32): large enough that Python
# costs nothing beside them, small enough that the passes over a piece find it in the cache.
_LOGITS_AT_ONCE = 2**20
# Stands for the log of a probability of 0: finite, so that 0 times it is 0 and not NaN, and far
# below the log of any probability.
_LOG_ZERO = -1e30
_IMPOSSIBLE = _LOG_ZERO / 2  # the log of a probability is below this only if the probability is 0
# A standard deviation (nats) below this is rounding: all tokens have the same log-probability.
_NO_SPREAD = 1e-6


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What is measured of each target of a batch; every tensor is [batch, predicted].

    Attributes:
        log_p: log-probability of the true token under the target model, in nats.
        standardized: how many standard deviations that is above the mean log-probability of a token
            drawn from the target's own prediction; 0 where that has no spread (Min-K%++).
        log_p_reference: log-probability under the reference models; None without them.
        kl: KL(reference || target) of the whole prediction, in nats; None without reference models.
        informia: the score of token-level InfoRMIA, in nats; None without reference models.
    """

    log_p: Float[Tensor, "batch predicted"]
    standardized: Float[Tensor, "batch predicted"]
    log_p_reference: Float[Tensor, "batch predicted"] | None = None
    kl: Float[Tensor, "batch predicted"] | None = None
    informia: Float[Tensor, "batch predicted"] | None = None


def token_scores(
    logits: Float[Tensor, "batch predicted vocabulary"],
    targets: Int[Tensor, "batch predicted"],
    reference_logits: Sequence[Float[Tensor, "batch predicted vocabulary"]] = (),
    *,
    counted: Bool[Tensor, "batch predicted"] | None = None,
    mix: Mix = "probabilities",
    over: Over = "vocabulary",
) -> TokenScores:
    """Returns the membership scores of every token.

    Token-level InfoRMIA is s = log(p(x) / p_ref(x)) + KL(p_ref || p), with the KL over the
    vocabulary. It is positive for a token that the target favours more than models in general do.
    For tokens drawn from the reference its mean is 0; for tokens drawn from the target it is the
    Jeffreys divergence of the two.

    Where predictions have different widths (padded vocabularies), all are cut to the narrowest and
    normalized again.

    Source: Tao & Shokri 2025 (arXiv 2510.05582) for InfoRMIA; Zhang et al. 2024 (arXiv 2404.02936)
    for the standardized log-probability of Min-K%++.

    Args:
        logits: of the target model, aligned with `targets`.
        targets: the true tokens.
        reference_logits: the same of each reference model.
        counted: which targets count; all by default. What the others get means nothing.
        mix: how several reference models become one: the mean of their probabilities, the mean of
            their log-probabilities (which does not sum to 1; the authors' code), or that
            normalized.
        over: which tokens the KL sums over: the vocabulary (the authors' code); all but the true
            token ("other_tokens"); or the same with weights that sum to 1
            ("other_tokens_normalized"), which gives s / (1 - p_ref(x)): a mean of
            log(p_ref(z) / p(z)) over the other tokens z. Only the weights are normalized, and not
            the probabilities in the logarithm.

    Raises:
        ValueError: a target beyond the narrowest vocabulary; a token of probability 0: the true
            one, or one that a reference model finds possible, for which the KL is infinite; logits
            that are NaN; or, for "other_tokens_normalized", a true token besides which the
            reference finds no token possible, so that there is nothing to take a mean over.

    Example:
        >>> from interp.memorization.membership.token_scores import token_scores
        >>> target = torch.tensor([[[0.6, 0.3, 0.1]]]).log()
        >>> reference = torch.tensor([[[0.2, 0.3, 0.5]]]).log()
        >>> token_scores(target, torch.tensor([[0]]), [reference]).informia
        tensor([[1.6836]])
    """
    width = min(part.shape[-1] for part in (logits, *reference_logits))
    _check_targets(targets, width)
    flat_targets = targets.reshape(-1)
    flat_logits = _by_position(logits, width)
    flat_references = [_by_position(part, width) for part in reference_logits]

    pieces: list[list[Tensor]] = []
    # In positions; each has `width` logits.
    at_once = max(_LOGITS_AT_ONCE // width, 1)
    for start in range(0, len(flat_targets), at_once):
        piece = slice(start, start + at_once)
        target = _log_softmax(flat_logits[piece])
        columns = _own_columns(target, flat_targets[piece])
        if flat_references:
            parts = [_log_softmax(part[piece]) for part in flat_references]
            reference = _mixed(parts, mix)
            columns += _reference_columns(target, reference, flat_targets[piece], over)
        pieces.append(columns)

    joined = [torch.cat(column).reshape(targets.shape) for column in zip(*pieces, strict=True)]
    # The columns come in the order of the fields.
    scores = TokenScores(*joined)
    _check_finite(scores, counted)
    return scores


def _by_position(logits: Tensor, width: int) -> Tensor:
    """[positions, width] of [batch, predicted, vocabulary], without a copy where possible."""
    return logits[..., :width].flatten(0, 1)


def _log_softmax(logits: Tensor) -> Tensor:
    precise = torch.promote_types(logits.dtype, torch.float32)
    return logits.log_softmax(-1, dtype=precise).clamp_(min=_LOG_ZERO)


def _own_columns(log_p: Tensor, targets: Tensor) -> list[Tensor]:
    """log_p and standardized."""
    p = log_p.exp()
    mean = torch.linalg.vecdot(p, log_p)
    # Not the mean square minus the squared mean: where a prediction is nearly uniform they are
    # nearly equal, and their difference is rounding.
    centred = log_p - mean[:, None]
    spread = torch.linalg.vecdot(p * centred, centred).sqrt_()
    of_true = log_p.gather(-1, targets[:, None])[:, 0]
    has_spread = spread > _NO_SPREAD
    standardized = (of_true - mean) / spread.where(has_spread, 1.0)
    return [of_true, standardized.where(has_spread, 0.0)]


def _mixed(parts: Sequence[Tensor], mix: Mix) -> Tensor:
    """The log of one reference prediction, made of those of several models."""
    if len(parts) == 1:
        return parts[0]
    stacked = torch.stack(list(parts))
    if mix == "probabilities":
        return stacked.logsumexp(0) - torch.tensor(float(len(parts))).log()
    mean = stacked.mean(0)
    if mix == "log_probabilities_normalized":
        mean = mean.log_softmax(-1)
    # What one model forbids has probability 0 in a geometric mean. The mean of the stand-in and of
    # other numbers is a fraction of it, which would pass for the log of a probability; and the
    # softmax would divide 1 among tokens that are all forbidden.
    is_forbidden = (stacked <= _IMPOSSIBLE).any(0)
    return mean.masked_fill(is_forbidden, _LOG_ZERO)


def _reference_columns(
    target: Tensor, reference: Tensor, targets: Tensor, over: Over
) -> list[Tensor]:
    """log_p_reference, kl and informia."""
    p_reference = reference.exp()
    kl = torch.linalg.vecdot(p_reference, reference - target)
    if bool(target.amin() <= _IMPOSSIBLE):
        # The stand-in for the log of 0 is finite: where the target rules out what the reference
        # allows, the infinite KL is put in by hand.
        is_lost = (target <= _IMPOSSIBLE) & (reference > _IMPOSSIBLE)
        kl = kl.masked_fill(is_lost.any(-1), torch.inf)
    of_true = reference.gather(-1, targets[:, None])[:, 0]
    log_ratio = target.gather(-1, targets[:, None])[:, 0] - of_true
    score = log_ratio + kl
    if over == "other_tokens":
        # The true token's own term of the KL is -p_ref(x) * log_ratio.
        score = score + of_true.exp() * log_ratio
    elif over == "other_tokens_normalized":
        # The same number as score / (1 - p_ref(x)), in which both are rounding where p_ref(x) is
        # close to 1. A softmax over the other tokens knows their weights however small they are.
        others = reference.scatter(-1, targets[:, None], -torch.inf)
        mean_of_others = torch.linalg.vecdot(others.softmax(-1), reference - target)
        has_others = others.amax(-1) > _IMPOSSIBLE
        score = (log_ratio + mean_of_others).where(has_others, torch.nan)
    return [of_true, kl, score]


def _check_targets(targets: Tensor, width: int) -> None:
    largest = int(targets.max())
    if largest >= width:
        raise ValueError(
            f"token {largest} is beyond the {width} tokens that all models predict: "
            "do they have the same tokenizer?"
        )


def _check_finite(scores: TokenScores, counted: Tensor | None) -> None:
    """Raises ValueError where a probability of 0 or a logit that is NaN leaves no score."""
    # Not `<=`, which would let NaN pass.
    is_defined = scores.log_p > _IMPOSSIBLE
    if scores.log_p_reference is not None and scores.kl is not None:
        is_defined &= (scores.log_p_reference > _IMPOSSIBLE) & scores.kl.isfinite()
    refused = _first_counted(~is_defined, counted)
    if refused is not None:
        raise ValueError(
            f"{refused}: a model gives probability 0 to the true token, or to one that a reference "
            "model finds possible, so that the score is infinite; a model that forbids tokens "
            "(logits of -infinity) cannot be compared with one that does not; nor can logits that "
            "are NaN"
        )
    if scores.informia is None:
        return
    refused = _first_counted(~scores.informia.isfinite(), counted)
    if refused is not None:
        raise ValueError(
            f"{refused}: the reference finds no token possible but the true one, so that there are "
            "no other tokens to take a mean over; pass over='vocabulary' or over='other_tokens'"
        )


def _first_counted(refused: Tensor, counted: Tensor | None) -> str | None:
    """The first refused target among those that count, in words; None if there is none."""
    if counted is not None:
        refused = refused & counted.to(refused.device)
    if not bool(refused.any()):
        return None
    row, position = refused.nonzero()[0].tolist()
    return f"target {position} of row {row}"
