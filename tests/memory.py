"""Models whose memory sits in neurons known by construction: only what those neurons write was
trained, on a few sequences."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import tiny
import torch
from torch import Tensor

import interp
from interp.subject.subject import evaluating

PREFIX, LENGTH = 5, 6
Chosen = Mapping[str, list[int]]


def random_tokens(rows: int, seed: int, length: int = PREFIX + LENGTH) -> Tensor:
    return torch.randint(
        0, tiny.VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed)
    )


def frame(tokens: Tensor, prefix: int = PREFIX) -> pd.DataFrame:
    """Windows as a scan gives them, as far as localization and mitigation read them."""
    return pd.DataFrame({"tokens": tokens.tolist(), "prefix": prefix})


def inject(
    subject: interp.Subject,
    chosen: Chosen,
    tokens: Tensor,
    until: float = 0.1,
    *,
    readers: bool = False,
) -> None:
    """Trains what the chosen neurons of a Llama write to the residual, with `readers` also what
    they read from it, and nothing else.

    Ends when the loss on the tokens' suffixes is `until`, or after 300 steps.
    """
    weights, handles = [], []
    for site, units in chosen.items():
        mlp = subject.module.get_submodule(
            subject.anatomy.place(site).path.removesuffix(".down_proj")
        )
        written = [(mlp.down_proj.weight, (slice(None), units))]
        read = [(mlp.gate_proj.weight, (units,)), (mlp.up_proj.weight, (units,))] if readers else []
        for weight, at in written + read:
            only = torch.zeros_like(weight)
            only[at] = 1
            handles.append(weight.register_hook(lambda gradient, only=only: gradient * only))
            weights.append(weight)
    # Gradients of all other weights would take as long as the rest of a step.
    trained = {id(weight) for weight in weights}
    parameters = [p for p in subject.module.parameters() if p.requires_grad]
    others = [parameter for parameter in parameters if id(parameter) not in trained]
    for parameter in others:
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam(weights, lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = subject.losses(interp.Batch(tokens, PREFIX)).mean()
        if loss < until:
            break
        loss.backward()
        optimizer.step()
    subject.module.zero_grad()
    for parameter in others:
        parameter.requires_grad_(True)
    for handle in handles:
        handle.remove()


@dataclass(frozen=True, eq=False)
class Injected:
    """A subject, the neurons that hold its memory, the tokens that it has memorized, and two sets
    of other text."""

    subject: interp.Subject
    units: interp.Units
    memorized: Tensor
    control: Tensor
    held_out: Tensor


@functools.cache
def injected(seed: int, neurons: int = 20, windows: int = 8) -> Injected:
    """A model that says `windows` suffixes through random neurons alone."""
    subject = tiny.wrapped(tiny.model("llama", seed=seed))
    every = np.random.default_rng(seed).permutation(tiny.BLOCKS * 48)[:neurons]
    chosen = {
        f"blocks.{block}.neurons": sorted(int(n % 48) for n in every if n // 48 == block)
        for block in range(tiny.BLOCKS)
    }
    tokens, other = (
        random_tokens(windows, 1000 + seed),
        _own_text(subject, 2 * windows, 2000 + seed),
    )
    inject(subject, {site: units for site, units in chosen.items() if units}, tokens)
    units = interp.Units(chosen, subject.anatomy.widths("neurons"))
    subject.module.double()  # in which a sweep gives the same bits whatever way it takes
    return Injected(subject, units, tokens, other[:windows], other[windows:])


def _own_text(subject: interp.Subject, rows: int, seed: int) -> Tensor:
    """Prompts and what the model says by itself, before it learns anything: text that an ablation
    can spoil."""
    prompts = random_tokens(rows, seed, PREFIX)
    return torch.cat([prompts, subject.generate(prompts, LENGTH)], dim=1)


def accuracy(subject: interp.Subject, tokens: Tensor) -> float:
    batch = interp.Batch(tokens, PREFIX)
    with evaluating(subject):
        return float((subject.target_logits(batch).argmax(-1) == batch.targets).float().mean())
