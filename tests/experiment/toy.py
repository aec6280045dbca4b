"""A toy experiment as source, for a folder `experiments/toy` that a test writes: a job takes a
moment and says when it runs."""

import pandas as pd
import torch

from interp.loading.devices import choose_device

TOY = '''"""How large are small numbers?"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from interp.experiment.checks import Check, at_least, at_most, mean
from interp.experiment.experiment import Experiment
from interp.experiment.jobs import Folder, job


@dataclass(frozen=True)
class Preset:
    seeds: int = 3
    shift: float = 1.0
    pause: float = 0.0


PRESETS = {"smoke": Preset(seeds=1), "small": Preset(), "slow": Preset(pause=0.2)}


def draw(name, shift, pause, seed, log):
    time.sleep(pause)
    log.mkdir(parents=True, exist_ok=True)
    with (log / "ran.txt").open("a") as file:
        file.write(f"{name}{seed}\\n")
    values = np.random.default_rng(seed).normal(shift, 0.1, 20)
    return {"numbers": pd.DataFrame({"name": name, "value": values})}


def jobs(preset, seed):
    return [job(draw, name, preset.shift * sign, preset.pause, seed, Folder("log")) for name, sign in (("up", 1), ("down", -1))]


def checks(preset):
    up = mean("numbers", "value", name="up")
    down = mean("numbers", "value", name="down")
    table = "tables/numbers.parquet"
    return [
        Check(id="T1", measure=up, threshold=at_least(0.5), evidence=table, controls={"down": down}),
        Check(id="T2", measure=down, threshold=at_least(0.5), evidence=table, opposite=at_most(0)),
        Check(id="T3", measure=up, threshold=at_least(1.0), evidence=table, over="every", statement="ups are {threshold}"),
    ]


EXPERIMENT = Experiment("toy", __doc__, PRESETS, jobs, ("numbers",), checks)
'''


def write_toy(root):
    """Writes the toy experiment into `root`/experiments and returns `root`."""
    folder = root / "experiments" / "toy"
    folder.mkdir(parents=True)
    (root / "experiments" / "__init__.py").write_text("")
    (folder / "__init__.py").write_text(TOY)
    (folder / "__main__.py").write_text(
        "from experiments.toy import EXPERIMENT\n\nEXPERIMENT.command()\n"
    )
    return root


def where() -> dict[str, pd.DataFrame]:
    return {"where": pd.DataFrame({"device": [str(choose_device())]})}


def threads() -> dict[str, pd.DataFrame]:
    """A job that tells with how many threads torch would compute."""
    return {"threads": pd.DataFrame({"threads": [torch.get_num_threads()]})}
