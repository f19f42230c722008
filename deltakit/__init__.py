"""deltakit: parameter-efficient fine-tuning methods behind one interface, and their comparison.

::

    import deltakit as dk

    dk.attach(model, dk.LoRA(rank=8, alpha=16))
    ...                                    # train with any loop
    dk.save(model, "my-delta")
    dk.detach(model)                       # the model as it was, bit for bit

Names are imported on first use, so that importing the package costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from deltakit.arch.family import Family, LayerStack, Location, register_family
    from deltakit.arch.infer import infer_family
    from deltakit.arch.resolve import resolve
    from deltakit.choose.api import choose
    from deltakit.choose.choice import Choice
    from deltakit.compare.api import compare
    from deltakit.compare.results import Results
    from deltakit.compare.stats.metrics import register_metric
    from deltakit.compare.tasks.kinds import register_kind
    from deltakit.compare.tasks.task import register_task
    from deltakit.core.composition import Composition, Mean, PerRow, Stack
    from deltakit.core.data_start import DataPass, DataStart, StartsFromData
    from deltakit.core.delta import (
        Attending,
        AuxiliaryLoss,
        Combiner,
        CustomSum,
        Delta,
        ExtraPositions,
        FFNUnits,
        FusedAdd,
        Mergeable,
        MergesAsFFN,
        Reads,
        ReadsBlock,
        ReadsEnd,
        Regularised,
        Reparametrised,
        RewritesWeight,
        Scaling,
        SparselyActive,
        TaskConditioned,
    )
    from deltakit.core.method import (
        InitialOutput,
        Method,
        MethodWrapper,
        Paper,
        Placement,
        Summable,
        register_method,
    )
    from deltakit.core.site import Handle, Insertion, Site
    from deltakit.core.spec import parse_method
    from deltakit.core.steps import StepCallback, TrainingStep
    from deltakit.errors import DeltakitError, NotMergeable
    from deltakit.inject.arithmetic import task_arithmetic
    from deltakit.inject.attach import activate, attach, detach, disabled, using
    from deltakit.inject.change import deploy, drop, prune
    from deltakit.inject.merge import merge, unmerge
    from deltakit.inject.merge_report import MergeReport
    from deltakit.inject.observe import fusion_attention
    from deltakit.inject.prepare import prepare
    from deltakit.inject.steps import step_callbacks
    from deltakit.inject.summary import summary
    from deltakit.inject.tasks import using_tasks
    from deltakit.inject.trunk import kept_trunk
    from deltakit.interop.convert import convert
    from deltakit.interop.folders import load, save
    from deltakit.interop.formats import register_format
    from deltakit.methods.adapter import SequentialAdapter
    from deltakit.methods.baselines import FullFineTuning, HeadOnly
    from deltakit.methods.bitfit import BitFit
    from deltakit.methods.compacter import Compacter
    from deltakit.methods.dora import DoRA
    from deltakit.methods.drop import AdapterDrop
    from deltakit.methods.fusion import AdapterFusion
    from deltakit.methods.gated import Gated
    from deltakit.methods.hyperformer import HyperFormer
    from deltakit.methods.ia3 import IA3
    from deltakit.methods.invertible import InvertibleAdapter
    from deltakit.methods.learned_mean import LearnedMean
    from deltakit.methods.lora import LoRA
    from deltakit.methods.loreft import LoReFT
    from deltakit.methods.mam import MAM
    from deltakit.methods.mixture import Mixture
    from deltakit.methods.moa import MoA
    from deltakit.methods.norms import NormTuning
    from deltakit.methods.parallel import ParallelAdapter
    from deltakit.methods.partial import PartialFineTuning
    from deltakit.methods.prefix import PrefixTuning
    from deltakit.methods.prompt import PromptTuning
    from deltakit.methods.sparse import Sparse
    from deltakit.methods.vera import VeRA
    from deltakit.models.loading import load_base
    from deltakit.models.weights import register_weight_format
    from deltakit.runtime.trunk_cache import TrunkCache

_HOMES = {
    "deltakit.choose.choice": ("Choice",),
    "deltakit.compare.results": ("Results",),
    "deltakit.compare.stats.metrics": ("register_metric",),
    "deltakit.compare.tasks.kinds": ("register_kind",),
    "deltakit.compare.tasks.task": ("register_task",),
    "deltakit.models.loading": ("load_base",),
    "deltakit.models.weights": ("register_weight_format",),
    "deltakit.arch.family": ("Family", "LayerStack", "Location", "register_family"),
    "deltakit.arch.infer": ("infer_family",),
    "deltakit.arch.resolve": ("resolve",),
    "deltakit.core.composition": ("Composition", "Mean", "PerRow", "Stack"),
    "deltakit.core.data_start": ("DataPass", "DataStart", "StartsFromData"),
    "deltakit.core.delta": (
        "CustomSum",
        "Attending",
        "AuxiliaryLoss",
        "Combiner",
        "Delta",
        "Mergeable",
        "FusedAdd",
        "ExtraPositions",
        "Regularised",
        "Reads",
        "ReadsBlock",
        "ReadsEnd",
        "Reparametrised",
        "RewritesWeight",
        "Scaling",
        "SparselyActive",
        "TaskConditioned",
        "FFNUnits",
        "MergesAsFFN",
    ),
    "deltakit.core.method": (
        "Method",
        "MethodWrapper",
        "Paper",
        "Placement",
        "InitialOutput",
        "Summable",
        "register_method",
    ),
    "deltakit.core.site": ("Handle", "Insertion", "Site"),
    "deltakit.core.spec": ("parse_method",),
    "deltakit.core.steps": ("StepCallback", "TrainingStep"),
    "deltakit.errors": ("DeltakitError", "NotMergeable"),
    "deltakit.inject.arithmetic": ("task_arithmetic",),
    "deltakit.inject.attach": ("activate", "attach", "detach", "disabled", "using"),
    "deltakit.inject.change": ("deploy", "drop", "prune"),
    "deltakit.inject.merge": ("merge", "unmerge"),
    "deltakit.inject.merge_report": ("MergeReport",),
    "deltakit.inject.observe": ("fusion_attention",),
    "deltakit.inject.prepare": ("prepare",),
    "deltakit.inject.steps": ("step_callbacks",),
    "deltakit.inject.summary": ("summary",),
    "deltakit.inject.tasks": ("using_tasks",),
    "deltakit.inject.trunk": ("kept_trunk",),
    "deltakit.runtime.trunk_cache": ("TrunkCache",),
    "deltakit.interop.convert": ("convert",),
    "deltakit.interop.folders": ("load", "save"),
    "deltakit.interop.formats": ("register_format",),
    "deltakit.methods.adapter": ("SequentialAdapter",),
    "deltakit.methods.baselines": ("FullFineTuning", "HeadOnly"),
    "deltakit.methods.bitfit": ("BitFit",),
    "deltakit.methods.compacter": ("Compacter",),
    "deltakit.methods.dora": ("DoRA",),
    "deltakit.methods.drop": ("AdapterDrop",),
    "deltakit.methods.fusion": ("AdapterFusion",),
    "deltakit.methods.gated": ("Gated",),
    "deltakit.methods.hyperformer": ("HyperFormer",),
    "deltakit.methods.ia3": ("IA3",),
    "deltakit.methods.invertible": ("InvertibleAdapter",),
    "deltakit.methods.learned_mean": ("LearnedMean",),
    "deltakit.methods.lora": ("LoRA",),
    "deltakit.methods.loreft": ("LoReFT",),
    "deltakit.methods.mam": ("MAM",),
    "deltakit.methods.mixture": ("Mixture",),
    "deltakit.methods.moa": ("MoA",),
    "deltakit.methods.norms": ("NormTuning",),
    "deltakit.methods.parallel": ("ParallelAdapter",),
    "deltakit.methods.partial": ("PartialFineTuning",),
    "deltakit.methods.prefix": ("PrefixTuning",),
    "deltakit.methods.prompt": ("PromptTuning",),
    "deltakit.methods.sparse": ("Sparse",),
    "deltakit.methods.vera": ("VeRA",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "IA3",
    "MAM",
    "AdapterDrop",
    "AdapterFusion",
    "Attending",
    "AuxiliaryLoss",
    "BitFit",
    "Choice",
    "Combiner",
    "Compacter",
    "Composition",
    "CustomSum",
    "DataPass",
    "DataStart",
    "Delta",
    "DeltakitError",
    "DoRA",
    "ExtraPositions",
    "FFNUnits",
    "Family",
    "FullFineTuning",
    "FusedAdd",
    "Gated",
    "Handle",
    "HeadOnly",
    "HyperFormer",
    "InitialOutput",
    "Insertion",
    "InvertibleAdapter",
    "LayerStack",
    "LearnedMean",
    "LoRA",
    "LoReFT",
    "Location",
    "Mean",
    "MergeReport",
    "Mergeable",
    "MergesAsFFN",
    "Method",
    "MethodWrapper",
    "Mixture",
    "MoA",
    "NormTuning",
    "NotMergeable",
    "Paper",
    "ParallelAdapter",
    "PartialFineTuning",
    "PerRow",
    "Placement",
    "PrefixTuning",
    "PromptTuning",
    "Reads",
    "ReadsBlock",
    "ReadsEnd",
    "Regularised",
    "Reparametrised",
    "Results",
    "RewritesWeight",
    "Scaling",
    "SequentialAdapter",
    "Site",
    "Sparse",
    "SparselyActive",
    "Stack",
    "StartsFromData",
    "StepCallback",
    "Summable",
    "TaskConditioned",
    "TrainingStep",
    "TrunkCache",
    "VeRA",
    "__version__",
    "activate",
    "attach",
    "choose",
    "compare",
    "convert",
    "deploy",
    "detach",
    "disabled",
    "drop",
    "fusion_attention",
    "infer_family",
    "kept_trunk",
    "load",
    "load_base",
    "merge",
    "parse_method",
    "prepare",
    "prune",
    "register_family",
    "register_format",
    "register_kind",
    "register_method",
    "register_metric",
    "register_task",
    "register_weight_format",
    "resolve",
    "save",
    "step_callbacks",
    "summary",
    "task_arithmetic",
    "unmerge",
    "using",
    "using_tasks",
]


_RENAMED = {
    "Additive": "CustomSum",
    "OnePass": "FusedAdd",
    "Positions": "ExtraPositions",
    "Start": "InitialOutput",
    "Units": "FFNUnits",
    "Widening": "MergesAsFFN",
}
"""Old names, renamed on 2026-11-26 and kept until version 0.3."""


def __getattr__(name: str) -> Any:
    if name in ("choose", "compare"):
        return importlib.import_module(f"deltakit.{name}")  # packages that can be called
    if name in _RENAMED:
        return _renamed(name)
    if name not in _HOME_OF:
        raise AttributeError(f"module 'deltakit' has no attribute {name!r}")
    # What is shipped is registered first, so that a user who takes its name is told at once.
    importlib.import_module("deltakit.methods")
    importlib.import_module("deltakit.interop")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def _renamed(name: str) -> Any:
    import warnings

    new = _RENAMED[name]
    warnings.warn(
        f"deltakit.{name} was renamed deltakit.{new} on 2026-11-26; the old name goes in 0.3.",
        DeprecationWarning,
        stacklevel=3,
    )
    return __getattr__(new)


def __dir__() -> list[str]:
    return list(__all__)
