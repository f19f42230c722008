"""Losses of a delta's own: their weight in any loop, and losses of the data under recomputation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deltakit as dk


class Routed(dk.Delta, dk.AuxiliaryLoss, dk.Attending):
    """A token-routed mixture of vectors, with a loss that balances their load."""

    def __init__(self, d: int, experts: int, balance: float) -> None:
        super().__init__()
        self.members = tuple(f"expert {index}" for index in range(experts))
        self.router = nn.Linear(d, experts, bias=False)
        self.attention = nn.Softmax(dim=-1)
        self.experts = nn.Parameter(torch.zeros(experts, d))
        self.balance = balance

    def forward(self, x: Tensor) -> Tensor:
        return self.with_loss(x)[0]

    def with_loss(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        (x,) = inputs
        weights = self.attention(self.router(x))
        load = weights.flatten(0, -2).mean(0)
        return (weights @ self.experts) * x, self.balance * len(load) * load.square().sum()


@dataclass(frozen=True, kw_only=True)
class Mixture(dk.Method):
    """A routed mixture at the end of each block."""

    experts: int = 3
    balance: float = 0.5

    paper: ClassVar[Any] = dk.LoRA.paper
    learning_rate: ClassVar[float] = 1e-2

    def placements(self) -> tuple[dk.Placement, ...]:
        return (
            dk.Placement(
                site=dk.Site.BLOCK_OUT,
                make_delta=lambda handle: Routed(handle.d_out, self.experts, self.balance),
                insertion=dk.Insertion.SEQUENTIAL,
            ),
        )


def mixed(kit: SimpleNamespace, balance: float = 0.5, family: str = "bert") -> Any:
    torch.manual_seed(0)
    model = kit.make_model(family, "classify")
    dk.attach(model, Mixture(balance=balance))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("deltakit."):
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return model.train()


def by_hand(model: Any, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Autograd of the task's loss and of the balance losses, which are recomputed from inputs."""
    inputs: dict[Routed, Tensor] = {}
    forms = [module for module in model.modules() if isinstance(module, Routed)]
    hooks = [
        form.router.register_forward_hook(
            lambda _m, args, _o, form=form: inputs.__setitem__(form, args[0])
        )
        for form in forms
    ]
    weights = [form.balance for form in forms]
    for form in forms:
        form.balance = 0.0
    task = loss()
    for hook in hooks:
        hook.remove()
    total = task
    for form, weight in zip(forms, weights, strict=True):
        form.balance = weight
        total = total + form.with_loss(inputs[form])[1]
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total, list(names.values()))
    return dict(zip(names, found, strict=True))


def grads(model: Any) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4, msg=name)


def models_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


def own_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    given = {key: value for key, value in batch.items() if key != "labels"}
    return F.cross_entropy(model(**given).logits, batch["labels"])


LOOPS = {"model's loss": models_loss, "own loss": own_loss}
each_loop = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS.keys())


@pytest.fixture(params=[None, False, True], ids=["kept", "recomputed", "reentrant"])
def checkpointing(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    def enable(model: Any) -> None:
        if request.param is not None:
            model.gradient_checkpointing_enable({"use_reentrant": request.param})
            model.enable_input_require_grads()

    return enable


@each_loop
def test_balance_loss_equals_one_written_by_hand(
    kit: SimpleNamespace, loop: Any, checkpointing: Any
) -> None:
    model, batch = mixed(kit), kit.make_batch(labels=True)
    expected = by_hand(model, lambda: loop(model, batch))
    checkpointing(model)
    for _ in range(2):  # nothing of one step leaks into the next
        loop(model, batch).backward()
        assert_close(grads(model), expected)


@each_loop
def test_balance_loss_under_a_loss_scale(
    kit: SimpleNamespace, loop: Any, checkpointing: Any
) -> None:
    model, batch = mixed(kit), kit.make_batch(labels=True)
    expected = by_hand(model, lambda: loop(model, batch))
    checkpointing(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    scaler.scale(loop(model, batch)).backward()
    scaler.unscale_(optimiser)
    assert_close(grads(model), expected)


@each_loop
def test_balance_loss_under_accumulation(
    kit: SimpleNamespace, loop: Any, checkpointing: Any
) -> None:
    model = mixed(kit)
    batches = [kit.make_batch(rows=2, length=6 + i, labels=True) for i in range(2)]
    whole = [by_hand(model, lambda b=b: loop(model, b)) for b in batches]
    expected = {name: (whole[0][name] + whole[1][name]) / 2 for name in whole[0]}
    checkpointing(model)
    for batch in batches:
        (loop(model, batch) / 2).backward()
    assert_close(grads(model), expected)
    sum(loop(model, batch) / 2 for batch in batches).backward()  # two passes, one backward
    assert_close(grads(model), expected)


def test_the_loss_contains_its_value_once_and_in_training_only(
    kit: SimpleNamespace, checkpointing: Any
) -> None:
    model, plain = mixed(kit), mixed(kit, balance=0.0)
    checkpointing(model)
    batch = kit.make_batch(labels=True)
    added = model(**batch).loss - plain(**batch).loss
    assert added.item() > 0.5
    again = model(**batch).loss - plain(**batch).loss
    torch.testing.assert_close(again, added)
    for mode in (model, plain):
        mode.eval()
    torch.testing.assert_close(model(**batch).loss, plain(**batch).loss)


def test_a_frozen_router_adds_nothing(kit: SimpleNamespace) -> None:
    model, batch = mixed(kit), kit.make_batch(labels=True)
    dk.attach(model, dk.LoRA(), name="other")
    dk.activate(model, dk.Stack("other", "default"), train=["other"])
    model.train()
    form = next(module for module in model.modules() if isinstance(module, Routed))
    training = model(**batch).loss
    form.balance = 100.0
    torch.testing.assert_close(model(**batch).loss, training)


def test_rows_of_one_batch_with_a_router_each(kit: SimpleNamespace) -> None:
    model, batch = mixed(kit), kit.make_batch()
    dk.attach(model, Mixture(), name="b")
    kit.randomise_deltas(model)
    rows = len(batch["input_ids"])
    outputs = {}
    for name in ("default", "b"):
        dk.activate(model, name)
        outputs[name] = kit.out(model.eval(), batch)
    chosen = [("default", "b")[row % 2] for row in range(rows)]
    dk.activate(model, dk.PerRow(chosen))
    expected = torch.stack([outputs[name][row] for row, name in enumerate(chosen)])
    torch.testing.assert_close(kit.out(model, batch), expected, atol=1e-5, rtol=1e-5)


def test_a_router_inside_a_delta_is_observed(kit: SimpleNamespace) -> None:
    model, batch = mixed(kit).eval(), kit.make_batch()
    with dk.fusion_attention(model) as seen:
        model(**batch)
    usage = seen.mean()["encoder.0.block.out"]
    assert [*usage] == ["expert 0", "expert 1", "expert 2"]
    assert sum(usage.values()) == pytest.approx(1, abs=1e-5)


# -------------------------------------------------------------------- the weight of one's own loss

Share = Callable[[Callable[[], None]], float]


def fused(kit: SimpleNamespace) -> tuple[Any, dict[str, Tensor], Share]:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    kit.attach_fusion(model)
    values = {n: p for n, p in model.named_parameters() if "fused" in n and "value" in n}
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in values.values():
            value.add_(0.3 * torch.randn(value.shape, generator=draw))
    model.train()
    fusions = [module for module in model.modules() if hasattr(module, "regularisation")]

    def share(backward: Callable[[], None]) -> float:
        """How often the regulariser's gradient is in what a loop makes."""
        model.zero_grad()
        backward()
        full = {n: p.grad.clone() for n, p in values.items()}
        model.zero_grad()
        weights = [fusion.regularisation for fusion in fusions]
        for fusion in fusions:
            fusion.regularisation = 0.0
        backward()
        for fusion, weight in zip(fusions, weights, strict=True):
            fusion.regularisation = weight
        eye = torch.eye(16)
        shares = [
            (((full[n] - p.grad) * (p - eye)).sum() / (0.02 * (p - eye).square()).sum()).item()
            for n, p in values.items()
        ]
        assert max(shares) - min(shares) < 1e-2 * max(1.0, abs(max(shares)))
        return sum(shares) / len(shares)

    return model, batch, share


def smooth(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


OWN: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "mean": (F.cross_entropy, 1),
    "scaled": (lambda x, y: F.cross_entropy(x, y) * 1024, 1024),
    "scaled from the left": (lambda x, y: 512 * F.cross_entropy(x, y), 512),
    "accumulated": (lambda x, y: F.cross_entropy(x, y) / 4, 0.25),
    "sum over count": (lambda x, y: F.cross_entropy(x, y, reduction="sum") / len(y), 1),
    "sum": (lambda x, y: F.cross_entropy(x, y, reduction="sum"), 1),
    "scaled sum": (lambda x, y: F.cross_entropy(x, y, reduction="sum") / len(y) * 8, 8),
    "each, then the mean": (lambda x, y: F.cross_entropy(x, y, reduction="none").mean(), 1),
    "by hand": (lambda x, y: -x.float().log_softmax(-1)[torch.arange(len(y)), y].mean() * 4, 4),
    "a reward": (lambda x, y: -(x.softmax(-1)[:, 0].mean()), 1),
    "two parts": (lambda x, y: F.cross_entropy(x, y) + 0.1 * x.square().mean(), 1),
    "smoothed": (smooth, 1),
    "no scalar": (lambda x, y: F.cross_entropy(x, y, reduction="none").mean(0, keepdim=True), 1),
}


@pytest.mark.parametrize("how", OWN)
def test_the_term_has_the_weight_of_the_loops_loss(kit: SimpleNamespace, how: str) -> None:
    model, batch, share = fused(kit)
    loss_of, expected = OWN[how]
    inputs = {key: value for key, value in batch.items() if key != "labels"}

    def step() -> None:
        loss_of(model(**inputs).logits, batch["labels"]).backward()

    assert share(step) == pytest.approx(expected, rel=1e-2)


def test_passes_and_backward_passes(kit: SimpleNamespace) -> None:
    model, batch, share = fused(kit)

    def two_passes() -> None:
        ((own_loss(model, batch) + own_loss(model, batch)) / 2).backward()

    def a_look_first() -> None:
        output = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        output.max().item()
        F.cross_entropy(output, batch["labels"]).backward()

    def unused_loss() -> None:
        (F.cross_entropy(model(**batch).logits, batch["labels"]) * 64).backward()

    def twice() -> None:
        loss = own_loss(model, batch)
        loss.backward(retain_graph=True)
        loss.backward()

    def gradient_only() -> None:
        loss = own_loss(model, batch) * 16
        names = [p for p in model.parameters() if p.requires_grad]
        for parameter, grad in zip(names, torch.autograd.grad(loss, names), strict=True):
            parameter.grad = grad

    expected = {two_passes: 1, a_look_first: 1, unused_loss: 64, twice: 2, gradient_only: 16}
    for loop, times in expected.items():
        assert share(loop) == pytest.approx(times, rel=1e-2), loop.__name__


def test_watched_outputs_are_tensors_for_everybody(kit: SimpleNamespace) -> None:
    model, batch, _ = fused(kit)
    logits = model(**batch).logits
    assert isinstance(logits, Tensor) and logits.shape == (len(batch["labels"]), 3)
    assert type(logits.detach()) is Tensor and type(logits.argmax(-1)) is Tensor
    assert logits.tolist() == logits.detach().numpy().tolist()
    assert type(F.cross_entropy(logits, batch["labels"])) is Tensor
    with torch.no_grad():
        assert type(model(**batch).logits) is Tensor
    assert type(model.eval()(**batch).logits) is Tensor


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(3)
    yield
