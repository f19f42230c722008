"""Folders from before transformers renamed a model's modules (its own table of renamings).

Transformers moves modules between versions (Gemma 3 and LLaVA's language model, ViT's attention),
and renames the tensors of older checkpoints as it loads them. A folder of PEFT's has the names of
its day in its keys and in its config, so both are read by either name.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deltakit.interop.files import Tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PARAMETER_WORDS = (1, 2)
"""How many words a key has behind the path of its module: ``ia3_l``, or ``lora_A.weight``."""


def renamed(
    file: Tensors, model: "PreTrainedModel", modules: Mapping[str, object], prefix: str
) -> tuple[Tensors, dict[str, str]]:
    """The file by today's names, and the former names of modules by today's.

    A key changes only where its module is not in the model, and is under the new name.

    Args:
        file: the tensors as they were saved.
        model: the model, for transformers' renamings.
        modules: the model's modules by today's names.
        prefix: what the file's keys begin with.
    """
    keys, former = {key: key for key in file}, {}
    for key in keys:
        name = key.removeprefix(prefix)
        if name == key or _module_of(name, modules) is not None:
            continue
        today = todays_name(name, model)
        module = _module_of(today, modules)
        if module is not None and prefix + today not in keys:
            keys[key] = prefix + today
            former[module] = _path(name, len(today.split(".")) - len(module.split(".")))
    return file.by(keys), former


def todays_name(name: str, model: "PreTrainedModel") -> str:
    """The name of a parameter in the model, by transformers' own renamings of older names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    for each in get_model_conversion_mapping(model, add_legacy=False):
        if isinstance(each, WeightRenaming):
            name, _ = each.rename_source_key(name)
    return name


def _module_of(name: str, modules: Mapping[str, object]) -> str | None:
    """The path of the module that a key is about; None where the model has none of that name."""
    paths = (_path(name, words) for words in _PARAMETER_WORDS)
    return next((path for path in paths if path and path in modules), None)


def _path(name: str, words: int) -> str:
    """A key without its last words."""
    return ".".join(name.split(".")[:-words])
