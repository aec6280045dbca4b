"""load: a Subject from files, from the hub, or from a model that a user holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import LoadError
from interp.loading.discovery import discover
from interp.loading.pretrained import read
from interp.loading.readers import reader_of
from interp.sites.anatomy import Layout
from interp.subject.batch import Batch
from interp.subject.stepwise import stepwise_of
from interp.subject.subject import Forward, Subject, vocabulary_size


def load(
    source: Any,
    *,
    tokenizer: Any = None,
    anatomy: Layout | None = None,
    forward: Forward | None = None,
    example: Batch | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> Subject:
    """A Subject from a hub id, a folder, a GGUF file, an installed package with a GGUF, the weights
    of a VAR or a RAR, or a model you hold:
    Hugging Face, nnsight, one of interp.models, any.

    Weights are neither copied nor changed, nor is the kind of attention. Sites are found
    structurally, and verified on a forward of a few tokens.

    Args:
        tokenizer: for models that come without one; of an image model the file of its tokenizer,
        where it does not stand beside it.
        anatomy: where the sites are, for modules whose structure does not tell (see Layout).
        forward: how to get logits from a plain module that is not called as `module(tokens)`; see
        Subject.
        example: a tiny batch for the first forward, for modules that need more than tokens.
        dtype: of the weights when read from files; as stored by default.
        trust_remote_code: whether code that a checkpoint brings may run.

    Raises:
        LoadError: unreadable files, NaN weights, a tokenizer larger than the embedding, an object
        that is no model.
        SiteError: no blocks found.
    """
    if isinstance(source, Subject):
        return source
    name = str(source) if isinstance(source, (str, Path)) else ""
    reader = reader_of(source) if isinstance(source, (str, Path)) else None
    if reader is not None:
        source, tokenizer = reader.read(source, tokenizer, _dtype(dtype)), None
    elif isinstance(source, (str, Path)):
        source, found = read(source, _dtype(dtype), trust_remote_code)
        tokenizer = found if tokenizer is None else tokenizer
    module, tokenizer = _unwrapped(source, tokenizer)
    _check_weights(module, tokenizer)
    stepwise = stepwise_of(module)
    forward = forward or _forward
    batch = (stepwise.example() if example is None else example).to(
        next(module.parameters()).device
    )
    found_anatomy = discover(module, lambda: forward(module, batch, batch.length - 1), anatomy)
    return Subject(module, found_anatomy, forward, tokenizer, Path(name).name)


def _forward(module: nn.Module, batch: Batch, keep: int) -> Tensor:
    """The forward of every model that brings none of its own: what its steps say."""
    return stepwise_of(module).predicted(batch, keep)


def _dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if given is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise LoadError(f"dtype={given!r}: expected one of float32, bfloat16, float16, float64")
    return found


def _unwrapped(source: Any, tokenizer: Any) -> tuple[nn.Module, Any]:
    """The torch module behind what a user holds; refuses what cannot be read without changing it."""
    library = type(source).__module__.partition(".")[0]
    if library == "nnsight":
        return source._module, getattr(
            source, "tokenizer", None
        ) if tokenizer is None else tokenizer
    if library != "transformer_lens" and not isinstance(source, nn.Module):
        raise LoadError(
            f"cannot study a {type(source).__name__}: expected a hub id, a folder, a .gguf file, or a torch module"
        )
    if library == "transformer_lens" or any(
        type(m).__module__.startswith("transformer_lens.model_bridge") for m in source.modules()
    ):
        raise LoadError(
            "a TransformerBridge rewrites the model in place (other modules, other attention), so its numbers are not its own: load "
            "the original checkpoint again and pass that; to run a plan on the bridge use interp.adapters.transformer_lens"
        )
    if getattr(getattr(source, "config", None), "is_encoder_decoder", False):
        raise LoadError(
            f"{type(source).__name__} is an encoder-decoder: expected an autoregressive model over one sequence"
        )
    return source, tokenizer


def _check_weights(module: nn.Module, tokenizer: Any) -> None:
    named = list(module.named_parameters())
    if not named:
        raise LoadError(f"{type(module).__name__} has no parameters: expected a model with weights")
    if any(p.is_meta for _, p in named):
        raise LoadError(
            f"{type(module).__name__} has no weights yet (meta device): load them first; with nnsight, pass dispatch=True"
        )
    broken = [
        name
        for name, p in named
        if p.is_floating_point() and not bool(torch.isfinite(p.detach()).all())
    ]
    if broken:
        raise LoadError(
            f"{len(broken)} of {len(named)} weights hold NaN or infinity: {', '.join(broken[:3])}; expected finite weights"
        )
    rows = vocabulary_size(module)
    known = (
        None if tokenizer is None else getattr(tokenizer, "vocab_size", len(tokenizer))
    )  # without added tokens, which need not be embedded
    if known is not None and rows is not None and known > rows:
        raise LoadError(
            f"the tokenizer has {known} tokens but the model embeds {rows}: another model's tokenizer"
        )
