"""Task heads: those of transformers' classes, and the library's flexible ones where they are equal.

A head that the model cannot hold exactly is kept under keys that no model has, so loading reports
it, and loading with ``head=False`` does without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from deltakit.core.checkpoint import Part
from deltakit.core.labels import Labels, labels_of, row_of_each
from deltakit.core.method import CombiningMethod, Method, Sum
from deltakit.errors import CheckpointError
from deltakit.inject.base_names import base_parameters
from deltakit.interop.adapterhub.language_heads import LANGUAGE_HEADS, LanguageHead
from deltakit.interop.adapterhub.layout import Host
from deltakit.interop.files import read_json, read_tensors
from deltakit.methods.partial import PartialFineTuning

CONFIG = "head_config.json"
WEIGHTS = ("model_head.safetensors", "pytorch_model_head.bin")


@dataclass(frozen=True, kw_only=True)
class Flexible:
    """A flexible head of the library's that is the head of a class.

    Attributes:
        kinds: what its config may have as "head_type"; the layers of these are equal.
        layers: the class's names of its linear layers.
        activation: between two layers.
        pooled: whether it reads what the base's pooler returns.
    """

    kinds: tuple[str, ...]
    layers: tuple[str, ...]
    activation: str | None = None
    pooled: bool = False

    def fits(self, config: Mapping[str, Any], host: Host) -> bool:
        """True if a config describes this head."""
        del host
        wanted = {"layers": len(self.layers), "use_pooler": self.pooled, "bias": True}
        given = {**_DEFAULTS, **config}
        activation = self.activation is None or given["activation_function"] == self.activation
        return given["head_type"] in self.kinds and activation and wanted.items() <= given.items()

    def config(self, host: Host, labels: Mapping[str, Any]) -> dict[str, Any]:
        """Its config, with `labels`."""
        del host
        return {
            **labels,
            **_DEFAULTS,
            "head_type": self.kinds[0],
            "layers": len(self.layers),
            "activation_function": self.activation or "tanh",
            "use_pooler": self.pooled,
        }

    def keys(self, stem: str, host: Host) -> dict[str, str]:
        """The model's parameters by the library's keys, which begin with `stem`."""
        del host
        return {
            f"{stem}.{1 + 3 * index}.{kind}": f"{layer}.{kind}"
            for index, layer in enumerate(self.layers)
            for kind in ("weight", "bias")
        }

    def spare(self, tensors: Mapping[str, Tensor], stem: str, host: Host) -> set[str]:
        """The keys of what the base has already: none."""
        del tensors, stem, host
        return set()


_DEFAULTS: dict[str, Any] = {
    "head_type": None,
    "layers": None,
    "activation_function": "tanh",
    "use_pooler": False,
    "bias": True,
}
_CLASSES = ("classification", "multilabel_classification")
_DENSE = ("classifier.dense", "classifier.out_proj")
_TAGS = Flexible(kinds=("tagging",), layers=("classifier",))
_ANSWERS = Flexible(kinds=("question_answering",), layers=("qa_outputs",))


def _classes(*layers: str, activation: str) -> Flexible:
    return Flexible(kinds=_CLASSES, layers=layers, activation=activation)


_FLEXIBLE: dict[str, tuple[Flexible | LanguageHead, ...]] = {
    **LANGUAGE_HEADS,
    "BertForSequenceClassification": (
        Flexible(kinds=_CLASSES, layers=("classifier",), pooled=True),
        _classes("bert.pooler.dense", "classifier", activation="tanh"),
    ),
    "RobertaForSequenceClassification": (_classes(*_DENSE, activation="tanh"),),
    "XLMRobertaForSequenceClassification": (_classes(*_DENSE, activation="tanh"),),
    "ElectraForSequenceClassification": (_classes(*_DENSE, activation="gelu"),),
    "DistilBertForSequenceClassification": (
        _classes("pre_classifier", "classifier", activation="relu"),
    ),
    "DebertaV2ForSequenceClassification": (
        _classes("pooler.dense", "classifier", activation="gelu"),
    ),
    "ViTForImageClassification": (
        Flexible(kinds=("image_classification",), layers=("classifier",)),
    ),
    **{
        f"{name}ForTokenClassification": (_TAGS,)
        for name in ("Bert", "Roberta", "XLMRoberta", "Electra", "DistilBert", "DebertaV2")
    },
    **{
        f"{name}ForQuestionAnswering": (_ANSWERS,)
        for name in ("Bert", "Roberta", "XLMRoberta", "Electra", "DistilBert", "DebertaV2")
    },
}
"""By the class: the flexible heads that are its own head. BERT's may be its pooler too."""


def read(folder: Path, host: Host) -> dict[str, Tensor]:
    """The folder's head, by the model's own names; nothing where it has none.

    Raises:
        CheckpointError: a file that is missing, torn or unsafe.
    """
    if not any((folder / name).exists() for name in (CONFIG, *WEIGHTS)):
        return {}
    config = read_json(folder / CONFIG)
    tensors = dict(read_tensors(folder, WEIGHTS).items())
    made_for, name = config.get("model_class"), config.get("name")
    if name is None:
        names = {key: key for key in tensors} if made_for == host.kind else {}
        return {names.get(key, f"{key} of a {made_for}"): tensor for key, tensor in tensors.items()}
    # the library's filter also catches heads whose names begin alike
    tensors = {key: t for key, t in tensors.items() if not _of_another(key, f"heads.{name}")}
    return _by_our_names(tensors, config.get("config"), f"heads.{name}", made_for, host)


def _by_our_names(
    tensors: dict[str, Tensor], config: Any, stem: str, made_for: object, host: Host
) -> dict[str, Tensor]:
    """The tensors of a flexible head; those without a place say what head they are of."""
    found = _flexible(config, host)
    names = {} if found is None else found.keys(stem, host)
    spare = set() if found is None else found.spare(tensors, stem, host)
    kind = config.get("head_type") if isinstance(config, dict) else None
    of = f"of a {made_for}" if kind is None else f"of a {made_for} with a {kind} head"
    return {
        names.get(key, f"{key} {of}"): tensor for key, tensor in tensors.items() if key not in spare
    }


def labels_in(folder: Path) -> Labels:
    """The names of the classes of the folder's head. Raises `CheckpointError` as `read`."""
    if not (folder / CONFIG).is_file():
        return ()
    top = read_json(folder / CONFIG)
    flexible = top.get("config")
    said = flexible if isinstance(flexible, dict) else top
    return labels_of(said.get("label2id"))


def _of_another(key: str, name: str) -> bool:
    return key.startswith(name) and not key.startswith(f"{name}.")


def _flexible(config: Any, host: Host) -> Flexible | LanguageHead | None:
    """The head that a flexible head's config describes; None where the class has another."""
    heads = _FLEXIBLE.get(host.kind, ()) if isinstance(config, dict) else ()
    return next((head for head in heads if head.fits(config, host)), None)


def with_pooler(part: Part, head: Mapping[str, Tensor], host: Host) -> Part:
    """The part with the parameters of the base trained that a head has values for."""
    known = base_parameters(host.model).keys() - host.heads
    pooler = tuple(sorted(known & head.keys()))
    if not pooler or isinstance(part.method, CombiningMethod):
        return part
    method = part.method + PartialFineTuning(parameters=pooler)
    return replace(part, method=method, headless=part.method)


def without_pooler(method: Method) -> Method:
    """The inverse of `with_pooler`."""
    if not isinstance(method, Sum):
        return method
    parts = tuple(part for part in method.parts if not isinstance(part, PartialFineTuning))
    return parts[0] if len(parts) == 1 else Sum(parts=parts)


def write(
    tensors: dict[str, Tensor], described: dict[str, Any], names: Labels, host: Host
) -> dict[str, Any]:
    """The files of a head: as the library writes those of transformers' classes.

    A head with a pooler of its own is one of the library's flexible heads.

    Args:
        tensors: by the model's parameters.
        described: what the library's configs have, with the delta's name.
        names: of the classes.
        host: the model.

    Raises:
        CheckpointError: they are more than a head.
    """
    if not tensors:
        return {}
    rows = row_of_each(names) or host.config.label2id
    labels = {"label2id": rows, "num_labels": host.config.num_labels}
    beyond = sorted(tensors.keys() - host.heads)
    if not beyond:
        return {
            WEIGHTS[0]: (tensors, {}),
            CONFIG: {**described, **labels, "config": None, "name": None},
        }
    stem, choices = f"heads.{described['name']}", _FLEXIBLE.get(host.kind, ())
    flexible = next((h for h in choices if {*h.keys(stem, host).values()} == {*tensors}), None)
    if flexible is None:
        raise CheckpointError(
            f"the delta has values of its own for the base's {beyond[0]!r}, for which AdapterHub's "
            "format has no place. Save it as format='deltakit'."
        )
    keys = {ours: theirs for theirs, ours in flexible.keys(stem, host).items()}
    return {
        WEIGHTS[0]: ({keys[key]: tensor for key, tensor in tensors.items()}, {}),
        CONFIG: {**described, "config": flexible.config(host, labels)},
    }
