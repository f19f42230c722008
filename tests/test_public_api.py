"""What users import stays what it is."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import deltakit as dk

PUBLIC = [
    "IA3", "MAM", "AdapterDrop", "AdapterFusion", "Attending", "AuxiliaryLoss", "BitFit", "Choice",
    "Combiner", "Compacter", "Composition", "CustomSum", "DataPass", "DataStart", "Delta",
    "DeltakitError", "DoRA", "ExtraPositions", "FFNUnits", "Family", "FullFineTuning", "FusedAdd",
    "Gated", "Handle", "HeadOnly", "HyperFormer", "InitialOutput", "Insertion", "InvertibleAdapter",
    "LayerStack", "LearnedMean", "LoRA", "LoReFT", "Location", "Mean", "MergeReport", "Mergeable",
    "MergesAsFFN", "Method", "MethodWrapper", "Mixture", "MoA", "NormTuning", "NotMergeable",
    "Paper", "ParallelAdapter", "PartialFineTuning", "PerRow", "Placement", "PrefixTuning",
    "PromptTuning", "Reads", "ReadsBlock", "ReadsEnd", "Regularised", "Reparametrised", "Results",
    "RewritesWeight", "Scaling", "SequentialAdapter", "Site", "Sparse", "SparselyActive", "Stack",
    "StartsFromData", "StepCallback", "Summable", "TaskConditioned", "TrainingStep", "TrunkCache",
    "VeRA", "__version__", "activate", "attach", "choose", "compare", "convert", "deploy", "detach",
    "disabled", "drop", "fusion_attention", "infer_family", "kept_trunk", "load", "load_base",
    "merge", "parse_method", "prepare", "prune", "register_family", "register_format",
    "register_kind", "register_method", "register_metric", "register_task",
    "register_weight_format", "resolve", "save", "step_callbacks", "summary", "task_arithmetic",
    "unmerge", "using", "using_tasks",
]  # fmt: skip
PACKAGE = Path(dk.__file__).parent


def test_names() -> None:
    assert dk.__all__ == PUBLIC
    assert dir(dk) == sorted(PUBLIC)


def test_every_name_is_there_and_has_a_docstring() -> None:
    for name in PUBLIC:
        thing = getattr(dk, name)
        assert name == "__version__" or inspect.getdoc(thing), name


def test_type_checkers_see_the_same_names() -> None:
    import ast

    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deltakit.")
        for alias in node.names
    }
    assert typed == set(PUBLIC) - {"__version__"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Additive", "CustomSum"),
        ("OnePass", "FusedAdd"),
        ("Positions", "ExtraPositions"),
        ("Start", "InitialOutput"),
        ("Units", "FFNUnits"),
        ("Widening", "MergesAsFFN"),
    ],
)
def test_old_names_are_kept_with_a_dated_warning(old: str, new: str) -> None:
    with pytest.warns(
        DeprecationWarning, match=f"deltakit.{old} was renamed .*{new} on 2026-11-26"
    ):
        assert getattr(dk, old) is getattr(dk, new)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'deltakit' has no attribute 'Lora'"):
        dk.Lora  # noqa: B018


def test_no_name_is_a_subpackage() -> None:
    inside = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert inside & set(PUBLIC) == {"choose", "compare"}  # packages that can be called


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, deltakit; "
        "heavy = {'torch', 'transformers', 'pandas', 'datasets', 'matplotlib', 'numpy'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_api_does_not_import_transformers() -> None:
    code = (
        "import sys, deltakit as dk; [getattr(dk, name) for name in dk.__all__]; "
        "sys.exit('transformers' if 'transformers' in sys.modules else 0)"
    )
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
