"""PEFT's folders: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from deltakit.interop.formats import FORMATS
from deltakit.interop.peft.folder import Peft

FORMATS.add("peft", Peft())
