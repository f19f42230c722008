"""The base model of a comparison: found, fingerprinted, and loaded again for every cell."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltakit.errors import InvalidConfig, UnknownName, first_line, unknown
from deltakit.models.heads import Head
from deltakit.models.loading import read_config
from deltakit.models.processor import Processor
from deltakit.models.weights import COMPUTE_DTYPES, dtype_of

if TYPE_CHECKING:
    import torch
    from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

    from deltakit.models.weights import WeightFormat

WEIGHTS = ("safetensors", "bin", "gguf")
"""Endings of files with weights."""

_PROCESSORS = ("tokenizer.json", "vocab.txt", "preprocessor_config.json", "processor_config.json")
"""Files that decide what a text or a picture is to the model."""

DEFAULT_MODEL = "minilm"


def device() -> "torch.device":
    """The device that everything runs on."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True)
class BaseChoice:
    """The weight format of a comparison's base.

    Attributes:
        name: "fp32", "bf16", "int8", "nf4" or "fp4".
        dtype: what it computes in, by torch's name; "" is the base's own.

    Raises:
        UnknownName: a dtype that models do not compute in.
    """

    name: str
    dtype: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in ("", *COMPUTE_DTYPES):
            raise unknown("--compute-dtype", self.dtype, COMPUTE_DTYPES)

    @property
    def torch_dtype(self) -> "torch.dtype | None":
        """`dtype` as torch has it; None for the base's own."""
        return dtype_of(self.dtype) if self.dtype else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A model that has been read.

    Attributes:
        model: with its head.
        fresh: parameters that the checkpoint should have values for and has not (a pooler, often):
            they are freshly drawn.
    """

    model: "PreTrainedModel"
    fresh: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A pretrained model that has been found.

    Attributes:
        name: what the user calls it.
        location: a folder, or a Hub name.
        fingerprint: of its configuration, and of its files' sizes and sampled bytes.
        local_only: whether transformers need not ask the Hub, or could not.
    """

    name: str
    location: str
    fingerprint: str
    local_only: bool

    def processor(self, head: Head) -> Processor:
        """The tokenizer, or the image processor, that makes the inputs of the model with a head.

        Raises:
            UnknownName: the model has none.
        """
        readers = {"texts": self.tokenizer, "images": self.image_processor}
        return readers[head.reads]()

    def image_processor(self) -> "BaseImageProcessor":
        """The image processor, with the transforms that the checkpoint names.

        Raises:
            UnknownName: the model has none.
        """
        from transformers import AutoImageProcessor

        try:
            return AutoImageProcessor.from_pretrained(
                self.location, local_files_only=self.local_only
            )
        except (OSError, ValueError, ImportError) as error:
            raise UnknownName(
                f"model {self.name!r} has no image processor that transformers can load: "
                f"{first_line(error)} Save one in its folder (preprocessor_config.json)."
            ) from None

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, with a padding token.

        Raises:
            UnknownName: the model has none.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.location, local_files_only=self.local_only
            )
        except (OSError, ValueError, ImportError) as error:
            raise UnknownName(
                f"model {self.name!r} has no tokenizer that transformers can load: "
                f"{first_line(error)}"
            ) from None
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            # Without files transformers makes an empty one, which reads every word as unknown.
            raise UnknownName(
                f"model {self.name!r} has no tokenizer: its vocabulary is empty. Save the "
                "tokenizer next to the weights (tokenizer.json)."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer

    def check_complete(self, head: Head) -> None:
        """Raises `UnknownName` where the processor, or a folder's weights, are missing."""
        self.processor(head)
        folder = Path(self.location)
        if folder.is_dir() and not any(any(folder.glob(f"*.{end}")) for end in WEIGHTS):
            raise UnknownName(
                f"model {self.name!r} has a config.json and no weights (*.safetensors, *.bin). "
                "Give a folder that save_pretrained wrote."
            )

    def load(self, base: "BaseChoice", head: Head, pad_token_id: int | None) -> "Loaded":
        """The model in a base, with a head; one that was not pre-trained is drawn freshly.

        Raises:
            DeltakitError: as `deltakit.load_base`.
        """
        from deltakit.models.loading import read_base

        model, missing = read_base(
            self.location,
            base.name,
            task=head.task,
            labels=head.outputs,
            problem=head.problem,
            dtype=base.torch_dtype,
            device=device(),
            local_files_only=self.local_only,
        )
        head.configure(model, pad_token_id)
        return Loaded(model=model, fresh=head.newly_initialised(missing, model))

    def check_base(self, base: "BaseChoice") -> "WeightFormat":
        """The weight format of the base. Raises as `deltakit.load_base`, before it is loaded."""
        from deltakit.models.loading import check_base

        return check_base(
            self.location,
            base.name,
            dtype=base.torch_dtype,
            device=device(),
            local_files_only=self.local_only,
        )

    def own_skeleton(self) -> "PreTrainedModel":
        """The model without its weights, of the class that its config names, on the meta device.

        Raises:
            InvalidConfig: transformers has no class for the config.
        """
        from deltakit.models.find import own_class, skeleton

        config = read_config(self.location, local_files_only=self.local_only)
        return skeleton(own_class(config), config)

    def load_own(self) -> "PreTrainedModel":
        """The model in fp32, of the class that its config names.

        Raises:
            DeltakitError: as `deltakit.load_base`.
        """
        import torch

        from deltakit.models.find import own_class

        self.check_base(BaseChoice(name="fp32"))
        config = read_config(self.location, local_files_only=self.local_only)
        read: PreTrainedModel = own_class(config).from_pretrained(
            self.location, config=config, dtype=torch.float32, local_files_only=self.local_only
        )
        return read

    def skeleton(self, head: Head) -> "PreTrainedModel":
        """The model without its weights, on the meta device, to try methods on.

        Raises:
            InvalidConfig: the architecture has no such head.
        """
        import torch

        return self._skeleton(head, torch.float32)

    def skeleton_in(self, base: "BaseChoice", head: Head) -> "PreTrainedModel":
        """The model without its weights, as `load` gives it in a base, on the meta device.

        Quantised linears have packed tensors of the right sizes. Every parameter is taken to be in
        the checkpoint.

        Raises:
            InvalidConfig: the architecture has no such head.
            MissingExtra: the base needs a package that is not installed.
        """
        from deltakit.models.fake import pack
        from deltakit.models.loading import head_paths
        from deltakit.models.weights import WEIGHT_FORMATS

        chosen = WEIGHT_FORMATS.get(base.name)
        dtype = base.torch_dtype or chosen.dtype
        model = self._skeleton(head, dtype)
        quantisation = chosen.arguments(None, dtype, head_paths(model)).get("quantization_config")
        if quantisation is not None:
            pack(model, quantisation)
        return model

    def _skeleton(self, head: Head, dtype: "torch.dtype") -> "PreTrainedModel":
        import torch
        import transformers

        from deltakit.models.loading import HEAD_CLASSES

        config = read_config(
            self.location, head.outputs, head.problem, local_files_only=self.local_only
        )
        head.check(self.name, config)
        try:
            with torch.device("meta"):
                return getattr(transformers, HEAD_CLASSES[head.task]).from_config(
                    config, dtype=dtype
                )
        except ValueError as error:
            raise InvalidConfig(
                f"model {self.name!r} cannot {head.purpose}: {first_line(error)}"
            ) from None


def find_model(name: str) -> ModelSource:
    """A shipped model, a local folder, or a Hub name.

    Raises:
        MissingExtra: a shipped model whose package is not installed.
        UnknownName: nothing of that name can be resolved.
    """
    from deltakit.models.find import find

    found = find(name)
    return ModelSource(
        name=name,
        location=found.location,
        fingerprint=_fingerprint(found.config(), Path(found.location)),
        local_only=found.local_only,
    )


def _fingerprint(config: Any, folder: Path) -> str:
    """Where it is does not make it another model; its revision on the Hub does."""
    settings = {k: v for k, v in config.to_dict().items() if k != "_name_or_path"}
    settings["_commit_hash"] = getattr(config, "_commit_hash", None)  # set for Hub models
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    files = folder.iterdir() if folder.is_dir() else ()
    for file in sorted(files):
        if file.suffix[1:] in WEIGHTS or file.name in _PROCESSORS:
            digest.update(_sample(file))
    return digest.hexdigest()


def _sample(file: Path) -> bytes:
    """Size, header and first and last MiB: enough to tell two checkpoints apart, at any size."""
    size, mebibyte = file.stat().st_size, 1 << 20
    with file.open("rb") as stream:
        first = stream.read(mebibyte)
        stream.seek(max(0, size - mebibyte))
        return file.name.encode() + size.to_bytes(8, "little") + first + stream.read(mebibyte)
