"""Do neurons that a training reserves for what is repeated keep it apart, so that dropping them
removes what was memorized and nothing else?"""

from __future__ import annotations

from experiments.mem_sinks.build import TABLES, jobs
from experiments.mem_sinks.checks import checks
from experiments.mem_sinks.figures import FIGURES
from experiments.mem_sinks.presets import PRESETS
from interp.experiment.experiment import Experiment

EXPERIMENT = Experiment(
    name="mem_sinks",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=TABLES,
    checks=checks,
    figures=FIGURES,
)
