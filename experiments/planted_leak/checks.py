"""P1 to P6: what the demo's summary says of one model, checked on every seed. Thresholds were fixed
on other seeds."""

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

_DROP = "figures/drop.png"


def checks(preset: Preset) -> list[Check]:
    """All checks, at the fraction that the recipe's verdict is about."""
    fraction = preset.recipe.fraction
    neurons = f"{fraction:.1%} of the neurons"
    selection = _fall("selection", fraction)
    random = _fall("random", fraction)
    return [
        Check(
            id="P1",
            measure=mean("scans", "accuracy", source="record"),
            threshold=at_least(0.9),
            statement="suffix accuracy on planted secrets is {threshold} after fine-tuning",
            source="measured",
            controls={"never-planted twins": mean("scans", "accuracy", source="twin")},
            evidence="tables/scans.parquet",
        ),
        Check(
            id="P2",
            measure=selection,
            threshold=at_least(0.5),
            opposite=below(0),
            statement=f"zeroing {neurons}, scored on these records, lowers it by {{threshold}}",
            source="measured",
            controls={
                "random neurons matched by block": random,
                "lowest": _fall("lowest", fraction),
                "never-planted twins": _fall("selection", fraction, "twin"),
            },
            evidence=_DROP,
        ),
        Check(
            id="P3",
            measure=random,
            threshold=at_most(0.05),
            statement=(
                "zeroing the same number of random neurons, matched by block, lowers it by "
                "{threshold}"
            ),
            source="measured",
            controls={"the selection": selection},
            evidence=_DROP,
        ),
        Check(
            id="P4",
            measure=_relative_rise("selection", fraction),
            threshold=at_most(0.05),
            statement=(
                "the share by which the selection raises the loss on prose that was not trained on "
                "is {threshold}"
            ),
            source="measured",
            controls={name: _relative_rise(name, fraction) for name in ("random", "lowest")},
            evidence=_DROP,
        ),
        Check(
            id="P5",
            measure=mean("scans", "exact", source="twin"),
            threshold=at_most(0),
            statement="the share of never-planted twins that is extracted is {threshold}",
            source="measured",
            controls={"planted records extracted": mean("scans", "exact", source="record")},
            evidence="tables/scans.parquet",
        ),
        Check(
            id="P6",
            measure=mean("equal_damage", "advantage"),
            threshold=above(0),
            opposite=below(0),
            requires=_reached,
            statement=(
                "random neurons that hurt held-out text as much leave more of the secrets: "
                "difference {threshold}"
            ),
            source="measured",
            controls={
                "random neurons at equal damage": mean("equal_damage", "k"),
                "accuracy under them": mean("equal_damage", "accuracy"),
                "share of seeds on which they hurt as much": mean("equal_damage", "reached"),
            },
            evidence="tables/equal_damage.parquet",
        ),
    ]


def _fall(selection: str, fraction: float, data: str = "memorized") -> Measure:
    """By how much suffix accuracy falls."""
    change = mean(
        "drops", "change", selection=selection, fraction=fraction, data=data, measure="accuracy"
    )
    return Measure(f"fall of accuracy, {selection}", lambda tables: -float(change.of(tables)))  # pyright: ignore[reportArgumentType]


def _relative_rise(selection: str, fraction: float) -> Measure:
    """By which share of itself the loss on control prose rises."""
    where = {"selection": selection, "fraction": fraction, "data": "control", "measure": "loss"}

    def rise(tables: Tables) -> float:
        row = rows(tables["drops"], where).iloc[0]
        return float(row["change"] / row["before"])

    return Measure(f"relative rise of control loss, {selection}", rise)


def _reached(tables: Tables) -> bool:
    """Whether any number of random neurons hurt as much as the selection."""
    return bool(tables["equal_damage"]["reached"].all())
