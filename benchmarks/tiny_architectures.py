"""A tiny random model of every architecture of transformers' causal and encoder-decoder classes.

Configurations are shrunk by the names of their settings (`SIZES`) and, where that does not suffice,
by model type (`OVERRIDES`).
"""

import inspect

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

VOCABULARY = 97
LARGEST = 4_000_000  # parameters; what is not shrunk fills the memory
Settings = dict[str, object]

_NAMES_OF_SIZE = {
    VOCABULARY: """
        vocab_size src_vocab_size tgt_vocab_size vocab_size_per_layer_input unpadded_vocab_size""",
    32: """
        hidden_size d_model n_embd dim emb_dim d_embed embedding_size word_embed_proj_dim lru_width
        attention_hidden_size input_embedding_size output_embedding_size backbone_hidden_size""",
    64: """
        intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner dim_ff dff d_inner
        ffn_hidden_size feed_forward_size dense_intermediate_size intermediate_size_mlp
        shared_intermediate_size speech_encoder_intermediate_size""",
    48: """
        moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size
        moe_shared_expert_intermediate_size shared_experts_intermediate_size""",
    2: """
        num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers depth
        num_encoder_layers num_decoder_layers speech_encoder_layers t2u_encoder_layers
        t2u_decoder_layers num_key_value_heads swa_num_key_value_heads num_experts_per_tok
        moe_topk moe_k""",
    4: """
        num_attention_heads n_head n_heads num_heads encoder_attention_heads attention_heads
        decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads
        speech_encoder_attention_heads swa_num_attention_heads t2u_encoder_attention_heads
        t2u_decoder_attention_heads index_n_heads num_experts num_local_experts n_routed_experts
        moe_num_experts linear_num_key_heads linear_num_value_heads linear_num_heads""",
    8: """
        head_dim d_kv v_head_dim dim_head qk_nope_head_dim qk_rope_head_dim qk_head_dim kv_channels
        attention_head_size index_head_dim swa_head_dim hidden_size_per_layer_input laurel_rank
        adapter_rank linear_key_head_dim linear_value_head_dim linear_head_dim""",
    16: "kv_lora_rank q_lora_rank o_lora_rank router_hidden_size",
    128: """
        max_position_embeddings n_positions n_ctx max_seq_len max_source_positions context_length
        max_target_positions max_encoder_position_embeddings max_decoder_position_embeddings
        original_max_position_embeddings""",
    0: """
        attention_dropout hidden_dropout activation_dropout dropout dropout_rate hidden_dropout_prob
        attention_probs_dropout_prob attn_pdrop resid_pdrop embd_pdrop pad_token_id
        layerdrop encoder_layerdrop decoder_layerdrop""",
    1: "bos_token_id decoder_start_token_id n_group topk_group",
}
SIZES = {name: size for size, names in _NAMES_OF_SIZE.items() for name in names.split()}
_HYBRID: Settings = {"layer_types": ["linear_attention", "full_attention"]}
_SLIDING: Settings = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
}
_MAMBA2: Settings = {"mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": 4}
OVERRIDES: dict[str, Settings] = {
    "bailing_hybrid": _HYBRID,
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "dots1": {"n_shared_experts": 1},
    "emu3": {"pad_token_id": 0},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 32, "mamba_d_head": 8},
    "gemma3n_text": _SLIDING,
    "gemma4_unified_text": _SLIDING,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {**_MAMBA2, **_HYBRID},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _HYBRID,
    "led": {"attention_window": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8, "qk_head_dim": 16, "zero_expert_num": 2},
    "mamba2": {"head_dim": 16, "num_heads": 4, "n_groups": 1, "chunk_size": 4},
    "moshi": {"audio_vocab_size": VOCABULARY},
    "nemotron_h": {
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 4,
    },
    "qwen3_5_moe_text": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "ngram_vocab_size_base": 100,
        "make_ngram_vocab_size_divisible_by": 4,
        "split_ngram_parts": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds": False,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "attn_layers": ["local", "local"],
    },
    "roc_bert": {
        "pronunciation_vocab_size": 20,
        "shape_vocab_size": 20,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "rwkv": {"attention_hidden_size": 32},
    "xlstm": {"hidden_size": 128, "num_heads": 2, "chunk_size": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        **_MAMBA2,
        "num_hidden_layers": 4,
        "n_mamba_heads": 4,
        "num_mem_blocks": 1,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_key_value_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def architectures() -> list[str]:
    """Return the model types, causal ones first."""
    return list(
        {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}
    )


def tiny_model(model_type: str) -> PreTrainedModel:
    """Return a random model of this type, the same one every time.

    Raises whatever transformers does for a configuration that it cannot build.
    """
    config = tiny_config(model_type)
    classes = MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in classes:
        classes = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    with torch.device("meta"):
        size = classes[type(config)](config).num_parameters()
    if size > LARGEST:
        raise ValueError(f"the shrunk model has {size:,} parameters")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = classes[type(config)](config)
    if config.is_encoder_decoder:
        model.config.decoder_start_token_id = 1
        model.generation_config.decoder_start_token_id = 1
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # training is compared with scoring
    return model.eval()


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Return a small configuration of this type."""
    kind = CONFIG_MAPPING[model_type]
    return kind(**{**_shrunk(kind), **OVERRIDES.get(model_type, {})})


def _shrunk(kind: type[PreTrainedConfig]) -> Settings:
    """Return the settings of a configuration class that have a small value, parts included."""
    parameters = inspect.signature(kind.__init__).parameters
    settings: Settings = {}
    for name, parameter in parameters.items():
        if name in SIZES:
            kinds = float if isinstance(parameter.default, float) else int
            settings[name] = kinds(SIZES[name])
    if "is_decoder" in parameters and "is_encoder_decoder" not in parameters:
        settings["is_decoder"] = True
    if "kv_lora_rank" in parameters:  # latent attention gives every head keys of its own
        settings["num_key_value_heads"] = SIZES["num_attention_heads"]
    parts = {**getattr(kind, "sub_configs", {}), **getattr(kind, "sub_configs_defaults", {})}
    for name, part in parts.items():
        if inspect.isclass(part) and issubclass(part, PreTrainedConfig) and part.model_type:
            settings[name] = {**_shrunk(part), **OVERRIDES.get(part.model_type, {})}
    return settings
