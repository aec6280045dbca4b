"""What test_sharding runs in each of several processes that hold shards of one model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import peft
import tiny
import torch
import torch.distributed
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import interp
from interp.adapters import transformer_lens, weights
from interp.mitigation.removal.stress import duplicate
from interp.training.fit import Checkpoints, Evaluation, Step
from interp.training.state import load_weights, save_weights
from interp.training.unit_parameters import unit_parameters

MODELS = ("llama", "gpt2", "mixtral")  # gpt2 has tied weights and dropout
STEPS = {"gpt2": 4, "mixtral": 2}  # trained, and how long


class Seldom(tiny.Language):
    """A part that is sharded by itself, and that runs on no text that a model is loaded with."""

    def __init__(self) -> None:
        super().__init__(*(tiny.Block(32, tiny.HEADS, causal=True) for _ in range(2)))
        self.expert = nn.Linear(32, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.trunk:
            x = block(x)
        chosen = tokens[:, 0] == tiny.VOCABULARY - 1
        if chosen.any():
            x = x + chosen[:, None, None] * self.expert(x)
        return self.head(self.norm(x))


def seldom() -> Any:
    return tiny.seeded(Seldom, torch.float32)


def adapted() -> Any:
    """LoRA: its projections are seen by running them alone."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return peft.get_peft_model(tiny.model("llama"), config)


def blocks(module: Any) -> Any:
    return module.model.layers if hasattr(module, "model") else module.transformer.h


# The biases of GPT-2's keys change no logit: in single precision AdamW would take steps by the
# rounding of their gradients.
PRECISE = torch.float64


def sharded(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """A model of which each block is sharded, and what is around them."""
    module: Any = tiny.model(name, dtype)
    for block in blocks(module):
        fully_shard(block, **options)
    return fully_shard(module, **options)


def numbers(subject: interp.Subject) -> dict[str, Tensor]:
    """What the toolkit answers about a model."""
    batch = tiny.batch("", rows=3, length=12, prompt=4)
    heads = interp.Zero(subject.units("blocks.1.heads", [1]))
    block = interp.Zero(subject.units("blocks.1.resid_post"))
    found: dict[str, Tensor] = {}
    # First without gradients: what is gathered then is gathered into in all later forwards.
    for site, value in interp.record(subject, batch, ["heads", "resid_post"]).items():
        found[f"recorded {site}"] = torch.as_tensor(value)
    found["clean"] = subject.losses(batch).detach()
    for number, plan in enumerate((heads, block, [block, heads])):
        with subject.intervened(plan):
            found[f"ablated {number}"] = subject.losses(batch).detach()
    found["sweep"] = torch.tensor(interp.sweep(subject, batch, [heads, block]))
    for method in ("gradient_x_activation", "zero_out", "activation"):
        scores = interp.localize(subject, batch, method=method, site="heads")
        for site, values in scores.values.items():
            found[f"{method} {site}"] = torch.as_tensor(values)
    found["generated"] = subject.generate(batch.tokens[:, :4], 4)
    frame = interp.scan(subject, batch.tokens.tolist(), prefix=4, length=4)
    found["scan"] = torch.tensor(frame["log_p"].to_numpy())
    return {name: value.contiguous() for name, value in found.items()}


def of_a_part(module: nn.Module) -> dict[str, Tensor]:
    """Numbers of `Seldom` on texts that its part reads, which it first does without gradients."""
    subject = interp.load(module)
    batch = tiny.batch("", rows=2, length=8, prompt=2)
    batch.tokens[:, 0] = tiny.VOCABULARY - 1
    recorded = interp.record(subject, batch, ["resid_post"])
    scores = interp.localize(subject, batch, method="gradient_x_activation", site="resid_post")
    found = {f"recorded {site}": torch.as_tensor(value) for site, value in recorded.items()}
    return found | {str(site): torch.as_tensor(value) for site, value in scores.values.items()}


def stream() -> Iterator[interp.Batch]:
    for seed in count():
        yield tiny.batch("", rows=3, length=8, seed=seed, prompt=2, padded=True)


def trained(
    module: nn.Module, steps: int, folder: Path, callback: Any = None
) -> tuple[interp.Subject, Any]:
    """A model after training with all that shards could get wrong, and its history."""

    def measure(model: interp.Subject) -> dict[str, float]:
        return {"held out": float(model.losses(tiny.batch("", seed=99)).mean())}

    subject = interp.load(module)
    torch.manual_seed(7 + int(os.environ.get("RANK", "0")))
    kept = Checkpoints(folder, 2, {"first": lambda _: True})
    history = interp.fit(
        subject, stream(), steps, lr=1e-2, weight_decay=0.1, clip=0.5, warmup=2, accumulate=2,
        callback=callback, evaluation=Evaluation(measure, 2), checkpoints=kept,
    )  # fmt: skip
    return subject, history


def main(folder: Path) -> None:
    """Writes what this process found into `folder`."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    facts: dict[str, Any] = {}
    for name in MODELS:
        subject = interp.load(sharded(name))
        before = subject.fingerprint
        save_file(numbers(subject), folder / f"{name}.{rank}.safetensors")
        save_weights(folder / f"{name}.weights.safetensors", subject.module)
        facts[name] = {
            "sites": [str(site) for site in subject.sites],
            "cached": subject.decoding.cached,
            "fingerprints": [before, subject.fingerprint],
        }
    module = seldom()
    fully_shard(module.expert)
    save_file(of_a_part(fully_shard(module)), folder / f"seldom.{rank}.safetensors")
    module = adapted()
    for block in module.base_model.model.model.layers:
        fully_shard(block)
    subject = interp.load(fully_shard(module))
    facts["adapted"] = [[str(site) for site in subject.sites], subject.fingerprint]
    training(folder, rank, facts)
    facts["refused"] = {name: said(attempt) for name, attempt in refused(folder).items()}
    (folder / f"facts.{rank}.json").write_text(json.dumps(facts))
    torch.distributed.destroy_process_group()


def training(folder: Path, rank: int, facts: dict[str, Any]) -> None:
    """Trains once without a break, and once with one after the third step."""

    def stops(step: Step) -> None:
        if step.number == 2:
            raise KeyboardInterrupt

    for name, steps in STEPS.items():
        subject, history = trained(sharded(name, PRECISE), steps, folder / f"{name} whole")
        facts[name]["history"] = history.to_dict("list")
        save_weights(folder / f"{name}.trained.safetensors", subject.module)
        facts[name]["trained"] = subject.fingerprint
        again = sharded(name, PRECISE)
        load_weights(folder / f"{name}.trained.safetensors", again)
        facts[name]["read back"] = interp.load(again).fingerprint
    try:
        trained(sharded("gpt2", PRECISE), STEPS["gpt2"], folder / "broken", stops)
    except KeyboardInterrupt:
        facts["resumed"] = trained(sharded("gpt2", PRECISE), STEPS["gpt2"], folder / "broken")[
            0
        ].fingerprint


def refused(folder: Path) -> dict[str, Callable[[], Any]]:
    subject = interp.load(sharded("llama"))
    batch = tiny.batch("", prompt=4)
    subject.losses(batch)  # leaves the weights around the blocks whole
    units = subject.units("blocks.1.neurons", [3])
    pair = init_device_mesh("cpu", (1, 2), mesh_dim_names=("one", "other"))
    return {
        "out_weight": lambda: subject.anatomy.out_weight(subject.module, "blocks.1.neurons"),
        "weights": lambda: weights.applied(subject, interp.Zero(units)).__enter__(),
        "unit_parameters": lambda: unit_parameters(subject, units, batch),
        "duplicate": lambda: duplicate(subject),
        "bridge": lambda: transformer_lens.bridge(subject),
        "precision": lambda: interp.load(
            sharded("llama", mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
        ),
        "offloaded": lambda: interp.load(
            sharded("llama", offload_policy=CPUOffloadPolicy(pin_memory=False))
        ),
        "two axes": lambda: interp.load(sharded("llama", mesh=pair)),
        "tensor parallel": lambda: interp.load(parallel()),
        "scans apart": lambda: scanned_apart(subject, folder),
        "state": lambda: trained(tiny.model("gpt2", PRECISE), STEPS["gpt2"], folder / "gpt2 whole"),
    }


def scanned_apart(subject: interp.Subject, folder: Path) -> None:
    """Goes on with a scan that one of the processes has lost."""
    rank = torch.distributed.get_rank()
    own = folder / f"scan {rank}"
    for _ in range(2):
        frame = interp.scan(subject, [[3, 1, 4, 1, 5, 9]] * 2, prefix=2, length=2, folder=own)
        assert len(frame) == 4
    if rank == 1:
        shutil.rmtree(own)
    interp.scan(subject, [[3, 1, 4, 1, 5, 9]] * 2, prefix=2, length=2, folder=own)


def parallel() -> nn.Module:
    module: Any = tiny.model("llama")
    mesh = init_device_mesh("cpu", (2,))
    for layer in module.model.layers:
        plan = {"up_proj": ColwiseParallel(), "gate_proj": ColwiseParallel()}
        parallelize_module(layer.mlp, mesh, plan | {"down_proj": RowwiseParallel()})
    return module


def said(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except (ValueError, interp.SiteError) as error:
        return str(error)
    return "nothing"
