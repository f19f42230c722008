"""The actions that methods take between training steps, for any training loop."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from deltakit.core.steps import StepCallback, TrainingStep
from deltakit.inject.attachments import attachments_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StepCallbacks:
    """The callbacks of all deltas that are trained (`deltakit.Method.callbacks`).

    A loop of one's own calls `before_update` and `after_update` around ``optimizer.step()``, the
    former behind ``scaler.unscale_(optimizer)`` where gradients are scaled. Transformers' Trainer
    is given ``callbacks=[*dk.step_callbacks(model).for_trainer()]``.
    """

    def __init__(self, bound: Iterable[tuple[StepCallback, dict[str, nn.Module]]]) -> None:
        self.bound = tuple(bound)

    def before_update(self, index: int, total: int) -> None:
        """Call it in front of the update number `index` of `total`, counted from zero."""
        for callback, forms in self.bound:
            callback.before_update(forms, TrainingStep(index=index, total=total))

    def after_update(self, index: int, total: int) -> None:
        """Call it behind that update, before the gradients are set to zero."""
        for callback, forms in self.bound:
            callback.after_update(forms, TrainingStep(index=index, total=total))

    def for_trainer(self) -> tuple[Any, ...]:
        """The same as transformers' callbacks; none where no method has any."""
        return (_trainer_callback(self),) if self.bound else ()


def step_callbacks(model: "PreTrainedModel") -> StepCallbacks:
    """The actions between training steps of the deltas that are trained now.

    Make it once for each training: a method may keep state in its callbacks. A model without deltas
    has none.
    """
    attachments = attachments_of(model)
    names = () if attachments is None else attachments.trained
    trained = [attachments.get(name) for name in names if attachments is not None]
    return StepCallbacks(
        (callback, dict(attached.modules()))
        for attached in trained
        for callback in attached.method.callbacks()
    )


def _trainer_callback(steps: StepCallbacks) -> Any:
    from transformers import TrainerCallback

    class BetweenSteps(TrainerCallback):
        """Calls the methods' callbacks around each update."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            steps.before_update(state.global_step, state.max_steps)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            steps.after_update(state.global_step, state.max_steps)

    return BetweenSteps()
