"""Tiny random models of every causal language model and image-text model of transformers.

A configuration is made small by the names of its fields: whatever says how wide, deep or long
something is gets a small number that fits the others. A few architectures need more than that
(`SPECIAL`). Models are random, but their weights are large enough for every part to matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

BLOCKS, WIDTH, HEADS, KEY_HEADS, HEAD_WIDTH, VOCABULARY = 3, 64, 4, 2, 16, 99
LARGEST_ID = 78  # ids above stand for images and the like

# Sizes by patterns of the whole name of a field.
SIZES: Mapping[str, Any] = {
    "(text_|vision_|qformer_|language_|attention_)?(hidden_size|embed_dim)": WIDTH,
    "d_model": WIDTH,
    "n_embd": WIDTH,
    "dim": WIDTH,
    "hidden_dim": WIDTH,
    "dim_model": WIDTH,
    "emb_dim": WIDTH,
    "embedding_size": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "input_size": WIDTH,
    "lru_width": WIDTH,
    "(out|output)_hidden_size": WIDTH,
    "(projection|output|out|proj|model|vision_output)_dim": WIDTH,
    "projector_hidden_size": WIDTH,
    "adapter_(in|out)_dim": WIDTH,
    "adapter_input_size": WIDTH,
    "cross_attention_hidden_size": WIDTH,
    "output_proj_dims": WIDTH,
    "hidden_size_global": WIDTH,
    "num_hidden_layers": BLOCKS,
    "n_layers?": BLOCKS,
    "num_layers": BLOCKS,
    "(de|en)coder_layers": BLOCKS,
    "depth": BLOCKS,
    "num_blocks": BLOCKS,
    "(num|swa_num|linear_num|num_(de|en)coder)?_?(attention_heads|heads)": HEADS,
    "n_heads?": HEADS,
    "(de|en)coder_attention_heads": HEADS,
    "(en)?coder_n_heads": HEADS,
    "index(er)?_n_heads": HEADS,
    "(swa_num|num_swa|num)_(key_value|kv)_heads": KEY_HEADS,
    "n_kv_heads": KEY_HEADS,
    "kv_n_heads": KEY_HEADS,
    "multi_query_group_num": KEY_HEADS,
    "indexer_kv_heads": KEY_HEADS,
    "(dense_|mlp_|prefix_dense_|ffn_)?intermediate_size(_mlp)?": 80,
    "(en|de)?(coder_)?ffn_dim": 80,
    "n_inner": 80,
    "ffn_hidden_size": 80,
    "d_inner": 80,
    "d_ff": 80,
    "dim_ff": 80,
    "inner_dim": 80,
    "feed_forward_size": 80,
    "mlp_hidden_size": 80,
    "(moe|shared_expert|shared_experts|moe_shared_expert|expert)_intermediate_size": 40,
    "shared_intermediate_size": 40,
    "(expert|moe)_ffn_hidden_size": 40,
    "num_(local_|routed_)?experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok(en)?": 2,
    "moe_k": 2,
    "moe_top_?k": 2,
    "top_k_experts": 2,
    "num_selected_experts": 2,
    "experts_per_token": 2,
    "(original_)?max_position_embeddings": 128,
    "n_positions": 128,
    "max_seq_len": 128,
    "n_ctx": 128,
    "max(_sequence)?_length": 128,
    "seq_length": 128,
    "max_(target|source)_positions": 128,
    "model_max_length": 128,
    "context_length": 128,
    "(padded_|decoder_|audio_|text_)?vocab_size(_per_layer_input)?": VOCABULARY,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "n_expert_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_layer_start_index": 1,
    "(mamba_)?n_groups": 1,
    "n_groups_mamba": 1,
    "pretraining_tp": 1,
    "decoder_sparse_step": 1,
    "(n|num|moe_num)_shared_experts": 1,
    "num_mem_blocks": 1,
    "(global_|swa_|v_|attention_)?head_dim": HEAD_WIDTH,
    "d_kv": HEAD_WIDTH,
    "kv_channels": HEAD_WIDTH,
    "index_head_dim": HEAD_WIDTH,
    "qk_(nope|rope)_head_dim": 8,
    "rotary_dim": 8,
    "laurel_rank": 8,
    "adapter_rank": 8,
    "hc_lowrank": 8,
    "qk_head_dim": 16,
    "mamba_(d_head|head_dim)": 16,
    "linear_(key|value)_head_dim": 16,
    "linear_head_dim": 16,
    "query_pre_attn_scalar": 16,
    "num_position_embeddings": 16,
    "o_lora_rank": 16,
    "(q|kv)_lora_rank": 24,
    "sliding_window(_size)?": 5,
    "(local_|attention_)?window_size": 5,
    "(ssm_)?state_size": 8,
    "mamba_d_state": 8,
    "d_state": 8,
    "mamba_(n|num)_heads": 8,
    "(mamba_)?chunk_size": 8,
    "attention_chunk_size": 8,
    "local_attention": 8,
    "hidden_size_per_layer_input": 8,
    "(mamba_)?(time_step|dt)_rank": 4,
    "conv_kernel": 4,
    "mamba_d_conv": 4,
    "num_query_tokens": 4,
    "index_block_size": 4,
    "mm_tokens_per_image": 4,
    "linear_num_value_heads": 4,
    "compress_rate_(csa|hca)": 4,
    "n_mamba_heads": 2,
    "linear_num_key_heads": 2,
    "hc_(mult|count)": 2,
    "altup_num_inputs": 2,
    "num_codebooks": 2,
    "(attn|expert)_layer_period": 2,
    "interleave_moe_layer_step": 2,
    "no_rope_layer_interval": 2,
    "spatial_merge_size": 2,
    "index_topk_blocks": 2,
    "global_attn_every_n_layers": 2,
    "o_groups": 2,
    "type_vocab_size": 2,
    "(attn|expert)_layer_offset": 1,
    "index_topk": 64,
    "mamba_d_ssm": 128,
    "encoder_hash_byte_group_vocab": 64,
    "num_nextn_predict_layers": 0,
    "num_kv_shared_layers": 0,
    "image_size": 28,
    "patch_size": 14,
    "num_channels": 3,
}
_MULTIPLIERS = {
    "residual_multiplier": 0.22,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.0,
}
_PATTERNS = [(re.compile(pattern), value) for pattern, value in SIZES.items()]
_KINDS = re.compile(r".*(layer_types|block_types|layers_block_type|attention_types_list)")
_TOKEN_ID = re.compile(r".*(_id|_token_index|^(image|video|audio)_token)")
DROPPED = object()  # a field that has to stay as the configuration's own class makes it

# What the names of fields do not say: numbers that have to fit each other, kinds of layers.
_AS_MANY_KEYS = {"num_key_value_heads": HEADS}
_LATENT = {"head_dim": DROPPED, **_AS_MANY_KEYS}
_DECODER = {"is_decoder": True}  # the BERT family reads from left to right only when told to
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_ROPE_OF_PARTS = {**_ROPE, "mrope_section": [2, 3, 3]}
_HYBRID = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    **_AS_MANY_KEYS,
}
_COMPASS = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE},
}
_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}


def _each(names: str, value: Any) -> dict[str, Any]:
    """The same for several names, which blanks separate."""
    return dict.fromkeys(names.split(), value)


SPECIAL: Mapping[str, Mapping[str, Any]] = {
    **_each("axk1 axk2 deepseek_v3 deepseek_v32 glm_moe_dsa youtu", _LATENT),
    **_each("kimi_k25 mistral_large4 mistral4", {"text_config": _LATENT}),
    **_each("dots3_note glm5_next", {"text_config": _AS_MANY_KEYS}),
    "dots3_note_text": _AS_MANY_KEYS,
    **_each(
        "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert "
        "roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl",
        _DECODER,
    ),
    **_each(
        "qwen2_vl qwen2_5_vl qwen2_5_omni_thinker glm4v glm46v glm_ocr glmga paddleocr_vl "
        "cosmos3_edge",
        {"text_config": {"rope_parameters": _ROPE_OF_PARTS}},
    ),
    "glm4v_moe": {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2]}}},
    "blt": {"use_cache": False},  # the cache that it makes by default fails in transformers
    "xlm": {"causal": True},
    "xmod": {**_DECODER, "languages": ["en_XX"], "default_language": "en_XX"},
    "reformer": {
        **_DECODER,
        "axial_pos_shape": [4, 8],
        "axial_pos_embds_dim": [WIDTH // 2, WIDTH // 2],
        "num_buckets": 4,
        "lsh_attn_chunk_length": 16,
        "local_attn_chunk_length": 16,
        "attn_layers": ["local", "lsh", "local"],
        "attention_head_size": HEAD_WIDTH,
    },
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2, "moe_intermediate_size": 40},
    "dots1": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "longcat_flash": {
        **_AS_MANY_KEYS,
        "head_dim": 8,
        "num_layers": 2,
        "num_hidden_layers": DROPPED,
        "zero_expert_num": 2,
        "expert_ffn_hidden_size": 40,
        "ffn_hidden_size": 80,
    },
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "cohere_compass_text": _COMPASS,
    "cohere_compass": {"text_config": _COMPASS},
    "qwen4_exp_text": _INDEXER,
    "qwen4_exp": {"text_config": _INDEXER},
    "hunyuan_v1_dense": {"head_dim": HEAD_WIDTH},
    "hunyuan_v1_moe": {"head_dim": HEAD_WIDTH},
    "hunyuan_vl": {"text_config": {"head_dim": HEAD_WIDTH, "rope_parameters": _ROPE_OF_PARTS}},
    "ministral": {"head_dim": HEAD_WIDTH},
    "nemotron": {"num_key_value_heads": KEY_HEADS, "head_dim": HEAD_WIDTH},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2},
    "dbrx": {"attn_config": {"kv_n_heads": KEY_HEADS, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "gpt_neo": {
        "num_layers": 4,
        "attention_types": [[["global", "local"], 2]],
        "attention_layers": DROPPED,
    },
    "zaya": {"num_experts_per_tok": 1},
    "zamba": {**_HYBRID, "attention_hidden_size": 2 * WIDTH, "attention_head_dim": 32},
    "zamba2": {
        **_HYBRID,
        **_each(
            "kv_channels attention_head_dim attention_hidden_size head_dim num_query_groups "
            "mamba_headdim hybrid_layer_ids",
            DROPPED,
        ),
    },
    "xlstm": {"chunk_size": 16, "qk_dim_factor": 1.0},
}
# Architectures whose language model has a configuration of its own.
DECODERS = {
    "musicgen": ("MusicgenForCausalLM", "MusicgenDecoderConfig"),
    "musicgen_melody": ("MusicgenMelodyForCausalLM", "MusicgenMelodyDecoderConfig"),
}


def names(kind: str) -> tuple[str, ...]:
    """Returns the model types of a kind, "causal" or "image-text", in transformers' order."""
    from transformers.models.auto import modeling_auto

    mapping = {
        "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "image-text": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }
    return tuple(mapping[kind])


def build(name: str, kind: str) -> Any:
    """Returns a tiny random model of an architecture, in evaluation mode.

    Args:
        name: its model type in transformers.
        kind: "causal" or "image-text".
    """
    import transformers
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(0)
    if name in DECODERS and kind == "causal":
        model_class, config_class = (getattr(transformers, part) for part in DECODERS[name])
        model = model_class(shrink(config_class(), {}))
    else:
        auto = AutoModelForCausalLM if kind == "causal" else AutoModelForImageTextToText
        model = auto.from_config(shrink(CONFIG_MAPPING[name](), SPECIAL.get(name, {})))
    model = model.float().eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            if not torch.isfinite(parameter).all() or parameter.abs().max() > 1e4:
                parameter.normal_(std=0.05)  # some classes leave memory as it was
            if not re.search(r"A_log|dt_bias|\.D$|learnable_skip", path):
                parameter.add_(0.1 * torch.randn_like(parameter))
    for part in (model.config, model.generation_config):
        part.eos_token_id = None
        part.pad_token_id = 0
    return model


def shrink(config: Any, special: Mapping[str, Any]) -> Any:
    """Returns a small configuration of the same class, the special fields as given."""
    depth = next((getattr(config, name) for name in _DEPTHS if hasattr(config, name)), None)
    fields: dict[str, Any] = {}
    for name, value in vars(config).items():
        if name.startswith("_") or name in ("id2label", "label2id"):
            continue
        if hasattr(value, "model_type"):
            part = special.get(name)
            fields[name] = shrink(value, part if isinstance(part, dict) else {})
            continue
        small = _small(name, value, depth)
        if small is not None:
            fields[name] = small
    for name, value in special.items():
        if value is DROPPED:
            fields.pop(name, None)
        elif not hasattr(fields.get(name), "model_type"):
            fields[name] = value
    return type(config)(**fields)


_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")


def _small(name: str, value: Any, depth: int | None) -> Any:
    """A small value for a field; None where the class should choose."""
    if name in _MULTIPLIERS and isinstance(value, float):
        return _MULTIPLIERS[name]
    if isinstance(value, (list, tuple)):
        return _small_list(name, value, depth)
    # A bool is an int too, and no size.
    if isinstance(value, bool) or not isinstance(value, int):
        return 0 if name == "pad_token_id" and value is None else None
    for pattern, size in _PATTERNS:
        if pattern.fullmatch(name) and value > 0:
            return size
    if _TOKEN_ID.fullmatch(name) and value > LARGEST_ID:
        common = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        # Above the ids of text, and for most names another one than for the rest.
        others = VOCABULARY - LARGEST_ID - 2
        return common.get(name, LARGEST_ID + 1 + sum(map(ord, name)) % others)
    return None


def _small_list(name: str, values: Sequence[Any], depth: int | None) -> Any:
    if not values:
        return None
    kinds = list(dict.fromkeys(map(str, values)))
    if _KINDS.fullmatch(name) and isinstance(values[0], str) and len(values) > 1:
        # The kinds in turn, so that as many of them occur as there are blocks.
        return [kinds[number % len(kinds)] for number in range(BLOCKS)]
    if name == "eos_token_id":
        return 2
    if name in ("sections", "mrope_section"):
        return [2, 3, 3]
    # A list of the numbers of layers, and not of something for each layer.
    numbers_layers = isinstance(values[0], int) and max(values) == (depth or 0) - 1
    if depth is not None and depth > BLOCKS and len(values) == depth and not numbers_layers:
        # Spread evenly, the first and the last among them.
        return [values[number * (depth - 1) // (BLOCKS - 1)] for number in range(BLOCKS)]
    return None
