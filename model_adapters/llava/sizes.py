"""Whether config, tokenizer and base LLM of a LLaVA checkpoint speak of the model whose weights are stored.

Told before a model is built: one of a billion layers, or with a table for 10^12 numbers, would be built first and
compared with its weights afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.llava.base_llm import llm_kind
from mir_plugin.model_adapters.llava.files import LlavaFiles
from mir_plugin.model_adapters.prompts.tokenizer import Tokenizer
from mir_plugin.model_adapters.weights.config_values import impossible_rotation, is_norm_epsilon
from mir_plugin.model_adapters.weights.rotation import rotation_difference, trained_without_rotation_of
from mir_plugin.model_adapters.weights.stored import Weight, read_json

_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_OPTIONAL = ("num_key_value_heads", "head_dim", "max_position_embeddings")
_LAYERS = "base_llm.model.layers."
# What decides the numbers and no shape shows.
_ARCHITECTURE = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "layer_norm_eps", "hidden_act")
# Embeddings are padded to round numbers; a vocabulary that fills less of them is another model's.
_LEAST_SHARE_OF_EMBEDDINGS = 0.9


def require_sizes_of_weights(files: LlavaFiles) -> None:
    """Raise MirError where config.json's sizes are missing, no sizes, or not those of the language model's weights."""
    config, path = files.config, files.checkpoint / "config.json"
    missing = [name for name in _REQUIRED if name not in config]
    if missing:
        raise MirError(f"{path} lacks {', '.join(missing)}. Copy the checkpoint's own config.")
    for name in (*_REQUIRED, *_OPTIONAL):
        value = config.get(name)
        if name in _OPTIONAL and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MirError(f"{path} has {name} = {value!r}, expected a positive whole number. Copy its own config.")
    epsilon = config.get("rms_norm_eps", 1e-6)
    if not is_norm_epsilon(epsilon):
        raise MirError(f"{path} has rms_norm_eps = {epsilon!r}, expected a number such as 1e-05. Copy its own config.")
    if wrong := impossible_rotation(config):
        raise MirError(f"{path} has {wrong[0]} = {wrong[1]!r}, expected a positive number. Copy its own config.")
    stored = stored_sizes(files.weights)
    if config.get("head_dim") is not None:
        stored["head_dim"] = stored.pop("query_width", 0) // config["num_attention_heads"]
    for name, size in stored.items():
        if name in config and size and config[name] != size:
            raise MirError(
                f"{path} says {name} = {config[name]}, but the weights in {files.base_llm or files.checkpoint} have "
                f"{size}. The weights are incomplete, or the config is another model's."
            )


def stored_sizes(weights: Mapping[str, Weight]) -> dict[str, int]:
    """Sizes that the language model's weights show; those that they do not show are left out."""
    sizes = {"num_hidden_layers": len({name.split(".")[3] for name in weights if name.startswith(_LAYERS)})}
    embeddings = weights.get("base_llm.model.embed_tokens.weight")
    if embeddings is not None:
        sizes["hidden_size"] = embeddings.shape[1]
    queries = weights.get(f"{_LAYERS}0.self_attn.q_proj.weight")
    if queries is not None:
        sizes["query_width"] = queries.shape[0]
    return sizes


def require_own_tokenizer(tokenizer: Tokenizer, files: LlavaFiles) -> None:
    """Raise MirError for a vocabulary so small that it cannot be the one the embeddings were trained with."""
    n_embeddings = files.weights["base_llm.model.embed_tokens.weight"].shape[0]
    if tokenizer.n_tokens < _LEAST_SHARE_OF_EMBEDDINGS * n_embeddings:
        raise MirError(
            f"{tokenizer.source} has {tokenizer.n_tokens} tokens, but the language model has {n_embeddings} "
            "embeddings. The tokenizer belongs to another model; copy the one it was trained with."
        )


def require_own_base(files: LlavaFiles, kind: str) -> None:
    """Raise MirError where the base LLM's own config contradicts the checkpoint's in what no weight's shape shows.

    Args:
        kind: the language model's model_type, as the checkpoint has it.
    """
    if files.base_llm is None or not (files.base_llm / "config.json").is_file():
        return
    of_base = read_json(files.base_llm / "config.json")
    its_kind = llm_kind(str(of_base.get("model_type", kind)), files.weights)
    if its_kind != kind:
        raise MirError(
            f"{files.base_llm / 'config.json'} describes a {its_kind} language model, but "
            f"{files.checkpoint / 'config.json'} was trained on a {kind} ({files.config.get('model_type')}). Name its "
            "base LLM with --base-llm."
        )
    stated = ((name, files.config.get(name), of_base.get(name)) for name in _ARCHITECTURE)
    differing = next((one for one in stated if None not in one and not _mean_the_same(kind, one[1], one[2])), None)
    if differing is None and not trained_without_rotation_of(of_base, files.config):
        differing = rotation_difference(files.config, of_base)
    if differing:
        name, ours, its = differing
        raise MirError(
            f"{files.base_llm / 'config.json'} has {name} = {its}, but {files.checkpoint / 'config.json'} says "
            f"{ours}. The checkpoint was trained on another base LLM; name that one with --base-llm."
        )


def _mean_the_same(kind: str, one: object, other: object) -> bool:
    """Gemma's first configs say gelu for its tanh approximation, which transformers takes it for and writes itself."""
    return one == other or (kind.startswith("gemma") and {one, other} == {"gelu", "gelu_pytorch_tanh"})
