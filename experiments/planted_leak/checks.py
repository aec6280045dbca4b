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

_DROP = "figures/drop.png"


def checks(preset: Preset) -> list[Check]:
    """All checks, at the fraction of neurons that the recipe's verdict is about."""
    fraction = preset.recipe.fraction
    neurons = f"{fraction:.1%} of the neurons"
    selection = _fall("selection", fraction)
    random = _fall("random", fraction)
    return [
        Check(
            id="P1",
            measure=mean("scans", "accuracy", source="record"),
            threshold=at_least(0.9),
            statement="after fine-tuning, the suffix accuracy on planted secrets is {threshold}",
            source="measured",
            controls={"never-planted twins": mean("scans", "accuracy", source="twin")},
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
            measure=mean("scans", "exact", source="twin"),
            threshold=at_most(0),
            statement="the fraction of never-planted twins that are extracted is {threshold}",
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
                "the suffix accuracy on planted secrets with so many random neurons zeroed that "
                "held-out text suffers equally, minus that with the selected neurons zeroed, is "
                "{threshold}"
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
    """How much the suffix accuracy falls when a selection of neurons is zeroed."""
    where = {"selection": selection, "fraction": fraction, "data": data, "measure": "accuracy"}
    change = mean("drops", "change", **where)

    def fall(tables: Tables) -> float:
        return -float(change.of(tables))  # pyright: ignore[reportArgumentType]

    return Measure(f"fall of accuracy, {selection}", fall)


def _relative_rise(selection: str, fraction: float) -> Measure:
    """The rise of the loss on control prose when a selection of neurons is zeroed, divided by the
    loss before."""
    where = {"selection": selection, "fraction": fraction, "data": "control", "measure": "loss"}

    def rise(tables: Tables) -> float:
        row = rows(tables["drops"], where).iloc[0]
        return float(row["change"] / row["before"])

    return Measure(f"relative rise of control loss, {selection}", rise)


def _reached(tables: Tables) -> bool:
    """Whether some number of random neurons hurt held-out text as much as the selection, on every
    row."""
    return bool(tables["equal_damage"]["reached"].all())
