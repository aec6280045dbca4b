"""What `import interp` costs beside `import torch`, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.timing import Row

BAR = 0.15
STATEMENTS = {
    "import torch": "import torch",
    "import torch, interp": "import torch, interp",
    "import torch, interp and its whole core": (
        "import torch, interp; interp.record, interp.sweep, interp.load, interp.Zero"
    ),
}


def run(rounds: int = 5) -> list[Row]:
    """CPU seconds of the fastest process; the bar is on the difference from torch alone, given as a
    share of torch's own time."""
    taken = [{name: _cost(code) for name, code in STATEMENTS.items()} for _ in range(rounds)]
    fastest = {name: min(t[name] for t in taken) for name in STATEMENTS}
    torch_alone = fastest["import torch"]
    return [
        Row(
            "import",
            name,
            seconds,
            "CPU s",
            seconds / torch_alone,
            bar=(torch_alone + BAR) / torch_alone if name == "import torch, interp" else None,
        )
        for name, seconds in fastest.items()
    ]


def _cost(code: str) -> float:
    program = f"{code}; import time; print(time.process_time())"
    return float(
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
    )
