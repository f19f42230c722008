"""Folders of AdapterHub's library ``adapters`` 1.3.0, and of its older versions.

``save_adapter`` (``adapter_config.json`` and weights), ``save_adapter_fusion`` and
``save_adapter_setup``, with the task head next to them. The library loads whatever fits and says
nothing of the rest; here every tensor is used once, and what deltakit would compute differently is
refused by name. What the library's configs have no words for (how weights were drawn, whether a
bottleneck was given by its width, ...) is in the metadata of the weights.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from deltakit.core.checkpoint import Checkpoint
from deltakit.interop.adapterhub import setups
from deltakit.interop.adapterhub.folders import CONFIG, FUSION_CONFIG, SETUP, write_files
from deltakit.interop.adapterhub.layout import host_of
from deltakit.interop.files import read_json
from deltakit.interop.formats import Format, register_format

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register_format("adapterhub")
class AdapterHub(Format):
    """``adapter_config.json`` with a "config" and a "model_type", a fusion's, or a setup's."""

    title = "AdapterHub"
    markers = f"{CONFIG} with 'config' and 'model_type', {FUSION_CONFIG} or {SETUP}"

    def recognises(self, folder: Path) -> bool:
        if (folder / SETUP).is_file() or (folder / FUSION_CONFIG).is_file():
            return True
        if not (folder / CONFIG).is_file():
            return False
        config = read_json(folder / CONFIG)
        return "peft_type" not in config and {"config", "model_type"} <= set(config)

    def read(self, folder: Path, model: "PreTrainedModel") -> Checkpoint:
        return setups.read(folder, host_of(model))

    def write(self, folder: Path, checkpoint: Checkpoint, model: "PreTrainedModel") -> None:
        for name, files in setups.write(checkpoint, host_of(model)).items():
            write_files(folder / name, files)
