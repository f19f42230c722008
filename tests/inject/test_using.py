"""What is active for one thread, and switches while other threads run."""

import asyncio
import copy
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import deltakit as dk
from deltakit.errors import IncompatibleDeltas, UnknownName

METHODS: dict[str, dk.Method] = {
    "lora": dk.LoRA(rank=2, targets="all"),
    "par": dk.ParallelAdapter(bottleneck=3),
    "prefix": dk.PrefixTuning(length=2, bottleneck=None),
    "prompt": dk.PromptTuning(length=2),
    "bias": dk.BitFit(),
}
WAYS: tuple[Any, ...] = (*METHODS, None, dk.Stack("lora", "par"), dk.PerRow(["par", None, "lora"]))


@pytest.fixture
def model(kit: SimpleNamespace) -> Any:
    """A classifier with deltas that all have heads of their own."""
    model = kit.make_model("bert", "classify")
    for index, (name, method) in enumerate(METHODS.items()):
        dk.attach(model, method, name)
        kit.randomise_deltas(model)
        with torch.no_grad():
            for own in kit.attachments(model).attached[name].own.values():
                own += 0.3 * (index + 1)
    return model.eval()


def alone(kit: SimpleNamespace, model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    outs = []
    for way in WAYS:
        dk.activate(model, way)
        outs.append(kit.out(model, batch))
    return outs


def together(*tasks: Callable[[], None]) -> None:
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_inside_it_is_as_activated(kit: SimpleNamespace, model: Any) -> None:
    batch = kit.make_batch()
    expected = alone(kit, model, batch)
    assert len({tuple(out.flatten().tolist()) for out in expected}) == len(WAYS)
    for active in ("lora", None, "bias"):
        dk.activate(model, active)
        before, hooks = kit.snapshot(model), kit.hook_count(model)
        for way, out in zip(WAYS, expected, strict=True):
            with dk.using(model, way):
                torch.testing.assert_close(kit.out(model, batch), out)
        kit.assert_same(before, kit.snapshot(model))
        assert kit.hook_count(model) == hooks
        torch.testing.assert_close(kit.out(model, batch), expected[WAYS.index(active)])


def test_it_nests_and_ends_with_an_exception(kit: SimpleNamespace, model: Any) -> None:
    batch = kit.make_batch()
    expected = dict(zip(map(repr, WAYS), alone(kit, model, batch), strict=True))
    dk.activate(model, "par")
    with dk.using(model, "lora"):
        with pytest.raises(ValueError, match="inside"), dk.using(model, "prompt"):
            torch.testing.assert_close(kit.out(model, batch), expected["'prompt'"])
            raise ValueError("inside")
        torch.testing.assert_close(kit.out(model, batch), expected["'lora'"])
        dk.activate(model, "bias")
        torch.testing.assert_close(kit.out(model, batch), expected["'lora'"])
    torch.testing.assert_close(kit.out(model, batch), expected["'bias'"])


def test_threads_use_deltas_of_their_own(kit: SimpleNamespace, model: Any) -> None:
    batch, wrong = kit.make_batch(), list[str]()
    expected = alone(kit, model, batch)
    dk.activate(model, "lora")

    def serve(way: Any, out: Tensor) -> None:
        try:
            for _ in range(6):
                with dk.using(model, way):
                    if not torch.allclose(kit.out(model, batch), out, atol=1e-5):
                        wrong.append(repr(way))
        except Exception as error:
            wrong.append(repr(error))

    together(*(lambda w=w, o=o: serve(w, o) for w, o in zip(WAYS, expected, strict=True)))  # type: ignore[misc]
    assert wrong == []


SERVED = {
    "prompt": "prompt[length=2]",
    "parallel": "parallel[bottleneck=3]",
    "mam": "mam[length=2,prefix_bottleneck=4,bottleneck=3]",
    "drop": "adapterdrop[first=1,method=houlsby[bottleneck=3]]",
}


@pytest.mark.parametrize("requests", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_eight_threads_answer_as_one(kit: SimpleNamespace, requests: int) -> None:
    model = kit.make_model("bert", "classify")
    for name, spec in SERVED.items():
        dk.attach(model, dk.parse_method(spec), name)
    kit.randomise_deltas(model)
    batches = [{k: v[row : row + 1] for k, v in kit.make_batch().items()} for row in range(3)]
    expected, wrong, done = {}, list[str](), list[str]()
    for name in SERVED:
        dk.activate(model, name)
        expected[name] = [kit.out(model, batch) for batch in batches]
    assert len({float(answers[0].sum()) for answers in expected.values()}) == len(SERVED)

    def serve(thread: int) -> None:
        try:
            for turn in range(requests):
                name, row = [*SERVED][(thread + turn) % len(SERVED)], turn % len(batches)
                with dk.using(model, name):
                    answer = kit.out(model, batches[row])
                if not torch.allclose(answer, expected[name][row], atol=1e-5):
                    wrong.append(f"{name} in turn {turn} of thread {thread}")
                done.append(name)
        except Exception as error:
            wrong.append(repr(error))

    together(*(lambda n=n: serve(n) for n in range(8)))  # type: ignore[misc]
    assert wrong == [] and len(done) == 8 * requests


@pytest.mark.parametrize("ways", [("lora", "par"), ("prefix", "bias", None), ("prompt", "lora")])
def test_switches_while_a_thread_runs(kit: SimpleNamespace, model: Any, ways: Any) -> None:
    batch, answers, errors = kit.make_batch(), list[Tensor](), list[Exception]()
    allowed = []
    for way in ways:
        dk.activate(model, way)
        allowed.append(kit.out(model, batch))
    dk.activate(model, ways[0])  # the hooks are there before the thread begins
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            try:
                answers.append(kit.out(model, batch))
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for turn in range(60):
            dk.activate(model, ways[turn % len(ways)])
            kit.out(model, batch)
    finally:
        done.set()
        thread.join()
    assert errors == [] and answers
    seen = {
        next((i for i, out in enumerate(allowed) if torch.allclose(answer, out, atol=1e-5)), None)
        for answer in answers
    }
    assert None not in seen and len(seen) > 1
    dk.activate(model, ways[0])
    torch.testing.assert_close(kit.out(model, batch), allowed[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_is_recomputed_with_what_its_pass_used(
    kit: SimpleNamespace, model: Any, reentrant: bool
) -> None:
    batch = kit.make_batch(labels=True)

    def gradients(checkpointed: bool) -> dict[str, Tensor]:
        trained = copy.deepcopy(model).train()
        dk.activate(trained, dk.Stack("lora", "par"))
        if checkpointed:
            trained.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with dk.using(trained, "lora"):
            loss = trained(**batch).loss
        with dk.using(trained, "par"):
            loss = loss + trained(**batch).loss
        loss.backward()
        return {n: p.grad for n, p in trained.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys() and any("delta_lora" in name for name in plain)
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_generate_inside(kit: SimpleNamespace) -> None:
    model = kit.make_model("llama", "causal")
    for name in ("lora", "par"):
        dk.attach(model, METHODS[name], name)
    kit.randomise_deltas(model)
    ids = torch.randint(5, 60, (2, 5))
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    alone = []
    for row, name in enumerate(["lora", None]):
        dk.activate(model, name)
        alone.append(model.generate(ids[row : row + 1], **settings))
    dk.activate(model, "par")
    with dk.using(model, dk.PerRow(["lora", None])):
        assert torch.equal(model.generate(ids, **settings), torch.cat(alone))
    assert "generate" not in vars(model)


def test_refused(kit: SimpleNamespace, model: Any) -> None:
    with pytest.raises(UnknownName, match="nothing"), dk.using(model, "nothing"):
        pass
    dk.activate(model, "lora")
    dk.merge(model)
    with pytest.raises(IncompatibleDeltas, match="unmerge"), dk.using(model, "par"):
        pass


def test_a_compiled_model_follows(kit: SimpleNamespace) -> None:
    torch.compiler.reset()
    model, batch = kit.make_model("bert", "classify", num_hidden_layers=1), kit.make_batch()
    for name in ("lora", "par"):
        dk.attach(model, METHODS[name], name)
    kit.randomise_deltas(model)
    expected = {}
    for way in (None, "lora", "par"):
        dk.activate(model, way)
        expected[way] = kit.out(model, batch)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for way in ("lora", None, "lora"):
        with dk.using(model, way):
            out = kit.out(compiled, batch)
        torch.testing.assert_close(out, expected[way], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kit.out(compiled, batch), expected["par"], atol=1e-5, rtol=1e-5)
    torch.compiler.reset()


def test_tasks_of_an_event_loop_use_their_own(kit: SimpleNamespace, model: Any) -> None:
    batch = kit.make_batch()
    expected = alone(kit, model, batch)

    async def one(way: Any) -> list[Tensor]:
        found = []
        with dk.using(model, way):
            for _ in range(2):
                await asyncio.sleep(0)  # the other tasks go on
                found.append(kit.out(model, batch))
            found.append(await asyncio.to_thread(kit.out, model, batch))
        return found

    async def all_ways() -> list[list[Tensor]]:
        return await asyncio.gather(*map(one, WAYS))

    for outs, wanted in zip(asyncio.run(all_ways()), expected, strict=True):
        for out in outs:
            torch.testing.assert_close(out, wanted)


def test_tasks_and_threads_of_a_compiled_model_use_their_own(kit: SimpleNamespace) -> None:
    torch.compiler.reset()
    model, batch = kit.make_model("bert", "classify", num_hidden_layers=1), kit.make_batch()
    for name in ("lora", "par", "bias"):
        dk.attach(model, METHODS[name], name)
    kit.randomise_deltas(model)
    ways = ("lora", "bias", None, "par")
    expected = {}
    for way in ways:
        dk.activate(model, way)
        expected[way] = kit.out(model, batch)
    compiled = torch.compile(model, backend="eager", fullgraph=True)

    async def one(way: str | None) -> None:
        with dk.using(model, way):
            for _ in range(2):
                await asyncio.sleep(0)  # the other tasks go on
                torch.testing.assert_close(kit.out(compiled, batch), expected[way])
                found = await asyncio.to_thread(kit.out, compiled, batch)
                torch.testing.assert_close(found, expected[way])

    async def all_ways() -> None:
        await asyncio.gather(*map(one, ways))

    asyncio.run(all_ways())
    torch.testing.assert_close(kit.out(compiled, batch), expected["par"])
    torch.compiler.reset()


def test_one_that_ends_before_a_later_one_leaves_it(kit: SimpleNamespace, model: Any) -> None:
    batch = kit.make_batch()
    dk.activate(model, "par")
    active = kit.out(model, batch)
    with dk.using(model, "lora"):
        expected = kit.out(model, batch)

    def served(name: str) -> Iterator[Tensor]:
        with dk.using(model, name):
            while True:
                yield kit.out(model, batch)

    first, second = served("prompt"), served("lora")
    next(first), next(second)
    first.close()
    torch.testing.assert_close(next(second), expected)
    second.close()
    torch.testing.assert_close(kit.out(model, batch), active)


def test_a_part_that_is_called_inside_a_pass_can_use_another(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("llama", "causal"), kit.make_batch()
    for name in ("a", "b"):
        dk.attach(model, dk.LoRA(rank=2), name)
    kit.randomise_deltas(model)

    def states() -> Tensor:
        with torch.no_grad():
            return model.model(**batch).last_hidden_state

    expected = {}
    for name in ("b", None):
        dk.activate(model, name)
        expected[name] = states()
    dk.activate(model, "a")
    found = {}

    def inside(*_: Any) -> None:
        for name in expected:
            with dk.using(model, name):
                found[name] = states()

    hook = model.lm_head.register_forward_hook(inside)
    kit.out(model, batch)
    hook.remove()
    for name, out in expected.items():
        torch.testing.assert_close(found[name], out)
