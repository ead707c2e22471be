"""``mir run``: one checkpoint → a table of layers, and mir.json."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mir_plugin.commands import options

if TYPE_CHECKING:
    from collections.abc import Callable

    from mir_plugin.distributed import Group
    from mir_plugin.model_adapters import LoadOptions
    from mir_plugin.results import MirConfig, MirResult
    from mir_plugin.resume import Journal
    from mir_plugin.samples import SampleSet
    from mir_plugin.types import ModelAdapter, TokenFeatures


def run(
    checkpoint: options.Checkpoint,
    base_llm: options.BaseLlm = None,
    vision_tower: options.VisionTower = None,
    vision_tower_aux: options.VisionTowerAux = None,
    family: options.Family = None,
    images: options.Images = None,
    texts: options.Texts = None,
    dataset: options.Dataset = None,
    embedded: options.Embedded = False,
    n_samples: options.NSamples = None,
    seed: options.Seed = 0,
    outliers: options.Outliers = options.OutlierChoice.REPLACE,
    no_normalization: options.NoNormalization = False,
    no_uncertainty: Annotated[
        bool,
        typer.Option("--no-uncertainty", help="Skip standard errors.", rich_help_panel=options.PROTOCOL),
    ] = False,
    dtype: options.Dtype = options.DtypeChoice.AUTO,
    device: options.Device = "auto",
    device_memory: options.DeviceMemory = None,
    batch_size: options.BatchSize = None,
    merge_lora: options.MergeLora = True,
    trust_remote_code: options.TrustRemoteCode = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for mir.json; default mir-out/NAME.", rich_help_panel=options.OUTPUT),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Measure again although this very result, or a part, exists.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Measure MIR of one checkpoint: how far apart vision and text tokens are in every layer. Lower is better.

    Examples:

      mir run liuhaotian/llava-v1.5-7b

      mir run runs/pretrain/checkpoint-1000 --base-llm vicuna-7b-v1.5

      mir run CHECKPOINT --images photos/ --texts stories/ --json > mir.json

      torchrun --nproc_per_node 2 -m mir_plugin.cli run CHECKPOINT

    A run that was killed continues after its last finished layer; one that finished is not repeated.
    """
    from mir_plugin.commands.terminal import print_result
    from mir_plugin.distributed import launched_group, own_device
    from mir_plugin.model_adapters import LoadOptions, checkpoint_spec
    from mir_plugin.results import MirConfig

    # A mistaken name is told at once, not after samples were fetched.
    checkpoint_spec(checkpoint, family)
    config = MirConfig(outliers=outliers.value, normalize=not no_normalization)
    sample_set = options.chosen_samples(images, texts, dataset, embedded, n_samples, seed)
    load = LoadOptions(
        base_llm=base_llm,
        vision_tower=vision_tower,
        vision_tower_aux=vision_tower_aux,
        family=family,
        dtype=dtype.value,
        device=own_device(device),
        device_memory=options.bytes_of(device_memory),
        merge_lora=merge_lora,
        trust_remote_code=trust_remote_code,
    )
    result_path = (out or Path("mir-out") / name_of(checkpoint)) / "mir.json"
    with launched_group(load.device) as group:
        result = measure_once(
            checkpoint,
            load,
            sample_set,
            config,
            result_path,
            batch_size=batch_size,
            with_uncertainty=not no_uncertainty,
            force=force,
            group=group,
        )
    if group.rank > 0:
        return
    if json:
        typer.echo(result.to_json(), nl=False)
    else:
        print_result(result, result_path)


def measure_once(
    checkpoint: Path,
    load: LoadOptions,
    sample_set: SampleSet,
    config: MirConfig,
    result_path: Path,
    *,
    batch_size: int | None = None,
    with_uncertainty: bool = True,
    force: bool = False,
    group: Group | None = None,
) -> MirResult:
    """The result at ``result_path`` if it answers this very request; else measure, and save it there.

    A run that was killed continues after the last layer it finished.

    Args:
        force: measure again in any case, from the first layer.
        group: the processes that measure together; process 0 reads and writes the files.
    Raises:
        MirError: if the checkpoint cannot be loaded or measured.
    """
    from mir_plugin.distributed import ALONE
    from mir_plugin.model_adapters import load_adapter

    group = group or ALONE
    existing, request = earlier_result(
        checkpoint, load, sample_set, config, result_path, with_uncertainty=with_uncertainty, force=force, group=group
    )
    if existing:
        _note(group, f"measured before, on {existing.created}: this is {result_path}. --force measures again.")
        return existing
    with held(result_path.parent, group):
        with group.agreed(f"loading {checkpoint}"):
            adapter = load_adapter(checkpoint, load)
        result = measure_and_save(
            adapter,
            sample_set,
            config,
            result_path,
            checkpoint=checkpoint,
            request=request,
            batch_size=batch_size,
            with_uncertainty=with_uncertainty,
            force=force,
            group=group,
        )
    if result.engine["resumed_layers"]:
        _note(group, f"{result.engine['resumed_layers']} layers were finished by an earlier run and kept.")
    return result


def earlier_result(
    checkpoint: Path,
    load: LoadOptions,
    sample_set: SampleSet,
    config: MirConfig,
    result_path: Path,
    *,
    with_uncertainty: bool,
    force: bool,
    group: Group,
) -> tuple[MirResult | None, str]:
    """The result at ``result_path`` if it answers this very request, and the fingerprint of the request.

    With ``force`` there is none.
    """
    from mir_plugin.resume import finished_result, request_fingerprint

    existing, request = None, ""
    with group.agreed("looking for an earlier result"):
        if group.rank == 0:
            request = request_fingerprint(checkpoint, dataclasses.asdict(load), config, sample_set.fingerprint)
            if not force:
                existing = finished_result(result_path, request, with_uncertainty=with_uncertainty)
    return group.of_first((existing, request))


def measure_and_save(
    adapter: ModelAdapter,
    sample_set: SampleSet,
    config: MirConfig,
    result_path: Path,
    *,
    checkpoint: Path,
    request: str,
    batch_size: int | None,
    with_uncertainty: bool,
    group: Group,
    force: bool = False,
    watch: Callable[[TokenFeatures], None] | None = None,
) -> MirResult:
    """Measure a loaded checkpoint and save the result; the caller holds the folder (``held``).

    Without ``force`` it begins at the layer where a killed run of this request ended.
    """
    from mir_plugin.run import measure

    journal = _journal(result_path)
    if force and group.rank == 0:
        journal.remove()
    result = measure(
        adapter,
        sample_set,
        config,
        checkpoint=str(checkpoint),
        batch_size=batch_size,
        with_uncertainty=with_uncertainty,
        group=group,
        journal=journal,
        request=request,
        watch=watch,
    )
    if group.rank == 0:
        result.save(result_path)
        journal.remove()
    return result


@contextlib.contextmanager
def held(folder: Path, group: Group) -> Iterator[None]:
    """Keep other runs out of an output folder, in which process 0 of the group writes. Collective."""
    from mir_plugin.output import only_writer

    with contextlib.ExitStack() as stack:
        with group.agreed(f"taking {folder} for this run"):
            if group.rank == 0:
                stack.enter_context(only_writer(folder))
        yield


def _journal(result_path: Path) -> Journal:
    from mir_plugin.resume import Journal

    return Journal(result_path.with_name("mir.partial.jsonl"))


def _note(group: Group, text: str) -> None:
    if group.rank == 0:
        typer.echo(f"mir: {text}", err=True)


def name_of(checkpoint: Path) -> str:
    """Folder name of a checkpoint; an intermediate one keeps its run's name in front.

    >>> name_of(Path("runs/llava-7b/checkpoint-200"))
    'llava-7b_checkpoint-200'
    """
    path = checkpoint.absolute()
    return f"{path.parent.name}_{path.name}" if path.name.startswith("checkpoint-") else path.name
