"""Tables of names: lazy entries, one decorator for all, and what plugins add."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit import _plugins
from deltakit._plugins import PluginWarning
from deltakit._registry import Registry
from deltakit.compare.run.engines import ENGINES
from deltakit.compare.stats.metrics import METRICS, CorpusMetric
from deltakit.compare.tasks.kinds import KINDS, Classification, register_kind
from deltakit.compare.tasks.task import TASKS
from deltakit.errors import InvalidConfig, NameInUse, UnknownName
from deltakit.interop.formats import FORMATS, Format
from deltakit.models.weights import WEIGHT_FORMATS, Floating

SHAPES = """
from test_registry_shapes import SHAPES

@SHAPES.register("{name}")
class {cls}:
    pass
"""


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[type]]:
    """A registry of its own, in a module that plugins can import."""
    monkeypatch.setattr(_plugins, "_LOADED", set())
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    home = type(sys)("test_registry_shapes")
    registry: Registry[type] = Registry("shape", group="methods")
    home.SHAPES = registry  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, home.__name__, home)
    yield registry
    for name in set(sys.modules) - before:
        if name.startswith("shapes_"):
            del sys.modules[name]


def announce(folder: Path, package: str, module: str, source: str) -> None:
    """An installed package whose `module` is announced among the plugins for methods."""
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[deltakit.methods]\n{module} = {module}\n")


def test_a_lazy_entry_is_imported_on_first_use(tmp_path: Path, shapes: Registry[type]) -> None:
    (tmp_path / "shapes_lazy.py").write_text(SHAPES.format(name="round", cls="Round"))
    shapes.add_lazy("round", "shapes_lazy:Round")
    assert list(shapes) == ["round"] and "shapes_lazy" not in sys.modules
    assert shapes.get("round").__name__ == "Round"
    assert shapes.get("round") is sys.modules["shapes_lazy"].Round


def test_a_lazy_entry_keeps_its_name(tmp_path: Path, shapes: Registry[type]) -> None:
    (tmp_path / "shapes_kept.py").write_text("class Round: pass\n")
    shapes.add_lazy("round", "shapes_kept:Round")
    shapes.add_lazy("round", "shapes_kept:Round")
    with pytest.raises(NameInUse, match="shape 'round' is already"):
        shapes.add("round", int)
    with pytest.raises(NameInUse, match="choose another name for 'elsewhere:Round'"):
        shapes.add_lazy("round", "elsewhere:Round")


def test_the_decorator_names_the_class_and_refuses_a_second_one(shapes: Registry[type]) -> None:
    @shapes.register("flat")
    class Flat:
        name = ""

    assert Flat.name == "flat" and shapes.get("flat") is Flat
    with pytest.raises(NameInUse, match="shape 'flat' is already"):

        @shapes.register("flat")
        class Other:
            name = "untouched"

    with pytest.raises(InvalidConfig, match=r'@register_shape\("mine"\)'):
        shapes.register(Flat)  # type: ignore[arg-type]


def defined(home: str, name: str = "Flat") -> type:
    """A class as a cell of a notebook defines it, or as a module does."""
    return type(name, (), {"__module__": home, "name": ""})


def test_a_cell_that_is_run_again_replaces_what_it_registered(shapes: Registry[type]) -> None:
    first, second = defined("__main__"), defined("__main__")
    shapes.register("flat")(first)
    shapes.register("flat")(second)
    assert shapes.get("flat") is second
    with pytest.raises(NameInUse, match="shape 'flat' is already"):
        shapes.register("flat")(defined("__main__", "Other"))
    with pytest.raises(NameInUse, match="shape 'flat' is already"):
        shapes.register("flat")(defined("a_module"))
    assert shapes.get("flat") is second


def test_a_module_does_not_replace_what_it_registered(shapes: Registry[type]) -> None:
    shapes.register("flat")(defined("a_module"))
    with pytest.raises(NameInUse, match="shape 'flat' is already"):
        shapes.register("flat")(defined("a_module"))


CELL = """
import dataclasses

@dk.register_method("noted", rank={rank})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noted(dk.LoRA):
    pass

@dk.register_metric("noted_score", kinds=("classification",))
def noted_score(labels, predicted):
    return {rank}.0

@dk.register_kind("noted_kind")
class NotedKind(Classification):
    pass
"""


@pytest.mark.usefixtures("forgets_imports")
def test_a_notebook_defines_a_method_a_metric_and_a_kind_again() -> None:
    for rank in (1, 2):
        cell = {"__name__": "__main__", "dk": dk, "Classification": Classification}
        exec(CELL.format(rank=rank), cell)
        assert dk.parse_method("noted") == cell["Noted"](rank=rank)
        assert KINDS.get("noted_kind") is cell["NotedKind"]
        metric = METRICS.get("noted_score")
        assert isinstance(metric, CorpusMetric) and metric.compute is cell["noted_score"]
    with pytest.raises(NameInUse, match="method 'lora' is already"):
        exec(CELL.format(rank=1).replace('"noted"', '"lora"'), cell)


def test_an_instance_is_made_of_a_class(shapes: Registry[object]) -> None:
    @shapes.register_instance("square", name="square", side=2)
    @dataclass
    class Square:
        name: str
        side: int

    assert shapes.get("square") == Square(name="square", side=2)


def test_a_name_is_checked_without_loading_the_thing(
    tmp_path: Path, shapes: Registry[type]
) -> None:
    (tmp_path / "shapes_unread.py").write_text("raise AssertionError\n")
    shapes.add_lazy("round", "shapes_unread:Round")
    shapes.check_known("round")
    with pytest.raises(UnknownName, match="unknown shape 'rond'. Did you mean 'round'"):
        shapes.check_known("rond")


def test_formats_and_weights_of_a_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (FORMATS, WEIGHT_FORMATS):
        monkeypatch.setattr(registry, "_things", dict(registry._things))

    @dk.register_format("mine")
    class Mine(Format):
        title, markers = "mine", "mine.json"

        def recognises(self, folder: Path) -> bool:
            return (folder / "mine.json").is_file()

        def read(self, folder: Path, model: Any) -> Any: ...

        def write(self, folder: Path, checkpoint: Any, model: Any) -> None: ...

    assert isinstance(FORMATS.get("mine"), Mine)
    half = dk.register_weight_format("fp16", compute_dtype="float16")(Floating)
    assert half is Floating and WEIGHT_FORMATS.get("fp16").dtype is torch.float16
    with pytest.raises(NameInUse, match="base 'fp32' is already"):
        dk.register_weight_format("fp32", compute_dtype="float16")(Floating)


def test_plugins_are_found_when_a_name_is_not_known(tmp_path: Path, shapes: Registry[type]) -> None:
    announce(tmp_path, "good-shapes", "shapes_good", SHAPES.format(name="good", cls="Good"))
    shapes.add("built-in", int)
    assert shapes.get("built-in") is int and "shapes_good" not in sys.modules
    assert shapes.get("good").__name__ == "Good"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_module_anywhere\n", "ModuleNotFoundError: No module named 'no_such"),
        ("def broken(:\n", "SyntaxError: invalid syntax"),
        (SHAPES.format(name="built-in", cls="Thief"), "NameInUse: shape 'built-in' is already"),
    ],
)
def test_a_broken_plugin_is_a_warning_that_names_its_package(
    tmp_path: Path, shapes: Registry[type], source: str, said: str
) -> None:
    announce(tmp_path, "bad-shapes", "shapes_bad", source)
    announce(tmp_path, "good-shapes", "shapes_good", SHAPES.format(name="good", cls="Good"))
    shapes.add("built-in", int)
    with pytest.warns(PluginWarning, match=f"package 'bad-shapes'.*{said}") as caught:
        assert list(shapes) == ["built-in", "good"]
    assert len(caught) == 1
    assert shapes.get("good").__name__ == "Good"  # and warns no more
    with pytest.raises(UnknownName, match="unknown shape 'goood'. Did you mean 'good'"):
        shapes.get("goood")


def test_a_plugin_may_look_names_up_while_it_is_imported(
    tmp_path: Path, shapes: Registry[type]
) -> None:
    source = SHAPES.format(name="good", cls="Good") + "assert list(SHAPES) == ['good']\n"
    announce(tmp_path, "curious-shapes", "shapes_curious", source)
    assert list(shapes) == ["good"]


def test_every_class_is_known_by_its_own_name() -> None:
    for registry in (KINDS, TASKS, ENGINES):
        assert [thing.name for _, thing in registry.items()] == list(registry)  # type: ignore[attr-defined]
        assert len(registry) == len(list(registry)) > 2


def test_a_kind_that_is_not_registered_by_name() -> None:
    with pytest.raises(InvalidConfig, match=r'@register_kind\("mine"\)'):
        register_kind(KINDS.get("causal"))  # type: ignore[arg-type]
    assert "mine" not in KINDS
