"""Laws of results: claims in the form that others read, and verdicts by their intervals."""

from __future__ import annotations

import json

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import interp
from interp.experiment.claims import Claim, judge
from interp.experiment.experiment import Results
from interp.reporting.stats import Interval

FIELDS = [
    "id",
    "statement",
    "source",
    "paper",
    "measured",
    "low",
    "high",
    "control",
    "seeds",
    "verdict",
    "evidence",
    "p_value",
    "adjusted_p_value",
    "adjusted_verdict",
]
CLAIM = Claim(
    "X1",
    "it holds",
    "found",
    0.5,
    0.6,
    0.55,
    0.65,
    "random: 0.1",
    3,
    "reproduced",
    "tables/t.parquet",
    0.01,
    0.03,
    "reproduced",
)


RESULTS = Results([CLAIM], {"t": pd.DataFrame({"a": [1, 2]})}, {"f": Figure()})


def test_claims_have_exactly_the_fields_that_others_read(tmp_path):
    RESULTS.save(tmp_path, {})
    (claim,) = json.loads((tmp_path / "claims.json").read_text())
    assert list(claim) == FIELDS
    assert claim == dict(
        zip(
            FIELDS,
            (
                "X1",
                "it holds",
                "found",
                0.5,
                0.6,
                0.55,
                0.65,
                "random: 0.1",
                3,
                "reproduced",
                "tables/t.parquet",
                0.01,
                0.03,
                "reproduced",
            ),
            strict=True,
        )
    )


def test_results_are_claims_tables_figures_and_a_configuration_with_versions(tmp_path):
    RESULTS.save(tmp_path, {"experiment": "toy", "preset": "smoke", "seed": 7, "seeds": 2})
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"claims.json", "config.json", "tables/t.parquet", "figures/f.png"}
    config = json.loads((tmp_path / "config.json").read_text())
    versions = config.pop("versions")
    assert config == {"experiment": "toy", "preset": "smoke", "seed": 7, "seeds": 2}
    assert {"python", "torch", "transformers"} <= versions.keys()
    assert versions["interp"] == interp.__version__
    assert pd.read_parquet(tmp_path / "tables" / "t.parquet").equals(pd.DataFrame({"a": [1, 2]}))


values = st.floats(-2, 2)


@given(st.lists(values, min_size=3, max_size=3).map(sorted), values)
def test_a_claim_is_reproduced_only_by_a_whole_interval_and_never_opposite_to_what_it_does_not_deny(
    ends, threshold
):
    interval = Interval(ends[1], ends[0], ends[2], 3)
    verdict = judge(interval, lambda v: v >= threshold, lambda v: v < 0)
    assert (verdict == "reproduced") == (ends[0] >= threshold)
    assert (verdict == "opposite") == (ends[2] < 0 and ends[0] < threshold)
    assert judge(interval, lambda v: v >= threshold) in ("reproduced", "not reproduced")
