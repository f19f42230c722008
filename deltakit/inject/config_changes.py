"""The config of a model after a merge, so that it loads again as it was saved."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from deltakit.inject.attachments import CHILD
from deltakit.models.quantised import codec_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Originals = Mapping[str, nn.Parameter | nn.Module]
"""What was in the places of merged values, by name."""

_WIDTHS = {
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "d_ff"), ""),
    "encoder_ffn_dim": "encoder",
    "decoder_ffn_dim": "decoder",
}
"""The names that configs have for the width of a feed-forward, and whose it is if not all's."""
_SKIPPED = "llm_int8_skip_modules"
"""The name that transformers has for linears that are plain, of any number of bits."""
_MISSING = object()


@dataclass(eq=False)
class ConfigChange:
    """An attribute of a config that has another value, or none, while deltas are merged."""

    config: Any
    name: str
    value: Any
    before: Any = None

    def apply(self) -> None:
        """Makes the change."""
        self.before = vars(self.config).get(self.name, _MISSING)
        _set(self.config, self.name, self.value)

    def remove(self) -> None:
        """Takes it back."""
        _set(self.config, self.name, self.before)


def config_changes(
    model: "PreTrainedModel",
    originals: Mapping[str, nn.Parameter | nn.Module],
    *,
    dequantised: bool,
) -> Iterator[ConfigChange]:
    """Makes the config agree with the merged model, and returns what takes that back."""
    for change in _changes(model, originals, dequantised=dequantised):
        change.apply()
        yield change


def _changes(
    model: "PreTrainedModel",
    originals: Mapping[str, nn.Parameter | nn.Module],
    *,
    dequantised: bool,
) -> Iterator[ConfigChange]:
    config = model.config
    if dequantised and vars(config).get("quantization_config") is not None:
        yield ConfigChange(config, "quantization_config", _quantisation_left(model))
    widths = _new_widths(model, originals)
    for name, part in _WIDTHS.items():
        inside = {path: each for path, *each in widths if not part or part in path.split(".")}
        new = {after for before, after in inside.values() if before == _width(config, name)}
        if len(new) == 1 and inside.keys() == _like(model, inside, part):
            yield ConfigChange(config, name, new.pop())


def unsaid_width(model: "PreTrainedModel", originals: Originals) -> str | None:
    """The path of a projection whose new width no config of its class can say, or None."""
    for path, _, after in _new_widths(model, originals):
        parts = ("", *path.split("."))
        said = (_width(model.config, name) for name, part in _WIDTHS.items() if part in parts)
        if after not in said:
            return path
    return None


def _like(model: nn.Module, paths: Iterable[str], part: str) -> set[str]:
    """The modules that are called as these are, in all layers of all stacks or of one."""
    wanted = set(map(_tail, paths))
    names = (name for name, _ in model.named_modules() if not name.startswith(f"{CHILD}."))
    return {n for n in names if _tail(n) in wanted and (not part or part in n.split("."))}


def _tail(path: str) -> str:
    """The last two words of a path, "*" for an index."""
    words = path.split(".")[-2:]
    return ".".join("*" if word.isdigit() else word for word in words)


def _quantisation_left(model: "PreTrainedModel") -> Any:
    """How the model is quantised still: nothing is, or all but the linears that are plain now.

    Where transformers is told of some that are plain, it expects all others to be quantised.
    """
    if not any(codec_of(module) is not None for module in model.modules()):
        return _MISSING
    plain = [name for name, m in model.named_modules() if type(m) is nn.Linear]
    left = copy.deepcopy(model.config.quantization_config)
    if isinstance(left, dict):
        return {**left, _SKIPPED: plain}
    vars(left)[_SKIPPED] = plain
    return left


def _width(config: Any, name: str) -> int | None:
    """What the config says; GPT-2's says None for four times the width of the stream."""
    said = vars(config).get(name, _MISSING)
    if said is None and name == "n_inner":
        return 4 * config.hidden_size
    return said if isinstance(said, int) else None


def _new_widths(model: nn.Module, originals: Originals) -> list[tuple[str, int, int]]:
    """The paths, and the widths before and after, of projections that have more outputs now."""
    found = []
    for name, original in originals.items():
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(original, nn.Parameter) and last == "weight" and original.ndim == 2:
            before, after = original.shape, module.get_parameter(last).shape
            axis = 0 if isinstance(module, nn.Linear) else 1
            if after[axis] > before[axis]:
                found.append((path, before[axis], after[axis]))
    return found


def _set(config: Any, name: str, value: Any) -> None:
    if value is _MISSING:
        vars(config).pop(name, None)
    else:
        vars(config)[name] = value
