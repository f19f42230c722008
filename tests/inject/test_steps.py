"""What methods do between training steps, in a loop of one's own and in transformers' Trainer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.compare.adapted import DeltakitModel


class Scale(dk.Delta):
    """h times a number that a schedule sets, plus a vector that is trained."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.warmth: Tensor
        self.register_buffer("warmth", torch.zeros(1))
        self.vector = nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.vector + self.warmth * 0


class WarmUp(dk.StepCallback):
    """Raises the number from zero to one, and sees the gradients of each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, bool]] = []

    def before_update(self, forms: Mapping[str, nn.Module], step: dk.TrainingStep) -> None:
        gradients = [form.vector.grad for form in forms.values() if isinstance(form, Scale)]
        self.seen.append((step.index, step.total, all(g is not None for g in gradients)))

    def after_update(self, forms: Mapping[str, nn.Module], step: dk.TrainingStep) -> None:
        for form in forms.values():
            if isinstance(form, Scale):
                form.warmth.fill_((step.index + 1) / step.total)


@dataclass(frozen=True, kw_only=True)
class Warm(dk.Method):
    """A vector at the end of each block."""

    paper: ClassVar[Any] = dk.LoRA.paper
    learning_rate: ClassVar[float] = 1e-2

    def placements(self) -> tuple[dk.Placement, ...]:
        return (
            dk.Placement(
                site=dk.Site.BLOCK_OUT,
                make_delta=lambda handle: Scale(handle.d_out),
                insertion=dk.Insertion.SEQUENTIAL,
            ),
        )

    def callbacks(self) -> tuple[dk.StepCallback, ...]:
        return (WarmUp(),)


def warmth(model: Any) -> list[float]:
    return [m.warmth.item() for m in model.modules() if isinstance(m, Scale)]


def test_a_loop_of_ones_own(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert", "classify")
    dk.attach(model, Warm() + dk.LoRA(rank=2))
    dk.attach(model, Warm(), name="asleep")
    dk.activate(model, "default")
    steps = dk.step_callbacks(model)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for index in range(2):
        model(**kit.make_batch(labels=True)).loss.backward()
        steps.before_update(index, 4)
        optimiser.step()
        steps.after_update(index, 4)
        optimiser.zero_grad()
    assert sorted(warmth(model)) == [0, 0, 0.5, 0.5]
    ((callback, forms),) = steps.bound
    assert callback.seen == [(0, 4, True), (1, 4, True)]
    assert {"encoder.0.block.out", "encoder.1.block.out"} <= forms.keys()


def test_the_comparisons_training_loop(kit: SimpleNamespace, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model = kit.make_model("bert", "classify")
    adapted = DeltakitModel(model, dk.AdapterDrop(Warm(), first=1))
    adapted.attach()
    batch = kit.make_batch(labels=True)
    rows = [{key: value[0] for key, value in batch.items()}] * 4
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows, callbacks=[*adapted.callbacks()]
    )
    trainer.train()
    assert warmth(model) == [1.0]


def test_methods_without_callbacks_have_none(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.LoRA())
    assert dk.step_callbacks(model).for_trainer() == ()
