"""deltakit's own folders. They name the model's sites, so no model is needed to read them."""

from pathlib import Path
from typing import TYPE_CHECKING

from deltakit.inject.checkpoint import CONFIG, WEIGHTS, Checkpoint, read, write
from deltakit.interop.formats import FORMATS, Format

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Native(Format):
    """``delta.json`` and ``delta.safetensors``."""

    title = "deltakit"
    signs = f"{CONFIG} and {WEIGHTS}"

    def recognises(self, folder: Path) -> bool:
        return (folder / CONFIG).is_file()

    def read(self, folder: Path, model: "PreTrainedModel") -> Checkpoint:
        del model
        return read(folder)

    def write(self, folder: Path, checkpoint: Checkpoint, model: "PreTrainedModel") -> None:
        del model
        write(folder, checkpoint)


FORMATS.add("deltakit", Native())
