"""Which localization methods can be trusted: INJ, DEL and a planted look-up on small models that
memorized known text.

`localization_benchmarks.real` asks it of a pretrained model and text that it has memorized.
"""

from __future__ import annotations

from experiments.localization_benchmarks.build import jobs
from experiments.localization_benchmarks.checks import checks
from experiments.localization_benchmarks.figures import FIGURES
from experiments.localization_benchmarks.presets import PRESETS
from experiments.localization_benchmarks.tables import TABLES, summaries
from interp.experiment.experiment import Experiment

EXPERIMENT = Experiment(
    name="localization_benchmarks",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=TABLES,
    checks=checks,
    figures=FIGURES,
    summaries=summaries,
)
