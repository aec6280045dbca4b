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
    # Student's interval of a share can reach beyond 0 or 1.
    shares = over_seeds[~is_loss]
    shares = shares.assign(low=shares["low"].clip(0, 1), high=shares["high"].clip(0, 1))
    return drop_figure(
        pd.concat([shares, loss]),
        PANELS,
        title="Planted customer records: what is still extracted, and what it costs, when neurons "
        "are zeroed: the selected ones, random ones, or those with the lowest scores",
        key=f"points: means over {over_seeds['seeds'].max()} fine-tuning seeds; lines through "
        "them: 95% intervals (Student)",
    )


FIGURES = {"drop": drop}
