"""A planted look-up: a model that generates one suffix after one exact prompt, by known neurons
that are silent otherwise.

Training alone cannot give this ground truth: the memory is a table with one entry, it is in one
block, every neuron of it is known, and none of them reacts to a prompt that is merely similar.
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
from interp.subject.offloading import refuse_not_whole
from interp.subject.subject import Subject


@dataclass(frozen=True, eq=False)
class Lookup:
    """A model with a planted look-up.

    Attributes:
        subject: the model, a changed copy.
        units: the neurons that hold the look-up, one for each suffix token.
        loss: loss of the planted window after training, in nats per token.
    """

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
    """Returns a copy of a model in which some neurons are a look-up table with one entry.

    One neuron for each suffix token is overridden: neuron t is 1 where all tokens so far are the
    window's and token t comes next, and 0 everywhere else. What the neurons write is trained until
    the model generates the suffix. After any other prompt the copy is the model without these
    neurons. The model itself is not changed.

    Args:
        subject: a language model.
        window: one row with a prompt; its suffix is what the table holds.
        site: a `neurons` site.
        seed: seed of the draw of neurons.
        training: see `Training`; the default if None.
        layout: where the sites are, for a module whose structure cannot be discovered; see `load`.

    Raises:
        ValueError: for several windows, no prompt, or a suffix longer than the site is wide.
        SiteError: for a site other than `neurons`.

    Example:
        >>> from interp.localization.benchmarks.known_answers import Training, planted_lookup
        >>> window = interp.Batch.from_frame(control[:1])
        >>> planted = planted_lookup(
        ...     subject, window, "blocks.0.neurons", training=Training(steps=5)
        ... )
        >>> len(planted.units)  # one for each of the 8 suffix tokens
        8
    """
    where = subject.anatomy.resolve(site)
    width = subject.anatomy.place(where).units
    length = window.targets.shape[1]
    if where.point != "neurons":
        expected = Site("neurons", where.block, where.stack)
        raise SiteError(
            f"{where} holds no neurons: a look-up is planted at a site such as {expected}"
        )
    if len(window) != 1 or window.prompt < 1 or length > width:
        raise ValueError(
            f"expected one window with a prompt and at most {width} suffix tokens; "
            f"got {len(window)} and {length}"
        )

    # One neuron for each suffix token: it fires at the token's turn, and at no other.
    columns = np.random.default_rng(seed).permutation(width)[:length]
    planted = _override_neurons(subject, window, where, torch.tensor(columns), layout)
    units = Units({where: columns}, planted.anatomy.widths(where))
    # These rows were trained for other activations than those of the look-up: they start from 0.
    with torch.no_grad():
        out_weight = planted.anatomy.out_weight(planted.module, where)
        out_weight[columns] = 0
    losses = write(planted, window, units, training or Training())
    return Lookup(planted, units, losses[-1])


def _override_neurons(
    subject: Subject, window: Batch, site: Site, columns: Tensor, layout: Layout | None
) -> Subject:
    """A copy of the model whose neurons at `columns` are overridden."""
    refuse_not_whole(subject.module, "it cannot be copied; load the model whole on one device")
    whole = _WithoutCache(copy.deepcopy(subject.module))
    parent_path, _, name = subject.anatomy.place(site).path.rpartition(".")
    parent = whole.model.get_submodule(parent_path)
    projection = getattr(parent, name)
    tokens = window.tokens[0].to(subject.device)
    override = _Override(tokens, window.prompt, columns.to(subject.device))
    setattr(parent, name, nn.Sequential(override, projection))

    # Inside the network the override sees activations only, so it is given the tokens before each
    # run.
    def forward(module: nn.Module, batch: Batch, keep: int) -> Tensor:
        override.tokens = batch.tokens
        try:
            return subject.forward(module.model, batch, keep)  # pyright: ignore[reportArgumentType]
        finally:
            override.tokens = None

    return load(whole, forward=forward, tokenizer=subject.tokenizer, anatomy=layout)


class _WithoutCache(nn.Module):
    """Hides that the model could decode on a cache: the override needs all tokens at every step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class _Override(nn.Module):
    """Replaces some columns of a projection's input, by 1 for the column whose turn it is after the
    exact tokens and by 0 for all others."""

    def __init__(
        self, window: Int[Tensor, " tokens"], prompt: int, columns: Int[Tensor, " suffix"]
    ) -> None:
        super().__init__()
        self.window = window
        self.prompt = prompt
        self.columns = columns
        self.tokens: Tensor | None = None

    def forward(self, value: Tensor) -> Tensor:
        assert self.tokens is not None
        positions = self.tokens.shape[1]
        width = value.shape[-1]
        rows = value.reshape(-1, positions, width)  # some models flatten batch and position
        # A sweep appends copies of the whole batch to the activations, but not to the tokens.
        copies = len(rows) // len(self.tokens)
        tokens = self.tokens.repeat(copies, 1)

        # Position t predicts token t + 1: the last position of the prompt is the first turn.
        first_turn = self.prompt - 1
        last_turn = len(self.window) - 2
        matches = _matches(tokens, self.window)
        fires = matches[:, first_turn : last_turn + 1]  # fewer turns if the batch is shorter
        turns = torch.arange(fires.shape[1], device=value.device)

        # First all of the columns are silenced, at every position. Then turn k is written to
        # position first_turn + k of column k alone: the two lists of indices are read in pairs.
        changed = rows.index_fill(-1, self.columns, 0.0)
        at_turn = first_turn + turns
        own_column = self.columns[turns]
        changed[:, at_turn, own_column] = fires.to(value.dtype)
        return changed.reshape(value.shape)


def _matches(
    tokens: Int[Tensor, "batch position"], window: Int[Tensor, " tokens"]
) -> Bool[Tensor, "batch position"]:
    """Whether all tokens up to and including each position are the window's."""
    length = min(tokens.shape[1], len(window))
    equal = tokens[:, :length] == window[:length]
    return equal.cumprod(1).bool()  # from the first difference on, the product is 0
