"""Reason to Rote (arXiv 2507.04782): is the memory of wrong labels built on reasoning? Addition and
two-hop relations, by eight claims.

What the paper says is known from its abstract, its first author's thread and others' summaries: no
number of it was found. Data, models, protocols and thresholds are chosen, or come from pilots; the
claims say which.
"""

from __future__ import annotations

from experiments.reason_to_rote.build import jobs
from experiments.reason_to_rote.checks import checks
from experiments.reason_to_rote.figures import FIGURES
from experiments.reason_to_rote.presets import PRESETS
from interp.experiment.experiment import Experiment

TABLES = (
    "activations", "components", "donors", "doses", "dynamics", "erasure", "faithfulness", "heuristics",
    "inlp", "knock_out", "lens", "outliers", "overlap", "perturbed", "positions", "probes", "shared",
)  # fmt: skip
EXPERIMENT = Experiment(
    name="reason_to_rote",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=TABLES,
    checks=checks,
    figures=FIGURES,
)
