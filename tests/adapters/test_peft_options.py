"""Every option of PEFT's LoraConfig: merged as the model in training merges it, or refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import (
    ArrowConfig,
    BdLoraConfig,
    CordaConfig,
    EvaConfig,
    KasaConfig,
    LoraGAConfig,
    MontecloraConfig,
    VeloraConfig,
)
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.lora import open_lora
from mir_plugin.model_adapters.weights.lora_layers import merge
from mir_plugin.model_adapters.weights.stored import open_checkpoint_weights

TARGETS = ["q_proj", "up_proj"]
IDS = torch.arange(12).reshape(2, 6) % 32
# Both sides compute in float32, in another order of additions.
RTOL = ATOL = 1e-5


@dataclasses.dataclass(frozen=True)
class Case:
    """Values of options, and the option that the refusal must name; None where they are merged."""

    options: Mapping[str, Any]
    refused: str | None = None
    prepare: Callable[[LlamaForCausalLM, LoraConfig], None] | None = None


def corda(model: LlamaForCausalLM, config: LoraConfig) -> None:
    preprocess_corda(model, config, run_model=lambda: model(IDS[:1]))


def gradients(model: LlamaForCausalLM, config: LoraConfig) -> None:
    def step() -> None:
        model(IDS, labels=IDS).loss.backward()

    preprocess_loraga(model, config, step)


CASES: Mapping[str, tuple[Case, ...]] = {
    "r": (Case({"r": 3}),),
    "lora_alpha": (Case({"lora_alpha": 20}),),
    "use_rslora": (Case({"use_rslora": True}),),
    "rank_pattern": (Case({"rank_pattern": {"layers.0.self_attn.q_proj|layers.1.mlp.up_proj": 2}}),),
    "alpha_pattern": (Case({"alpha_pattern": {"up_proj": 5, ".*1.*q_proj": 3}}),),
    "target_modules": (
        Case({"target_modules": r".*\.0\..*(k|v)_proj"}),
        Case({"target_modules": ["lm_head", "down_proj"]}),
        Case({"target_modules": ["embed_tokens", "q_proj"]}, "lora_embedding"),
    ),
    "exclude_modules": (Case({"exclude_modules": ["layers.0.self_attn.q_proj"]}),),
    "layers_to_transform": (Case({"layers_to_transform": [1]}),),
    "layers_pattern": (Case({"layers_pattern": "layers", "layers_to_transform": [0]}),),
    "lora_dropout": (Case({"lora_dropout": 0.5}),),
    "bias": (Case({"bias": "all"}), Case({"bias": "lora_only"})),
    "fan_in_fan_out": (Case({"fan_in_fan_out": True}),),
    "modules_to_save": (Case({"modules_to_save": ["lm_head", "norm"]}),),
    "init_lora_weights": (
        *(Case({"init_lora_weights": kind}) for kind in (True, False, "gaussian", "orthogonal", "mica")),
        *(Case({"init_lora_weights": kind}) for kind in ("pissa", "olora")),
        Case({"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"up_proj": 2}}),
        Case({"init_lora_weights": "pissa_niter_2"}, "init_lora_weights = 'pissa_niter_2'"),
    ),
    "eva_config": (Case({"init_lora_weights": "eva", "eva_config": EvaConfig()}),),
    "corda_config": (
        Case({"init_lora_weights": "corda", "corda_config": CordaConfig()}, "init_lora_weights = 'corda'", corda),
    ),
    "lora_ga_config": (
        Case(
            {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()},
            "init_lora_weights = 'lora_ga'",
            gradients,
        ),
    ),
    "loftq_config": (
        Case(
            {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
            "init_lora_weights = 'loftq'",
        ),
    ),
    "use_dora": (Case({"use_dora": True}), Case({"use_dora": True, "init_lora_weights": "pissa", "use_rslora": True})),
    "lora_bias": (Case({"lora_bias": True}, "lora_bias"),),
    "velora_config": (Case({"velora_config": VeloraConfig()}, "velora"),),
    "monteclora_config": (Case({"monteclora_config": MontecloraConfig()}, "monteclora"),),
    "kasa_config": (Case({"kasa_config": KasaConfig()}, "kasa_config"),),
    "use_bdlora": (
        Case({"use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2, match_strict=False)}, "use_bdlora"),
    ),
    "alora_invocation_tokens": (Case({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),),
    "trainable_token_indices": (Case({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),),
    "layer_replication": (Case({"layer_replication": [(0, 2), (1, 2)]}, "layer_replication"),),
    "target_parameters": (
        Case({"target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]}, "target_parameters"),
    ),
    # Not on a linear layer of one process: the saved option alone must be enough.
    "use_qalora": (Case({"use_qalora": True}, "use_qalora"),),
    "qalora_group_size": (Case({"qalora_group_size": 8}),),
    "megatron_config": (Case({"megatron_config": {"tensor_model_parallel_size": 2}}, "megatron_config"),),
    "megatron_core": (Case({"megatron_core": "megatron.other"}),),
    "arrow_config": (Case({"arrow_config": ArrowConfig()}, "arrow_config"),),
    "ensure_weight_tying": (Case({"ensure_weight_tying": True}),),
}
# They say where an adapter comes from and how it is run, not what it does.
WITHOUT_EFFECT = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "runtime_config",
}  # fmt: skip


def test_every_option_is_judged() -> None:
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    assert known - CASES.keys() - WITHOUT_EFFECT == set(), "PEFT has new options: add a case for each"


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{option}-{number}") for option, of in CASES.items() for number, case in enumerate(of)],
)
def test_adapter_is_merged_as_peft_merges_it_or_refused(case: Case, tmp_path: Path) -> None:
    trained = trained_model(case, tmp_path)
    if case.refused:
        with pytest.raises(MirError, match=case.refused):
            merged_by_us(tmp_path)
        return
    ours = merged_by_us(tmp_path)
    truth = trained.merge_and_unload().state_dict()
    assert ours.keys() == truth.keys()
    for name, value in truth.items():
        torch.testing.assert_close(
            ours[name], value, rtol=RTOL, atol=ATOL, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_pissa_saved_as_lora_is_plain(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(target_modules=TARGETS, init_lora_weights="pissa"))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = "pissa"
    train(model)
    model.save_pretrained(tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    truth = model.merge_and_unload().state_dict()
    for name, value in merged_by_us(tmp_path).items():
        torch.testing.assert_close(value, truth[name], rtol=RTOL, atol=ATOL)


def test_another_peft_type_is_refused(tmp_path: Path) -> None:
    from peft import IA3Config

    model = get_peft_model(saved_base(tmp_path / "base"), IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(MirError, match="peft_type = 'IA3'"):
        merged_by_us(tmp_path)


def saved_base(folder: Path) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        attention_bias=True, tie_word_embeddings=False, initializer_range=0.5,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    return model


def trained_model(case: Case, folder: Path) -> PeftModel:
    """A model in training, its adapter saved in ``folder``/adapter and its base in ``folder``/base."""
    base = saved_base(folder / "base")
    options = {"target_modules": TARGETS, "r": 4, "lora_alpha": 12, **case.options}
    unknown_here = ("use_qalora", "megatron_config", "arrow_config", "loftq_config")
    before_saving = {name: options.pop(name) for name in unknown_here if name in options}
    if "loftq_config" in before_saving:
        before_saving["init_lora_weights"] = options.pop("init_lora_weights")
    config = LoraConfig(**options)
    if case.prepare:
        case.prepare(base, config)
    model = get_peft_model(base, config)
    train(model)
    for name, value in before_saving.items():
        setattr(model.peft_config["default"], name, value)
    model.save_pretrained(folder / "adapter")
    return model.eval()


def train(model: nn.Module) -> None:
    """Another value for everything that is trained."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def merged_by_us(folder: Path) -> dict[str, Tensor]:
    adapter = open_lora(folder / "adapter")
    weights = merge({**open_checkpoint_weights(folder / "base"), **adapter.replaced}, adapter.pairs)
    return {name: weight.read() for name, weight in weights.items()}
