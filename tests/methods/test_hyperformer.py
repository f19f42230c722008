"""HyperFormer: the formula, generators shared in a stack, tasks by call and by row, files."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

import deltakit as dk
from deltakit.errors import IncompatibleDeltas, InvalidConfig, NotMergeable, UnknownName
from deltakit.methods.hyperformer import HyperFormer

ONE = HyperFormer(bottleneck=3, embedding=4, hidden=5)
TASKS = ("mnli", "rte", "sst2")
SEVERAL = HyperFormer(tasks=TASKS, bottleneck=3, embedding=4, hidden=5)


def forms(model: Any) -> dict[str, Any]:
    return dict(model.deltakit.attached["default"].modules())


def attached(kit: SimpleNamespace, method: dk.Method, family: str = "bert") -> Any:
    torch.manual_seed(0)
    model = kit.make_model(family)
    dk.attach(model, method)
    kit.randomise_deltas(model)
    return model.eval()


def by_formula(form: Any, h: Tensor, task: int) -> Tensor:
    """The change, one step after another, from the shared networks' own parameters."""
    generator, vectors = form._shared
    layer, position = form.place
    places = (generator.layers.weight[layer], generator.positions.weight[position])
    first, _, second, norm = generator.mix
    z = torch.cat((vectors.weight[task], *places))
    z = norm(second(F.relu(first(z))))
    made = {name: head.weight @ z + head.bias for name, head in generator.heads.items()}
    d = h.shape[-1]
    inner = h @ made["down"].view(d, -1) + made["down_bias"]
    out = F.gelu(inner, approximate="tanh") @ made["up"].view(-1, d) + made["up_bias"]
    return F.layer_norm(out, (d,), made["scale"], made["shift"])


@pytest.mark.parametrize("key", ["encoder.0.attn.out", "encoder.1.ffn.out"])
def test_the_formula(kit: SimpleNamespace, key: str) -> None:
    form = forms(attached(kit, SEVERAL))[key]
    h, tasks = torch.randn(3, 5, 16), torch.tensor([2, 0, 1])
    expected = torch.stack([by_formula(form, row, int(t)) for row, t in zip(h, tasks, strict=True)])
    torch.testing.assert_close(form(h, tasks), expected, atol=1e-5, rtol=1e-4)
    alone = forms(attached(kit, ONE))[key]
    torch.testing.assert_close(alone(h), by_formula(alone, h, 0), atol=1e-5, rtol=1e-4)


def test_one_generator_for_each_stack_and_one_table_of_tasks(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    model = attached(kit, SEVERAL, "t5")
    generators = {id(form._shared[0]) for form in forms(model).values()}
    assert len(generators) == 2 and len({id(f._shared[1]) for f in forms(model).values()}) == 1
    assert not any(key.startswith("cross") for key in forms(model))
    dk.save(model, tmp_path / "delta")
    (file,) = (tmp_path / "delta").glob("*.safetensors")
    assert sum("vectors" in name for name in load_file(file)) == 1
    assert sum("mix.0.weight" in name for name in load_file(file)) == 2


def test_a_row_alone_is_the_row_in_a_batch_of_tasks(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, SEVERAL), kit.make_batch()
    rows = len(batch["input_ids"])
    names = [TASKS[row % 3] for row in range(rows)]
    with dk.using_tasks(model, names):
        whole = kit.out(model, batch)
    for row, name in enumerate(names):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        with dk.using_tasks(model, name):
            alone = kit.out(model, one)
        torch.testing.assert_close(alone[0], whole[row], atol=1e-5, rtol=1e-4)
    with dk.using_tasks(model, TASKS[0]):
        same = kit.out(model, batch)
    assert not torch.allclose(same[1], whole[1], atol=1e-3)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_trained_on_several_tasks_at_once(kit: SimpleNamespace, reentrant: bool | None) -> None:
    torch.manual_seed(0)
    model = kit.make_model("bert", "classify")
    dk.attach(model, SEVERAL)
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    batch = kit.make_batch()
    labels = torch.arange(len(batch["input_ids"])) % 2
    names = [TASKS[row % 2] for row in range(len(labels))]
    with dk.using_tasks(model, names):
        loss = model(**batch, labels=labels).loss
    loss.backward()  # a checkpointed layer runs again outside the block
    (vectors,) = [p for name, p in model.named_parameters() if name.endswith("vectors.weight")]
    assert vectors.grad is not None
    assert vectors.grad[:2].abs().sum(1).min() > 0 and not vectors.grad[2].any()


def test_two_tasks_that_are_opposites_are_learned(kit: SimpleNamespace) -> None:
    torch.manual_seed(0)
    model = kit.make_model("bert", "classify")
    dk.attach(model, HyperFormer(tasks=("agree", "oppose"), bottleneck=8))
    texts = {key: value[:2].repeat(2, 1) for key, value in kit.make_batch().items()}
    labels = torch.tensor([0, 1, 1, 0])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.002)
    for _ in range(40):
        with dk.using_tasks(model.train(), ["agree", "agree", "oppose", "oppose"]):
            model(**texts, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    rows = {key: value[:2] for key, value in texts.items()}
    for task, expected in (("agree", [0, 1]), ("oppose", [1, 0])):
        with dk.using_tasks(model.eval(), task):
            assert kit.out(model, rows).argmax(-1).tolist() == expected


def test_tasks_are_the_calling_threads(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, SEVERAL), kit.make_batch()
    expected = {}
    for name in TASKS:
        with dk.using_tasks(model, name):
            expected[name] = kit.out(model, batch)
    found: dict[str, list[Tensor]] = {name: [] for name in TASKS}

    def run(name: str) -> None:
        with dk.using_tasks(model, name):
            found[name] += [kit.out(model, batch) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(name,)) for name in TASKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(out, expected[name]) for name in TASKS for out in found[name])


def test_beams_have_the_task_of_their_row(kit: SimpleNamespace) -> None:
    torch.manual_seed(0)
    model = kit.make_model("t5", "seq2seq").eval()
    dk.attach(model, SEVERAL)
    kit.randomise_deltas(model)
    batch = {"input_ids": torch.randint(5, 60, (3, 6))}
    settings: dict[str, Any] = {"max_new_tokens": 5, "num_beams": 2, "do_sample": False}
    settings |= {"eos_token_id": None, "pad_token_id": 0, "decoder_start_token_id": 0}
    with dk.using_tasks(model, list(TASKS)):
        whole = model.generate(**batch, **settings)
    for row, name in enumerate(TASKS):
        with dk.using_tasks(model, name):
            alone = model.generate(batch["input_ids"][row : row + 1], **settings)
        assert torch.equal(alone[0], whole[row])


def test_saved_and_loaded_on_another_base(kit: SimpleNamespace, tmp_path: Path) -> None:
    model, batch = attached(kit, SEVERAL), kit.make_batch()
    with dk.using_tasks(model, "rte"):
        expected = kit.out(model, batch)
    dk.save(model, tmp_path / "delta")
    torch.manual_seed(0)
    other = kit.make_model("bert").eval()
    dk.load(other, tmp_path / "delta")
    with dk.using_tasks(other, "rte"):
        assert torch.equal(kit.out(other, batch), expected)


def test_messages(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, SEVERAL), kit.make_batch()
    with pytest.raises(IncompatibleDeltas, match="not known which one.*using_tasks"):
        model(**batch)
    with pytest.raises(UnknownName, match="'mlni'.*mnli"), dk.using_tasks(model, "mlni"):
        pass
    with pytest.raises(InvalidConfig, match="name a task"), dk.using_tasks(model, []):
        pass
    two = dk.using_tasks(model, ["rte", "mnli"])
    with pytest.raises(IncompatibleDeltas, match="for 2 rows, but .* is given 3"), two:
        model(**batch)
    with pytest.raises(NotMergeable):
        dk.merge(model)
    plain = attached(kit, dk.LoRA(rank=2))
    with pytest.raises(IncompatibleDeltas, match="no attached delta"), dk.using_tasks(plain, "a"):
        pass


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"tasks": ()}, "one name or more"),
        ({"tasks": ("a", "a")}, "each once"),
        ({"embedding": 0}, "embedding"),
        ({"activation": "gleu"}, "gelu"),
    ],
)
def test_bad_settings(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        HyperFormer(**fields)
