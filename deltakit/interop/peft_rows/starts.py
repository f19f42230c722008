"""Starts that PEFT's LoRA takes from data: EVA, CorDA and LoRA-GA, by PEFT's own functions.

Two of them, `corda` and `lora_ga`, take the product of the factors that they start with out of the
base's weights. So these factors are saved next to the trained ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from deltakit.errors import InvalidConfig
from deltakit.interop.peft_rows.tuner import PeftTuner

ADAPTER = "default"
"""PEFT's name for what is put on: with this one it saves right into a folder."""

CONFIGS = {"eva": "eva_config", "corda": "corda_config", "lora_ga": "lora_ga_config"}
"""By initialisation, the field of its further settings."""

OUT_OF_THE_BASE: dict[str, Callable[[float, Tensor, Tensor], Tensor]] = {
    "corda": lambda scale, a, b: scale * b @ a,
    "lora_ga": lambda scale, a, b: scale * (b @ a),
}
"""What a start takes out of a weight, rounded as PEFT rounds it; ``(d_out, d_in)``."""

Batches = Sequence[Mapping[str, Any]]
Bare = Callable[[], AbstractContextManager[nn.Module]]


def start_of(method: PeftTuner) -> str | None:
    """The initialisation that needs data, or None."""
    start = method.given.get("init_lora_weights")
    return start if start in CONFIGS else None


def plain_config(config: Any) -> Any:
    """The configuration with PEFT's usual initialisation, in place: its layers begin so."""
    config.init_lora_weights = True
    for field in CONFIGS.values():
        setattr(config, field, None)
    return config


def give(model: Any, start: str, bare: Bare, batches: Batches) -> dict[str, Tensor]:
    """Starts PEFT's LoRA on the model. Returns the factors that were taken out of the base.

    Args:
        model: PEFT's, as `plain_config` makes it.
        start: "eva", "corda" or "lora_ga".
        bare: makes a context with the plain base.
        batches: of the training data, with labels, on the model's device.

    Raises:
        InvalidConfig: there are no batches, or too few tokens in one.
    """
    if not batches:
        raise InvalidConfig(f"init_lora_weights={start} starts from data, and there are none.")
    config = model.peft_config[ADAPTER]
    config.init_lora_weights = start
    setattr(config, CONFIGS[start], _settings(start))
    {"eva": _eva, "corda": _corda, "lora_ga": _lora_ga}[start](model, bare, batches)
    plain_config(model.peft_config[ADAPTER])
    return dict(_factors(model)) if start in OUT_OF_THE_BASE else {}


def take_out(model: Any, start: str, factors: Mapping[str, Tensor]) -> None:
    """Takes the product of the factors out of a fresh base, as `give` did."""
    for path, layer in _layers(model):
        a, b = factors[f"{path}.A"], factors[f"{path}.B"]
        weight = layer.get_base_layer().weight
        product = OUT_OF_THE_BASE[start](
            layer.scaling[ADAPTER], a.to(weight.device), b.to(weight.device)
        )
        change = product.T if layer.fan_in_fan_out else product
        weight.data = (weight.data.float() - change).to(weight.dtype)


def _settings(start: str) -> Any:
    from peft import EvaConfig, LoraGAConfig
    from peft.tuners.lora.config import CordaConfig

    return {"eva": EvaConfig, "corda": CordaConfig, "lora_ga": LoraGAConfig}[start]()


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield path, module


def _factors(model: Any) -> Iterator[tuple[str, Tensor]]:
    for path, layer in _layers(model):
        yield f"{path}.A", layer.lora_A[ADAPTER].weight.detach().float().clone()
        yield f"{path}.B", layer.lora_B[ADAPTER].weight.detach().float().clone()


def _eva(model: Any, bare: Bare, batches: Batches) -> None:
    from peft import initialize_lora_eva_weights

    del bare
    config = model.peft_config[ADAPTER]
    needed = round(config.r * config.eva_config.rho)
    fewest = min(int(batch["attention_mask"].sum()) for batch in batches)
    if fewest < needed:
        raise InvalidConfig(
            f"init_lora_weights=eva with r={config.r} takes {needed} components from each batch, "
            f"and one has {fewest} tokens. Take a lower r, or larger batches."
        )
    initialize_lora_eva_weights(
        model,
        [_by_token(batch) for batch in batches],
        show_progress_bar=False,
        gather_distributed_inputs=False,
    )


def _by_token(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch without labels of whole texts: EVA takes labels for those of tokens."""
    tokens = batch["attention_mask"].shape
    return {k: v for k, v in batch.items() if k != "labels" or v.shape == tokens}


def _corda(model: Any, bare: Bare, batches: Batches) -> None:
    from peft.tuners.lora.corda import preprocess_corda

    with bare() as base:
        _check_whole(base)

        def run() -> None:
            for batch in batches:
                for row in _rows(batch):
                    base(**row)

        training = base.training
        preprocess_corda(base, model.peft_config[ADAPTER], run)
        base.train(training)
    for _, layer in _layers(model):
        layer.corda_init(ADAPTER, "corda")


def _lora_ga(model: Any, bare: Bare, batches: Batches) -> None:
    from peft.tuners.lora.loraga import preprocess_loraga

    config = model.peft_config[ADAPTER]
    with bare() as base:
        _check_whole(base)

        def run() -> None:
            for batch in batches:
                base(**batch).loss.backward()

        preprocess_loraga(base, config, run)
    for _, layer in _layers(model):
        layer.lora_ga_init(ADAPTER, config.lora_ga_config)


def _check_whole(base: nn.Module) -> None:
    """Raises `InvalidConfig` for a base whose weights are packed."""
    from deltakit.models.quantised import codec_of

    if any(codec_of(module) is not None for module in base.modules()):
        raise InvalidConfig(
            "it starts from the weights themselves, and these are quantised. Take a base in a "
            "floating-point dtype, or init_lora_weights=eva."
        )


def _rows(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a batch one by one, without padding: CorDA's covariance would count it."""
    mask = batch.get("attention_mask")
    first = next(iter(batch.values()))
    for row in range(len(first)):
        one = {key: value[row : row + 1] for key, value in batch.items() if key != "labels"}
        if mask is not None:
            real = mask[row].bool()
            one = {
                key: value[:, real] if value.shape[1:2] == real.shape else value
                for key, value in one.items()
            }
        yield one


def on_device(batches: Any, device: torch.device) -> list[dict[str, Any]]:
    """The batches as a list, on a device."""
    return [{key: value.to(device) for key, value in batch.items()} for batch in batches]
