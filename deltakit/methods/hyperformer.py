r"""HyperFormer: adapters that a shared network generates (Karimi Mahabadi et al. 2021).

    Δh = LN(f(h W_down + b_down) W_up + b_up; γ, β)
    (W_down, b_down, W_up, b_up, γ, β) = linear maps of z
    z = LN(MLP([task; layer; position]))

====================  =======================================================
functional form       bottleneck behind a norm, all of it generated from z
insertion             sequential
modified              attention and FFN output, before the residual addition
composition           h + Δh
====================  =======================================================

Every task, every layer of a stack and every adapter of a layer has a vector. One network makes z of
three of them, and linear maps make an adapter of z. An encoder and a decoder have a generator each,
and the tasks' vectors in common. This is the paper's HyperFormer++ (arXiv:2106.04489).

A delta of one task is trained in any loop. With several, the calls of the model are inside
``deltakit.using_tasks(model, ...)``, which names one task or one for each row of the batch.

Where the sources differ. The paper's code draws the tasks' vectors from N(0, 1) and does not train
them; here they are trained, as the published counts have it. It trains the base's layer norms too
(``train_norms=True``). It has no adapter behind cross-attention. Its plain HyperFormer, with a
generator for each layer and position, is not here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.checks import check_bool, check_choice, check_positive, check_whole
from deltakit.core.method import InitialOutput, Method, Paper, Placement, register_method
from deltakit.core.site import Handle, Insertion, Site
from deltakit.errors import InvalidConfig
from deltakit.methods.adapter import ACTIVATION_NAMES, bottleneck_width
from deltakit.methods.norms import is_norm

if TYPE_CHECKING:
    from torch import nn

    from deltakit.core.delta import Delta
    from deltakit.methods.forms.hyperformer import Generator

SITES = (Site.ATTN_OUT, Site.FFN_OUT)


@register_method("hyperformer")
@dataclass(frozen=True, kw_only=True)
class HyperFormer(Method):
    """Adapters generated from vectors of tasks, layers and positions (HyperFormer++).

    ``HyperFormer(tasks=("mnli", "rte", "sst2"))``.

    Args:
        tasks: the names of the tasks that share the generators, one or more.
        reduction: d / m, the width of the model over the width of the bottleneck.
        bottleneck: m itself; overrides `reduction`.
        embedding: the width of the vectors and of z.
        hidden: the width inside the network that makes z.
        activation: the nonlinearity f, by transformers' name.
        train_norms: train the base's norm layers too, as the paper does.

    Raises:
        InvalidConfig: a value out of range, or no names of tasks, or one name twice.
    """

    tasks: tuple[str, ...] = ("task",)
    reduction: float = 32
    bottleneck: int | None = None
    embedding: int = 64
    hidden: int = 128
    activation: str = "gelu_new"
    train_norms: bool = False

    paper: ClassVar[Paper] = Paper(
        key="mahabadi2021hyperformer",
        title="Parameter-efficient Multi-task Fine-tuning for Transformers via Shared "
        "Hypernetworks",
        authors="Karimi Mahabadi, Rabeeh and Ruder, Sebastian and Dehghani, Mostafa and "
        "Henderson, James",
        year=2021,
        venue="Annual Meeting of the Association for Computational Linguistics",
        arxiv="2106.04489",
    )
    learning_rate: ClassVar[float] = 3e-4
    starts: ClassVar[InitialOutput] = InitialOutput.ELSEWHERE

    def __post_init__(self) -> None:
        named = (self.tasks,) if isinstance(self.tasks, str) else tuple(self.tasks)
        object.__setattr__(self, "tasks", named)
        if not named or len({*named}) < len(named) or not all(isinstance(n, str) for n in named):
            raise InvalidConfig(
                f"HyperFormer(tasks={self.tasks!r}): one name or more, each once, for example "
                "tasks=('mnli', 'rte')."
            )
        check_choice(self, ACTIVATION_NAMES, activation=self.activation)
        check_positive(self, reduction=self.reduction)
        check_whole(self, embedding=self.embedding, hidden=self.hidden)
        check_bool(self, train_norms=self.train_norms)
        if self.bottleneck is not None:
            check_whole(self, bottleneck=self.bottleneck)

    def placements(self) -> tuple[Placement, ...]:
        make = _Adapters(self).form
        return tuple(
            Placement(
                site=site,
                make_delta=make,
                insertion=Insertion.SEQUENTIAL,
                cross_attention=False,
            )
            for site in SITES
        )

    def sized(self, width: int) -> Method | None:
        return replace(self, bottleneck=width)

    def trains_base_parameter(self, name: str, owner: nn.Module) -> bool:
        return self.train_norms and is_norm(owner)


@dataclass
class _Adapters:
    """Makes the adapters one by one; the first of each stack has the generator."""

    method: HyperFormer
    generators: dict[str, Generator] = field(default_factory=dict)
    vectors: list[nn.Embedding] = field(default_factory=list)

    def form(self, handle: Handle) -> Delta:
        from torch import nn

        from deltakit.methods.forms.hyperformer import GeneratedAdapter, GeneratedByTask

        method, stack = self.method, handle.stack
        owns_generator, owns_vectors = stack not in self.generators, not self.vectors
        if owns_vectors:
            self.vectors.append(nn.Embedding(len(method.tasks), method.embedding))
        if owns_generator:
            self.generators[stack] = self._generator(handle)
        several = len(method.tasks) > 1
        form = (GeneratedByTask if several else GeneratedAdapter)(
            self.generators[stack],
            self.vectors[0],
            (handle.layer, SITES.index(handle.site)),
            method.activation,
            owns_generator=owns_generator,
            owns_vectors=owns_vectors,
        )
        if isinstance(form, GeneratedByTask):
            form.tasks = method.tasks
        return form

    def _generator(self, handle: Handle) -> Generator:
        from deltakit.methods.forms.hyperformer import Generator

        method, d = self.method, handle.d_out
        return Generator(
            d,
            bottleneck_width(d, method.reduction, method.bottleneck),
            layers=handle.depth,
            positions=len(SITES),
            size=method.embedding,
            hidden=method.hidden,
        )
