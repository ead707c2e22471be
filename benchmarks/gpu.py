"""``python gpu.py``: this package on a GPU, in six minutes at most; it needs torch, transformers and mir-plugin.

Correctness first: every route of the statistics against the CPU, the packaged checkpoint, a bfloat16 forward pass
against float32. Then LLaVA of 7B and 13B shape with random weights, made on the device: seconds by phase, whole runs
÷ bare forward passes, peak memory, layers streamed from host memory, and two processes where there are two GPUs; and
a random checkpoint on disk, loaded whole and within ``--device-memory``. Writes ``gpu.md`` and ``gpu.json`` into
``--out``. ``--tiny`` runs all of it with a tiny model, also on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor, nn

import mir_plugin.measurement.measure
from mir_plugin.engine.batches import default_batch_size, packed_by_length
from mir_plugin.measurement.measure import measure
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.metric.frechet import mean_term, trace_term_by_eigenvalues, transport_by_eigenvectors, way_on
from mir_plugin.metric.moments import Moments, moments
from mir_plugin.metric.polar import trace_term_by_polar, transport_by_polar
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.model_adapters.weights.streamed import SHARE_FOR_WEIGHTS
from mir_plugin.processes import launched_group, own_device
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.samples.embedded import N_EMBEDDED_SAMPLES, embedded_samples, micro_checkpoints, prose_passages
from mir_plugin.samples.sample_set import Sample, SampleSet
from mir_plugin.types import Batch, Decoder, TokenFeatures

ARTICLE_WORDS = 781  # of a CNN/DailyMail article, on average: See et al. 2017, arXiv 1704.04368
N_BEFORE = 35  # tokens of the system prompt
LETTERS_A_TOKEN = 4


@dataclass(frozen=True)
class Shape:
    """Dimensions of a LLaVA and its CLIP tower."""

    name: str
    n_layers: int
    d: int
    n_heads: int
    intermediate: int
    vocabulary: int = 32000
    tower_layers: int = 24
    tower_width: int = 1024
    image_size: int = 336


SHAPES = (Shape("7B", 32, 4096, 32, 11008), Shape("13B", 40, 5120, 40, 13824))
TINY_SHAPES = (Shape("tiny", 2, 64, 2, 128, 500, 1, 64, 56),)
ON_DISK = Shape("1.2B", 24, 2048, 16, 5632)  # 2.5 GB in bfloat16; its tower is the packaged checkpoint's
TINY_ON_DISK = Shape("tiny", 6, 64, 4, 128)
LAYERS_IN_MEMORY = 3.5  # of those of the checkpoint on disk: what --device-memory leaves room for


class RandomLlava:
    """A LLaVA with random weights: the engine's ``ModelAdapter``, without files."""

    family = "random"

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        """Make the weights on the device, module by module, from one seed."""
        self.device = device
        torch.manual_seed(0)
        with torch.device(device):
            tower = transformers.CLIPVisionConfig(
                hidden_size=shape.tower_width,
                intermediate_size=4 * shape.tower_width,
                num_hidden_layers=shape.tower_layers,
                num_attention_heads=shape.tower_width // 64,
                image_size=shape.image_size,
                patch_size=14,
            )
            llama = transformers.LlamaConfig(
                hidden_size=shape.d,
                intermediate_size=shape.intermediate,
                num_hidden_layers=shape.n_layers,
                num_attention_heads=shape.n_heads,
                vocab_size=shape.vocabulary,
                max_position_embeddings=4096,
            )
            before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                self.model = nn.ModuleDict(
                    {
                        "tower": transformers.CLIPVisionModel(tower),
                        "projector": nn.Linear(shape.tower_width, shape.d),
                        "llm": transformers.LlamaModel(llama),
                    }
                ).eval()
            finally:
                torch.set_default_dtype(before)
        self.n_vision = (shape.image_size // 14) ** 2
        self.shape = shape
        llm: Any = self.model["llm"]
        self.decoder = Decoder(list(llm.layers), llm.norm)
        self.facts: Mapping[str, Any] = {
            "prompt_template": "random",
            "checkpoint_fingerprint": f"random-{shape}-{dtype}",
        }

    def encode(self, samples: Sequence[Sample]) -> Batch:
        """Prompts of letters in fours, and pixels."""
        ids = [self._ids(sample.text) for sample in samples]
        length = N_BEFORE + self.n_vision + max(map(len, ids))
        tokens = torch.zeros(len(ids), length, dtype=torch.long)
        mask = torch.zeros(len(ids), length, dtype=torch.long)
        first_text = N_BEFORE + self.n_vision
        for row, own in enumerate(ids):
            tokens[row, first_text : first_text + len(own)] = torch.tensor(own)
            mask[row, : first_text + len(own)] = 1
        positions = torch.arange(length)
        vision = ((positions >= N_BEFORE) & (positions < first_text)).expand(len(ids), -1)
        text = (positions >= first_text) & mask.bool()
        side = self.shape.image_size
        images = (sample.open_image().resize((side, side)).tobytes() for sample in samples)
        pixels = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in images]
        stacked = torch.stack(pixels).view(len(samples), side, side, 3).permute(0, 3, 1, 2) / 127.5 - 1
        inputs = {"tokens": tokens, "mask": mask, "pixels": stacked}
        return Batch(
            {name: value.to(self.device) for name, value in inputs.items()},
            vision.to(self.device),
            text.to(self.device),
            tuple(sample.sample_id for sample in samples),
        )

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """Last hidden states of one prefill."""
        llm: Any = self.model["llm"]
        embeddings = llm.embed_tokens(batch.inputs["tokens"])
        tower = self.model["tower"](batch.inputs["pixels"].to(embeddings.dtype))
        embeddings[:, N_BEFORE : N_BEFORE + self.n_vision] = self.model["projector"](tower.last_hidden_state[:, 1:])
        mask = batch.inputs["mask"]
        states: Tensor = llm(
            inputs_embeds=embeddings, attention_mask=None if bool(mask.all()) else mask, use_cache=False
        ).last_hidden_state
        return states

    def bound_to(self, batch: Batch) -> AbstractContextManager[None]:
        """Nothing: the layers need no more than their arguments."""
        return nullcontext()

    def _ids(self, text: str) -> list[int]:
        pieces = [word[k : k + LETTERS_A_TOKEN] for word in text.split() for k in range(0, len(word), LETTERS_A_TOKEN)]
        return [zlib.crc32(piece.encode()) % self.shape.vocabulary for piece in pieces]


class FromHost:
    """Decoder layers in host memory, put on the device one or two at a time: the engine's ``LayerWeights``."""

    room_for_two = True

    def __init__(self, layers: Sequence[nn.Module], device: torch.device) -> None:
        self._layers, self._device = layers, device
        pin = device.type == "cuda"
        self._weights = [
            {name: p.data.cpu().pin_memory() if pin else p.data.cpu() for name, p in layer.named_parameters()}
            for layer in layers
        ]
        self.layer_bytes = max(sum(p.numel() * p.element_size() for p in own.values()) for own in self._weights)
        for k in range(len(layers)):
            self.release(k)

    def load(self, layer_index: int) -> None:
        """Copy a layer to the device."""
        for name, parameter in self._layers[layer_index].named_parameters():
            parameter.data = self._weights[layer_index][name].to(self._device, non_blocking=True)

    def release(self, layer_index: int) -> None:
        """Free its memory there."""
        for parameter in self._layers[layer_index].parameters():
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=self._device)


class Report:
    """Rows of the table, and the same as JSON; a part that fails or has no time left is a row, too."""

    def __init__(self, seconds: float) -> None:
        self.rows: list[dict[str, Any]] = []
        self._end = time.perf_counter() + seconds

    def part(self, name: str, work: Callable[[], Mapping[str, Any]], needs: float = 0.0) -> None:
        """Run a part that takes so many seconds, about, and keep what it measured."""
        left = self._end - time.perf_counter()
        started = time.perf_counter()
        if left < needs:
            found: Mapping[str, Any] = {"not run": f"{left:.0f} s left"}
        else:
            try:
                found = work()
            except Exception as error:  # the parts after it are worth having
                found = {"failed": f"{type(error).__name__}: {error}"}
        self.rows.append({"part": name, "took": time.perf_counter() - started, **found})
        print(json.dumps(self.rows[-1]), file=sys.stderr, flush=True)

    def write(self, folder: Path, machine: Mapping[str, Any]) -> None:
        """gpu.json and gpu.md."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gpu.json").write_text(json.dumps({"machine": machine, "parts": self.rows}, indent=2) + "\n")
        lines = [
            ", ".join(f"{name} {value}" for name, value in machine.items()),
            "",
            "| part | measured |",
            "|---|---|",
        ]
        for row in self.rows:
            cells = (f"{name} {_shown(value)}" for name, value in row.items() if name != "part")
            lines.append(f"| {row['part']} | {'; '.join(cells)} |".replace("\n", " "))
        (folder / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print("\n".join(lines))


def main() -> None:
    """Parse the options, run the parts, write the files. Exit status 1 if a part failed."""
    parser = argparse.ArgumentParser(prog="gpu.py", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, without a GPU too: whether it runs")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument(
        "--seconds", type=float, default=360, help="parts that would end later are not begun; not --tiny"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-benchmark"))
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)  # one of two, started by a launcher
    options = parser.parse_args()
    if options.process:
        one_of_two()
        return
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("no GPU on this machine; --tiny runs every part without one")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = Report(math.inf if options.tiny else options.seconds)
    report.part("routes against the CPU", lambda: routes(device, 48 if options.tiny else 512))
    report.part("layer statistics against the CPU", lambda: layer_statistics(device, 32 if options.tiny else 1024))
    report.part("packaged checkpoint against the CPU", lambda: packaged_checkpoint(device, 3 if options.tiny else 20))
    report.part("bfloat16 against float32", lambda: bfloat16(device, tiny=options.tiny))
    for shape in TINY_SHAPES if options.tiny else SHAPES:
        n_samples = min(options.samples, 4) if options.tiny else options.samples
        words = 20 if options.tiny else ARTICLE_WORDS
        large(report, shape, device, samples_of(n_samples, words), needs=0 if options.tiny else 45)
    on_disk(report, TINY_ON_DISK if options.tiny else ON_DISK, device, needs=0 if options.tiny else 60)
    if torch.cuda.device_count() > 1 or options.tiny:
        report.part(
            "two processes against one",
            lambda: two_processes(None if options.tiny else 120),
            needs=0 if options.tiny else 60,
        )
    else:
        report.rows.append({"part": "two processes against one", "not run": f"{torch.cuda.device_count()} GPU"})
    report.write(options.out, machine(device))
    sys.exit(any("failed" in row for row in report.rows))


def routes(device: torch.device, d: int) -> dict[str, Any]:
    """Largest differences of distances and maps by the polar route on the device from eigenvalues on the CPU.

    Of the distance for the trace term, of the largest entry for what the map does to the tokens' covariance.
    """
    generator = torch.Generator().manual_seed(0)

    def tokens(n: int, decades: float) -> Tensor:
        scales = torch.logspace(0, -decades, d, dtype=torch.float64)
        return torch.randn(n, d, generator=generator, dtype=torch.float64) * scales

    many, few = 4 * d, d // 2
    pairs = {
        "isotropic": (tokens(many, 0), tokens(many, 0) + 0.1),
        "six decades": (tokens(many, 3), tokens(many, 3) * 1.5),
        "condition 1e14": (tokens(many, 7), tokens(many, 7) * 1.5),
        "few tokens": (tokens(few, 2), tokens(few, 2) * 2),
        "singular": (tokens(many, 1), torch.cat([tokens(many, 1)[:, 1:], torch.ones(many, 1).double()], dim=1)),
    }
    found: dict[str, Any] = {"way of this device": way_on(device)}
    for name, pair in pairs.items():
        vision, text = map(moments, pair)
        expected = trace_term_by_eigenvalues(vision, text).value
        rest = mean_term(vision, text) + vision.cov.trace() + text.cov.trace()
        there = vision.to(device), text.to(device)
        term = trace_term_by_polar(*there).cpu()
        maps, expected_maps = transport_by_polar(*there), transport_by_eigenvectors(vision, text)
        found[f"{name}: distance"] = float(abs(2 * (term - expected)) / (rest - 2 * expected))
        found[f"{name}: map"] = _difference(_carried(maps[0].cpu(), vision), _carried(expected_maps.to_text, vision))
    return found


def layer_statistics(device: torch.device, d: int) -> dict[str, float | str]:
    """Largest relative difference of one layer's numbers, outliers included, from the CPU's."""
    generator = torch.Generator().manual_seed(1)
    counts = (2 * d, 2 * d)
    vision, text = (torch.randn(4 * d, d, generator=generator).bfloat16() for _ in range(2))
    vision[3] *= 40
    text[5] *= 40
    found = []
    for place in (device, torch.device("cpu")):
        layer = PooledLayer.of(TokenFeatures(1, vision.to(place), text.to(place), counts, counts), MirConfig())
        maps = layer.transport()
        distance = layer.layer_distance(maps.trace_term)
        found.append((distance, layer.influences(maps, distance.distance)))
    (there, its_influences), (here, influences) = found
    numbers = [(a, b) for a, b in zip(vars(there).values(), vars(here).values(), strict=True) if isinstance(b, float)]
    return {
        "route": there.trace_route,
        "distance": abs(there.distance - here.distance) / here.distance,
        "any number": max(abs(a - b) / abs(b) for a, b in numbers if b),
        "influences": _difference(its_influences, influences),
    }


def packaged_checkpoint(device: torch.device, n_samples: int) -> dict[str, float]:
    """MIR of the packaged checkpoint on the device, less that of the CPU, in float32."""
    folder, samples = micro_checkpoints()[-1], embedded_samples(n_samples)
    there, here = (
        measure(load_adapter(folder, LoadOptions(device=place)), samples, checkpoint="packaged").mir
        for place in (device.type, "cpu")
    )
    return {"MIR": here, "difference": abs(there - here)}


def bfloat16(device: torch.device, *, tiny: bool) -> dict[str, float]:
    """MIR of one random model with bfloat16 and float32 forward passes, on the device."""
    shape = TINY_SHAPES[0] if tiny else Shape("small", 8, 1024, 16, 2816, tower_layers=4, tower_width=256)
    samples = samples_of(4, 20 if tiny else 200)
    full, half = (RandomLlava(shape, device, dtype) for dtype in (torch.float32, torch.bfloat16))
    full.model.load_state_dict(half.model.state_dict())  # the weights as bfloat16 rounds them
    values = [measure(adapter, samples, checkpoint="random").mir for adapter in (full, half)]
    return {"float32": values[0], "bfloat16": values[1], "difference": abs(values[1] - values[0])}


def large(report: Report, shape: Shape, device: torch.device, samples: SampleSet, needs: float) -> None:
    """Bare passes, whole runs with and without overlap, and a streamed run of one shape; each a part."""
    held: dict[str, RandomLlava] = {}

    def load() -> dict[str, Any]:
        held["model"] = RandomLlava(shape, device, torch.bfloat16)
        bare(held["model"], samples.samples[:2])  # what a first call allocates belongs to nobody
        size = default_batch_size(held["model"], samples.samples)
        return {"layers": shape.n_layers, "d": shape.d, "samples": len(samples.samples), "batch size": size}

    def whole(**changes: Any) -> dict[str, Any]:
        adapter = held["model"]
        _reset_peak(device)
        started = _now(device)
        with mock.patch.multiple(mir_plugin.measurement.measure, **changes) if changes else nullcontext():
            result = measure(adapter, samples, checkpoint="random")
        seconds = _now(device) - started
        found = {"seconds": seconds, **_phases(result), **_against(report, shape, seconds)}
        return {**found, "peak GB": _peak(device), "MIR": result.mir}

    def streamed() -> dict[str, Any]:
        adapter = held["model"]
        adapter.decoder = Decoder(
            adapter.decoder.layers, adapter.decoder.final_norm, FromHost(adapter.decoder.layers, device)
        )
        return whole()

    report.part(f"{shape.name}: making it", load, needs)
    report.part(f"{shape.name}: bare passes", lambda: timed_bare(held["model"], samples.samples), needs)
    report.part(f"{shape.name}: whole run", whole, needs)
    report.part(f"{shape.name}: whole run, in turn", lambda: whole(layers_held=lambda *_: (1, 1)), needs)
    report.part(f"{shape.name}: whole run, layers from host memory", streamed, needs)
    held.clear()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def on_disk(report: Report, shape: Shape, device: torch.device, needs: float) -> None:
    """A random checkpoint loaded whole, and with its layers read from its files within a limit of device memory."""
    samples, found = embedded_samples(3 if shape is TINY_ON_DISK else 20), dict[str, Any]()

    def measured(device_memory: int | None) -> dict[str, Any]:
        adapter = load_adapter(folder, LoadOptions(device=device.type, device_memory=device_memory))
        layers = [sum(p.numel() * p.element_size() for p in one.parameters()) for one in adapter.decoder.layers]
        measure(adapter, embedded_samples(2), checkpoint="on disk")  # what a first call allocates belongs to nobody
        _reset_peak(device)
        started = _now(device)
        result = measure(adapter, samples, checkpoint="on disk")
        seconds = _now(device) - started
        found.setdefault("layers", layers)
        streamed = {"streamed": adapter.decoder.streamed is not None}
        return {**streamed, "seconds": seconds, **_phases(result), "peak GB": _peak(device), "MIR": result.mir}

    def whole() -> dict[str, Any]:
        write_checkpoint(folder, shape, device)
        found["GB"] = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
        return {"GB on disk": found["GB"], **measured(None)}

    def within() -> dict[str, Any]:
        others = 1e9 * found["GB"] - sum(found["layers"])
        allowed = int((others + LAYERS_IN_MEMORY * max(found["layers"])) / SHARE_FOR_WEIGHTS)
        return {"device memory GB": allowed / 1e9, **measured(allowed)}

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        report.part(f"{shape.name} on disk: whole", whole, needs)
        report.part(f"{shape.name} on disk: within --device-memory", within, needs / 2)


def write_checkpoint(folder: Path, shape: Shape, device: torch.device) -> None:
    """A Hugging Face LLaVA with random weights, and the processor and tower shape of the packaged one."""
    source = micro_checkpoints()[-1]
    config = transformers.LlavaConfig.from_pretrained(source)
    changed = {
        "hidden_size": shape.d,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_heads,
        "head_dim": shape.d // shape.n_heads,
    }
    for name, value in changed.items():
        setattr(config.text_config, name, value)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.LlavaForConditionalGeneration(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    transformers.AutoProcessor.from_pretrained(source).save_pretrained(folder)


def timed_bare(adapter: RandomLlava, samples: Sequence[Sample]) -> dict[str, float | None]:
    """Seconds and peak memory of the bare forward passes."""
    _reset_peak(adapter.device)
    started = _now(adapter.device)
    bare(adapter, samples)
    return {"seconds": _now(adapter.device) - started, "peak GB": _peak(adapter.device)}


def bare(adapter: RandomLlava, samples: Sequence[Sample]) -> None:
    """The forward passes that MIR is made of, in the same batches, and nothing else."""
    for indices in packed_by_length(samples, default_batch_size(adapter, samples)):
        adapter.forward(adapter.encode([samples[index] for index in indices]))


def two_processes(seconds: float | None) -> dict[str, Any]:
    """Two processes, with NCCL where each has a GPU, against one: MIR of a small random model in float32.

    Args:
        seconds: after which they are given up; None waits.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    alone = measure(RandomLlava(TINY_SHAPES[0], device, torch.float32), samples_of(5, 20), checkpoint="random")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", __file__, "--process"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=seconds)
    together = json.loads(done.stdout.splitlines()[-1])
    return {"MIR": alone.mir, "difference": abs(together["mir"] - alone.mir), "tensors over": together["over"]}


def one_of_two() -> None:
    """What each of the two processes does; process 0 prints the result."""
    device = own_device("cuda" if torch.cuda.device_count() > 1 else "cpu")
    with launched_group(device) as group:
        adapter = RandomLlava(TINY_SHAPES[0], torch.device(device), torch.float32)
        result = measure(adapter, samples_of(5, 20), checkpoint="random", group=group)
        if group.rank == 0:
            print(json.dumps({"mir": result.mir, "over": "NCCL" if group.device.type == "cuda" else "gloo"}))


def samples_of(n: int, text_words: int) -> SampleSet:
    """The embedded images, over and over, each with passages of at least so many words."""
    images = embedded_samples(min(n, N_EMBEDDED_SAMPLES)).samples
    words = itertools.chain.from_iterable(passage.split() for passage in itertools.cycle(prose_passages()))
    texts = [" ".join(itertools.islice(words, text_words + index % 7)) for index in range(n)]
    return SampleSet(tuple(Sample(f"{k}", images[k % len(images)].image, text) for k, text in enumerate(texts)))


def machine(device: torch.device) -> dict[str, Any]:
    """What this was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU only"
    return {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}


def _phases(result: MirResult) -> dict[str, Any]:
    seconds = {name: result.timing[name] for name in ("check", "forward", "statistics")}
    return {**seconds, "overlapped": result.engine["overlapped"], "batch size": result.engine["batch_size"]}


def _against(report: Report, shape: Shape, seconds: float) -> dict[str, float]:
    of_bare = [row.get("seconds") for row in report.rows if row["part"] == f"{shape.name}: bare passes"]
    return {"÷ bare": seconds / of_bare[0]} if of_bare and of_bare[0] else {}


def _carried(to_text: Tensor, vision: Moments) -> Tensor:
    """Σ_v T Σ_v: what the map T does where there are tokens."""
    half = to_text @ vision.cov
    return half.t() @ half


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
