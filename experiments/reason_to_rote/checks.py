"""What is checked: claims C1 to C8 of the paper, and the controls K.

What the paper claims was found in its abstract or in summaries by others; no number of it was. The
thresholds are from pilots: they were fixed before the seeds that are reported.
"""

from __future__ import annotations

from experiments.reason_to_rote.checks_of_memory import of_memory
from experiments.reason_to_rote.checks_of_reasoning import of_reasoning
from experiments.reason_to_rote.neurons import TOP
from experiments.reason_to_rote.presets import Preset
from experiments.reason_to_rote.study import reasoning
from experiments.reason_to_rote.tasks import task
from interp.experiment.checks import Check


def checks(preset: Preset) -> list[Check]:
    """All checks of a preset.

    They name the digit of FDA that is read out and where, which are the same on every seed, the
    last block, and numbers of neurons.
    """
    model = preset.FDA.model
    of = reasoning(task("FDA", preset.FDA.data, 0), 0)
    about = {
        "variable": of.variable,
        "position": of.position,
        "blocks": model["blocks"],
        "neurons": 4 * model["width"],
        "top": TOP,
    }
    return [*of_reasoning(about), *of_memory(about)]
