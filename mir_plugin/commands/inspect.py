"""``mir inspect``: what a checkpoint is made of, and how to load it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mir_plugin.commands import options

if TYPE_CHECKING:
    from mir_plugin.model_adapters import LoadOptions


def inspect(
    checkpoint: options.Checkpoint,
    base_llm: options.BaseLlm = None,
    vision_tower: options.VisionTower = None,
    vision_tower_aux: options.VisionTowerAux = None,
    family: options.Family = None,
    merge_lora: options.MergeLora = True,
) -> None:
    """Say what a checkpoint is made of, what loading it would use, and the lines that measure it. Reads no weights.

    A part that is missing is named, with the option that mends it, and the exit code is 1.
    """
    from rich.console import Console
    from rich.table import Table

    from mir_plugin.model_adapters import LoadOptions, inspect_checkpoint

    chosen = LoadOptions(
        base_llm=base_llm,
        vision_tower=vision_tower,
        vision_tower_aux=vision_tower_aux,
        family=family,
        merge_lora=merge_lora,
    )
    spec, description = inspect_checkpoint(checkpoint, chosen)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("checkpoint", str(checkpoint))
    table.add_row("family", spec.name)
    for heading, text in description.items():
        table.add_row(heading, text)
    console = Console()
    console.print(table)
    given = given_options(chosen)
    shell = "".join(f" --{name.replace('_', '-')} {value}" for name, value in given.items())
    arguments = ",".join(f"{name}={value}" for name, value in {"pretrained": checkpoint, **given}.items())
    model = "mir_hf" if spec.name == "huggingface" else "mir_llava"
    console.print(f"\nmir run {checkpoint}{shell}", soft_wrap=True, highlight=False)
    console.print(
        f"lmms_eval --model {model} --model_args {arguments} --tasks mir,mmstar --output_path out/",
        soft_wrap=True,
        highlight=False,
    )


def given_options(chosen: LoadOptions) -> dict[str, str]:
    """The loading options that differ from their defaults, by name."""
    import dataclasses

    return {
        field.name: str(getattr(chosen, field.name))
        for field in dataclasses.fields(chosen)
        if getattr(chosen, field.name) != field.default
    }
