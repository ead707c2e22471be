"""What the documentation says against what is there: languages, links, options, names, and the generated reference."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from documented import DOCS, LANGUAGES, REPOSITORY, Block, blocks, pages, prose

ALL_BLOCKS = [block for page in pages() for block in blocks(page)]
COMMANDS = [
    pytest.param(command.text, block, id=f"{block}: {command.text[:60]}")
    for block in ALL_BLOCKS
    if block.language in ("bash", "console")
    for command in block.commands()
]
# Programs of others whose options have no list that could be asked here.
VLMEVALKIT = {"--data", "--model", "--config", "--data-config", "--work-dir", "--mode", "--reuse", "--api-mode"}
OTHERS = {
    "ray": {"--head", "--port", "--address", "--min-nodes", "--num-cpus", "--num-gpus"},
    "cd": set(),
    "echo": set(),
    "git": set(),
    "grep": set(),
    "pip": {"-c", "-e"},
    "mir-vlmeval": VLMEVALKIT,
    "sbatch": {"--dependency"},
    "tar": {"-czf", "-xzf", "-C"},
    "make": set(),
    "python": {"--machines"},  # of tests/faults/variation.py
}


@cache
def mir_commands() -> dict[str, Any]:
    """Subcommand → what typer made of it."""
    from mir_plugin.cli import app

    group: Any = typer.main.get_command(app)
    return dict(group.commands)


@cache
def mir_options(name: str) -> frozenset[str]:
    """Every spelling of a subcommand's options."""
    own = {spelling for one in mir_commands()[name].params for spelling in (*one.opts, *one.secondary_opts)}
    return frozenset(one for one in own | {"--help", "-h"} if one.startswith("-"))


@cache
def options_in(module: str) -> frozenset[str]:
    """Options that a module of another program declares, found in its source without importing it."""
    parent, _, name = module.rpartition(".")
    spec = importlib.util.find_spec(parent)
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / f"{name}.py").read_text(encoding="utf-8")
    found = {
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"--?[a-z][\w-]*", node.value)
    }
    return frozenset(found | {one.replace("_", "-") for one in found if one.startswith("--")})


def problems_of(words: list[str]) -> list[str]:
    """What a command names that does not exist."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    program, rest = words[0], words[1:]
    if program == "mir":
        if rest and rest[0] in ("--version", "--help"):
            return []
        if not rest or rest[0] not in mir_commands():
            return [f"there is no command mir {rest[:1]}"]
        return unknown(rest[1:], mir_options(rest[0]))
    if program == "lmms_eval":
        return unknown(rest, options_in("lmms_eval.__main__")) + unknown_model_arguments(rest)
    if program in ("torchrun", "accelerate"):
        at = rest.index("-m")
        launcher = "torch.distributed.run" if program == "torchrun" else "accelerate.commands.launch"
        problems = unknown(rest[:at], options_in(launcher))
        target = {"mir_plugin.cli": "mir", "mir_plugin.tasks.lmms_eval.alias": "lmms_eval", "lmms_eval": "lmms_eval"}
        return problems + problems_of([target[rest[at + 1]], *rest[at + 2 :]])
    if program == "srun":  # ray symmetric-run [OPTIONS] -- COMMAND
        at = rest.index("--")
        return unknown(rest[:at], OTHERS["ray"]) + problems_of(rest[at + 1 :])
    return unknown(rest, OTHERS[program]) if program in OTHERS else [f"{program!r} is not known to this test"]


def unknown(words: list[str], known: frozenset[str] | set[str]) -> list[str]:
    """Options among the words that are not known."""
    given = {word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)}
    return [f"there is no option {one}" for one in sorted(given - known)]


def unknown_model_arguments(words: list[str]) -> list[str]:
    """Model arguments of this package's model classes that they do not take."""
    from mir_plugin.model_adapters import LoadOptions
    from mir_plugin.tasks.options import OPTIONS

    model = words[words.index("--model") + 1] if "--model" in words else ""
    if not model.startswith("mir_") or "--model_args" not in words:
        return []
    known = {"pretrained", *LoadOptions.__dataclass_fields__, *(f"mir_{name}" for name in OPTIONS)}
    given = {one.partition("=")[0] for one in words[words.index("--model_args") + 1].split(",")}
    return [f"there is no model argument {one}" for one in sorted(given - known)]


def words_of(command: str) -> list[list[str]]:
    """The words of each simple command of a line, without redirections; none for a script's own lines."""
    if re.match(r"(case|esac|set |source |export |[0-9*|]+\)|python -c)", command):
        return []
    parts = re.split(r"\s*(?:\||&&|;)\s*", re.sub(r"\s[<>]\s*\S+", "", command)) if "'" not in command else [command]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


@pytest.mark.parametrize(("command", "block"), COMMANDS)
def test_every_command_names_what_exists(command: str, block: Block) -> None:
    assert not [problem for words in words_of(command.replace("…/", "/")) for problem in problems_of(words)]


@pytest.mark.parametrize(
    "command",
    [
        "mir measure x",
        "mir run x --imagse y",
        "lmms_eval --task mir",
        "lmms_eval --model mir_hf --model_args pretrained=x,sample=y",
        "torchrun --nproc 2 -m mir_plugin.cli run x",
        "torchrun --nproc-per-node 2 -m mir_plugin.cli run x --embeded",
        "frobnicate",
    ],
)
def test_a_command_with_a_slip_would_be_found(command: str) -> None:
    assert [problem for words in words_of(command) for problem in problems_of(words)]


def test_every_block_says_its_language_and_commands_stand_in_console_or_bash() -> None:
    assert not [f"{block}: {block.language!r}" for block in ALL_BLOCKS if block.language not in LANGUAGES]
    hidden = re.compile(r"^\$? ?(mir|lmms_eval|mir-vlmeval) [a-z-]", re.MULTILINE)
    others = [block for block in ALL_BLOCKS if block.language == "text" and "generated" not in str(block.page)]
    shown = [str(block) for block in others if hidden.search(block.text) and block.page.name != "command-line.md"]
    assert not shown


def test_every_option_named_in_prose_exists() -> None:
    known = frozenset().union(*(mir_options(name) for name in mir_commands()), *OTHERS.values(), {"--version"})
    known |= options_in("lmms_eval.__main__") | options_in("torch.distributed.run")
    known |= options_in("accelerate.commands.launch") | {"--full", "--check"}  # of our own tests
    missing = [
        f"{page.relative_to(REPOSITORY)}: {option}"
        for page in pages()
        for shown in re.findall(r"`([^`]+)`", prose(page))
        for option in re.findall(r"(?<![\w-])(--[a-z][\w-]*)", shown)
        if option not in known
    ]
    assert not missing


def test_every_environment_variable_of_ours_named_anywhere_exists() -> None:
    from mir_plugin.tasks.options import OPTIONS

    of_tests = {
        name
        for path in Path(__file__).parent.glob("*.py")
        for name in re.findall(r"MIR_TEST_[A-Z]+", path.read_text("utf-8"))
    }
    known = {f"MIR_{name.upper()}" for name in OPTIONS} | of_tests
    named = {name for page in pages() for name in re.findall(r"\bMIR_[A-Z_]+\b", page.read_text("utf-8"))}
    assert named <= known


def test_the_vlmevalkit_page_names_every_argument_that_a_model_takes() -> None:
    from mir_plugin.model_adapters import LoadOptions
    from mir_plugin.tasks.generation_arguments import HANDLED

    page = prose(DOCS / "how-to" / "vlmevalkit.md").replace("\n", " ")
    listed = re.search(r"comma-separated: (.*?)\. ", page)
    assert listed is not None
    another_spelling = {"max_gen_toks"}  # of max_new_tokens
    assert set(re.findall(r"`(\w+)`", listed[1])) == {*LoadOptions.__dataclass_fields__, *HANDLED} - another_spelling


def anchors_of(page: Path) -> set[str]:
    """What a link can point at in a page: its headings, as GitHub and mkdocs spell them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def test_every_link_leads_somewhere() -> None:
    broken = []
    others = (REPOSITORY / "CHANGELOG.md", *REPOSITORY.glob("examples/*/*.md"), *REPOSITORY.glob("benchmarks/*.md"))
    for page in (*pages(), *others):
        for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", prose(page)):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in anchors_of(file)):
                broken.append(f"{page.relative_to(REPOSITORY)}: {target}")
    assert not broken


def test_every_page_can_be_reached_from_the_index() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    missing = [p.relative_to(DOCS) for p in DOCS.rglob("*.md") if p != DOCS / "index.md" and p.name not in index]
    assert not missing


def test_every_column_of_the_report_is_explained_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    from reference_contents import MEANINGS

    page = (DOCS / "reference" / "report-columns.md").read_text(encoding="utf-8")
    unused = [heading for heading in MEANINGS if "{" not in heading and f"| {heading} |" not in page]
    assert not unused


def test_schemas_are_valid_schemas() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for path in (DOCS / "reference" / "schemas").glob("*.json"):
        jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text(encoding="utf-8")))
