"""Every localization method by name, and options with which each is quick."""

from __future__ import annotations

from typing import Any

NAMES = (
    "absolute_gradient_x_activation", "activation", "attribution_patching", "causal_tracing", "gradient_x_activation", "hard_concrete",
    "integrated_gradients", "lowest", "neuron_flipping", "random", "slimming", "smallest", "unitmem", "z_score", "zero_out",
)  # fmt: skip
RUNNING = tuple(name for name in NAMES if name != "random")  # which alone never runs the model
QUICK: dict[str, dict[str, Any]] = {
    "causal_tracing": {"draws": 2},
    "hard_concrete": {"steps": 3},
    "integrated_gradients": {"points": 2, "positions": "all"},
    "neuron_flipping": {"at_most": 2},
    "slimming": {"steps": 3},
    "zero_out": {"exhaustive": True},
}
NEEDY = ("neuron_flipping", "z_score")  # of reference windows
UNIT_BY_UNIT = ("causal_tracing", "zero_out")  # which pay a forward for every unit
