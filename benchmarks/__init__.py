"""Speed beside the peers, on the same work in the same run: `python -m benchmarks`, or `make
bench`.

Each file measures one thing on SmolLM2-135M (float32, one thread) and says what it must cost. CPU
time, as ratios; variants take turns, so that whatever else the machine does falls on all of them,
and are checked to give the same result. What is not here: tests.
"""

import os

# Read when torch and tqdm are first imported; no global of theirs is set.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
