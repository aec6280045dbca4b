"""What test_processes runs in each of several processes that torchrun's launcher starts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor, nn

import interp
from interp.training.fit import Checkpoints, Evaluation, Step
from interp.training.state import save_weights

MODELS = ("gpt2", "routed")
STEPS, ROWS, LENGTH = 6, 3, 8


class Routed(tiny.Language):
    """Some rows pass through an expert, which in most batches are those of one process or of none;
    one expert is never used."""

    def __init__(self) -> None:
        super().__init__(*(tiny.Block(32, tiny.HEADS, causal=True) for _ in range(2)))
        self.expert, self.unused = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.trunk:
            x = block(x)
        chosen = tokens[:, 0] % 3 == 0
        if chosen.any():
            x = x + chosen[:, None, None] * self.expert(x)
        return self.head(self.norm(x))


def stream() -> Iterator[interp.Batch]:
    """Rows of different lengths, of which few tokens are scored in some and many in others."""
    for seed in count():
        batch = tiny.batch("", rows=ROWS, length=LENGTH, seed=seed, prompt=2, padded=True)
        scored = torch.rand(
            batch.tokens.shape, generator=torch.Generator().manual_seed(seed)
        ) < torch.tensor([[0.2], [0.9], [0.9]])
        scored[:, 2] = True
        yield replace(batch, scored=scored)


def subject(name: str, *, dropout: bool = False) -> interp.Subject:
    module = (
        tiny.seeded(Routed, torch.float64) if name == "routed" else tiny.model(name, torch.float64)
    )
    for part in module.modules():
        if isinstance(part, nn.Dropout) and not dropout:
            part.p = 0.0
    return tiny.wrapped(module)


def trained(
    name: str, folder: Path, callback: Any = None, *, dropout: bool = False
) -> tuple[interp.Subject, Any, int]:
    """A model after training with all that several processes could get wrong, its history, and how
    often this process measured it."""
    measured: list[int] = []

    def measure(model: interp.Subject) -> dict[str, float]:
        measured.append(1)
        return {"norm": sum(p.square().sum().item() for p in model.module.parameters())}

    model = subject(name, dropout=dropout)
    history = interp.fit(
        model, stream(), STEPS, lr=1e-2, weight_decay=0.1, warmup=2, decay=3, clip=0.5, callback=callback,
        evaluation=Evaluation(measure, 2), checkpoints=Checkpoints(folder, 2, {"first": lambda _: True}),
    )  # fmt: skip
    return model, history, len(measured)


def main(folder: Path) -> None:
    """Writes what this process ended with into `folder`."""
    rank = int(os.environ["RANK"])
    for name in MODELS:
        seen: list[Any] = []
        model, history, measured = trained(
            name, folder / name, lambda step, seen=seen: seen.append(step.batch.tokens.tolist())
        )
        facts = {"seen": seen, "measured": measured, "history": history.to_dict("list")}
        (folder / f"{name}.{rank}.json").write_text(json.dumps(facts))
        save_weights(folder / f"{name}.{rank}.safetensors", model.module)
    interrupt(folder, rank)
    save_weights(folder / f"accumulated.{rank}.safetensors", accumulated().module)
    refused: dict[str, str] = {}
    for name, attempt in {
        "few rows": lambda: interp.fit(
            subject("gpt2"), (batch.rows(slice(1)) for batch in islice(stream(), 2)), 2
        ),
        "state of one": lambda: trained("gpt2", folder / "of one"),
    }.items():
        try:
            attempt()
        except ValueError as error:
            refused[name] = str(error)
    (folder / f"refused.{rank}.json").write_text(json.dumps(refused))


def accumulated(*, joined: bool = False) -> interp.Subject:
    """A model after steps of two batches each: accumulated, or joined into one."""
    model = subject("gpt2")
    batches = stream()
    settings: dict[str, Any] = {"steps": 3, "lr": 1e-2, "weight_decay": 0.1, "clip": 0.5}
    if joined:
        pairs = (interp.Batch.join(list(islice(batches, 2))) for _ in range(3))
        interp.fit(model, pairs, **settings)
    else:
        interp.fit(model, batches, accumulate=2, **settings)
    return model


def interrupt(folder: Path, rank: int) -> None:
    """With dropout, of which each process draws its own: once without a break, and once with one
    after the fourth step."""

    def stops(step: Step) -> None:
        if step.number == 4:
            raise KeyboardInterrupt

    for name, breaks in (("whole", [None]), ("broken", [stops, None])):
        torch.manual_seed(rank)
        for callback in breaks:
            try:
                model, *_ = trained("gpt2", folder / name, callback, dropout=True)
                save_weights(folder / f"{name}.{rank}.safetensors", model.module)
            except KeyboardInterrupt:
                torch.manual_seed(99)
