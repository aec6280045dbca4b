"""The figures of the entropy law."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.experiment.checks import Tables
from interp.memorization.entropy.level_bags import RAREFIED, RAW
from interp.reporting.panels import bars, lines, over_seeds, panels, ranges, with_level

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN = ("entropy", "normalized", "rarefied")
_CHANCE = "chance"


def law(tables: Tables) -> Figure:
    """Entropy against score, with the band of shuffled scores."""
    return _law(tables, ("seen twice", "unseen"))


def law_of_real(tables: Tables) -> Figure:
    """The same of a pretrained model."""
    return _law(tables, ("seen", "unseen"))


def _law(tables: Tables, data: tuple[str, str]) -> Figure:
    """Levels of two kinds of data; the band is that of the first."""
    first, _ = data
    levels = tables["levels"]
    shown: Any = levels[levels["quantity"].isin(_SHOWN) & levels["data"].isin(data)]
    names = RAW | RAREFIED
    shown = shown.assign(panel=shown["quantity"].map(names))
    draw = lines(
        shown,
        "score",
        "value",
        "data",
        xlabel="memorization score (token edit distance)",
        ylabel="value (see the title)",
    )

    def with_null(part: pd.DataFrame, axes: Axes) -> None:
        of_first: Any = part[part["data"] == first]
        band = of_first.groupby("score")[["null_low", "null_high"]].mean()
        axes.fill_between(
            band.index,
            band["null_low"],
            band["null_high"],
            color="0.6",
            alpha=0.35,
            linewidth=0,
            label=f"shuffled scores ({first})",
        )
        draw(part, axes)

    return panels(
        shown,
        ["panel"],
        with_null,
        title="Entropy of the windows with one score: as it is, normalized, and in bags of equal "
        "size",
        key=over_seeds(shown, "line", "coloured band") + "; grey band: 95% of shuffled scores",
    )


def baselines(tables: Tables) -> Figure:
    """Correlation with the score: level sets, and what is read off a single suffix."""
    fits: Any = tables["fits"]
    of_levels = fits[fits["quantity"].isin(["entropy", "rarefied"])]
    names = {"entropy": "level sets, entropy", "rarefied": "level sets, equal size"}
    of_levels = of_levels.assign(statistic=of_levels["quantity"].map(names))
    single: Any = tables["baselines"]
    single = single.assign(statistic="one suffix, " + single["baseline"].str.replace("_", "-"))
    both = pd.concat([of_levels, single])
    both = both[both["data"].isin(["seen twice", "seen", "unseen"])].dropna(subset=["r"])
    return _correlations(both, "statistic", "data")


def slices(tables: Tables) -> Figure:
    """The law on slices and in another architecture."""
    fits: Any = tables["fits"]
    shown = fits[fits["quantity"].isin(["entropy", "rarefied"])]
    names = {"entropy": "entropy as it is", "rarefied": "at equal size"}
    shown = shown.assign(quantity=shown["quantity"].map(names))
    return _correlations(shown, "data", "quantity")


def inference(tables: Tables) -> Figure:
    """How well sets of windows are told from unseen ones."""
    table = tables["inference"].assign(
        statistic=tables["inference"]["statistic"].str.replace("_", " ")
    )
    draw = with_level(
        bars(
            table,
            "data",
            "auc",
            "statistic",
            xlabel="how often the data was seen",
            ylabel="AUC against unseen data",
        ),
        0.5,
        _CHANCE,
    )
    return panels(
        table.assign(panel="random sets of windows"),
        ["panel"],
        draw,
        title="Dataset inference: the intercept of the law beside the plain means",
        key=over_seeds(table, "bar"),
        width=7.0,
    )


def intercepts(tables: Tables) -> Figure:
    """Where the intercepts of random sets are."""
    sets = tables["sets"]

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        for name in ("unseen", "once", "twice", "often"):
            values: Any = part.loc[part["data"] == name, "intercept"]
            axes.hist(values.dropna(), bins=24, alpha=0.55, linewidth=0, label=name, density=True)
        axes.set(xlabel="intercept of the entropy law (bits)", ylabel="density of sets")

    return panels(
        sets.assign(seed_name="seed " + sets["seed"].astype(str)),
        ["seed_name"],
        draw,
        title="Intercepts of random sets of windows, by how often their data was seen",
        key="bars: sets of one seed",
    )


def gibberish(tables: Tables) -> Figure:
    """Scores of gibberish and code over training."""
    kinds = tables["kinds"]
    by_seed = _means(kinds, ["kind", "step", "seed"], "score")
    unseen = by_seed["kind"].str.endswith("unseen")
    by_seed["panel"] = unseen.map({True: "never seen", False: "planted"})
    by_seed["kind"] = by_seed["kind"].str.replace(", unseen", "")
    draw = lines(
        by_seed,
        "step",
        "score",
        "kind",
        xlabel="training steps",
        ylabel="mean score (tokens of edit distance)",
    )
    return panels(
        by_seed,
        ["panel"],
        draw,
        title="Gibberish has less entropy than code: is it reproduced better?",
        key=over_seeds(by_seed, "line", "band"),
        width=4.5,
        across=2,
    )


def strings(tables: Tables) -> Figure:
    """Scores of random strings over training, by the size of their alphabet."""
    table = tables["strings"]
    by_seed = _means(table, ["alphabet", "step", "seed"], "score")
    by_seed["symbols"] = by_seed["alphabet"].astype(str) + " symbols"
    draw = lines(
        by_seed,
        "step",
        "score",
        "symbols",
        xlabel="training steps",
        ylabel="mean score (tokens of edit distance)",
    )
    return panels(
        by_seed.assign(panel="random strings that are seen equally often"),
        ["panel"],
        draw,
        title="Early on, strings over small alphabets are easier; later, those over large ones",
        key=over_seeds(by_seed, "line", "band"),
        width=7.0,
    )


def copies(tables: Tables) -> Figure:
    """Extraction against the number of copies."""
    table = tables["windows"]
    named = {"unseen": 0, "once": 1, "twice": 2}
    numbers = [named[name] if name in named else int(name.split()[0]) for name in table["data"]]
    by_seed = _means(table.assign(copies=numbers), ["copies", "seed"], "exact")
    by_seed["windows"] = "reproduced exactly"
    draw = lines(
        by_seed,
        "copies",
        "exact",
        "windows",
        xlabel="how often a passage stands in the training data",
        ylabel="share of windows",
        ordinal=True,
    )
    return panels(
        by_seed.assign(panel="all windows"),
        ["panel"],
        draw,
        title="Extraction against the number of copies",
        key=over_seeds(by_seed, "line", "band"),
        width=6.0,
    )


def _means(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    grouped: Any = table.groupby(by, sort=False)[value]
    return grouped.mean().reset_index()


def _correlations(by_seed: pd.DataFrame, row: str, panel: str) -> Figure:
    return ranges(
        by_seed,
        row,
        panel,
        "r",
        label="correlation with the score",
        value_of_level=0.0,
        level="no correlation",
        title="Correlation of entropy with the memorization score",
    )


FIGURES = {
    "law": law,
    "baselines": baselines,
    "slices": slices,
    "inference": inference,
    "intercepts": intercepts,
    "gibberish": gibberish,
    "strings": strings,
    "copies": copies,
}
