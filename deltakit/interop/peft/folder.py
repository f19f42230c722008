"""The format: a folder of PEFT's as a checkpoint, and a checkpoint as a folder of PEFT's."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deltakit._files import atomic_paths
from deltakit.core.checkpoint import Checkpoint, Part, first_few
from deltakit.core.composition import One
from deltakit.core.labels import labels_of, row_of_each
from deltakit.core.method import Method, method_to_dict
from deltakit.errors import CheckpointError, DeltakitError
from deltakit.inject.transfer import base_of
from deltakit.interop.files import (
    METADATA,
    Tensors,
    our_words,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from deltakit.interop.formats import Format, register_format
from deltakit.interop.peft import ia3, lora, prompts
from deltakit.interop.peft.adapter import TUNED, Adapter, Folder, Values, Written
from deltakit.interop.peft.config import FILE, Config, about
from deltakit.interop.peft.former_names import renamed
from deltakit.interop.peft.saved_modules import own_tensors
from deltakit.interop.peft.view import PeftView, same, terms
from deltakit.methods.dora import DoRA
from deltakit.methods.ia3 import IA3
from deltakit.methods.lora import LoRA
from deltakit.methods.prefix import PrefixTuning
from deltakit.methods.prompt import PromptTuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
OLDER_WEIGHTS = "adapter_model.bin"
_READERS: Mapping[str, Callable[[Folder], Adapter]] = {
    "LORA": lora.read,
    "IA3": ia3.read,
    "PREFIX_TUNING": prompts.read_prefix,
    "PROMPT_TUNING": prompts.read_prompt,
}
_WRITERS: Mapping[type[Method], Callable[[Adapter, PeftView], Written]] = {
    LoRA: lora.write,
    DoRA: lora.write,
    IA3: ia3.write,
    PrefixTuning: prompts.write_prefix,
    PromptTuning: prompts.write_prompt,
}


@register_format("peft")
class Peft(Format):
    """LoRA, DoRA and (IA)³ at any of our sites, with task heads and biases."""

    title = "PEFT"
    markers = f"{FILE} with peft_type, and {WEIGHTS}"

    def recognises(self, folder: Path) -> bool:
        path = folder / FILE
        return path.is_file() and "peft_type" in read_json(path)

    def read(self, folder: Path, model: "PreTrainedModel") -> Checkpoint:
        config = Config(folder / FILE, read_json(folder / FILE))
        reader = _reader(config)
        file, former = renamed(
            read_tensors(folder, (WEIGHTS, OLDER_WEIGHTS)), model, PeftView(model).modules, TUNED
        )
        adapter = _read(reader, Folder(config=config, file=file, base=PeftView(model, former)))
        labels = labels_of(our_words(file).get("label2id"))
        tensors = {f"{adapter.name}/{key}": tensor for key, tensor in adapter.tensors.items()}
        own = {f"{adapter.name}/own/{name}": tensor for name, tensor in adapter.own.items()}
        return Checkpoint(
            origin=str(folder),
            parts=(Part(name=adapter.name, method=adapter.method, labels=labels),),
            base=base_of(model),
            tensors={**tensors, **own},
            composition=One(adapter.name),
        )

    def write(self, folder: Path, checkpoint: Checkpoint, model: "PreTrainedModel") -> None:
        base = PeftView(model)
        adapter = prompts.deployed(_adapter(checkpoint), base)
        written = _writer(adapter.method)(adapter, base)
        config = Config(folder / FILE, {**about(model), **written.config})
        own = own_tensors(adapter.own, config, base, written.prefix, written.targeted)
        tensors = {**written.tensors, **own}
        words = {"name": adapter.name, "method": method_to_dict(adapter.method)}
        labels = checkpoint.parts[0].labels
        words |= {"label2id": row_of_each(labels)} if labels else {}
        file = Tensors(folder / WEIGHTS, tensors, {METADATA: json.dumps(words)})
        _check(Folder(config=config, file=file, base=base), adapter)
        with atomic_paths(folder / WEIGHTS, folder / FILE) as (weights, description):
            write_tensors(weights, tensors, words)
            write_json(description, config.values)


def _reader(config: Config) -> Callable[[Folder], Adapter]:
    kind = config.values["peft_type"]
    name = str(kind)
    if name in _READERS:
        return _READERS[name]
    raise CheckpointError(
        f"{config.path}: peft_type is {kind!r}. deltakit loads {', '.join(_READERS)}. Use it with "
        "PEFT itself; what PEFT turns into a LoRA (peft.save_as_lora) can be loaded."
    )


def _read(reader: Callable[[Folder], Adapter], folder: Folder) -> Adapter:
    try:
        return reader(folder)
    except CheckpointError:
        raise
    except (DeltakitError, re.error) as error:
        raise CheckpointError(f"{folder.config.path}: {error}") from None


def _writer(method: Method) -> Callable[[Adapter, PeftView], Written]:
    """What writes the terms that put something somewhere; the others train the base's own."""
    kinds = {type(term) for term, _ in terms(method) if term.placements()} or {type(method)}
    writer = _WRITERS.get(next(iter(kinds))) if len(kinds) == 1 else None
    if writer is None:
        raise CheckpointError(
            f"PEFT has no words for {' + '.join(sorted(kind.__name__ for kind in kinds))} in one "
            f"adapter. It has them for each of {', '.join(k.__name__ for k in _WRITERS)}."
        )
    return writer


def _adapter(checkpoint: Checkpoint) -> Adapter:
    """The only delta of a checkpoint. Raises `CheckpointError`."""
    if len(checkpoint.parts) > 1 or not isinstance(checkpoint.composition, One):
        names = ", ".join(repr(part.name) for part in checkpoint.parts)
        raise CheckpointError(
            f"a folder of PEFT's holds one adapter, and this is a composition of {names}. Save "
            "each to a folder of its own."
        )
    (part,) = checkpoint.parts
    start = f"{part.name}/"
    given = {key.removeprefix(start): tensor for key, tensor in checkpoint.tensors.items()}
    own = {k.removeprefix("own/"): t for k, t in given.items() if k.startswith("own/")}
    tensors = {key: tensor for key, tensor in given.items() if not key.startswith("own/")}
    return Adapter(method=part.method, tensors=tensors, own=own, name=part.name)


def _check(folder: Folder, adapter: Adapter) -> None:
    """Raises `CheckpointError` if the written folder would be read as another delta."""
    try:
        back = _read(_reader(folder.config), folder)
    except CheckpointError as error:
        raise CheckpointError(f"PEFT cannot hold {adapter.name!r} exactly: {error}") from None
    if (back.method, back.name) != (adapter.method, adapter.name):
        raise CheckpointError(
            f"PEFT cannot hold {adapter.name!r} exactly: it would read {adapter.method!r} as "
            f"{back.method!r}."
        )
    differ = [*_differing(back.tensors, adapter.tensors), *_differing(back.own, adapter.own)]
    if differ:
        raise CheckpointError(f"PEFT cannot hold {first_few('', sorted(differ))} exactly.")


def _differing(one: Values, other: Values) -> set[str]:
    shared = one.keys() & other.keys()
    return (one.keys() ^ other.keys()) | {key for key in shared if not same(one[key], other[key])}
