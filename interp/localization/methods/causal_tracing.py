"""Causal tracing: disturb the prompt with noise, put one state back as it was, and measure how much
of the memory returns."""

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
from interp.hooks.clock import Clock
from interp.hooks.hooks import Value, tapped
from interp.interventions.kinds import Patch, Scale
from interp.localization.registry import Places, window_method
from interp.localization.unit_values import values_at
from interp.localization.window_losses import window_losses
from interp.localization.windows import repeat_windows
from interp.reporting.plotting import matrix
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.offloading import stored
from interp.subject.subject import Subject, evaluating

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@window_method("causal_tracing", batch_size=1)
def causal_tracing(
    subject: Subject,
    batch: Batch,
    sites: Places,
    *,
    draws: int = 10,
    noise: float = 3.0,
    seed: int = 0,
) -> dict[Site, Tensor]:
    """Scores a unit by how much of the memory returns when the prompt is disturbed by noise and
    that unit alone gets back the value it had before.

    The rise of the suffix's mean log-probability (nats per token) when the unit has, at all
    positions, its value without noise; the mean over draws of the noise. This is the indirect
    effect of Meng et al. 2022 (ROME, arXiv 2202.05262), for any unit: it is exact and costs one
    pass per unit. `trace` gives the map over positions and blocks.

    Args:
        subject, batch, sites: see `window_method`.
        draws: how many draws of the noise.
        noise: size of the noise, in standard deviations of the embedding matrix's entries.
        seed: seed of the noise.

    Raises:
        ValueError: below one draw, or where there is nothing to disturb.

    Example:
        >>> scores = interp.localize(
        ...     subject, memorized[:1], method="causal_tracing", site="heads", draws=2
        ... )
        >>> len(scores)
        8
    """
    windows = batch.split(1)
    rows = [_restore_each(subject, window, sites, draws, noise, seed) for window in windows]
    scores: dict[Site, Tensor] = {}
    for site in sites:
        scores[site] = torch.stack([row[site] for row in rows])
    return scores


def _restore_each(
    subject: Subject, window: Batch, sites: Places, draws: int, noise: float, seed: int
) -> dict[Site, Tensor]:
    """The effect of putting back each unit alone, {site: [units]}."""
    if draws < 1:
        raise ValueError(f"draws={draws}: expected at least one draw of the noise")
    clean = _clean_values(subject, window, sites)
    widths = subject.anatomy.widths(sites)
    plans: list[Patch] = []
    for site in sites:
        units = subject.anatomy.units(site)
        for unit in range(widths[site]):
            one = units.only(site, [unit])
            plans.append(Patch(one, values=clean))

    # The noisy model is run as a plan that changes nothing, with the other plans: its loss then
    # went through the same arithmetic, and a unit without effect scores exactly 0.
    nothing = Scale(subject.anatomy.units(sites[0]), factor=1.0)
    with _noisy_prompt(subject, window, draws, noise, seed) as noisy:
        unrestored, *restored = sweep(subject, noisy, [nothing, *plans])
    # What the loss falls by is what the mean log-probability rises by.
    losses = torch.tensor(restored, dtype=torch.float64)
    effects = unrestored - losses  # in the order of the plans: site after site
    by_site = effects.split([widths[site] for site in sites])
    return dict(zip(sites, by_site, strict=True))


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
    """Returns the map of causal tracing: which state brings the memory back, by position and block.

    Args:
        subject: the model.
        batch: the windows.
        point: which states, such as `"resid_post"`, `"mlp_out"` or `"attn_out"`.
        window: how many blocks around the block are put back together. Meng et al. take 10 of 48
            for `mlp_out` and `attn_out`, and 1 for the residual.
        draws, noise, seed: as for `causal_tracing`.

    Returns:
        A frame with one row per `row` of the batch, `stack`, `block` and `position`. `effect` is
        the rise of the suffix's mean log-probability (nats per token) when that one state is as it
        was before the noise, and `share` the effect as a fraction of the rise that the prompt
        without noise would bring.

    Raises:
        ValueError: where there is nothing to disturb.
        SiteError: for an unknown point.

    Example:
        >>> traced = trace(subject, batch.rows(slice(1)), draws=2)
        >>> len(traced)  # 2 blocks of 16 positions
        32
    """
    sites = subject.anatomy.expand(point)
    frames: list[pd.DataFrame] = []
    for number, one in enumerate(batch.split(1)):
        cells = _map(subject, one, sites, window, draws=draws, noise=noise, seed=seed)
        frames.append(cells.assign(row=number))
    return pd.concat(frames, ignore_index=True)


def trace_figure(traced: pd.DataFrame, row: int = 0) -> Figure:
    """Draws the map of one row of `trace`, blocks by positions.

    Raises:
        ValueError: for a row that `traced` does not have.

    Example:
        >>> figure = trace_figure(trace(subject, batch.rows(slice(1)), draws=2))
        >>> len(figure.axes) > 0
        True
    """
    cells: Any = traced[traced["row"] == row]
    if cells.empty:
        rows = sorted(set(traced["row"]))
        raise ValueError(f"row={row}: expected one of {rows}")
    if cells["stack"].nunique() == 1:
        blocks = cells["block"]
    else:
        numbers = cells["block"].astype(str)
        blocks = cells["stack"] + " " + numbers
    table: Any = cells.assign(block=blocks).pivot_table(
        index="block", columns="position", values="effect", sort=False
    )
    return matrix(table, "log-probability restored (nats/token)", center=0.0)


def _clean_values(subject: Subject, window: Batch, sites: Places) -> dict[Site, np.ndarray]:
    """The activations of one window without noise, [position, width] at each site."""
    clean: dict[Site, np.ndarray] = {}
    for site, value in values_at(subject, window, sites).items():
        clean[site] = value[0].double().cpu().numpy()
    return clean


def _map(
    subject: Subject,
    one: Batch,
    sites: Places,
    window: int,
    *,
    draws: int,
    noise: float,
    seed: int,
) -> pd.DataFrame:
    """The rows of `trace` for one window."""
    clean = _clean_values(subject, one, sites)
    cells: list[tuple[str, int | None, int]] = []
    plans: list[Patch] = []
    for site in sites:
        around = _sites_around(sites, site, window)
        for position in range(len(clean[site])):
            cells.append((site.stack, site.block, position))
            plans.append(_restore_at(subject, around, clean, position))

    clean_loss = _mean_loss(subject, one)
    with _noisy_prompt(subject, one, draws, noise, seed) as noisy:
        noisy_loss = _mean_loss(subject, noisy)
        restored_losses = np.array(sweep(subject, noisy, plans))
    effects = noisy_loss - restored_losses
    # Where noise changes nothing there is no damage to undo: the share is NaN, not infinite.
    damage = noisy_loss - clean_loss or np.nan
    frame = pd.DataFrame(cells, columns=["stack", "block", "position"])
    return frame.assign(effect=effects, share=effects / damage)


def _sites_around(sites: Places, site: Site, window: int) -> list[Site]:
    """The sites of `window` blocks of the same stack around one; fewer at the ends of the stack."""
    in_stack = [other for other in sites if other.stack == site.stack]
    index = in_stack.index(site)
    # An even window has no middle: the block is then the first of its second half.
    before = window // 2
    after = (window + 1) // 2  # with the block itself
    start = max(0, index - before)
    return in_stack[start : index + after]


def _restore_at(
    subject: Subject, sites: Sequence[Site], clean: dict[Site, np.ndarray], position: int
) -> Patch:
    units = subject.anatomy.units(sites)
    values = {site: clean[site] for site in sites}
    return Patch(units, (position,), values=values)


def _mean_loss(subject: Subject, batch: Batch) -> float:
    with evaluating(subject):
        return float(window_losses(subject, batch).double().mean())


@contextmanager
def _noisy_prompt(
    subject: Subject, window: Batch, draws: int, noise: float, seed: int
) -> Generator[Batch]:
    """The window once per draw, as a batch to run inside the context.

    Noise is added to the embeddings of its prompt while the context is open. Where there is no
    prompt, or no embedding that can be hooked, the batch is conditioned on noisy values instead.
    """
    batch = repeat_windows(window, draws)
    generator = torch.Generator().manual_seed(seed)
    embeddings = (site for site in subject.sites if site.point == "embed")
    embed = next(embeddings, None)
    if window.prompt and embed is not None:
        add_noise = _embedding_noise(subject, embed, window.prompt, draws, noise, generator)
        with tapped(subject, {embed: add_noise}):
            yield batch
        return

    given = batch.conditioning
    # Whole numbers, such as a class, cannot be disturbed a little: the next one is another class.
    is_real = all(value.is_floating_point() for value in given.values())
    if not given or not is_real:
        kinds = [f"{name} ({value.dtype})" for name, value in given.items()]
        raise ValueError(
            "nothing to disturb: expected a prompt, or conditioning of real numbers; "
            f"got conditioning on {', '.join(kinds) or 'nothing'}"
        )
    noisy: dict[str, Tensor] = {}
    for name, value in given.items():
        drawn = torch.randn(value.shape, generator=generator).to(value)
        size = noise * value.std()
        noisy[name] = value + size * drawn
    yield replace(batch, conditioning=noisy)


def _embedding_noise(
    subject: Subject, embed: Site, prompt: int, draws: int, noise: float, generator: torch.Generator
) -> Callable[[Value, Clock], Tensor]:
    """A visit that adds another draw of noise to each row's prompt."""
    path = subject.anatomy.place(embed).path
    weight = getattr(subject.module.get_submodule(path), "weight", None)
    if not isinstance(weight, Tensor):
        raise SiteError(
            f"{embed} is not an embedding with a weight: the scale of the noise is unknown"
        )
    # As Meng et al.: the unit of the noise is the standard deviation of the embeddings' entries.
    entries = stored(subject.module, f"{path}.weight", weight).detach()
    spread = float(entries.float().std())
    scale = noise * spread
    # drawn once, before all forwards: every plan is run on the same noise
    shape = (draws, prompt, weight.shape[1])
    added = scale * torch.randn(shape, generator=generator)

    def add_noise(value: Value, _: Clock) -> Tensor:
        # A sweep may run one row to look at the model, or several copies of all rows together.
        # The draws begin anew with every copy.
        draw = torch.arange(len(value)) % draws
        changed = value.clone()
        changed[:, :prompt] += added[draw].to(value)
        return changed

    return add_noise
