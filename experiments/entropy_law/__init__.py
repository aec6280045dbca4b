"""How hard is a text to memorize? The entropy of what a model reproduces, against how well it does,
with its controls; and whether that tells what a model was trained on."""

from __future__ import annotations

from experiments.entropy_law.build import TABLES, jobs
from experiments.entropy_law.checks import checks
from experiments.entropy_law.figures import FIGURES
from experiments.entropy_law.presets import PRESETS
from interp.experiment.experiment import Experiment

EXPERIMENT = Experiment(
    name="entropy_law",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=TABLES,
    checks=checks,
    figures=FIGURES,
)
