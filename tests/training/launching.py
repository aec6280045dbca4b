"""Starts a function in several processes that know of one another, as torchrun does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accelerate.state import AcceleratorState
from forks import fork
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def launch(main: Callable[[Path], None], out: Path, count: int) -> None:
    """Calls `main(out)` in each of `count` processes, and waits until they end.

    torchrun's launcher starts them as forks: processes of their own would spend half a minute on
    imports.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        max_restarts=0,
    )

    def start() -> None:
        # Accelerate remembers that this process, which other tests have trained in, is alone.
        AcceleratorState._reset_state(reset_partial_state=True)
        elastic_launch(config, main)(out)

    code, _, err = fork(start, out / "log").end()
    assert code == 0, err[-4000:]
