"""Can secrets in code be erased from a model by unlearning, and what does that cost?"""

from __future__ import annotations

from experiments.code_eraser.build import TABLES, jobs
from experiments.code_eraser.checks import checks
from experiments.code_eraser.figures import FIGURES
from experiments.code_eraser.presets import PRESETS
from interp.experiment.experiment import Experiment

EXPERIMENT = Experiment(
    name="code_eraser",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=TABLES,
    checks=checks,
    figures=FIGURES,
)
