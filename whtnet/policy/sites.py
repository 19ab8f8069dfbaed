"""Find the places of a network that a Walsh-Hadamard layer could take, by one forward pass on the meta device."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from whtnet.cost import Cost, CostCounter, meta_probe
from whtnet.layers import NormedFWHT2d, SpectralLayer
from whtnet.modules import first_input
from whtnet.policy.rules import PolicyError

# Class names of the repeated units of torchvision's and timm's classifiers; the innermost match is the block.
BLOCK_CLASS = re.compile(
    r"(Block|Bottleneck)(\d+|[12]d|V\d)?$"  # Block35, MetaBlock2d, GhostBottleneckV3
    r"|(Basic|Bottle2neck|InvertedResidual|DepthwiseSeparableConv|EdgeResidual|MBConv|DenseLayer|Fire|FireModule"
    r"|XceptionModule)$"
)
SQUEEZE_EXCITE_CLASS = re.compile(r"^(SqueezeExcit\w*|SE(Module|Layer|Block)\w*|EffectiveSE\w*|EseModule)$")
_REPLACED = "_replaced_site_kind"  # attribute of what a policy put in

_POOLING_OPS = (
    torch.ops.aten.mean.dim,
    torch.ops.aten._adaptive_avg_pool2d.default,
    torch.ops.aten.adaptive_avg_pool2d.default,
    torch.ops.aten.avg_pool2d.default,
)


@dataclass(frozen=True)
class Site:
    """A place that a layer could take.

    Attributes:
        name: fully qualified name of the module there. For ``before_gap``: of the pooling module, or of the sequence
            whose output is pooled.
        kind: ``conv1x1``, ``conv3x3``, ``depthwise3x3``, ``squeeze_excite`` or ``before_gap``. A linear layer over the
            channels of a map (N, H, W, C) is a 1×1 convolution too.
        module: the module of the model itself.
        aliases: all names under which the model holds the module.
        input_shape: (C, H, W) going in.
        output_shape: (C, H, W) coming out.
        maps: all distinct (input, output) shapes seen; more than one if the map's size varies.
        part: ``stem`` before the first block, ``blocks``, ``between`` two blocks, ``head`` after the last.
        block: number of its block, from 1, or None.
        stage: number of its stage, from 1, or None. Blocks that put out maps of one size are a stage.
        nth: its place among the sites of its kind in its block, those that were replaced before too, from 1 and,
            second, from the end as −1, −2, ….
        append: for ``before_gap``: the model pools in its own forward, so the layer goes to the end of this sequence
            instead of in front of this module.
    """

    name: str
    kind: str
    module: nn.Module
    aliases: tuple[str, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    maps: frozenset[tuple[tuple[int, ...], tuple[int, ...]]]
    part: str = "stem"
    block: int | None = None
    stage: int | None = None
    nth: tuple[int, int] = (0, 0)
    append: bool = False


@dataclass
class SiteMap:
    """All sites of a model in the order of its forward pass, and what else a policy needs to know of it.

    Attributes:
        cost: of the model.
        sites: those that can be replaced.
        blocks: number of its blocks.
        stages: number of its stages.
        replaced: number of sites where policies have put layers before.
    """

    cost: Cost
    sites: list[Site] = field(default_factory=list)
    blocks: int = 0
    stages: int = 0
    replaced: int = 0


def find_sites(model: nn.Module, input_size: tuple[int, int, int]) -> SiteMap:
    """Run ``model`` on the meta device and list its sites; the model is not touched.

    Args:
        model: any torchvision or timm image classifier, or one built like them.
        input_size: one image, (C, H, W).

    Raises:
        PolicyError: for a size that is none, or if the model can't run on such an image.
    """
    _check_size(input_size)
    trace, cost = _trace(model, input_size)
    modules = dict(model.named_modules())
    block_of, stage_of = _blocks(modules, trace)
    aliases: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        aliases[id(module)].append(name)
    kinds = _kinds(trace, modules)
    counts = Counter((block_of.get(name), kind) for name, kind in kinds.items())
    seen: Counter[tuple[int | None, str]] = Counter()
    result = SiteMap(cost, blocks=len(set(block_of.values())), stages=len(set(stage_of.values())))
    for name, kind in kinds.items():
        block = block_of.get(name)
        key = (block, kind)
        seen[key] += 1
        if _replaced_kind(modules[name]):
            result.replaced += 1
            continue
        into, out = _shapes(trace, modules[name], name, kind)
        result.sites.append(
            Site(
                name=name,
                kind=kind,
                module=modules[name],
                aliases=tuple(aliases[id(modules[name])]),
                input_shape=into,
                output_shape=out,
                maps=frozenset(trace.shapes[name]),
                part="head" if kind == "before_gap" else trace.part_of(name, block_of),
                block=block,
                stage=None if block is None else stage_of[block],
                nth=(seen[key], seen[key] - counts[key] - 1),
                append=name == trace.producer,
            )
        )
    return result


def mark_replaced(layer: nn.Module, site: Site) -> None:
    """Note on ``layer`` what it takes the place of, so that the places of other sites keep their numbers."""
    vars(layer)[_REPLACED] = site.kind


def _replaced_kind(module: nn.Module) -> str | None:
    return vars(module).get(_REPLACED)


def _check_size(size: Any) -> None:
    if not (isinstance(size, Sequence) and len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size)):
        raise PolicyError(f"input_size is (C, H, W) of one image, three whole numbers from 1; got {size!r}")


def _kinds(trace: "_Trace", modules: dict[str, nn.Module]) -> dict[str, str]:
    """The kind of each site by its name, in order, replaced ones too; what lies in a layer or an SE block is none."""
    found: dict[str, str] = {}
    for name in trace.order:
        kind = _replaced_kind(modules[name]) or _kind(modules[name], trace.shapes[name])
        opaque = any(_is_opaque(modules[ancestor]) for ancestor in _ancestors(name))
        if kind and name in trace.on_image and not opaque:
            found[name] = kind
    if "before_gap" not in found.values() and (pool := _pooling_site(trace, modules)) is not None:
        found[pool] = "before_gap"
    return found


def _is_opaque(module: nn.Module) -> bool:
    own = isinstance(module, SpectralLayer | NormedFWHT2d) or _replaced_kind(module) is not None
    return own or _is_squeeze_excite(module)


def _shapes(trace: "_Trace", module: nn.Module, name: str, kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What goes in and out, (C, H, W)."""
    into, out = trace.shapes[name][-1]
    if isinstance(module, nn.Linear):
        return (into[-1], *into[:-1]), (out[-1], *out[:-1])
    if kind == "before_gap":
        return (out, out) if name == trace.producer else (into, into)
    return into, out


class _Trace(TorchDispatchMode):
    """What a forward pass did: modules in order of their start, shapes in and out, where the last map was pooled."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.of_image: dict[int, Any] = {}  # the storages of what is computed from it, which views share
        self.on_image: set[str] = set()  # modules that were given such a tensor, not coordinates alone, say
        self.order: list[str] = []
        self.shapes: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = defaultdict(list)
        self.sizes: dict[str, tuple[int, ...]] = {}  # of the last map put out, whatever goes in, a list of maps, say
        self.stack: list[tuple[str, Any]] = []
        self.outputs: list[tuple[str, Tensor, int]] = []  # tensors are kept, so that identities stay unique
        self.pooled_inside: list[str] = []  # modules whose own input is what they pool, outermost first
        self.pooled_outputs: list[str] = []  # modules that put out what is pooled, innermost first
        self.pooled_from: str | None = None  # the module whose forward called the pooling
        self.producer: str | None = None
        self._note_image(image)

    def _note_image(self, tensors: Any) -> None:
        storages = [leaf.untyped_storage() for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor)]
        self.of_image |= {storage._cdata: storage for storage in storages}

    def _is_of_image(self, tensors: Any) -> bool:
        leaves = (leaf for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor))
        return any(leaf.untyped_storage()._cdata in self.of_image for leaf in leaves)

    def part_of(self, name: str, block_of: dict[str, int]) -> str:
        if name in block_of:
            return "blocks"
        inside = [i for i, other in enumerate(self.order) if other in block_of]
        position = self.order.index(name)
        if not inside or position < inside[0]:
            return "stem"
        return "head" if position > inside[-1] else "between"

    def enter(self, name: str, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if name not in self.shapes and name not in self.order:
            self.order.append(name)
        first = first_input(args, keywords)
        self.stack.append((name, first if isinstance(first, Tensor) else None))
        if self._is_of_image(first):
            self.on_image.add(name)

    def leave(self, name: str, output: Any) -> None:
        _, given = self.stack.pop()
        if maps := [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]:
            self.sizes[name] = tuple(maps[0].shape[-2:])
        if given is not None and isinstance(output, Tensor):
            self.shapes[name].append((tuple(given.shape[1:]), tuple(output.shape[1:])))
            self.outputs.append((name, output, output._version))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._is_of_image((args, kwargs)):
            self._note_image(out)
        x: Any = args[0] if args else None
        if func in _POOLING_OPS and x.dim() == 4 and out.numel() == x.shape[0] * x.shape[1]:
            self.pooled_inside = [name for name, given in self.stack if given is x]
            self.pooled_outputs = [name for name, y, version in self.outputs if y is x and y._version == version]
            self.pooled_from = self.stack[-1][0]
        return out


def _trace(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[_Trace, Cost]:
    try:
        probe, image = meta_probe(model, input_size)
    except Exception as error:  # whatever its attributes say
        reason = str(error).partition("\n")[0]
        raise PolicyError(
            f"{type(model).__name__} can't be copied ({reason}), and it is a copy that is looked at: take that off it"
        ) from error
    trace, counter = _Trace(image), CostCounter(probe)
    for name, module in probe.named_modules():
        module.register_forward_pre_hook(lambda _, *given, name=name: trace.enter(name, *given), with_kwargs=True)
        module.register_forward_hook(lambda _, __, output, name=name: trace.leave(name, output))
    try:
        with torch.inference_mode(False), torch.no_grad(), counter, trace:
            probe(image)
    except Exception as error:
        size = "×".join(map(str, input_size))
        raise PolicyError(f"{type(model).__name__} can't run on a {size} image: {error}") from error
    return trace, counter.cost


def _kind(module: nn.Module, shapes: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> str | None:
    if _is_squeeze_excite(module):
        return "squeeze_excite"
    if isinstance(module, nn.Linear) and shapes and len(shapes[-1][0]) == 3:
        return "conv1x1"
    if not isinstance(module, nn.Conv2d):
        return None
    if module.kernel_size == (1, 1):
        return "conv1x1"
    if module.kernel_size == (3, 3):
        return "depthwise3x3" if 1 < module.groups == module.in_channels else "conv3x3"
    return None


def _is_squeeze_excite(module: nn.Module) -> bool:
    return SQUEEZE_EXCITE_CLASS.match(type(module).__name__) is not None


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _blocks(modules: dict[str, nn.Module], trace: _Trace) -> tuple[dict[str, int], dict[int, int]]:
    matches = [
        n for n in trace.order if BLOCK_CLASS.search(type(modules[n]).__name__) and not _is_squeeze_excite(modules[n])
    ]
    outer = {a for name in matches for a in _ancestors(name)}
    blocks = [name for name in matches if name not in outer]
    number = {name: i for i, name in enumerate(blocks, 1)}
    block_of = {n: number[a] for n in trace.order for a in [*_ancestors(n), n] if a in number}
    stage_of: dict[int, int] = {}
    stage = 0
    size: tuple[int, ...] | None = None
    for name in blocks:
        new_size = trace.sizes.get(name, size)
        stage, size = stage + (new_size != size), new_size
        stage_of[number[name]] = stage
    return block_of, stage_of


def _pooling_site(trace: _Trace, modules: dict[str, nn.Module]) -> str | None:
    # A pooling module without parameters can be preceded by a layer without renaming anything in the state_dict;
    # where the model pools in its own forward, the layer is appended to the sequence that it pools.
    if trace.pooled_from is None or any(
        _is_squeeze_excite(modules[a]) for a in [*_ancestors(trace.pooled_from), trace.pooled_from]
    ):
        return None
    for name in trace.pooled_inside:
        if name and not any(True for _ in modules[name].parameters()):
            return name
    for name in reversed(trace.pooled_outputs):
        if name and isinstance(modules[name], nn.Sequential):
            trace.producer = name
            return name
    return None
