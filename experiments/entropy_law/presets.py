"""The presets: how much is trained on and how much is scored."""

from __future__ import annotations

from dataclasses import dataclass

from interp.models.small_text import Architecture


@dataclass(frozen=True, kw_only=True)
class Network:
    """A language model that is trained on the corpus.

    Attributes:
        architecture: see `small_language_model`.
        width, layers: its sizes.
        lr: the largest learning rate.
    """

    architecture: Architecture
    width: int
    layers: int
    lr: float


@dataclass(frozen=True, kw_only=True)
class Strings:
    """Random strings over alphabets of different sizes, which a model sees equally often.

    Attributes:
        alphabets: numbers of symbols.
        per_alphabet: number of strings over each alphabet.
        length, prefix: tokens of a string, and how many of them are the prompt.
        steps: steps of the full-batch training.
        every: steps from one scoring to the next.
        lr: its learning rate.
    """

    alphabets: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    per_alphabet: int = 8
    length: int = 48
    prefix: int = 16
    steps: int = 240
    every: int = 10
    lr: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is run.

    Attributes:
        seeds: number of seeds, each with its own split of the files, weights and strings.
        files: number of files of the Python standard library.
        head: characters read of each file.
        held_out: share of the files that no model sees.
        vocabulary: number of tokens.
        network: the model.
        other: a model of another architecture, in which the law is looked for too.
        row: tokens of a row of training.
        batch_size: rows per step.
        prefix, length: tokens of a window's prompt and suffix.
        copies: how often planted passages are repeated; the first is the fewest.
        passages: number of planted passages of each number of copies.
        gibberish: number of random strings, and of passages of code that are seen equally often.
        gibberish_copies: how often both are repeated.
        checkpoints: how often gibberish and passages are scored during training.
        windows: the most windows that are scored of each kind of data.
        slice_lengths: further lengths of prompt and suffix for which the law is fitted; both fit
            into a row.
        min_windows, rarefied_to, shuffles: see `entropy_law`.
        windows_per_set, sets: see `dataset_inference`.
        strings: the random strings over alphabets of different sizes.
    """

    seeds: int
    files: int
    head: int
    vocabulary: int
    network: Network
    other: Network
    copies: tuple[int, ...]
    passages: int
    gibberish: int
    gibberish_copies: int
    windows: int
    held_out: float = 0.2
    row: int = 128
    batch_size: int = 32
    prefix: int = 32
    length: int = 32
    checkpoints: int = 8
    slice_lengths: tuple[int, ...] = (16, 48)
    min_windows: int = 5
    rarefied_to: int = 5
    shuffles: int = 200
    windows_per_set: int = 250
    sets: int = 60
    strings: Strings = Strings()

    def __post_init__(self) -> None:
        window = self.prefix + self.length
        if self.row % window:
            raise ValueError(
                f"row={self.row}: expected a multiple of {window}, the tokens of a window, so that "
                "planted passages fill rows"
            )
        too_long = [length for length in self.slice_lengths if 2 * length > self.row]
        if too_long:
            raise ValueError(
                f"slice_lengths={self.slice_lengths}: expected prompt and suffix to fit into a row "
                f"of {self.row} tokens, so at most {self.row // 2} each"
            )


PRESETS = {
    "smoke": Preset(
        seeds=1,
        files=40,
        head=4_000,
        vocabulary=384,
        network=Network(architecture="llama", width=48, layers=1, lr=4e-3),
        other=Network(architecture="gpt2", width=32, layers=1, lr=4e-3),
        copies=(4, 32),
        passages=40,
        gibberish=10,
        gibberish_copies=8,
        checkpoints=2,
        windows=160,
        slice_lengths=(16,),
        min_windows=2,
        rarefied_to=2,
        shuffles=20,
        windows_per_set=25,
        sets=10,
        strings=Strings(alphabets=(2, 8, 32), per_alphabet=4, steps=80, lr=3e-3),
    ),
    "small": Preset(
        seeds=3,
        files=330,
        head=12_000,
        vocabulary=1024,
        network=Network(architecture="llama", width=128, layers=4, lr=2e-3),
        other=Network(architecture="gpt2", width=64, layers=2, lr=3e-3),
        copies=(4, 16, 64),
        passages=200,
        gibberish=96,
        gibberish_copies=24,
        windows=2_000,
    ),
}
