"""Are the steps of the reasoning still computed where the memorized answer is said? Probes and the
logit lens, block by block."""

from __future__ import annotations

import pandas as pd

from experiments.reason_to_rote.study import Studied, Study, Tables
from interp.analysis.logit_lens import lens
from interp.analysis.probes import Labelled, probe
from interp.sites.site import Site


def decoded(study: Study, seed: int) -> Tables:
    """`probes`: what a probe trained on clean items reads of others, and (`apart`) of items whose
    inputs it was not trained on; of models that are compared with the trained one, the intermediate
    result alone. `lens`: what the model's own output head reads."""
    of = study.reasoning
    asked = of.probed if study.stage == "end" else ((of.variable, of.position),)
    probes = [
        _probed(study, name, position, seed, apart=apart)
        for name, position in asked
        for apart in (False, True)
    ]
    return {"probes": pd.concat(probes), "lens": _lens(study)}


def residuals(study: Study) -> list[Site]:
    """The residual before the first block, and after every sublayer."""
    blocks = range(study.blocks)
    return [
        Site("resid_pre", 0),
        *(Site(point, block) for block in blocks for point in ("resid_mid", "resid_post")),
    ]


def _probed(study: Study, variable: str, position: int, seed: int, *, apart: bool) -> pd.DataFrame:
    of = study.reasoning
    group = of.result_group if variable == of.result else of.group

    def labelled(items: Studied, *, noisy: bool) -> Labelled:
        readings = {"true": items.items.variables[variable]} | (
            {"noisy": items.label} if noisy else {}
        )
        return Labelled(items.batch, readings, items.group(group) if apart else None)

    tests = {
        name: labelled(items, noisy=variable == of.result) for name, items in study.sets.items()
    }
    found = probe(
        study.subject,
        labelled(study.clean, noisy=False),
        tests,
        tuple(residuals(study)),
        position,
        seed=seed,
    )
    return study.table(
        found.assign(
            variable=variable,
            position=position,
            apart=apart,
            depth=found["site"].map(_depth(study)),
        )
    )


def _lens(study: Study) -> pd.DataFrame:
    position, sites = study.memorized.batch.prompt - 1, tuple(residuals(study))
    found = []
    for name, items in study.sets.items():
        answers = {"true": items.true} | ({"noisy": items.label} if name == "memorized" else {})
        found.append(
            lens(study.subject, items.batch, answers, sites, position=position).assign(set=name)
        )
    frame = pd.concat(found)
    return study.table(frame.assign(depth=frame["site"].map(_depth(study))))


def _depth(study: Study) -> dict[str, float]:
    """Sublayers passed, by site, in blocks: 0.5 after the first attention."""
    return {str(site): n / 2 for n, site in enumerate(residuals(study))}
