"""Options that belong together reach a command as one value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from mir_plugin.cli import app
from mir_plugin.commands.option_groups import OptionGroup, expand_options


@dataclass(frozen=True)
class Colour:
    name: str
    deep: bool


def colour(
    name: Annotated[str, typer.Option(help="Which colour.", rich_help_panel="Colours")] = "red",
    deep: Annotated[bool, typer.Option("--deep", rich_help_panel="Colours")] = False,
) -> Colour:
    return Colour(name, deep)


Shade = Annotated[Colour, OptionGroup(colour)]
Plain = Annotated[Colour, OptionGroup(colour, without=("deep",))]


def paint(wall: Annotated[Path, typer.Argument()], shade: Shade, coats: int = 2) -> None:
    """Paint a wall."""
    typer.echo(f"{wall} {shade} {coats}")


def sketch(shade: Plain) -> None:
    typer.echo(str(shade))


def clash(shade: Shade, name: str = "") -> None: ...


def invoke(command: object, *arguments: str) -> tuple[int, str]:
    application = typer.Typer()
    application.command()(expand_options(command))  # type: ignore[arg-type]
    run = CliRunner().invoke(application, list(arguments))
    return run.exit_code, run.output


def test_a_group_is_built_from_its_options() -> None:
    assert invoke(paint, "east", "--name", "blue", "--deep", "--coats", "3") == (
        0,
        "east Colour(name='blue', deep=True) 3\n",
    )


def test_a_group_keeps_its_defaults() -> None:
    assert invoke(paint, "east") == (0, "east Colour(name='red', deep=False) 2\n")


def test_an_option_that_is_left_out_is_not_offered() -> None:
    assert invoke(sketch) == (0, "Colour(name='red', deep=False)\n")
    assert invoke(sketch, "--deep")[0] == 2


def test_the_help_shows_the_options_of_a_group_in_their_panel() -> None:
    _, shown = invoke(paint, "--help")
    assert "Paint a wall." in shown
    assert "Which colour." in shown
    assert "--shade" not in shown


def test_two_options_of_one_name_are_an_error() -> None:
    with pytest.raises(TypeError, match="clash"):
        expand_options(clash)


@pytest.mark.parametrize("command", [one.callback.__name__ for one in app.registered_commands if one.callback])
def test_help_at_80_columns_shows_every_option_whole_and_no_type_behind_a_switch(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, [command, "--help"]).output
    group: Any = typer.main.get_command(app)
    options = [name for one in group.commands[command].params for name in (*one.opts, *one.secondary_opts)]
    listed = re.findall(r"(?<![`\w/-])--[a-z-]+", shown)
    assert {name for name in options if name.startswith("--")} <= set(listed)
    assert "bool" not in shown.lower()
    assert max(map(len, shown.splitlines())) <= 80
