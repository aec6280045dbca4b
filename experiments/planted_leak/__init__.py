"""A model that was fine-tuned on customers' records leaks them. How much of the leak does zeroing a
few neurons remove, and at what cost?"""

from __future__ import annotations

from experiments.planted_leak.build import jobs
from experiments.planted_leak.checks import checks
from experiments.planted_leak.figures import FIGURES
from experiments.planted_leak.presets import PRESETS
from experiments.planted_leak.tables import summaries
from interp.experiment.experiment import Experiment

EXPERIMENT = Experiment(
    name="planted_leak",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=("drops", "scans", "equal_damage"),
    checks=checks,
    figures=FIGURES,
    summaries=summaries,
)
