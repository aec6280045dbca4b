"""load: makes a Subject from files, from the hub, or from a model that is already in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import LoadError
from interp.loading.device_maps import Memory, Places, choose_device_map, refuse_device_map
from interp.loading.devices import Device, check_stays, choose_device
from interp.loading.discovery import discover
from interp.loading.prediction_laws import Trial, verify_prediction
from interp.loading.pretrained import read
from interp.loading.readers import reader_of
from interp.sites.anatomy import Layout
from interp.sites.sharding import check_sharding
from interp.subject.batch import Batch
from interp.subject.offloading import device_of, stored_weights
from interp.subject.stepwise import stepwise_of
from interp.subject.subject import Forward, Subject, vocabulary_size

_HELD = (
    "is in memory already, and what you hold is not divided; give the folder or hub id that it "
    "comes from, or divide it yourself first, with accelerate.dispatch_model"
)
_WHOLE = "is read by the toolkit itself, which puts a network on one device; pass device="


def load(
    source: Any,
    *,
    tokenizer: Any = None,
    anatomy: Layout | None = None,
    forward: Forward | None = None,
    example: Batch | None = None,
    dtype: torch.dtype | str | None = None,
    device: Device | None = None,
    device_map: Places | None = None,
    max_memory: Memory | None = None,
    offload_folder: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Subject:
    """Loads a model and finds its sites.

    The weights are neither copied nor changed, nor is the kind of attention. Sites are found by
    structure, and verified on a forward of a few tokens. So is that the model is causal, that its
    logits are finite, and that its cache agrees with whole forwards; where that does not, it is
    decoded by whole forwards (see `subject.decoding`), with a warning.

    Args:
        source: a hub id, a folder, a GGUF file, an installed package that carries a GGUF, the
            weights of a VAR or RAR, or a model in memory: a Hugging Face or nnsight model, one of
            `interp.models`, or any other torch module. Of a compiled model, the model itself.
        tokenizer: a tokenizer for a model that comes without one; for an image model the file of
            its tokenizer, when it is not in the model's folder.
        anatomy: where the sites are, for a module whose structure does not show it (see `Layout`).
        forward: how to get logits from a module that is not called as `module(tokens)` (see
            `Subject`).
        example: a tiny batch for the first forward, for modules that need more than tokens.
        dtype: precision of the weights when they are read from files; by default as stored, and
            float32 for a GGUF. A model in memory is not converted.
        device: where weights that are read from files are put, such as `"cpu"` or `"cuda:1"`; by
            default on the best device that is there. A model in memory stays where it is.
        device_map: for a model that is larger than a device: `"auto"`, by which accelerate fills
            the accelerators, then the memory of the CPU, then the disk; another of its strategies;
            or where each part goes, such as `{"": 0, "model.layers.7": "disk", "lm_head": "cpu"}`,
            in which `""` is all that is not named. On the CPU, results are those of the whole
            model bit for bit; between kinds of device they differ by rounding. Weights that wait
            in memory or on disk cannot be read or written by hand, nor trained. For Hugging Face
            folders and hub ids.
        max_memory: how much a device may hold under such a strategy, such as `{0: "20GiB", "cpu":
            "60GiB"}`; devices that are not named are not used. Without `device_map`, of `"auto"`.
        offload_folder: where weights wait on disk that do not lie in their files as the model uses
            them, as those of most mixtures of experts; others are read in their files.
        trust_remote_code: whether code that a checkpoint brings may run.

    Returns:
        The model as a Subject; a Subject is returned as it is, and nothing else can be given with
        it that it already has.

    Raises:
        LoadError: files cannot be read, weights are NaN or infinite, the tokenizer has more tokens
            than the embedding, the object is not a model, its logits are NaN or infinite, or it
            sees later tokens; the device is not there, cannot compute in this precision, or is not
            the one that a model in memory is on, or `dtype` is not the one that it is in; a device
            map that does not fit the model, or is given for one that cannot be divided; a
            tokenizer, an anatomy, a forward or an example for a Subject.
        SiteError: no blocks are found.

    Example:
        >>> loaded = interp.load(subject.module, tokenizer=subject.tokenizer)
        >>> loaded.module is subject.module
        True
        >>> [str(site) for site in loaded.anatomy.expand("neurons")]
        ['blocks.0.neurons', 'blocks.1.neurons']
    """
    from_files = isinstance(source, (str, Path))
    if not from_files:
        kind = source.name if isinstance(source, Subject) else type(source).__name__
        refuse_device_map(kind, _HELD, device_map, max_memory)
    parts = choose_device_map(device, device_map, max_memory, offload_folder, _dtype(dtype))
    if isinstance(source, Subject):
        own = {"tokenizer": tokenizer, "anatomy": anatomy, "forward": forward, "example": example}
        _refuse_for_subject(source, own)
        check_stays(source.name, source.device, device)
        _check_precision(source.name, source.module, _dtype(dtype))
        return source

    name = ""
    if from_files:
        name = Path(str(source)).name
        reader = reader_of(source)
        if reader is not None:
            refuse_device_map(name, _WHOLE, device_map, max_memory)
            place = _device_beside(tokenizer, device, _dtype(dtype))
            source = reader.read(source, tokenizer, _dtype(dtype)).to(place)
            # An image tokenizer is part of the module: it turns images into tokens, not text.
            tokenizer = None
        else:
            place = parts or choose_device(device, _dtype(dtype))
            source, stored_tokenizer = read(source, _dtype(dtype), trust_remote_code, place)
            if tokenizer is None:
                tokenizer = stored_tokenizer

    module, tokenizer = _unwrap(source, tokenizer)
    # Before any weight is read, which gathers a sharded one from all processes.
    check_sharding(module)
    _check_weights(module, tokenizer)
    if not from_files:
        check_stays(type(module).__name__, device_of(module), device)
        _check_precision(type(module).__name__, module, _dtype(dtype))

    own_forward = forward is not None
    if forward is None:
        forward = _forward
    if example is None:
        example = stepwise_of(module).example()
    batch = example.to(device_of(module))
    trial = Trial(module, forward, batch, own_forward)
    # Forwards that are repeated for their hooks alone predict a single token.
    found_anatomy = discover(module, trial.run, anatomy, lambda: forward(module, batch, 1))
    found = verify_prediction(trial, found_anatomy)
    return Subject(
        module, found_anatomy, forward, tokenizer, name, found.decoding, found.context, found.lead
    )


def _forward(module: nn.Module, batch: Batch, keep: int) -> Tensor:
    """The forward of every model that brings none of its own."""
    return stepwise_of(module).predict(batch, keep)


def _device_beside(
    tokenizer: Any, device: Device | None, dtype: torch.dtype | None
) -> torch.device:
    """The device of an image model: that of its tokenizer, where the caller holds it."""
    if not isinstance(tokenizer, nn.Module):
        return choose_device(device, dtype)
    place = next(tokenizer.parameters()).device
    check_stays(type(tokenizer).__name__, place, device)
    return place


def _refuse_for_subject(subject: Subject, given: dict[str, Any]) -> None:
    """Refuses what was given for a Subject, in which it would be left out without a word."""
    names = [f"{name}=" for name, value in given.items() if value is not None]
    if names:
        raise LoadError(
            f"{' and '.join(names)}: {subject.name} is a Subject, which is returned as it is; for "
            "another one of the same model pass its module, as interp.load(subject.module, ...)"
        )


def _check_precision(kind: str, module: nn.Module, dtype: torch.dtype | None) -> None:
    """Refuses to convert a model that the caller holds."""
    weights = [weight for weight in module.parameters() if weight.is_floating_point()]
    stored = {weight.dtype for weight in weights}
    if dtype is None or stored == {dtype}:
        return
    precisions = " and ".join(sorted(map(str, stored)))
    raise LoadError(
        f"dtype={dtype}: {kind} is in memory in {precisions} already, and what you hold is not "
        f"converted; convert it yourself first, with .to({dtype})"
    )


def _dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, given, None) if isinstance(given, str) else given
    is_floating = isinstance(found, torch.dtype) and found.is_floating_point
    if given is not None and not is_floating:
        raise LoadError(f"dtype={given!r}: expected one of float32, bfloat16, float16, float64")
    return found


def _unwrap(source: Any, tokenizer: Any) -> tuple[nn.Module, Any]:
    """The torch module and tokenizer inside the wrapper of a library.

    What cannot be studied without changing it is refused.
    """
    library = type(source).__module__.partition(".")[0]
    if library == "nnsight":
        if tokenizer is None:
            tokenizer = getattr(source, "tokenizer", None)
        return source._module, tokenizer
    if type(source).__module__ == "torch._dynamo.eval_frame":
        # torch.compile wraps the model that it was given, and hooks belong on the model itself.
        return _unwrap(source._orig_mod, tokenizer)
    if library != "transformer_lens" and not isinstance(source, nn.Module):
        raise LoadError(
            f"cannot study a {type(source).__name__}: expected a hub id, a folder, a .gguf file, "
            "or a torch module"
        )
    if library == "transformer_lens" or _is_bridged(source):
        raise LoadError(
            "a TransformerBridge rewrites the model in place (other modules, other attention), so "
            "its numbers are not its own: load the original checkpoint again and pass that; to run "
            "a plan on the bridge use interp.adapters.transformer_lens"
        )
    if getattr(getattr(source, "config", None), "is_encoder_decoder", False):
        raise LoadError(
            f"{type(source).__name__} is an encoder-decoder: "
            "expected an autoregressive model over one sequence"
        )
    return source, tokenizer


def _is_bridged(module: nn.Module) -> bool:
    """Whether TransformerLens has replaced parts of a module to which there is still a
    reference."""
    bridge = "transformer_lens.model_bridge"
    origins = [type(part).__module__ for part in module.modules()]
    return any(origin.startswith(bridge) for origin in origins)


def _check_weights(module: nn.Module, tokenizer: Any) -> None:
    count = 0
    broken: list[str] = []
    for name, parameter in stored_weights(module):
        count += 1
        if parameter.is_meta:
            raise LoadError(
                f"{type(module).__name__} has no weights yet (meta device): "
                "load them first; with nnsight, pass dispatch=True"
            )
        if parameter.is_floating_point() and not _is_finite(parameter.detach()):
            broken.append(name)
    if not count:
        raise LoadError(f"{type(module).__name__} has no parameters: expected a model with weights")
    if broken:
        raise LoadError(
            f"{len(broken)} of {count} weights hold NaN or infinity: "
            f"{', '.join(broken[:3])}; expected finite weights"
        )

    rows = vocabulary_size(module)
    if tokenizer is None or rows is None:
        return
    known = _tokenizer_size(tokenizer)
    if known is not None and known > rows:
        raise LoadError(
            f"the tokenizer has {known} tokens but the model embeds {rows}: "
            "another model's tokenizer"
        )


def _is_finite(weight: Tensor) -> bool:
    # NaN and infinity pass into the sum, which costs a fraction of looking at each element. A sum
    # that is not finite may also be an overflow.
    total = weight.sum(dtype=torch.float32)
    if bool(torch.isfinite(total)):
        return True
    return bool(torch.isfinite(weight).all())


def _tokenizer_size(tokenizer: Any) -> int | None:
    """How many tokens a tokenizer has; None for one that does not tell."""
    # `vocab_size` leaves out added tokens, which need not be embedded.
    if hasattr(tokenizer, "vocab_size"):
        return tokenizer.vocab_size
    return len(tokenizer) if hasattr(tokenizer, "__len__") else None
