"""Options that belong together reach a command as one value.

A group is a function whose parameters are the options and which returns the value::

    def sample_options(images: Annotated[Path | None, typer.Option(help="...")] = None, ...) -> SampleOptions: ...

    Samples = Annotated[SampleOptions, OptionGroup(sample_options)]

    def run(checkpoint: Checkpoint, samples: Samples) -> None: ...

``expand_options(run)`` is what typer is given: a function with the options of the group in place of ``samples``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OptionGroup:
    """Marks a parameter of a command as built from several options.

    Attributes:
        build: called with the options as keywords.
        without: parameters of ``build`` that are not offered; they keep their defaults.
    """

    build: Callable[..., Any]
    without: tuple[str, ...] = ()


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with every ``OptionGroup`` among its parameters replaced by the options of the group.

    Raises:
        TypeError: if two options have one name.
    """
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in _parameters(command):
        metadata = getattr(parameter.annotation, "__metadata__", ())
        group = next((one for one in metadata if isinstance(one, OptionGroup)), None)
        if group is None:
            parameters.append(parameter)
        else:
            options = [one for one in _parameters(group.build) if one.name not in group.without]
            groups[parameter.name] = group.build, [one.name for one in options]
            parameters += options
    names = [parameter.name for parameter in parameters]
    if len(set(names)) < len(names):
        raise TypeError(f"two options of {command.__name__} have one name: {', '.join(names)}")

    def expanded(**given: Any) -> None:
        for parameter, (build, options) in groups.items():
            given[parameter] = build(**{option: given.pop(option) for option in options})
        command(**given)

    expanded.__name__, expanded.__doc__, expanded.__module__ = command.__name__, command.__doc__, command.__module__
    expanded.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Of a function, with annotations that are objects; by keyword, so that defaults may stand in any order."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
