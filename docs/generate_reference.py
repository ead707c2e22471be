"""Write the parts of docs/reference that follow from the code.

    python docs/generate_reference.py          # write
    python docs/generate_reference.py --check  # exit 1 if a page is not what the code says

A test holds the committed pages to what this returns.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast, get_args, get_type_hints

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))  # this tree documents itself, whatever is installed
from reference_contents import MEANINGS
from result_schemas import SCHEMAS, WRITTEN_BY_HAND, Schema, described, report_config

if TYPE_CHECKING:
    from mir_plugin.reports.board.board import Board

REFERENCE = Path(__file__).parent / "reference"
GENERATED = "<!-- Written by docs/generate_reference.py. -->\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def code(text: object) -> str:
    """Inline code; nothing for nothing."""
    return f"`{text}`" if str(text) else ""


def in_markdown(text: str) -> str:
    """Docstring prose with its ``code``."""
    return text.replace("``", "`")


# --- command line ---------------------------------------------------------------------------------------------------


def command_line() -> str:
    """Every option of every command."""
    from mir_plugin.cli import app

    group: Any = typer.main.get_command(app)
    parts = [
        "# Command line\n",
        "`mir COMMAND --help` shows the same. An error that you can fix is one message on standard error and exit\n"
        "code 1; other exit codes are listed with their command. `--json` prints only the result on standard output.\n",
        table(
            ["command", "what it does"],
            [[f"[`mir {name}`](#mir-{name})", _first_line(one)] for name, one in sorted(group.commands.items())],
        ),
    ]
    return "\n".join([*parts, *(_command(name, one) for name, one in sorted(group.commands.items()))])


def _first_line(command: Any) -> str:
    return inspect.cleandoc(command.help or "").partition("\n")[0]


def _command(name: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    usage = " ".join(["mir", name, *map(_argument, arguments), "[OPTIONS]"])
    parts = [f"## mir {name}\n", f"```text\n{usage}\n```\n", _help(command.help or "")]
    if arguments:
        rows = [[code(_argument(one)), getattr(one, "help", "") or ""] for one in arguments]
        parts.append(table(["argument", "meaning"], rows))
    kinds = get_type_hints(command.callback)
    panels = dict.fromkeys(getattr(one, "rich_help_panel", None) or "Options" for one in options)
    for panel in panels:
        own = [one for one in options if (getattr(one, "rich_help_panel", None) or "Options") == panel]
        parts.append(table([panel, "default", "meaning"], [_option(one, kinds[one.name]) for one in own]))
    return "\n".join(parts)


def _help(text: str) -> str:
    """A command's docstring; its examples as a block."""
    body, _, rest = inspect.cleandoc(text).partition("Examples:\n")
    examples = [line.strip() for line in rest.splitlines() if line.startswith("  ")]
    after = [line for line in rest.splitlines() if line and not line.startswith("  ")]
    block = ["```text\n" + "\n".join(examples) + "\n```\n"] if examples else []
    return "\n".join([body.strip() + "\n", *block, *(["\n".join(after) + "\n"] if after else [])])


def _argument(argument: Any) -> str:
    shown = argument.name.upper() + (" …" if argument.nargs == -1 else "")
    return shown if argument.required else f"[{shown}]"


def _option(option: Any, kind: Any) -> list[str]:
    names = "/".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        metavar, default = "", "on" if option.secondary_opts and option.default else ""
    else:
        metavar, default = (
            f" {_metavar(kind)}",
            "" if option.default is None else getattr(option.default, "value", option.default),
        )
    return [code(f"{names}{metavar}"), code(default), option.help or ""]


def _metavar(kind: Any) -> str:
    """What stands for an option's value: the choices, or the kind of value."""
    while get_args(kind):  # of an optional one, or of a list
        kind = next(one for one in get_args(kind) if one is not type(None))
    if issubclass(kind, Enum):
        return "|".join(one.value for one in kind)
    return {Path: "PATH", str: "TEXT", int: "N", float: "X"}[kind]


# --- host tools -----------------------------------------------------------------------------------------------------


def host_options() -> str:
    """Options of the task and of the model inside lmms-eval and VLMEvalKit."""
    from mir_plugin.model_adapters import LoadOptions
    from mir_plugin.results import MirConfig
    from mir_plugin.tasks import options as mir_options
    from mir_plugin.tasks.generation_arguments import HANDLED

    texts = described(mir_options.MirOptions) | {
        name: text for name, text in described(MirConfig).items() if name in mir_options.OPTIONS
    }
    defaults = {one.name: one.default for one in dataclasses.fields(mir_options.MirOptions)}
    measuring = [
        [code(name), code(f"mir_{name}"), code(f"MIR_{name.upper()}"), code(_default(defaults[name])), texts[name]]
        for name in mir_options.OPTIONS
    ]
    loading_texts = described(LoadOptions)
    loading = [
        [code(one.name), code(_default(one.default)), in_markdown(loading_texts[one.name])]
        for one in dataclasses.fields(LoadOptions)
    ]
    rule = (mir_options.__doc__ or "").partition("\n\n")[2]
    return "\n".join(
        [
            "# Options inside lmms-eval and VLMEvalKit\n",
            "## What the task measures\n",
            in_markdown(rule),
            table(["task field", "model argument", "environment", "default", "meaning"], measuring),
            "Task fields are set in lmms-eval's task YAML (`mir` sets none, `mir_embedded` sets `samples: embedded`)\n"
            "and in VLMEvalKit's `--data-config`. Model arguments go into `--model_args` of lmms-eval, and only for\n"
            "this package's own model classes.\n",
            "## How a checkpoint is loaded\n",
            "For lmms-eval's model classes `mir_llava`, `mir_sharegpt4v`, `mir_mini_gemini` and `mir_hf` (all the\n"
            "same class), as `--model_args pretrained=CHECKPOINT,base_llm=DIR,…`; for VLMEvalKit as\n"
            "`--model NAME=CHECKPOINT,base_llm=DIR,…` or, in a `--config` file, as arguments of `MirModel`. `mir`\n"
            "commands take the same as options.\n",
            table(["argument", "default", "meaning"], loading),
            "VLMEvalKit also takes generation arguments there: "
            + ", ".join(map(code, sorted(HANDLED)))
            + ". In lmms-eval\n"
            "they come from the tasks and from `--gen_kwargs`.\n",
            "## Where MIR goes, and when it is measured again\n",
            "lmms-eval writes its files after the last task, and none if one of them raises. MIR runs first,\n"
            "and is saved at once as `OUTPUT_PATH/MODEL/FINGERPRINT_mir.json`, in the folder of the model's\n"
            "other results. `mir report` reads it there. The same command (model, `--model_args`, loaded\n"
            "weights, samples, protocol, versions) takes it over instead of measuring again; delete the file to\n"
            "measure anew. An error in a later task says where MIR is. VLMEvalKit's wrapper saves\n"
            "`MODEL_MIR_mir.json` in the run's folder before it goes on.\n",
            "## Which weights are refused\n",
            "transformers fills weights that a checkpoint lacks with random numbers, and hosts choose some\n"
            "classes by the folder's name. A model that a host has loaded is refused if its class is not of the\n"
            "architecture that `config.json` names (both classes known to transformers), or if it holds\n"
            "parameters that loading found no weights for and that nothing has filled since. The message names\n"
            "class and parameters; `mir run CHECKPOINT` loads the checkpoint by its own class. Tied weights,\n"
            "LoRA, and weights that the host fills in after loading are no reason. In a training, frozen\n"
            "parameters without weights are a warning.\n",
        ]
    )


def _default(value: object) -> str:
    return {"None": "", "True": "true", "False": "false"}.get(str(value), str(value))


# --- adapters -------------------------------------------------------------------------------------------------------


def adapters() -> str:
    """The table of families, and the interface of one more."""
    from mir_plugin import types
    from mir_plugin.model_adapters import ADAPTERS, AdapterSpec

    rows = [
        [code(one.name), ", ".join(map(code, one.aliases)), one.summary, code(one.loads.partition(":")[0])]
        for one in ADAPTERS
    ]
    spec = inspect.cleandoc(AdapterSpec.__doc__ or "")
    return "\n".join(
        [
            "# Adapters\n",
            "The first family that recognises a checkpoint by its files and config, never by its folder's name,\n"
            "loads it. Installed plugins are tried first. `--family` overrides.\n",
            table(["family", "also called", "checkpoints", "module"], rows),
            "Which of transformers' image-text types `huggingface` measures, and why it refuses the others: "
            "[Hugging Face model types](families.md).\n",
            "## A family\n",
            "`mir_plugin.model_adapters.AdapterSpec`: " + in_markdown(spec) + "\n",
            "## The interface\n",
            "What a loaded checkpoint has to offer; [an example in 50 lines](../how-to/own-model.md).\n",
            *(_interface(one) for one in (types.ModelAdapter, types.Batch, types.Decoder, types.LayerWeights)),
        ]
    )


def _interface(cls: type) -> str:
    summary = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:")[0].strip()
    rows = [[code(name), in_markdown(text)] for name, text in described(cls).items()]
    methods = [
        [code(f"{name}{_signature(member)}"), in_markdown(" ".join(inspect.cleandoc(member.__doc__ or "").split()))]
        for name, member in vars(cls).items()
        if inspect.isfunction(member) and not name.startswith("_")
    ]
    return f"### {cls.__name__}\n\n{in_markdown(summary)}\n\n" + (
        table(["member", "meaning"], rows + methods) if rows + methods else ""
    )


def _signature(function: Callable[..., Any]) -> str:
    """Arguments with their annotations as written in the code."""
    signature = inspect.signature(function)
    kept = [
        one.replace(annotation=inspect.Parameter.empty if one.name == "self" else one.annotation)
        for one in signature.parameters.values()
        if one.name not in ("self", "cls")
    ]
    return str(signature.replace(parameters=kept)).replace("'", "")


# --- files ----------------------------------------------------------------------------------------------------------


def files() -> str:
    """What each JSON file holds."""
    parts = [
        "# Files\n",
        "All are written atomically: a reader sees the old file or the whole new one. Numbers are plain JSON numbers,\n"
        "never NaN; unknown values are `null`. Later versions may add keys.\n",
        "`mir.json` is also what lmms-eval's results file holds under `configs.mir.metadata.mir_result`, and\n"
        "VLMEvalKit's tree as `…_MIR_mir.json`. `sweep.csv` has the columns of the `checkpoints` in `sweep.json`,\n"
        "and one for each of their indicators.\n",
    ]
    for name, make in SCHEMAS.items():
        schema = make()
        link = f"[schemas/{name}.schema.json](schemas/{name}.schema.json)"
        parts += [f"## {schema['title']}\n", f"{schema['description']} JSON Schema: {link}\n"]
        parts.append(table(["key", "type", "meaning"], _keys(schema)))
    return "\n".join(parts)


def _keys(schema: Schema, prefix: str = "") -> list[list[str]]:
    rows = []
    for name, one in schema.get("properties", {}).items():
        rows.append([code(prefix + name), _kind(one), in_markdown(one.get("description", ""))])
        inner = next((part for part in one.get("anyOf", [one]) if part.get("type") != "null"), one)
        if inner.get("type") == "array":
            rows += _keys(inner["items"], f"{prefix}{name}[].")
        else:
            rows += _keys(inner, f"{prefix}{name}.")
    return rows


def _kind(schema: Schema) -> str:
    if "enum" in schema:
        return ", ".join(code(json.dumps(one)) for one in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    return str(schema.get("type", "any"))


# --- report columns -------------------------------------------------------------------------------------------------


def report_columns() -> str:
    """The tables of ``mir report``, column by column."""
    from mir_plugin.reports.view import columns

    no_board = cast("Board", SimpleNamespace(benchmarks=(), cohorts=()))
    sheets = {
        "Leaderboard": (
            *columns.PLACE_COLUMNS,
            *columns.MIR_COLUMNS,
            columns.AVERAGE_COLUMN,
            *columns.ORIGIN_COLUMNS,
        ),
        "Verdict": (*columns.VERDICT_COLUMNS, *columns.VERDICT_RUN_COLUMNS[1:2], *columns.VERDICT_RUN_COLUMNS[4:]),
        "Scores": columns.SCORE_COLUMNS,
        "Correlation": columns.correlation_columns(no_board),
        "Layers": columns.LAYER_COLUMNS + columns.LAYER_DETAILS,
        "Runs": columns.RUN_COLUMNS,
        "Problems": columns.PROBLEM_COLUMNS,
    }
    parts = [
        "# Columns of the report\n",
        "Workbook, page, CSV, Markdown and LaTeX show the same columns. A column without values is left out; an\n"
        "empty cell means there is no value. The leaderboard has one more column for each benchmark.\n",
    ]
    for sheet, shown in sheets.items():
        rows = [[one.heading, MEANINGS[_without_coefficient(one.heading)]] for one in shown]
        parts += [f"## {sheet}\n", table(["column", "meaning"], rows)]
    return "\n".join(parts)


def _without_coefficient(heading: str) -> str:
    """One heading for the columns of all coefficients."""
    from mir_plugin.reports.view.columns import COEFFICIENTS

    for name, symbol, _ in COEFFICIENTS:
        heading = re.sub(rf"^{name} {symbol}$", "{name} {symbol}", heading)
        heading = re.sub(rf"(^p of ){symbol}(?=$|,)|^{symbol}(?= )", r"\1{symbol}", heading)
    return heading


# --- report configuration -------------------------------------------------------------------------------------------


def report_configuration() -> str:
    """Every key of the file given to ``mir report --config``, the named averages, and the benchmarks by key."""
    from mir_plugin.reports.read.benchmarks import AVERAGE_SETS, LMMS_EVAL, VLMEVALKIT
    from mir_plugin.reports.read.headline_table import BENCHMARKS

    def fed_by(host: str, headlines: Any) -> str:
        lines = [f"{', '.join(map(code, line.tasks))}: {code(line.metric)}" for line in headlines if line.host == host]
        return "; ".join(lines)

    schema = report_config()
    averages = [[code(one.name), one.title, ", ".join(map(code, one.keys))] for one in AVERAGE_SETS.values()]
    benchmarks = [
        [code(one.key), one.name, fed_by(LMMS_EVAL, one.headlines), fed_by(VLMEVALKIT, one.headlines)]
        for one in BENCHMARKS
    ]
    return "\n".join(
        [
            "# Report configuration\n",
            "The YAML file given to `mir report --config`;\n"
            "[an example](../how-to/link-scores.md#names-groups-and-links-in-a-file).\n"
            "A key that is not listed is an error. JSON Schema, for completion in editors:\n"
            "[schemas/report-config.schema.json](schemas/report-config.schema.json)\n",
            table(["key", "type", "default", "meaning"], _keys_by_hand(schema)),
            "## Averages\n",
            "Names for `average` and `--average`. All benchmarks of a set have the same weight; MME enters as ÷ 20.\n",
            table(["name", "over", "benchmarks"], averages),
            "## Benchmarks\n",
            "What `mir report` knows: the number that each host reports as the benchmark's. Others are shown as they\n"
            "are written; `define` gives them a scale.\n",
            table(["key", "name", "lmms-eval", "VLMEvalKit"], benchmarks),
        ]
    )


def _keys_by_hand(schema: Schema, prefix: str = "") -> list[list[str]]:
    rows = []
    for name, one in schema["properties"].items():
        default = code(one["default"]).replace("True", "true") if "default" in one else ""
        needed = " (required)" if name in schema["required"] else ""
        rows.append([code(prefix + name), _kind(one) + needed, default, in_markdown(one["description"])])
        inner = one.get("items", one)
        if "properties" in inner:
            rows += _keys_by_hand(inner, f"{prefix}{name}{'[]' if inner is not one else ''}.")
    return rows


# --- all ------------------------------------------------------------------------------------------------------------

PAGES = {
    "command-line.md": command_line,
    "host-options.md": host_options,
    "adapters.md": adapters,
    "files.md": files,
    "report-columns.md": report_columns,
    "report-config.md": report_configuration,
}


def generated() -> dict[Path, str]:
    """What every generated file should hold."""
    texts = {REFERENCE / name: f"{make().strip()}\n\n{GENERATED}" for name, make in PAGES.items()}
    schemas = {
        REFERENCE / "schemas" / f"{name}.schema.json": json.dumps(make(), indent=2, ensure_ascii=False) + "\n"
        for name, make in {**SCHEMAS, **WRITTEN_BY_HAND}.items()
    }
    return texts | schemas


def main() -> None:
    """Write the files, or say which are not current."""
    stale = [path for path, text in generated().items() if not path.exists() or path.read_text("utf-8") != text]
    if "--check" in sys.argv:
        sys.exit("\n".join(f"not current: {path.name}" for path in stale) or 0)
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(f"{len(stale)} of {len(generated())} files of {REFERENCE.parent.name}/{REFERENCE.name} changed")


if __name__ == "__main__":
    main()
