"""Laws of interp.loading.device_maps: a model whose parts are at several places gives the numbers of
the whole one, and what cannot be divided, or cannot be done with a divided one, is refused."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from drawing import undrawn
from second_device import guarding
from torch import nn
from typer.testing import CliRunner

import interp
from interp import LoadError
from interp.adapters import transformer_lens, weights
from interp.analysis.circuits import edge_attribution
from interp.analysis.logit_lens import lens
from interp.cli.app import app
from interp.mitigation.unlearning.localized import gradients_only_into
from interp.subject import fingerprint
from interp.training.state import load_weights, save_weights
from interp.training.unit_parameters import unit_parameters

# A block of three on disk, with what is tied together at one place.
MAPS: dict[str, dict[str, Any]] = {
    "llama": {"": "cpu", "model.layers.1": "disk", "model.norm": "disk"},
    "gpt2": {"": "cpu", "transformer.h.1": "disk", "transformer.wpe": "disk"},
    "gpt2, tied": {"": "disk", "transformer.h.0": "cpu", "transformer.h.2": "cpu"},
    "neox": {"": "cpu", "gpt_neox.layers.1": "disk", "lm_head": "disk"},
}


CPU = torch.device("cpu")


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return saved(getattr(request, "param", "llama"), tmp_path)


def saved(name: str, folder: Path) -> Path:
    tiny.model(name).save_pretrained(folder / "saved")
    return folder / "saved"


def share_offloaded(module: nn.Module) -> float:
    weights = list(module.parameters())
    offloaded = sum(weight.numel() for weight in weights if weight.is_meta)
    return offloaded / sum(weight.numel() for weight in weights)


def numbers(subject: interp.Subject) -> dict[str, Any]:
    """What the toolkit answers about a model; tensors without their gradients."""
    batch = tiny.batch("llama", rows=3, length=12, prompt=4)
    block = interp.Zero(subject.units("blocks.1.resid_post"))
    neurons = interp.Zero(subject.units("blocks.1.neurons", range(0, 48, 2)))
    first = interp.Zero(subject.units("blocks.0.heads", [1]))
    found: dict[str, Any] = {"clean": subject.losses(batch).detach()}
    for number, plan in enumerate((block, neurons, [first, neurons])):
        with subject.intervened(plan):
            found[f"ablated {number}"] = subject.losses(batch).detach()
    found["sweep"] = torch.tensor(interp.sweep(subject, batch, [neurons, first]))
    for site, value in interp.record(subject, batch, ["neurons", "resid_post"]).items():
        found[f"recorded {site}"] = torch.as_tensor(value)
    for method in ("gradient_x_activation", "zero_out", "activation"):
        scores = interp.localize(subject, batch, method=method)
        for site, values in scores.values.items():
            found[f"{method} {site}"] = torch.as_tensor(values)
    found["generated"] = subject.generate(batch.tokens[:, :4], 4)
    return found


def tables(subject: interp.Subject) -> list[pd.DataFrame]:
    batch = tiny.batch("llama", rows=3, length=16, prompt=4)
    scanned = interp.scan(subject, batch.tokens.tolist(), prefix=6, length=6, stride=2)
    right, wrong = batch.targets[:, 0], batch.targets[:, 1]
    corrupt = tiny.batch("llama", rows=3, length=16, prompt=4, seed=5)
    return [
        scanned,
        lens(subject, batch, {"true": right}, position=3),
        edge_attribution(subject, batch, corrupt, right, wrong).frame(),
    ]


@pytest.mark.parametrize("kind", MAPS)
def test_a_model_partly_on_disk_gives_the_numbers_of_the_whole_one_to_the_bit(
    kind: str, tmp_path: Path
):
    folder = saved(kind.partition(",")[0], tmp_path)
    whole = interp.load(folder)
    divided = interp.load(folder, device_map=MAPS[kind])
    assert 0.2 < share_offloaded(divided.module) < 0.8
    assert divided.fingerprint == whole.fingerprint
    assert divided.sites == whole.sites
    assert divided.decoding == whole.decoding

    found = numbers(divided)
    for name, wanted in numbers(whole).items():
        assert torch.equal(found[name], wanted), name
    for got, wanted in zip(tables(divided), tables(whole), strict=True):
        pd.testing.assert_frame_equal(got, wanted, check_exact=True)


@pytest.mark.parametrize("folder", ["llama", "gpt2"], indirect=True)
@pytest.mark.parametrize("kind", ["auto", "sequential", None])
def test_a_limit_of_memory_divides_the_model(folder: Path, kind: str | None):
    whole = interp.load(folder)
    size = sum(weight.numel() * 4 for weight in whole.module.parameters())
    limit = {"cpu": int(0.8 * size)}
    divided = interp.load(folder, device_map=kind, max_memory=limit)
    assert 0.2 < share_offloaded(divided.module) < 0.8
    assert limit == {"cpu": int(0.8 * size)}
    assert divided.fingerprint == whole.fingerprint
    batch = tiny.batch("llama")
    assert torch.equal(divided.losses(batch), whole.losses(batch))


def test_weights_wait_in_the_precision_that_was_asked_for(folder: Path):
    whole = interp.load(folder, dtype="bfloat16")
    divided = interp.load(folder, dtype="bfloat16", device_map=MAPS["llama"])
    assert divided.fingerprint == whole.fingerprint
    batch = tiny.batch("llama")
    assert torch.equal(divided.losses(batch), whole.losses(batch))


def test_experts_that_are_stored_one_by_one_wait_in_a_folder(tmp_path: Path):
    folder = saved("mixtral", tmp_path)
    limit = {"cpu": "150KB"}
    with pytest.raises(LoadError, match=r"re-saved.*interp\.load: pass offload_folder="):
        interp.load(folder, max_memory=limit)
    divided = interp.load(folder, max_memory=limit, offload_folder=tmp_path / "waiting")
    assert share_offloaded(divided.module) > 0.5
    assert divided.fingerprint == interp.load(folder).fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "aut"}, "expected one of auto, balanced.*nearest: auto"),
        ({"device_map": "cpu"}, "for a whole model on one device pass device='cpu'"),
        ({"device_map": {"model": "cpu"}}, r"gives no place to lm_head\.weight"),
        ({"device_map": {"": "cpu", "model.layer": "disk"}}, r"'model\.layer', .*model\.layers"),
        ({"device_map": {"": "cuda:7"}}, "'cuda:7' is not there: this machine has cpu"),
        ({"device_map": {"": 7}}, "'cuda:7' is not there: this machine has cpu"),
        ({"max_memory": {"cpu": "many"}}, "expected a number of bytes, or a text such as '20GiB'"),
        ({"max_memory": {7: "1GB"}}, "'cuda:7' is not there: this machine has cpu"),
        ({"device_map": {"": "cpu"}, "max_memory": {"cpu": 1}}, "leave it out, or give one of"),
        ({"device_map": "auto", "device": "cpu"}, "one device for the whole model, or a place"),
        ({"offload_folder": "here"}, "without device_map= or max_memory="),
    ],
)
def test_a_map_that_does_not_fit_is_refused(folder: Path, options: dict[str, Any], message: str):
    with pytest.raises(LoadError, match=message):
        interp.load(folder, **options)


@pytest.mark.parametrize("places", [("cpu", "disk"), ("disk", "cpu")])
def test_one_weight_at_two_places_is_refused(tmp_path: Path, places: tuple[str, str]):
    with pytest.raises(LoadError, match=r"lm_head\.weight on .* and the two are one weight"):
        interp.load(saved("gpt2", tmp_path), device_map={"": places[0], "lm_head": places[1]})


@pytest.mark.parametrize("option", [{"device_map": "auto"}, {"max_memory": {"cpu": 1}}])
def test_a_model_in_memory_is_not_divided(option: dict[str, Any]):
    for held in (tiny.model("llama"), tiny.subject("llama")):
        with pytest.raises(LoadError, match="is in memory already, and what you hold is not div"):
            interp.load(held, **option)


def test_a_network_of_the_toolkit_and_a_gguf_are_not_divided(tmp_path: Path):
    from interp.models.image.checkpoints import save_image_model

    save_image_model(tiny.model("rar"), tmp_path / "rar")
    with pytest.raises(LoadError, match="puts a network on one device; pass device="):
        interp.load(tmp_path / "rar", device_map="auto")
    (tmp_path / "model.gguf").touch()
    with pytest.raises(LoadError, match=r"unpacked as a whole; make a folder of it with interp\.c"):
        interp.load(tmp_path / "model.gguf", device_map="auto")


def test_what_reads_or_writes_weights_on_disk_is_refused_by_name(folder: Path, tmp_path: Path):
    divided = interp.load(folder, device_map=MAPS["llama"])
    units = divided.units("blocks.1.neurons", [3])
    batch = tiny.batch("llama", prompt=4)
    save_weights(tmp_path / "whole", tiny.model("llama"))
    refused = [
        lambda: divided.anatomy.out_weight(divided.module, "blocks.1.neurons"),
        lambda: weights.applied(divided, interp.Zero(units)).__enter__(),
        lambda: gradients_only_into(divided, units).__enter__(),
        lambda: unit_parameters(divided, units, batch),
        lambda: save_weights(tmp_path / "divided", divided.module),
        lambda: load_weights(tmp_path / "whole", divided.module),
        lambda: transformer_lens.bridge(divided),
        lambda: interp.fit(divided, [batch], steps=1),
    ]
    for attempt in refused:
        with pytest.raises((ValueError, interp.SiteError), match="is offloaded"):
            attempt()
    assert not (tmp_path / "divided").exists()


def test_the_fingerprint_reads_weights_on_disk_one_at_a_time(folder: Path, monkeypatch):
    """Together they may be more than fits in memory."""
    divided = interp.load(folder, device_map=MAPS["llama"])
    stored = fingerprint.stored
    read: list[weakref.ref[torch.Tensor]] = []

    def reading(module: nn.Module, name: str, shell: torch.Tensor) -> torch.Tensor:
        assert not [name for values in read if values() is not None]
        values = stored(module, name, shell)
        if shell.is_meta:
            read.append(weakref.ref(values))
        return values

    monkeypatch.setattr(fingerprint, "stored", reading)
    assert divided.fingerprint == interp.load(folder).fingerprint
    assert len(read) > 5


class Moves(ModelHook):
    """Moves what a module reads to a device, as accelerate's own hook does; and what the whole model
    gives."""

    def __init__(self, device: torch.device, *, whole: bool = False) -> None:
        self.device = device
        self.whole = whole

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.whole:
            return args, kwargs
        return send_to_device(args, self.device), send_to_device(kwargs, self.device)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return send_to_device(output, self.device) if self.whole else output


def on_two_devices(other: torch.device) -> nn.Module:
    """A model whose second and third block are on another device than all else."""
    module: Any = tiny.model("llama")
    moved: set[nn.Module] = set()
    for block in module.model.layers[1:]:
        block.to(other)
        moved |= set(block.modules())
    for part in list(module.modules()):
        device = other if part in moved else CPU
        if part is not module:
            add_hook_to_module(part, Moves(device))
    return add_hook_to_module(module, Moves(CPU, whole=True))


def test_a_model_on_two_devices_gives_the_numbers_of_one_up_to_rounding():
    whole = tiny.subject("llama")
    wanted = numbers(whole) | scores(whole)
    with guarding() as device:
        divided = interp.load(on_two_devices(device))
        assert divided.sites == whole.sites
        assert divided.decoding == whole.decoding
        assert divided.fingerprint == whole.fingerprint
        found = {key: value.cpu() for key, value in (numbers(divided) | scores(divided)).items()}
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)


def scores(subject: interp.Subject) -> dict[str, torch.Tensor]:
    """What methods find that keep numbers of their own for each site."""
    batch = tiny.batch("llama", rows=2, length=12, prompt=4)
    options: dict[str, dict[str, Any]] = {"slimming": {"steps": 3}}
    found: dict[str, torch.Tensor] = {}
    for method in ("integrated_gradients", "slimming", "unitmem"):
        scored = interp.localize(subject, batch, method=method, **options.get(method, {}))
        for site, values in scored.values.items():
            found[f"{method} {site}"] = torch.as_tensor(values)
    between = interp.Zero(subject.units("blocks.1.resid_mid"))
    with subject.intervened(between):
        found["resid_mid"] = subject.losses(batch).detach()
    return found


def test_a_scan_of_the_command_line_takes_the_map(tmp_path: Path):
    import letters

    texts = letters.noise(2, 40, seed=1)
    model = letters.saved(letters.subject(), tmp_path / "model")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    scan = ["scan", str(model), str(corpus), "--prefix", "8", "--length", "8", "--json", "--out"]
    found = []
    for name, options in {
        "whole": [],
        "divided": ["--device-map", "auto", "--max-memory", "cpu=30KB"],
    }.items():
        with undrawn():
            result = CliRunner().invoke(app, [*scan, str(tmp_path / name), *options])
        assert result.exit_code == 0, result.output
        found.append(pd.read_parquet(tmp_path / name / "windows.parquet"))
    pd.testing.assert_frame_equal(*found, check_exact=True)
    result = CliRunner().invoke(app, [*scan, str(tmp_path / "none"), "--max-memory", "30KB"])
    assert result.exit_code == 1
    assert "expected name=value" in result.output
