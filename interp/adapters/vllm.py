"""Verdicts by vLLM: which tokens of a sequence a served model would have generated, from the
`prompt_logprobs` of one request for each sequence.

vLLM generates nothing for this: like a teacher-forced forward, it gives at each position the
log-probabilities of the most likely tokens and of the true one. It runs no interventions.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

_TOP = 5


@dataclass(frozen=True, eq=False)
class Served:
    """What vLLM's log-probabilities say about sequences of one length, after their prompts.

    Attributes:
        hits: whether the true token is the most likely one; of several that are equally likely, the
            one with the lowest id, as `argmax` takes it.
        log_p: log-probability of each true token, in nats.
        tied: where the true token is as likely as another, and no token is likelier: what a greedy
            decoder generates there depends on how it breaks the tie.
    """

    hits: Bool[np.ndarray, "batch length"]
    log_p: Float[np.ndarray, "batch length"]
    tied: Bool[np.ndarray, "batch length"]


def teacher_force(
    llm: Any, sequences: Sequence[Sequence[int]], prompt: int, top: int = _TOP
) -> Served:
    """Returns hits and log-probabilities of all tokens after the prompts.

    Args:
        llm: a `vllm.LLM(..., enable_prefix_caching=False)`.
        sequences: token ids, all of one length: prompts with what follows them.
        prompt: how many leading tokens are the prompt, at least 1.
        top: how many of the most likely tokens vLLM lists at each position, at least 2: with fewer
            a tie cannot be seen. More than 20 have to be allowed by `LLM(max_logprobs=)`.

    Raises:
        ValueError: no sequence, several lengths, no prompt or nothing after it, a `top` below 2, an
            engine that caches prefixes or whose log-probabilities are not those of the model, or
            output from which the verdict cannot be told (see `read`).
    """
    check_engine(llm)
    lengths = {len(sequence) for sequence in sequences}
    if len(lengths) != 1 or not 1 <= prompt < min(lengths):
        raise ValueError(
            f"expected sequences of one length and a prompt shorter than it, at least 1; got "
            f"lengths {sorted(lengths)} and prompt={prompt}"
        )
    if top < 2:
        raise ValueError(f"top={top}: expected at least 2, else a tie cannot be seen")
    peer: Any = importlib.import_module("vllm")
    # One token has to be generated; nobody reads it.
    asked = peer.SamplingParams(
        temperature=0.0, max_tokens=1, prompt_logprobs=top, detokenize=False
    )
    prompts = [{"prompt_token_ids": list(sequence)} for sequence in sequences]
    outputs = llm.generate(prompts, asked, use_tqdm=False)
    if len(outputs) != len(prompts):
        raise ValueError(f"vLLM answered {len(outputs)} of {len(prompts)} requests")

    rows: list[Served] = []
    for sequence, output in zip(sequences, outputs, strict=True):
        if list(output.prompt_token_ids) != list(sequence):
            raise ValueError(
                "vLLM answered about other tokens than those that were sent: expected its outputs "
                "in the order of the requests, with nothing put in front"
            )
        rows.append(read(output.prompt_logprobs, sequence, prompt))
    return Served(
        np.concatenate([row.hits for row in rows]),
        np.concatenate([row.log_p for row in rows]),
        np.concatenate([row.tied for row in rows]),
    )


def check_engine(llm: Any) -> None:
    """Checks that the log-probabilities of an engine can be trusted.

    Raises:
        ValueError: it caches prefixes, or does not say that it does not: `prompt_logprobs` then
            depend on the order of requests; or it gives logits, or log-probabilities after
            processing.
    """
    config: Any = getattr(getattr(llm, "llm_engine", None), "vllm_config", None)
    cache = getattr(config, "cache_config", None)
    if getattr(cache, "enable_prefix_caching", None) is not False:
        raise ValueError(
            "prompt_logprobs of an engine that caches prefixes depend on the order of requests: "
            "expected vllm.LLM(..., enable_prefix_caching=False)"
        )
    mode = getattr(config.model_config, "logprobs_mode", "raw_logprobs")  # older: raw
    name = getattr(mode, "value", mode)
    if name != "raw_logprobs":
        raise ValueError(
            f"logprobs_mode={name!r} does not give the model's log-probabilities: expected "
            '"raw_logprobs"'
        )


def read(prompt_logprobs: Any, tokens: Sequence[int], prompt: int) -> Served:
    """Returns what vLLM's `prompt_logprobs` of one request say, as a batch of one row.

    Ranks are not used to decide: in vLLM the rank of a token that is listed is its place in the
    list, which says nothing among equals, and that of another is the number of tokens that are at
    least as likely, itself included. The log-probabilities of the list show a tie.

    Args:
        prompt_logprobs: for each token of the request None (the first), or a mapping from token ids
            to objects with `logprob` and `rank`: the most likely tokens, and the true one.
        tokens: the token ids of the request.
        prompt: how many leading tokens are the prompt.

    Raises:
        ValueError: no log-probabilities for a position, or not of its token; one that is NaN; a
            rank that contradicts them; or no listed token is less likely than the true one, so that
            it is not known how many are as likely.

    Example:
        >>> from collections import namedtuple
        >>> from interp.adapters.vllm import read
        >>> Logprob = namedtuple("Logprob", "logprob rank")
        >>> second = {7: Logprob(-0.1, 1), 4: Logprob(-3.0, 2)}
        >>> third = {5: Logprob(-2.0, 2), 9: Logprob(-0.2, 1)}
        >>> found = read([None, second, third], tokens=[3, 7, 5], prompt=1)
        >>> found.hits, found.log_p
        (array([[ True, False]]), array([[-0.1, -2. ]]))
    """
    positions: Sequence[Any] = [] if prompt_logprobs is None else prompt_logprobs
    given = len(positions)
    if given != len(tokens):
        raise ValueError(
            f"vLLM gave log-probabilities for {given} of {len(tokens)} tokens: "
            "expected SamplingParams(prompt_logprobs=...)"
        )
    length = len(tokens) - prompt
    hits = np.zeros((1, length), dtype=bool)
    log_p = np.zeros((1, length))
    tied = np.zeros((1, length), dtype=bool)
    for place in range(length):
        position = prompt + place
        try:
            listed: Mapping[int, Any] = positions[position] or {}
            own, rivals = _compare(listed, tokens[position])
        except ValueError as error:
            raise ValueError(f"token {position}: {error}") from error
        log_p[0, place] = own
        hits[0, place] = bool(rivals) and tokens[position] == min(rivals)
        tied[0, place] = len(rivals) > 1
    return Served(hits, log_p, tied)


def _compare(listed: Mapping[int, Any], token: int) -> tuple[float, list[int]]:
    """The log-probability of the true token, and the tokens that are the most likely together with
    it: none if another one is likelier."""
    if token not in listed:
        raise ValueError(
            f"vLLM gave the log-probabilities of tokens {list(listed)[:4]} and not of {token}, "
            "which is there"
        )
    by_token = {other: float(entry.logprob) for other, entry in listed.items()}
    if any(math.isnan(value) for value in by_token.values()):
        raise ValueError("vLLM gave NaN: the model's logits are not finite")
    own = by_token[token]
    largest = max(by_token.values())
    rivals = [other for other, value in by_token.items() if value == largest]
    # One listed token that is less likely shows that the list reaches below all that are equal.
    if own == largest and len(rivals) == len(by_token):
        raise ValueError(
            f"none of the {len(rivals)} tokens that vLLM listed is less likely than {token}: how "
            "many are as likely is not known; ask for more with top="
        )
    rank = listed[token].rank
    is_first = own == largest
    is_alone = is_first and len(rivals) == 1
    # Among equals the rank may be any; alone at the top it is 1, and below the top it is not.
    contradicts = rank != 1 if is_alone else rank == 1 and not is_first
    if rank is not None and contradicts:
        raise ValueError(
            f"vLLM gave token {token} rank {rank} and log-probability {own:.4f}, and the largest "
            f"is {largest:.4f}: they contradict each other"
        )
    return own, rivals if is_first else []
