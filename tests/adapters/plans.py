from __future__ import annotations

from typing import Any

import numpy as np
import tiny
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import interp
from interp import (
    Add,
    Batch,
    Interchange,
    Mean,
    Patch,
    Project,
    Resample,
    Scale,
    Site,
    Subject,
    Zero,
)
from interp.sites.site import BLOCK_POINTS

KINDS = (
    "zero",
    "scale",
    "mean",
    "add",
    "patch",
    "interchange",
    "project",
    "project_around",
    "resample",
    "zero_at",
    "scale_decode",
    "all_at_once",
)
WITH_NEURONS = tuple(
    name for name in tiny.ALL if name != "mixtral"
)  # whose neurons are refused: several experts
WORDS = {f"t{i}": i for i in range(tiny.VOCABULARY)}


def speaking(name: str) -> Subject:
    """A tiny subject with a tokenizer, without which nnsight has no serializable model."""
    subject = tiny.subject(name)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(WORDS, "t0")))
    return Subject(subject.module, subject.anatomy, subject.forward, tokenizer, name)


def example(name: str) -> Batch:
    return tiny.batch(name, rows=3, length=9, prompt=4)


def block_site(subject: Subject, point: str) -> str:
    """A point in the second block of the last stack."""
    stack = next(reversed(subject.anatomy.stacks))
    return f"{stack}.blocks.1.{point}" if stack else f"blocks.1.{point}"


def sites(subject: Subject) -> list[str]:
    """One site of every point that the model has."""
    wanted = [*(block_site(subject, point) for point in BLOCK_POINTS), "embed", "final"]
    return [name for name in wanted if Site.parse(name) in subject.anatomy.places]


def plan(subject: Subject, kind: str, site: str) -> Any:
    """An intervention, or all of them in turn, on every other unit of a site."""
    where = Site.parse(site)
    place = subject.anatomy.place(where)
    units = interp.Units({where: range(0, place.units, 2)}, {where: place.units})
    draw = np.random.default_rng(3)
    one, many = {where: draw.normal(size=place.width)}, {where: draw.normal(size=(5, place.width))}
    plans = {
        "zero": Zero(units),
        "scale": Scale(units, factor=0.3),
        "mean": Mean(units, values=one),
        "add": Add(units, values=one),
        "patch": Patch(units, values=many),
        "interchange": Interchange(units, values={where: draw.normal(size=(3, 5, place.width))}),
        "project": Project(units, values={where: many[where][:2]}),
        "project_around": Project(units, values={where: many[where][:2]}, center=one),
        "resample": Resample(units, values=many, seed=2),
        "zero_at": Zero(units, positions=(1, 4)),
        "scale_decode": Scale(units, factor=-1.0, when="decode"),
    }
    return list(plans.values()) if kind == "all_at_once" else plans[kind]


def everywhere(subject: Subject) -> list[Any]:
    """Two kinds at every point."""
    return [plan(subject, kind, site) for site in sites(subject) for kind in ("scale", "add")]


def expected(subject: Subject, some: Any, batch: Batch) -> Tensor:
    with torch.no_grad(), subject.intervened(some):
        return subject.logits(batch)


def close(found: Tensor, wanted: Tensor, tolerance: float, what: str = "") -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance, msg=lambda m: f"{what}: {m}")
