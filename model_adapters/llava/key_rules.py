"""Keys of checkpoints in the LLaVA layout, onto the parameters of ``LlavaModel``."""

from __future__ import annotations

from mir_plugin.model_adapters.weights.key_rules import KeyRule

LLM_RULES = (
    KeyRule("model.layers.*.self_attn.rotary_emb.inv_freq", None, "rotary frequencies follow from the config"),
    KeyRule("model.layers.", "base_llm.model.layers."),
    KeyRule("model.embed_tokens.", "base_llm.model.embed_tokens."),
    KeyRule("model.norm.", "base_llm.model.norm."),
    KeyRule("model.final_layernorm.", "base_llm.model.final_layernorm."),  # Phi
    KeyRule("lm_head.", "base_llm.lm_head."),
)
TOWER_RULES = (
    KeyRule("model.vision_tower.vision_tower.vision_model.embeddings.position_ids", None, "counts up from 0; computed"),
    KeyRule("model.vision_tower.vision_tower.vision_model.", "vision_tower.encoder."),
    KeyRule("model.image_newline", "image_newline"),
)
TOWER_FOLDER_RULES = (
    KeyRule("vision_model.embeddings.position_ids", None, "counts up from 0; computed"),
    KeyRule("vision_model.", ""),
    KeyRule("text_model.", None, "text half of a whole model"),
    KeyRule("text_projection.", None, "text half of a whole model"),
    KeyRule("visual_projection.", None, "joint space of a whole model"),
    KeyRule("logit_", None, "joint space of a whole model"),
    # transformers 5 saves a vision model without the prefix.
    KeyRule("embeddings.position_ids", None, "counts up from 0; computed"),
    KeyRule("embeddings.", "embeddings."),
    KeyRule("pre_layrnorm.", "pre_layrnorm."),
    KeyRule("encoder.", "encoder."),
    KeyRule("post_layernorm.", "post_layernorm."),
    KeyRule("head.", "head."),
)
"""Keys in the folder of a CLIP or SigLIP vision model, or of a whole one, onto the inside of a tower's ``encoder``."""
_QFORMER_LAYER = "model.mm_projector.bert.encoder.layer.*."
_OWN_LAYER = "projector.bert.encoder.layer.*."
QFORMER_RULES = (
    KeyRule("model.mm_projector.bert.embeddings.position_ids", None, "counts up from 0; computed"),
    KeyRule("model.mm_projector.bert.embeddings.LayerNorm.", "projector.bert.embeddings.layernorm."),
    KeyRule("model.mm_projector.bert.embeddings.", "projector.bert.embeddings."),
    KeyRule(f"{_QFORMER_LAYER}attention.self.", f"{_OWN_LAYER}attention.attention."),
    KeyRule(f"{_QFORMER_LAYER}crossattention.self.", f"{_OWN_LAYER}crossattention.attention."),
    KeyRule(_QFORMER_LAYER, _OWN_LAYER),
    KeyRule("model.mm_projector.query_tokens", "projector.query_tokens"),
    KeyRule("model.mm_projector.mm_mlp.", "projector.mm_mlp."),
)


def projector_rules(kind: str) -> tuple[KeyRule, ...]:
    """Where the keys of LLaVA's ``mm_projector`` belong, by ``mm_projector_type``."""
    if kind == "linear":  # stored as a bare layer, without the index that an nn.Sequential gives
        return (KeyRule("model.mm_projector.", "projector.layers.0."),)
    if kind == "qformer":
        return QFORMER_RULES
    if kind == "ldpnetv2":
        return (KeyRule("model.mm_projector.", "projector."),)
    return (KeyRule("model.mm_projector.", "projector.layers."),)
