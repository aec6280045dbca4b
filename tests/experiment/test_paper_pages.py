"""Pages about papers hold what their claims hold, and nothing is typed by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import interp
from interp.experiment.claims import NOT_TESTABLE, committed_claims
from interp.experiment.paper_pages import claims_by_result, claims_table, page, write_pages

HOUSE = Path(interp.__file__).parents[1]


def claim(
    name: str, measured: float, verdict: str = "reproduced", adjusted: str = ""
) -> dict[str, object]:
    interval = {"measured": measured, "low": measured - 0.05, "high": measured + 0.05}
    words = {"statement": f"{name} | holds", "paper": None, "control": "random: 0.1"}
    verdicts = {"verdict": verdict, "adjusted_verdict": adjusted or verdict}
    return {"id": name, "seeds": 3, "adjusted_p_value": 0.125, **verdicts, **interval, **words}


CLAIMS = {
    "small": {
        "P1": claim("P1", 0.5),
        "P1, seed 0": claim("P1, seed 0", 0.4, "not testable at this scale"),
        "P2 THR": claim("P2 THR", 44.5, "opposite"),
    }
}


def test_numbers_are_those_of_the_claims():
    text = "{small:P1}; {small:P1|value}; {small:P1, seed 0|verdict}; {small:P2 THR}"
    expected = "0.50 [0.45, 0.55]; 0.50; not testable at this scale; 44.5 [44.5, 44.5]"
    assert page(text, CLAIMS) == expected
    assert page("{verdicts small}", CLAIMS) == "1 reproduced, 1 opposite"


def test_a_table_has_a_row_for_every_claim_over_seeds():
    text = page("before\n\n{claims small}\n", CLAIMS)
    rows = [line for line in text.splitlines() if line.startswith("| P")]
    assert [row.split(" | ")[0] for row in rows] == ["| P1", "| P2 THR"]
    assert "P1 \\| holds" in rows[0]
    assert claims_table(CLAIMS["small"]) in text


def test_both_verdicts_are_told_where_they_differ():
    results = {"small": {"P1": claim("P1", 0.5, "reproduced", "not reproduced")}}
    both = "reproduced (adjusted: not reproduced)"
    assert page("{small:P1|verdict}", results) == both
    counted = "1 reproduced (adjusted for the number of claims: 1 not reproduced)"
    assert page("{verdicts small}", results) == counted
    assert "| reproduced | not reproduced (p 0.12) |" in page("{claims small}", results)


def test_a_sentence_is_that_of_the_claim():
    sentence = page("{small:P1|sentence} ({small:P1|control}; {seeds small} seeds)", CLAIMS)
    measured = "P1 | holds: 0.50 [0.45, 0.55], reproduced."
    assert sentence == f"{measured} (random: 0.1; 3 seeds)"


def test_what_was_not_measured_has_no_number():
    unmeasured = claim("P1", 0.5) | dict.fromkeys(("measured", "low", "high"))
    results = {"small": {"P1": unmeasured}}
    assert page("{small:P1}, {small:P1|value}", results) == "not measured, not measured"
    assert "| not measured |" in page("{claims small}", results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{smal:P1}", "no result 'smal'; nearest: small"),
        ("{claims smal}", "no result 'smal'; nearest: small"),
        ("{small:P3}", "no claim 'P3' in small; nearest: P"),
        ("{small:P1|valu}", "no format 'valu'; nearest: value"),
    ],
)
def test_what_does_not_exist_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        page(text, CLAIMS)


def test_the_committed_pages_are_those_of_the_committed_claims(tmp_path):
    written = write_pages(HOUSE / "experiments", tmp_path)
    assert {file.name for file in written} == {f.name for f in (HOUSE / "docs/papers").glob("*.md")}
    for file in written:
        committed = (HOUSE / "docs/papers" / file.name).read_text()
        assert file.read_text() == committed, f"{file.name}: run `make docs`"


def test_no_committed_claim_of_one_seed_is_judged():
    judged = [
        (claim["experiment"], claim["result"], claim["id"])
        for claim in committed_claims(HOUSE / "experiments")
        if claim["seeds"] == 1 and claim["verdict"] != NOT_TESTABLE
    ]
    assert not judged


def test_templates_type_no_measurement():
    """An interval in a template was typed by hand."""
    for template in (HOUSE / "experiments").glob("*/paper.md"):
        assert claims_by_result(HOUSE / "experiments", template.parent.name)
        typed = re.findall(r"\d\.\d+ \[", template.read_text())
        assert not typed, f"{template}: {typed}"
