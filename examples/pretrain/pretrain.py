"""Pre-train the projector of a LLaVA-style model and watch MIR: the first stage of LLaVA-1.5, in plain transformers.

    python examples/pretrain/pretrain.py --data blip_laion_cc_sbu_558k.json --images images --out runs/pretrain

Any causal language model (``--llm``) and any vision tower (``--tower``) that transformers loads, both frozen; between
them LLaVA's mlp2x_gelu projector, trained with AdamW, a cosine schedule and 3 % warm-up to caption images after the
plain template: image, caption, newline. ``--out`` gets ``checkpoint-STEP`` at steps spaced by their logarithm, complete
Hugging Face folders whose frozen weights are links to one file; ``mir/`` holds the MIR of each.
A killed training resumes by the same command.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from mir_plugin import MIRCallback, embedded_samples, from_folders

IMAGE, IGNORED = "<image>", -100
FROZEN, PROJECTOR, INDEX = "frozen.safetensors", "projector.safetensors", "model.safetensors.index.json"
# Chat templates of language models take texts; here the parts of a message are made one text first.
FLATTEN = """{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set text = namespace(value=message.content if message.content is string else '') -%}
{%- if message.content is not string -%}{%- for part in message.content -%}
{%- set text.value = text.value + ('<image>\\n' if part.type == 'image' else part.text) -%}
{%- endfor -%}{%- endif -%}
{%- set flat.messages = flat.messages + [{'role': message.role, 'content': text.value}] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""


def build(llm_name: str, tower_name: str, dtype: torch.dtype, attention: str) -> tuple[PreTrainedModel, Any]:
    """The two models joined by a new projector, and their processor."""
    llm = transformers.AutoModelForCausalLM.from_pretrained(llm_name, dtype=dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(llm_name)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    llm.resize_token_embeddings(max(llm.config.vocab_size, len(tokenizer)), pad_to_multiple_of=64)
    whole = transformers.AutoConfig.from_pretrained(tower_name)
    vision = getattr(whole, "vision_config", whole)  # of CLIP and SigLIP only the image half
    # In float32: it costs little, the projector is trained in it, and transformers casts where the two models meet.
    tower = transformers.AutoModel.from_pretrained(tower_name, config=vision, dtype=torch.float32)
    image_processor = transformers.AutoImageProcessor.from_pretrained(tower_name)
    token_id = tokenizer.convert_tokens_to_ids(IMAGE)
    parts: dict[str, Any] = {"vision_config": vision, "text_config": llm.config, "image_token_index": token_id}
    pixels = image_processor(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = tower.eval()(pixels).last_hidden_state
    if features.dim() == 4:  # convolutional: a map of features, as FastVLM takes it
        vision.hidden_size = features.shape[1]
        options = {"patch_size": pixels.shape[-1] // features.shape[-1], "vision_feature_select_strategy": "full"}
        model_class: Any = transformers.FastVlmForConditionalGeneration
        config: Any = transformers.FastVlmConfig(**parts)
    else:
        has_class_token = "clip" in vision.model_type
        strategy: Any = "default" if has_class_token else "full"  # the default leaves the class token out
        options = {"patch_size": vision.patch_size, "vision_feature_select_strategy": strategy}
        options |= {"num_additional_image_tokens": int(has_class_token)}
        model_class = transformers.LlavaForConditionalGeneration
        config = transformers.LlavaConfig(**parts, vision_feature_select_strategy=strategy)
    with torch.device("meta"):
        model: Any = model_class(config)
    model.model.vision_tower, model.model.language_model = tower, llm.base_model
    model.lm_head = llm.get_output_embeddings()
    projector = model.model.multi_modal_projector.to_empty(device="cpu").float()
    for layer in projector.children():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()  # torch's own initial values, as in LLaVA
    template = FLATTEN + tokenizer.chat_template if tokenizer.chat_template else None
    processor = transformers.LlavaProcessor(image_processor, tokenizer, chat_template=template, **options)
    model.config.dtype = dtype
    model.set_attn_implementation(attention)
    return model.requires_grad_(False), processor


def projector_of(model: Any) -> nn.Module:
    """What is trained."""
    return cast("nn.Module", model.model.multi_modal_projector)


@torch.no_grad()
def features_of(model: Any, pixel_values: Tensor) -> Tensor:
    """What the projector is given, (images, tokens, width)."""
    caught: list[Tensor] = []
    hook = projector_of(model).register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    model.model.get_image_features(pixel_values=pixel_values)
    hook.remove()
    return caught[0]


class Captions(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of LLaVA's JSON as the plain template has them: image tokens, caption, newline; the loss is of the text."""

    def __init__(self, path: Path, images: Path, processor: Any) -> None:
        self.rows = json.loads(path.read_text(encoding="utf-8"))
        self.images, self.processor = images, processor
        self.features: Tensor | None = None
        tokenizer = processor.tokenizer
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        blank = processor(images=Image.new("RGB", (64, 64)), text=IMAGE, add_special_tokens=False)["input_ids"]
        self.before = start + torch.tensor(blank).flatten().tolist()
        captions = [row["conversations"][1]["value"] + "\n" for row in self.rows]
        self.ids = tokenizer(captions, add_special_tokens=False)["input_ids"]

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, index: int) -> Tensor:
        """The image as the tower takes it, (3, height, width)."""
        image = Image.open(self.images / self.rows[index]["image"]).convert("RGB")
        return cast("Tensor", self.processor.image_processor(image, return_tensors="pt")["pixel_values"][0])

    def remember(self, model: Any, file: Path, batch_size: int = 16) -> None:
        """Compute the frozen tower's features once, or take them from ``file``: for many epochs of few images."""
        if not file.exists():
            starts = range(0, len(self), batch_size)
            batches = [range(start, min(start + batch_size, len(self))) for start in starts]
            model.eval()
            features = [features_of(model, torch.stack([self.pixels(i) for i in batch])).half() for batch in batches]
            torch.save(torch.cat(features), file)
        self.features = torch.load(file, weights_only=True)

    def __getitem__(self, index: int) -> dict[str, Any]:
        seen = {"pixel_values": self.pixels(index)} if self.features is None else {"features": self.features[index]}
        return {"input_ids": [*self.before, *self.ids[index]], **seen}

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch, padded at the end; causal attention needs no mask for that."""
        longest = max(len(item["input_ids"]) for item in items)
        padded = torch.full((len(items), longest), IGNORED)
        for row, item in zip(padded, items, strict=True):
            row[: len(item["input_ids"])] = torch.tensor(item["input_ids"])
        padding = self.processor.tokenizer.pad_token_id or 0
        seen = {name: torch.stack([item[name] for item in items]) for name in items[0] if name != "input_ids"}
        n_text = torch.tensor(longest - len(self.before))
        return {"input_ids": padded.masked_fill(padded == IGNORED, padding), "labels": padded[:, -n_text:], **seen}


class PretrainingTrainer(Trainer):
    """Logits of caption positions only; checkpoints whose frozen weights are stored once."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Cross-entropy of captions."""
        labels, length = inputs.pop("labels"), inputs["input_ids"].shape[1]
        if "features" in inputs:
            ids, features = inputs.pop("input_ids"), inputs.pop("features").float()
            text = model.get_input_embeddings()(ids)
            vision = projector_of(model)(features).to(text.dtype)
            inputs["inputs_embeds"] = text.masked_scatter((ids == model.config.image_token_id)[..., None], vision)
        else:
            cast("Any", self.model).model.vision_tower.eval()  # frozen also in what batch norm and dropout do
        # From the last image token, which predicts the first of the caption, to the last but one. Indices, because a
        # slice is not contiguous and makes the multiplication by the head several times slower on CPUs.
        keep = torch.arange(length - labels.shape[1] - 1, length - 1, device=labels.device)
        logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits
        wanted = labels != IGNORED
        loss = cross_entropy(logits[wanted].float(), labels[wanted])
        return (loss, {"loss": loss}) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A complete Hugging Face folder: the projector, and a link to the weights that do not change."""
        folder, model = Path(output_dir or str(self.args.output_dir)), cast("Any", self.model)
        folder.mkdir(parents=True, exist_ok=True)
        weights = model.state_dict()
        trained = {name: weight for name, weight in weights.items() if "multi_modal_projector" in name}
        frozen = Path(str(self.args.output_dir), FROZEN)
        if not frozen.exists():
            rest = {name: weight for name, weight in weights.items() if name not in trained}
            model.save_pretrained(frozen.parent / "frozen", state_dict=rest, max_shard_size="1TB")
            (frozen.parent / "frozen/model.safetensors").rename(frozen)
        model.save_pretrained(folder, state_dict=trained)
        (folder / "model.safetensors").rename(folder / PROJECTOR)
        (folder / FROZEN).unlink(missing_ok=True)
        (folder / FROZEN).symlink_to(Path("..", FROZEN))
        files = {FROZEN: frozen, PROJECTOR: folder / PROJECTOR}
        names = {name: file for file, path in files.items() for name in load_file(path)}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}, indent=1), encoding="utf-8")
        cast("Any", self.processing_class).save_pretrained(folder)


class SaveAt(TrainerCallback):
    """Saves, evaluates and so measures at chosen steps."""

    def __init__(self, steps: Sequence[int], evaluates: bool) -> None:
        self.steps, self.evaluates = set(steps), evaluates

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint."""
        control.should_save = state.global_step in self.steps
        control.should_evaluate = control.should_save and self.evaluates


def log_spaced(n_steps: int, ratio: float = 1.5, first: int = 4) -> list[int]:
    """Steps whose ratio is about constant, the last one included.

    >>> log_spaced(100, ratio=2)
    [4, 8, 16, 32, 64, 100]
    """
    count = int(math.log(n_steps / first, ratio)) if n_steps > first else 0
    return [*(round(first * ratio**k) for k in range(count + 1) if round(first * ratio**k) < n_steps), n_steps]


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; defaults are LLaVA-1.5's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--llm", default="lmsys/vicuna-7b-v1.5", help="hub name or folder of a causal language model")
    parser.add_argument("--tower", default="openai/clip-vit-large-patch14-336", help="the same of a vision tower")
    parser.add_argument("--data", type=Path, required=True, help="captions in LLaVA's JSON format")
    parser.add_argument("--images", type=Path, required=True, help="folder that its image names belong to")
    parser.add_argument("--held-out", type=Path, help="captions like those of --data, for a loss at each checkpoint")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="default: one epoch")
    parser.add_argument("--batch-size", type=int, default=256, help="images of one optimizer step on one device")
    parser.add_argument("--accumulate", type=int, default=1, help="forward passes of such a batch")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-at", help="steps, comma-separated; default: spaced by their logarithm")
    parser.add_argument("--features", type=Path, help="file to keep the tower's features in (one device, small data)")
    parser.add_argument("--mir-images", type=Path, help="images and texts that MIR is measured on; default: embedded")
    parser.add_argument("--mir-texts", type=Path)
    parser.add_argument("--mir-samples", type=int, default=100)
    parser.add_argument("--dtype", default="bfloat16", help="of the language model")
    parser.add_argument("--attention", default="sdpa", help="its attention; eager is faster on some CPUs")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> Trainer:
    """Train, from the last checkpoint in ``--out`` if there is one."""
    options = parsed(arguments)
    transformers.set_seed(options.seed)
    model, processor = build(options.llm, options.tower, getattr(torch, options.dtype), options.attention)
    pairs = Captions(options.data, options.images, processor)
    held_out = Captions(options.held_out, options.images, processor) if options.held_out else None
    if options.features:
        pairs.remember(model, options.features)
    n_steps = options.steps or math.ceil(len(pairs) / options.batch_size)
    projector_of(model).requires_grad_(True)
    trainer = PretrainingTrainer(
        cast("Any", model),
        TrainingArguments(
            output_dir=str(options.out),
            max_steps=n_steps,
            per_device_train_batch_size=options.batch_size // options.accumulate,
            gradient_accumulation_steps=options.accumulate,
            learning_rate=options.lr,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(0.03 * n_steps),
            seed=options.seed,
            logging_steps=10,
            save_strategy="no",
            prediction_loss_only=True,
            remove_unused_columns=False,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
        ),
        data_collator=pairs.collate,
        train_dataset=cast("Any", pairs),
        eval_dataset=cast("Any", held_out),
        processing_class=cast("Any", processor),
    )
    n = options.mir_samples
    samples = from_folders(options.mir_images, options.mir_texts, n) if options.mir_images else embedded_samples(n)
    steps = [int(step) for step in options.save_at.split(",")] if options.save_at else log_spaced(n_steps)
    trainer.add_callback(SaveAt(steps, evaluates=held_out is not None))
    trainer.add_callback(MIRCallback(trainer, samples))
    last = get_last_checkpoint(str(options.out)) if options.out.is_dir() else None
    if last and Path(last, "trainer_state.json").exists():
        trained = load_file(Path(last, PROJECTOR))  # under names that are not the module's
        projector_of(model).load_state_dict({name.split("projector.")[-1]: weight for name, weight in trained.items()})
        trainer.train(resume_from_checkpoint=last)
    else:
        trainer.save_model(str(options.out / "checkpoint-0"))
        trainer.train()
    return trainer


if __name__ == "__main__":
    main()
