"""INJ, DEL and a planted look-up on small models that memorized known text, for every localization method, beside what was published.

`python -m experiments.localization_benchmarks.real` asks the same of a pretrained model and text that it knows by heart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.localization_benchmarks import figures, published
from experiments.localization_benchmarks.claims import claims, table
from experiments.localization_benchmarks.study import PARTS, measured
from interp.experiment.experiment import Results
from interp.experiment.script import Script, in_parallel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Those of the mask learners were fixed on a model of fewer copies and its `dev` sequences, and kept; `tuning` tells what others give on
# this recipe. The rest are what the time allows.
_OPTIONS: dict[str, dict[str, Any]] = {
    "slimming": {"pressure": 0.1},
    "hard_concrete": {"pressure": 0.1, "steps": 500},
    "integrated_gradients": {"steps": 3, "rule": "gauss"},
    "attribution_patching": {"steps": 5},
    "causal_tracing": {"draws": 2},
    "zero_out": {"exhaustive": True},
}
_BRIEF: dict[str, dict[str, Any]] = {
    "slimming": {"pressure": 0.1, "steps": 20},
    "hard_concrete": {"pressure": 0.1, "steps": 20},
    "integrated_gradients": {"steps": 4, "rule": "gauss"},
    "causal_tracing": {"draws": 1},
    "neuron_flipping": {"at_most": 5},
    "zero_out": {"exhaustive": True},
}
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "seeds": 2,
        "recipe": {"blocks": 2, "width": 64, "neurons": 32, "vocabulary": 512, "repeated": 2, "copies": 30, "once": 200, "texts": 200},
        "injections": [{"name": "10%", "fraction": 0.1, "training": {"lr": 0.05, "steps": 100}}],
        "sequences": 1, "references": 8, "lookups": 1, "least": 0.0,
        "fractions": [0.1], "headline": 0.1, "not_deleted": ["causal_tracing"],
        "options": _BRIEF,
    },
    "small": {
        "seeds": 3,
        "recipe": {},
        "injections": [
            {"name": "5%", "fraction": 0.05, "training": {"lr": 0.05}},
            {"name": "10%", "fraction": 0.1, "training": {"lr": 0.02}},
            {"name": "10%, norms kept", "fraction": 0.1, "training": {"lr": 0.02, "keep_norms": True}},
        ],
        "sequences": 5, "references": 16, "lookups": 2, "least": 0.9,
        "fractions": [0.01, 0.05, 0.1], "headline": 0.05, "not_deleted": ["causal_tracing"],
        "options": _OPTIONS,
    },
    "paper": {
        "seeds": 5,
        "recipe": {"model": "gpt2", "blocks": 12, "prefix": 32, "length": 48, "repeated": 20, "others": 160, "texts": 4000},
        "injections": [
            {"name": "0.1%", "fraction": 0.001, "training": {"lr": 0.05}},
            {"name": "1%", "fraction": 0.01, "training": {"lr": 0.01}},
            {"name": "1%, norms kept", "fraction": 0.01, "training": {"lr": 0.01, "keep_norms": True}},
        ],
        "sequences": 156, "references": 16, "lookups": 12, "least": 0.9,
        "fractions": [0.001, 0.005], "headline": 0.005, "not_deleted": ["causal_tracing"],
        "options": {
            "slimming": {"pressure": 0.41, "lr": 5e-3, "steps": 400, "stop": 0.2},
            "hard_concrete": {"pressure": 0.027, "steps": 4000},
            "zero_out": {"exhaustive": True},
        },
    },
}  # fmt: skip


def run(settings: Mapping[str, Any], seed: int, out: Path) -> Results:  # noqa: ARG001 - an experiment's signature
    """The study on `settings["seeds"]` models, from `seed` on, on two processors."""
    work = [(part, settings, number) for number in range(seed, seed + settings["seeds"]) for part in PARTS]
    found = in_parallel(measured, work, "models")
    names = dict.fromkeys(name for one in found for name in one)
    tables = {name: pd.concat([one[name] for one in found if name in one], ignore_index=True) for name in names}
    tables |= summaries(tables)
    tables |= beside_published(tables)
    return Results(claims(tables, settings), tables, drawn(tables, settings))


def summaries(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Means over seeds with intervals: the two tables that stand beside the published ones."""
    recalls = table(tables["injection"], ["condition", "fraction", "method", "multiple"], ["recall"])
    measures = [c for c in tables["deletion"].columns if c not in ("blocks", "method", "fraction", "target", "k", "seed")]
    return {"injection_summary": recalls, "deletion_summary": table(tables["deletion"], ["blocks", "method", "fraction"], measures)}


def beside_published(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The two published tables with ours in the same form: the model "ours", by condition, and by which blocks were dropped."""
    recalls, changes = tables["injection_summary"], tables["deletion_summary"]
    ours = recalls.assign(model="ours, " + recalls["condition"], recall=recalls["estimate"])
    dropped = changes.assign(model="ours, " + changes["blocks"], change=changes["estimate"])
    return {
        "injection_beside_published": pd.concat(
            [published.injection(), ours[["model", "fraction", "method", "multiple", "recall"]]], ignore_index=True
        ),
        "deletion_beside_published": pd.concat(
            [published.deletion(), dropped[["model", "fraction", "method", "measure", "change"]]], ignore_index=True
        ),
    }


def drawn(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """All figures, by name."""
    related: Any = tables["related"]
    ours = related[(related["method"] == "hard_concrete") & (related["fraction"] == settings["headline"]) & (related["blocks"] == "all")]
    return {
        "injection": figures.injection(tables["injection_summary"]),
        "injection_curve": figures.injection_curve(tables["injection_summary"]),
        "trade_off": figures.trade_off(tables["deletion_summary"]),
        "correlation": figures.correlation(tables["correlation"]),
        "confusion": figures.confusion(ours),
        "blocks": figures.blocks(table(tables["blocks"], ["method", "evaluated", "block"], ["fall"])),
    }


EXPERIMENT = Script("localization_benchmarks", __doc__ or "", PRESETS, run)

if __name__ == "__main__":
    EXPERIMENT.command()
