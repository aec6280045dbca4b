"""Image models on disk: the public checkpoints of VAR and RAR and of their tokenizers, and the
folders that `save_image_model` writes.

Sizes are read off the shapes, and a file is loaded whole or refused with everything in it that does
not fit. Weights come from safetensors, or from torch files that hold tensors and no code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import isqrt
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - the error by which torch says that a file holds code
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import LoadError, closest
from interp.files import replaced, writable
from interp.models.image.image_model import ImageModel, own_state
from interp.models.image.rar import RAR, SPARE_TIMES, RARConfig
from interp.models.image.raster_vq import RasterVQ, raster_vq_config
from interp.models.image.residual_vq import ResidualVQ, residual_vq_config
from interp.models.image.tokenizers import ImageTokenizer
from interp.models.image.var import VAR, VARConfig

State = Mapping[str, Tensor]
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# a key by which each can be told, the first that is there
_SIGNS: dict[str, Any] = {
    "word_embed.weight": VAR,
    "timesteps_embeddings": RAR,
    "quantize.quant_resi.qresi_ls.0.weight": ResidualVQ,
    "quantize.embedding.weight": RasterVQ,
}
_MLP = (
    ("fc1.weight", 0),
    ("fc1.bias", 0),
    ("fc2.weight", 1),
)  # tensors and axes that tell the width of an MLP
_TOKENIZER_OF: dict[Any, type[ImageTokenizer]] = {VAR: ResidualVQ, RAR: RasterVQ}
_PUBLIC_TOKENIZER = {
    VAR: "FoundationVision/var/vae_ch160v4096z32.pth",
    RAR: "fun-research/TiTok/maskgit-vqgan-imagenet-f16-256.bin",
}


def save_image_model(model: ImageModel, folder: str | Path) -> Path:
    """Writes network.safetensors and tokenizer.safetensors, with the public names, as `interp.load`
    takes them."""
    from safetensors.torch import save_file

    target = writable(folder)
    for name, state in (("tokenizer", model.tokenizer.state_dict()), ("network", own_state(model))):
        with replaced(target / f"{name}.safetensors") as temporary:
            save_file({key: value.detach().contiguous() for key, value in state.items()}, temporary)
    return target


def is_image_model(source: str | Path) -> bool:
    """Whether a source names weights for `read_image_model` to judge: a file, a folder of them
    without config.json, or a file on a hub."""
    path = Path(source)
    if path.is_dir():
        return (
            not (path / "config.json").exists()
            and not any(path.glob("*.gguf"))
            and bool(_weights(path))
        )
    return path.suffix in _SUFFIXES and (path.is_file() or _is_hub_file(path))


def read_image_model(
    source: str | Path,
    tokenizer: str | Path | ImageTokenizer | None = None,
    dtype: torch.dtype | None = None,
) -> ImageModel:
    """A VAR or RAR with its tokenizer.

    Args:
        source: a folder that `save_image_model` wrote or that holds one public network; a weights
            file; or such a file on the hub, as `"FoundationVision/var/var_d16.pth"`.
        tokenizer: the tokenizer's file, or one you hold; by default it is looked for beside the
            network, and for a file on the hub it is the public one.
        dtype: of the network's weights; as stored by default. The tokenizer keeps its own; the head
            of a VAR gets no less than float32.

    Raises LoadError for unreadable files and files with code, for files that are no such network,
    for every key that is missing, too many or of another shape (all are listed), and for another
    model's tokenizer.
    """
    stored = _network(_located(source))
    kind = _kind(stored.state)
    if not isinstance(tokenizer, ImageTokenizer):
        remote = not Path(source).exists()
        tokenizer = _tokenizer(
            stored, _located(tokenizer) if tokenizer is not None else _beside(stored, remote=remote)
        )
    config = (
        _var_config(stored, tokenizer.codes)
        if kind is VAR
        else _rar_config(stored, tokenizer.codes)
    )
    with torch.device("meta"):
        model = _built(kind, config, tokenizer, stored.file)
    state = {
        key: value if dtype is None else _converted(key, value, dtype, kind)
        for key, value in stored.state.items()
    }
    _fill(model, own_state(model), state, stored.file)
    return model.eval()


def _converted(key: str, value: Tensor, dtype: torch.dtype, kind: Any) -> Tensor:
    """A tensor in another precision; the head of a VAR in no lower one than float32, as in the
    public code."""
    head = kind is VAR and key.startswith(("head.", "head_nm."))
    precise = torch.promote_types(dtype, torch.float32) if head else dtype
    return value.to(precise) if value.is_floating_point() else value


@dataclass(frozen=True)
class _Stored:
    """A file and the tensors in it, whose shapes tell sizes."""

    file: Path
    state: State

    @property
    def depth(self) -> int:
        numbers = {
            int(key.split(".")[1])
            for key in self.state
            if key.startswith("blocks.") and key.split(".")[1].isdigit()
        }
        return len(numbers)

    def blocks(self, name: str, axis: int) -> list[tuple[str, int]]:
        """One tensor in every block, as places for `size`."""
        return [(f"blocks.{block}.{name}", axis) for block in range(self.depth)]

    def size(self, *places: tuple[str, int], likely: int | None = None) -> int:
        """The size that most of some tensors have along an axis: so that one wrong tensor is told
        from all the others. `likely` counts as one of them."""
        found = Counter(
            self.state[key].shape[axis]
            for key, axis in places
            if key in self.state and self.state[key].ndim > axis
        )
        found.update([] if likely is None else [likely])
        if not found:
            raise LoadError(
                f"{self.file.name} lacks {places[0][0] if places else 'its blocks'}: expected the weights of a VAR or a RAR"
            )
        return found.most_common(1)[0][0]


def _var_config(stored: _Stored, codes: int) -> VARConfig:
    return VARConfig(
        sides=_sides(stored),
        width=stored.size(
            ("word_embed.bias", 0),
            ("class_emb.weight", 1),
            ("pos_1LC", 2),
            *stored.blocks("attn.proj.bias", 0),
        ),
        depth=stored.depth,
        heads=stored.size(*stored.blocks("attn.scale_mul_1H11", 1)),
        hidden=stored.size(
            *(place for name, axis in _MLP for place in stored.blocks(f"ffn.{name}", axis))
        ),
        codes=stored.size(("head.bias", 0), ("head.weight", 0), likely=codes),
        code_width=stored.size(("word_embed.weight", 1)),
        classes=stored.size(("class_emb.weight", 0)) - 1,
        shared=any(key.startswith("shared_ada_lin.") for key in stored.state),
    )


def _sides(stored: _Stored) -> tuple[int, ...]:
    """Tokens a side of each scale: the public file says of each token which scale it is of."""
    if "lvl_1L" not in stored.state:
        raise LoadError(
            f"{stored.file.name} lacks lvl_1L, which says how many tokens each scale has: expected a whole VAR checkpoint"
        )
    runs = [
        (level, len(list(run))) for level, run in groupby(stored.state["lvl_1L"].flatten().tolist())
    ]
    levels, counts = [level for level, _ in runs], [count for _, count in runs]
    squares = all(isqrt(count) ** 2 == count for count in counts) and all(
        a < b for a, b in pairwise(counts)
    )
    if not runs or not squares or levels != list(range(len(runs))):
        raise LoadError(
            f"{stored.file.name}: lvl_1L gives the scales {levels} {counts} tokens; expected growing squares"
        )
    return tuple(map(isqrt, counts))


def _rar_config(stored: _Stored, codes: int) -> RARConfig:
    codes = stored.size(("lm_head.bias", 0), ("lm_head.weight", 0), likely=codes)
    width = stored.size(
        ("cls_token", 2),
        ("embeddings.weight", 1),
        ("pos_embed", 2),
        *stored.blocks("attn.proj.bias", 0),
    )
    return RARConfig(
        grid=_grid(stored),
        width=width,
        depth=stored.depth,
        heads=width
        // stored.size(
            *stored.blocks("attn.q_norm.weight", 0), *stored.blocks("attn.k_norm.weight", 0)
        ),
        hidden=stored.size(
            *(place for name, axis in _MLP for place in stored.blocks(f"mlp.{name}", axis))
        ),
        codes=codes,
        classes=stored.size(("embeddings.weight", 0)) - codes - 2,
    )


def _grid(stored: _Stored) -> int:
    """Tokens a side: the table of times has a row for each token."""
    length = stored.size(("timesteps_embeddings", 1)) - SPARE_TIMES
    if length < 1 or isqrt(length) ** 2 != length:
        raise LoadError(
            f"{stored.file.name}: timesteps_embeddings has {length + SPARE_TIMES} rows; expected {SPARE_TIMES} and a square"
        )
    return isqrt(length)


def _network(path: Path) -> _Stored:
    """The network that a path holds, which may be one of several files in a folder."""
    files = _weights(path) if path.is_dir() else [path]
    found = [stored for stored in map(_opened, files) if _kind(stored.state) in _TOKENIZER_OF]
    if not found:
        lacks = (
            "has no config.json and no GGUF"
            if path.is_dir()
            else "holds no model that can be read from one file"
        )
        raise LoadError(
            f"{path.name} {lacks}: expected a Hugging Face model folder, or the weights of a VAR or a RAR"
        )
    if len(found) > 1:
        raise LoadError(
            f"{path.name} holds {len(found)} image models: name one of {', '.join(s.file.name for s in found)}"
        )
    return found[0]


def _tokenizer(network: _Stored, file: Path) -> ImageTokenizer:
    """The tokenizer in a file, of the kind and on the grid that a network needs."""
    stored, needed = _opened(file), _TOKENIZER_OF[_kind(network.state)]
    if _kind(stored.state) is not needed:
        raise LoadError(
            f"{file.name} is not the tokenizer of {network.file.name}: expected the weights of a {needed.__name__}"
        )
    with torch.device("meta"):
        if needed is ResidualVQ:
            tokenizer: ImageTokenizer = ResidualVQ(
                residual_vq_config(stored.state, _sides(network))
            )
        else:
            tokenizer = RasterVQ(raster_vq_config(stored.state, _grid(network)))
    _fill(tokenizer, tokenizer.state_dict(), stored.state, file)
    return tokenizer.eval()


def _beside(network: _Stored, *, remote: bool) -> Path:
    """The tokenizer's file where none was named."""
    kind = _kind(network.state)
    if remote:
        return _located(_PUBLIC_TOKENIZER[kind])
    others = [file for file in _weights(network.file.parent) if file != network.file]
    found = [file for file in others if _kind(_opened(file).state) is _TOKENIZER_OF[kind]]
    if len(found) != 1:
        raise LoadError(
            f"{len(found)} tokenizers of a {kind.__name__} stand beside {network.file.name}, expected one: pass tokenizer="
            f"its file (the public one is {_PUBLIC_TOKENIZER[kind]})"
        )
    return found[0]


def _built(kind: Any, config: Any, tokenizer: ImageTokenizer, file: Path) -> ImageModel:
    try:
        return kind(config, tokenizer)
    except ValueError as error:
        raise LoadError(f"{file.name}: {error}") from error


def _fill(module: nn.Module, own: State, given: State, file: Path) -> None:
    """Puts tensors into a module that has none yet. Raises LoadError with everything that does not
    fit."""
    wrong = [f"{key} is missing" for key in own if key not in given]
    wrong += [f"{key} is unknown" for key in given if key not in own]
    pairs = [
        (key, tuple(given[key].shape), tuple(value.shape))
        for key, value in own.items()
        if key in given
    ]
    wrong += [
        f"{key} is {list(has)}, expected {list(needs)}" for key, has, needs in pairs if has != needs
    ]
    if wrong:
        kind = type(module).__name__
        raise LoadError(
            f"{file.name} does not fit the {kind} that its shapes tell of, in {len(wrong)} places: {'; '.join(wrong)}"
        )
    module.load_state_dict(given, strict=False, assign=True)


def _kind(state: State) -> Any:
    return next((kind for key, kind in _SIGNS.items() if key in state), None)


def _weights(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)


def _opened(file: Path) -> _Stored:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.is_dir():
        raise LoadError(f"{file} is a folder: expected the weights file itself")
    try:
        state = load_file(file) if file.suffix == ".safetensors" else _torch_file(file)
    except UnpicklingError as error:
        raise LoadError(
            f"{file.name} is a pickle that may run code, or damaged: refused; expected safetensors, or a torch file of tensors"
        ) from error
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError, LookupError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LoadError(f"{file.name} is truncated or damaged ({reason}): copy it again") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise LoadError(f"{file.name} holds more than tensors by name: expected a state dict")
    return _Stored(file, state)


def _torch_file(file: Path) -> Any:
    """What a torch file holds, mapped into memory unless it is of the format before torch 1.6,
    which cannot be."""
    with file.open("rb") as opened:
        zipped = opened.read(2) == b"PK"
    return torch.load(file, "cpu", weights_only=True, mmap=zipped)  # noqa: TID251


def _is_hub_file(path: Path) -> bool:
    return not path.is_absolute() and len(path.parts) > 2 and path.parts[0] not in (".", "..", "~")


def _located(source: str | Path) -> Path:
    """The path of a source, fetched first where it is a file on the hub. Raises LoadError, with the
    nearest path, when there is none."""
    path = Path(source)
    if path.exists():
        return path
    if not (_is_hub_file(path) and path.suffix in _SUFFIXES):
        here = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise LoadError(
            f"{path} does not exist; nearest: {path.parent / closest(path.name, here) if here else path.parent}"
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download("/".join(path.parts[:2]), "/".join(path.parts[2:])))
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot fetch {path}: {str(error).strip().splitlines()[0]}") from error
