"""The figure: what is extracted, and what it costs, against the share of neurons zeroed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from interp.experiment.checks import Tables
from interp.mitigation.report import drop_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    ("memorized", "accuracy"): "suffix accuracy, planted secrets",
    ("memorized", "exact"): "extracted exactly",
    ("control", "loss"): "rise of control loss (nats/token)",
}


def drop(tables: Tables) -> Figure:
    """Extraction, and the rise of the control loss (its level differs from seed to seed), against
    the share of neurons zeroed."""
    across = tables["over_seeds"]
    rises = across.assign(
        before=0.0, estimate=across["change"], low=across["change_low"], high=across["change_high"]
    )
    loss = across["measure"] == "loss"
    shares = across[~loss].assign(
        low=lambda f: f["low"].clip(0, 1), high=lambda f: f["high"].clip(0, 1)
    )
    return drop_figure(
        pd.concat([shares, rises[loss]]), PANELS, scales={PANELS["control", "loss"]: "symlog"}
    )


FIGURES = {"drop": drop}
