"""Small language models that experiments train from the start, and their tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

Architecture = Literal["llama", "gpt2"]
# None of these models stops by itself: every continuation has the length that is asked for.
_NO_ENDS: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


def byte_level_bpe(texts: Iterable[str], vocabulary: int) -> Any:
    """Trains a byte-level BPE tokenizer, which can write every text.

    Args:
        texts: what it is trained on.
        vocabulary: number of tokens, the 256 bytes among them.

    Returns:
        A tokenizer of transformers, without special tokens.

    Raises:
        ValueError: a vocabulary that is smaller than the bytes.

    Example:
        >>> from interp.models.small_text import byte_level_bpe
        >>> tokenizer = byte_level_bpe(["the cat and the hat"], 260)
        >>> tokenizer.decode(tokenizer("the cat")["input_ids"])
        'the cat'
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary < len(alphabet):
        raise ValueError(f"vocabulary={vocabulary}: expected at least {len(alphabet)}, the bytes")
    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def small_language_model(
    vocabulary: int,
    *,
    width: int,
    layers: int,
    context: int,
    seed: int,
    heads: int = 4,
    neurons: int | None = None,
    architecture: Architecture = "llama",
    activation: str | None = None,
    tied: bool = False,
) -> nn.Module:
    """Returns an untrained language model of transformers.

    Args:
        vocabulary: number of tokens.
        width: size of the residual stream.
        layers: number of blocks.
        context: the most tokens it can read.
        seed: seed of the weights; torch's global generator is left as it was.
        heads: number of attention heads.
        neurons: number of neurons of each MLP; by default three (llama) or four (gpt2) times the
            width.
        architecture: "llama" (rotary positions, gated MLP) or "gpt2" (learned positions).
        activation: the MLPs' activation function, by transformers' name; by default that of the
            architecture: "silu" (llama) or "gelu_new" (gpt2).
        tied: whether input and output embeddings are the same.

    Example:
        >>> from interp.models.small_text import small_language_model
        >>> module = small_language_model(64, width=16, layers=1, context=8, seed=0)
        >>> interp.load(module).anatomy.place("blocks.0.neurons").units
        48
    """
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if architecture == "llama":
            return LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=vocabulary,
                    hidden_size=width,
                    intermediate_size=neurons or 3 * width,
                    num_hidden_layers=layers,
                    num_attention_heads=heads,
                    hidden_act=activation or "silu",
                    max_position_embeddings=context,
                    tie_word_embeddings=tied,
                    **_NO_ENDS,
                )
            )
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_embd=width,
                n_layer=layers,
                n_head=heads,
                n_inner=neurons or 4 * width,
                activation_function=activation or "gelu_new",
                n_positions=context,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                resid_pdrop=0.0,
                tie_word_embeddings=tied,
                **_NO_ENDS,
            )
        )
