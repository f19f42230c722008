"""Deltas from one library's folders to another's. The base gives its shapes, never its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltakit.core.checkpoint import Checkpoint
from deltakit.core.spec import format_method
from deltakit.errors import CheckpointError, DeltakitError, InvalidConfig
from deltakit.inject.attach import detach
from deltakit.inject.base_names import base_parameters, head_names
from deltakit.inject.transfer import from_checkpoint
from deltakit.interop.folders import formats_in, recognise
from deltakit.interop.formats import FORMATS, Format, Standalone
from deltakit.interop.hub import folder_of
from deltakit.interop.origin import origin_of
from deltakit.models.find import classes, find, skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GIVE = "Give it: base=..., on the command line --base."


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The result of a conversion; it prints as two lines.

    Attributes:
        source: the folder that was read.
        target: the folder that was written.
        read_as: the format of the one.
        written_as: the format of the other.
        methods: each delta's name and its method as a spec, members first.
        tensors: how many there are.
        params: how many numbers they hold.
        base: the class and the name of the model that the sites were read off; "" if none was
            needed.
    """

    source: Path
    target: Path
    read_as: str
    written_as: str
    methods: tuple[tuple[str, str], ...]
    tensors: int
    params: int
    base: str

    def __str__(self) -> str:
        methods = ", ".join(f"{name} = {spec}" for name, spec in self.methods)
        base = f"with the shapes of {self.base}" if self.base else "no base was needed"
        return (
            f"read {self.source} ({self.read_as}): {methods}; {self.tensors} tensors, "
            f"{self.params:,} numbers\nwrote {self.target} ({self.written_as}), {base}"
        )


def convert(
    src: str | Path, dst: str | Path, *, to: str, base: str | Path | None = None
) -> Conversion:
    """Writes saved deltas in another format, every tensor and every setting exactly.

    Args:
        src: a folder of any format that `load` reads, or its name on the Hub.
        dst: a new or empty folder, or one with deltas of the format `to`, which are replaced.
        to: "deltakit", "peft" or "adapterhub".
        base: the model that the deltas were made on: a folder, a shipped name or a Hub name; by
            default the one that `src` names. Only its config is read. A deltakit folder names
            none, and to become a deltakit folder it needs none.

    Raises:
        UnknownName: no such format, or no such base.
        CheckpointError: `src` cannot be read, or does not fit the base; `to` has no exact words
            for a part of it, which the message names; `dst` is taken. Nothing has been written.
    """
    target, place = FORMATS.get(to), Path(dst)
    folder = folder_of(src)
    source = recognise(folder)
    _check_free(place, folder, target)
    if base is None and isinstance(source, Standalone) and isinstance(target, Standalone):
        checkpoint, shapes = source.read_alone(folder), ""
        target.write_alone(place, checkpoint)
    else:
        checkpoint, model = _fitted(source, folder, base)
        target.write(place, checkpoint, model)
        shapes = f"{type(model).__name__} of {model.name_or_path!r}"
    return Conversion(
        source=folder,
        target=place,
        read_as=source.title,
        written_as=target.title,
        methods=tuple((part.name, format_method(part.method)) for part in checkpoint.parts),
        tensors=len(checkpoint.tensors),
        params=sum(tensor.numel() for tensor in checkpoint.tensors.values()),
        base=shapes,
    )


def _check_free(place: Path, folder: Path, target: Format) -> None:
    """Raises `CheckpointError` if the place is the source, or holds something else."""
    if place.is_dir() and place.samefile(folder):
        raise CheckpointError(f"{place} would be read and written at once. Choose another folder.")
    empty = not place.exists() or (place.is_dir() and not any(place.iterdir()))
    if not empty and formats_in(place) != [target]:
        raise CheckpointError(
            f"{place} exists and holds no delta of {target.title}. Choose another place."
        )


def _fitted(
    source: Format, folder: Path, base: str | Path | None
) -> "tuple[Checkpoint, PreTrainedModel]":
    """The deltas, and the base's skeleton of the first class that they fit, tensor by tensor."""
    origin = origin_of(folder)
    config = _config(folder, origin.base if base is None else str(base), told=base is None)
    tried: dict[str, DeltakitError] = {}
    for kind in classes(config, origin.kinds):
        try:
            return _read(source, folder, kind, config)
        except DeltakitError as error:
            tried[kind.__name__] = error
    if not tried:
        raise InvalidConfig(
            f"transformers has no model for {type(config).__name__}. Name another --base."
        )
    raise CheckpointError(f"{next(iter(tried.values()))} Tried on {', '.join(tried)}.")


def _config(folder: Path, name: str, *, told: bool) -> Any:
    if not name:
        raise CheckpointError(f"{folder} does not say which model it was made on. {GIVE}")
    try:
        config = find(name).config()
    except DeltakitError as error:
        if not told:
            raise
        raise CheckpointError(f"{folder} says it was made on {name!r}: {error} {GIVE}") from None
    config.name_or_path = name  # what is written names the base as the user does
    return config


def _read(
    source: Format, folder: Path, kind: "type[PreTrainedModel]", config: Any
) -> "tuple[Checkpoint, PreTrainedModel]":
    model = skeleton(kind, config)
    checkpoint = source.read(folder, model)
    labels = _labels(checkpoint, model)
    if labels is not None:
        model = skeleton(kind, config, labels)
        checkpoint = source.read(folder, model)
    from_checkpoint(model, checkpoint)
    detach(model)
    return checkpoint, model


def _labels(checkpoint: Checkpoint, model: "PreTrainedModel") -> int | None:
    """How many classes the checkpoint's head has, where the model's head has another number."""
    parameters, heads = base_parameters(model), head_names(model)
    for key, tensor in checkpoint.tensors.items():
        name = key.partition("/own/")[2]
        if name in heads and tensor.ndim > 0:
            own, here = tensor.shape, parameters[name].shape
            if own[1:] == here[1:] and own[0] != here[0] == model.config.num_labels:
                return own[0]
    return None
