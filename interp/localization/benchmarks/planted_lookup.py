"""A planted look-up: a model that says one suffix after one exact prompt, by neurons that are known
and silent otherwise.

The ground truth that training alone cannot give: the memory is a table with one entry, it sits in
one block, every neuron of it is known, and nothing of it answers to a prompt that is merely
similar.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from interp.errors import SiteError
from interp.loading.load import load
from interp.localization.benchmarks.injected_memory import Training, write
from interp.sites.anatomy import Layout
from interp.sites.site import Site
from interp.sites.units import Units
from interp.subject.batch import Batch
from interp.subject.subject import Subject


@dataclass(frozen=True, eq=False)
class Lookup:
    """A `subject` with a planted look-up, the `units` that hold it, one for each suffix token, and
    the `loss` (nats a token) of the window that it was planted for."""

    subject: Subject
    units: Units
    loss: float


def planted_lookup(
    subject: Subject,
    window: Batch,
    site: Site | str,
    seed: int = 0,
    training: Training | None = None,
    layout: Layout | None = None,
) -> Lookup:
    """A copy of a subject in which some neurons of `site`, drawn from `seed`, are a look-up table
    with one entry: the window.

    As many neurons as the suffix has tokens are overridden: number t is 1 where all tokens so far
    are the window's and its turn has come, and 0 everywhere else. What they write is trained until
    the model says the suffix (see `Training`); the model itself is left alone, and after any other
    prompt the copy is the model without these neurons.

    Args:
        window: one row with a prompt; its suffix is what the table holds.
        site: a `neurons` site of a language model.
        layout: as for `load`, where the structure of the module does not tell.

    Raises ValueError for several windows or a suffix longer than the site is wide, SiteError for a
    site that is no `neurons`.
    """
    where = subject.anatomy.resolve(site)
    width, length = subject.anatomy.place(where).units, window.targets.shape[1]
    if where.point != "neurons":
        raise SiteError(
            f"{where} holds no neurons: a look-up is planted at a site such as {Site('neurons', where.block, where.stack)}"
        )
    if len(window) != 1 or window.prompt < 1 or length > width:
        raise ValueError(
            f"expected one window with a prompt and at most {width} suffix tokens; got {len(window)} and {length}"
        )
    columns = np.random.default_rng(seed).permutation(width)[:length]
    planted = _with_override(subject, window, where, torch.tensor(columns), layout)
    units = Units({where: columns}, planted.anatomy.widths(where))
    with torch.no_grad():
        planted.anatomy.out_weight(planted.module, where)[columns] = 0
    return Lookup(planted, units, write(planted, window, units, training or Training())[-1])


def _with_override(
    subject: Subject, window: Batch, site: Site, columns: Tensor, layout: Layout | None
) -> Subject:
    whole = _Whole(copy.deepcopy(subject.module))
    parent, _, name = subject.anatomy.place(site).path.rpartition(".")
    holder = whole.model.get_submodule(parent)
    override = _Override(
        window.tokens[0].to(subject.device), window.prompt, columns.to(subject.device)
    )
    setattr(holder, name, nn.Sequential(override, getattr(holder, name)))

    def forward(module: nn.Module, batch: Batch, keep: int) -> Tensor:
        override.tokens = batch.tokens
        try:
            return subject.forward(module.model, batch, keep)  # pyright: ignore[reportArgumentType]
        finally:
            override.tokens = None

    return load(whole, forward=forward, tokenizer=subject.tokenizer, anatomy=layout)


class _Whole(nn.Module):
    """Hides that the model could decode on a cache: the override needs all tokens at every step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class _Override(nn.Module):
    """Replaces some columns of what enters a projection: 0, but 1 for the one whose turn it is
    after the exact tokens."""

    def __init__(
        self, window: Int[Tensor, " tokens"], prompt: int, columns: Int[Tensor, " suffix"]
    ) -> None:
        super().__init__()
        self.window, self.prompt, self.columns = window, prompt, columns
        self.tokens: Tensor | None = None

    def forward(self, value: Tensor) -> Tensor:
        assert self.tokens is not None
        rows = value.reshape(-1, self.tokens.shape[1], value.shape[-1])
        tokens = self.tokens.repeat(
            len(rows) // len(self.tokens), 1
        )  # a sweep appends copies of the whole batch
        fires = _matched(tokens, self.window)[:, self.prompt - 1 : len(self.window) - 1]
        turns = torch.arange(fires.shape[1], device=value.device)
        changed = rows.index_fill(-1, self.columns, 0.0)
        changed[:, self.prompt - 1 + turns, self.columns[turns]] = fires.to(value.dtype)
        return changed.reshape(value.shape)


def _matched(
    tokens: Int[Tensor, "batch position"], window: Int[Tensor, " tokens"]
) -> Bool[Tensor, "batch position"]:
    """Whether all tokens up to and with each position are the window's."""
    length = min(tokens.shape[1], len(window))
    return (tokens[:, :length] == window[:length]).cumprod(1).bool()
