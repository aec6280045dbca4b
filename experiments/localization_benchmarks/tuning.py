"""What other options of the mask learners give: recall in INJ on five sequences and a model (seed 100) that no result uses.

python -m experiments.localization_benchmarks.tuning --out experiments/localization_benchmarks/results
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import typer

import interp
from experiments.localization_benchmarks.memorizer import Recipe, memorizer
from interp.files import replaced
from interp.localization.benchmarks.known_answers import Choice, Training, injection

SEED, SEQUENCES, FRACTION, TRAINING = 100, 5, 0.05, Training(lr=0.05)
GRID = {f"slimming, pressure {p}": Choice("slimming", {"pressure": p}) for p in (0.05, 0.1, 0.2, 0.4)} | {
    f"hard_concrete, pressure {p}": Choice("hard_concrete", {"pressure": p, "steps": 500}) for p in (0.03, 0.1, 0.3)
}


def main(out: Path = Path("out/localization_benchmarks")) -> None:
    """Measure the grid and write tuning.csv: mean recall by method and multiple of the injected share.

    Example: `python -m experiments.localization_benchmarks.tuning --out out/localization_benchmarks`
    """
    known = memorizer(Recipe(), SEED)
    windows = interp.Batch(known.dev.tokens[:SEQUENCES])
    found = injection(known.subject, windows, GRID, FRACTION, seed=SEED, training=TRAINING)
    table: pd.DataFrame = found.pivot_table(index="method", columns="multiple", values="recall", sort=False)
    with replaced(out / "tuning.csv") as temporary:
        table.round(3).to_csv(temporary)
    typer.echo(table.round(2).to_string())


if __name__ == "__main__":
    typer.run(main)
