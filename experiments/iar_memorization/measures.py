"""What is measured of a model as it is, or as edits leave it: extraction, and where units are
selective."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

import interp
from experiments.iar_memorization.build import SETS, Study
from interp.data.images import Images, correlation, shifted, threshold
from interp.localization.methods.unitmem import unitmem, unitmem_by_segment
from interp.memorization.extraction import verdicts
from interp.sites.units import UnitScores
from interp.subject.batch import Batch
from interp.subject.subject import evaluating, token_losses

ALLOWED = 0.01  # share of held-out images that may pass for extracted
_ROWS = 256  # of a forward
SAFE = 0.9  # a fixed threshold of correlation that looks safe


def read(
    subject: interp.Subject, batch: Batch, size: int = 256
) -> tuple[Bool[np.ndarray, "images length"], Float[np.ndarray, " images"]]:
    """Whether each token is the most likely one, given the class and the true tokens before it; and
    the mean loss of each image in nats a token."""
    found: list[tuple[Tensor, Tensor]] = []
    with evaluating(subject):
        for part in batch.split(size):
            logits = subject.logits(part)
            found.append(
                (
                    logits.argmax(-1).cpu() == part.tokens.cpu(),
                    token_losses(logits, part).mean(1).cpu(),
                )
            )
    hits, losses = zip(*found, strict=True)
    return torch.cat(hits).numpy(), torch.cat(losses).double().numpy()


def complete(hits: Bool[np.ndarray, "images length"], prefix: int) -> Bool[np.ndarray, " images"]:
    """Whether greedy decoding completes each image exactly from its first tokens: whether it hits
    all others, given the true ones."""
    return hits[:, prefix:].all(1)


def completed(study: Study, batch: Batch) -> Float[Tensor, "images channels side side"]:
    """What greedy decoding makes of the prompts, as images."""
    said = [study.subject.generate(part) for part in batch.split(_ROWS)]
    return study.module.decode(torch.cat([batch.tokens[:, : batch.prompt], torch.cat(said)], 1))


def extraction(study: Study, tried: Mapping[str, int]) -> pd.DataFrame:
    """One row an image and prefix of each set, or of the first of its images, as many as are
    `tried`: `exact`, and the `correlation` in pixels (or the study's own similarity) of what greedy
    decoding makes of the prefix with the image as the tokenizer gives it back."""
    frames: list[pd.DataFrame] = []
    alike = study.alike or correlation
    for name in SETS:
        batch = study.batches[name].rows(slice(0, tried.get(name)))
        target = study.module.decode(batch.tokens)
        for prefix in study.prefixes:
            parts = [
                verdicts(study.subject, replace(part, prompt=prefix)) for part in batch.split(_ROWS)
            ]
            exact = np.concatenate([part.hits.all(1) for part in parts])
            continuation = torch.as_tensor(
                np.concatenate([part.continuation for part in parts])
            ).to(batch.tokens)
            said = study.module.decode(torch.cat([batch.tokens[:, :prefix], continuation], 1))
            rows = {"set": name, "image": np.arange(len(batch)), "prefix": prefix, "exact": exact}
            frames.append(pd.DataFrame(rows | {"correlation": alike(said, target)}))
    return pd.concat(frames, ignore_index=True).assign(**study.about())


def by_correlation(table: pd.DataFrame) -> pd.DataFrame:
    """For each prefix, the threshold of correlation that half of the held-out images sets, and the
    `share` of each set above it and above a fixed one; of held-out images, of the other half."""
    rows: list[dict[str, object]] = []
    for prefix, part in table.groupby("prefix"):
        held_out = part[part["set"] == "held out"]["correlation"].to_numpy()
        cut = threshold(held_out[::2], ALLOWED)
        for name in SETS:
            values = (
                held_out[1::2]
                if name == "held out"
                else part[part["set"] == name]["correlation"].to_numpy()
            )
            for fixed, at in ((False, cut), (True, SAFE)):
                rows.append(
                    {
                        "prefix": prefix,
                        "set": name,
                        "threshold": at,
                        "fixed": fixed,
                        "share": (values > at).mean(),
                    }
                )
    return pd.DataFrame(rows)


def reference(study: Study, images: int) -> Images:
    """D': the planted images and some of the background."""
    background = study.images["background"]
    return Images.joined(
        [study.images["planted"], background.rows(slice(0, min(images, len(background))))]
    )


def encoded(study: Study, images: Images, views: int) -> Batch:
    """Views of images as tokens, all those of an image together; one view is the image itself."""
    seen = images if views == 1 else shifted(images, views, study.seed)
    return study.module.encode(seen.pixels, seen.labels)


def neurons(study: Study) -> tuple[interp.Site, ...]:
    """The MLPs' hidden units, which is where the paper looks."""
    return study.subject.anatomy.expand("neurons")


def selectivity(
    study: Study, images: Images, views: int
) -> tuple[UnitScores, dict[interp.Site, np.ndarray]]:
    """UnitMem of each neuron over some images, and the image of its maximum, collapsed as the paper
    reports each family: over scales for VAR, over all image tokens for RAR."""
    collapse = "segments" if study.family == "VAR" else "tokens"
    found = unitmem(
        study.subject,
        encoded(study, images, views),
        neurons(study),
        256,
        views=views,
        collapse=collapse,
    )
    scores = UnitScores(
        {site: score for site, (score, _) in found.items()},
        "unitmem",
        {"views": views, "collapse": collapse},
    )
    return scores, {site: example for site, (_, example) in found.items()}


def selectivity_map(study: Study, images: Images, views: int) -> pd.DataFrame:
    """The mean UnitMem of each `segment` and `block`, and how many of the segment's top 10% of
    neurons lie in the block."""
    rows = unitmem_by_segment(
        study.subject, encoded(study, images, views), neurons(study), 256, views=views
    )
    best = rows.groupby("segment", sort=False)["score"].rank(ascending=False, method="first")
    rows["top"] = best <= rows.groupby("segment", sort=False)["score"].transform("size") / 10
    found = (
        rows.groupby(["segment", "block"], sort=False)
        .agg(mean=("score", "mean"), top=("top", "sum"))
        .reset_index()
    )
    return found.assign(**study.about())


def votes(
    study: Study, scores: UnitScores, examples: Mapping[interp.Site, np.ndarray], images: int
) -> pd.DataFrame:
    """How often planted images are the ones that neurons respond to most: the `share` of all
    `neurons` and of the top 10%, and the `enrichment` over the share of planted images among all.
    """
    planted, top = len(study.images["planted"]), scores.top(0.1)
    base = planted / images
    every = np.concatenate([examples[site] for site in examples])
    best = np.concatenate([examples[site][top[site]] for site in examples])
    rows = [
        ("all", len(every), (every < planted).mean()),
        ("top 10%", len(best), (best < planted).mean()),
    ]
    frame = pd.DataFrame(rows, columns=["neurons", "count", "share"])
    return frame.assign(base=base, enrichment=frame["share"] / base, **study.about())


def centre(by_block: pd.DataFrame, weight: str) -> float:
    """The mean block, from 0 (first) to 1 (last), under a weight."""
    place = by_block["block"] / max(by_block["block"].max(), 1)
    return float(
        np.average(place.to_numpy(dtype=float), weights=by_block[weight].to_numpy(dtype=float))
    )


def subsets(
    study: Study, images: Images, shares: Sequence[float], views: int
) -> Iterator[tuple[float, UnitScores]]:
    """UnitMem over parts of D', each of which holds the smaller ones."""
    order = np.random.default_rng(study.seed).permutation(len(images))
    for share in shares:
        yield (
            share,
            selectivity(
                study, images.rows(np.sort(order[: max(2, round(share * len(images)))])), views
            )[0],
        )
