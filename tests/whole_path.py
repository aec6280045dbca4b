"""Everything that the toolkit does with a model, as steps that return arrays: the same steps run
with the model on the CPU and with the model on another device."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from adapters import plans
from quick import NAMES, QUICK, UNIT_BY_UNIT

import interp
from interp.adapters import captum, weights
from interp.analysis.circuits import circuit_logits, edge_effects, sender_means
from interp.analysis.computation_graph import Circuit
from interp.analysis.logit_lens import lens
from interp.analysis.probes import rows_at
from interp.engine.reducers import REDUCERS
from interp.engine.sweeping import sweep_growing, sweep_naively, sweep_resuming
from interp.localization import localize, localize_each
from interp.localization.methods.causal_tracing import trace
from interp.mitigation.curvature import curvature_edit, decompose, kronecker_factors, mlp_maps
from interp.mitigation.depth import log_p_drops
from interp.mitigation.extraction_drop import extraction_drop
from interp.models.image.sampling import sample
from interp.models.image.streams import anneal_orders, drop_labels
from interp.models.image.tokenizers import fit_tokenizer
from interp.training.fit import Checkpoints, Evaluation, epochs, fit

Found = Mapping[str, Any]
TEXT = "llama"
EVERY = (TEXT, "gpt2", "policy", *tiny.IMAGE)
PRECISE = torch.float64  # so that a method that chooses units chooses the same on every device

CPU = torch.device("cpu")

_batches_on = ContextVar("batches_on", default=CPU)
_steps: dict[str, tuple[str, functools.partial[Found]]] = {}


def step(*models: str) -> Callable[[Any], Any]:
    """Adds a step, `function(subject, name)`, for some models."""

    def add(function: Any) -> Any:
        for name in models:
            _steps[f"{function.__name__}-{name}"] = (name, functools.partial(function, name=name))
        return function

    return add


def steps() -> list[str]:
    return list(_steps)


def few_steps() -> list[str]:
    """Every step with one model, for a slow device: the methods with text."""
    few: list[str] = []
    for name, (model, _) in _steps.items():
        is_method = name.removesuffix(f"-{model}") in NAMES
        if model == TEXT or not is_method:
            few.append(name)
    return few


def run(step: str, device: torch.device, *, batches_on: torch.device = CPU) -> Found:
    """What a step returns for a model on a device, given batches on the same or another device."""
    name, function = _steps[step]
    # Only training changes a model. The other steps share one: on a slow device, loading takes
    # longer than most of them.
    load = _loaded.__wrapped__ if function.func is training else _loaded
    token = _batches_on.set(batches_on)
    try:
        return function(load(name, device))
    finally:
        _batches_on.reset(token)


@functools.cache
def _loaded(name: str, device: torch.device) -> interp.Subject:
    return tiny.wrapped(tiny.model(name, PRECISE).to(device))


def assert_equal(found: Found, expected: Found, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            _array(found[key]),
            _array(value),
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda message, key=key: f"{key}: {message}",
        )


def _array(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    return torch.as_tensor(np.array(value))


def _batch(name: str, rows: int = 3, seed: int = 0) -> interp.Batch:
    if name in tiny.IMAGE:
        batch = tiny.image_batch(name, rows, seed)
    else:
        batch = tiny.batch(name, rows, seed=seed, prompt=4, dtype=PRECISE)
    return batch.to(_batches_on.get())


def _sites(scores: Any) -> Found:
    return {str(site): values for site, values in scores.items()}


def _numbers(frame: Any) -> Found:
    return {name: frame[name].to_numpy() for name in frame.select_dtypes(["number", "bool"])}


@step(*EVERY)
def forwards(subject: interp.Subject, name: str) -> Found:
    batch = _batch(name)
    padded = batch if name in tiny.IMAGE else tiny.batch(name, 3, padded=True, dtype=PRECISE)
    with torch.no_grad():
        return {
            "logits": subject.logits(batch),
            "losses": subject.losses(padded),
            "generated": subject.generate(batch),
        }


@step(TEXT, *tiny.IMAGE)
def scan(subject: interp.Subject, name: str) -> Found:
    batch = _batch(name, 5)
    found = [interp.scan(subject, batch, batch_size=2, decode_from=0.0)]
    if name == TEXT:
        found.append(interp.scan(subject, batch.tokens.tolist(), 4, 5, decode_from=0.0))
    return {f"{n} {key}": v for n, frame in enumerate(found) for key, v in _numbers(frame).items()}


@step(*EVERY)
def record(subject: interp.Subject, name: str) -> Found:
    batch = _batch(name, 4)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for reduce in (*REDUCERS, "raw"):
            recording = interp.record(
                subject, batch, ["neurons", "heads"], reduce, folder=folder, batch_size=2, views=2
            )
            for site, parts in recording.parts.items():
                for part, array in parts.items():
                    found[f"{reduce} {site} {part}"] = np.array(array)
    return found


def _localization(method: str) -> Callable[..., Found]:
    def localization(subject: interp.Subject, name: str) -> Found:
        options = QUICK.get(method, {})
        sites = "blocks.1.heads" if method in UNIT_BY_UNIT else ("blocks.1.neurons", "heads")
        ours, others = _batch(name, 2), _batch(name, 2, seed=1)
        try:
            scores = localize_each(subject, ours, others, method, sites, **options)
        except ValueError:  # a method that only scores a set of windows as a whole
            scores = [localize(subject, ours, others, method, sites, **options)]
        found: dict[str, Any] = {}
        for number, one in enumerate(scores):
            found |= {f"{number} {site}": values for site, values in one.values.items()}
        return found

    localization.__name__ = method
    return localization


for _method in NAMES:
    # In an image model without prompt there is nothing that causal tracing could disturb.
    _models = (TEXT,) if _method == "causal_tracing" else (TEXT, "policy", *tiny.IMAGE)
    if _method not in ("random", "lowest", "smallest"):
        step(*_models)(_localization(_method))


@step(TEXT)
def tracing(subject: interp.Subject, name: str) -> Found:
    return _numbers(trace(subject, _batch(name, 1), draws=2))


@step(TEXT, "var")
def paths_of_single_tokens(subject: interp.Subject, name: str) -> Found:
    scores = localize(
        subject, _batch(name, 1), method="integrated_gradients", site="blocks.1.heads", points=2
    )
    return _sites(scores.values)


@step(TEXT)
def screened(subject: interp.Subject, name: str) -> Found:
    scores = localize(subject, _batch(name, 1), method="zero_out", site="embed", share=0.3)
    return _sites(scores.values)


def _some_plans(subject: interp.Subject) -> dict[str, Any]:
    return {kind: plans.plan(subject, kind, "blocks.1.neurons") for kind in plans.KINDS}


@step(TEXT)
def interventions(subject: interp.Subject, name: str) -> Found:
    batch = _batch(name)
    found: dict[str, Any] = {}
    for kind, plan in _some_plans(subject).items():
        with torch.no_grad(), subject.intervened(plan):
            found[kind] = subject.logits(batch)
            found[f"{kind} generated"] = subject.generate(batch.tokens[:, :4], 5)
    with torch.no_grad(), weights.applied(subject, _some_plans(subject)["zero"]):
        found["weights"] = subject.logits(batch)
    return found


@step(TEXT, "policy", *tiny.IMAGE)
def sweeps(subject: interp.Subject, name: str) -> Found:
    batch = _batch(name)
    units = [subject.anatomy.units(site) for site in subject.anatomy.expand("neurons")]
    some = [interp.Zero(one) for one in units]
    if name == TEXT:
        some += list(_some_plans(subject).values())
    kinds = (sweep_naively, sweep_resuming, sweep_growing, interp.sweep)
    return {kind.__name__: np.array(kind(subject, batch, some)) for kind in kinds}


@step(TEXT, *tiny.IMAGE)
def training(subject: interp.Subject, name: str) -> Found:
    stream = epochs(_batch(name, 6), 2, seed=1)
    if name in tiny.IMAGE:
        stream = drop_labels(stream, subject.module, 0.5, seed=2)
    if name == "rar":
        stream = anneal_orders(stream, 4, seed=3)
    measured = Evaluation(lambda s: {"mean": float(s.losses(_batch(name)).mean())}, every=2)
    with tempfile.TemporaryDirectory() as folder:
        kept = Checkpoints(Path(folder), every=1)
        before = subject.device
        history = fit(subject, stream, 3, 1e-3, clip=1.0, evaluation=measured, checkpoints=kept)
        assert subject.device == before
    return _numbers(history) | dict(subject.module.named_parameters())


@step(TEXT)
def drop(subject: interp.Subject, name: str) -> Found:
    scores = localize(subject, _batch(name), site="blocks.1.heads", method="activation")
    parts = [_batch(name, 2, seed=seed) for seed in range(3)]
    report = extraction_drop(subject, scores, *parts, fractions=[0.3], batch_size=2)
    return _numbers(report.frame)


@step(TEXT, "var")
def removal(subject: interp.Subject, name: str) -> Found:
    batch = _batch(name, 12)
    factors = kronecker_factors(subject, batch, mlp_maps(subject, [1]))
    plan = curvature_edit(decompose(subject, factors), mass=0.8)
    found = {str(site): change for site, change in plan.values.items()}
    with torch.no_grad(), subject.intervened(plan):
        found["hooks"] = subject.logits(batch)
    with torch.no_grad(), weights.applied(subject, plan):
        found["weights"] = subject.logits(batch)
    return found | _numbers(log_p_drops(subject, plan, batch))


@step(TEXT)
def analysis(subject: interp.Subject, name: str) -> Found:
    batch = _batch(name)
    read = lens(subject, batch, {"true": batch.targets[:, 0].cpu().numpy()}, position=4)
    found = {
        "captum": captum.gradient_x_activation(subject, batch, "blocks.1.neurons"),
        "rows": rows_at(subject, batch, "resid_post", 4),
    }
    flat = {f"{key} {site}": value for key, by in found.items() for site, value in by.items()}
    return flat | _numbers(read)


@step("gpt2")
def circuits(subject: interp.Subject, name: str) -> Found:
    batch, other = _batch(name), _batch(name, seed=1)
    right = batch.targets[:, 0].cpu().numpy()
    wrong = (right + 1) % 60
    means = sender_means(subject, other)
    return {
        "edges": edge_effects(subject, batch, other, right, wrong),
        "circuit": circuit_logits(subject, batch, Circuit.full(subject), means),
        **{f"mean {sender}": value for sender, value in means.items()},
    }


@step(*tiny.IMAGE)
def images(subject: interp.Subject, name: str) -> Found:
    module: Any = subject.module
    label = torch.tensor([0, 1, 2])
    drawn = sample(subject, label, top_k=5, seed=4)
    painted = module.decode(drawn)
    pixels = torch.rand(4, 1, *painted.shape[2:], generator=torch.Generator().manual_seed(0))
    batch = module.encode(pixels, torch.tensor([0, 1, 2, 0]))
    tokenizer = copy.deepcopy(module.tokenizer)
    losses = fit_tokenizer(tokenizer, pixels, 3, batch_size=2)
    return {
        "drawn": drawn,
        "painted": painted,
        "tokens": batch.tokens,
        "losses": np.array(losses),
        **dict(tokenizer.named_parameters()),
    }
