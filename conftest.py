"""What the examples in docstrings start from: a small model that has memorized a few texts."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.doctest import DoctestItem

sys.path.insert(0, str(Path(__file__).parent / "tests"))


def pytest_collection_finish() -> None:
    """What is imported stays, so the garbage collector need not look at it.

    It holds millions of objects. To go through them takes a second, which a test that runs out of
    memory on purpose pays each time.
    """
    gc.collect()
    gc.freeze()


@functools.cache
def example_names() -> dict[str, Any]:
    """Names that every example may use.

    `subject` was trained on windows of 16 letters of the first four of the eight `texts`, each of
    32 random letters, and continues 8 letters of them with the 8 that follow. `frame` is the scan
    of all texts, `memorized` and `control` are its windows of either kind, and `batch` the
    memorized ones as a Batch. `untrained` is `subject` before training.
    """
    import letters
    import numpy as np
    import pandas as pd
    import torch

    import interp

    texts = letters.noise(8, 32, seed=0)
    subject = letters.overfitted(texts[:4])
    frame = interp.scan(subject, texts, prefix=8, length=8)
    memorized, control = interp.split(frame)
    return {
        "interp": interp,
        "np": np,
        "pd": pd,
        "torch": torch,
        "subject": subject,
        "untrained": letters.subject(),
        "texts": texts,
        "frame": frame,
        "memorized": memorized,
        "control": control,
        "batch": interp.Batch.from_frame(memorized),
    }


@pytest.fixture(scope="session", autouse=True)
def _on_the_cpu() -> Iterator[None]:
    """What is read from files goes to the CPU, also where there is a GPU: tests compare bits."""
    from interp.loading.devices import preferring

    with preferring("cpu"):
        yield


@pytest.fixture(autouse=True)
def _names_in_examples(request: pytest.FixtureRequest) -> None:
    if isinstance(request.node, DoctestItem):
        request.getfixturevalue("doctest_namespace").update(example_names())
