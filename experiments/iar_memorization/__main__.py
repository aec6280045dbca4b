"""Memorization in image autoregressive models (arXiv 2509.00488): where VAR and RAR memorize, and whether UnitMem finds what removes it."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "seeds": 3,
        "images": "mnist",
        "sides": (1, 2, 3, 4, 6),
        "tokenizer": {
            "images": 2000,
            "sizes": {"codes": 128, "code_width": 16, "width": 16, "multipliers": (1, 1, 1), "blocks": 0, "channels": 1},
            "fit": {"steps": 300, "rows": 16, "lr": 6e-3},
        },
        "model": {"width": 64, "depth": 6, "heads": 4, "hidden": 256},
        "regimes": {
            "mixture": {
                "data": {"planted": 48, "duplicates": 12, "background": 1200, "held_out": 600},
                "rows": 32,
                "fit": {"steps": 1000, "lr": 3e-3},
            },
            "overfit": {
                "data": {"planted": 24, "duplicates": 6, "background": 72, "held_out": 600},
                "rows": 32,
                "fit": {"steps": 500, "lr": 3e-3},
            },
        },
        "prefixes": {"VAR": (0, 1, 5, 14, 30), "RAR": (0, 2, 6, 12, 18)},
        "short": {"VAR": 5, "RAR": 6},
    },
}  # fmt: skip
