"""Task heads: those of transformers' classes, and the library's flexible ones where they are equal.

A head that the model cannot hold exactly is kept under keys that no model has, so loading reports
it, and loading with ``head=False`` does without it.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from deltakit.errors import CheckpointError
from deltakit.interop.adapterhub.layout import Host
from deltakit.interop.files import read_json, read_tensors

CONFIG = "head_config.json"
WEIGHTS = ("model_head.safetensors", "pytorch_model_head.bin")

_TWO_LAYERS = ("classifier.dense", "classifier.out_proj")
_FLEXIBLE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "BertForSequenceClassification": ({"layers": 1, "use_pooler": True}, ("classifier",)),
    "RobertaForSequenceClassification": ({"activation_function": "tanh"}, _TWO_LAYERS),
    "XLMRobertaForSequenceClassification": ({"activation_function": "tanh"}, _TWO_LAYERS),
    "ElectraForSequenceClassification": ({"activation_function": "gelu"}, _TWO_LAYERS),
    "DistilBertForSequenceClassification": (
        {"activation_function": "relu"},
        ("pre_classifier", "classifier"),
    ),
}
"""How a flexible head must be set to be that of a class, and the class's names of its layers."""
_USUAL = {"layers": 2, "use_pooler": False, "bias": True}


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
    if name is not None:  # the library's filter also catches heads whose names begin alike
        tensors = {key: t for key, t in tensors.items() if not _of_another(key, f"heads.{name}")}
        names = _names(config.get("config"), f"heads.{name}", host)
    else:
        names = {key: key for key in tensors} if made_for == host.kind else {}
    return {names.get(key, f"{key} of a {made_for}"): tensor for key, tensor in tensors.items()}


def _of_another(key: str, name: str) -> bool:
    return key.startswith(name) and not key.startswith(f"{name}.")


def _names(config: Any, stem: str, host: Host) -> dict[str, str]:
    """The model's names for the tensors of a flexible head; none where it is another head."""
    if host.kind not in _FLEXIBLE or not isinstance(config, dict):
        return {}
    wanted, layers = _FLEXIBLE[host.kind]
    if config.get("head_type") != "classification" or any(
        config.get(key, _USUAL.get(key)) != value for key, value in {**_USUAL, **wanted}.items()
    ):
        return {}
    return {
        f"{stem}.{1 + 3 * index}.{kind}": f"{layer}.{kind}"
        for index, layer in enumerate(layers)
        for kind in ("weight", "bias")
    }


def write(tensors: dict[str, Tensor], described: dict[str, Any], host: Host) -> dict[str, Any]:
    """The files of a head, as the library writes those of transformers' classes.

    Raises:
        CheckpointError: they are more than a head.
    """
    if not tensors:
        return {}
    for key in tensors:
        if key not in host.heads:
            raise CheckpointError(
                f"the delta has values of its own for the base's {key!r}, for which AdapterHub's "
                "format has no place. Save it as format='deltakit'."
            )
    labels = {"label2id": host.config.label2id, "num_labels": host.config.num_labels}
    return {
        WEIGHTS[0]: (tensors, {}),
        CONFIG: {**described, **labels, "config": None, "name": None},
    }
