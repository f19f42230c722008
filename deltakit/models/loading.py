"""Loading a pretrained model in a weight format, and what can be told before it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltakit.errors import InvalidConfig, UnknownName, first_line, unknown
from deltakit.models.weights import COMPUTE_DTYPES, WEIGHT_FORMATS, WeightFormat, dtype_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

HEAD_CLASSES = {
    "bare": "AutoModel",
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classify": "AutoModelForSequenceClassification",
    "classify_tokens": "AutoModelForTokenClassification",
    "classify_images": "AutoModelForImageClassification",
    "extract_spans": "AutoModelForQuestionAnswering",
    "choose": "AutoModelForMultipleChoice",
    "masked": "AutoModelForMaskedLM",
}
"""What a model is loaded for, and transformers' class for it."""


def load_base(
    model: str | Path,
    base: str | None = None,
    *,
    task: str = "bare",
    labels: int | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    local_files_only: bool = False,
) -> PreTrainedModel:
    """Loads a pretrained model in a base: ``load_base("owner/model", "nf4", task="causal")``.

    Task heads, and modules that the checkpoint has no values for, are not quantised. nf4 and fp4
    have their statistics quantised too (QLoRA's double quantisation). Any method attaches to the
    result; it needs no further preparation.

    Args:
        model: a Hub name, or a folder.
        base: "fp32", "bf16", "int8", "nf4" or "fp4"; by default the one that the checkpoint is
            quantised in, else "fp32". A quantised checkpoint is kept as it is.
        task: "bare", "causal", "seq2seq", "classify", "classify_tokens", "classify_images",
            "extract_spans", "choose" or "masked".
        labels: how many classes the head has.
        dtype: what a quantised base computes in, and what is not quantised is held in; bf16 by
            default.
        device: where the model is put.
        local_files_only: makes no request to the Hub.

    Raises:
        UnknownName: a base, a task or a model that there is not.
        MissingExtra: the base needs a package that is not installed.
        InvalidConfig: a base that the device does not run, a dtype that it does not compute in, a
            checkpoint that is quantised another way, or an architecture without such a head.
    """
    return read_base(
        model, base, task=task, labels=labels, dtype=dtype, device=device,
        local_files_only=local_files_only,
    )[0]  # fmt: skip


def read_base(
    model: str | Path,
    base: str | None = None,
    *,
    task: str = "bare",
    labels: int | None = None,
    problem: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    local_files_only: bool = False,
) -> tuple[PreTrainedModel, frozenset[str]]:
    """As `load_base`, with the names of the parameters that the checkpoint has no values for.

    `problem` is transformers' name for what a head of `labels` numbers is trained on; by default
    the labels tell.
    """
    import torch

    from deltakit.models.quantised import keep_as_loaded

    name, place = str(model), torch.device(device)
    config = read_config(name, labels, problem, local_files_only=local_files_only)
    chosen, dtype = _checked(name, config, base, dtype, place)
    kind = _class(task)
    skip = _heads(name, config, kind)
    while True:
        read, found = kind.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            device_map={"": place},
            local_files_only=local_files_only,
            output_loading_info=True,
            # A head that was trained for another number of classes is drawn freshly too.
            ignore_mismatched_sizes=labels is not None,
            **chosen.arguments(_stored(config), dtype, skip),
        )
        fresh = _unquantised(read)
        if not fresh or set(fresh) <= set(skip):
            break
        skip = [*skip, *fresh]  # what the checkpoint has no values for is found only by reading it
    keep_as_loaded(read)
    chosen.quiet()
    other = _other_sizes(name, read, found["mismatched_keys"])
    return read, frozenset({*found["missing_keys"], *other})


def _other_sizes(name: str, model: PreTrainedModel, mismatched: Any) -> set[str]:
    """The parameters of the head whose sizes are not those of the checkpoint.

    Raises:
        InvalidConfig: parameters of the base model have other sizes.
    """
    keys = {each if isinstance(each, str) else each[0] for each in mismatched}
    heads = tuple(f"{path}." for path in head_paths(model))
    wrong = sorted(key for key in keys if not key.startswith(heads))
    if wrong:
        raise InvalidConfig(
            f"model {name!r}: its weights do not have the sizes of its config, {wrong[0]} for one. "
            "Give a folder that save_pretrained wrote."
        )
    return keys


def check_base(
    model: str | Path,
    base: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    local_files_only: bool = False,
) -> WeightFormat:
    """The base, if `load_base` would have the model in it here. Raises as `load_base`."""
    import torch

    config = read_config(str(model), local_files_only=local_files_only)
    return _checked(str(model), config, base, dtype, torch.device(device))[0]


def _checked(
    name: str, config: Any, base: str | None, dtype: torch.dtype | None, device: torch.device
) -> tuple[WeightFormat, torch.dtype]:
    """The base and what it computes in."""
    chosen = _chosen(name, base, _stored(config))
    dtype = dtype or (config.dtype if _stored(config) else None) or chosen.dtype
    chosen.check(device, dtype)
    _check_computes(dtype, device)
    return chosen, dtype


def read_config(
    name: str,
    labels: int | None = None,
    problem: str | None = None,
    *,
    local_files_only: bool = False,
) -> Any:
    """A model's config, with a head as `read_base` would draw it.

    Raises:
        UnknownName: there is none.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local_files_only)
    except (OSError, ValueError, KeyError) as error:
        raise UnknownName(
            f"model {name!r} cannot be loaded: {first_line(error)} Give a folder that holds a "
            "transformers checkpoint, or a Hub name."
        ) from None
    if labels is not None:
        # What a checkpoint was fine-tuned on before is no part of a head that is to be drawn.
        config.problem_type, config.num_labels = problem, labels
    return config


def _stored(config: Any) -> dict[str, Any] | None:
    """The quantisation config of the checkpoint."""
    return vars(config).get("quantization_config")


def _chosen(name: str, base: str | None, stored: dict[str, Any] | None) -> WeightFormat:
    wanted = None if base is None else WEIGHT_FORMATS.get(base)
    own = next(
        (each for each in map(WEIGHT_FORMATS.get, WEIGHT_FORMATS) if each.reads(stored)), None
    )
    if stored is None:
        return wanted or WEIGHT_FORMATS.get("fp32")
    if own is None:
        raise InvalidConfig(
            f"model {name!r} is quantised by {stored.get('quant_method')!r}, which load_base does "
            f"not read; it reads {', '.join(WEIGHT_FORMATS)}. "
            "Load it with transformers, then attach."
        )
    if wanted not in (None, own):
        raise InvalidConfig(
            f"model {name!r} is quantised as {own.name!r} already and cannot become {base!r}. Give "
            f"base={own.name!r}, or load the checkpoint that it was made from."
        )
    return own


def _check_computes(dtype: torch.dtype, device: torch.device) -> None:
    import torch

    known = [dtype_of(name) for name in COMPUTE_DTYPES]
    if dtype not in known:
        raise InvalidConfig(
            f"no model computes in {dtype}; give one of {', '.join(map(str, known))}."
        )
    try:
        one = torch.ones(1, 1, dtype=dtype, device=device)
        torch.nn.functional.layer_norm(one @ one, (1,))
    except (RuntimeError, TypeError, AssertionError) as error:
        raise InvalidConfig(
            f"{device.type!r} does not compute in {dtype} here: {first_line(error)} Give another "
            "device= or dtype=."
        ) from None


def _class(task: str) -> Any:
    import transformers

    if task not in HEAD_CLASSES:
        raise unknown("task", task, HEAD_CLASSES)
    return getattr(transformers, HEAD_CLASSES[task])


def _heads(name: str, config: Any, kind: Any) -> list[str]:
    """As `head_paths`, of a model that is made for it."""
    import torch

    try:
        with torch.device("meta"):
            skeleton = kind.from_config(config)
    except ValueError as error:
        raise InvalidConfig(f"model {name!r}: {first_line(error)}") from None
    return head_paths(skeleton)


def head_paths(model: PreTrainedModel) -> list[str]:
    """The paths of modules outside the base model, and of the one that predicts tokens."""
    inside = set(model.base_model.modules()) - {model.get_output_embeddings()}
    return [
        path
        for path, module in model.named_modules()
        if path and module not in inside and next(module.parameters(), None) is not None
    ]


def _unquantised(model: PreTrainedModel) -> list[str]:
    """Modules that were to be quantised and are not: the checkpoint has no values for them."""
    from deltakit.models.quantised import codec_class, codec_of

    return [
        name
        for name, module in model.named_modules()
        if codec_class(module) is not None and codec_of(module) is None
    ]
