"""Which examples, and which tokens of them, was a model trained on? Membership by information gain
(InfoRMIA), compared with RMIA, LiRA and scores that need no reference model."""

from __future__ import annotations

from experiments.informia.build import TABLES, jobs
from experiments.informia.checks import checks
from experiments.informia.figures import FIGURES
from experiments.informia.presets import PRESETS
from interp.experiment.experiment import Experiment

EXPERIMENT = Experiment(
    name="informia",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=TABLES,
    checks=checks,
    figures=FIGURES,
)
