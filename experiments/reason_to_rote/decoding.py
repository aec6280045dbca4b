"""Are the steps of the reasoning still computed when the model gives the memorized answer? Probes
and the logit lens, sublayer by sublayer."""

from __future__ import annotations

import pandas as pd

from experiments.reason_to_rote.study import Studied, Study, Tables
from interp.analysis.logit_lens import lens
from interp.analysis.probes import Labelled, probe, refuse_shared_inputs
from interp.sites.site import Site


def decode(study: Study, seed: int) -> Tables:
    """The tables `probes` and `lens` of a model.

    `probes` holds the accuracy of probes that are trained on clean items and tested on the sets; in
    rows with `apart`, on items with combinations of inputs that the probe was not trained on. The
    model at the end of training is probed for every variable, others for the intermediate result
    only. `lens` holds what the model's own output head reads.
    """
    of = study.reasoning
    probed = of.probed if study.stage == "end" else ((of.variable, of.read),)
    for position in {position for _, position in probed}:
        refuse_what_is_shared(study, position)

    probes: list[pd.DataFrame] = []
    for variable, position in probed:
        probes.append(_probed(study, variable, position, seed, apart=False))
        if variable in (of.variable, of.result):
            probes.append(_probed(study, variable, position, seed, apart=True))
    return {"probes": pd.concat(probes), "lens": read_by_head(study)}


def refuse_what_is_shared(study: Study, position: int) -> None:
    """Raises ValueError if an item of a set has, up to a position, the inputs of an item outside
    it: what is read there could not be about the set."""
    for name, items in study.sets.items():
        others = study.outside(name).batch()
        refuse_shared_inputs(
            items.batch, others, position, names=(f"{name} items", "the items outside")
        )


def residuals(study: Study) -> list[Site]:
    """The sites of the residual stream before the first block and after every sublayer."""
    sites = [Site("resid_pre", 0)]
    for block in range(study.blocks):
        sites += [Site("resid_mid", block), Site("resid_post", block)]
    return sites


def _probed(study: Study, variable: str, position: int, seed: int, *, apart: bool) -> pd.DataFrame:
    of = study.reasoning
    is_result = variable == of.result
    inputs = of.result_group if is_result else of.group

    def labelled(items: Studied, *, noisy: bool) -> Labelled:
        readings = {"true": items.items.variables[variable]}
        if noisy:
            readings["noisy"] = items.label
        return Labelled(items.batch, readings, items.group(inputs) if apart else None)

    # Only the answer has a wrong value that a probe could read; intermediate results have none.
    tests = {name: labelled(items, noisy=is_result) for name, items in study.sets.items()}
    accuracy = probe(
        study.subject,
        labelled(study.clean, noisy=False),
        tests,
        tuple(residuals(study)),
        position,
        seed=seed,
    )
    depth = accuracy["site"].map(_depth(study))
    return study.table(
        accuracy.assign(variable=variable, position=position, apart=apart, depth=depth)
    )


def read_by_head(study: Study) -> pd.DataFrame:
    """The table `lens`: what the output head reads of the residual stream at each depth."""
    # The last position that is given, which predicts the token that is read.
    position = study.memorized.batch.prompt - 1
    sites = tuple(residuals(study))
    readings: list[pd.DataFrame] = []
    for name, items in study.sets.items():
        answers = {"true": items.true}
        if name == "memorized":
            answers["noisy"] = items.label
        read = lens(study.subject, items.batch, answers, sites, position=position)
        readings.append(read.assign(set=name))
    frame = pd.concat(readings)
    return study.table(frame.assign(depth=frame["site"].map(_depth(study))))


def _depth(study: Study) -> dict[str, float]:
    """The depth of each site in blocks: 0.5 after the first attention, 1 after the first MLP."""
    return {str(site): sublayers / 2 for sublayers, site in enumerate(residuals(study))}
