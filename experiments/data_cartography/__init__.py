"""Does the way in which the loss of an example moves during training show what a model memorizes,
and does training again without these examples, or with less weight on them, prevent it?"""

from __future__ import annotations

from experiments.data_cartography.build import TABLES, jobs
from experiments.data_cartography.checks import checks
from experiments.data_cartography.figures import FIGURES
from experiments.data_cartography.presets import PRESETS
from interp.experiment.experiment import Experiment

EXPERIMENT = Experiment(
    name="data_cartography",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=TABLES,
    checks=checks,
    figures=FIGURES,
)
