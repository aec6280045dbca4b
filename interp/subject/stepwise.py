"""Stepwise: which tokens a model predicts together, and what comes before the first of them.

All code that has to know it asks here, so that it need not know the kind of model. A network that
predicts several tokens at once, or whose blocks see more than its tokens, implements the protocol
itself, as VAR and RAR do. For every other module `OneByOne` does: one token at a time.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import LoadError, closest
from interp.subject.batch import Batch

Group = tuple[int, int]  # (start, stop) of tokens that are predicted together


@dataclass(frozen=True)
class Segment:
    """A part of an example, such as a scale or a row of an image, as positions of the blocks.

    Attributes:
        name: its name in tables.
        start, stop: the positions, `stop` excluded.
        degenerate: whether these positions are the same for all examples with one conditioning.
            What a unit does there depends on the class and not on the image.
    """

    name: str
    start: int
    stop: int
    degenerate: bool = False


@runtime_checkable
class Stepwise(Protocol):
    """What the toolkit has to know about the order in which a model predicts.

    Attributes:
        lead: how many positions the blocks see before the position of the first token.
        segments: the parts of what the blocks see; empty where examples have no parts.
    """

    lead: int
    segments: tuple[Segment, ...]

    def groups(self, length: int) -> tuple[Group, ...]:
        """Returns the groups of tokens that are predicted together, among the first `length`."""
        ...

    def ahead(self, read: int) -> int:
        """Returns how many tokens the next group has once `read` tokens are known."""
        ...

    def positions(self, read: int) -> int:
        """Returns how many positions of the blocks depend on no token but the first `read`: those
        that a cache keeps when the tokens after these are forgotten.

        That is `lead + read` where tokens come one by one. In a VAR the positions of the next scale
        are among them: they hold what was read, and its tokens are predicted there.
        """
        ...

    def check(self, batch: Batch) -> None:
        """Raises ValueError for a batch that this model cannot read."""
        ...

    def check_prompt(self, prompt: int) -> None:
        """Raises ValueError for a number of tokens after which the model cannot continue."""
        ...

    def predict(self, batch: Batch, keep: int) -> Float[Tensor, "batch keep vocabulary"]:
        """Returns the logits that predict the last `keep` tokens of a batch."""
        ...

    def new_cache(self) -> Any:
        """Returns an empty cache, or None where the model has none.

        A cache has `get_seq_length`, `crop` and `batch_select_indices`.
        """
        ...

    def feed(
        self,
        read: Int[Tensor, "batch read"],
        new: int,
        cache: Any,
        conditioning: Mapping[str, Tensor],
        keep: int,
    ) -> Float[Tensor, "batch keep vocabulary"]:
        """Reads new tokens and returns the logits of what follows.

        Args:
            read: all tokens so far.
            new: how many of them, at the end, are new; the others are in the cache.
            cache: a cache from `new_cache`; it is extended in place.
            conditioning: what the model sees in addition to tokens.
            keep: how many logits to return: those of the last tokens up to the end of the next
                group.
        """
        ...

    def example(self) -> Batch:
        """Returns a tiny valid batch of at least two rows, for finding and verifying sites."""
        ...


class OneByOne:
    """The default: one token at a time, each predicted from those before it, none before the first.

    A Hugging Face causal language model may keep its own cache; any other `module(tokens)` is run
    whole.

    Args:
        module: maps token ids to next-token logits.
    """

    lead = 0
    segments: tuple[Segment, ...] = ()

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    def _is_hugging_face(self) -> bool:
        return hasattr(self.module, "prepare_inputs_for_generation")

    def groups(self, length: int) -> tuple[Group, ...]:
        return tuple((token, token + 1) for token in range(length))

    def ahead(self, read: int) -> int:  # noqa: ARG002 - the protocol's signature
        return 1

    def positions(self, read: int) -> int:
        return read

    def check(self, batch: Batch) -> None:
        """Accepts every batch: token ids are checked by the Subject, for all models alike."""

    def check_prompt(self, prompt: int) -> None:
        if prompt < 1:
            raise ValueError(
                "prompt=0: this model sees nothing before the first token; expected at least 1"
            )

    def predict(self, batch: Batch, keep: int) -> Tensor:
        if self._is_hugging_face:
            return language_forward(self.module, batch, keep)
        return plain_forward(self.module, batch, keep)

    def new_cache(self) -> Any:
        if not self._is_hugging_face:
            return None
        from transformers import DynamicCache

        cache: Any = DynamicCache(config=self.module.config)  # pyright: ignore[reportArgumentType]
        # Layers with a sliding window drop what slides out of it. Without the recording it could
        # not come back when the cache is cropped.
        if hasattr(cache, "activate_past_recording"):
            cache.activate_past_recording()
        return cache

    def feed(
        self,
        read: Tensor,
        new: int,
        cache: Any,
        conditioning: Mapping[str, Tensor],  # noqa: ARG002
        keep: int,
    ) -> Tensor:
        # Counted from the start: with a negative index, no new tokens would mean all of them.
        new_tokens = read[:, read.shape[1] - new :]
        options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": keep}
        output = self.module(new_tokens, **_taken(self.module, options))
        return output.logits[:, -keep:]  # some models return all, whatever they are asked to keep

    def example(self) -> Batch:
        """Returns a few tokens that the embedding named by the module knows, or every embedding.

        Raises:
            LoadError: the module has no embedding.
        """
        embeddings = [child for child in self.module.modules() if isinstance(child, nn.Embedding)]
        if self._is_hugging_face:
            named: Any = self.module.get_input_embeddings()  # pyright: ignore[reportCallIssue]
            if isinstance(named, nn.Embedding):
                embeddings = [named]
        sizes = [embedding.num_embeddings for embedding in embeddings]
        if not sizes:
            raise LoadError(
                f"{type(self.module).__name__} has no token embedding (nn.Embedding): "
                "pass example= and forward= to interp.load"
            )
        numbers = torch.arange(22).reshape(2, 11)
        return Batch(numbers % min(sizes))


def stepwise_of(module: nn.Module) -> Stepwise:
    """Returns the module itself if it implements Stepwise, else `OneByOne(module)`."""
    return module if isinstance(module, Stepwise) else OneByOne(module)


def language_forward(module: nn.Module, batch: Batch, keep: int) -> Tensor:
    """Runs a Hugging Face causal language model.

    Args:
        module: the model; called with the tokens, and with the conditioning by name.
        batch: what it reads.
        keep: how many tokens, at the end, to predict; the head runs on those alone.

    Returns:
        The logits that predict them, [batch, keep, vocabulary]; one position fewer when `keep` is
        all tokens, as nothing predicts the first.

    Raises:
        ValueError: conditioning that the model's forward does not take by name.
    """
    _check_conditioning(module, batch.conditioning)
    # Position t predicts token t + 1, so the last position is asked for and then dropped. Zero
    # means all positions to transformers.
    wants_all = keep >= batch.length - 1
    kept = 0 if wants_all else keep + 1
    options = _taken(module, {"use_cache": False, "logits_to_keep": kept})
    output = module(batch.tokens, **batch.conditioning, **options)
    return output.logits[:, -keep - 1 : -1]


def plain_forward(module: nn.Module, batch: Batch, keep: int) -> Tensor:
    """Runs any module that maps token ids to next-token logits [batch, position, vocabulary].

    Args:
        module: the model; called with the tokens, and with the conditioning by name.
        batch: what it reads.
        keep: how many tokens, at the end, to predict.

    Returns:
        The logits that predict them, [batch, keep, vocabulary]; one position fewer when `keep` is
        all tokens, as nothing predicts the first.

    Raises:
        ValueError: conditioning that the model's forward does not take by name.
    """
    _check_conditioning(module, batch.conditioning)
    output = module(batch.tokens, **batch.conditioning)
    logits = getattr(output, "logits", output)
    # Position t predicts token t + 1, as in `language_forward`.
    return logits[:, -keep - 1 : -1]


# What a forward takes that is not a thing to condition on: it says how to run, or it would replace
# or cover tokens of the batch.
_NOT_CONDITIONING = {
    "attention_mask",
    "cache_position",
    "input_ids",
    "inputs_embeds",
    "labels",
    "logits_to_keep",
    "past_key_values",
    "position_ids",
    "return_dict",
    "use_cache",
}


@functools.cache
def _arguments(forward: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """The names that a forward takes, and whether it takes any other name too (`**kwargs`)."""
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (ValueError, TypeError):  # a compiled forward does not say what it takes
        return frozenset(), True
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = {each.name for each in parameters if each.kind in by_name}
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    return frozenset(names - {"self"}), takes_any


def _taken(module: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """The options that the forward of a module takes."""
    names, takes_any = _arguments(type(module).forward)
    if takes_any:
        return dict(options)
    return {name: value for name, value in options.items() if name in names}


def _check_conditioning(module: nn.Module, conditioning: Mapping[str, Tensor]) -> None:
    """Raises ValueError for a name that the forward of a module does not take.

    A forward with `**kwargs` would swallow it, and the model would say what it says without it.
    """
    if not conditioning:
        return
    # An adapter of PEFT hands everything on to the model that it wraps.
    wrapped: Any = getattr(module, "get_base_model", lambda: module)()
    names, _ = _arguments(type(wrapped).forward)
    known = names - _NOT_CONDITIONING
    unknown = sorted(conditioning.keys() - known)
    # A wrapper that names nothing (DistributedDataParallel, TorchScript) hands all on.
    if names and unknown:
        raise ValueError(
            f"conditioning {unknown[0]!r}: the forward of {type(wrapped).__name__} does not take "
            f"it by name; nearest: {closest(unknown[0], sorted(known))}. For a model that is "
            "called in another way, pass forward= to interp.load"
        )
