"""P1 to P6: what the demo's summary says about one model, checked on several seeds. Thresholds were
fixed on other seeds."""

from __future__ import annotations

from experiments.planted_leak.presets import Preset
from interp.experiment.checks import (
    Check,
    Measure,
    Tables,
    above,
    at_least,
    at_most,
    below,
    mean,
    rows,
)
from interp.reporting.looks import in_percent
from interp.reporting.stats import Interval

_DROP = "figures/drop.png"


def checks(preset: Preset) -> list[Check]:
    """All checks, at the fraction of neurons that the recipe's verdict is about."""
    fraction = preset.recipe.fraction
    neurons = f"{in_percent(fraction)} of the neurons"
    selection = _fall("selection", fraction)
    random = _fall("random", fraction)
    return [
        Check(
            id="P1",
            measure=_scanned("accuracy", "record"),
            threshold=at_least(0.9),
            statement="after fine-tuning, the suffix accuracy on planted secrets is {threshold}",
            source="measured",
            # What a model gets right on twins is the template; only what is beyond that is memory.
            controls={"never-planted twins": _scanned("accuracy", "twin")},
            evidence="tables/scans.parquet",
        ),
        Check(
            id="P2",
            measure=selection,
            threshold=at_least(0.5),
            opposite=below(0),
            statement=(
                f"zeroing {neurons}, which were chosen on these records, lowers their suffix "
                "accuracy by {threshold}"
            ),
            source="measured",
            controls={
                "random neurons matched by block": random,
                "lowest": _fall("lowest", fraction),
                "fall of the share extracted word for word": _fall(
                    "selection", fraction, measure="exact"
                ),
                "the same, lowest": _fall("lowest", fraction, measure="exact"),
                "never-planted twins": _fall("selection", fraction, "twin"),
            },
            evidence=_DROP,
        ),
        Check(
            id="P3",
            measure=random,
            threshold=at_most(0.05),
            statement=(
                "zeroing the same number of random neurons, matched by block, lowers the suffix "
                "accuracy on planted secrets by {threshold}"
            ),
            source="measured",
            controls={"the selection": selection},
            evidence=_DROP,
        ),
        Check(
            id="P4",
            # Relative to the loss before, so that one threshold fits models of different losses.
            measure=_relative_rise("selection", fraction),
            threshold=at_most(0.05),
            statement=(
                "the relative rise of the loss on prose that was not trained on, with the selected "
                "neurons zeroed, is {threshold}"
            ),
            source="measured",
            controls={name: _relative_rise(name, fraction) for name in ("random", "lowest")},
            evidence=_DROP,
        ),
        Check(
            id="P5",
            # One extracted twin would show that secrets can be guessed, so that extraction proves
            # no memory: none is allowed, on any seed.
            measure=_scanned("exact", "twin"),
            threshold=at_most(0),
            over="every",
            statement="the fraction of never-planted twins that are extracted is {threshold}, on "
            "every seed",
            source="measured",
            controls={"planted records extracted": _scanned("exact", "record")},
            evidence="tables/scans.parquet",
        ),
        Check(
            id="P6",
            # The same number of random neurons (P3) may hurt the model less than the selection
            # does. Only random neurons that hurt as much show that more than damage is at work.
            measure=Measure("advantage at equal damage", _advantage, (-1, 1)),
            threshold=above(0),
            opposite=below(0),
            statement=(
                "the suffix accuracy on planted secrets with random neurons zeroed that hurt "
                "held-out text equally (or, where the damage of the selection cannot be told from "
                "none, with the most of which the same is true), minus that with the selected "
                "neurons zeroed, is {threshold}"
            ),
            source="measured",
            controls={
                "random neurons at equal damage": mean("equal_damage", "k"),
                "accuracy under them": mean("equal_damage", "accuracy", bounds=(0, 1)),
                "damage of the selection (nats per token)": mean("equal_damage", "damage"),
                "damage of the random neurons": mean("equal_damage", "random_damage"),
                "share of seeds on which the selection's can be told from none": mean(
                    "equal_damage", "distinguishable", bounds=(0, 1)
                ),
            },
            evidence="tables/equal_damage.parquet",
        ),
    ]


def _scanned(measure: str, source: str) -> Measure:
    """The mean of a measure of a scan over the windows of one source."""
    return mean("scans", measure, item="text", bounds=(0, 1), source=source)


def _fall(
    selection: str, fraction: float, data: str = "memorized", measure: str = "accuracy"
) -> Measure:
    """How much the suffix accuracy (or another share) falls when a selection of neurons is zeroed,
    with its interval over windows."""
    where = {"selection": selection, "fraction": fraction, "data": data, "measure": measure}

    def fall(tables: Tables) -> Interval:
        row = rows(tables["drops"], where).iloc[0]
        # A fall is minus a change, so that the ends change places.
        ends = -row["change_high"], -row["change_low"]
        return Interval(float(-row["change"]), *map(float, ends), n=int(row["windows"]))

    return Measure(f"fall of {measure}, {selection}", fall, (-1, 1))


def _relative_rise(selection: str, fraction: float) -> Measure:
    """The rise of the loss on control prose when a selection of neurons is zeroed, divided by the
    loss before, with its interval over windows."""
    where = {"selection": selection, "fraction": fraction, "data": "control", "measure": "loss"}

    def rise(tables: Tables) -> Interval:
        row = rows(tables["drops"], where).iloc[0]
        parts = [
            float(row[name] / row["before"]) for name in ("change", "change_low", "change_high")
        ]
        return Interval(*parts, n=int(row["windows"]))

    return Measure(f"relative rise of control loss, {selection}", rise)


def _advantage(tables: Tables) -> Interval | None:
    """None where no number of random neurons hurt as much: then nothing was compared."""
    (row,) = tables["equal_damage"].to_dict("records")
    if not row["reached"]:
        return None
    return Interval(
        row["advantage"], row["advantage_low"], row["advantage_high"], n=int(row["windows"])
    )
