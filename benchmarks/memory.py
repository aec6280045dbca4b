"""Peak memory of `record(reduce="mean_abs")` over 200 and over 2,000 sequences, each in a fresh process, on a small random model."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.timing import Row

BAR = 1.05
PROGRAM = """
import resource, sys, torch, interp
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
config = LlamaConfig(hidden_size=64, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, vocab_size=256)
subject = interp.load(LlamaForCausalLM(config))
stream = (interp.Batch(torch.randint(256, (10, 64))) for _ in range(int(sys.argv[1]) // 10))
interp.record(subject, stream, "neurons", reduce="mean_abs")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def run() -> list[Row]:
    """All activations of 2,000 sequences would be 1,000 MB; what a process needs anyway is in both figures."""
    few, many = _peak(200), _peak(2000)
    return [
        Row("memory of record", "200 sequences", few, "MB", 1.0),
        Row("memory of record", "2,000 sequences", many, "MB", many / few, bar=BAR),
    ]


def _peak(sequences: int) -> float:
    found = subprocess.run([sys.executable, "-c", PROGRAM, str(sequences)], capture_output=True, text=True, check=True)
    return float(found.stdout)
