"""Hooks that only look: what a module returns, and what deltas change at a site.

A layer that checkpointing recomputes is recorded once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltakit.core.site import Handle, HookKind
from deltakit.runtime.passes import current_pass


class OutputRecorder:
    """Hands each output of a module to `record`, detached."""

    def __init__(self, record: Callable[[Tensor], None]) -> None:
        self.record = record

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if not current_pass().recomputed:
            self.record(output.detach())


class ChangeRecorder:
    """Hands h before and after the deltas' hooks to `record`, detached."""

    def __init__(self, handle: Handle, record: Callable[[Tensor, Tensor], None]) -> None:
        self.handle = handle
        self.record = record
        self.key = f"{handle.key} before"

    def hold(self, module: nn.Module, args: Any, output: Any = None) -> None:
        """In front of the deltas' hooks."""
        current_pass().held[self.key] = self._read(args if output is None else output)

    def compare(self, module: nn.Module, args: Any, output: Any = None) -> None:
        """Behind them."""
        running = current_pass()
        before = running.held.pop(self.key)
        if not running.recomputed:
            self.record(before, self._read(args if output is None else output))

    def _read(self, value: Any) -> Tensor:
        whole: Tensor = (value[0] if isinstance(value, tuple) else value).detach()
        return whole if self.handle.columns is None else self.handle.columns.read(whole)


def record_output(module: nn.Module, record: Callable[[Tensor], None]) -> RemovableHandle:
    """Makes each pass record what the module returns."""
    return module.register_forward_hook(OutputRecorder(record))


def record_changes(
    handle: Handle, record: Callable[[Tensor, Tensor], None]
) -> Iterator[RemovableHandle]:
    """Makes each pass record h at a site before and after it is changed.

    A site whose changes are positions of a sequence has no h to compare, so nothing is recorded.
    """
    recorder, module = ChangeRecorder(handle, record), handle.module
    match handle.hook_kind:
        case HookKind.INPUT:
            yield module.register_forward_pre_hook(recorder.hold, prepend=True)
            yield module.register_forward_pre_hook(recorder.compare)
        case HookKind.OUTPUT | HookKind.NORM:
            yield module.register_forward_hook(recorder.hold, prepend=True)
            yield module.register_forward_hook(recorder.compare)


@contextmanager
def recorded(hooks: list[RemovableHandle]) -> Iterator[None]:
    """Removes the hooks afterwards."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
