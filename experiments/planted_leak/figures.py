"""The figure: what is still extracted, and at what cost, against the share of neurons zeroed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from interp.experiment.checks import Tables
from interp.mitigation.report import drop_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    ("memorized", "accuracy"): "suffix accuracy (fraction of tokens)",
    ("memorized", "exact"): "extracted exactly (fraction of records)",
    ("control", "loss"): "rise of the loss (nats per token)",
}


def drop(tables: Tables) -> Figure:
    """Extraction and the rise of the control loss against the share of neurons zeroed: means over
    seeds with their intervals."""
    over_seeds = tables["over_seeds"]
    is_loss = over_seeds["measure"] == "loss"

    # The loss before differs from seed to seed: its rise is drawn, from 0 on.
    loss = over_seeds[is_loss]
    loss = loss.assign(
        before=0.0, estimate=loss["change"], low=loss["change_low"], high=loss["change_high"]
    )
    return drop_figure(
        pd.concat([over_seeds[~is_loss], loss]),
        PANELS,
        title="Planted customer records: what is still extracted, and what it costs, when neurons "
        "are zeroed: the selected ones, random ones, or those with the lowest scores",
        key=_key(over_seeds["seeds"].max()),
    )


def _key(seeds: int) -> str:
    if seeds == 1:
        return "points: one fine-tuning seed; lines through them: 95% intervals over windows"
    return (
        f"points: means over {seeds} fine-tuning seeds; lines through them: 95% intervals over "
        "seeds and windows"
    )


FIGURES = {"drop": drop}
