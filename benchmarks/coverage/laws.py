"""What is verified of one model: its sites, its logits, its decoding and a scan, each against the
model itself, run by hand with torch's own hooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import interp
from benchmarks.coverage.architectures import LARGEST_ID
from benchmarks.coverage.names import Parts, parts
from interp.hooks.hooks import Clock, Visit, tapped
from interp.sites.site import BLOCK_POINTS
from interp.subject.decoding import Decoder

POINTS = tuple(point for point in BLOCK_POINTS if point != "block_out")  # it follows from others
ROWS, LENGTH, PROMPT = 3, 16, 8
SHARE = 1e-4  # how far a number may be off, as a share of the largest

Tokens = Int[Tensor, "row position"]


@dataclass
class Findings:
    """What was found of one model.

    Attributes:
        points: for each point, in how many blocks it is "right", "refused", "wrong" or, if no
            witness can tell, "unknown". Blocks that have nothing of the kind are not counted.
        reasons: why points were refused, and what was wrong.
        laws: whether each law of the whole model holds.
        cached: whether it is decoded on its own cache, and why.
    """

    points: dict[str, Counter[str]] = field(default_factory=dict[str, "Counter[str]"])
    reasons: list[str] = field(default_factory=list[str])
    laws: dict[str, bool] = field(default_factory=dict[str, bool])
    cached: bool = False
    decoding: str = ""

    def note(self, point: str, status: str, reason: str = "") -> None:
        """Counts one block."""
        self.points.setdefault(point, Counter())[status] += 1
        if status != "right" and reason and reason not in self.reasons:
            self.reasons.append(reason)


def examine(subject: interp.Subject) -> Findings:
    """Returns what holds for a loaded model of text."""
    generator = torch.Generator().manual_seed(1)
    # Without padding, start and end tokens, and those that stand for images.
    tokens = torch.randint(3, LARGEST_ID, (ROWS, LENGTH), generator=generator)
    found = Findings(cached=subject.decoding.cached, decoding=subject.decoding.reason)
    with torch.no_grad():
        for stack, paths in subject.anatomy.stacks.items():
            for index, path in enumerate(paths):
                _Block(subject, tokens, stack, index, path).examine(found)
        found.laws = {
            "logits": _logits_agree(subject, tokens),
            "generation": _generation_agrees(subject, tokens),
            "pieces": _pieces_agree(subject, tokens),
            "scan": _scan_agrees(subject, tokens),
        }
    return found


class _Block:
    """One block, with its parts as their names say."""

    def __init__(
        self, subject: interp.Subject, tokens: Tokens, stack: str, index: int, path: str
    ) -> None:
        self.subject = subject
        self.tokens = tokens
        self.path = path
        self.module = subject.module.get_submodule(path)
        self.sites = {point: interp.Site(point, index, stack) for point in POINTS}
        places = subject.anatomy.places
        self.present = {point: site for point, site in self.sites.items() if site in places}
        self.parts: Parts = parts(self.module, self._width_of_stream())
        self.values = self._values()

    def examine(self, found: Findings) -> None:
        for point in POINTS:
            expected = self._expects(point)
            if point not in self.present:
                if expected:
                    refusals = self.subject.anatomy.refused
                    reason = refusals.get(self.sites[point], "no such site")
                    found.note(point, "refused", reason.replace(self.path, "the block"))
                continue
            if expected is False:
                found.note(point, "wrong", f"{point} in a block that has none by its names")
                continue
            status = getattr(self, f"_check_{point}")()
            found.note(point, status, f"{point} at {self._place(point)}: {status}")

    def _width_of_stream(self) -> int:
        """The width of one residual stream: as the configuration says, where the last axis of what
        leaves the block holds several."""
        leaving = _value(self._run().outputs[self.path])
        assert leaving is not None
        config: Any = self.subject.module.config
        text_config = config.get_text_config(decoder=True)
        declared = getattr(text_config, "hidden_size", None) or leaving.shape[-1]
        several = leaving.shape[-1] > declared and leaving.shape[-1] % declared == 0
        return declared if several else leaving.shape[-1]

    def _expects(self, point: str) -> bool | None:
        """Whether the block has such a point; None if the names do not say."""
        named = self.parts
        match point:
            case "heads" | "attn_out":
                return named.attention
            case "mixer_out":
                return named.mixer
            case "neurons":
                return named.out_of_mlp is not None
            case "mlp_out":
                return named.mlp
            case "resid_mid":
                return named.mlp and (named.attention or named.mixer) and self._is_sequential()
            case _:
                return True

    def _place(self, point: str) -> str:
        return str(self.subject.anatomy.places[self.sites[point]]).replace(self.path, "")

    def _values(self) -> dict[str, Tensor]:
        """What interp records at every point that it has."""
        values: dict[str, Tensor] = {}

        def keep(point: str) -> Visit:
            def visit(value: Tensor, _: Clock) -> None:
                values[point] = value.clone()  # some models change it in place

            return visit

        visits = {site: keep(point) for point, site in self.present.items()}
        with tapped(self.subject, visits):
            by_hand(self.subject.module, self.tokens)
        return values

    def _check_resid_pre(self) -> str:
        return self._is(self.values["resid_pre"], _value(self._run().inputs[self.path]))

    def _check_resid_post(self) -> str:
        return self._is(self.values["resid_post"], _value(self._run().outputs[self.path]))

    def _check_heads(self) -> str:
        return self._check_units("heads", self.parts.out_of_attention)

    def _check_neurons(self) -> str:
        return self._check_units("neurons", self.parts.out_of_mlp)

    def _check_units(self, point: str, projection: str | None) -> str:
        """Units are the projection's input, and zeroing them is zeroing that input by hand."""
        if projection is None:
            return "unknown"
        path = f"{self.path}.{projection}"
        value = _value(self._run().inputs.get(path))
        if value is None:
            return "unknown"
        if self._is(self.values[point], value) != "right":
            return "wrong"
        units = self.subject.units(str(self.sites[point]))
        with self.subject.intervened(interp.Zero(units)):
            ours = self.subject.logits(interp.Batch(self.tokens, prompt=0))
        by_hand = self._run(path).logits
        # Ours predict the token at their own place, those by hand the token after it: ours have one
        # more at the start, and these one more at the end.
        return "right" if torch.equal(_aligned(by_hand), ours[:, 1:]) else "wrong"

    def _check_attn_out(self) -> str:
        return self._check_half("attn_out", self.parts.out_of_attention)

    def _check_mixer_out(self) -> str:
        return self._check_half("mixer_out", self.parts.out_of_mixer)

    def _check_mlp_out(self) -> str:
        # With zeros into a shared expert, the routed ones still add something: this test would
        # fail.
        has_routed = self.parts.out_of_mlp is None or "shared" in self.parts.out_of_mlp
        if not has_routed:
            return self._check_half("mlp_out", self.parts.out_of_mlp)
        remainder = self._check_remainder()
        return remainder if remainder == "right" else self._check_experts()

    def _check_experts(self) -> str:
        """Without what the experts give, mlp_out is nothing (or the bias of a norm behind them)."""
        if self.parts.experts is None:
            return "unknown"
        with _silenced(self.subject.module.get_submodule(f"{self.path}.{self.parts.experts}")):
            without = self._values()["mlp_out"]
        largest = self.values["mlp_out"].abs().max()
        return "right" if _spread(without) <= SHARE * largest else "wrong"

    def _check_half(self, point: str, projection: str | None) -> str:
        """What a half adds is the same at every position once its projection gets zeros, and is
        not so before."""
        if projection is None:
            return self._check_remainder()
        with _zeroed(self.subject.module.get_submodule(f"{self.path}.{projection}")) as runs:
            without = self._values()[point]
        # A projection that never ran has shown nothing.
        if not runs:
            return "unknown"
        before = self.values[point]
        largest = before.abs().max()
        varies = _spread(before) > 10 * SHARE * largest
        is_constant = _spread(without) <= SHARE * largest
        return "right" if varies and is_constant else "wrong"

    def _check_remainder(self) -> str:
        """The halves are all that the block adds."""
        halves = [self.values[p] for p in ("attn_out", "mixer_out", "mlp_out") if p in self.values]
        entering, leaving = self._ends()
        return self._is(sum(halves, torch.zeros(())), leaving - entering)

    def _check_resid_mid(self) -> str:
        """The stream after the first half: it is what the second half reads."""
        middle = self.values["resid_mid"]
        mixed = [self.values[point] for point in ("attn_out", "mixer_out") if point in self.values]
        entering, _ = self._ends()
        # Where it is not this sum, it is judged by what reads it.
        if self._is(sum(mixed, entering), middle) == "right":
            return "right"
        inputs = self._run().inputs
        read = [_value(inputs.get(path)) for path in self._outside_mixers()]
        is_read = any(value is not None and self._is(value, middle) == "right" for value in read)
        return "right" if is_read else "wrong"

    def _ends(self) -> tuple[Tensor, Tensor]:
        """What enters the block and what leaves it."""
        run = self._run()
        entering, leaving = _value(run.inputs[self.path]), _value(run.outputs[self.path])
        assert entering is not None
        assert leaving is not None
        return entering, leaving

    def _is_sequential(self) -> bool | None:
        """Whether the MLP reads what attention or the mixer gives; None if it is not known how to
        silence these."""
        projection = self.parts.out_of_attention or self.parts.out_of_mixer
        if projection is None:
            return None
        path = f"{self.path}.{projection}"
        before, without = self._run().inputs, self._run(path).inputs
        for name in self._outside_mixers(with_matrix=True):
            one, other = _value(before.get(name)), _value(without.get(name))
            if one is not None and other is not None and self._is(one, other) != "right":
                return True
        return False

    def _outside_mixers(self, *, with_matrix: bool = False) -> list[str]:
        """Paths of the modules of the block that are no part of a mixer."""
        found: list[str] = []
        for name, part in self.module.named_modules():
            has_matrix = any(parameter.ndim > 1 for parameter in part.parameters(recurse=False))
            if name and not self.parts.is_mixing(name) and (has_matrix or not with_matrix):
                found.append(f"{self.path}.{name}")
        return found

    def _is(self, value: Tensor, expected: Tensor | None) -> str:
        if expected is None:
            return "unknown"
        value = value.reshape(-1, value.shape[-1])
        # The model's own tensor may spread the width over two axes.
        width = value.shape[-1] if expected.numel() == value.numel() else expected.shape[-1]
        expected = expected.detach().reshape(-1, width)
        return "right" if _close(value, expected) else "wrong"

    def _run(self, zeroed: str | None = None) -> _Run:
        """A forward by hand, with the inputs and outputs of all modules of the block; the input of
        one module may be zeroed."""
        run = _Run()
        handles = []
        for name, part in self.module.named_modules():
            path = f"{self.path}.{name}" if name else self.path
            handles.append(part.register_forward_hook(run.keep(path), with_kwargs=True))
        try:
            if zeroed is None:
                run.logits = by_hand(self.subject.module, self.tokens)
            else:
                with _zeroed(self.subject.module.get_submodule(zeroed)):
                    run.logits = by_hand(self.subject.module, self.tokens)
        finally:
            for handle in handles:
                handle.remove()
        return run


@dataclass
class _Run:
    inputs: dict[str, Any] = field(default_factory=dict[str, Any])
    outputs: dict[str, Any] = field(default_factory=dict[str, Any])
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def keep(self, path: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            # Blocks may be given the stream by name.
            self.inputs[path] = (*args, *kwargs.values())
            self.outputs[path] = output

        return hook


def by_hand(module: nn.Module, tokens: Tokens) -> Float[Tensor, "row position vocabulary"]:
    """Returns the logits of a whole forward."""
    return module(tokens).logits


def greedy_by_hand(module: nn.Module, tokens: Tokens, length: int) -> Tokens:
    """Returns the most likely continuation, one whole forward for every token."""
    for _ in range(length):
        following = by_hand(module, tokens)[:, -1].argmax(-1)
        tokens = torch.cat([tokens, following[:, None]], dim=1)
    return tokens[:, -length:]


def _logits_agree(subject: interp.Subject, tokens: Tokens) -> bool:
    ours = subject.logits(interp.Batch(tokens, prompt=0))[:, 1:]
    return torch.equal(ours, _aligned(by_hand(subject.module, tokens)))


def _generation_agrees(subject: interp.Subject, tokens: Tokens) -> bool:
    prompt = tokens[:, :PROMPT]
    ours = subject.generate(prompt, LENGTH)
    return torch.equal(ours, greedy_by_hand(subject.module, prompt, LENGTH))


def _pieces_agree(subject: interp.Subject, tokens: Tokens) -> bool:
    """Whether the logits are those of whole forwards when tokens come in pieces, are forgotten, and
    rows are dropped."""
    expected = by_hand(subject.module, tokens)
    decoder = Decoder(subject, batch_size=len(tokens))
    first = decoder.feed(tokens[:, :5], keep=5)
    second = decoder.feed(tokens[:, 5:12], keep=7)
    # Positions 9 to 11 are forgotten and fed again, for two of the rows.
    decoder.crop(9)
    some = torch.tensor([0, 2])
    decoder.select(some)
    third = decoder.feed(tokens[some, 9:], keep=LENGTH - 9)
    return (
        _close(first, expected[:, :5])
        and _close(second, expected[:, 5:12])
        and _close(third, expected[some, 9:])
    )


def _scan_agrees(subject: interp.Subject, tokens: Tokens) -> bool:
    frame = interp.scan(
        subject, tokens.tolist(), prefix=PROMPT, length=LENGTH - PROMPT, decode_from=0.0
    )
    # The logits at a position predict the token after it.
    logits = by_hand(subject.module, tokens)[:, PROMPT - 1 : -1]
    suffix = tokens[:, PROMPT:]
    log_p = logits.float().log_softmax(-1).gather(-1, suffix[..., None])[..., 0].sum(-1)
    accuracy = (logits.argmax(-1) == suffix).float().mean(-1)
    continuation = greedy_by_hand(subject.module, tokens[:, :PROMPT], LENGTH - PROMPT)
    similarity = [
        1 - _edit_distance(one.tolist(), other.tolist()) / len(one)
        for one, other in zip(continuation, suffix, strict=True)
    ]
    columns = {"log_p": log_p, "accuracy": accuracy, "similarity": torch.tensor(similarity)}
    return all(
        _close(torch.tensor(frame[name].to_numpy()), expected.double())
        for name, expected in columns.items()
    )


def _edit_distance(one: list[int], other: list[int]) -> int:
    """Levenshtein's distance, by its recursion."""
    before = list(range(len(other) + 1))
    for number, token in enumerate(one, start=1):
        row = [number]
        for column, other_token in enumerate(other, start=1):
            replaced = before[column - 1] + (token != other_token)
            row.append(min(replaced, before[column] + 1, row[-1] + 1))
        before = row
    return before[-1]


@contextmanager
def _zeroed(part: nn.Module) -> Generator[list[int]]:
    """A module gets zeros as its input; gives a list with one entry for each of its runs."""
    runs: list[int] = []

    def zero(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        runs.append(len(runs))
        return (torch.zeros_like(args[0]), *args[1:])

    handle = part.register_forward_pre_hook(zero)
    try:
        yield runs
    finally:
        handle.remove()


@contextmanager
def _silenced(part: nn.Module) -> Generator[None]:
    """A module gives zeros as its output."""

    def silence(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return torch.zeros_like(output)
        return (torch.zeros_like(output[0]), *output[1:])

    handle = part.register_forward_hook(silence)
    try:
        yield
    finally:
        handle.remove()


def _value(given: Any) -> Tensor | None:
    """The first tensor of floating-point numbers in what a module got or gave."""
    if isinstance(given, Tensor):
        return given if given.is_floating_point() else None
    if isinstance(given, Mapping):
        given = given.values()
    if isinstance(given, (tuple, list, type({}.values()))):
        for part in given:
            value = _value(part)
            if value is not None:
                return value
    return None


def _aligned(logits: Tensor) -> Tensor:
    """The logits that predict each token but the first."""
    return logits[:, :-1]


def _spread(value: Tensor) -> Tensor:
    """The largest difference of what stands at any position from what stands at the first: 0 where
    all are the same."""
    rows = value.reshape(-1, value.shape[-1])
    return (rows - rows[:1]).abs().max()


def _close(value: Tensor, expected: Tensor) -> bool:
    if value.shape != expected.shape:
        return False
    return bool((value - expected).abs().max() <= SHARE * expected.abs().max())
