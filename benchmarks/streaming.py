"""Peak memory of the level sets of a corpus that is larger than the memory they may take: 200 MB
and 2 GB of generated text in a .jsonl file, each in a fresh process, on a small random model.

One window of each text is scored; all text is read and cut into tokens.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.timing import Row

_WORDS = 1000  # different ones, each of 20 letters
PER_TEXT = 6400  # words
_MEGABYTE = 2**20
_LIMIT = 1024  # MB, of the whole process
# A small random model, `subject`, of the words in the file that is the second argument.
MODEL = """
import resource, sys, torch, interp
from pathlib import Path
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from interp.data.texts import read_texts
words = Path(sys.argv[2]).read_text().split()
backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": len(words)}
config = LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
subject = interp.load(LlamaForCausalLM(config), tokenizer=tokenizer)
"""
_LEVELS = """
from interp.memorization.entropy.level_sets import LevelSets
from interp.memorization.entropy.scored_windows import score_windows
texts = read_texts([sys.argv[1]])
windows = score_windows(subject, texts, stride=int(sys.argv[3]), batch_size=64)
levels = LevelSets().update(windows)
print(levels.windows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def run() -> list[Row]:
    """The peak memory of each process in MB; the ratio is to 1 GB."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        words = random_words(rng)
        vocabulary = Path(folder, "words.txt")
        vocabulary.write_text("\n".join(words))
        corpus = Path(folder, "corpus.jsonl")
        for size in (200, 2048):
            _write(corpus, words, size * _MEGABYTE, rng)
            peak = _peak(corpus, vocabulary)
            rows.append(
                Row("level sets", f"{size:,} MB of text", peak, "MB", peak / _LIMIT, bar=1.0)
            )
    return rows


def random_words(rng: np.random.Generator) -> list[str]:
    """Returns the words that the texts are made of."""
    letters = list("abcdefghijklmnopqrstuvwxyz")
    return ["".join(rng.choice(letters, 20)) for _ in range(_WORDS)]


def texts_of(words: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Yields texts of random words, without end."""
    while True:
        numbers: list[int] = rng.integers(_WORDS, size=PER_TEXT).tolist()
        yield " ".join([words[number] for number in numbers])


def _write(corpus: Path, words: list[str], size: int, rng: np.random.Generator) -> None:
    """Writes texts of random words until the file has a size."""
    written = 0
    texts = texts_of(words, rng)
    with corpus.open("w") as file:
        while written < size:
            written += file.write(json.dumps({"text": next(texts)}) + "\n")


def _peak(corpus: Path, vocabulary: Path) -> float:
    """The peak memory in MB of a new process that scores the corpus."""
    command = [sys.executable, "-c", MODEL + _LEVELS, str(corpus), str(vocabulary), str(PER_TEXT)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    _, peak = ended.stdout.split()
    return float(peak)
