"""The same work in other libraries, written as their manuals would."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

import interp
from benchmarks.setting import subject
from interp.adapters import nnsight as nnsight_adapter
from interp.adapters import transformer_lens


@functools.cache
def bridge() -> Any:
    """A TransformerBridge over a copy of the model."""
    return transformer_lens.bridge(subject())


@functools.cache
def nnsight() -> Any:
    """An nnsight model over a copy of the model: nnsight leaves controllers on the modules that it
    wraps, which would slow the other variants down."""
    import copy

    return nnsight_adapter._nnsight().NNsight(copy.deepcopy(subject().module))


def mean_abs(values: Iterable[Tensor]) -> dict[str, Tensor]:
    """The mean |activation| of each block's neurons, under the names that `interp.record` uses."""
    return {f"blocks.{i}.neurons": value.abs().mean((0, 1)) for i, value in enumerate(values)}


def record_raw_hooks(batch: interp.Batch) -> dict[str, Tensor]:
    """Plain torch: a hook on every out-projection, then a whole forward pass."""
    kept: list[Tensor] = []
    module = subject().module
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        for layer in module.model.layers
    ]
    with torch.inference_mode():
        module(batch.tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return mean_abs(kept)


def record_nnsight(batch: interp.Batch) -> dict[str, Tensor]:
    """nnsight: one trace that saves the input of every out-projection."""
    model = nnsight()
    kept = None
    with torch.inference_mode(), model.trace(batch.tokens, use_cache=False):
        kept = list().save()  # noqa: C408 - a list display has no save
        for layer in model.model.layers:
            kept.append(layer.mlp.down_proj.input)
    return mean_abs(kept)


def record_transformer_lens(batch: interp.Batch) -> dict[str, Tensor]:
    """TransformerLens: `run_with_cache` with a filter on the names of the neurons."""
    names = [f"blocks.{i}.mlp.hook_post" for i in _blocks()]
    with torch.inference_mode():
        _, cache = bridge().run_with_cache(batch.tokens, names_filter=names)
    return mean_abs(cache[name] for name in names)


def sweep_transformer_lens(batch: interp.Batch) -> list[float]:
    """TransformerLens: each block's MLP zeroed in turn, resumed there with `start_at_layer`."""
    names = [f"blocks.{i}.hook_resid_pre" for i in _blocks()]
    with torch.inference_mode():
        _, cache = bridge().run_with_cache(batch.tokens, names_filter=names)
        return [_loss_from(i, cache[name], batch) for i, name in enumerate(names)]


def _loss_from(block: int, residual: Tensor, batch: interp.Batch) -> float:
    """The loss when the model runs from a block on, with that block's MLP zeroed."""
    zero = (f"blocks.{block}.mlp.hook_post", lambda value, hook: torch.zeros_like(value))  # noqa: ARG005
    logits = bridge().run_with_hooks(residual, start_at_layer=block, fwd_hooks=[zero])
    return interp.mean_loss(logits[:, :-1], batch)


def sweep_nnsight(batch: interp.Batch) -> list[float]:
    """nnsight: each block's MLP zeroed in turn, in a trace of its own."""
    return [_traced_loss(block, batch) for block in _blocks()]


def _traced_loss(block: int, batch: interp.Batch) -> float:
    model = nnsight()
    logits = None
    with torch.inference_mode(), model.trace(batch.tokens, use_cache=False) as tracer:
        model.model.layers[block].mlp.down_proj.input[:] = 0
        logits = tracer.result.logits.save()
    return interp.mean_loss(logits[:, :-1], batch)


def _blocks() -> range:
    return range(len(subject().anatomy.blocks()))
