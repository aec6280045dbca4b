"""Licences and headers from the installed packages, in several formats, and code and prose of the
same packages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions
from itertools import islice
from pathlib import Path

import pandas as pd

from experiments.licence_headers.presets import Preset
from interp.data.planted import background
from interp.experiment.jobs import Folder, Job, job
from interp.files import replaced

_LICENCE = re.compile(r"(^|/)(LICEN[CS]E|COPYING)(\.\w+)?$", re.IGNORECASE)
_HEADER = re.compile(r"(?:^#[^\n]*\n){6,}", re.MULTILINE)
_HEADERS_OF = ("transformers", "accelerate", "torch", "huggingface_hub", "sklearn")
_CODE_OF = ("nnsight", "transformer_lens")  # recent, so that the model has hardly seen them
_WRAP = {"hash": ("", "# ", ""), "star": ("/*\n", " * ", " */\n"), "plain": ("", "", "")}


def licences(characters: int) -> Iterator[str]:
    """The licence of each installed distribution, once per wording, cut to a header's length."""
    seen: set[str] = set()
    for distribution in sorted(distributions(), key=lambda d: d.name.lower()):
        for file in sorted(str(f) for f in distribution.files or () if _LICENCE.search(str(f))):
            path = Path(str(distribution.locate_file(file)))
            text = (
                path.read_text(encoding="utf-8", errors="ignore")[:characters]
                if path.is_file()
                else ""
            )
            wording = re.sub(r"copyright[^\n]*|\W+", " ", text.lower())[:400]
            if len(text) > 600 and wording not in seen:
                seen.add(wording)
                yield text


def headers(characters: int, packages: Iterable[str] = _HEADERS_OF) -> Iterator[str]:
    """The comment blocks at the start of source files that mention a licence, once per wording,
    without their comment marks."""
    seen: set[str] = set()
    for path in sources(packages):
        found = _HEADER.match(path.read_text(encoding="utf-8", errors="ignore"))
        text = re.sub(r"^# ?", "", found[0], flags=re.MULTILINE) if found else ""
        words = re.sub(r"\W+", " ", text.lower())
        wording = words[words.find("licen") :][:160]
        if "licen" in words and wording not in seen:
            seen.add(wording)
            yield text[:characters]


def sources(packages: Iterable[str]) -> Iterator[Path]:
    """Python files of installed packages, in name order."""
    from importlib.util import find_spec

    for package in packages:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            yield from sorted(Path(folder).rglob("*.py"))


def as_comment(text: str, style: str) -> str:
    """The same words as a `#` comment, as a `/* */` comment, or plain."""
    opening, mark, closing = _WRAP[style]
    return (
        opening
        + "".join(f"{mark}{line}".rstrip() + "\n" for line in text.strip().splitlines())
        + closing
    )


def code(characters: int, packages: Iterable[str] = _CODE_OF) -> Iterator[str]:
    """Function bodies of recent packages: text of the same kind that the model has hardly seen."""
    bodies = (
        re.search(r"\n    def .*", path.read_text(encoding="utf-8", errors="ignore"), re.DOTALL)
        for path in sources(packages)
    )
    yield from (body[0][:characters] for body in bodies if body and len(body[0]) > 800)


def corpus(preset: Preset, seed: int) -> dict[str, list[str]]:
    """The texts of each kind, in the order in which their files sort."""
    characters = preset.characters
    notices = list(headers(characters))
    whole = list(islice(licences(characters), preset.licences))
    return {
        "1-headers": [as_comment(text, style) for text in notices for style in ("hash", "star")],
        "2-licences": [as_comment(text, style) for text in whole for style in ("plain", "hash")],
        "3-code": list(islice(code(characters), preset.code)),
        "4-prose": list(background(seed).control[: preset.prose]),
    }


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job per corpus."""
    yield job(written, preset, seed, Folder("corpus"))


def written(preset: Preset, seed: int, folder: Path) -> dict[str, pd.DataFrame]:
    """Writes `folder`/seedN with one .jsonl file per kind of text. The table: each text, its kind
    and its length in characters."""
    kinds = corpus(preset, seed)
    for name, texts in kinds.items():
        with replaced(folder / f"seed{seed}" / f"{name}.jsonl") as temporary:
            temporary.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = [(name, text, len(text)) for name, texts in kinds.items() for text in texts]
    return {"texts": pd.DataFrame(rows, columns=["kind", "text", "characters"])}
