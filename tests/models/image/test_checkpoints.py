"""Laws of image checkpoints: what was saved comes back bit for bit, public layouts are read, each
bad file gets one clear LoadError."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

import interp
from interp.models.image.checkpoints import is_image_model, save_image_model
from interp.models.image.image_model import ImageModel, own_state

PUBLIC = {
    "var": ("var_d16.pth", "vae_ch160v4096z32.pth"),
    "rar": ("rar_b.bin", "maskgit-vqgan-imagenet-f16-256.bin"),
}
State = dict[str, Tensor]


@pytest.fixture(params=tiny.IMAGE)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> ImageModel:
    return tiny.image_model(name)


def states(model: ImageModel) -> tuple[State, State]:
    """Copies of the network's and the tokenizer's."""
    return tuple(
        {key: value.detach().clone() for key, value in state.items()}
        for state in (own_state(model), model.tokenizer.state_dict())
    )  # pyright: ignore[reportReturnType]


def pickled(value: Any, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, file)
    return file


def public(model: ImageModel, name: str, folder: Path, **changed: State) -> tuple[Path, Path]:
    """The two files as the authors publish them: plain state dicts."""
    network, tokenizer = states(model)
    files = tuple(folder / file for file in PUBLIC[name])
    pickled(changed.get("network", network), files[0])
    pickled(changed.get("tokenizer", tokenizer), files[1])
    return files[0], files[1]


def assert_equal(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(
        torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype
        for key in first
    )


def problems(told: str) -> list[str]:
    return told.partition(" places: ")[2].split("; ")


# -- round trips
# -----------------------------------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back_to_the_bit(name, model, tmp_path):
    assert save_image_model(model, tmp_path / "new" / "model") == tmp_path / "new" / "model"
    assert sorted(p.name for p in (tmp_path / "new" / "model").iterdir()) == [
        "network.safetensors",
        "tokenizer.safetensors",
    ]
    subject = interp.load(tmp_path / "new" / "model")
    assert_equal(subject.module, model)
    assert not subject.module.training
    assert subject.tokenizer is None
    assert subject.name == "model"
    assert subject.fingerprint == interp.load(model).fingerprint
    batch = tiny.image_batch(name, rows=3)
    assert torch.equal(subject.generate(batch), interp.load(model).generate(batch))
    again = interp.load(save_image_model(subject.module, tmp_path / "again")).module
    assert_equal(again, model)
    assert {key for key, p in again.named_parameters() if not p.requires_grad} == {
        f"tokenizer.{k}" for k, _ in model.tokenizer.named_parameters()
    }


SIZES = [
    (
        "var",
        {
            "sides": (1, 3),
            "width": 20,
            "depth": 1,
            "heads": 2,
            "hidden": 7,
            "codes": 5,
            "code_width": 3,
            "classes": 1,
        },
    ),
    (
        "var",
        {
            "sides": (1, 2, 4),
            "width": 12,
            "depth": 4,
            "heads": 3,
            "hidden": 50,
            "codes": 11,
            "code_width": 4,
            "classes": 9,
            "shared": True,
        },
    ),
    (
        "var",
        {
            "sides": (2, 3),
            "width": 8,
            "depth": 2,
            "heads": 1,
            "hidden": 8,
            "codes": 8,
            "code_width": 8,
            "classes": 8,
        },
    ),
    ("var", {"depth": 12, "width": 16, "shared": True}),
    (
        "rar",
        {"grid": 1, "width": 20, "depth": 1, "heads": 2, "hidden": 7, "codes": 5, "classes": 1},
    ),
    (
        "rar",
        {"grid": 3, "width": 12, "depth": 4, "heads": 3, "hidden": 50, "codes": 11, "classes": 9},
    ),
    ("rar", {"grid": 5, "width": 8, "depth": 2, "heads": 1, "hidden": 8, "codes": 8, "classes": 8}),
    ("rar", {"depth": 12, "width": 16}),
]


@pytest.mark.parametrize(("name", "sizes"), SIZES)
def test_sizes_are_read_off_the_shapes(name, sizes, tmp_path):
    model = tiny.image_model(name, **sizes)
    found = interp.load(save_image_model(model, tmp_path), example=None).module
    assert found.config == model.config
    assert found.tokenizer.config == model.tokenizer.config
    assert_equal(found, model)


@pytest.mark.parametrize("how", ["beside", "given", "held", "folder", "string"])
def test_public_files_are_read_wherever_the_tokenizer_is(name, model, how, tmp_path):
    network, tokenizer = public(model, name, tmp_path)
    beside: Mapping[str, Any] = {}
    if how == "given":
        beside = {"tokenizer": tokenizer.rename(network.parent / "elsewhere.bin")}
        shutil.copy(
            beside["tokenizer"], tmp_path / "a.pth"
        )  # two next to the network: only the given one can be meant
    if how == "held":
        tokenizer.unlink()
        beside = {"tokenizer": model.tokenizer}
    source: Any = {"folder": tmp_path, "string": str(network)}.get(how, network)
    assert is_image_model(source)
    subject = interp.load(source, **beside)
    assert_equal(subject.module, model)
    assert subject.name == Path(source).name


def test_torch_files_of_the_old_format_are_read(name, model, tmp_path):
    network, tokenizer = (tmp_path / file for file in PUBLIC[name])
    for state, file in zip(states(model), (network, tokenizer), strict=True):
        torch.save(state, file, _use_new_zipfile_serialization=False)
    assert_equal(interp.load(network).module, model)


def test_safetensors_and_torch_files_may_stand_together(name, model, tmp_path):
    network, tokenizer = public(model, name, tmp_path)
    save_file(states(model)[1], tmp_path / "tokenizer.safetensors")
    tokenizer.unlink()
    assert_equal(interp.load(network).module, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float64"])
def test_only_the_network_is_converted(name, model, dtype, tmp_path):
    """And of VAR the head in no lower precision than float32."""
    wanted = torch.bfloat16 if dtype == torch.bfloat16 else torch.float64
    subject = interp.load(save_image_model(model, tmp_path), dtype=dtype)
    own = own_state(subject.module)
    for key, value in own.items():
        head = name == "var" and key.startswith("head") and wanted == torch.bfloat16
        assert not value.is_floating_point() or value.dtype == (
            torch.float32 if head else wanted
        ), key
    assert {
        value.dtype
        for value in subject.module.tokenizer.state_dict().values()
        if value.is_floating_point()
    } == {torch.float32}
    assert all(
        torch.equal(own[key], value.to(own[key].dtype)) for key, value in own_state(model).items()
    )
    batch = tiny.image_batch(name)
    assert subject.logits(batch).dtype == (
        torch.promote_types(wanted, torch.float32) if name == "var" else wanted
    )
    assert subject.generate(batch).shape == batch.tokens.shape


def test_as_stored_by_default(name, tmp_path):
    model = tiny.image_model(name, torch.float64)
    assert_equal(interp.load(save_image_model(model, tmp_path)).module, model)


# -- what does not fit
# -----------------------------------------------------------------------------------------------------------------


SHARED = [("var", False), ("var", True), ("rar", False)]


@functools.cache
def toy(name: str, shared: bool) -> ImageModel:  # noqa: FBT001
    return tiny.image_model(name, **({"shared": True} if shared else {}))


def keys(name: str, shared: bool) -> list[str]:  # noqa: FBT001
    """The tensors of a network, but for a block between the first and the last; of a shared one,
    those that others do not have."""
    known = own_state(toy(name, False)) if shared else {}
    return [
        key
        for key in own_state(toy(name, shared))
        if key not in known and not key.startswith("blocks.1.")
    ]


KEYS = [(name, shared, key) for name, shared in SHARED for key in keys(name, shared)]
# Along these axes one tensor alone tells a size, so that another size is another network: the width
# of codes and the classes. Where the last axis is one of them, the other is made wrong.
OTHER_AXIS = {"word_embed.weight": 0}
LENGTHS = ("lvl_1L", "timesteps_embeddings")  # tell how many tokens there are


def wider(value: Tensor, axis: int) -> Tensor:
    """One more of it along an axis, as if another model's."""
    return torch.cat([value, value.narrow(axis, 0, 1)], dim=axis)


def refused(network: State, model: ImageModel, folder: Path) -> str:
    save_file(network, folder / "network.safetensors")
    with pytest.raises(interp.LoadError) as caught:
        interp.load(folder / "network.safetensors", tokenizer=model.tokenizer)
    return str(caught.value)


@pytest.mark.parametrize(("name", "shared", "key"), KEYS)
def test_each_wrong_shape_is_named(name, shared, key, tmp_path):
    model = toy(name, shared)
    network, _ = states(model)
    network[key] = wider(network[key], OTHER_AXIS.get(key, -1))
    told = refused(network, model, tmp_path)
    assert problems(told) == [
        f"{key} is {list(network[key].shape)}, expected {list(own_state(model)[key].shape)}"
    ] or (
        key == "lvl_1L"
        and "lvl_1L gives the scales [0, 1, 2, 0] [1, 4, 9, 1] tokens; expected growing squares"
        in told
    )


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("var", {"word_embed.weight": 1, "lvl_1L": 1}),
        ("rar", {"timesteps_embeddings": 1, "embeddings.weight": 0}),
    ],
)
def test_what_one_tensor_alone_tells_contradicts_others(name, axes, tmp_path):
    """The width of codes and the tokens an image contradict the tokenizer; a class more is a
    network with a class more."""
    for key, axis in axes.items():
        network, tokenizer = states(toy(name, False))
        network[key] = wider(network[key], axis)
        save_file(network, tmp_path / "network.safetensors")
        save_file(tokenizer, tmp_path / "tokenizer.safetensors")
        if key == "embeddings.weight":
            assert interp.load(tmp_path).module.classes == tiny.CLASSES + 1
        else:
            with pytest.raises(
                interp.LoadError,
                match=r"another model's tokenizer|lvl_1L gives|timesteps_embeddings has 117 rows; expected 100 and",
            ):
                interp.load(tmp_path)


@pytest.mark.parametrize(("name", "shared", "key"), KEYS)
def test_each_missing_key_is_named(name, shared, key, tmp_path):
    network, _ = states(toy(name, shared))
    del network[key]
    told = refused(network, toy(name, shared), tmp_path)
    assert (
        problems(told) == [f"{key} is missing"]
        or f"lacks {key}" in told
        or (key in SIGNS and "expected" in told)
    )


SIGNS = ("word_embed.weight", "timesteps_embeddings")  # without its sign a file is no VAR or RAR


def test_all_that_does_not_fit_is_listed_at_once(name, model, tmp_path):
    network, _ = states(model)
    keys = list(network)
    missing, wrong = keys[-3:], keys[-8:-5]
    for key in missing:
        del network[key]
    for key in wrong:
        network[key] = wider(network[key], -1)
    network |= {"optimizer.step": torch.ones(1), "blocks.0.attn.lora.weight": torch.ones(2, 2)}
    told = refused(network, model, tmp_path)
    assert (
        f"network.safetensors does not fit the {name.upper()} that its shapes describe, in 8 places: "
        in told
    )
    expected = [f"{key} is missing" for key in missing] + [
        "blocks.0.attn.lora.weight is unknown",
        "optimizer.step is unknown",
    ]
    shapes = [
        f"{key} is {list(network[key].shape)}, expected {list(own_state(model)[key].shape)}"
        for key in wrong
    ]
    assert sorted(problems(told)) == sorted(expected + shapes)


@pytest.mark.parametrize("part", ["missing", "unknown", "wrong"])
def test_a_tokenizer_is_checked_as_the_network_is(name, model, part, tmp_path):
    network, tokenizer = states(model)
    key = "decoder.conv_out.bias"
    if part == "missing":
        del tokenizer[key]
    else:
        tokenizer["more" if part == "unknown" else key] = torch.ones(7)
    save_file(tokenizer, tmp_path / "tokenizer.safetensors")
    save_file(network, tmp_path / "network.safetensors")
    told = {
        "missing": f"{key} is missing",
        "unknown": "more is unknown",
        "wrong": rf"{key} is \[7\], expected \[1\]",
    }[part]
    with pytest.raises(
        interp.LoadError,
        match=rf"tokenizer.safetensors does not fit the \w+VQ .* in 1 places: {told}",
    ):
        interp.load(tmp_path)


def fails(source: Any, match: str, **beside: Any) -> None:
    with pytest.raises(interp.LoadError, match=match) as caught:
        interp.load(source, **beside)
    assert len(str(caught.value).splitlines()) == 1


def test_another_models_tokenizer_is_refused(name, model, tmp_path):
    other = tiny.image_model("rar" if name == "var" else "var")
    network, tokenizer = public(model, name, tmp_path)
    pickled(states(other)[1], tokenizer)
    kinds = {"var": "ResidualVQ", "rar": "RasterVQ"}
    fails(
        network,
        f"0 tokenizers of a {name.upper()} are next to {network.name}, expected one: pass tokenizer=",
    )
    fails(
        network,
        rf"{tokenizer.name} is not the tokenizer of {network.name}: expected the weights of a {kinds[name]}",
        tokenizer=tokenizer,
    )


def test_what_is_held_and_no_tokenizer_of_the_network_is_refused(name, model, tmp_path):
    other = tiny.image_model("rar" if name == "var" else "var")
    network, _ = public(model, name, tmp_path)
    kinds = {"var": "ResidualVQ", "rar": "RasterVQ"}
    for held in (other.tokenizer, tiny.tokenizer(20)):
        fails(
            network,
            f"a {type(held).__name__} is not the tokenizer of {network.name}: "
            f"expected a {kinds[name]}, or the file of its weights",
            tokenizer=held,
        )


@pytest.mark.parametrize(
    ("name", "sizes"), [("var", {"codes": 9}), ("var", {"code_width": 3}), ("rar", {"codes": 9})]
)
def test_a_tokenizer_with_other_codes_is_refused(name, sizes, tmp_path):
    network, tokenizer = public(toy(name, False), name, tmp_path)
    pickled(states(tiny.image_model(name, **sizes))[1], tokenizer)
    fails(
        network,
        r"another model's tokenizer: it has (9|67) codes .*; this (VAR|RAR) predicts 67 codes",
    )
    fails(network, "another model's tokenizer", tokenizer=tokenizer)


@pytest.mark.parametrize(("name", "sizes"), [("var", {"sides": (1, 3)}), ("rar", {"grid": 3})])
def test_a_held_tokenizer_of_other_places_is_refused(name, sizes, tmp_path):
    """A file of a tokenizer tells neither its sides nor its grid: those are the network's."""
    network, _ = public(toy(name, False), name, tmp_path)
    fails(
        network,
        "another model's tokenizer: it has 67 codes",
        tokenizer=tiny.image_model(name, **sizes).tokenizer,
    )


def test_tokenizers_that_cannot_be_told_apart_are_refused(name, model, tmp_path):
    network, tokenizer = public(model, name, tmp_path)
    shutil.copy(tokenizer, tmp_path / "other.pt")
    fails(
        network,
        f"2 tokenizers of a {name.upper()} are next to {network.name}, expected one: pass tokenizer=its file",
    )
    tokenizer.unlink()
    (tmp_path / "other.pt").unlink()
    fails(network, rf"0 tokenizers .* \(the public one is .*{PUBLIC[name][1]}\)")


def test_a_folder_holds_one_network(name, model, tmp_path):
    network, tokenizer = public(model, name, tmp_path)
    shutil.copy(network, tmp_path / "second.pth")
    fails(
        tmp_path,
        rf"holds 2 image models: name one of ({network.name}, second\.pth|second\.pth, {network.name})",
    )
    assert_equal(interp.load(network).module, model)
    network.unlink()
    (tmp_path / "second.pth").unlink()
    fails(
        tmp_path,
        "has no config.json and no GGUF: expected a Hugging Face model folder, or the weights of a VAR or a RAR",
    )
    fails(
        tokenizer,
        f"{tokenizer.name} holds no model that can be read from one file: expected .* the weights of a VAR or a RAR",
    )


def test_other_folders_are_left_to_others(tmp_path):
    assert not is_image_model(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert is_image_model(tmp_path)
    (tmp_path / "config.json").touch()
    assert not is_image_model(tmp_path)
    assert not is_image_model("gpt2")
    assert not is_image_model("EleutherAI/pythia-70m")
    assert is_image_model("FoundationVision/var/var_d16.pth")
    assert not is_image_model(tmp_path / "absent.pth")


# -- bad files
# -------------------------------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("where", ["network", "tokenizer"])
def test_code_in_a_pickle_is_refused_and_does_not_run(name, model, where, tmp_path):
    traces = tmp_path / "traces"
    network, tokenizer = public(
        model,
        name,
        tmp_path,
        **{where: {"word_embed.weight": torch.ones(2, 2), "bomb": Bomb(traces)}},
    )  # pyright: ignore[reportArgumentType]
    file = network if where == "network" else tokenizer
    fails(
        network,
        f"{file.name} is a pickle that may run code, or damaged: refused; expected safetensors, or a torch file of tensors",
    )
    assert not traces.exists()
    torch.load(file, weights_only=False)
    assert traces.exists()


@pytest.mark.parametrize(
    "value",
    [[torch.ones(2)], {"model": {"word_embed.weight": torch.ones(2, 2)}}, {"epoch": 3}],
    ids=["list", "nested", "number"],
)
def test_torch_files_of_something_else_are_refused(name, model, value, tmp_path):
    fails(
        pickled(value, tmp_path / "model.pth"),
        "model.pth is not a state dict: expected tensors by name, and nothing else",
    )


FORMATS: dict[str, Callable[[State, Path], None]] = {
    "safetensors": save_file,
    "pth": torch.save,
    "bin": functools.partial(torch.save, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("keep", [0, 1, 7, 100, 0.5, 0.99])
def test_truncated_files_are_refused(kind, keep, tmp_path):
    file, model = tmp_path / f"cut.{kind}", toy("rar", False)
    FORMATS[kind](states(model)[0], file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep if isinstance(keep, int) else keep * len(whole))])
    damaged = r"truncated or damaged \(.+\): copy it again"
    fails(
        file,
        rf"cut\.{kind} is ({damaged}|a pickle that may run code, or damaged)",
        tokenizer=model.tokenizer,
    )


def test_text_is_no_model(tmp_path):
    (tmp_path / "page.pth").write_text("hello, world: not found")
    fails(tmp_path / "page.pth", r"page\.pth is truncated or damaged")


@pytest.mark.parametrize(
    "levels", [[3] + [5] * 4 + [6] * 9, [0] * 2 + [1] * 3 + [2] * 9, [0] * 9 + [1] * 4 + [2], []]
)
def test_scales_that_no_image_has_are_refused(levels, tmp_path):
    network, _ = states(toy("var", False))
    network["lvl_1L"] = torch.tensor([levels], dtype=torch.long)
    assert "lvl_1L gives the scales" in refused(network, toy("var", False), tmp_path)


def test_broken_weights_are_refused(name, model, tmp_path):
    network, _ = states(model)
    network["blocks.1.attn.proj.weight"][3, 4] = torch.nan
    save_file(network, tmp_path / "network.safetensors")
    fails(
        tmp_path,
        r"1 of \d+ weights hold NaN or infinity: blocks.1.attn.proj.weight",
        tokenizer=model.tokenizer,
    )


@pytest.mark.parametrize("which", ["network", "tokenizer"])
def test_a_missing_path_names_the_nearest(name, model, which, tmp_path):
    network, tokenizer = public(model, name, tmp_path)
    file = network if which == "network" else tokenizer
    wrong = file.with_name(file.name.replace("a", "aa", 1))
    source, beside = (wrong, {}) if which == "network" else (network, {"tokenizer": wrong})
    fails(
        source,
        re.escape(f"{wrong} does not exist") + ".*nearest: " + re.escape(str(file)),
        **beside,
    )
    fails(tmp_path / "absent" / "x.pth", re.escape("absent/x.pth does not exist"))


# -- the hub
# ---------------------------------------------------------------------------------------------------------------------------

REPOSITORIES = {
    "var": ("FoundationVision/var", "FoundationVision/var"),
    "rar": ("yucornetto/RAR", "fun-research/TiTok"),
}


@pytest.fixture
def hub(name, model, tmp_path, monkeypatch) -> list[tuple[str, str]]:
    """A hub that holds the public files; what was asked of it."""
    import huggingface_hub

    files = {file.name: file for file in public(model, name, tmp_path)}
    asked: list[tuple[str, str]] = []

    def download(repo_id: str, filename: str) -> str:
        asked.append((repo_id, filename))
        if Path(filename).name not in files:
            raise OSError(f"404\nno {filename} in {repo_id}")
        return str(files[Path(filename).name])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_a_file_on_the_hub_comes_with_the_public_tokenizer(name, model, hub):
    network, tokenizer = PUBLIC[name]
    subject = interp.load(f"{REPOSITORIES[name][0]}/{network}")
    assert hub == [(REPOSITORIES[name][0], network), (REPOSITORIES[name][1], tokenizer)]
    assert_equal(subject.module, model)
    assert subject.name == network


def test_a_tokenizer_that_is_given_is_not_fetched(name, model, hub, tmp_path):
    source = f"{REPOSITORIES[name][0]}/{PUBLIC[name][0]}"
    assert_equal(interp.load(source, tokenizer=model.tokenizer).module, model)
    assert_equal(interp.load(source, tokenizer=tmp_path / PUBLIC[name][1]).module, model)
    assert hub == [(REPOSITORIES[name][0], PUBLIC[name][0])] * 2
    assert_equal(interp.load(source, tokenizer=f"some/one/deep/{PUBLIC[name][1]}").module, model)
    assert hub[-1] == ("some/one", f"deep/{PUBLIC[name][1]}")


def test_what_the_hub_lacks_is_one_clear_error(name, hub):
    fails("some/one/absent.pth", r"cannot fetch some/one/absent\.pth: 404$")


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_error_of_the_hub_without_text_is_named_by_its_type(monkeypatch, text):
    import huggingface_hub

    def download(*_: str) -> str:
        raise OSError(text)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    fails("some/one/absent.pth", r"cannot fetch some/one/absent\.pth: OSError$")
