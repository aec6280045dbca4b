"""Causal tracing: spoil the prompt with noise, put one state back as it was, and see how much of
the memory returns."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.engine.sweeping import sweep
from interp.errors import SiteError
from interp.hooks.hooks import Clock, Value, tapped
from interp.interventions.kinds import Patch, Scale
from interp.localization.registry import Places, window_method
from interp.localization.unit_values import values_at
from interp.localization.window_losses import window_losses
from interp.localization.windows import repeated
from interp.reporting.plotting import matrix
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject, evaluating

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@window_method("causal_tracing", size=1)
def causal_tracing(
    subject: Subject,
    batch: Batch,
    sites: Places,
    *,
    draws: int = 10,
    noise: float = 3.0,
    seed: int = 0,
) -> dict[Site, Tensor]:
    """The rise of the suffix's mean log-probability (nats a token) when a unit alone gets back, at
    all positions, what it was before noise spoiled the prompt; the mean over `draws` of the noise.

    The indirect effect of Meng et al. 2022 (ROME, arXiv 2202.05262), for any unit: exact, one pass
    for each of them. The noise has `noise` times the standard deviation of the embedding matrix's
    entries; `trace` gives the map over positions and blocks.
    """
    rows = [_restored(subject, window, sites, draws, noise, seed) for window in batch.split(1)]
    return {site: torch.stack([row[site] for row in rows]) for site in sites}


def _restored(
    subject: Subject, window: Batch, sites: Places, draws: int, noise: float, seed: int
) -> dict[Site, Tensor]:
    if draws < 1:
        raise ValueError(f"draws={draws}: expected at least one draw of the noise")
    clean = {
        site: values[0].double().cpu().numpy()
        for site, values in values_at(subject, window, sites).items()
    }
    widths = subject.anatomy.widths(sites)
    each = {site: subject.anatomy.units(site) for site in sites}
    plans = [
        Patch(each[site].only(site, [unit]), values=clean)
        for site in sites
        for unit in range(widths[site])
    ]
    nothing = Scale(
        each[sites[0]], factor=1.0
    )  # so that what is compared went through the same arithmetic
    with _spoiled(subject, window, draws, noise, seed) as noisy:
        spoiled, *restored = sweep(subject, noisy, [nothing, *plans])
    effects = spoiled - torch.tensor(restored, dtype=torch.float64)
    return dict(zip(sites, effects.split([widths[site] for site in sites]), strict=True))


def trace(
    subject: Subject,
    batch: Batch,
    point: str = "resid_post",
    *,
    window: int = 1,
    draws: int = 10,
    noise: float = 3.0,
    seed: int = 0,
) -> pd.DataFrame:
    """The map of causal tracing: which state, at which position and block, brings the memory back.

    One row for each `row` of the batch, `block` and `position`: `effect`, the rise of the suffix's
    mean log-probability when that one state (of `window` blocks around the block: Meng et al. take
    10 of 48 for mlp_out and attn_out, and 1 for the residual) is as before noise spoiled the
    prompt, and `share`, the effect by the rise that no noise at all would bring. `stack` names the
    stack.

    Raises ValueError where there is nothing to spoil, SiteError for an unknown point.
    """
    sites = subject.anatomy.expand(point)
    frames = [
        _map(subject, one, sites, window, (draws, noise, seed)).assign(row=n)
        for n, one in enumerate(batch.split(1))
    ]
    return pd.concat(frames, ignore_index=True)


def trace_figure(traced: pd.DataFrame, row: int = 0) -> Figure:
    """The map of one row of `trace`, blocks by positions. Raises ValueError for a row that it does
    not have."""
    shown: Any = traced[traced["row"] == row]
    if shown.empty:
        raise ValueError(f"row={row}: expected one of {sorted(set(traced['row']))}")
    blocks = (
        shown["block"]
        if shown["stack"].nunique() == 1
        else shown["stack"] + " " + shown["block"].astype(str)
    )
    table: Any = shown.assign(block=blocks).pivot_table(
        index="block", columns="position", values="effect", sort=False
    )
    return matrix(table, "log-probability restored (nats/token)", center=0.0)


def _map(
    subject: Subject, one: Batch, sites: Places, window: int, recipe: tuple[int, float, int]
) -> pd.DataFrame:
    clean = {
        site: values[0].double().cpu().numpy()
        for site, values in values_at(subject, one, sites).items()
    }
    cells = [(site, position) for site in sites for position in range(len(clean[site]))]
    plans = [
        _patch(subject, _around(sites, site, window), clean, position) for site, position in cells
    ]
    unspoiled = _mean_loss(subject, one)
    with _spoiled(subject, one, *recipe) as noisy:
        spoiled = _mean_loss(subject, noisy)
        effects = spoiled - np.array(sweep(subject, noisy, plans))
    about = [(site.stack, site.block, position) for site, position in cells]
    room = spoiled - unspoiled or np.nan  # where noise changes nothing there is no share
    return pd.DataFrame(about, columns=["stack", "block", "position"]).assign(
        effect=effects, share=effects / room
    )


def _around(sites: Places, site: Site, window: int) -> list[Site]:
    """The sites of `window` blocks of the same stack around one, fewer at its ends."""
    beside = [s for s in sites if s.stack == site.stack]
    at = beside.index(site)
    return beside[max(0, at - window // 2) : at + (window + 1) // 2]


def _patch(
    subject: Subject, sites: Sequence[Site], clean: dict[Site, np.ndarray], position: int
) -> Patch:
    return Patch(
        subject.anatomy.units(sites), (position,), values={site: clean[site] for site in sites}
    )


def _mean_loss(subject: Subject, batch: Batch) -> float:
    with evaluating(subject):
        return float(window_losses(subject, batch).double().mean())


@contextmanager
def _spoiled(
    subject: Subject, window: Batch, draws: int, noise: float, seed: int
) -> Generator[Batch]:
    """The window once for every draw; inside, noise is added to the embeddings of its prompt, or to
    what it is conditioned on where there is no prompt or no embedding that can be hooked."""
    batch = repeated(window, draws)
    generator = torch.Generator().manual_seed(seed)
    embed = next((site for site in subject.sites if site.point == "embed"), None)
    if window.prompt and embed is not None:
        with tapped(
            subject, {embed: _noisy(subject, embed, window.prompt, draws, noise, generator)}
        ):
            yield batch
        return
    if not batch.conditioning or not all(
        value.is_floating_point() for value in batch.conditioning.values()
    ):
        kinds = (
            ", ".join(f"{name} ({value.dtype})" for name, value in batch.conditioning.items())
            or "nothing"
        )
        raise ValueError(
            f"nothing to spoil: expected a prompt, or conditioning of real numbers; got conditioning on {kinds}"
        )
    draw = {
        name: torch.randn(value.shape, generator=generator).to(value)
        for name, value in batch.conditioning.items()
    }
    yield replace(
        batch,
        conditioning={
            name: value + noise * value.std() * draw[name]
            for name, value in batch.conditioning.items()
        },
    )


def _noisy(
    subject: Subject, embed: Site, prompt: int, draws: int, noise: float, generator: torch.Generator
) -> Callable[[Value, Clock], Tensor]:
    matrix = getattr(
        subject.module.get_submodule(subject.anatomy.place(embed).path), "weight", None
    )
    if not isinstance(matrix, Tensor):
        raise SiteError(f"{embed} is no embedding with a weight: the scale of the noise is unknown")
    size = noise * float(matrix.detach().float().std())
    added = size * torch.randn(draws, prompt, matrix.shape[1], generator=generator)

    def spoil(value: Value, _: Clock) -> Tensor:
        which = (
            torch.arange(len(value)) % draws
        )  # a sweep also runs one row or several times all of them
        changed = value.clone()
        changed[:, :prompt] += added[which].to(value)
        return changed

    return spoil
