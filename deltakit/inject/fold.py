"""Combiners multiplied out with their members, for inference.

Their sites keep their hooks, because attention over members is no linear map. What runs there is
one module without the combiner's square matrices. The base and what is attached stay as they are.
"""

import contextlib
from collections.abc import Iterator, Mapping

from torch import nn

from deltakit.core.factors import Foldable
from deltakit.inject.attachments import Attachments, child_key
from deltakit.inject.compositions import program_of
from deltakit.runtime.nodes import CombinerNode, FoldedNode, Node
from deltakit.runtime.tables import Tables

CHILD = "folded"
"""The name of the folded modules among those of the record, with which they move."""


class FoldedSites:
    """The folded nodes of a model, which run until they are removed."""

    def __init__(
        self, model: nn.Module, attachments: Attachments, nodes: Mapping[str, FoldedNode]
    ) -> None:
        self.model = model
        self.attachments = attachments
        self.tables = Tables(nodes=nodes)
        self.modules = nn.ModuleDict({child_key(key): node.module for key, node in nodes.items()})

    def apply(self) -> None:
        """Lets them run."""
        self.attachments.add_module(CHILD, self.modules)
        program_of(self.model, self.attachments).switch(self.model, self.tables)

    def remove(self) -> None:
        """Takes them off."""
        program_of(self.model, self.attachments).switch(self.model, Tables())
        self.attachments._modules.pop(CHILD, None)


def fold(node: Node) -> FoldedNode | None:
    """A combiner's node multiplied out; None for another node, and where its members cannot be."""
    if not isinstance(node, CombinerNode) or not isinstance(node.combiner, Foldable):
        return None
    with _evaluating((node.combiner, *(leaf.delta for leaf in node.leaves))):
        stacked = node.stacked()
        return None if stacked is None else FoldedNode(node, node.combiner.folded(stacked))


@contextlib.contextmanager
def _evaluating(parts: tuple[nn.Module, ...]) -> Iterator[None]:
    """Inside, no dropout acts."""
    modules = {module: module.training for part in parts for module in part.modules()}
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, training in modules.items():
            module.training = training
