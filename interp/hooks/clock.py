"""Where in its sequence a running forward is: positions under a cache, and what is prompt.

Plans for the prompt or for decoded tokens alone, and donors that belong to rows, depend on it. One
forward does not show it: it may be a prompt, a part of one, or a token that was just decoded. So it
is declared by whoever decodes: by Subject, which does it itself, and by Hugging Face's `generate`,
whose arguments are read here (`generation_followed`). What nobody declared is read off the cache
and the tokens, and where these leave it open, a plan that depends on it is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp.errors import HookError
from interp.hooks.forward_override import method_replaced
from interp.interventions.edit import Edit
from interp.sites.site import Site

_DECLARE = (
    "decode with subject.generate, or declare the prompt: "
    "`with interp.hooks.clock.prompt_length(n):` around the forwards"
)


@dataclass(frozen=True, eq=False)
class Declared:
    """What is known of the sequences that the next forwards read.

    Attributes:
        prompt: how many leading positions are prompt.
        prompts: under Hugging Face's `generate`, how many prompts there are; each has the same
            number of neighbouring rows, one per sample or beam. None elsewhere.
        unknown: why positions cannot be told from the forwards; empty where they can.
    """

    prompt: int
    prompts: int | None = None
    unknown: str = ""


_declared: ContextVar[Declared | None] = ContextVar("declared", default=None)


@contextmanager
def prompt_length(length: int | None) -> Generator[None]:
    """Declares how many leading positions are prompt, for plans with `when="prompt"` or "decode".

    A teacher-forced forward reads prompt and continuation at once, so that the boundary cannot be
    seen from its shape.

    Args:
        length: the number of positions; None leaves it to the first forward, whose positions are
            then all prompt.
    """
    with _declaring(None if length is None else Declared(length)):
        yield


@contextmanager
def _declaring(declared: Declared | None) -> Generator[None]:
    token = _declared.set(declared)
    try:
        yield
    finally:
        _declared.reset(token)


@dataclass(eq=False)
class Clock:
    """Where in the sequence the running forward is.

    Attributes:
        offset: absolute position of the first position in this forward; with a KV cache, the number
            of positions that the cache holds.
        length: how many positions this forward has.
        blocks: paths of all blocks, each with a dot behind it.
        in_blocks: how many positions the first block of a stack has read in this forward, of the
            stack that was entered last; 0 until the forward enters one.
        prompt: how many leading positions of the sequence are prompt.
        read: how many positions of the sequence have been read, this forward included.
        tokens: what the last forward without a cache read.
        declared: what is known of the sequence.
        arguments: what the module was called with whose output is visited; None at inputs.
        differentiated: whether the model was called with gradients switched on.
        uncounted, unknown_position, unknown_prompt: why the offset, a position or the prompt cannot
            be told; empty where they can.
    """

    offset: int = 0
    length: int = 0
    blocks: tuple[str, ...] = ()
    in_blocks: int = 0
    prompt: int = 0
    read: int = 0
    tokens: Tensor | None = None
    declared: Declared | None = None
    arguments: Any = None
    differentiated: bool = False
    uncounted: str = ""
    unknown_position: str = ""
    unknown_prompt: str = ""

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Reads, from the arguments of a model's forward, where in the sequence it starts."""
        self.differentiated = torch.is_grad_enabled()
        self.offset = 0
        self.in_blocks = 0
        self.find_offset(args, kwargs)
        declared = _declared.get()
        # By identity: each declaration is made anew, and begins a sequence of its own.
        if declared is not self.declared:
            self.declared = declared
            self.read = 0
            self.tokens = None
            self.unknown_prompt = ""
            self.unknown_position = ""

        tokens = _tokens(args, kwargs)
        if tokens is not None:
            if declared is None:
                self.unknown_prompt = self._without_declaration(tokens)
            elif declared.prompts is not None:
                self.unknown_position = self._under_generate(declared, tokens.shape[1])
            self.read = self.offset + tokens.shape[1]
            # Until the blocks show it: those with several residual streams never do.
            self.length = tokens.shape[1]
        # Where sequences end in a packed row, as flash attention is told (cu_seq_lens_q).
        if any(name.startswith("cu_seq") and kwargs[name] is not None for name in kwargs):
            self.unknown_position = "this forward reads several sequences packed into one row"

    def find_offset(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Reads the offset from the KV cache among a module's arguments, if there is one."""
        arguments = (*args, *kwargs.values())
        caches = [value for value in arguments if hasattr(value, "get_seq_length")]
        if not caches:
            return
        self.uncounted = ""
        try:
            length = caches[0].get_seq_length()
        except ValueError:
            length = None  # transformers raises it for caches of recurrent states alone
        if length is not None:
            self.offset = int(length)
        else:
            self.uncounted = (
                "the model's cache does not count positions: generate with use_cache=False"
            )

    # Without a declaration, a forward at position 0 is a prompt, whole; what follows it in its
    # cache is decoded. Two things break this. A cache that was filled before: how much of it is
    # prompt was never seen. And decoding without a cache, which reads prompt and decoded tokens
    # again in every forward: by its shape that is a new, longer prompt.
    def _without_declaration(self, tokens: Tensor) -> str:
        if self.offset:
            if self.offset <= self.read:
                return self.unknown_prompt
            return (
                f"the cache held {self.offset} positions when the first forward was seen, and how "
                f"many of them are prompt is not known: {_DECLARE}"
            )
        before = self.tokens
        self.tokens = tokens
        if before is None or not _continues(tokens, before):
            return ""
        return (
            f"a forward read the {before.shape[1]} tokens of the forward before it again, and "
            f"{tokens.shape[1] - before.shape[1]} more, which may be decoded ones or a longer "
            f"prompt: {_DECLARE}"
        )

    # `generate` first reads the prompt (whole, in chunks, or what is not in its cache yet), then
    # each decoded token: alone if there is a cache, else with everything before it. A forward that
    # does neither has a memory of which nothing is seen here, or belongs to another sequence.
    def _under_generate(self, declared: Declared, length: int) -> str:
        if declared.unknown:
            return declared.unknown
        if self.unknown_position:
            return self.unknown_position
        end = self.offset + length
        if not self.read and end > declared.prompt:
            return (
                f"the first forward of generate reads up to position {end} for a prompt of "
                f"{declared.prompt}: the model puts positions of its own into the sequence"
            )
        if self.read and not self.offset and length <= self.read:
            return (
                f"after {self.read} positions, generate reads {length} without a cache that counts "
                "them: generate with use_cache=False"
            )
        return ""

    def see(self, value: Tensor) -> None:
        """Reads the length from an activation [batch, position, width]."""
        self.length = value.shape[1]
        declared = _declared.get()
        if declared is not None:
            self.prompt = declared.prompt
        elif self.offset == 0:
            # Nobody declared a prompt: the first forward of a generation reads it whole.
            self.prompt = self.length

    def positions(self, edit: Edit) -> Int[Tensor, " position"]:
        """Returns the absolute positions that an edit changes in the running forward.

        Raises:
            HookError: the edit depends on positions, or on what is prompt, and that cannot be told.
        """
        unknown = ""
        if edit.needs_positions:
            unknown = self.uncounted or self.unknown_position or self._unknown_in(edit.site)
        if edit.when != "all":
            unknown = unknown or self.unknown_prompt
        if unknown:
            raise HookError(
                f"{edit.site}, when={edit.when!r}: which positions this plan changes is not known: "
                f"{unknown}"
            )
        return edit.active(self.offset, self.length, self.prompt)

    # A head is run at the last positions alone where no other logits are wanted. They would be
    # counted from 0.
    def _unknown_in(self, site: Site) -> str:
        is_outside = site.is_module_path and not site.point.startswith(self.blocks)
        if not is_outside or self.length >= self.in_blocks:
            return ""
        return f"this module sees {self.length} of the {self.in_blocks} positions of the blocks"

    def samples(self, rows: int) -> int:
        """Returns how many neighbouring rows of a forward belong to one prompt.

        Raises:
            HookError: under `generate`, the rows cannot be divided among the prompts.
        """
        declared = self.declared
        if declared is None or declared.prompts is None or declared.unknown:
            return 1
        samples, left = divmod(rows, declared.prompts)
        if left:
            raise HookError(
                f"generate was given {declared.prompts} prompts and runs {rows} rows: which row "
                "belongs to which prompt is not known"
            )
        return samples


def _tokens(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What a model's forward reads: [batch, position] token ids or [batch, position, width]."""
    first = args[0] if args else None
    for given in (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), first):
        if isinstance(given, Tensor) and given.ndim >= 2:
            return given
    return None


def _continues(tokens: Tensor, before: Tensor) -> bool:
    """Whether a forward reads what the one before it read, and more."""
    rows, length = before.shape[:2]
    if tokens.ndim != before.ndim or tokens.shape[0] != rows or tokens.shape[1] <= length:
        return False
    return torch.equal(tokens[:, :length], before)


@contextmanager
def generation_followed(module: nn.Module, lead: int) -> Generator[None]:
    """Declares the prompts of every call of Hugging Face's `generate` inside the block.

    Args:
        module: the model; `generate` of it and of its submodules is followed.
        lead: how many positions the blocks see before the first token.
    """
    with ExitStack() as stack:
        for child in module.modules():
            if hasattr(type(child), "prepare_inputs_for_generation"):
                stack.enter_context(method_replaced(child, "generate", _following(lead)))
        yield


def _following(lead: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def follow(generate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(generate)
        def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            declared = _declared.get()
            # A prompt that somebody declared is kept. One that is read off the arguments is read
            # again by the innermost `generate`, which is closest to the forwards.
            if declared is None or declared.prompts is not None:
                declared = _declaration(args, kwargs, lead)
            with _declaring(declared):
                return generate(self, *args, **kwargs)

        return run

    return follow


def _declaration(args: tuple[Any, ...], kwargs: Mapping[str, Any], lead: int) -> Declared:
    """The prompts among the arguments of `generate`."""
    # What a forward calls `input_ids` may be called `inputs` here.
    named = {"input_ids": kwargs.get("inputs"), **kwargs}
    prompts = _tokens(args, named)
    if prompts is None:
        return Declared(0, 0, "generate was called without a prompt: give it token ids")
    second_argument = args[1] if len(args) > 1 else None
    config = kwargs.get("generation_config", second_argument)
    of_config = getattr(config, "guidance_scale", None)
    guidance = kwargs.get("guidance_scale", of_config)
    unknown = ""
    if guidance not in (None, 1):
        unknown = "classifier-free guidance runs other prompts between the forwards"
    return Declared(lead + prompts.shape[1], len(prompts), unknown)
