"""What lmms-eval loads through the entry-point group ``lmms_eval.models``.

lmms-eval drops every later plugin when one of them raises here, and lists its models without importing torch. So
nothing below raises, and heavy modules are extended right after lmms-eval itself has imported them, never before.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from mir_plugin.tasks.host_internals import LOADING, MODEL_BASE, MODEL_CREATION, TASK_INDEX, Internal

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

MODEL = "mir_plugin.tasks.lmms_eval.model.MirModel"
MODEL_ALIASES = ("mir_sharegpt4v", "mir_mini_gemini", "mir_hf")

log = logging.getLogger("mir_plugin")


class Extension(NamedTuple):
    """A change to one module of lmms-eval: ``apply`` is ``"module:function"``, called with the module."""

    internal: Internal
    apply: str


EXTENSIONS = (
    Extension(TASK_INDEX, "mir_plugin.tasks.lmms_eval.hooks:index_our_tasks"),
    Extension(MODEL_BASE, "mir_plugin.tasks.lmms_eval.hooks:let_every_model_answer_mir"),
    Extension(MODEL_CREATION, "mir_plugin.tasks.lmms_eval.hooks:remember_created_models"),
    Extension(LOADING, "mir_plugin.model_adapters.in_memory.initial_weights:observe_loading"),
)


def manifests() -> Sequence[ModelManifest]:
    """Our models, for lmms-eval's registry; also arranges that its task index and model class learn of ``mir``.

    Never raises: what does not fit the installed lmms-eval is told in one warning.
    """
    for extension in EXTENSIONS:
        after_import(extension.internal.module, functools.partial(_extend, extension=extension))
    try:
        from lmms_eval.models.registry_v2 import ModelManifest

        return [ModelManifest(model_id="mir_llava", simple_class_path=MODEL, aliases=MODEL_ALIASES)]
    except Exception as error:  # whatever changed in lmms-eval, raising would take all other plugins with us
        log.warning("mir-plugin cannot register its models with this lmms-eval (%r); `mir run` does without.", error)
        return []


def after_import(name: str, then: Callable[[ModuleType], None]) -> None:
    """Call ``then(module)`` as soon as the module is imported: now if it has been, else after its first import."""
    if name in sys.modules:
        then(sys.modules[name])
    else:
        sys.meta_path.insert(0, _AfterImport(name, then))


class _AfterImport(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.then = then

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)  # the search below must not come back here
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_then_extend(module: ModuleType) -> None:
                load(module)
                self.then(module)

            spec.loader.exec_module = load_then_extend  # type: ignore[method-assign]
        return spec


def _extend(module: ModuleType, extension: Extension) -> None:
    target, _, function = extension.apply.partition(":")
    try:
        getattr(importlib.import_module(target), function)(module)
    except Exception as error:  # a change in lmms-eval must cost the user one feature, not the import of lmms-eval
        changed = extension.internal
        lost = changed.without_it.format(tasks_dir=_tasks_dir())
        log.warning("mir-plugin does not fit this %s (%s: %r): %s.", changed.host, changed.module, error, lost)


def _tasks_dir() -> Path:
    return Path(__file__).parent / "tasks" / "data" / "lmms_eval"
