"""The laws of states: what a model with deltas holds, and who reads and writes it."""

import contextlib
import copy
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.errors import CheckpointError, DeltakitError, IncompatibleDeltas
from deltakit.inject.attachments import need_attachments
from deltakit.interop.formats import FORMATS
from deltakit.testing.case import PAIR, Case, NotApplicable, close, equal, run, trained
from deltakit.testing.probes import randomise_all, reseed

Inputs = Mapping[str, Tensor]


def check_threads(case: Case) -> None:
    """Passes in threads answer as they do alone, with deltas that each thread uses for itself."""
    model, row = case.random(), {key: value[:1] for key, value in case.inputs.items()}

    def plain() -> Tensor:
        with dk.using(model, None):
            return run(model, case.inputs)

    calls = (lambda: run(model, case.inputs), lambda: run(model, row), plain)
    alone = [call() for call in calls]
    for found, expected, what in zip(
        _in_step(model, calls), alone, ("a batch", "a row", "the plain base"), strict=True
    ):
        close(found, expected, f"in threads: {what}")


def _in_step(model: Any, calls: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
    """The results of calls in threads, which enter each module of the model at the same time."""
    barrier = threading.Barrier(len(calls))

    def wait(*_: Any) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(timeout=30)

    def work(call: Callable[[], Tensor]) -> Tensor:
        try:
            return call()
        finally:
            barrier.abort()  # the others need not wait for one that has ended

    hooks = [module.register_forward_pre_hook(wait) for module in _modules(model)]
    try:
        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(work, calls))
    finally:
        for hook in hooks:
            hook.remove()


def _modules(model: Any) -> Iterator[nn.Module]:
    """The modules of the plain model."""
    for name, module in model.named_modules():
        if name.partition(".")[0] != "deltakit":
            yield module


def check_state_dict(case: Case) -> None:
    """A state dict holds all deltas, those that are not active too."""
    model, other = case.pair(), case.make()
    case.attach(other, *PAIR, seed=1)
    expected = _outputs(model, case.inputs)
    dk.activate(model, PAIR[0])
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    for name, found in _outputs(other, case.inputs).items():
        equal(found, expected[name], f"from a state dict: {name!r}")


def _outputs(model: Any, inputs: Inputs) -> dict[str | None, Tensor]:
    """The outputs with each delta of `PAIR`, and without."""
    found = {}
    for name in (*PAIR, None):
        dk.activate(model, name)
        found[name] = run(model, inputs)
    return found


def check_writes(case: Case) -> None:
    """An evaluation follows every write to a parameter, ``.data`` included, row by row too."""
    case.trains()
    rows = len(next(iter(case.inputs.values())))
    row_by_row = dk.PerRow(["default", *(None for _ in range(rows - 1))])
    _writes_are_followed(case, "default", _WRITES)
    with contextlib.suppress(IncompatibleDeltas):
        _writes_are_followed(case, row_by_row, _WRITES[1:])


def _writes_are_followed(
    case: Case, what: str | dk.PerRow, writes: Sequence[Callable[[nn.Parameter, Tensor], None]]
) -> None:
    expected = case.random()
    dk.activate(expected, what)
    _write_all(expected, _in_place)  # before the first evaluation
    wanted = run(expected, case.inputs)
    for write in writes:
        model = case.random()
        dk.activate(model, what)
        run(model, case.inputs)  # what is kept in evaluation is there
        _write_all(model, write)
        found = run(model, case.inputs)
        equal(found, wanted, f"after a write ({write.__name__.strip('_')}), with {what!r}")


def _write_all(model: Any, write: Callable[[nn.Parameter, Tensor], None]) -> None:
    for parameter in _parameters(model):
        write(parameter, parameter.detach() * 1.5 + 0.1)


def _parameters(model: Any) -> list[nn.Parameter]:
    attached = need_attachments(model).get("default")
    return [*attached.parameters(), *attached.own.values()]


@torch.no_grad()
def _in_place(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.copy_(value)


def _in_data(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.data.copy_(value)


def _new_data(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.data = value


_WRITES = (_in_place, _in_data, _new_data)


def check_compiled_first(case: Case) -> None:
    """A model that is compiled first follows what is attached and activated later.

    Takes seconds.
    """
    model = case.make().requires_grad_(False)  # so that no flag changes with a delta
    torch.compiler.reset()
    try:
        compiled = torch.compile(model, backend="eager")
        close(run(compiled, case.inputs), case.base, "compiled, nothing attached")
        case.attach(model)
        randomise_all(model)
        expected = run(model, case.inputs)
        close(run(compiled, case.inputs), expected, "compiled, then attached")
        dk.activate(model, None)
        close(run(compiled, case.inputs), case.base, "compiled, nothing active")
        dk.activate(model, "default")
        close(run(compiled, case.inputs), expected, "compiled, active again")
    except DeltakitError as error:
        raise NotApplicable(f"refused: {error}") from None
    finally:
        torch.compiler.reset()


def check_fresh_values(case: Case) -> None:
    """Values that no checkpoint holds are trained and saved, wherever in the model they are."""
    model, other = _loaded(case, 0), _loaded(case, 1)
    fresh = _left_out(case.make())
    try:
        case.attach(model)
    except DeltakitError as error:
        raise NotApplicable(f"refused: {error}") from None
    frozen = fresh - trained_names(model)
    assert not frozen, f"no checkpoint holds them, and they are frozen: {sorted(frozen)}"
    randomise_all(model)
    with tempfile.TemporaryDirectory() as folder:
        dk.save(model, folder)
        dk.load(other, folder)
    equal(run(other, case.inputs), run(model, case.inputs), "on another load of the checkpoint")


def trained_names(model: Any) -> set[str]:
    """The trained parameters, by the base's names where they have one."""
    own = need_attachments(model).get("default").own
    names = {id(parameter): name for name, parameter in own.items()}
    return {names.get(id(parameter), name) for name, parameter in trained(model).items()}


def _left_out(model: Any) -> set[str]:
    """Parameters that are left out of a checkpoint: the last, and one in the middle."""
    names = [name for name, _ in model.named_parameters()]
    return {names[len(names) // 2], names[-1]}


def _loaded(case: Case, seed: int) -> Any:
    """The model, loaded from a checkpoint that lacks some parameters."""
    from transformers import PreTrainedModel

    plain = case.make()
    if not isinstance(plain, PreTrainedModel):
        raise NotApplicable("it is not a model of transformers'")
    values = {k: v for k, v in plain.state_dict().items() if k not in _left_out(plain)}
    reseed(seed)
    with _quiet_loading():
        loaded = type(plain).from_pretrained(
            None, config=copy.deepcopy(plain.config), state_dict=values
        )
    return loaded.eval()


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Inside, transformers does not report what a checkpoint lacks."""
    from transformers import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def check_labels(case: Case) -> None:
    """The names of classes travel with a head, in each format that can hold the delta."""
    model = case.make()
    given = [f"class {index}" for index in range(model.config.num_labels)]
    _name_classes(model, given)
    _attach_a_head(case, model)
    for name in FORMATS:
        other = case.make()
        _name_classes(other, given[::-1])
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the names are in another order
            try:
                dk.save(model, folder, format=name)
            except CheckpointError:
                continue
            dk.load(other, folder, "default")
        assert _classes(other) == given, f"{name}: the classes of the head are {_classes(other)}"
        dk.activate(other, None)
        assert _classes(other) == given[::-1], f"{name}: the base's classes are {_classes(other)}"


def _attach_a_head(case: Case, model: Any) -> None:
    try:
        case.attach(model)
    except DeltakitError as error:
        raise NotApplicable(f"refused: {error}") from None
    if not need_attachments(model).get("default").head:
        raise NotApplicable("the model has no task head")


def _name_classes(model: Any, names: Sequence[str]) -> None:
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}


def _classes(model: Any) -> list[str]:
    return [model.config.id2label[index] for index in range(model.config.num_labels)]


STATE_LAWS = (
    check_threads,
    check_state_dict,
    check_writes,
    check_compiled_first,
    check_fresh_values,
    check_labels,
)
"""The laws of this file."""
