"""What is measured of a model, edited or not: what can be extracted, and where units respond to
single images (UnitMem)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

import interp
from experiments.iar_memorization.build import Study
from experiments.iar_memorization.presets import SETS
from interp.data.images import Images, correlation, shift_images, threshold
from interp.localization.methods.unitmem import unitmem, unitmem_by_segment
from interp.memorization.teacher_forcing import teacher_force
from interp.sites.units import UnitScores
from interp.subject.batch import Batch
from interp.subject.subject import evaluating, token_losses

ALLOWED = 0.01  # fraction of held-out images that may be taken for extracted
SAFE = 0.9  # a fixed threshold of correlation that looks safe
_BATCH_SIZE = 256


def read(
    subject: interp.Subject, batch: Batch, batch_size: int = 256
) -> tuple[Bool[np.ndarray, "images length"], Float[np.ndarray, " images"]]:
    """Whether each token is the most likely one, and the mean loss of each image.

    Args:
        subject: the model, given the class and the true tokens before each token.
        batch: the images.
        batch_size: batch size.

    Returns:
        Hits, one per image and token; losses in nats per token, one per image.
    """
    hits: list[Tensor] = []
    losses: list[Tensor] = []
    with evaluating(subject):
        for part in batch.split(batch_size):
            logits = subject.logits(part)
            hits.append(logits.argmax(-1).cpu() == part.tokens.cpu())
            losses.append(token_losses(logits, part).mean(1).cpu())
    return torch.cat(hits).numpy(), torch.cat(losses).double().numpy()


def complete(hits: Bool[np.ndarray, "images length"], prefix: int) -> Bool[np.ndarray, " images"]:
    """Whether greedy decoding from the first `prefix` tokens gives all other tokens of each
    image."""
    # Nothing needs to be decoded: as long as greedy decoding has made no mistake, the tokens before
    # the next one are the true ones, so it makes its first mistake where `hits` has one.
    return hits[:, prefix:].all(1)


def complete_images(study: Study, batch: Batch) -> Float[Tensor, "images channels side side"]:
    """The images that greedy decoding makes of the prompts."""
    continuations = [study.subject.generate(part) for part in batch.split(_BATCH_SIZE)]
    prompts = batch.tokens[:, : batch.prompt]
    return study.module.decode(torch.cat([prompts, torch.cat(continuations)], 1))


def extraction(study: Study, tried: Mapping[str, int]) -> pd.DataFrame:
    """How well greedy decoding from each prefix reproduces each image.

    Args:
        study: the model and its images.
        tried: number of images to try of each set, by name; all images of a set that is not named.

    Returns:
        One row per set, `image` and `prefix`: `exact`, whether all other tokens are the image's
        own, and `correlation`, the similarity of the completion to the image as the tokenizer
        reconstructs it (correlation of pixels, or the study's own similarity).
    """
    alike = study.alike or correlation
    frames: list[pd.DataFrame] = []
    for name in SETS:
        batch = study.batches[name].rows(slice(0, tried.get(name)))
        # Not the image itself: what the tokenizer loses is lost for every completion, and says
        # nothing about memory.
        target = study.module.decode(batch.tokens)
        for prefix in study.prefixes:
            exact, completions = _completions(study, batch, prefix)
            rows = {"set": name, "image": np.arange(len(batch)), "prefix": prefix, "exact": exact}
            similarity = alike(completions, target)
            frames.append(pd.DataFrame(rows | {"correlation": similarity}))
    return pd.concat(frames, ignore_index=True).assign(**study.about())


def _completions(
    study: Study, batch: Batch, prefix: int
) -> tuple[Bool[np.ndarray, " images"], Float[Tensor, "images channels side side"]]:
    """Whether each image is extracted exactly, and the image that greedy decoding makes instead."""
    parts = [
        teacher_force(study.subject, replace(part, prompt=prefix))
        for part in batch.split(_BATCH_SIZE)
    ]
    exact = np.concatenate([part.hits.all(1) for part in parts])
    continuation = np.concatenate([part.continuation for part in parts])
    given = batch.tokens[:, :prefix]
    generated = torch.as_tensor(continuation).to(given)
    tokens = torch.cat([given, generated], 1)
    return exact, study.module.decode(tokens)


def by_correlation(table: pd.DataFrame) -> pd.DataFrame:
    """How many images would count as extracted by the correlation of pixels.

    The threshold is either set on half of the held-out images, so that ALLOWED of them lie above
    it, or fixed at SAFE. The share of held-out images above it is measured on the other half.

    Args:
        table: the table of `extraction`.

    Returns:
        One row per `prefix`, `set` and threshold (`fixed` or not): the `threshold`, and the `share`
        of images above it.
    """
    rows: list[dict[str, object]] = []
    for prefix, part in table.groupby("prefix"):
        correlations = {name: part[part["set"] == name]["correlation"].to_numpy() for name in SETS}
        held_out = correlations["held out"]
        cut = threshold(held_out[::2], ALLOWED)
        # The images that set the threshold cannot test it: 1% of them pass by construction.
        correlations["held out"] = held_out[1::2]
        for name, values in correlations.items():
            for fixed, at in ((False, cut), (True, SAFE)):
                row = {"prefix": prefix, "set": name, "threshold": at, "fixed": fixed}
                rows.append(row | {"share": (values > at).mean()})
    return pd.DataFrame(rows)


def reference(study: Study, images: int) -> Images:
    """The reference set D': the planted images, then at most `images` of the background."""
    background = study.images["background"]
    count = min(images, len(background))
    return Images.join([study.images["planted"], background.rows(slice(0, count))])


def encode_views(study: Study, images: Images, views: int) -> Batch:
    """Shifted views of images as tokens, those of one image together; one view is the image
    itself."""
    shown = images if views == 1 else shift_images(images, views, study.seed)
    return study.module.encode(shown.pixels, shown.labels)


def neurons(study: Study) -> tuple[interp.Site, ...]:
    """The hidden units of all MLPs, which is where the paper looks."""
    return study.subject.anatomy.expand("neurons")


def selectivity(
    study: Study, images: Images, views: int
) -> tuple[UnitScores, dict[interp.Site, np.ndarray]]:
    """UnitMem of each neuron over some images, and the image that each neuron responds to most.

    Positions are collapsed as the paper reports each family: over scales for VAR, over all image
    tokens for RAR.
    """
    collapse = "segments" if study.family == "VAR" else "tokens"
    found = unitmem(
        study.subject,
        encode_views(study, images, views),
        neurons(study),
        _BATCH_SIZE,
        views=views,
        collapse=collapse,
    )
    scores = {site: score for site, (score, _) in found.items()}
    examples = {site: example for site, (_, example) in found.items()}
    return UnitScores(scores, "unitmem", {"views": views, "collapse": collapse}), examples


def selectivity_map(study: Study, images: Images, views: int) -> pd.DataFrame:
    """UnitMem by part of the image and by depth.

    Args:
        study: the model and its images.
        images: the images that UnitMem is computed on.
        views: number of shifted views of each image.

    Returns:
        One row per `segment` (scale or row of the image) and `block`: `mean`, the mean UnitMem of
        the block's neurons; and `top`, how many of them are among the 10% of all neurons with the
        largest UnitMem in this segment.
    """
    table = unitmem_by_segment(
        study.subject, encode_views(study, images, views), neurons(study), _BATCH_SIZE, views=views
    )
    scores = table.groupby("segment", sort=False)["score"]
    # "first" breaks ties by position, so that exactly a tenth is chosen where many are 0.
    rank = scores.rank(ascending=False, method="first")
    table["top"] = rank <= scores.transform("size") / 10
    blocks = table.groupby(["segment", "block"], sort=False)
    found = blocks.agg(mean=("score", "mean"), top=("top", "sum")).reset_index()
    return found.assign(**study.about())


def votes(
    study: Study, scores: UnitScores, examples: Mapping[interp.Site, np.ndarray], images: int
) -> pd.DataFrame:
    """How often the image that a neuron responds to most is a planted one.

    Args:
        study: the model and its images.
        scores: UnitMem of each neuron.
        examples: the image that each neuron responds to most; the planted images come first.
        images: number of images that UnitMem was computed on.

    Returns:
        One row for all `neurons` and one for the top 10%: their `count`, the `share` whose image is
        planted, the share of planted images among all (`base`), and the `enrichment`, share / base.
    """
    # An image is planted if its number is below this: `reference` puts the planted ones first.
    planted = len(study.images["planted"])
    base = planted / images
    top = scores.top(0.1)
    of_all = np.concatenate([examples[site] for site in examples])
    of_top = np.concatenate([examples[site][top[site]] for site in examples])
    rows = [
        ("all", len(of_all), (of_all < planted).mean()),
        ("top 10%", len(of_top), (of_top < planted).mean()),
    ]
    frame = pd.DataFrame(rows, columns=["neurons", "count", "share"])
    return frame.assign(base=base, enrichment=frame["share"] / base, **study.about())


def centre(by_block: pd.DataFrame, weight: str) -> float:
    """The mean depth, from 0 (first block) to 1 (last block), weighted by a column."""
    depth = by_block["block"] / max(by_block["block"].max(), 1)
    weights = by_block[weight].to_numpy(dtype=float)
    return float(np.average(depth.to_numpy(dtype=float), weights=weights))


def subsets(
    study: Study, images: Images, shares: Sequence[float], views: int
) -> Iterator[tuple[float, int, UnitScores]]:
    """UnitMem on random subsets of the reference images, for each share of them. The subsets are
    nested: a larger one contains the smaller ones.

    Args:
        study: the model and its images.
        images: the reference images.
        shares: the size of each subset, as a fraction of `images`.
        views: number of shifted views of each image.

    Yields:
        Each share, the number of its images, and the UnitMem of each neuron on them.
    """
    order = np.random.default_rng(study.seed).permutation(len(images))
    for share in shares:
        # UnitMem compares an image with the mean of the others, so that there must be one.
        count = max(2, round(share * len(images)))
        part = images.rows(np.sort(order[:count]))
        scores, _ = selectivity(study, part, views)
        yield share, count, scores
