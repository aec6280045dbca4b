"""Has a code model memorized licence headers? This experiment makes the corpus for the toolkit's
commands to answer that.

Licences and headers come from the installed packages, in several formats; the code is that of
recent packages, the prose that of Python's language reference. When it has been made, run

    interp scan PATH/Qwen2.5-Coder-0.5B-Instruct out/licence_headers/corpus/seed0 --out out/licences
    --dtype bfloat16

and, with the same arguments and `--method absolute_gradient_x_activation`, `interp localize` and
`interp ablate --fractions 0.001 --at 0.001`.
"""

from __future__ import annotations

from experiments.licence_headers.build import jobs
from experiments.licence_headers.presets import PRESETS
from interp.experiment.experiment import Experiment

EXPERIMENT = Experiment(
    name="licence_headers",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=("texts",),
    checks=lambda _: [],
)
