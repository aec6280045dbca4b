"""The cost of `import interp` on top of `import torch`, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.timing import Row

BAR = 0.15  # CPU seconds on top of torch's own
STATEMENTS = {
    "import torch": "import torch",
    "import torch, interp": "import torch, interp",
    "import torch, interp and its whole core": (
        "import torch, interp; interp.record, interp.sweep, interp.load, interp.Zero"
    ),
}


def run(rounds: int = 5) -> list[Row]:
    """The CPU seconds of the fastest process of each statement. The bar is on the difference from
    torch alone; it is stated as a ratio to torch's own time, as all bars are."""
    costs: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(rounds):
        for name, code in STATEMENTS.items():
            costs[name].append(_cost(code))
    fastest = {name: min(seconds) for name, seconds in costs.items()}
    torch_alone = fastest["import torch"]
    bars = {"import torch, interp": (torch_alone + BAR) / torch_alone}
    return [
        Row("import", name, seconds, "CPU s", seconds / torch_alone, bar=bars.get(name))
        for name, seconds in fastest.items()
    ]


def _cost(code: str) -> float:
    """CPU seconds of a new process that runs the code."""
    program = f"{code}; import time; print(time.process_time())"
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(ended.stdout)
