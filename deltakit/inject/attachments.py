"""The record of what is attached to one model: `attach` makes it and `detach` removes it.

The record is the model's child module ``deltakit``, so the deltas' parameters are found by
optimisers, moved by ``model.to`` and saved in Trainer checkpoints. No module or key of the base
changes its name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from deltakit.core.checkpoint import Part
from deltakit.core.composition import Composition
from deltakit.core.delta import Attending, Combiner
from deltakit.core.labels import Labels
from deltakit.core.method import CombiningMethod, Method
from deltakit.core.site import Handle
from deltakit.errors import DeltakitError, IncompatibleDeltas, unknown
from deltakit.inject.description import as_tensor, delta_to_plain, described
from deltakit.runtime.nodes import CombinerNode, Node, PlacedDelta, SumNode
from deltakit.runtime.own_values import ParameterTree, Place, UnsavedTree

if TYPE_CHECKING:
    from deltakit.inject.merge_report import MergeReport
    from deltakit.runtime.hooks import Removable
    from deltakit.runtime.program import Program

CHILD = "deltakit"
"""The name of the record among the model's child modules."""
EXTRA = f"{CHILD}._extra_state"
"""The key in a state dict under which the record says what its deltas are."""


@dataclass(kw_only=True, eq=False)
class Attached:
    """One named delta: its modules at their sites, and its own parameters of the base and the head.

    Attributes:
        name: the user's name for it.
        method: what it was made from.
        leaves: its deltas, by the handle's key.
        combiners: the modules over its members, by the handle's key.
        members: the names of the deltas that it composes.
        kept: those of them that are left at a site, by the handle's key, where some were pruned.
        tree: its own parameters, which it uses in place of the base's and the head's.
        aliases: all names in the model of each of its own parameters; tied ones have several.
        head: which of its own parameters are the task head's.
        labels: the names of its head's classes, row by row, where they are not the config's own.
        fresh: which of them no checkpoint of the base has values for, and that are no head.
        put_aside: the `requires_grad` flags of its parameters while a composition freezes it.
    """

    name: str
    method: Method
    leaves: dict[str, tuple[PlacedDelta, ...]] = field(default_factory=dict)
    combiners: dict[str, Combiner] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tree: ParameterTree = field(default_factory=ParameterTree)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    head: frozenset[str] = frozenset()
    labels: Labels = ()
    fresh: frozenset[str] = frozenset()
    put_aside: dict[str, bool] | None = None

    @property
    def own(self) -> dict[str, nn.Parameter]:
        """Its own parameters of the base and the head, by the base's names."""
        return self.tree.tensors()

    def to_plain(self) -> dict[str, Any]:
        """The description of the delta, without its tensors."""
        part = Part(name=self.name, method=self.method, kept=self.kept, labels=self.labels)
        return delta_to_plain(part, self.members, (key for key, _ in self.modules()))

    def sites(self) -> tuple[str, ...]:
        """Keys of the handles where it does something."""
        return (*self.leaves, *self.combiners)

    def members_at(self, key: str) -> tuple[str, ...]:
        """The names of the deltas that it composes at the handle `key`."""
        return self.kept.get(key, self.members)

    def keep(self, kept: dict[str, tuple[str, ...]]) -> None:
        """Leaves the members named in `kept` at its sites; one that is left nowhere is removed."""
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
        """The parameters and buffers of its modules, by the key that files use."""
        for key, module in self.modules():
            for name, tensor in module.state_dict(keep_vars=True).items():
                yield f"{key}.{name}", tensor

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of its modules."""
        for _, module in self.modules():
            yield from module.parameters()

    def freeze(self) -> None:
        """Puts the flags of all its parameters aside and freezes them; twice is as once."""
        if self.put_aside is None:
            self.put_aside = {key: p.requires_grad for key, p in self._named_parameters()}
            for _, parameter in self._named_parameters():
                parameter.requires_grad_(False)

    def thaw(self) -> None:
        """Gives its parameters the flags back that `freeze` has put aside."""
        flags, self.put_aside = self.put_aside or {}, None
        for key, parameter in self._named_parameters():
            if flags.get(key):
                parameter.requires_grad_(True)

    def train_if_frozen(self) -> None:
        """Makes all its parameters trainable where the user has frozen every one of them."""
        parameters = [parameter for _, parameter in self._named_parameters()]
        if not any(parameter.requires_grad for parameter in parameters):
            for parameter in parameters:
                parameter.requires_grad_(True)

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for key, module in self.modules():
            for name, parameter in module.named_parameters():
                yield f"{key}.{name}", parameter
        yield from self.own.items()


@dataclass(kw_only=True, eq=False)
class BaseFlags:
    """The `requires_grad` flags of the base: those with active deltas, and those of the plain base.

    The base has the flags of one state; those of the other are kept here and change places with
    them. So each state keeps the flags that the user gives the base in it.

    Attributes:
        other: by name, the flags of the state that the base is not in.
        with_deltas: whether it is in the state with active deltas.
    """

    other: dict[str, bool]
    with_deltas: bool = False

    def plain(self, name: str, parameter: nn.Parameter) -> bool:
        """A parameter's flag in the plain base."""
        now = parameter.requires_grad
        return self.other.get(name, now) if self.with_deltas else now

    def change_to(self, with_deltas: bool, parameters: Mapping[str, nn.Parameter]) -> None:
        """Gives the parameters the flags of a state; a parameter added later keeps its own."""
        if self.with_deltas is with_deltas:
            return
        self.with_deltas = with_deltas
        for name in self.other.keys() & parameters.keys():
            parameter, flag = parameters[name], self.other[name]
            self.other[name] = parameter.requires_grad
            parameter.requires_grad_(flag)


@dataclass(frozen=True, kw_only=True, eq=False)
class Displaced:
    """A parameter of the base that a delta's own has taken the places of.

    Attributes:
        names: the names of those places.
        places: those places.
        own: where the delta's parameter is.
    """

    names: tuple[str, ...]
    places: tuple[Place, ...]
    own: Place


@dataclass(kw_only=True, eq=False)
class Running:
    """The composition that the model runs with, and its tables.

    Attributes:
        composition: the active deltas, and how they act together; None for the plain base.
        trained: which of them are trained.
        dropped: the layers, of every stack, that run without deltas.
        hooks: what lets the deltas act, until it is removed.
        displaced: the base's parameters whose places deltas have taken, by name.
    """

    composition: Composition | None = None
    trained: tuple[str, ...] = ()
    dropped: frozenset[int] = frozenset()
    hooks: "list[Removable]" = field(default_factory=list)
    displaced: dict[str, Displaced] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class Merged:
    """The former values of the places that deltas were merged into.

    A quantised linear gives its place to another, so its name is that of a module.

    Attributes:
        originals: by name, the parameter or the module.
        report: what the merge has cost.
        kept: whether the merge stays when its deltas are detached.
        undo: what else `unmerge` takes back.
    """

    originals: dict[str, nn.Parameter | nn.Module] = field(default_factory=dict)
    report: "MergeReport | None" = None
    kept: bool = False
    undo: "list[Undo]" = field(default_factory=list)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The original parameters by name, those of whole modules among them."""
        found: dict[str, nn.Parameter] = {}
        for name, original in self.originals.items():
            if isinstance(original, nn.Parameter):
                found[name] = original
            else:
                found |= {f"{name}.{n}": p for n, p in original.named_parameters(recurse=False)}
        return found


class Undo(Protocol):
    """A change that is taken back with a merge, and made again with it."""

    def remove(self) -> None:
        """Takes it back."""

    def apply(self) -> None:
        """Makes it again."""


class Attachments(nn.Module):
    """The record of one model. Use the functions of `deltakit.inject.attach`, not this.

    Its parts are what is attached (`handles`, `attached`), what the model runs with (`running`),
    and what is merged (`merged`, None where nothing is).
    """

    def __init__(self, handles: tuple[Handle, ...], flags: BaseFlags) -> None:
        super().__init__()
        self.handles = {handle.key: handle for handle in handles}
        self.order = {key: place for place, key in enumerate(self.handles)}
        self.flags = flags
        self.attached: dict[str, Attached] = {}
        self.running = Running()
        self._is_managed = False
        self.program: Program | None = None
        """What the model runs by, made with the first delta that is active."""
        self.nodes: dict[Composition, dict[str, Node]] = {}
        """What compositions do at the handles, until what is attached changes."""
        self.merged: Merged | None = None
        self.owners_at: dict[tuple[str, tuple[str, ...]], set[str]] = {}
        """The deltas with a parameter of their own, by its name and by all names of its places."""
        self.base = UnsavedTree()
        """The base's parameters whose places deltas have taken."""
        self.config_labels: tuple[dict[int, str], dict[str, int]] | None = None
        """The config's own `id2label` and `label2id`, while it has those of a delta's head."""
        self.undo: list[Removable] = []
        """What keeps a quantised base as it is held, and lets it be trained on."""

    @property
    def _is_fsdp_managed_module(self) -> bool:
        """The mark that torch's sharded wrappers leave on a module."""
        return self._is_managed

    @_is_fsdp_managed_module.setter
    def _is_fsdp_managed_module(self, mark: bool) -> None:
        self._is_managed = mark
        for name, displaced in self.running.displaced.items():
            if any(place.parameter is not displaced.own.parameter for place in displaced.places):
                raise IncompatibleDeltas(
                    f"a layer was sharded by itself while {name!r} in it was an active delta's "
                    "own, which cannot be in two groups. On a new model: activate(model, None), "
                    "shard it, then activate the delta."
                )

    @property
    def active(self) -> Composition | None:
        """The active deltas, and how they act together."""
        return self.running.composition

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of the active deltas that are trained."""
        return self.running.trained

    @property
    def dropped(self) -> frozenset[int]:
        """The layers, of every stack, that run without deltas."""
        return self.running.dropped

    def get(self, name: str) -> Attached:
        """The delta called `name`. Raises `UnknownName`."""
        if name not in self.attached:
            raise unknown("delta", name, self.attached, hint="`attach` or `load` it first.")
        return self.attached[name]

    def add(self, attached: Attached) -> None:
        """Records a delta, its modules among the model's; one of the same name is replaced."""
        group = nn.Module()
        for key, module in attached.modules():
            group.add_module(child_key(key), module)
        if attached.own:
            group.add_module("own", attached.tree)
        self._modules.pop(child_name(attached.name), None)
        self.add_module(child_name(attached.name), group.train(self.training))
        self.attached[attached.name] = attached
        for place in attached.aliases.items():
            self.owners_at.setdefault(place, set()).add(attached.name)

    def remove(self, *names: str) -> None:
        """Removes deltas.

        Raises:
            UnknownName: none has the name.
            IncompatibleDeltas: another delta, which stays, is composed of it.
        """
        leaving = {self.get(name).name for name in names}
        staying = [a for a in self.attached.values() if a.members and a.name not in leaving]
        for name in names if staying else ():
            users = [repr(each.name) for each in staying if name in each.members]
            if users:
                raise IncompatibleDeltas(
                    f"{name!r} is a member of {', '.join(users)}; detach that first."
                )
        for name in names:
            delattr(self, child_name(name))
            for place in self.attached.pop(name).aliases.items():
                self.owners_at[place].discard(name)

    def get_extra_state(self) -> Tensor:
        """The deltas' description in a state dict, which `load` reads from a checkpoint."""
        deltas = [each.to_plain() for each in self.attached.values()]
        return as_tensor(described(deltas, self.active))

    def set_extra_state(self, state: Any) -> None:
        """Loading a state dict changes values alone."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state_dict.setdefault(f"{prefix}_extra_state", None)  # one of before has none
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def node(self, name: str, key: str) -> Node | None:
        """The node of the delta `name` at the handle `key`, or None."""
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

    def owners(self, names: tuple[str, ...]) -> dict[str, Attached]:
        """By parameter of the base and the head, which of the deltas `names` has its own; the last.

        The deltas that they are composed of have their heads replaced by that of the whole.
        """
        return {own: self.get(name) for name in names for own in self.get(name).own}


def own_values(attachments: Attachments, names: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """The parameters that the model uses with the deltas `names`, by the base's names.

    They are the deltas' own, and the base's where another active delta has taken its place.
    """
    owners = attachments.owners(names)
    own = {name: attached.own[name] for name, attached in owners.items()}
    return {**attachments.base.tensors(), **own}


def child_key(key: str) -> str:
    """The name of a module of a delta's among the delta's child modules."""
    return key.replace(".", "_")


def child_name(name: str) -> str:
    """The name of a delta among the record's child modules."""
    # A prefix, so that no user's name meets an attribute of nn.Module ("type", "half", ...).
    return f"delta_{name}"


def attachments_of(model: nn.Module) -> Attachments | None:
    """The model's record, or None where nothing is attached."""
    attachments = model._modules.get(CHILD)
    if attachments is not None and not isinstance(attachments, Attachments):
        raise DeltakitError(
            f"{type(model).__name__} has a child module {CHILD!r} of its own. "
            "Rename it: deltakit keeps its deltas under that name."
        )
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
