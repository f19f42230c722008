"""The grammar of methods, their trip through JSON, the registry and its messages."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import deltakit as dk
from deltakit._registry import Registry
from deltakit.core.method import (
    CLASSES,
    METHODS,
    Entry,
    Method,
    Sum,
    method_from_dict,
    method_to_dict,
    register_method,
)
from deltakit.core.provider import PROVIDERS, ExternalMethod, register_provider, settings_of
from deltakit.core.spec import format_method, parse_method, split_outside_brackets
from deltakit.errors import DeltakitError, InvalidConfig, NameInUse, UnknownName

NAMES = st.text("abcdefghij_-0123456789", min_size=1, max_size=6)
POSITIVE = st.floats(0.01, 1e4, allow_nan=False) | st.integers(1, 10_000)
FRACTION = st.floats(0, 0.99)

LORAS = st.builds(
    dk.LoRA,
    rank=st.integers(1, 512),
    alpha=POSITIVE,
    targets=st.lists(
        st.sampled_from(["q", "k", "v", "attn.o", "ffn.up", "down", "gate"]), min_size=1, max_size=4
    ).map(tuple)
    | st.just(("all",)),
    rslora=st.booleans(),
    dropout=FRACTION,
    initialisation=st.sampled_from(["gaussian", "kaiming"]),
)
ADAPTERS = st.builds(
    dk.SequentialAdapter,
    placement=st.sampled_from(["houlsby", "pfeiffer"]),
    reduction=POSITIVE,
    bottleneck=st.none() | st.integers(1, 512),
    activation=st.none() | st.sampled_from(["relu", "gelu", "swish", "identity"]),
    initialisation=st.none() | st.sampled_from(["truncated_normal", "normal", "lora"]),
    scale=POSITIVE,
    dropout=FRACTION,
    train_norms=st.booleans(),
)
SIMPLE = LORAS | ADAPTERS | st.builds(dk.HeadOnly) | st.builds(dk.FullFineTuning)
SUMS = st.lists(SIMPLE, min_size=2, max_size=3).map(lambda parts: Sum(parts=tuple(parts)))
FUSIONS = st.builds(
    dk.AdapterFusion,
    names=st.lists(NAMES, unique=True, max_size=4),
    member=SIMPLE | SUMS,
    value=st.booleans(),
    regularisation=st.floats(0, 10),
    dropout=FRACTION,
)
METHODS_OF_ANY_KIND = SIMPLE | SUMS | FUSIONS


def spelled(method: Method) -> str:
    """The method as a spec, every field given."""
    if isinstance(method, Sum):
        return "+".join(spelled(part) for part in method.parts)
    name = next(n for n in METHODS if METHODS.get(n).cls is type(method))
    fields = method_to_dict(method)
    pairs = [f"{k}={_value(getattr(method, k))}" for k in fields if k != "class"]
    return f"{name}[{', '.join(pair for pair in pairs if not pair.endswith('='))}]"


def _value(value: Any) -> str:
    if isinstance(value, Method):
        return spelled(value)
    if isinstance(value, tuple):
        return "/".join(value)
    return str(value)


@given(METHODS_OF_ANY_KIND)
def test_round_trip_through_json(method: Method) -> None:
    text = json.dumps(method_to_dict(method), allow_nan=False)
    assert method_from_dict(json.loads(text)) == method


@given(SIMPLE | SUMS)
def test_round_trip_through_the_grammar(method: Method) -> None:
    assert parse_method(spelled(method)) == method


@given(st.lists(st.text("ab[]+,=/ ", max_size=12), max_size=3).map("+".join))
def test_any_text_is_a_method_or_an_error_of_ours(text: str) -> None:
    with pytest.raises((InvalidConfig, UnknownName)) as caught:
        parse_method(text)
    assert "\n" not in str(caught.value)


@given(st.sampled_from(["lora", "adapter", "fusion", "head"]), st.data())
def test_any_value_is_taken_or_refused_with_an_error_of_ours(name: str, data: Any) -> None:
    fields = [f for f in method_to_dict(parse_method(name)) if f != "class"] or ["rank"]
    key = data.draw(st.sampled_from(fields))
    value = data.draw(st.sampled_from(["1", "0.5", "-1", "true", "none", "q", "q/v", "nan", "1/2"]))
    try:
        method = parse_method(f"{name}[{key}={value}]")
    except DeltakitError as error:
        assert "\n" not in str(error)
    else:
        assert method_from_dict(json.loads(json.dumps(method_to_dict(method)))) == method


@pytest.mark.parametrize(
    ("spec", "method"),
    [
        ("lora", dk.LoRA()),
        ("lora[]", dk.LoRA()),
        (" lora [ rank = 16 ] ", dk.LoRA(rank=16)),
        ("lora[rank=16,alpha=0.5]", dk.LoRA(rank=16, alpha=0.5)),
        ("lora[targets=q/v/ffn.up]", dk.LoRA(targets=("q", "v", "ffn.up"))),
        ("lora[targets=all]", dk.LoRA(targets=("all",))),
        ("lora[rslora=true]", dk.LoRA(rslora=True)),
        ("lora[rslora=False]", dk.LoRA(rslora=False)),
        ("adapter[bottleneck=none]", dk.SequentialAdapter()),
        ("houlsby[reduction=8]", dk.SequentialAdapter(placement="houlsby", reduction=8)),
        ("lora + houlsby", dk.LoRA() + dk.SequentialAdapter(placement="houlsby")),
        (
            "fusion[member=lora+pfeiffer]",
            dk.AdapterFusion(member=dk.LoRA() + dk.SequentialAdapter()),
        ),
    ],
)
def test_grammar(spec: str, method: Method) -> None:
    assert parse_method(spec) == method


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("", InvalidConfig, r"cannot read the method ''\. Write name\[key=value,\.\.\.\]"),
        ("lora+", InvalidConfig, r"cannot read the method 'lora\+'"),
        ("[rank=8]", InvalidConfig, r"cannot read the method '\[rank=8\]'"),
        ("lora[rank=8]x", InvalidConfig, r"cannot read the method 'lora\[rank=8\]x'"),
        ("lora[rank=8", InvalidConfig, r"brackets in 'lora\[rank=8' do not match"),
        ("lora]rank=8[", InvalidConfig, r"brackets in .* do not match"),
        ("lora[rank]", InvalidConfig, r"cannot read 'rank' in 'lora\[rank\]'\. Write key=value"),
        ("lora[rank=]", InvalidConfig, r"cannot read 'rank=' in"),
        ("lora[=8]", InvalidConfig, r"cannot read '=8' in"),
        ("lora[rank=8,]", InvalidConfig, r"cannot read '' in"),
        ("lora[rank=8,rank=9]", InvalidConfig, r"rank.*twice"),
        ("lora[rnak=8]", InvalidConfig, r"LoRA has no setting 'rnak'.*It has: .*rank"),
        (
            "lroa",
            UnknownName,
            r"unknown method 'lroa'\. Did you mean 'lora' or '\w+'\? Known: .*lora",
        ),
        ("xyzzy", UnknownName, r"unknown method 'xyzzy'\. Known: .*`deltakit methods`"),
        ("lora[rank=many]", InvalidConfig, r"LoRA\(rank='many'\)"),
        ("houlsby[reduction=-2]", InvalidConfig, r"SequentialAdapter\(reduction=-2\)"),
        ("fusion[member=hulsby]", UnknownName, r"Did you mean 'houlsby'"),
    ],
)
def test_messages(spec: str, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        parse_method(spec)
    assert "\n" not in str(caught.value)


def test_near_setting_is_suggested() -> None:
    with pytest.raises(InvalidConfig, match="Did you mean 'rank'"):
        parse_method("lora[rnak=8]")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        ("a[x=1,y=2],b", ["a[x=1,y=2]", "b"]),
        ("a[b[c,d],e],f", ["a[b[c,d],e]", "f"]),
        ("", [""]),
        (",", ["", ""]),
    ],
)
def test_split_outside_brackets(text: str, parts: list[str]) -> None:
    assert split_outside_brackets(text, ",") == parts


@given(st.lists(st.text("ab[]", max_size=5).filter(lambda t: t in ("", "a", "ab", "[]", "a[b]"))))
def test_split_is_the_inverse_of_join(parts: list[str]) -> None:
    assert split_outside_brackets(",".join(parts), ",") == (parts or [""])


# ---------------------------------------------------------------------------------- saved methods


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ({}, InvalidConfig, "needs its class name under 'class'"),
        ({"class": "LoRa"}, UnknownName, "unknown method class 'LoRa'.*Did you mean 'LoRA'"),
        ({"class": "LoRA", "r": 8}, InvalidConfig, "LoRA has no setting 'r'"),
        ({"class": "LoRA", "rank": -1}, InvalidConfig, r"rank=-1"),
    ],
)
def test_bad_saved_methods(data: dict[str, Any], kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        method_from_dict(data)


# ------------------------------------------------------------------------------- other libraries


@dataclass(frozen=True, kw_only=True)
class Toy(ExternalMethod):
    """What another library would bring, without one."""

    usage: ClassVar[str] = "Write toy:thing[size=2]."
    paper = dk.LoRA.paper
    learning_rate: ClassVar[float] = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", settings_of(self.settings))


@pytest.fixture
def toy() -> Iterator[type[Toy]]:
    yield register_provider("toy")(Toy)
    PROVIDERS.remove("toy")
    CLASSES.remove("Toy")


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        ("toy:thing", ()),
        ("toy:thing[]", ()),
        (" toy : thing [ size = 2 ] ", (("size", 2),)),
        ("toy:thing[b=x/y,a=none]", (("a", None), ("b", ("x", "y")))),
        ("toy:thing[settings=1,name=2]", (("name", 2), ("settings", 1))),
    ],
)
def test_a_method_of_another_library(
    toy: type[Toy], spec: str, settings: tuple[tuple[str, Any], ...]
) -> None:
    method = parse_method(spec)
    assert method == toy(name="thing", settings=settings)
    assert parse_method(format_method(method)) == method
    assert method_from_dict(json.loads(json.dumps(method_to_dict(method)))) == method


def test_a_method_of_another_library_beside_and_inside_ours(toy: type[Toy]) -> None:
    both = parse_method("lora+toy:thing[size=2]")
    assert both == dk.LoRA() + toy(name="thing", settings=(("size", 2),))
    inside = parse_method("fusion[member=toy:thing[size=2]]")
    assert isinstance(inside, dk.AdapterFusion) and format_method(inside).count("toy:thing") == 1
    with pytest.raises(InvalidConfig, match="toy:thing is put on a model by toy, not by deltakit"):
        both.placements()


@pytest.mark.parametrize("spec", ["tyo:thing", ":thing", "toy:thing[size]", "toy:thing[a=1,a=2]"])
def test_a_provider_that_is_not_there_or_a_malformed_name(toy: type[Toy], spec: str) -> None:
    with pytest.raises((UnknownName, InvalidConfig)) as caught:
        parse_method(spec)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------- registry


def test_registry_refuses_another_thing_of_the_name() -> None:
    registry: Registry[int] = Registry("colour", hint="Paint one.")
    registry.add("red", 1)
    registry.add("red", 1)
    with pytest.raises(NameInUse, match="colour 'red' is already 1; choose another name for 2"):
        registry.add("red", 2)
    registry.add("blue", 2)
    assert list(registry) == ["blue", "red"] and registry.get("red") == 1 and "red" in registry
    with pytest.raises(UnknownName, match="unknown colour 'rde'. Did you mean 'red'.*Paint one."):
        registry.get("rde")
    registry.remove("red")
    assert "red" not in registry
    with pytest.raises(UnknownName, match="Known: blue"):
        registry.remove("red")
    with pytest.raises(KeyError):
        registry.get("red")


def test_method_names_do_not_collide() -> None:
    with pytest.raises(NameInUse, match="method 'lora' is already"):
        register_method("lora")(dk.HeadOnly)
    assert METHODS.get("lora") == Entry(dk.LoRA, ())


def test_a_refused_class_leaves_no_short_name() -> None:
    namesake = type("LoRA", (dk.HeadOnly,), {})
    try:
        with pytest.raises(NameInUse, match="method class 'LoRA' is already"):
            register_method("another-lora")(namesake)
        assert "another-lora" not in METHODS
    finally:
        if "another-lora" in METHODS:
            METHODS.remove("another-lora")
    assert CLASSES.get("LoRA") is dk.LoRA


def test_every_registered_method_is_complete() -> None:
    for name in METHODS:
        method = METHODS.get(name).build()
        assert 0 < method.learning_rate < 1
        assert method.paper.key in method.paper.bibtex()
        assert method.paper.bibtex().count("{") == method.paper.bibtex().count("}")
        assert CLASSES.get(type(method).__name__) is type(method)


def test_a_sum_is_flat_and_has_the_smallest_learning_rate() -> None:
    total = dk.LoRA() + dk.HeadOnly() + dk.FullFineTuning()
    assert total == Sum(parts=(dk.LoRA(), dk.HeadOnly(), dk.FullFineTuning()))
    assert total.learning_rate == dk.FullFineTuning.learning_rate
    assert total.paper.arxiv == "2110.04366"
    with pytest.raises(TypeError):
        dk.LoRA() + "houlsby"  # type: ignore[operator]


@pytest.mark.parametrize(
    ("spec", "written"),
    [
        ("adapter", "adapter"),
        ("pfeiffer", "adapter"),
        ("houlsby[reduction=8]", "houlsby[reduction=8]"),
        ("lora[targets=q/k/v,rank=8]", "lora[targets=q/k/v]"),
        ("mam[prefix_bottleneck=none,bias=false]", "mam[prefix_bottleneck=none,bias=false]"),
        ("adapterdrop[method=houlsby,first=1]", "adapterdrop[method=houlsby,first=1]"),
        ("prefix[length=10]+lora[rank=4]", "prefix[length=10]+lora[rank=4]"),
    ],
)
def test_a_method_written_down_is_read_again(spec: str, written: str) -> None:
    method = dk.parse_method(spec)
    assert format_method(method) == written
    assert dk.parse_method(written) == method
