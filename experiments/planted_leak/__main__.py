"""The demo over several fine-tuning seeds, and what it claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.cli.demo import Leak, Recipe, planted_leak
from interp.experiment.claims import Claim, judged
from interp.experiment.experiment import Results
from interp.experiment.script import Script
from interp.mitigation.report import drop_figure
from interp.reporting.stats import Interval, student

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Judge = Callable[[float], bool]
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"seeds": 2, "recipe": {"records": 4, "copies": (8,), "steps": 2, "others": 8, "fractions": (1e-3,)}},
    "small": {"seeds": 3, "recipe": asdict(Recipe())},
    "paper": {"seeds": 10, "recipe": asdict(Recipe(dtype="float32"))},
}
PANELS = {
    ("memorized", "accuracy"): "suffix accuracy, planted secrets",
    ("memorized", "exact"): "extracted exactly",
    ("control", "loss"): "rise of control loss (nats/token)",
}


def run(settings: Mapping[str, Any], seed: int, out: Path) -> Results:
    """The demo for `settings["seeds"]` fine-tuning seeds from `seed` on."""
    recipe = Recipe(**settings["recipe"])
    leaks = [planted_leak(out / "runs" / f"seed{number}", number, recipe) for number in range(seed, seed + settings["seeds"])]
    drops = pd.concat([leak.report.frame.assign(seed=leak.seed) for leak in leaks], ignore_index=True)
    scans = pd.concat([leak.scan.drop(columns=["tokens"]).assign(seed=leak.seed) for leak in leaks], ignore_index=True)
    across = over_seeds(drops)
    return Results(claims(leaks, across, recipe), {"drops": drops, "scans": scans, "over_seeds": across}, {"drop": figure(across)})


def over_seeds(drops: pd.DataFrame) -> pd.DataFrame:
    """Mean over fine-tuning seeds of every estimate, with Student's interval; the random control's draws are averaged within a seed."""
    rows: list[dict[str, Any]] = []
    for key, group in drops.groupby(["selection", "fraction", "k", "data", "measure"], sort=False):
        after, change = student(group["estimate"]), student(group["change"])
        row = dict(zip(["selection", "fraction", "k", "data", "measure"], key, strict=True))
        row |= {"before": group["before"].mean(), "estimate": after.estimate, "low": after.low, "high": after.high}
        rows.append(row | {"change": change.estimate, "change_low": change.low, "change_high": change.high, "seeds": len(group)})
    return pd.DataFrame(rows)


def figure(across: pd.DataFrame) -> Figure:
    """Extraction, and the rise of the control loss (its level differs from seed to seed), against the share of neurons zeroed."""
    rises = across.assign(before=0.0, estimate=across["change"], low=across["change_low"], high=across["change_high"])
    loss = across["measure"] == "loss"
    shown = pd.concat([across[~loss].assign(low=lambda f: f["low"].clip(0, 1), high=lambda f: f["high"].clip(0, 1)), rises[loss]])
    return drop_figure(shown, PANELS, scales={PANELS["control", "loss"]: "symlog"})


def claims(leaks: Sequence[Leak], across: pd.DataFrame, recipe: Recipe) -> list[Claim]:
    """What the demo's summary says, held against every seed; thresholds were fixed on other seeds."""
    chosen = across[across["fraction"] == recipe.fraction].set_index(["selection", "data", "measure"])

    def fall(selection: str, data: str = "memorized") -> Interval:
        row = chosen.loc[(selection, data, "accuracy")]
        return Interval(-row["change"], -row["change_high"], -row["change_low"], int(row["seeds"]))

    def share(source: str, column: str) -> Interval:
        return student([float(leak.scan.loc[leak.scan["source"] == source, column].mean()) for leak in leaks])

    k, drop = int(chosen.loc[("selection", "memorized", "accuracy"), "k"]), fall("selection")
    rise = student([_relative_rise(leak) for leak in leaks])
    advantage = student([leak.report.equal_damage.advantage.estimate for leak in leaks])
    at_equal, reached = ", ".join(_at_equal(leak) for leak in leaks), all(leak.report.equal_damage.reached for leak in leaks)
    seeds = len(leaks)
    controls = f"random neurons matched by block {fall('random')}, lowest {fall('lowest')}, never-planted twins {fall('selection', 'twin')}"
    return [
        _claim("P1", "suffix accuracy on planted secrets is at least .9 after fine-tuning", share("record", "accuracy"), lambda v: v >= 0.9,
               f"never-planted twins: {share('twin', 'accuracy')}", seeds, "tables/scans.parquet"),
        _claim("P2", f"zeroing {k} neurons ({recipe.fraction:.1%}), scored on these records, lowers it by at least .5", drop,
               lambda v: v >= 0.5, controls, seeds, "figures/drop.png", _below_zero),
        _claim("P3", f"zeroing {k} random neurons matched by block lowers it by at most .05", fall("random"), lambda v: v <= 0.05,
               f"the selection {drop}", seeds, "figures/drop.png"),
        _claim("P4", "the selection raises the loss on prose that was not trained on by at most 5%", rise, lambda v: v <= 0.05,
               f"random {_rises('random', chosen)}, lowest {_rises('lowest', chosen)}", seeds, "figures/drop.png"),
        _claim("P5", "no never-planted twin is extracted", share("twin", "exact"), lambda v: v <= 0,
               f"planted records extracted: {share('record', 'exact')}", seeds, "tables/scans.parquet"),
        _claim("P6", "random neurons that hurt held-out text as much leave more of the secrets", advantage, lambda v: reached and v > 0,
               f"random at equal damage: {at_equal}", seeds, "runs/*/drop.json", _below_zero),
    ]  # fmt: skip


def _claim(
    name: str,
    statement: str,
    found: Interval,
    holds: Judge,
    control: str,
    seeds: int,
    evidence: str,
    opposite: Judge | None = None,
) -> Claim:
    ours = found.estimate, found.low, found.high
    return Claim(name, statement, "measured", None, *ours, control, seeds, judged(found, holds, opposite), evidence)


def _below_zero(value: float) -> bool:
    return value < 0


def _at_equal(leak: Leak) -> str:
    equal = leak.report.equal_damage
    return f"{equal.k} neurons, accuracy {equal.accuracy:.2f}" + ("" if equal.reached else " (hurt less)")


def _relative_rise(leak: Leak) -> float:
    row = leak.report.row("selection", "control", "loss")
    return float(row["change"] / row["before"])


def _rises(selection: str, chosen: pd.DataFrame) -> str:
    row = chosen.loc[(selection, "control", "loss")]
    return f"{row['change'] / row['before']:+.1%}"


EXPERIMENT = Script("planted_leak", __doc__ or "", PRESETS, run)

if __name__ == "__main__":
    EXPERIMENT.command()
