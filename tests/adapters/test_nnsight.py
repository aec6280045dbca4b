from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from forks import fork

import interp
from interp import HookError, Zero
from interp.adapters import nnsight as adapter

from .plans import KINDS, close, everywhere, example, expected, plan, speaking


@pytest.mark.parametrize("name", tiny.ALL)
def test_equals_hooks_at_every_point_at_once(name):
    subject, batch = tiny.subject(name), example(name)
    some = everywhere(subject)
    with tiny.untouched(subject.module):
        found = adapter.logits(subject, some, batch)
    close(found, expected(subject, some, batch), 1e-4)
    assert not torch.allclose(found, subject.logits(batch), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("opt", "blocks.1.neurons"),
        ("neox", "blocks.2.heads"),
        ("gpt2", "blocks.1.resid_mid"),
        ("policy", "decoder.blocks.1.neurons"),
    ],
)
def test_equals_hooks_for_every_kind(name, site, kind):
    subject, batch = tiny.subject(name), example(name)
    some = plan(subject, kind, site)
    wanted = expected(subject, some, batch)
    close(adapter.logits(subject, some, batch), wanted, 1e-4)
    assert not torch.allclose(wanted, subject.logits(batch), atol=1e-4)


@pytest.mark.parametrize("name", tiny.HUGGING_FACE)
def test_survives_serialization_with_our_modules_hidden(name):
    subject, batch = speaking(name), example(name)
    some = [*everywhere(subject), *plan(subject, "all_at_once", "blocks.1.heads")]
    with tiny.untouched(subject.module):
        found = adapter.logits(subject, some, batch, "local")
    close(found, expected(subject, some, batch), 1e-4)


def test_leaves_no_attribute_on_the_users_modules():
    subject = speaking("llama")
    before = [set(vars(module)) for module in subject.module.modules()]
    for remote in (None, "local"):
        adapter.logits(subject, plan(subject, "zero", "blocks.1.neurons"), example("llama"), remote)
    assert [set(vars(module)) for module in subject.module.modules()] == before


@pytest.mark.parametrize("remote", [None, "local"])
def test_takes_an_nnsight_model(remote):
    from nnsight import TransformersModel

    model = TransformersModel(tiny.model("qwen2"), tokenizer=speaking("qwen2").tokenizer)
    subject, batch = interp.load(model), example("qwen2")
    some = plan(subject, "all_at_once", "blocks.1.heads")
    wanted = expected(subject, some, batch)
    close(adapter.logits(model, some, batch, remote), wanted, 1e-4)
    close(adapter.logits(model, some, batch, remote, anatomy=subject.anatomy), wanted, 1e-4)


def test_a_stack_of_another_length_takes_edits_at_all_positions():
    subject, batch = tiny.subject("policy"), example("policy")
    some = plan(subject, "add", "vision.blocks.1.neurons")
    close(adapter.logits(subject, some, batch), expected(subject, some, batch), 1e-4)
    with pytest.raises(ValueError, match=r"vision.*sees 5 positions and the batch has 9"):
        adapter.logits(subject, plan(subject, "zero_at", "vision.blocks.1.neurons"), batch)


def test_what_would_change_nothing_is_an_error():
    subject = tiny.subject("llama")
    with pytest.raises(HookError, match="selects none of the"):
        adapter.logits(
            subject,
            Zero(subject.anatomy.units("blocks.1.neurons"), positions=(99,)),
            example("llama"),
        )


def test_serializing_needs_a_tokenizer():
    subject = tiny.subject("llama")
    with pytest.raises(ValueError, match=r"no tokenizer.*interp.load\(..., tokenizer=\)"):
        adapter.logits(
            subject, plan(subject, "zero", "blocks.1.neurons"), example("llama"), "local"
        )


class Hosted:
    def __init__(self, name: str) -> None:
        self.repo_id = name

    def to_model_key(self) -> str:
        raise AssertionError("checked too late")


@pytest.mark.parametrize(
    "model", [Hosted("./here"), Hosted("/some/folder"), Hosted("gpt2"), tiny.subject("llama")]
)
def test_remote_needs_a_hub_model(model: Any):
    some = plan(tiny.subject("llama"), "zero", "blocks.1.neurons")
    with pytest.raises(
        ValueError, match=r"remote=True needs nnsight.TransformersModel\(\"owner/name\"\)"
    ):
        adapter.logits(model, some, example("llama"), remote=True)


def test_remote_needs_the_version_of_the_server(monkeypatch):
    import nnsight.ndif

    monkeypatch.setattr(nnsight.ndif, "get_remote_env", lambda: {"packages": {"nnsight": "0.7.0"}})
    with pytest.raises(ValueError, match=r"NDIF runs nnsight 0.7.0"):
        adapter.logits(
            Hosted("owner/name"),
            plan(tiny.subject("llama"), "zero", "blocks.1.neurons"),
            example("llama"),
            remote=True,
        )


def test_a_verbose_flag_meant_for_others_does_not_switch_nnsight_to_debug(tmp_path):
    def import_anew() -> None:
        for name in list(sys.modules):
            if name.partition(".")[0] == "nnsight":
                del sys.modules[name]
        sys.argv = ["program", "-v"]
        sys.stdout.write(str(adapter._nnsight().schema.config.CONFIG.APP.DEBUG))

    code, out, err = fork(import_anew, tmp_path).end()
    assert code == 0, err
    assert out == "False"


# Recordings


def readable(subject: interp.Subject) -> list[str]:
    """All sites that are made of at most two tensors of the model."""
    places = subject.anatomy.places
    return [str(site) for site in subject.sites if places[site].is_plain]


def same(found: interp.Recording, wanted: interp.Recording, tolerance: float = 1e-4) -> None:
    assert list(found) == list(wanted)
    for site, arrays in wanted.parts.items():
        assert list(found.parts[site]) == list(arrays)
        for name, array in arrays.items():
            assert found.parts[site][name].shape == array.shape
            np.testing.assert_allclose(found.parts[site][name], array, atol=tolerance)


@pytest.mark.parametrize("name", tiny.ALL)
def test_a_recording_equals_ours_at_every_site(name):
    subject, batch = tiny.subject(name), example(name)
    sites = readable(subject)
    with tiny.untouched(subject.module):
        found = adapter.record(subject, batch, sites, "moments", batch_size=2)
    same(found, interp.record(subject, batch, sites, "moments"))


@pytest.mark.parametrize("name", tiny.HUGGING_FACE)
def test_a_recording_survives_serialization_with_our_modules_hidden(name):
    subject = speaking(name)
    batch = tiny.batch(name, rows=3, length=9, padded=True)
    assert batch.mask is not None
    sites = readable(subject)
    with tiny.untouched(subject.module):
        found = adapter.record(subject, batch, sites, "rows", "local", batch_size=2)
    same(found, interp.record(subject, batch, sites, "rows"))


@pytest.mark.parametrize("name", ["llama", "neox", "gpt2", "opt"])
@pytest.mark.parametrize("remote", [None, "local"])
def test_a_recording_under_a_plan_is_of_what_the_plan_leaves(name, remote):
    subject, batch = speaking(name), example(name)
    some, sites = everywhere(subject), readable(subject)
    with tiny.untouched(subject.module):
        found = adapter.record(subject, batch, sites, "moments", remote, plan=some)
    with subject.intervened(some):
        wanted = interp.record(subject, batch, sites, "moments")
    same(found, wanted, 1e-3)
    before = interp.record(subject, batch, sites, "moments")
    assert not np.allclose(wanted["final"], before["final"], atol=1e-2)


@pytest.mark.parametrize("remote", [None, "local"])
def test_a_users_nnsight_model_is_recorded(remote):
    from nnsight import TransformersModel

    model = TransformersModel(tiny.model("qwen2"), tokenizer=speaking("qwen2").tokenizer)
    subject, batch = interp.load(model), example("qwen2")
    wanted = interp.record(subject, batch, "heads")
    same(adapter.record(model, batch, "heads", remote=remote), wanted)
    same(adapter.record(model, batch, "heads", remote=remote, anatomy=subject.anatomy), wanted)


def test_what_cannot_be_recorded_there_is_refused():
    subject, batch = speaking("llama"), example("llama")
    with pytest.raises(ValueError, match="no batches"):
        adapter.record(subject, [], "neurons")
    seen = replace(batch, conditioning={"pixels": torch.ones(3, 2)})
    with pytest.raises(ValueError, match=r"only tokens are handed .* has pixels"):
        adapter.record(subject, seen, "neurons", remote="local")
    with pytest.raises(ValueError, match="remote=True needs"):
        adapter.record(Hosted("gpt2"), batch, "neurons", remote=True)
    with pytest.raises(interp.SiteError):
        adapter.record(subject, batch, "blocks.9.neurons")
