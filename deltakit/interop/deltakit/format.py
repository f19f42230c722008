"""deltakit's own folders."""

from pathlib import Path

from deltakit.core.checkpoint import Checkpoint
from deltakit.interop.deltakit.files import CONFIG, WEIGHTS, read, write
from deltakit.interop.formats import Standalone, register_format


@register_format("deltakit")
class Native(Standalone):
    """``delta.json`` and ``delta.safetensors``."""

    title = "deltakit"
    markers = f"{CONFIG} and {WEIGHTS}"

    def recognises(self, folder: Path) -> bool:
        return (folder / CONFIG).is_file()

    def read_alone(self, folder: Path) -> Checkpoint:
        return read(folder)

    def write_alone(self, folder: Path, checkpoint: Checkpoint) -> None:
        write(folder, checkpoint)
