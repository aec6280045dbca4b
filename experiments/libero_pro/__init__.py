"""When the scene or the instruction changes, does a robot policy fail because it repeats what it
was trained on, what in its input and in its network makes it do so, and what removes it?"""

from __future__ import annotations

from experiments.libero_pro.build import TABLES, jobs
from experiments.libero_pro.checks import checks
from experiments.libero_pro.figures import FIGURES
from experiments.libero_pro.presets import PRESETS
from interp.experiment.experiment import Experiment

EXPERIMENT = Experiment(
    name="libero_pro",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=TABLES,
    checks=checks,
    figures=FIGURES,
)
