"""Parameters and bytes of a delta, counted from the tensors themselves."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from deltakit.arch.resolve import linear_widths
from deltakit.core.delta import Reparametrised, SparselyActive
from deltakit.inject.attachments import Attached, Attachments, attachments_of
from deltakit.inject.base_names import head_names, plain_parameters
from deltakit.inject.partitions import check_whole
from deltakit.inject.switch import check_reached
from deltakit.models.quantised import codec_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class SiteRow:
    """One line of the table: the parameters of one delta at one site, over all layers.

    `deployed` are those that are left when what only training needs is gone (see `deploy`).
    """

    delta: str
    site: str
    layers: int
    params: int
    deployed: int
    trained: bool


@dataclass(frozen=True, kw_only=True, repr=False)
class Summary:
    """Parameters and bytes of a model and of the deltas that are active in it.

    Parameters are counted as numbers, however many of them share a byte; bytes are true ones.

    Attributes:
        trained_params: parameters that training changes, the task head left out.
        active_params: deployed parameters that compute the change of one token: fewer where a
            router picks some of its experts.
        deployed_params: parameters to keep in addition to the base, the task head left out.
        head_params: parameters of the task head, whether it is trained or not.
        base_params: all parameters of the base, embeddings included, the task head left out.
        delta_bytes: bytes of the deployed parameters in their own dtypes.
        base_bytes: bytes of the base's parameters and buffers, quantisation statistics included.
        rows: one for each active delta and site.
    """

    trained_params: int
    active_params: int
    deployed_params: int
    head_params: int
    base_params: int
    delta_bytes: int
    base_bytes: int
    rows: tuple[SiteRow, ...]

    @property
    def trained_pct(self) -> float:
        """`trained_params` in per cent of `base_params`."""
        return 100 * self.trained_params / self.base_params

    def __str__(self) -> str:
        from tabulate import tabulate

        table = [
            (
                row.delta,
                row.site,
                row.layers,
                f"{row.params:,}",
                f"{row.deployed:,}",
                "yes" if row.trained else "frozen",
            )
            for row in self.rows
        ]
        headers = ("delta", "site", "layers", "parameters", "deployed", "trained")
        align = ("left", "left", "right", "right", "right", "left")
        totals = (
            f"trained {self.trained_params:,} ({self.trained_pct:.3f} % of the base's "
            f"{self.base_params:,}) · deployed {self.deployed_params:,} "
            f"({self.delta_bytes:,} bytes) · head {self.head_params:,}"
        )
        if self.active_params != self.deployed_params:
            totals += f" · active for one token {self.active_params:,}"
        if not table:
            return totals
        return f"{tabulate(table, headers, colalign=align, disable_numparse=True)}\n\n{totals}"

    __repr__ = __str__


def summary(model: "PreTrainedModel") -> Summary:
    """Counts the base, the head and the active deltas. Works on meta-device models too."""
    attachments = attachments_of(model)
    check_whole(model, "summary")
    if attachments is not None:
        check_reached(attachments)
    head = head_names(model)
    parameters = _originals(model, attachments)
    base = [p for name, p in parameters.items() if name not in head]
    base_buffers = [b for name, b in model.named_buffers() if not name.startswith("deltakit.")]
    trained, deployed = _trained(attachments, head), list(_deployed(attachments, head))
    return Summary(
        trained_params=_count(trained),
        active_params=_count(deployed) - sum(map(_idle, _modules(attachments))),
        deployed_params=_count(deployed),
        head_params=sum(p.numbers for name, p in parameters.items() if name in head),
        base_params=sum(p.numbers for p in base),
        delta_bytes=_bytes(deployed),
        base_bytes=_bytes([*(t for p in base for t in p.tensors), *base_buffers]),
        rows=_rows(attachments, head),
    )


class _Stored(NamedTuple):
    """A parameter as it is stored: how many numbers, in which tensors."""

    numbers: int
    tensors: tuple[Tensor, ...]


def _originals(model: "PreTrainedModel", attachments: Attachments | None) -> dict[str, _Stored]:
    """The base's parameters by name. While deltas are merged, the originals are counted."""
    merged = attachments.merged if attachments is not None else None
    originals = {} if merged is None else merged.originals
    stored = {}
    for name, parameter in plain_parameters(model, attachments).items():
        path, _, last = name.rpartition(".")
        module = originals.get(path, model.get_submodule(path))
        codec = codec_of(module) if last == "weight" and isinstance(module, nn.Module) else None
        if codec is not None and isinstance(module, nn.Module):
            d_in, d_out = linear_widths(module)
            stored[name] = _Stored(d_in * d_out, tuple(codec.stored(module)))
        else:
            original = originals.get(name, parameter)
            assert isinstance(original, Tensor)
            stored[name] = _Stored(original.numel(), (original,))
    return stored


def _active(attachments: Attachments | None) -> tuple[Attached, ...]:
    """The active deltas, and those that they are composed of."""
    return (
        ()
        if attachments is None or attachments.active is None
        else attachments.with_members(attachments.active.names)
    )


def _trained(attachments: Attachments | None, head: frozenset[str]) -> list[Tensor]:
    """Each tensor that training changes."""
    assert attachments is not None or not _active(attachments)
    return [
        tensor
        for attached in _active(attachments)
        if attachments is not None and attached.name in attachments.trained
        for tensor in (*attached.parameters(), *_own(attachments, attached, head))
    ]


def _deployed(attachments: Attachments | None, head: frozenset[str]) -> Iterable[Tensor]:
    """Each tensor that is kept in addition to the base to run the active deltas."""
    for attached in _active(attachments):
        assert attachments is not None
        for _, module in attached.modules():
            yield from deployed_module(module).parameters()
        yield from _own(attachments, attached, head)


def _modules(attachments: Attachments | None) -> Iterable[nn.Module]:
    """The modules of the active deltas, each once."""
    return (module for each in _active(attachments) for _, module in each.modules())


def _idle(module: nn.Module) -> int:
    """The number of its parameters that do not compute the change of one token."""
    if isinstance(module, SparselyActive):
        return _count(module.parameters()) - module.active_parameters()
    return sum(map(_idle, module.children()))


def deployed_module(module: nn.Module) -> nn.Module:
    """A delta's module without what only training needs."""
    return module.deployed() if isinstance(module, Reparametrised) else module


def _own(attachments: Attachments, attached: Attached, head: frozenset[str]) -> list[Tensor]:
    """The delta's own values of the base's parameters, the task head left out."""
    if attachments.active is None or attached.name not in attachments.active.names:
        return []
    return [tensor for name, tensor in attached.own.items() if name not in head]


def _rows(attachments: Attachments | None, head: frozenset[str]) -> tuple[SiteRow, ...]:
    rows: list[SiteRow] = []
    for attached in _active(attachments):
        assert attachments is not None
        layers, params, deployed = Counter[str](), Counter[str](), Counter[str]()
        for key, module in attached.modules():
            stack, _, rest = key.partition(".")
            site = f"{stack} {rest.partition('.')[2].partition('#')[0]}"
            layers[site] += "#" not in key
            params[site] += _count(module.parameters())
            deployed[site] += _count(deployed_module(module).parameters())
        own = _count(_own(attachments, attached, head))
        if own:
            layers["the base's own"] = 0
            params["the base's own"] = deployed["the base's own"] = own
        rows.extend(
            SiteRow(
                delta=attached.name,
                site=site,
                layers=layers[site],
                params=params[site],
                deployed=deployed[site],
                trained=attached.name in attachments.trained,
            )
            for site in params
        )
    return tuple(rows)


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of each tensor once: quantised weights may share their codebooks."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
