"""What a delta costs in parameters and bytes, counted from the tensors themselves."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from deltakit.inject.bank import Bank, bank_of, base_parameters, head_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class SiteRow:
    """One line of the table: the parameters of one delta at one site, over all layers."""

    delta: str
    site: str
    layers: int
    params: int
    trained: bool


@dataclass(frozen=True, kw_only=True, repr=False)
class Summary:
    """Parameters and bytes of a model and of the deltas that are active in it.

    Attributes:
        trained_params: parameters that training changes, the task head left out.
        deployed_params: parameters to keep beside the base to run it, the task head left out.
        head_params: parameters of the task head, whether it is trained or not.
        base_params: all parameters of the base, embeddings included, the task head left out.
        delta_bytes: bytes of the deployed parameters in their own dtypes.
        base_bytes: bytes of the base's parameters and buffers.
        rows: one for each active delta and site.
    """

    trained_params: int
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
            (row.delta, row.site, row.layers, f"{row.params:,}", "yes" if row.trained else "frozen")
            for row in self.rows
        ]
        headers = ("delta", "site", "layers", "parameters", "trained")
        align = ("left", "left", "right", "right", "left")
        totals = (
            f"trained {self.trained_params:,} ({self.trained_pct:.3f} % of the base's "
            f"{self.base_params:,}) · deployed {self.deployed_params:,} "
            f"({self.delta_bytes:,} bytes) · head {self.head_params:,}"
        )
        if not table:
            return totals
        return f"{tabulate(table, headers, colalign=align, disable_numparse=True)}\n\n{totals}"

    __repr__ = __str__


def summary(model: "PreTrainedModel") -> Summary:
    """Counts the base, the head and the active deltas. Works on meta-device models too."""
    bank = bank_of(model)
    head = head_names(model)
    parameters = base_parameters(model)
    base = [p for name, p in parameters.items() if name not in head]
    base_buffers = [b for name, b in model.named_buffers() if not name.startswith("deltakit.")]
    deployed = list(_deployed(bank, head))
    return Summary(
        trained_params=_count(t for t, trained in deployed if trained),
        deployed_params=_count(t for t, _ in deployed),
        head_params=_count(p for name, p in parameters.items() if name in head),
        base_params=_count(base),
        delta_bytes=_bytes(t for t, _ in deployed),
        base_bytes=_bytes([*base, *base_buffers]),
        rows=_rows(bank, head),
    )


def _deployed(bank: Bank | None, head: frozenset[str]) -> Iterable[tuple[Tensor, bool]]:
    """Each tensor that the active deltas need, and whether it is trained."""
    if bank is None or bank.active is None:
        return
    for attached in bank.closure(bank.active.names):
        trained = attached.name in bank.trained
        for parameter in attached.parameters():
            yield parameter, trained
        if attached.name in bank.active.names:
            for name, tensor in attached.own.items():
                if name not in head:
                    yield tensor, trained


def _rows(bank: Bank | None, head: frozenset[str]) -> tuple[SiteRow, ...]:
    rows: list[SiteRow] = []
    if bank is None or bank.active is None:
        return ()
    for attached in bank.closure(bank.active.names):
        layers, params = Counter[str](), Counter[str]()
        for key, module in attached.modules():
            stack, _, rest = key.partition(".")
            site = f"{stack} {rest.partition('.')[2].partition('#')[0]}"
            layers[site] += "#" not in key
            params[site] += _count(module.parameters())
        own = sum(t.numel() for name, t in attached.own.items() if name not in head)
        if own and attached.name in bank.active.names:
            layers["the base's own"], params["the base's own"] = 0, own
        trained = attached.name in bank.trained
        rows.extend(
            SiteRow(
                delta=attached.name,
                site=site,
                layers=layers[site],
                params=params[site],
                trained=trained,
            )
            for site in params
        )
    return tuple(rows)


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
