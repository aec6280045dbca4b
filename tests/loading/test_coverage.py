"""The fast part of the census: one architecture of each kind, against its committed entry, and what
the README says of the whole."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.coverage import report
from benchmarks.coverage.census import Entry, examined

ROOT = Path(__file__).parents[2]

ONE_OF_EACH_KIND = (
    "gpt2",
    "llama",
    "gemma2",  # norms behind the halves
    "gptj",  # parallel halves
    "bert",  # the stream itself is normalized
    "granite",  # scaled halves
    "mixtral",  # experts in one tensor
    "qwen2_moe",  # a shared expert behind a gate
    "deepseek_v3",  # latent attention, dense and routed blocks
    "gpt_oss",  # attention with sinks
    "gemma4_text",  # inputs of each layer
    "mamba",
    "rwkv",
    "lfm2",  # convolutions among attention
    "qwen3_next",  # linear attention among attention, a gated output
    "falcon_h1",  # attention and a state space side by side
    "gemma3n_text",  # several residual streams: refused in part
    "longcat_flash",  # two attentions in a block: refused in part
    "xmod",  # no sum is known, and units are told by what depends on what
    "kolibri1",  # a norm behind a shared expert and routed ones
    "xlnet",  # sees later tokens: refused
    "musicgen",  # rows see each other: refused
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_an_architecture_is_right_wherever_it_is_not_refused(name: str):
    entry = examined(name, "causal")
    assert entry.outcome in ("loaded", "refused")
    assert not entry.is_wrong, entry
    if json.loads(report.RESULTS.read_text())["transformers"] == version("transformers"):
        [committed] = [e for e in report.read() if (e.name, e.kind) == (name, "causal")]
        assert (entry.outcome, entry.points) == (committed.outcome, committed.points)


def test_nothing_in_the_committed_census_is_wrong():
    entries = report.read()
    assert len(entries) > 250
    assert [entry.name for entry in entries if entry.is_wrong] == []


def test_the_readme_and_the_page_say_what_the_census_found():
    results = json.loads(report.RESULTS.read_text())
    about = {name: results[name] for name in ("date", "transformers", "torch")}
    assert report.summary(report.read()) in (ROOT / "README.md").read_text()
    assert (ROOT / report.PAGE).read_text() == report.page(report.read(), about)


@pytest.mark.parametrize("status", ["wrong", "unknown"])
def test_what_is_not_proven_right_counts_as_wrong(status: str):
    laws = {"scan": True}
    right = Entry("one", "causal", "loaded", points={"heads": {"right": 3}}, laws=laws)
    other = Entry("two", "causal", "loaded", points={"heads": {"right": 2, status: 1}}, laws=laws)
    assert not right.is_wrong
    assert other.is_wrong
    assert Entry("three", "causal", "loaded", laws={"scan": False}).is_wrong
    assert Entry("four", "causal").is_wrong  # it crashed
