"""save and load: a model's deltas to a folder and back, in any format."""

from pathlib import Path
from typing import TYPE_CHECKING

from deltakit.core.checkpoint import Checkpoint
from deltakit.core.composition import Composition
from deltakit.errors import CheckpointError
from deltakit.inject.transfer import from_checkpoint, to_checkpoint
from deltakit.interop.formats import FORMATS, Format
from deltakit.interop.hub import folder_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save(
    model: "PreTrainedModel",
    folder: str | Path,
    name: str | Composition = "default",
    *,
    format: str = "deltakit",
) -> None:
    """Saves an attached delta or a composition of several, with members and task heads.

    Args:
        model: a model with deltas.
        folder: made if needed; files of an earlier delta in it are replaced, each atomically.
        name: which delta, or which composition, for example ``Stack("lang", "task")``.
        format: "deltakit", which holds everything; or a library's, for what it has words for.

    Raises:
        UnknownName: no delta has the name, or no format.
        CheckpointError: the format cannot hold the delta exactly, or the folder holds one of
            another format. Nothing has been written.
        DeltakitError: nothing is attached.
    """
    write_checkpoint(Path(folder), to_checkpoint(model, name), model, format)


def load(
    model: "PreTrainedModel", folder: str | Path, name: str | None = None, *, head: bool = True
) -> None:
    """Attaches a saved delta, with its members, and makes it the active one.

    The folder may be of any format that deltakit reads; it is told by its files. A member whose
    name is attached already is taken as it is if it is the same delta.

    Args:
        model: a model of the architecture and size that the delta was made for.
        folder: what `save`, or another library, wrote; or, where no folder has the name, that of
            one on the Hub: "owner/name", "owner/name/sub-folder", either with "@revision".
        name: the name to attach it under; by default the one that it was saved under.
        head: whether to load the task head that was saved with it.

    Raises:
        CheckpointError: a missing or torn file, an unknown format, another architecture, a tensor
            that is missing, left over, of another shape or not finite; a name that neither the Hub
            nor the local cache has. The model is unchanged.
        NameInUse: another delta has the name.
    """
    path = folder_of(folder)
    from_checkpoint(model, recognise(path).read(path, model), name, head=head)


def write_checkpoint(
    folder: Path, checkpoint: Checkpoint, model: "PreTrainedModel", format: str
) -> None:
    """Writes a checkpoint in a format. Raises as `save`."""
    chosen = FORMATS.get(format)
    others = [each.title for each in formats_in(folder) if each is not chosen]
    if others:
        raise CheckpointError(
            f"{folder} holds a delta of {others[0]}, and would be ambiguous with one of "
            f"{chosen.title} next to it. Choose another folder."
        )
    chosen.write(folder, checkpoint, model)


def recognise(folder: Path) -> Format:
    """The format of a folder, told by its files. Raises `CheckpointError`."""
    found = formats_in(folder)
    if len(found) == 1:
        return found[0]
    if found:
        titles = " and of ".join(each.title for each in found)
        raise CheckpointError(f"{folder} holds a delta of {titles}. Keep one of them in it.")
    what = "exists and is not a folder" if folder.exists() else "does not exist"
    if folder.is_dir():
        markers = "; ".join(f"{FORMATS.get(n).title}: {FORMATS.get(n).markers}" for n in FORMATS)
        inner = [path.name for path in sorted(folder.iterdir()) if formats_in(path)]
        shards = _shards(folder)
        if shards:
            raise CheckpointError(f"{folder} {shards}")
        what = f"holds no delta{_pointer(inner)}. Looked for: {markers}"
    raise CheckpointError(f"{folder} {what}.")


def _shards(folder: Path) -> str:
    """What to do with a model's weights in shards, which are pickles that nothing here runs."""
    if any(path.is_dir() for path in folder.glob("pytorch_model_fsdp_*")):
        return (
            "holds the shards of FSDP, whose index is a pickle that may run code, so it is not "
            "read. Run `accelerate merge-weights` on its pytorch_model_fsdp_0, and load the folder "
            "that it writes; or train with the state dict type FULL_STATE_DICT."
        )
    if any(path.is_dir() for path in folder.glob("global_step*")):
        return (
            "holds the shards of DeepSpeed, which are pickles that may run code, so they are not "
            "read. Run the zero_to_fp32.py in it, attach the delta as it was trained, and give "
            "model.load_state_dict what the script writes, with strict=False."
        )
    return ""


def _pointer(inner: list[str]) -> str:
    return (
        f" itself, only in its folders, of which to name one: {', '.join(inner)}" if inner else ""
    )


def formats_in(folder: Path) -> list[Format]:
    """The formats whose files the folder has."""
    return [FORMATS.get(name) for name in FORMATS if FORMATS.get(name).recognises(folder)]
