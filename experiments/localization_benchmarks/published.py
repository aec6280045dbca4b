"""What Chang et al. 2024 (arXiv 2311.09060) report: recall in INJ (their table 2) and changes in
DEL (their table 3), in percent."""

from __future__ import annotations

import pandas as pd

_MODELS = ("GPT-2 124M", "GPT-2 XL", "Pythia-2.8B", "Pythia-6.9B")
# For each method and injected share: recall at 1, 2 and 5 times the share, model after model.
_INJECTION = {
    ("hard_concrete", 0.001): "56.4 79.6 93.7  47.5 59.1 68.0  48.5 67.3 86.7  46.4 66.3 82.3",
    ("slimming", 0.001): "58.9 83.5 94.4  35.4 55.9 69.5  48.3 63.5 73.9  48.5 60.9 71.0",
    ("zero_out", 0.001): "54.1 77.8 90.9  14.3 21.8 31.9  16.5 21.1 26.6",
    (
        "integrated_gradients",
        0.001,
    ): "53.5 74.1 84.8  13.8 20.3 29.7  18.0 23.3 30.2  29.3 34.4 39.6",
    ("activation", 0.001): "11.1 26.5 51.5  7.5 15.9 30.6  21.6 34.6 52.5  34.0 45.9 59.5",
    ("random", 0.001): "0.1 0.2 0.5  0.1 0.2 0.5  0.1 0.2 0.5  0.1 0.2 0.5",
    ("hard_concrete", 0.01): "49.5 70.2 87.4  29.7 37.1 48.1  34.3 50.1 72.1  36.8 55.1 76.4",
    ("slimming", 0.01): "48.1 66.7 80.7  19.3 29.2 41.1  37.0 50.7 61.5  39.9 55.1 66.5",
    ("zero_out", 0.01): "24.9 37.5 53.8  4.1 7.2 13.7  10.6 15.0 21.4",
    ("integrated_gradients", 0.01): "20.5 32.1 49.9  4.3 7.2 13.3  11.6 16.9 23.9  12.8 18.7 27.2",
    ("activation", 0.01): "3.0 5.2 13.3  2.1 5.0 12.0  7.8 12.8 30.5  7.9 12.4 27.3",
    ("random", 0.01): "1.0 2.0 5.0  1.0 2.0 5.0  1.0 2.0 5.0  1.0 2.0 5.0",
}
_MEASURES = ("self_accuracy", "negative_accuracy", "perplexity_base_2")
# The mean edit distance of the target's own suffix, in characters, at 0.5%; model after model,
# without the first.
_DISTANCES = {
    "hard_concrete": "74.0 99.8 109.9",
    "slimming": "75.4 80.8 92.1",
    "zero_out": "55.2 45.2",
    "integrated_gradients": "46.0 52.5 57.8",
    "activation": "36.4 52.2 51.5",
}
# For each model and method: each measure at 0.1% and at 0.5%.
_DELETION = {
    ("GPT-2 XL", "hard_concrete"): "-34.6 -57.1  -2.4 -4.8  0.03 0.11",
    ("GPT-2 XL", "slimming"): "-30.5 -57.8  -3.5 -6.4  0.02 0.17",
    ("GPT-2 XL", "zero_out"): "-29.8 -46.1  -3.1 -4.8  0.03 0.09",
    ("GPT-2 XL", "integrated_gradients"): "-25.8 -40.8  -2.2 -3.4  0.01 0.05",
    ("GPT-2 XL", "activation"): "-14.8 -29.5  -3.0 -4.7  0.11 0.16",
    ("GPT-2 XL", "random"): "-0.2 -0.5  -0.2 -0.5  0.00 0.03",
    ("Pythia-2.8B", "hard_concrete"): "-29.0 -53.2  -3.7 -10.5  0.23 0.56",
    ("Pythia-2.8B", "slimming"): "-17.4 -45.1  -3.3 -7.0  0.26 0.49",
    ("Pythia-2.8B", "zero_out"): "-14.8 -25.9  -1.1 -2.5  0.21 0.35",
    ("Pythia-2.8B", "integrated_gradients"): "-16.7 -30.3  -0.9 -2.1  0.09 0.18",
    ("Pythia-2.8B", "activation"): "-13.0 -25.5  -3.1 -6.1  0.11 0.20",
    ("Pythia-6.9B", "hard_concrete"): "-29.2 -57.7  -3.8 -14.7  0.16 0.52",
    ("Pythia-6.9B", "slimming"): "-24.1 -48.7  -4.2 -11.3  0.23 0.58",
    ("Pythia-6.9B", "integrated_gradients"): "-16.9 -32.3  -2.3 -4.9  0.27 0.37",
    ("Pythia-6.9B", "activation"): "-11.5 -26.8  -2.5 -8.1  0.12 0.45",
}


def injection() -> pd.DataFrame:
    """One row for each `model`, `fraction`, `method` and `multiple` of the fraction: `recall`
    between 0 and 1."""
    rows: list[tuple[str, float, str, int, float]] = []
    for (method, fraction), line in _INJECTION.items():
        values = list(map(float, line.split()))
        for number, model in enumerate(_MODELS[: len(values) // 3]):
            rows += [
                (model, fraction, method, m, values[3 * number + n] / 100)
                for n, m in enumerate((1, 2, 5))
            ]
    return pd.DataFrame(rows, columns=["model", "fraction", "method", "multiple", "recall"])


def deletion() -> pd.DataFrame:
    """One row for each `model`, `fraction`, `method` and `measure`: its change; accuracies between
    -1 and 1.

    The perplexities are 2^loss, not e^loss, which is what their released code computes;
    `self_characters` are edit distances in characters.
    """
    rows: list[tuple[str, float, str, str, float]] = []
    for (model, method), line in _DELETION.items():
        values = list(map(float, line.split()))
        for number, measure in enumerate(_MEASURES):
            scale = 100 if measure.endswith("accuracy") else 1
            rows += [
                (model, share, method, measure, values[2 * number + n] / scale)
                for n, share in enumerate((0.001, 0.005))
            ]
    for method, line in _DISTANCES.items():
        rows += [
            (model, 0.005, method, "self_characters", float(v))
            for model, v in zip(_MODELS[1:], line.split(), strict=False)
        ]
    return pd.DataFrame(rows, columns=["model", "fraction", "method", "measure", "change"])
