"""The figures of the membership study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.experiment.checks import Tables
from interp.memorization.membership.token_map import TokenMap
from interp.reporting.layout import LEVEL
from interp.reporting.panels import bars, lines, over_seeds, panels, ranges, with_level

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CHANCE = "chance"
_NAMES = {
    "loss": "LOSS",
    "zlib": "zlib",
    "min_k": "Min-K%",
    "min_k_plus_plus": "Min-K%++",
    "lira": "LiRA",
    "informia_sequence": "InfoRMIA",
    "informia": "tokens, mean",
    "informia_min_k": "tokens, lowest",
    "informia_base": "tokens, base as reference",
    "informia_one_step": "tokens, one-step reference",
    "kl": "KL term alone",
}


def roc(tables: Tables) -> Figure:
    """Curves on logarithmic axes, means over seeds of the first target of each."""
    curves = tables["curves"]
    draw = lines(
        curves,
        "fpr",
        "tpr",
        "attack",
        xlabel="false positive rate (share of non-members)",
        ylabel="true positive rate (share of members)",
    )
    least = 1e-3

    def on_logarithmic_axes(part: pd.DataFrame, axes: Axes) -> None:
        # A logarithmic axis has no 0: a rate of 0 would break the line.
        draw(part.assign(tpr=part["tpr"].clip(lower=least)), axes)
        axes.set(xscale="log", yscale="log", ylim=(least, 1.1))
        axes.plot([least, 1], [least, 1], label=_CHANCE, **LEVEL)

    return panels(
        curves,
        ["data"],
        on_logarithmic_axes,
        title="Members found, by false alarms, for one target of each seed",
        key=over_seeds(curves, "line", "band") + "; rates below 0.001 are drawn at 0.001",
        width=5.0,
        height=3.6,
        across=2,
    )


def population(tables: Tables) -> Figure:
    """AUC of RMIA against the size of the population, beside InfoRMIA, which needs none."""
    attacks = tables["attacks"]
    shown = _settings(attacks)
    rmia: Any = shown[shown["attack"] == "rmia"]
    exact: Any = shown[shown["attack"] == "informia_sequence"]
    sizes = rmia[["setting", "population"]].drop_duplicates()
    # InfoRMIA has one value per target, which is drawn as a line over all sizes of the population.
    level = exact.drop(columns="population").merge(sizes, on="setting")
    points = pd.concat([rmia, level])
    points = points.replace({"attack": {"rmia": "RMIA", "informia_sequence": "InfoRMIA"}})
    by_seed = points.groupby(["setting", "attack", "population", "seed"], sort=False)["auc"]
    means = by_seed.mean().reset_index()
    draw = lines(
        means,
        "population",
        "auc",
        "attack",
        xlabel="points of the population that RMIA compares with",
        ylabel="AUC (mean over targets)",
    )

    def on_a_logarithmic_axis(part: pd.DataFrame, axes: Axes) -> None:
        draw(part, axes)
        axes.set(xscale="log")

    return panels(
        means,
        ["setting"],
        on_a_logarithmic_axis,
        title="InfoRMIA needs no population: RMIA approaches it as the population grows",
        key=over_seeds(means, "line", "band"),
    )


def _settings(attacks: pd.DataFrame) -> pd.DataFrame:
    """Rows with most reference models, and the name of their data set with its epochs."""
    most = attacks.groupby("data")["references"].transform("max")
    shown: Any = attacks[attacks["references"] == most]
    names = shown["data"].where(
        shown["data"] != "text", "text, epoch " + shown["epochs"].astype(str)
    )
    return shown.assign(setting=names)


def attacks(tables: Tables) -> Figure:
    """AUC of every attack, on each data set of pictures and on the text."""
    shown = _settings(tables["attacks"])
    named: Any = shown[shown["attack"].isin(_NAMES)]
    named = named.assign(attack=named["attack"].map(_NAMES))
    by_seed: Any = named.groupby(["setting", "attack", "seed"], sort=False)["auc"].mean()
    return ranges(
        by_seed.reset_index(),
        "attack",
        "setting",
        "auc",
        label="AUC (mean over targets)",
        value_of_level=0.5,
        level=_CHANCE,
        title="How well attacks tell members from non-members",
    )


def epochs(tables: Tables) -> Figure:
    """AUC of the attacks on texts against the number of epochs of fine-tuning."""
    attacks = tables["attacks"]
    text: Any = attacks[(attacks["data"] == "text") & attacks["attack"].isin(_NAMES)]
    kinds = {
        "LOSS": "without reference model",
        "zlib": "without reference model",
        "Min-K%": "without reference model",
        "Min-K%++": "without reference model",
    }
    text = text.assign(attack=text["attack"].map(_NAMES))
    text["kind"] = [kinds.get(name, "with reference model") for name in text["attack"]]
    keys = ["kind", "attack", "epochs", "seed"]
    by_seed = text.groupby(keys, sort=False)["auc"].mean().reset_index()
    draw = with_level(
        lines(
            by_seed,
            "epochs",
            "auc",
            "attack",
            xlabel="epochs of fine-tuning",
            ylabel="AUC (mean over targets)",
            ordinal=True,
        ),
        0.5,
        _CHANCE,
    )
    return panels(
        by_seed,
        ["kind"],
        draw,
        title="Attacks on fine-tuned language models",
        key=over_seeds(by_seed, "line", "band"),
        width=5.0,
        across=2,
    )


def kinds(tables: Tables) -> Figure:
    """Scores of private and of other tokens, of members and of non-members."""
    kinds = tables["kinds"].rename(columns={"score_members": "members", "score_others": "others"})
    long = kinds.melt(
        ["seed", "target", "kind"], ["members", "others"], var_name="passages", value_name="score"
    )
    by_seed = long.groupby(["kind", "passages", "seed"], sort=False)["score"].mean().reset_index()
    by_seed["kind"] += " tokens"
    draw = bars(
        by_seed,
        "kind",
        "score",
        "passages",
        xlabel="tokens of passages with an invented name and number",
        ylabel="mean token-level InfoRMIA (nats)",
    )
    return panels(
        by_seed.assign(panel="the fine-tuned model, against one not trained on them"),
        ["panel"],
        draw,
        title="Private tokens are not those with the highest scores",
        key=over_seeds(by_seed, "bar"),
        width=6.0,
    )


def dose(tables: Tables) -> Figure:
    """AUC of private tokens against the number of repetitions."""
    by_seed = tables["dose"].groupby(["repeats", "seed"])["auc"].mean().reset_index()
    by_seed["tokens"] = "private tokens"
    draw = with_level(
        lines(
            by_seed,
            "repeats",
            "auc",
            "tokens",
            xlabel="repetitions of a passage per epoch",
            ylabel="AUC, members against non-members",
            ordinal=True,
        ),
        0.5,
        _CHANCE,
    )
    return panels(
        by_seed,
        ["tokens"],
        draw,
        title="Private tokens are memorized as their passage is repeated",
        key=over_seeds(by_seed, "line", "band"),
        width=6.0,
    )


def token_map(tables: Tables) -> Figure:
    """The token map of one member that carries an invented name and number."""
    table = tables["example"]
    first: Any = table[table["seed"] == table["seed"].min()]
    limit = float(np.nanmax(np.abs(first["score"])))
    shown = TokenMap(
        first.reset_index(drop=True), "the fine-tuned model", "one not trained on it", limit
    )
    return shown.plot()


FIGURES = {
    "roc": roc,
    "population": population,
    "attacks": attacks,
    "epochs": epochs,
    "kinds": kinds,
    "dose": dose,
    "token_map": token_map,
}
