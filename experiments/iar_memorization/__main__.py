"""Memorization in image autoregressive models (arXiv 2509.00488): where VAR and RAR memorize, and whether UnitMem finds what removes it.

The paper's numbers are known from public notes on it; its images, models and quality measure need ImageNet, the public checkpoints and a
GPU (preset paper). `small` trains models of the same architecture on MNIST, some images of which are planted many times.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.iar_memorization.checks import claims
from experiments.iar_memorization.figures import drawn
from experiments.iar_memorization.runs import FAMILIES, joined, of_model, prepared
from interp.experiment.experiment import Results
from interp.experiment.script import Script, in_parallel

_VQ = {"code_width": 16, "width": 16, "blocks": 0, "channels": 1}
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "source": "trained", "seeds": 1,
        "images": "digits",
        "sides": (1, 2, 4),
        "tokenizer": {"images": 400, "sizes": {**_VQ, "codes": 64, "multipliers": (1, 1)}, "fit": {"steps": 100, "rows": 32, "lr": 6e-3}},
        "model": {"width": 32, "depth": 4, "heads": 2, "hidden": 128},
        "regimes": {
            "overfit": {
                "data": {"planted": 8, "duplicates": 2, "background": 24, "held_out": 32},
                "rows": 40,
                "steps": {"VAR": 160, "RAR": 160},
                "lr": 8e-3,
            },
        },
        "edited": "overfit", "duplicated": "overfit",
        "prefixes": {"VAR": (0, 1, 5), "RAR": (0, 2, 4, 8)}, "judged": {"VAR": 5, "RAR": 2},
        "bar": {"sets": ("planted", "background"), "of": 32, "least": 20, "prefix": {"VAR": 5, "RAR": 8}},
        "reference": 24, "views": (10, 1), "shares": (0.5,), "tried": {"background": 24, "held out": 32},
        "methods": {"gradient_x_activation": {}},
        "fractions": (0.1,), "at": {"VAR": 0.1, "RAR": 0.1},
        "further_random": (), "random_draws": 5, "active_draws": 1, "draws": 32, "noise_draws": 2, "shown": 6,
        "sampling": {},
    },
    "small": {
        "source": "trained", "seeds": 3,
        "images": "mnist",
        "sides": (1, 2, 3, 4, 6),
        "tokenizer": {
            "images": 2000,
            "sizes": {**_VQ, "codes": 128, "multipliers": (1, 1, 1)},
            "fit": {"steps": 300, "rows": 16, "lr": 6e-3},
        },
        "model": {"width": 64, "depth": 6, "heads": 4, "hidden": 256},
        "regimes": {
            "mixture": {
                "data": {"planted": 48, "duplicates": 12, "background": 1200, "held_out": 600},
                "rows": 32,
                "steps": {"VAR": 1000, "RAR": 800},
                "lr": 3e-3,
            },
            "overfit": {
                "data": {"planted": 24, "duplicates": 6, "background": 72, "held_out": 600},
                "rows": 32,
                "steps": {"VAR": 350, "RAR": 350},
                "lr": 3e-3,
            },
        },
        "edited": "mixture", "duplicated": "overfit",
        "prefixes": {"VAR": (0, 1, 5, 14, 30), "RAR": (0, 2, 6, 12, 18)}, "judged": {"VAR": 5, "RAR": 2},
        "bar": {"sets": ("planted",), "of": 48, "least": 40, "prefix": {"VAR": 5, "RAR": 6}},
        "reference": 400, "views": (10, 1), "shares": (0.05, 0.1, 0.2), "tried": {"background": 200, "held out": 400},
        "methods": {"z_score": {}, "gradient_x_activation": {}},
        "fractions": (0.05, 0.1, 0.2), "at": {"VAR": 0.1, "RAR": 0.1},
        "further_random": (0.4,), "random_draws": 5, "active_draws": 2, "draws": 400, "noise_draws": 3,
        "shown": 8, "sampling": {},
    },
    # files as their authors publish them; each class of ImageNet in a folder of its own, numbered or named so that they sort as the labels
    "paper": {
        "source": "public", "seeds": 1,
        "places": {
            "models": {"VAR": "models/var_d30.pth", "RAR": "models/rar_xxl.bin"},
            "tokenizers": {"VAR": "models/vae_ch160v4096z32.pth", "RAR": "models/maskgit-vqgan-imagenet-f16-256.bin"},
            "train": "data/imagenet/train", "validation": "data/imagenet/validation",
            "copies": "models/sscd_disc_mixup.torchscript.pt", "features": "models/inception_v3.torchscript.pt",
        },
        "dtype": "bfloat16", "candidates": 5, "per_class": 8, "last": {"VAR": 256, "RAR": 99},
        "regimes": {"public": {}}, "edited": "public", "duplicated": None,
        "prefixes": {"VAR": (0, 1, 5, 14, 30), "RAR": (0, 1, 5, 14, 30)}, "judged": {"VAR": 30, "RAR": 30},
        "bar": None,
        "reference": 8000, "views": (10, 1), "shares": (0.05, 0.1, 0.2, 0.5),
        "tried": {"background": 5000, "held out": 5000},
        "methods": {"z_score": {}, "gradient_x_activation": {}},
        "fractions": (0.01, 0.05, 0.1), "at": {"VAR": 0.1, "RAR": 0.05},
        "further_random": (0.2,), "random_draws": 5, "active_draws": 2, "draws": 50_000, "noise_draws": 3,
        "shown": 8,
        "sampling": {
            "VAR": {"guidance": {"scale": 1.5}, "top_k": 900, "top_p": 0.96, "size": 64},
            "RAR": {"guidance": {"scale": 8.0, "power": 1.2}, "temperature": 1.02, "size": 64},
        },
    },
}  # fmt: skip


def run(settings: Mapping[str, Any], seed: int, out: Path) -> Results:
    """The study on `settings["seeds"]` seeds from `seed` on, on two processors; models stay in `out`/models and are not trained twice."""
    seeds, models = range(seed, seed + settings["seeds"]), out / "models"
    prepared(settings, models)
    # the longest first, so that the two processors end together
    order = sorted(settings["regimes"], key=lambda regime: regime != settings["edited"])
    work = [(family, regime, settings, number, models) for regime in order for family in FAMILIES for number in seeds]
    tables = joined(in_parallel(of_model, work, "models"))
    return Results(claims(tables, seeds, settings), tables, drawn(tables))


EXPERIMENT = Script("iar_memorization", __doc__ or "", PRESETS, run)

if __name__ == "__main__":
    EXPERIMENT.command()
