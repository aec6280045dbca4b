"""The figures of the comparison: removals at equal damage and at equal forgetting, how deep they
are, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments.code_eraser.figures import MA, of_shares
from experiments.code_eraser.paths import DAMAGE, FORGETTING
from experiments.code_eraser.presets import NOISE
from interp.experiment.checks import Tables
from interp.reporting.panels import lines, over_seeds, panels
from interp.reporting.plotting import intervals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COSTS = {
    "rise": "held-out code",
    "context": "code around the secrets",
    "retained": "retained code",
    "memorized": "other memorized code",
    "other_secrets": "other secrets",
}
_DEPTHS = {"depth": "score", "unclipped": "score, not clipped"}
_RELEARNED = {
    "forget, not trained on": "secrets that were unlearned",
    "never seen, not trained on": "never-read secrets",
}


def equal_damage(tables: Tables) -> Figure | None:
    """What is left of the secrets at equal damage, with the controls."""
    paths = tables["paths"]
    damage = paths["damage"].iloc[0]
    return _over_seeds(
        tables,
        DAMAGE,
        {"ma": "MA of the secrets"},
        levels={"MA of the secrets": float(paths["threshold"].mean())},
        level="never-read secrets",
        title=f"Where the loss on held-out code has risen by {damage:g} nats per token",
        controls=True,
    )


def equal_forgetting(tables: Tables) -> Figure | None:
    """What each removal costs at the first dose at which the secrets count as forgotten."""
    paths: Any = tables["paths"]
    before = paths[paths["dose"] == 0]
    return _over_seeds(
        tables,
        FORGETTING,
        _COSTS,
        levels={words: float(before[name].mean()) for name, words in _COSTS.items()},
        level="before",
        labels={"held-out code": "rise, nats per token"},
        title="What removals cost where the secrets count as forgotten",
    )


def relearning(tables: Tables) -> Figure | None:
    """What comes back while other files are relearned."""
    table = tables["reports"]
    is_shown = (table["group"] == "relearning") & (table["point"] == FORGETTING)
    is_shown &= table["data"].isin(_RELEARNED) & (table["model"] == "after")
    own: Any = table[is_shown]
    if own.empty:
        return None
    own = own.assign(secrets=own["data"].map(_RELEARNED))
    draw = lines(
        own,
        "at",
        "estimate",
        "secrets",
        xlabel="optimizer steps of relearning",
        ylabel="MA of files not trained on",
        ordinal=True,
    )
    return panels(
        own,
        ["removal"],
        of_shares(draw),
        title="What comes back of secrets when other files are relearned",
        key=over_seeds(own, "line", "band"),
        across=4,
        width=3.2,
    )


def depth(tables: Tables) -> Figure | None:
    """How deep each removal is where the secrets count as forgotten."""
    return _over_seeds(
        tables,
        FORGETTING,
        _DEPTHS,
        levels=dict.fromkeys(_DEPTHS.values(), 1.0),
        level="as if never read",
        labels=dict.fromkeys(_DEPTHS.values(), "Unlearning Depth Score"),
        title="How deep removals are where the secrets count as forgotten",
    )


def _over_seeds(
    tables: Tables,
    point: str,
    measures: Mapping[str, str],
    *,
    levels: Mapping[str, float],
    level: str,
    title: str,
    labels: Mapping[str, str] | None = None,
    controls: bool = False,
) -> Figure | None:
    """Draws measures of the removals at one point: one row per removal, one panel per measure."""
    table = tables["comparison"]
    chosen = (table["point"] == point) & table["measure"].isin(measures)
    if not controls:
        chosen &= table["control"] == ""
    found: Any = table[chosen]
    if found.empty:
        return None
    is_alone = (found["control"] == "") | (found["removal"] == NOISE)
    names = found["removal"].where(is_alone, found["removal"] + ": " + found["control"])
    # A removal that does not get there on some seed is a mean over the others: its row says so.
    seeds = len(tables["paths"]["seed"].unique())
    reached = found.assign(name=names).groupby("name")["seed"].nunique()
    rows = {
        name: name if count == seeds else f"{name} ({count} of {seeds} seeds)"
        for name, count in reached.items()
    }
    shown = found.assign(removal=names.map(rows), panel=found["measure"].map(measures))
    groups: Any = shown.groupby(["panel", "removal"], sort=False)["value"]
    spread = groups.agg(estimate="mean", low="min", high="max").reset_index()
    return intervals(
        spread,
        "removal",
        labels=dict.fromkeys(measures.values(), MA) | dict(labels or {}),
        titles={words: words for words in measures.values()},
        levels=levels,
        level=level,
        title=title,
        key=over_seeds(shown, "point", "line"),
        across=5,
    )


FIGURES = {
    "equal_damage": equal_damage,
    "equal_forgetting": equal_forgetting,
    "depth": depth,
    "relearning": relearning,
}
