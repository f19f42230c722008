"""The pytest classes, as somebody else uses them: with a method and with a family of one's own."""

import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import Tensor

import deltakit as dk
from deltakit.testing import (
    MODEL_TYPES,
    FamilyConformance,
    MethodConformance,
    checks,
    fill,
    make_inputs,
    suite,
)
from deltakit.testing.matrix import subjects


class Slow:
    """Laws that take a process, or seconds of tracing; the rest is held in each run."""

    @pytest.mark.slow
    def test_loads_elsewhere(self) -> None:
        super().test_loads_elsewhere()  # type: ignore[misc]

    @pytest.mark.slow
    def test_compiled_first(self, case: Any) -> None:
        super().test_compiled_first(case)  # type: ignore[misc]


class TestMethod(Slow, MethodConformance):
    method = dk.LoRA(rank=2, targets=("k",))
    model_types = ("gpt2", "vit")


class TestFamily(Slow, FamilyConformance):
    methods: ClassVar[Mapping[str, dk.Method]] = {
        "houlsby": dk.parse_method("houlsby[bottleneck=3]"),
        "prompt": dk.parse_method("prompt[length=2]"),
    }

    def model(self) -> Any:
        from transformers import ViTConfig, ViTForImageClassification

        config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=4,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model = ViTForImageClassification(config)
        fill(model)
        return model

    def inputs(self) -> Mapping[str, Tensor]:
        return make_inputs("vit")


def test_by_default_a_method_is_tested_on_all_families_and_a_family_with_all_methods() -> None:
    assert MethodConformance.model_types == MODEL_TYPES
    assert {*FamilyConformance.methods} == {*subjects()}


def test_there_is_a_test_for_each_law() -> None:
    tests = {name.removeprefix("test_") for name in vars(suite.Conformance)}
    assert {law.__name__.removeprefix("check_") for law in checks.LAWS} < tests
    assert "loads_elsewhere" in tests


def test_every_registered_method_is_under_test() -> None:
    builtin = [name for name in dk.core.method.METHODS if name != "adapter"]  # that is pfeiffer
    assert {*builtin} <= {*subjects()}


def test_a_broken_law_is_a_failure_and_one_that_says_nothing_is_skipped() -> None:
    def fails(case: Any) -> None:
        raise AssertionError("the law is broken")

    case = TestMethod().get("gpt2")
    with pytest.raises(AssertionError, match="the law is broken"):
        suite._hold(fails, case)
    with pytest.raises(pytest.skip.Exception, match="it is not refused"):
        suite._hold(checks.check_refused_cleanly, case)


def test_without_pytest_the_message_says_what_to_install() -> None:
    code = "import sys; sys.modules['pytest'] = None; from deltakit.testing import LAWS, Case; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code} from deltakit.testing import MethodConformance"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(dk.__file__).parents[1]), "PATH": ""},
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("deltakit.errors.MissingExtra: MethodConformance and FamilyConformance")
    assert "pip install 'deltakit-peft[testing]'" in last


def test_unknown_name() -> None:
    import deltakit.testing

    with pytest.raises(AttributeError, match="module 'deltakit.testing' has no attribute 'Law'"):
        deltakit.testing.Law  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    import deltakit.testing

    tree = ast.parse(Path(deltakit.testing.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deltakit.")
        for alias in node.names
    }
    assert typed == {*deltakit.testing.__all__}
    assert all(getattr(deltakit.testing, name) for name in typed)
