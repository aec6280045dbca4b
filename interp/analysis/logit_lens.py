"""Logit lens: what a residual stream would predict if the model ended there."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from interp.analysis.probes import at_position, column, described_site
from interp.errors import SiteError
from interp.hooks.hooks import Clock, Value, tapped
from interp.localization.predicting_positions import predicting
from interp.localization.unit_values import values_at
from interp.sites.anatomy import Sites
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject, evaluating

_IN_RESIDUAL = ("embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "block_out", "resid_post")


_RANKS = ["probability", "top", "reciprocal_rank"]


def lens(
    subject: Subject,
    batch: Batch,
    answers: Mapping[str, ArrayLike],
    sites: Sites = "resid_post",
    *,
    position: int,
    size: int = 256,
) -> pd.DataFrame:
    """The logit lens (nostalgebraist 2020): the residual, or what a sublayer adds to it, put in
    place of what leaves the last block at that position, and so read by the model's own final norm
    and unembedding.

    One row for each site and answer (token ids [items]): the mean `probability` of the answer as
    the token that the position predicts, `top`, how often none is more probable, and the mean
    `reciprocal_rank`. At the last resid_post it is the model's own output.

    Raises SiteError for sites outside the residual or of a stack that predicts nothing by position,
    ValueError for a position whose prediction lies outside the batch, and for answers that are no
    tokens.
    """
    chosen = subject.anatomy.expand(sites)
    outside = [site for site in chosen if site.point not in _IN_RESIDUAL]
    if outside:
        raise SiteError(
            f"{outside[0]} is not in the residual: the lens reads {', '.join(_IN_RESIDUAL)}"
        )
    targets = {
        name: torch.from_numpy(column(given, len(batch), name)) for name, given in answers.items()
    }
    token = {
        stack: _predicted(batch, stack, start, position)
        for stack, start in predicting(subject, batch, chosen).items()
    }
    ranks: dict[tuple[Site, str], list[Tensor]] = {
        (site, name): [] for site in chosen for name in answers
    }
    for start in range(0, len(batch), size):
        part = batch.rows(slice(start, start + size))
        for site, row in at_position(values_at(subject, part, chosen), position).items():
            logits = _read(subject, part, site, row, position, token[site.stack])
            for name, answer in targets.items():
                ranks[site, name].append(_ranks(logits, answer[start : start + size], name))
    means = {key: torch.cat(parts).mean(0).tolist() for key, parts in ranks.items()}
    return pd.DataFrame(
        [
            described_site(s) | {"answer": name} | dict(zip(_RANKS, means[s, name], strict=True))
            for s, name in means
        ]
    )


def _predicted(batch: Batch, stack: str, start: int | None, position: int) -> int:
    """Which token of the batch a position of the last block predicts, given the one that predicts
    the first target."""
    if start is None:
        raise SiteError(
            f"stack {stack!r}: none of its positions alone predicts a token; name the sites of another stack"
        )
    token = position + batch.prompt - start
    if not 0 <= token < batch.length:
        raise ValueError(
            f"position={position} predicts token {token}, and the batch has tokens 0 to {batch.length - 1}"
        )
    return token


def _read(
    subject: Subject,
    batch: Batch,
    site: Site,
    residual: Float[Tensor, "items width"],
    position: int,
    token: int,
) -> Float[Tensor, "items vocabulary"]:
    def replace(value: Value, _: Clock) -> Tensor:
        new = value.clone()
        new[:, position] = residual
        return new

    last = Site("resid_post", len(subject.anatomy.blocks(site.stack)) - 1, site.stack)
    with evaluating(subject), tapped(subject, {last: replace}):
        if token < batch.prompt:
            return subject.logits(batch)[:, token]
        return subject.target_logits(batch)[:, token - batch.prompt]


def _ranks(
    logits: Float[Tensor, "items vocabulary"], answers: Int[Tensor, " items"], name: str
) -> Float[Tensor, "items 3"]:
    if (
        answers.is_floating_point()
        or int(answers.min()) < 0
        or int(answers.max()) >= logits.shape[1]
    ):
        raise ValueError(f"answers {name!r}: expected token ids 0 to {logits.shape[1] - 1}")
    precise, at = logits.double(), answers.to(logits.device)[:, None]
    above = (precise > precise.gather(1, at)).sum(1).double()
    return torch.stack(
        [precise.softmax(1).gather(1, at)[:, 0], (above == 0).double(), 1 / (1 + above)], 1
    ).cpu()
