"""Live models whose weights are shards between processes (ZeRO stage 3, FSDP), measured through a twin.

The twin has the model's modules without the hooks and wrappers that gather weights, and shares all else with it. Its
parameters are gathered a decoder layer at a time and given back; the model itself is never called, so that nothing of
its training state changes. What is gathered are the stored values, not the copies that a mixed-precision policy
computes with: the twin computes what the saved checkpoint does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.introspection.decoder import unwrapped, without_compile
from mir_plugin.processes import Group
from mir_plugin.types import Decoder

logger = logging.getLogger(__name__)

Kind = Literal["ZeRO-3", "FSDP2", "FSDP1"]
# Names of device mesh dimensions over which a model is not only sharded, but computed: PyTorch's and accelerate's.
_PARALLEL = {
    "tp": "tensor parallelism",
    "cp": "context parallelism",
    "sp": "sequence parallelism",
    "pp": "pipeline parallelism",
    "ep": "expert parallelism",
}


def sharding_of(model: nn.Module) -> Kind | None:
    """How the model's weights are spread over processes; None where each process has them whole.

    Raises:
        MirError: for a model that is computed in parts: tensor, context, sequence, pipeline or expert parallelism.
    """
    require_data_parallel(model)
    if any(map(_is_fsdp1, model.modules())):
        return "FSDP1"
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return "ZeRO-3"
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        return "FSDP2"
    return None


def require_data_parallel(model: nn.Module, dimensions: Mapping[str, int] | None = None) -> None:
    """Refuse a model that several processes compute together.

    Args:
        dimensions: sizes of parallel dimensions that the trainer knows, by their short names.
    Raises:
        MirError: naming the kind of parallelism.
    """
    found = {name for name, size in (dimensions or {}).items() if size > 1}
    for parameter in model.parameters():
        mesh = getattr(parameter, "device_mesh", None)
        for name in getattr(mesh, "mesh_dim_names", None) or ():
            # Accelerate flattens what is only sharded to names such as "dp_shard_cp"; its processes share sequences.
            found |= set(str(name).split("_"))
        if mesh is not None and not any(map(_is_fsdp2, model.modules())):
            found.add("tp")
    if (getattr(unwrapped(model), "tp_size", None) or 1) > 1:
        found.add("tp")
    if hasattr(model, "is_pipe_parallel") and model.is_pipe_parallel:
        found.add("pp")
    kinds = [kind for name, kind in _PARALLEL.items() if name in found]
    if kinds:
        raise MirError(
            f"the model is trained with {' and '.join(kinds)}: each process computes a part of every sample. MIR is "
            "measured inside data-parallel trainings (DDP, ZeRO, FSDP). Measure the saved checkpoints with `mir run` "
            "or `mir sweep --watch`."
        )


class ShardedModel:
    """The twin of a sharded model, and what makes parts of it whole. All its methods are collective.

    Attributes:
        kind: of sharding.
        root: the model without its wrappers.
        twin: has placeholders for parameters, except inside ``whole`` and in final norms that ``decoder`` has seen.
    """

    def __init__(self, model: nn.Module, kind: Kind, group: Group) -> None:
        self.kind, self._group = kind, group
        self.root = _without_wrapper(unwrapped(model))
        self._units = _units(model) if kind == "FSDP1" else {}
        self._open: dict[int, int] = {}
        self._placeholders = self._described(model)
        self._originals: dict[nn.Module, nn.Module] = {}
        self.twin = self._copied(self.root, {})

    @contextmanager
    def whole(self, modules: Sequence[nn.Module], task: str) -> Iterator[None]:
        """The parameters that these modules of the twin hold themselves are whole inside the block.

        Raises:
            OtherProcessError: if another process failed and does not take part.
        """
        self._group.in_step(task)
        originals = [self._originals[module] for module in modules]
        with ExitStack() as stack, self._gathered(originals):
            values: dict[int, nn.Parameter] = {}
            for module, original in zip(modules, originals, strict=True):
                for name, parameter in _own_parameters(original):
                    if id(parameter) not in values:
                        values[id(parameter)] = _parameter(_whole(parameter), parameter.requires_grad)
                    module.register_parameter(name, values[id(parameter)])
                    stack.callback(self._put_placeholder, module, original, name)
            yield

    def decoder(self, decoder: Decoder) -> Decoder:
        """The decoder of the twin, with layers that are gathered while they are in use; keeps its final norm whole."""
        norm = list(decoder.final_norm.modules())
        with self.whole(norm, "gathering the final norm"):
            kept = [(one, name, p.detach().clone()) for one in norm for name, p in _own_parameters(one)]
        for module, name, value in kept:
            module.register_parameter(name, _parameter(value, False))
        layers = _GatheredLayers(self, decoder.layers)
        of_layers = {module for layer in decoder.layers for module in layer.modules()} | set(norm)
        others = [module for module in self._originals if module not in of_layers]

        def outside() -> AbstractContextManager[None]:
            return self.whole(others, "gathering what is not a decoder layer")

        return replace(decoder, streamed=layers, outside=outside, collective=True)

    @contextmanager
    def reading(self, decoder: Decoder) -> Iterator[Callable[[str, Tensor], Tensor]]:
        """What gives the whole value of a named parameter inside ``decoder.outside()``, layers in their order."""
        layer_of: dict[Tensor, int] = {
            parameter: k for k, layer in enumerate(decoder.layers) for parameter in layer.parameters()
        }
        current = [-1]

        def read(name: str, placeholder: Tensor) -> Tensor:
            k = layer_of.get(placeholder, -1)
            if decoder.streamed is not None and k != current[0]:
                if current[0] >= 0:
                    decoder.streamed.release(current[0])
                if k >= 0:
                    decoder.streamed.load(k)
                current[0] = k
            # A copy: FSDP1 cannot free memory that NumPy has seen.
            return self.twin.get_parameter(name).detach().clone()

        try:
            yield read
        finally:
            if decoder.streamed is not None and current[0] >= 0:
                decoder.streamed.release(current[0])

    def _put_placeholder(self, module: nn.Module, original: nn.Module, name: str) -> None:
        module.register_parameter(name, self._placeholders[original, name])

    @contextmanager
    def _gathered(self, originals: Sequence[nn.Module]) -> Iterator[None]:
        with ExitStack() as stack:
            if self.kind == "FSDP1":
                for unit in dict.fromkeys(self._units[module] for module in originals if module in self._units):
                    stack.enter_context(self._summoned(unit))
            if self.kind == "ZeRO-3":
                import deepspeed

                parameters = dict.fromkeys(
                    p for one in originals for _, p in _own_parameters(one) if hasattr(p, "ds_id")
                )
                stack.enter_context(deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=None))
            yield

    @contextmanager
    def _summoned(self, unit: Any) -> Iterator[None]:
        """The unit's parameters whole; where layers are not units of their own, one is asked for inside itself."""
        self._open[id(unit)] = self._open.get(id(unit), 0) + 1
        try:
            if self._open[id(unit)] > 1:
                yield
            else:
                with type(unit).summon_full_params(unit, recurse=False, writeback=False):
                    yield
        finally:
            self._open[id(unit)] -= 1

    def _described(self, model: nn.Module) -> dict[tuple[nn.Module, str], nn.Parameter]:
        """A placeholder for each parameter by its module and name; tied parameters share one."""
        found: dict[tuple[nn.Module, str], nn.Parameter] = {}
        units = dict.fromkeys(self._units.values())  # the outermost first: whatever is asked for first becomes the root
        for unit in units or [None]:
            own = [m for m in model.modules() if unit is None or self._units.get(m) is unit]
            with self._summoned(unit) if unit is not None else nullcontext():
                known: dict[int, nn.Parameter] = {}
                for module in own:
                    for name, p in _own_parameters(module):
                        found[module, name] = known.setdefault(id(p), _placeholder(p))
        return found

    def _copied(self, module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
        """A module of the same class with the same attributes, buffers and kinds of children, and no hooks."""
        module = _without_wrapper(module)
        if module in made:
            return made[module]
        cls: Any = next(one for one in type(module).__mro__ if not _is_fsdp2_class(one))
        copy: nn.Module = cls.__new__(cls)
        nn.Module.__init__(copy)
        made[module] = copy
        self._originals[copy] = module
        copy.training = module.training
        parameters = [name for owner, name in self._placeholders if owner is module]
        for name, value in vars(module).items():
            if name not in parameters and _taken_over(name):
                vars(copy)[name] = MethodType(value.__func__, copy) if _bound_to(value, module) else value
        for name in parameters:
            self._put_placeholder(copy, module, name)
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            copy.register_buffer(name, buffer)
        for name, child in module.named_children():
            # add_module asks for the name first, and a wrapper would look for it in the child that it has not got yet.
            setattr(copy, name, self._copied(child, made))
        for name in _unset(module, copy):
            vars(copy)[name] = None
        return copy


class _GatheredLayers:
    """The engine's ``LayerWeights``: a layer is gathered, used for all samples, and given back."""

    room_for_two = False  # gathering is collective, and what is loaded ahead would be gathered in a thread

    def __init__(self, sharded: ShardedModel, layers: Sequence[nn.Module]) -> None:
        self._sharded, self._layers = sharded, layers
        self._whole: dict[int, ExitStack] = {}
        self.layer_bytes = max(sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers)

    def load(self, layer_index: int) -> None:
        """Gather a layer."""
        if layer_index not in self._whole:
            stack = ExitStack()
            layer = list(self._layers[layer_index].modules())
            stack.enter_context(self._sharded.whole(layer, f"gathering decoder layer {layer_index + 1}"))
            self._whole[layer_index] = stack

    def release(self, layer_index: int) -> None:
        """Leave every process its shard of the layer."""
        if layer_index in self._whole:
            self._whole.pop(layer_index).close()


_NEW = nn.Module()
# Ends the names of attributes by which a library knows that its hooks are in place; the twin needs hooks of its own.
_HOOKED = "hooks_installed"


def _own_parameters(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return module.named_parameters(recurse=False, remove_duplicate=False)


def _parameter(value: Tensor, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=requires_grad and value.is_floating_point())


def _placeholder(parameter: Tensor) -> nn.Parameter:
    """What looks like the whole parameter and takes no memory; a number computed from it is not finite."""
    mesh = getattr(parameter, "device_mesh", None)  # offloaded shards are gathered on the accelerator
    device = torch.device(mesh.device_type) if mesh is not None else parameter.device
    shape = torch.Size(getattr(parameter, "ds_shape", parameter.shape))
    value = torch.full((1,) * len(shape), torch.nan if parameter.is_floating_point() else 0).to(parameter.dtype)
    return _parameter(value.to(device).expand(shape), parameter.requires_grad)


def _whole(parameter: Any) -> Tensor:
    """The whole value of a parameter that ``_gathered`` has gathered; of a DTensor, gathered here."""
    value = parameter.detach()
    if hasattr(value, "full_tensor"):
        whole: Tensor = value.to(value.device_mesh.device_type).full_tensor()
        return whole
    own: Tensor = value
    return own


def _unset(module: nn.Module, copy: nn.Module) -> list[str]:
    """Names of parameters, buffers and children that are None: a bias that a layer does without."""
    known = {*dir(type(module)), *dir(copy)}
    return [name for name in dir(module) if name not in known and getattr(module, name) is None]


def _taken_over(name: str) -> bool:
    return name == "forward" or not (hasattr(_NEW, name) or name.endswith(_HOOKED))


def _bound_to(value: Any, module: nn.Module) -> bool:
    return isinstance(value, MethodType) and value.__self__ is module


def _without_wrapper(module: Any) -> nn.Module:
    """The module inside FSDP1 units and ``torch.compile``."""
    inner: nn.Module = without_compile(module.module if _is_fsdp1(module) else module)
    return inner if inner is module else _without_wrapper(inner)


def _is_fsdp1(module: nn.Module) -> bool:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return isinstance(module, FullyShardedDataParallel)


def _is_fsdp2(module: nn.Module) -> bool:
    return _is_fsdp2_class(type(module))


def _is_fsdp2_class(cls: type) -> bool:
    """Whether ``fully_shard`` has made or mixed in the class; it has no public name in torch 2.4 and 2.5."""
    return hasattr(cls, "unshard") and hasattr(cls, "reshard")


def _units(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """The FSDP1 unit that holds the parameters of each module, outer units first."""
    owners: dict[nn.Module, nn.Module] = {}

    def visit(module: nn.Module, unit: nn.Module | None) -> None:
        if _is_fsdp1(module):
            unit = module
        elif unit is not None and module not in owners:
            owners[module] = unit
        for child in module.children():
            visit(child, unit)

    visit(model, None)
    return owners
