"""The formulas that unlearning methods are made of, on tensors alone."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def masked_mean(
    values: Float[Tensor, "batch predicted"], where: Bool[Tensor, "batch predicted"]
) -> Float[Tensor, ""]:
    """Returns the mean of the values in some places; 0 if there are none.

    Args:
        values: one per target.
        where: which of them count.

    Example:
        >>> from interp.mitigation.unlearning.losses import masked_mean
        >>> masked_mean(torch.tensor([[1.0, 3.0, 100.0]]), torch.tensor([[True, True, False]]))
        tensor(2.)
    """
    counted = where.to(values.device)
    # Filled and not multiplied: an infinite value times 0 would be NaN.
    chosen = values.masked_fill(~counted, 0)
    return chosen.sum() / counted.sum().clamp(min=1)


def log_probabilities(
    logits: Float[Tensor, "*positions vocabulary"],
) -> Float[Tensor, "*positions vocabulary"]:
    """Returns the logarithm of the softmax, in single precision or, for double logits, double.

    Args:
        logits: of each position.

    Example:
        >>> from interp.mitigation.unlearning.losses import log_probabilities
        >>> log_probabilities(torch.zeros(2, dtype=torch.bfloat16))
        tensor([-0.6931, -0.6931])
    """
    precise = torch.promote_types(logits.dtype, torch.float32)
    return logits.log_softmax(-1, dtype=precise)


def divergence(
    original: Float[Tensor, "*positions vocabulary"],
    trained: Float[Tensor, "*positions vocabulary"],
) -> Float[Tensor, "*positions"]:
    """Returns KL(original || trained) of each position, in nats.

    Args:
        original: log-probabilities of the model before unlearning.
        trained: log-probabilities of the model that is trained.

    Example:
        >>> from interp.mitigation.unlearning.losses import divergence
        >>> divergence(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())
        tensor(0.1438)
    """
    terms = original.exp() * (original - trained)
    # A token that the original model forbids: 0 times an infinite difference.
    return terms.masked_fill(original.isneginf(), 0).sum(-1)


def preference(
    log_p: Float[Tensor, " batch"], original: Float[Tensor, " batch"], beta: float
) -> Float[Tensor, ""]:
    """Returns the loss of negative preference optimization (NPO).

    -(2 / beta) E[log sigmoid(-beta log(p / p_original))]; (2 / beta) log 2 for the original model.

    Source: Zhang et al. 2024 (arXiv 2404.05868), equation 3.

    Args:
        log_p: log-probability of each sequence under the trained model, summed over its tokens.
        original: the same before unlearning.
        beta: with 0 as its limit, the loss becomes gradient ascent.

    Example:
        >>> from interp.mitigation.unlearning.losses import preference
        >>> preference(torch.zeros(1), torch.zeros(1), beta=1.0)
        tensor(1.3863)
    """
    log_ratio = log_p - original
    return -2 / beta * logsigmoid(-beta * log_ratio).mean()


def simple_preference(
    loss: Float[Tensor, " batch"], beta: float, delta: float
) -> Float[Tensor, ""]:
    """Returns the loss of SimNPO: NPO with the mean loss per token and without the original model.

    -(2 / beta) E[log sigmoid(beta (loss - delta))].

    Source: Fan et al. 2024 (arXiv 2410.07163), equation 4, whose margin gamma is beta * delta.

    Args:
        loss: mean loss per token of each sequence, in nats.
        beta: how sharply the loss sets in.
        delta: the loss per token around which it does.

    Example:
        >>> from interp.mitigation.unlearning.losses import simple_preference
        >>> simple_preference(torch.ones(1), beta=1.0, delta=1.0)
        tensor(1.3863)
    """
    return -2 / beta * logsigmoid(beta * (loss - delta)).mean()


def squared_distance(
    values: Float[Tensor, "tokens width"], wanted: Float[Tensor, "*tokens width"]
) -> Float[Tensor, ""]:
    """Returns the squared Euclidean distance of activations to wanted ones, mean over tokens.

    Source: both terms of RMU in Li et al. 2024 (arXiv 2403.03218), section 4; their code divides it
    by the width.

    Args:
        values: activations of the trained model.
        wanted: one vector for each token, or one for all.

    Example:
        >>> from interp.mitigation.unlearning.losses import squared_distance
        >>> squared_distance(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2))
        tensor(12.5000)
    """
    return (values - wanted).square().sum(-1).mean()
