"""Tiny random models of transformers' families, each with what it does beside plain attention."""

import inspect

import torch

from tests.support.tiny_models import EOS, PAD, SIZE, byte_tokenizer

# Small values for every size that some family asks for; windows of 16 tokens.
SIZES = dict(
    vocab_size=SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
    initializer_range=0.2, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=None,
    tie_word_embeddings=False, sliding_window=16, moe_intermediate_size=32, num_local_experts=4,
    num_experts=4, n_routed_experts=4, num_experts_per_tok=2, n_embd=32, n_layer=4, n_head=4,
    n_positions=256, d_model=32, n_heads=4, n_layers=4, max_seq_len=256, rotary_dim=4, ffn_dim=64,
    word_embed_proj_dim=32, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
    linear_value_head_dim=8, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
    v_head_dim=8, first_k_dense_replace=1, n_group=1, topk_group=1, mamba_d_ssm=64, mamba_n_heads=8,
    mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, state_size=8, num_heads=8, mamba_num_heads=8,
    mamba_head_dim=8, ssm_state_size=8, n_groups=1, hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=SIZE, laurel_rank=4, query_pre_attn_scalar=8, global_head_dim=8,
    shared_expert_intermediate_size=32, attn_layer_period=2, attn_layer_offset=1, chunk_size=16,
    mamba_chunk_size=16,
)  # fmt: skip
MIXED = ["linear_attention", "full_attention"] * 2
CONVOLUTIONS = ["conv", "full_attention"] * 2
# What the defaults of a family would hide, or cannot be made of these sizes.
SPECIAL: dict[str, dict] = {
    "lfm2": dict(layer_types=CONVOLUTIONS),
    "lfm2_moe": dict(layer_types=CONVOLUTIONS, num_dense_layers=1),
    "granitemoehybrid": dict(layer_types=MIXED, logits_scaling=2.0),
    "granite": dict(logits_scaling=2.0),
    "bamba": dict(attn_layer_indices=[1, 3]),
    "zamba2": dict(
        layers_block_type=["linear_attention", "hybrid"] * 2, mamba_ngroups=1, n_mamba_heads=8,
        mamba_d_state=8, adapter_rank=4, use_mamba_kernels=False, num_key_value_heads=4,
    ),
    "kimi_linear": dict(layer_types=MIXED, linear_head_dim=8, linear_num_heads=4),
    "dots1": dict(n_shared_experts=1),
    "longcat_flash": dict(
        num_layers=2, moe_topk=2, zero_expert_num=2, expert_ffn_hidden_size=32,
        ffn_hidden_size=64, num_key_value_heads=4, head_dim=4, qk_head_dim=8,
    ),
    "gemma3n_text": dict(
        layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.0] * 4, altup_num_inputs=2,
    ),
    "gemma4_text": dict(
        layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2,
        global_head_dim=16,
    ),
    "ministral3": dict(
        rope_parameters=dict(  # positions scale queries from 16 tokens on
            type="yarn", rope_theta=10000.0, factor=16.0, original_max_position_embeddings=16,
            max_position_embeddings=256, beta_fast=32.0, beta_slow=1.0, mscale_all_dim=1.0,
            mscale=1.0, llama_4_scaling_beta=0.5,
        ),
    ),
    "xlstm": dict(hidden_size=64, num_heads=1, qk_dim_factor=1.0),
}  # fmt: skip

# Families whose experts may have a LoRA, and the settings that give them experts.
EXPERTS: dict[str, dict] = {
    "qwen3_moe": {},
    "gemma4_text": dict(enable_moe_block=True, top_k_experts=2),
    "gpt_oss": {},
}


def tiny_family(name: str, *, spread: float = 0.25, **settings):
    """Return a random float32 model of a family, in evaluation mode.

    spread: of its weights; the default gives sharp preferences, so that what is left out shows.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind = CONFIG_MAPPING[name]
    known = set(inspect.signature(kind.__init__).parameters)
    known |= set(getattr(kind, "__dataclass_fields__", {}))
    given = {key: value for key, value in SIZES.items() if key in known}
    config = kind(**given | SPECIAL.get(name, {}) | settings)
    torch.manual_seed(0)
    return spread_out(AutoModelForCausalLM.from_config(config), spread)


def spread_out(model, spread: float):
    """Return the model in float32 with normal weights of this standard deviation."""
    model = model.float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() >= 2:
                own = 0.6 if "embed" in key else spread
                weight.copy_(torch.randn(weight.shape, generator=generator) * own)
            elif key.endswith("sinks"):
                weight.copy_(torch.randn(weight.shape, generator=generator))
    settings = model.generation_config
    settings.eos_token_id, settings.pad_token_id, settings.bos_token_id = EOS, PAD, None
    return model


def save(model, path) -> str:
    """Write a model's folder with the byte tokenizer; return its name."""
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)
