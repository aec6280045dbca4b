"""Memorization in image autoregressive models (arXiv 2509.00488): where VAR and RAR memorize, and
whether UnitMem finds the units whose removal removes it.

The paper's numbers are known from public notes on it. Its images, models and quality measure need
ImageNet, the public checkpoints and a GPU (preset paper). The preset small trains models of the
same architecture on MNIST, with some images planted many times.
"""

from __future__ import annotations

from experiments.iar_memorization.checks import checks
from experiments.iar_memorization.figures import FIGURES
from experiments.iar_memorization.presets import PRESETS
from experiments.iar_memorization.tables import jobs, preparation
from interp.experiment.experiment import Experiment

TABLES = (
    "extraction",
    "correlation",
    "map",
    "blocks",
    "votes",
    "members",
    "subsets",
    "edits",
    "edited images",
    "equal cost",
    "noise",
    "pictures",
    "training",
)
EXPERIMENT = Experiment(
    name="iar_memorization",
    question=__doc__,
    presets=PRESETS,
    prepare=preparation,
    jobs=jobs,
    tables=TABLES,
    checks=checks,
    figures=FIGURES,
)
