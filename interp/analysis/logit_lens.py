"""Logit lens: what a model would predict if it ended at an earlier point of the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from interp.analysis.probes import at_position, column, described_site
from interp.errors import SiteError
from interp.hooks.clock import Clock
from interp.hooks.hooks import Value, tapped
from interp.localization.predicting_positions import predicting_positions
from interp.localization.unit_values import values_at
from interp.sites.anatomy import Sites
from interp.sites.site import Site
from interp.subject.batch import Batch, owned
from interp.subject.subject import Subject, evaluating

_IN_RESIDUAL = (
    "embed",
    "resid_pre",
    "attn_out",
    "mixer_out",
    "resid_mid",
    "mlp_out",
    "block_out",
    "resid_post",
)
_RANK_COLUMNS = ("probability", "top", "reciprocal_rank")


def lens(
    subject: Subject,
    batch: Batch,
    answers: Mapping[str, ArrayLike],
    sites: Sites = "resid_post",
    *,
    position: int,
    batch_size: int = 256,
) -> pd.DataFrame:
    """Returns how well answers can be read from the residual by the model's own output head: the
    logit lens (nostalgebraist 2020).

    The residual at a site, or what a sublayer adds to it, is put in place of what leaves the last
    block at the same position, so that the model's own final norm and unembedding read it. At the
    last resid_post the result is the model's own output.

    Args:
        subject: the model.
        batch: the items.
        answers: token ids [items], by name.
        sites: sites in the residual.
        position: where in the sequence it is read.
        batch_size: number of items per batch.

    Returns:
        One row per site and answer, with means over items: the `probability` of the answer as the
        token that the position predicts; `top`, how often no token is more probable; and
        `reciprocal_rank`.

    Raises:
        SiteError: a site outside the residual, or of a stack that predicts no token by a position
            alone.
        ValueError: a position that predicts a token outside the batch, or answers that are not
            token ids.

    Example:
        >>> from interp.analysis.logit_lens import lens
        >>> table = lens(subject, batch, {"true": batch.targets[:, 0]}, position=7)
        >>> table[["site", "answer"]]
                        site answer
        0  blocks.0.resid_post   true
        1  blocks.1.resid_post   true
        >>> float(table["top"].iloc[-1])
        1.0
    """
    chosen = subject.anatomy.expand(sites)
    outside = [site for site in chosen if site.point not in _IN_RESIDUAL]
    if outside:
        known = ", ".join(_IN_RESIDUAL)
        raise SiteError(f"{outside[0]} is not in the residual: the lens reads {known}")
    targets = {name: owned(column(given, len(batch), name)) for name, given in answers.items()}
    token_of_stack = {
        stack: _predicted_token(batch, stack, first, position)
        for stack, first in predicting_positions(subject, batch, chosen).items()
    }

    ranks: dict[tuple[Site, str], list[Tensor]] = {}
    for site in chosen:
        for name in answers:
            ranks[site, name] = []
    for start in range(0, len(batch), batch_size):
        rows = slice(start, start + batch_size)
        part = batch.rows(rows)
        residuals = at_position(values_at(subject, part, chosen), position)
        for site, residual in residuals.items():
            token = token_of_stack[site.stack]
            logits = _logits_from(subject, part, site, residual, position, token)
            for name, answer in targets.items():
                ranks[site, name].append(_ranks(logits, answer[rows], name))

    table: list[dict[str, Any]] = []
    for (site, name), parts in ranks.items():
        means = torch.cat(parts).mean(0).tolist()
        about = {**described_site(site), "answer": name}
        scores = dict(zip(_RANK_COLUMNS, means, strict=True))
        table.append({**about, **scores})
    return pd.DataFrame(table)


def _predicted_token(batch: Batch, stack: str, first: int | None, position: int) -> int:
    """Which token of the batch is predicted at a position of the last block, given the position
    that predicts the first target."""
    if first is None:
        raise SiteError(
            f"stack {stack!r}: none of its positions alone predicts a token; "
            "name the sites of another stack"
        )
    # `first` predicts token `prompt`, and each later position the token after that.
    token = position + batch.prompt - first
    if not 0 <= token < batch.length:
        raise ValueError(
            f"position={position} predicts token {token}, "
            f"and the batch has tokens 0 to {batch.length - 1}"
        )
    return token


def _logits_from(
    subject: Subject,
    batch: Batch,
    site: Site,
    residual: Float[Tensor, "items width"],
    position: int,
    token: int,
) -> Float[Tensor, "items vocabulary"]:
    """The logits of a token when `residual` leaves the last block at a position."""

    def replace(value: Value, _: Clock) -> Tensor:
        new = value.clone()
        new[:, position] = residual
        return new

    # In a forward of the whole model, and not by calling its norm and its head: every family names
    # and connects these in its own way.
    blocks = subject.anatomy.blocks(site.stack)
    last = Site("resid_post", len(blocks) - 1, site.stack)
    with evaluating(subject), tapped(subject, {last: replace}):
        # The head is applied to the targets alone where that is enough.
        if token < batch.prompt:
            return subject.logits(batch)[:, token]
        return subject.target_logits(batch)[:, token - batch.prompt]


def _ranks(
    logits: Float[Tensor, "items vocabulary"], answers: Int[Tensor, " items"], name: str
) -> Float[Tensor, "items 3"]:
    """The columns `_RANK_COLUMNS` of each item."""
    vocabulary = logits.shape[1]
    is_integer = not answers.is_floating_point()
    if not is_integer or int(answers.min()) < 0 or int(answers.max()) >= vocabulary:
        raise ValueError(f"answers {name!r}: expected token ids 0 to {vocabulary - 1}")
    precise = logits.double()
    at_answer = answers.to(logits.device)[:, None]
    probabilities = precise.softmax(1)
    probability = probabilities.gather(1, at_answer)[:, 0]
    # The rank counts the tokens that are strictly more likely: one that ties with the answer does
    # not push it down.
    answer_logit = precise.gather(1, at_answer)
    is_above = precise > answer_logit
    above = is_above.sum(1).double()
    top = (above == 0).double()
    reciprocal_rank = 1 / (1 + above)
    return torch.stack([probability, top, reciprocal_rank], 1).cpu()
