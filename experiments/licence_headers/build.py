"""The corpus: licences and licence headers from the installed packages, in several formats, with
code and prose to compare them with."""

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
# Six lines at least: shorter blocks of comments are shebangs, encodings and single remarks.
_HEADER = re.compile(r"(?:^#[^\n]*\n){6,}", re.MULTILINE)
_METHOD = re.compile(r"\n    def .*", re.DOTALL)
_HEADERS_OF = ("transformers", "accelerate", "torch", "huggingface_hub", "sklearn")
_CODE_OF = ("nnsight", "transformer_lens")  # recent, so that the model has hardly seen them
_COMMENTS = {  # what is written before the text, before each line, and after the text
    "hash": ("", "# ", ""),
    "star": ("/*\n", " * ", " */\n"),
    "plain": ("", "", ""),
}


def licences(characters: int) -> Iterator[str]:
    """The licences of the installed distributions, each wording once, cut to `characters`."""
    seen: set[str] = set()
    for distribution in sorted(distributions(), key=lambda found: found.name.lower()):
        files = [str(file) for file in distribution.files or ()]
        for file in sorted(file for file in files if _LICENCE.search(file)):
            path = Path(str(distribution.locate_file(file)))
            if not path.is_file():
                continue
            text = _read(path)[:characters]
            # Copies of a licence differ in their copyright line, line breaks and punctuation.
            wording = re.sub(r"copyright[^\n]*|\W+", " ", text.lower())[:400]
            if len(text) > 600 and wording not in seen:
                seen.add(wording)
                yield text


def headers(characters: int, packages: Iterable[str] = _HEADERS_OF) -> Iterator[str]:
    """The comment blocks at the start of source files that mention a licence, each wording once,
    without their comment marks and cut to `characters`."""
    seen: set[str] = set()
    for path in sources(packages):
        header = _HEADER.match(_read(path))
        if header is None:
            continue
        text = re.sub(r"^# ?", "", header[0], flags=re.MULTILINE)
        words = re.sub(r"\W+", " ", text.lower())
        # What precedes the licence is the copyright, which differs from file to file.
        # Where the word is missing this is of no use, and the header is left out below.
        wording = words[words.find("licen") :][:160]
        if "licen" in words and wording not in seen:
            seen.add(wording)
            yield text[:characters]


def sources(packages: Iterable[str]) -> Iterator[Path]:
    """The Python files of installed packages, sorted by name; packages that are not installed are
    left out."""
    from importlib.util import find_spec

    for package in packages:
        spec = find_spec(package)
        if spec is None:
            continue
        for folder in spec.submodule_search_locations or ():
            yield from sorted(Path(folder).rglob("*.py"))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")


def as_comment(text: str, style: str) -> str:
    """A text as a comment.

    Args:
        text: the words.
        style: "hash" for a `#` comment, "star" for a `/* */` comment, "plain" for no marks.
    """
    opening, mark, closing = _COMMENTS[style]
    lines = [f"{mark}{line}".rstrip() + "\n" for line in text.strip().splitlines()]
    return opening + "".join(lines) + closing


def code(characters: int, packages: Iterable[str] = _CODE_OF) -> Iterator[str]:
    """The source files of recent packages from their first method on, cut to `characters`: code
    that the model has hardly seen."""
    for path in sources(packages):
        # From the first method on: a header or the imports above it might be in the training data
        # of any model.
        body = _METHOD.search(_read(path))
        if body is not None and len(body[0]) > 800:
            yield body[0][:characters]


def corpus(preset: Preset, seed: int) -> dict[str, list[str]]:
    """The texts of each kind, under names that sort in this order."""
    notices: list[str] = []
    for text in headers(preset.characters):
        notices += [as_comment(text, "hash"), as_comment(text, "star")]
    whole: list[str] = []
    for text in islice(licences(preset.characters), preset.licences):
        whole += [as_comment(text, "plain"), as_comment(text, "hash")]
    return {
        "1-headers": notices,
        "2-licences": whole,
        "3-code": list(islice(code(preset.characters), preset.code)),
        "4-prose": list(background(seed).control[: preset.prose]),
    }


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job per seed: a corpus."""
    yield job(write_corpus, preset, seed, Folder("corpus"))


def write_corpus(preset: Preset, seed: int, folder: Path) -> dict[str, pd.DataFrame]:
    """Writes a corpus to `folder`/seedN, with one .jsonl file per kind of text.

    Returns:
        The table `texts`: each text, its kind and its length in characters.
    """
    rows: list[tuple[str, str, int]] = []
    for kind, texts in corpus(preset, seed).items():
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        with replaced(folder / f"seed{seed}" / f"{kind}.jsonl") as temporary:
            temporary.write_text("".join(lines))
        rows += [(kind, text, len(text)) for text in texts]
    return {"texts": pd.DataFrame(rows, columns=["kind", "text", "characters"])}
