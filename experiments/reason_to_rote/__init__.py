"""Reason to Rote (arXiv 2507.04782): is the memorization of wrong labels built on reasoning? Eight
claims about small transformers that learn four-digit addition and two-hop relations.

What the paper says is known from its abstract, its first author's thread and summaries by others:
no number of it was found. Data, models, protocols and thresholds are chosen here, or come from
pilots; the claims say which.
"""

from __future__ import annotations

from experiments.reason_to_rote.build import jobs
from experiments.reason_to_rote.checks import checks
from experiments.reason_to_rote.figures import FIGURES
from experiments.reason_to_rote.presets import PRESETS
from interp.experiment.experiment import Experiment

EXPERIMENT = Experiment(
    name="reason_to_rote",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=(
        "activations",
        "components",
        "donors",
        "doses",
        "dynamics",
        "erasure",
        "faithfulness",
        "heuristics",
        "inlp",
        "knock_out",
        "lens",
        "outliers",
        "overlap",
        "perturbed",
        "positions",
        "probes",
        "shared",
    ),
    checks=checks,
    figures=FIGURES,
)
