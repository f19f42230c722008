"""What is attached to one model: the record that `attach` makes and `detach` takes away again.

The record is the model's child module ``deltakit``, so the deltas' parameters are found by
optimisers, moved by ``model.to`` and saved in Trainer checkpoints. No module or key of the base
changes its name.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from deltakit.core.composition import Composition
from deltakit.core.delta import Attending, Combiner
from deltakit.core.method import CombiningMethod, Method
from deltakit.core.site import Handle
from deltakit.errors import DeltakitError, IncompatibleDeltas, unknown
from deltakit.runtime.nodes import CombinerNode, Node, PlacedDelta, SumNode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from deltakit.inject.merge_report import MergeReport
    from deltakit.runtime.hooks import Removable
    from deltakit.runtime.passes import PassPorts

CHILD = "deltakit"
"""The name of the record among the model's child modules."""


@dataclass(kw_only=True, eq=False)
class Attached:
    """One named delta: what it put where, and which of the base's own parameters it trains.

    Attributes:
        name: the user's name for it.
        method: what it was made from.
        leaves: its deltas, by the handle's key.
        combiners: the modules over its members, by the handle's key.
        members: the names of the deltas that it composes.
        kept: those of them that are left at a site, by the handle's key, where some were pruned.
        own: the values it has for parameters of the base and the head while it is not active.
    """

    name: str
    method: Method
    leaves: dict[str, tuple[PlacedDelta, ...]] = field(default_factory=dict)
    combiners: dict[str, Combiner] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)

    def sites(self) -> tuple[str, ...]:
        """Keys of the handles where it does something."""
        return (*self.leaves, *self.combiners)

    def members_at(self, key: str) -> tuple[str, ...]:
        """The names of the deltas that it composes at the handle `key`."""
        return self.kept.get(key, self.members)

    def keep(self, kept: dict[str, tuple[str, ...]]) -> None:
        """Leaves the members named in `kept` at its sites; one that is left nowhere is none."""
        assert isinstance(self.method, CombiningMethod)
        left = {name for key in self.combiners for name in kept.get(key, self.members_at(key))}
        kept = {**self.kept, **kept}
        self.members = tuple(name for name in self.members if name in left)
        self.method = replace(self.method, names=self.members)
        self.kept = {key: names for key, names in kept.items() if names != self.members}
        for key, combiner in self.combiners.items():
            if isinstance(combiner, Attending):
                combiner.members = self.members_at(key)

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Its modules by key; a second delta at one site has ``#1`` after the key."""
        for key, leaves in self.leaves.items():
            for index, leaf in enumerate(leaves):
                yield (f"{key}#{index}" if index else key), leaf.delta
        yield from self.combiners.items()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Its parameters and buffers by the key that files use."""
        for key, module in self.modules():
            for name, tensor in module.state_dict(keep_vars=True).items():
                yield f"{key}.{name}", tensor

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of its modules."""
        for _, module in self.modules():
            yield from module.parameters()


@dataclass(frozen=True, kw_only=True, eq=False)
class Active:
    """What a model ran with when it was deactivated, to be put on again.

    Attributes:
        composition: the names, and how they act together.
        trained: which of them were trained.
        folded: what deltas were merged into, as in `Attachments.merged`.
    """

    composition: Composition
    trained: tuple[str, ...]
    folded: dict[str, Tensor | nn.Module]


class Attachments(nn.Module):
    """The record of one model. Use the functions of `deltakit.inject.attach`, not this."""

    def __init__(self, handles: tuple[Handle, ...], flags: dict[str, bool]) -> None:
        super().__init__()
        self.handles = {handle.key: handle for handle in handles}
        self.flags = flags
        """`requires_grad` of every parameter before anything was attached."""
        self.attached: dict[str, Attached] = {}
        self.active: Composition | None = None
        self.trained: tuple[str, ...] = ()
        self.dropped: frozenset[int] = frozenset()
        """The layers, of every stack, that run without deltas."""
        self.hooks: list[Removable] = []
        self.passes: PassPorts | None = None
        self.displaced: dict[str, tuple[str, Tensor]] = {}
        """While a delta is active: parameter -> (the delta whose value it has, its original)."""
        self.merged: dict[str, Tensor | nn.Module] = {}
        """While deltas are merged: the weight's name -> its original.

        A quantised linear gives its place to another: the module's name -> the original module.
        """
        self.report: MergeReport | None = None
        """What the latest merge has cost."""
        self.undo: list[Removable] = []
        """What keeps a quantised base as it is held, and lets it be trained on."""

    def get(self, name: str) -> Attached:
        """The delta called `name`. Raises `UnknownName`."""
        if name not in self.attached:
            raise unknown("delta", name, self.attached, hint="`attach` or `load` it first.")
        return self.attached[name]

    def add(self, attached: Attached) -> None:
        """Records a delta, its modules among the model's; one of the same name is replaced."""
        group = nn.Module()
        for key, module in attached.modules():
            group.add_module(key.replace(".", "_"), module)
        self._modules.pop(_child(attached.name), None)
        self.add_module(_child(attached.name), group.train(self.training))
        self.attached[attached.name] = attached

    def remove(self, name: str) -> None:
        """Forgets a delta.

        Raises:
            UnknownName: none has the name.
            IncompatibleDeltas: another delta is composed of it.
        """
        self.get(name)
        users = [a.name for a in self.attached.values() if name in a.members]
        if users:
            raise IncompatibleDeltas(
                f"{name!r} is a member of {', '.join(map(repr, users))}; detach that first."
            )
        delattr(self, _child(name))
        del self.attached[name]

    def node(self, name: str, key: str) -> Node | None:
        """What the delta called `name` does at the handle `key`, or None."""
        attached = self.get(name)
        if key in attached.combiners:
            members = (self.node(member, key) for member in attached.members_at(key))
            return CombinerNode(attached.combiners[key], tuple(m for m in members if m is not None))
        leaves = attached.leaves.get(key, ())
        if not leaves:
            return None
        return leaves[0] if len(leaves) == 1 else SumNode(leaves)

    def with_members(self, names: tuple[str, ...]) -> tuple[Attached, ...]:
        """The deltas called `names` and all that they are composed of, members first."""
        found: dict[str, Attached] = {}
        for name in names:
            attached = self.get(name)
            found |= {member.name: member for member in self.with_members(attached.members)}
            found[name] = attached
        return tuple(found.values())


def _child(name: str) -> str:
    # A prefix, so that no user's name meets an attribute of nn.Module ("type", "half", ...).
    return f"delta_{name}"


def attachments_of(model: nn.Module) -> Attachments | None:
    """The model's record, or None where nothing is attached."""
    attachments = model._modules.get(CHILD)
    if attachments is not None and not isinstance(attachments, Attachments):
        raise DeltakitError(f"{type(model).__name__} has a child module {CHILD!r} of its own.")
    return attachments


def need_attachments(model: nn.Module) -> Attachments:
    """The model's record. Raises `DeltakitError` where nothing is attached."""
    attachments = attachments_of(model)
    if attachments is None:
        raise DeltakitError(
            f"nothing is attached to this {type(model).__name__}; call attach(model, method) or "
            "load(model, folder) first."
        )
    return attachments


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters by name, deltas left out, shared ones once."""
    prefix = f"{CHILD}."
    return {n: p for n, p in model.named_parameters() if not n.startswith(prefix)}


def parameter_names(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """All names of each of the model's own parameters; tied ones have several."""
    names: dict[int, list[str]] = {id(p): [] for p in base_parameters(model).values()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in names:
            names[id(parameter)].append(name)
    return tuple(map(tuple, names.values()))


def head_names(model: "PreTrainedModel") -> frozenset[str]:
    """Names of the task head's parameters: what lies outside ``model.base_model``.

    A language-modelling head is part of what was pre-trained, so it belongs to the base.
    """
    if model.base_model is model or model.get_output_embeddings() is not None:
        return frozenset()
    inside = {id(p) for p in model.base_model.parameters()}
    return frozenset(n for n, p in base_parameters(model).items() if id(p) not in inside)
