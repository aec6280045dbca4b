"""The laws of prediction, checked on a few tokens when a model is loaded.

- Its logits are finite.
- It is causal: changing a later token changes no logit that predicts an earlier one. Without that,
  what a model predicts of a text is not what it would generate.
- Each row of a batch is a text of its own: what it predicts does not depend on the others.
- Its cache agrees with whole forwards: after new tokens one by one or several at once, after
  forgetting some of them, and for some of the rows. A model whose cache does not is decoded by
  whole forwards.

Agreement is up to rounding: the root mean square of the differences at a position, relative to the
spread of the logits there. Only a sample of the vocabulary is compared, so that no law copies the
logits of a large one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp.errors import HookError, LoadError, SiteError
from interp.hooks.hooks import Clock, tapped
from interp.hooks.modes import checkpointing_off, dropout_off, random_state_kept
from interp.loading.probes import Bare
from interp.sites.anatomy import Anatomy
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.decoding import Decoder, Decoding, check_finite
from interp.subject.stepwise import OneByOne, Stepwise, stepwise_of

Forward = Callable[[nn.Module, Batch, int], Tensor]

_COLUMNS = 256  # of the vocabulary, compared

# The largest difference that rounding explains, as a share of the spread of the logits. Measured
# between a cache and whole forwards: 5e-6 in float32 (30 blocks) and 0.008 in bfloat16; with a
# window that is one token too short it is 0.3 or more, also in models that are not trained.
_ROUNDING = 3e-4
_ROUNDING_UNITS = 8  # of the precision, where that is more
_LARGEST_ROUNDING = 0.1  # also for weights in 8 bits, of which a unit is an eighth

# What other rows may change by rounding: they may decide how a row is computed.
_ROUNDING_BESIDE_OTHERS = 3e-3

_OWN_FORWARD = "it has a forward= of its own, which has no cache"

# Windows of attention up to this many tokens are filled, so that the cache has to drop some.
_LONGEST_WINDOW = 64
# What numbers count that have something to do with windows and convolutions, and are no positions.
_NOT_OF_POSITIONS = ("layers", "pattern", "channels", "groups")


@dataclass(frozen=True)
class Prediction:
    """What the laws found out about how a model predicts: arguments of a Subject.

    Attributes:
        decoding: how it is decoded.
        context: how many tokens it has positions for; None where there is no such limit.
        lead: how many positions its blocks see before that of the first token.
    """

    decoding: Decoding
    context: int | None
    lead: int


@dataclass(eq=False)
class Trial:
    """The forward over a few tokens that sites are found with, and whose logits the laws compare.

    Args:
        module: the model.
        forward: its forward, as `Subject` takes it.
        batch: a few tokens, on the model's device.
        own_forward: whether the forward was given by the caller.
    """

    module: nn.Module
    forward: Forward
    batch: Batch
    own_forward: bool
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def run(self) -> None:
        """Does the forward, and keeps a sample of its logits."""
        try:
            predicted = self.forward(self.module, self.batch, self.batch.length - 1)
        except (HookError, LoadError, SiteError):
            raise
        except Exception as error:
            rows, length = self.batch.tokens.shape
            raise LoadError(
                f"{type(self.module).__name__} cannot read {rows} rows of {length} token ids "
                f"({type(error).__name__}: {_first_line(error)}). Pass interp.load an example= "
                "Batch that it can read, or a forward= that calls it with what it needs"
            ) from error
        self._check_finite(predicted)
        self.logits = _sample(predicted)

    def _check_finite(self, predicted: Tensor) -> None:
        first = self.batch.length - predicted.shape[1]
        largest = predicted.detach().amax(-1)  # [batch, predicted]
        if self.batch.mask is not None:
            real = self.batch.mask[:, first:].to(largest.device)
            largest = largest.masked_fill(~real, 0)
        try:
            check_finite(largest, first)
        except ValueError as error:
            raise LoadError(f"{type(self.module).__name__}, on a few tokens: {error}") from error

    def predict(self, tokens: Tensor, *, all_tokens: bool = False) -> Tensor:
        """A sample of the logits of other tokens in place of those of the batch."""
        batch = Batch(tokens, 0, self.batch.mask, self.batch.groups, self.batch.conditioning)
        keep = batch.length if all_tokens else batch.length - 1
        return _sample(self.forward(self.module, batch, keep))

    @property
    def rounding(self) -> float:
        """The largest relative difference that the precision of the model explains."""
        dtypes = {parameter.dtype for parameter in self.module.parameters()}
        units = [torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point]
        largest_unit = max(units, default=0.0)
        return min(max(_ROUNDING, _ROUNDING_UNITS * largest_unit), _LARGEST_ROUNDING)


def verify_prediction(trial: Trial, anatomy: Anatomy) -> Prediction:
    """Checks the laws of prediction on a model.

    Args:
        trial: a forward that has run.
        anatomy: the sites that were found with it.

    Returns:
        How the model predicts.

    Raises:
        LoadError: the model sees later tokens, or other rows of a batch.
    """
    stepwise = stepwise_of(trial.module)
    with (
        dropout_off(trial.module),
        checkpointing_off(trial.module),
        torch.no_grad(),
        random_state_kept(trial.module),
    ):
        if isinstance(stepwise, OneByOne):
            return _verify_one_by_one(trial, stepwise, anatomy)
        _check_causality(trial, stepwise, anatomy)
        _check_rows(trial)
    decoding = Decoding(cached=False, reason=_OWN_FORWARD)
    if not trial.own_forward:
        # A network that implements Stepwise is made for this toolkit, and so is its cache.
        has_cache = stepwise.new_cache() is not None
        decoding = Decoding(has_cache, "its implementation of Stepwise says so", conditioned=True)
    return Prediction(decoding, context=None, lead=stepwise.lead)


def _verify_one_by_one(trial: Trial, stepwise: OneByOne, anatomy: Anatomy) -> Prediction:
    reason = _OWN_FORWARD
    if not trial.own_forward:
        reason = "it has no cache"
        if trial.batch.conditioning:
            reason = "its example has conditioning, with which no cache is verified"
        elif _has_cache(stepwise):
            verified = _try_cache(trial, stepwise)
            if isinstance(verified, Prediction):
                return verified
            reason = verified
            warnings.warn(
                f"{type(trial.module).__name__} is decoded by whole forwards, which are right but "
                f"slower: {reason}",
                stacklevel=4,
            )
    lookups, lead = _check_causality(trial, stepwise, anatomy)
    _check_rows(trial)  # where a cache is verified, it read a row alone
    context = _positions(lookups, trial.batch.length, lead)
    return Prediction(Decoding(cached=False, reason=reason), context, lead)


def _has_cache(stepwise: OneByOne) -> bool:
    try:
        return stepwise.new_cache() is not None
    except Exception:  # noqa: BLE001 - it has one that cannot be made; trying it says why
        return True


def _sample(logits: Tensor) -> Float[Tensor, "batch position columns"]:
    """Every so many-th column of the vocabulary, in float32."""
    step = max(1, logits.shape[-1] // _COLUMNS)
    return logits.detach()[..., ::step].float().clone()


def _differences(one: Tensor, other: Tensor) -> Float[Tensor, "batch position"]:
    """The root mean square difference of logits at each position, relative to their spread."""
    # Logits of -infinity forbid a token; where both have one they agree.
    forbidden = (one == other) & one.isinf()
    one = one.masked_fill(forbidden, 0)
    other = other.masked_fill(forbidden, 0)
    spread = one.std(-1)
    difference = (one - other).square().mean(-1).sqrt()
    relative = difference / spread.clamp_min(torch.finfo(spread.dtype).tiny)
    return relative.nan_to_num(nan=torch.inf)


# Causality ------------------------------------------------------------------------------------


def _check_causality(
    trial: Trial, stepwise: Stepwise, anatomy: Anatomy
) -> tuple[list[_Lookup], int]:
    """Raises LoadError for a model that sees later tokens.

    Returns:
        The tables that were looked up in a forward, and how many positions the blocks see before
        that of the first token.
    """
    tokens = trial.batch.tokens
    length = trial.batch.length
    groups = trial.batch.groups or stepwise.groups(length)
    changed, earlier = _change_later(tokens, groups)

    with _Lookups(trial.module) as lookups:
        predicted = trial.predict(changed, all_tokens=True)

    # All tokens were asked for, to see whether the first one is predicted; the trial left that out.
    # Both end with the same token.
    known = trial.logits.shape[1]
    differences = _differences(trial.logits, predicted[:, -known:])
    earlier = earlier[:, -known:].to(differences.device)
    if bool((differences[earlier] > trial.rounding).any()):
        _confirm(trial, changed, earlier)
    first_is_predicted = predicted.shape[1] == length
    lead = _lead(trial, anatomy) if first_is_predicted or trial.own_forward else 0
    return lookups.found, lead


def _lead(trial: Trial, anatomy: Anatomy) -> int:
    """How many more positions the blocks see than there are tokens: a soft prompt, or a beginning
    that a forward puts in front of every text. 0 for several stacks, which see different things."""
    sites = [Site("resid_pre", 0, stack) for stack in anatomy.stacks]
    if len(sites) != 1 or sites[0] not in anatomy.places:
        return 0
    positions: list[int] = []

    def count(value: Tensor, _: Clock) -> None:
        positions.append(value.shape[1])

    with tapped(Bare(trial.module, anatomy), {sites[0]: count}):
        trial.predict(trial.batch.tokens)
    return max(0, positions[0] - trial.batch.length)


def _change_later(
    tokens: Int[Tensor, "batch position"], groups: Sequence[tuple[int, int]]
) -> tuple[Int[Tensor, "batch position"], Bool[Tensor, "batch position"]]:
    """Tokens with another end, and which of them are predicted from what was not changed.

    Rows are changed from different groups on, so that a model that sees as far as the end of a run
    of tokens does not pass because the change begins with a run.
    """
    starts = (len(groups) - 2, 2 * len(groups) // 3)
    changed = tokens.clone()
    earlier = torch.zeros_like(tokens, dtype=torch.bool)
    for row in range(len(tokens)):
        # Something has to come before what is changed.
        group = max(1, starts[row % 2])
        if group >= len(groups):
            continue  # everything is predicted together
        start, stop = groups[group]
        # Tokens that occur in the example: others may be special ones that only go with an image.
        changed[row, start:] = tokens[row, start - 1 : -1]
        if torch.equal(changed[row], tokens[row]):  # an example of one token, repeated
            changed[row, start:] = 1 - tokens[row, start:].clamp(max=1)
        # The first group that is changed is itself predicted from what stands before it.
        earlier[row, :stop] = True
    return changed, earlier


def _confirm(trial: Trial, changed: Tensor, earlier: Tensor) -> None:
    """Raises LoadError if it is the later tokens that changed the logits.

    Other causes are random numbers in the forward, which are the same here, and rows of a batch
    that affect one another: rounding may change with what other rows send to an expert.
    """
    tokens = trial.batch.tokens
    original = _seeded(trial, tokens)
    later_changed = _differences(original, _seeded(trial, changed))
    noise = 0.0
    for shift in (1, 2, 3):
        others = tokens.clone()
        others[1:] = tokens[:1].roll(shift, dims=1)
        noise = max(noise, _differences(original, _seeded(trial, others))[0].max().item())

    # In half precision rounding may send a token to another expert, which changes single positions
    # by much. Later tokens that are seen change all.
    exact = trial.rounding == _ROUNDING
    per_row: list[Tensor] = []
    for row, mask in zip(later_changed, earlier, strict=True):
        if bool(mask.any()):
            per_row.append(row[mask].max() if exact else row[mask].median())
    seen = max(float(value) for value in per_row)
    if seen <= max(trial.rounding, 10 * noise):
        return
    name = type(trial.module).__name__
    raise LoadError(
        f"{name} sees later tokens: on a few tokens, changing the last ones changed logits that "
        f"predict earlier ones by {seen:.2g} of their spread. What it predicts of a text is then "
        "not what it would generate, so that no loss, score or extraction can be measured. "
        "Expected a causal model: if this one can be, configure it so (for BERT and its relatives "
        "is_decoder=True, for Llama and its relatives is_causal=True), or pass forward= with a "
        "causal mask to interp.load"
    )


def _seeded(trial: Trial, tokens: Tensor) -> Tensor:
    torch.manual_seed(0)
    return trial.predict(tokens)


# Rows -----------------------------------------------------------------------------------------


def _check_rows(trial: Trial) -> None:
    """Raises LoadError for a model in which the rows of a batch affect one another."""
    tokens = trial.batch.tokens
    others = tokens.clone()
    others[1:] = tokens[:1].roll(3, dims=1)
    differences = _differences(_seeded(trial, tokens), _seeded(trial, others))[0]
    # Rounding may send a token to another expert, which changes single positions. Other rows that
    # are seen change most.
    changed = differences.median().item()
    if changed > max(_ROUNDING_BESIDE_OTHERS, trial.rounding):
        raise LoadError(
            f"{type(trial.module).__name__} sees other rows of a batch: on a few tokens, changing "
            f"the other rows changed logits of the first by {changed:.2g} of their spread, so that "
            "what is measured of a text would depend on what is beside it. Expected one text per "
            "row: pass interp.load a forward= that calls the model so"
        )


# Positions ------------------------------------------------------------------------------------

_Lookup = tuple[int, Tensor]  # the rows of a table, and the indices of those that were looked up


class _Lookups(TorchFunctionMode):
    """Notes where a forward looks up integers, of a token or of a position, in tables of the
    model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.found: list[_Lookup] = []
        self._tables: set[int] = set()
        for tensor in (*module.parameters(), *module.buffers()):
            if type(tensor) in (Tensor, nn.Parameter):  # quantized ones have no address
                self._tables.add(tensor.data_ptr())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        match getattr(func, "__name__", ""), args:
            case "embedding", [index, table, *_]:
                self._note(table, index)
            case "index_select", [table, 0, index, *_]:
                self._note(table, index)
            case "__getitem__", [table, (Tensor() as index) | (Tensor() as index, *_)]:
                self._note(table, index)
            case _:
                pass
        return func(*args, **kwargs)

    def _note(self, table: Tensor, index: Tensor) -> None:
        is_plain = type(table) in (Tensor, nn.Parameter)
        is_integer = index.dtype in (torch.int32, torch.int64)
        if is_plain and is_integer and index.ndim and table.data_ptr() in self._tables:
            self.found.append((table.shape[0], index.detach()))


def _positions(lookups: Sequence[_Lookup], length: int, lead: int) -> int | None:
    """How many tokens the tables of positions have room for; None without such a table.

    A table of positions is one in which consecutive rows are looked up, as many as the blocks have
    positions. Other places (rotary embeddings, slopes) are computed for any length.
    """
    rooms: list[int] = []
    for rows, index in lookups:
        if index.shape[-1] != length + lead:
            continue
        by_row = index.reshape(-1, index.shape[-1])  # [lookups, position]
        consecutive = (by_row.diff(dim=-1) == 1).all(-1)
        if bool(consecutive.any()):
            first = int(by_row[consecutive][0, 0])
            rooms.append(rows - first - lead)
    return min(rooms, default=None)


# The cache ------------------------------------------------------------------------------------


_TO_BE_VERIFIED = Decoding(cached=True, reason="to be verified", conditioned=True)


@dataclass(frozen=True)
class _Candidate:
    """A model that is decoded on its cache, for trying whether that is right."""

    module: nn.Module
    forward: Forward
    stepwise: Stepwise
    decoding: Decoding = _TO_BE_VERIFIED


def _try_cache(trial: Trial, stepwise: OneByOne) -> Prediction | str:
    """What the laws found, if the cache agrees with whole forwards, else where it does not.

    The agreement shows causality too: a cache is filled without what comes later, which the whole
    forward was given.
    """
    windows = _windows(trial.module)
    filled = {window for window in windows if window <= _LONGEST_WINDOW}
    lookups = _Lookups(trial.module)
    try:
        tokens, whole = _cache_example(trial, max(filled, default=0))
        with lookups:
            differences = _compare_cache(
                _Candidate(trial.module, trial.forward, stepwise), tokens, whole
            )
    except Exception as error:  # noqa: BLE001 - whatever a cache does that is not made for this
        return f"its cache cannot be used ({type(error).__name__}: {_first_line(error)})"

    for after, value in differences.items():
        if value > trial.rounding:
            return (
                f"after {after}, logits on its cache differ from those of a whole forward by "
                f"{value:.2g} of their spread"
            )
    verified = f"verified on {tokens.shape[1]} tokens: several at once, one by one, crop, rows"
    if windows - filled:
        longer = ", ".join(map(str, sorted(windows - filled)))
        verified += f"; without filling windows of {longer} tokens"
    # The first thing that is read on the cache are all tokens but two, see `_compare_cache`.
    context = _positions(lookups.found, tokens.shape[1] - 2, lead=0)
    return Prediction(Decoding(cached=True, reason=verified), context, lead=0)


def _windows(module: nn.Module) -> set[int]:
    """The sizes that a configuration gives for windows, chunks and kernels over positions."""
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "to_dict"):
        return set()
    found: set[int] = set()
    pending: list[Any] = [config.to_dict()]
    while pending:
        for key, value in pending.pop().items():
            if isinstance(value, dict):
                pending.append(value)
            of_positions = any(word in str(key) for word in ("window", "chunk", "conv"))
            # Such as Qwen 2's `max_window_layers`, the number of layers without a window.
            of_something_else = any(word in str(key) for word in _NOT_OF_POSITIONS)
            if of_positions and not of_something_else and type(value) is int and value > 0:
                found.add(value)
    return found


def _cache_example(trial: Trial, window: int) -> tuple[Tensor, Tensor]:
    """Tokens of at least two rows, longer than a window by what the law forgets, and their
    logits."""
    tokens = trial.batch.tokens
    length = window + 8
    if len(tokens) >= 2 and tokens.shape[1] >= length:
        return tokens, trial.logits
    if len(tokens) == 1:
        tokens = torch.cat([tokens, tokens.flip(-1)])
    # Other tokens in each repetition, so that no two places of the text look alike.
    times = -(-length // tokens.shape[1])
    repetitions = [tokens.roll(shift, dims=1) for shift in range(times)]
    longer = Batch(torch.cat(repetitions, dim=1), prompt=0)
    return longer.tokens, _sample(trial.forward(trial.module, longer, longer.length - 1))


def _compare_cache(candidate: _Candidate, tokens: Tensor, whole: Tensor) -> dict[str, float]:
    """The largest difference between logits on the cache and those of a whole forward, after each
    thing that a decoder does.

    In the order of a scan: a text is read, some rows are kept, the end of the text is forgotten
    because greedy decoding went another way, and that way is read.

    Args:
        candidate: the model.
        tokens: [2, position] token ids.
        whole: the logits of a whole forward that predict all tokens but the first.
    """

    def difference(predicted: Tensor, last: int, rows: slice = slice(None)) -> float:
        """That of the logits up to those that predict token `last`."""
        count = predicted.shape[1]
        expected = whole[rows, last - count : last]  # whole[:, 0] predicts token 1
        return _differences(expected, _sample(predicted)).max().item()

    # The row that is kept below is the first one, in which the lowest token ids are: a model that
    # gives its padding token no position, in a text too, has it there.
    tokens = tokens.flip(0)
    whole = whole.flip(0)
    decoder = Decoder(candidate, len(tokens))
    start = tokens.shape[1] - 5
    # Three tokens that do not follow there, to be read and then forgotten.
    draft = tokens.flip(-1)[:, :3]
    read = decoder.feed(torch.cat([tokens[:, :start], draft], dim=1), keep=start + 3)
    found = {"several tokens at once": difference(read[:, :start], start)}

    decoder.select(torch.tensor([1], device=tokens.device))
    decoder.crop(start)
    kept = tokens[1:]
    several = decoder.feed(kept[:, start : start + 3], keep=3)
    found["forgetting tokens and rows"] = difference(several, start + 3, slice(1, 2))
    single = decoder.feed(kept[:, start + 3 : start + 4])
    found["a single token"] = difference(single, start + 4, slice(1, 2))
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else ""
