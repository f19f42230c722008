r"""AdapterFusion: attention over frozen adapters (Pfeiffer et al. 2021, arXiv:2005.00247).

    a_n = softmax_n(q · k_n),   q = W_q h + b_q,   k_n = W_k u_n + b_k,   Δh = Σ_n a_n W_v u_n

with u_n the change that adapter n proposes at this site and h the representation that the adapters
read. One head, no 1/√d. W_v starts at the identity (off-diagonal 1e-6) and λ ‖I - W_v‖²_F over all
layers is part of the training loss (λ = 0.01).

Computed in 3d² multiply-adds a token whatever the number of adapters N, where the formula as
written takes (1 + 2N) d²: q · k_n = (W_kᵀ q) · u_n + q · b_k, and W_v comes after the sum.

Where the sources differ. The paper draws three matrices; the `adapters` library gives queries and
keys a bias, which is what published checkpoints have, and so does this (3d² + 2d parameters a
layer). It also drops scores out by the *model's* attention dropout; here `dropout` is 0 unless set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.checks import check_bool, check_fraction, check_not_negative
from deltakit.core.method import CombiningMethod, InitialOutput, Method, Paper, register_method
from deltakit.core.site import Handle
from deltakit.errors import InvalidConfig
from deltakit.methods.adapter import PFEIFFER, SequentialAdapter

if TYPE_CHECKING:
    from deltakit.core.delta import Combiner


@register_method("fusion")
@dataclass(frozen=True, kw_only=True, init=False)
class AdapterFusion(CombiningMethod):
    """Attention over adapters that are attached already (Pfeiffer et al. 2021).

    ``AdapterFusion("imdb", "news")`` fuses the deltas of these names. The members stay frozen.
    On the command line no names are given: the comparison's first stage trains one `member` on
    each source task and on the target.

    Args:
        names: the members. All of them must have placements at the same sites.
        member: what the first stage of a comparison trains.
        value: False leaves W_v out ("static" fusion).
        regularisation: λ of the value matrices' pull towards the identity.
        dropout: on the attention scores, in training.

    Raises:
        InvalidConfig: a value out of range, or a name given twice.
    """

    names: tuple[str, ...] = ()
    member: Method = field(default_factory=SequentialAdapter)
    value: bool = True
    regularisation: float = 0.01
    dropout: float = 0.0

    paper: ClassVar[Paper] = PFEIFFER
    learning_rate: ClassVar[float] = 5e-4

    def __init__(
        self,
        *members: str,
        names: str | list[str] | tuple[str, ...] = (),
        member: Method | None = None,
        value: bool = True,
        regularisation: float = 0.01,
        dropout: float = 0.0,
    ) -> None:
        chosen = (*members, *(names if isinstance(names, list | tuple) else (names,)))
        if len(set(chosen)) != len(chosen):
            raise InvalidConfig(f"AdapterFusion names a member twice: {', '.join(chosen)}.")
        if not all(isinstance(name, str) for name in chosen):
            raise InvalidConfig(f"AdapterFusion{chosen!r}: the members are names of deltas.")
        if not isinstance(member, Method | None):
            raise InvalidConfig(
                f"AdapterFusion(member={member!r}): a method, for example SequentialAdapter()."
            )
        check_bool(self, value=value)
        check_fraction(self, dropout=dropout)
        check_not_negative(self, regularisation=regularisation)
        object.__setattr__(self, "names", chosen)
        object.__setattr__(self, "member", member or SequentialAdapter())
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "regularisation", regularisation)
        object.__setattr__(self, "dropout", dropout)

    @property
    def starts(self) -> InitialOutput:
        """The members' start: the fusion weighs their changes."""
        return self.member.starts

    def combiner(self, handle: Handle, members: tuple[str, ...]) -> Combiner:
        from deltakit.methods.forms.fusion import Fusion

        return Fusion(
            handle.d_out,
            members=members,
            value=self.value,
            regularisation=self.regularisation,
            dropout=self.dropout,
        )
