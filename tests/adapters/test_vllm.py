"""Laws of verdicts by vLLM: from log-probabilities by hand, and equal to a scan of ours where a
stand-in for the engine computes them from the same model. The engine itself is asked where it is
installed."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import letters
import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import processors

import interp
from interp.adapters.vllm import read, teacher_force
from interp.memorization.served import scan_served

KNOWN = letters.noise(4, 32, seed=1)
TEXTS = [*KNOWN, *letters.noise(3, 32, seed=2), "short", letters.noise(1, 41, seed=3)[0]]
SHARED = ["text", "start", "prefix", "length", "tokens", "exact", "matched", "run", "accuracy"]


@dataclass
class Logprob:
    """As vLLM documents its own."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


def listing(scores: torch.Tensor, token: int, top: int) -> dict[int, Logprob]:
    """What vLLM gives for a position: the true token with its rank, which counts the tokens that
    are at least as likely, and over it the most likely ones, with their places as ranks."""
    own = scores[token]
    listed = {token: Logprob(float(own), int((scores >= own).sum()))}
    values, tokens = scores.topk(top)
    for place, (value, other) in enumerate(zip(values.tolist(), tokens.tolist(), strict=True)):
        listed[other] = Logprob(value, place + 1)
    return listed


class Engine:
    """A `vllm.LLM` that computes with a subject of ours."""

    def __init__(self, subject: interp.Subject, *, caching: bool | None = False) -> None:
        self.subject = subject
        self.llm_engine = SimpleNamespace(
            vllm_config=SimpleNamespace(
                cache_config=SimpleNamespace(enable_prefix_caching=caching),
                model_config=SimpleNamespace(model="a/model", logprobs_mode="raw_logprobs"),
            )
        )

    def get_tokenizer(self) -> Any:
        return self.subject.tokenizer

    def generate(self, prompts: Sequence[Any], params: Any, *, use_tqdm: bool) -> list[Any]:
        assert params.max_tokens == 1
        outputs: list[Any] = []
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            with torch.no_grad():
                logits = self.subject.logits(interp.Batch(torch.tensor([ids])))[0]
            scores = logits.float().log_softmax(-1)
            pairs = list(zip(scores, ids, strict=True))[1:]
            listed = [listing(row, token, params.prompt_logprobs) for row, token in pairs]
            answer = SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=[None, *listed])
            outputs.append(answer)
        return outputs


@pytest.fixture(autouse=True)
def _parameters(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    if "slow" not in request.keywords:
        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))


@pytest.fixture(scope="module")
def subject() -> interp.Subject:
    return letters.overfitted(KNOWN)


# By hand


def of(*positions: dict[int, tuple[float, int]]) -> list[Any]:
    """`prompt_logprobs` of some positions, behind one of a first token."""
    listed = [{token: Logprob(*entry) for token, entry in each.items()} for each in positions]
    return [None, *listed]


def test_by_hand():
    found = read(
        of(
            {4: (-0.1, 1), 8: (-2.5, 2)},  # 4 comes first
            {5: (-3.0, 7), 8: (-0.2, 1), 9: (-1.0, 2)},  # 5 is not among the first two
            {6: (-1.0, 2), 8: (-0.5, 1)},  # 6 is second
        ),
        [3, 4, 5, 6],
        1,
    )
    assert found.hits.tolist() == [[True, False, False]]
    assert found.log_p.tolist() == [[-0.1, -3.0, -1.0]]
    assert found.tied.tolist() == [[False] * 3]
    assert read([None, *of({4: (-0.1, 1), 8: (-2.5, 2)})], [1, 3, 4], 2).hits.tolist() == [[True]]


@pytest.mark.parametrize("ranks", [(1, 2), (2, 1), (2, 2), (1, 1), (None, None)])
def test_a_shared_first_rank_is_told_and_goes_to_the_lowest_id_whatever_the_ranks(ranks: Any):
    one, other = ranks
    position = {4: (-0.7, one), 8: (-0.7, other), 2: (-4.0, 3)}
    lower, higher = read(of(position), [3, 4], 1), read(of(position), [3, 8], 1)
    assert (lower.hits.item(), higher.hits.item()) == (True, False)
    assert lower.tied.item()
    assert higher.tied.item()
    # A tie among others is none of the true token's.
    third = read(of(position), [3, 2], 1)
    assert (third.hits.item(), third.tied.item()) == (False, False)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (None, "for 0 of 2 tokens"),
        ([None], "for 1 of 2 tokens"),
        ([None, None], r"token 1: vLLM gave the log-probabilities of tokens \[\] and not of 4"),
        (of({5: (-0.1, 1)}), r"of tokens \[5\] and not of 4"),
        (of({4: (float("nan"), 1), 5: (-1.0, 2)}), "token 1: vLLM gave NaN"),
        (of({4: (-0.7, 1), 5: (-0.7, 2)}), "none of the 2 tokens .* ask for more with top="),
        (of({4: (-0.7, 1)}), "none of the 1 tokens"),
        (of({4: (-0.9, 1), 5: (-0.7, 2)}), "contradict each other"),
        (of({4: (-0.7, 2), 5: (-0.9, 2)}), "contradict each other"),
    ],
)
def test_what_does_not_tell_the_verdict_is_refused(listed: Any, message: str):
    with pytest.raises(ValueError, match=message):
        read(listed, [3, 4], 1)


# Against our own scan


def check_equal(found: pd.DataFrame, wanted: pd.DataFrame, tolerance: float = 1e-4) -> None:
    columns = [*SHARED, "prompt", "suffix"]
    pd.testing.assert_frame_equal(found[columns], wanted[columns])
    np.testing.assert_allclose(found["log_p"], wanted["log_p"], atol=tolerance)
    exact = wanted["exact"].to_numpy()
    assert (found["similarity"][exact] == 1).all()
    assert found["similarity"][~exact].isna().all()


@pytest.mark.parametrize("options", [{}, {"stride": 3}, {"batch_size": 1}, {"top": 2}])
def test_a_served_model_is_scanned_as_ours(subject: interp.Subject, options: Any):
    found = scan_served(Engine(subject), TEXTS, 8, 8, **options)
    wanted = interp.scan(subject, TEXTS, 8, 8, stride=options.get("stride"))
    check_equal(found, wanted)
    assert found["exact"].nunique() == 2
    assert not found["tied"].any()
    for name in ("texts", "skipped", "prefix", "length", "stride", "bos"):
        assert found.attrs[name] == wanted.attrs[name]
    assert found.attrs["served"] == "a/model"
    memorized, control = interp.split(found)
    assert len(memorized)
    assert len(control)


def test_windows_are_behind_the_start_tokens_of_the_served_tokenizer(subject: interp.Subject):
    tokenizer = letters.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="~ $A", special_tokens=[("~", letters.LETTERS.index("~"))]
    )
    behind = interp.load(subject.module, tokenizer=tokenizer)
    for bos in (True, False):
        found = scan_served(Engine(behind), TEXTS, 8, 8, bos=bos)
        wanted = interp.scan(behind, TEXTS, 8, 8, bos=bos)
        check_equal(found, wanted)
        assert ("bos" in found) == bos
        if bos:
            assert found["bos"].tolist() == wanted["bos"].tolist()


def test_ties_of_a_model_are_broken_as_ours(subject: interp.Subject):
    """Each letter has a twin: another token with the same logit, as in half precision by chance."""
    module = copy.deepcopy(subject.module)
    head: Any = module.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        for token in range(0, 60, 2):
            head.weight[token + 1] = head.weight[token]
    twins = interp.load(module, tokenizer=subject.tokenizer)
    found = scan_served(Engine(twins), TEXTS, 8, 8)
    check_equal(found, interp.scan(twins, TEXTS, 8, 8))
    assert found["tied"].max() > 1


def test_what_cannot_be_trusted_or_scanned_is_refused(subject: interp.Subject):
    for caching in (True, None):
        with pytest.raises(ValueError, match="enable_prefix_caching=False"):
            scan_served(Engine(subject, caching=caching), TEXTS, 8, 8)
    raw = Engine(subject)
    raw.llm_engine.vllm_config.model_config.logprobs_mode = "raw_logits"
    with pytest.raises(ValueError, match="'raw_logits' does not give"):
        scan_served(raw, TEXTS, 8, 8)
    with pytest.raises(ValueError, match="enable_prefix_caching=False"):
        scan_served(subject, TEXTS, 8, 8)
    engine = Engine(subject)
    with pytest.raises(ValueError, match="must be at least 1"):
        scan_served(engine, TEXTS, 0, 8)
    with pytest.raises(ValueError, match="top=1: expected at least 2"):
        scan_served(engine, TEXTS, 8, 8, top=1)
    with pytest.raises(ValueError, match="1 of 1 texts are shorter than 16"):
        scan_served(engine, ["short"], 8, 8)
    with pytest.raises(ValueError, match="texts is one string"):
        scan_served(engine, "short", 8, 8)
    for sequences, prompt in (([[1, 2], [1, 2, 3]], 1), ([[1, 2]], 0), ([[1, 2]], 2), ([], 1)):
        with pytest.raises(ValueError, match="expected sequences of one length"):
            teacher_force(engine, sequences, prompt)


def test_answers_about_other_tokens_are_refused(subject: interp.Subject):
    class Shuffled(Engine):
        def generate(self, prompts: Sequence[Any], params: Any, *, use_tqdm: bool) -> list[Any]:
            return super().generate(prompts, params, use_tqdm=use_tqdm)[::-1]

    class Silent(Engine):
        def generate(self, prompts: Sequence[Any], params: Any, *, use_tqdm: bool) -> list[Any]:
            return []

    with pytest.raises(ValueError, match="about other tokens than those that were sent"):
        scan_served(Shuffled(subject), TEXTS, 8, 8)
    with pytest.raises(ValueError, match="answered 0 of"):
        scan_served(Silent(subject), TEXTS, 8, 8)


@pytest.mark.slow
def test_vllm_itself(subject: interp.Subject, tmp_path: Path):
    vllm = pytest.importorskip("vllm", reason="needs vLLM: pip install vllm")
    folder = letters.saved(subject, tmp_path / "model")
    llm = vllm.LLM(
        str(folder),
        dtype="float32",
        enable_prefix_caching=False,
        enforce_eager=True,
        max_model_len=64,
        gpu_memory_utilization=0.2,
    )
    check_equal(scan_served(llm, TEXTS, 8, 8), interp.scan(subject, TEXTS, 8, 8), 1e-2)
