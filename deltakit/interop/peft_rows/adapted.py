"""A model with one of PEFT's tuners on it, treated by a comparison as one with our deltas is.

A row of PEFT's and one of deltakit's are made alike:

- The task head is trained and saved, and nothing of the base is: PEFT's `modules_to_save`.
- New parameters have the dtype of the layer that they change (`autocast_adapter_dtype=False`; PEFT
  would hold them in float32 on a bf16 base).
- The base, which latency is measured against, is the plain model: PEFT's own `disable_adapter`
  leaves its wrappers in the path, so they are taken out, also where the method is merged.
"""

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltakit.arch.resolve import resolve
from deltakit.core.data_start import BATCHES
from deltakit.core.provider import AdaptedModel, Counts
from deltakit.core.site import Site
from deltakit.core.spec import format_method
from deltakit.errors import CheckpointError, DeltakitError, InvalidConfig, NotMergeable
from deltakit.inject.base_names import head_names
from deltakit.inject.summary import summary
from deltakit.interop.peft_rows.starts import (
    ADAPTER,
    give,
    on_device,
    plain_config,
    start_of,
    take_out,
)
from deltakit.interop.peft_rows.tuner import PeftTuner, first_line, refusal
from deltakit.methods.norms import NormTuning
from deltakit.models.quantised import codec_of, keep_as_loaded

SECOND = "second"

RESUME = Path("resume") / "trained.safetensors"
"""All that was trained, beside PEFT's own files: a prompt's encoder, for one, is not in those."""
START = "start.safetensors"
"""The factors that a start from data took out of the base, beside PEFT's own file."""

NEEDS_MORE = {
    "multitask_prompt_tuning": "several tasks at once",
    "poly": "several tasks at once",
    "xlora": "LoRAs that are trained already",
}
"""Tuners that take more than one training on one task."""
ON_QUANTISED = frozenset({
    "adalora", "beft", "boft", "cartridge", "dora", "eva", "fourierft", "gralora", "hira", "ia3",
    "lily",
    "ln_tuning", "loha", "lokr", "lora", "miss", "oft", "p_tuning", "prefix_tuning",
    "prompt_tuning", "pvera", "randlora", "road", "rslora", "shira", "vblora", "vera", "waveft",
})  # fmt: skip
"""Tuners that do on quantised weights what they do on the same weights in full, or fail aloud.

Others take packed numbers for weights (HRA), or have no effect at all (Uni-LoRA).
"""


class PeftAdaptedModel(AdaptedModel):
    """A model that PEFT has wrapped. `attach` makes `model` PEFT's."""

    def __init__(self, model: Any, method: PeftTuner) -> None:
        super().__init__(model)
        self.method = method
        self._plain = summary(model)
        self._taken_out: dict[str, Tensor] = {}
        self._heads = sorted({name.partition(".")[0] for name in head_names(model)})

    def attach(self) -> None:
        keep_as_loaded(self.model)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            _check_trainable(self.model, self.method)
            more = self._targets()
            if "modules_to_save" in self.method.fields():
                more["modules_to_save"] = list(self._heads)
            if not self._heads:  # a language model's belongs to the base
                more["task_type"] = "CAUSAL_LM"
            self.model = _put_on(self.model, lambda: self._config(more))
        self._note(*(f"PEFT warns: {first_line(warning.message)}" for warning in said))
        self._check_head()

    def prepare(self, batches: Iterable[Mapping[str, Any]]) -> None:
        start = start_of(self.method)
        if start is None:
            return
        held = on_device(islice(batches, BATCHES), self.model.device)
        with _quiet(InvalidConfig):
            self._taken_out = give(self.model, start, self._bare_base, held)

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        self.model.save_pretrained(folder, save_embedding_layers=False)
        trained = {name: p.detach().cpu().contiguous() for name, p in self._trained().items()}
        (folder / RESUME).parent.mkdir(exist_ok=True)
        save_file(trained, folder / RESUME)
        if self._taken_out:
            save_file({k: v.cpu() for k, v in self._taken_out.items()}, folder / START)

    def load(self, folder: Path) -> None:
        from peft import PeftConfig
        from safetensors.torch import load_file

        self._attach_as_saved(folder)
        saved, trained = load_file(folder / RESUME), self._trained()
        if saved.keys() != trained.keys():
            raise CheckpointError(
                f"{folder / RESUME} does not fit: another version of PEFT trains other parameters "
                "here. Remove the folder, and it is trained again."
            )
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(saved[name])
        # A tuner may write into its configuration while it trains, as AdaLoRA does.
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = False
        self.model.peft_config[ADAPTER] = config

    def counts(self) -> Counts:
        head = self._plain.head_params
        trained = sum(p.numel() for p in self._trained().values()) - head
        return Counts(
            trained_params=trained,
            trained_pct=100 * trained / self._plain.base_params,
            deployed_params=self._kept() - head,
            head_params=head,
            base_bytes=self._plain.base_bytes,
        )

    def deploy(self) -> bool:
        """Prompts without the network that makes them, as they are in PEFT's file already."""
        from peft import PrefixTuningConfig, PromptEncoderConfig

        config = self.model.peft_config[ADAPTER]
        if isinstance(config, PrefixTuningConfig | PromptEncoderConfig):
            prompt = self._prompt()
            config.inference_mode = True
            encoder = type(self.model.prompt_encoder[ADAPTER])(config).to(prompt.device)
            encoder.embedding.weight = nn.Parameter(prompt, requires_grad=False)
            self.model.prompt_encoder[ADAPTER] = encoder
        return False

    def disabled(self) -> AbstractContextManager[nn.Module]:
        return self._bare_base()

    @contextmanager
    def merged(self) -> Iterator[nn.Module]:
        from peft.tuners.tuners_utils import BaseTuner

        tuner = self.model.base_model
        if not isinstance(tuner, BaseTuner):
            raise NotMergeable(f"{format_method(self.method)} changes no weight to fold it into.")
        with _quiet():
            tuner.merge_adapter()
        try:
            with self._bare(lambda wrapper: wrapper.modules_to_save[ADAPTER]) as base:
                yield base
        finally:
            with _quiet():
                tuner.unmerge_adapter()

    @contextmanager
    def second_copy(self, folder: Path) -> Iterator[Callable[[], None]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it said when the first one was put on
            self.model.load_adapter(folder, SECOND, autocast_adapter_dtype=False)
        names = cycle((SECOND, ADAPTER))
        self.model.set_adapter(next(names))
        try:
            yield lambda: self.model.set_adapter(next(names))
        finally:
            self.model.set_adapter(ADAPTER)
            self.model.delete_adapter(SECOND)

    def callbacks(self) -> tuple[Any, ...]:
        from peft import AdaLoraModel

        tuner = self.model.base_model
        return (_allocation(tuner),) if isinstance(tuner, AdaLoraModel) else ()

    # ------------------------------------------------------------------------------- its parts

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _is_prompt(self) -> bool:
        return bool(self.model.peft_config[ADAPTER].is_prompt_learning)

    def _prompt(self) -> Tensor:
        """What PEFT saves of a prompt: the encoder's output, ``(length, width)``."""
        encoder = self.model.prompt_encoder[ADAPTER]
        tokens = self.model.prompt_tokens[ADAPTER].to(encoder.embedding.weight.device)
        with torch.no_grad():
            out: Tensor = encoder(tokens[None])[0]
        return out

    def _kept(self) -> int:
        """How many numbers are in PEFT's file, the task head's among them."""
        from peft import get_peft_model_state_dict

        if self._is_prompt():
            return self._prompt().numel() + self._plain.head_params
        state = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        return sum(tensor.numel() for tensor in state.values())

    def _check_head(self) -> None:
        base = self.model.get_base_model()
        found = sum(
            parameter.numel()
            for name in self._heads
            for parameter in base.get_submodule(name).parameters()
            if parameter.requires_grad
        )
        if found != self._plain.head_params:
            what = "reaches into" if found else "does not train"
            raise InvalidConfig(
                f"it {what} the task head ({', '.join(self._heads)}), "
                "which every other row trains as a whole. Take other target_modules, or another "
                "tuner."
            )

    def _config(self, more: Mapping[str, Any]) -> Any:
        config = self.method.config(**copy.deepcopy(dict(more)))
        return config if start_of(self.method) is None else plain_config(config)

    def _attach_as_saved(self, folder: Path) -> None:
        """A start from data may have changed the ranks, and the base's weights."""
        from peft import PeftConfig
        from safetensors.torch import load_file

        start = start_of(self.method)
        if start is None:
            self.attach()
            return
        keep_as_loaded(self.model)
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = False
        self.model = _put_on(self.model, lambda: copy.deepcopy(config))
        if (folder / START).exists():
            self._taken_out = load_file(folder / START)
            take_out(self.model, start, self._taken_out)

    def _bare_base(self) -> AbstractContextManager[nn.Module]:
        return self._bare(lambda wrapper: wrapper.original_module)

    @contextmanager
    def _bare(self, head: Callable[[Any], nn.Module]) -> Iterator[nn.Module]:
        """The plain model: layers in place of PEFT's around them, and the `head` of a wrapper."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import ModulesToSaveWrapper

        base = self.model.get_base_model()
        inside = [
            (parent, *child) for parent in base.modules() for child in parent.named_children()
        ]
        wrapped = [
            (parent, name, child)
            for parent, name, child in inside
            if isinstance(child, BaseTunerLayer | ModulesToSaveWrapper)
        ]
        for parent, name, child in wrapped:
            is_layer = isinstance(child, BaseTunerLayer)
            parent._modules[name] = child.get_base_layer() if is_layer else head(child)
        try:
            yield base
        finally:
            for parent, name, child in wrapped:
                parent._modules[name] = child

    def _note(self, *sentences: str) -> None:
        label = format_method(self.method)
        fresh = dict.fromkeys(f"{label}: {sentence}" for sentence in sentences)
        self.notes = (*self.notes, *(note for note in fresh if note not in self.notes))

    def _targets(self) -> dict[str, Any]:
        """Our sites in PEFT's words, where PEFT has no targets for models of this type."""
        known = _known_types(self.method)
        model_type = self.model.config.model_type
        given = any(key.startswith("target_") for key, _ in self.method.settings)
        if not known or model_type in known or given:
            return {}
        words, targets = _usual_targets(self.model, self.method.name)
        self._note(
            f"PEFT has no target modules for models of type {model_type!r}, so it is on {words}, "
            "as deltakit finds them."
        )
        return targets


def _check_trainable(model: Any, method: PeftTuner) -> None:
    """Raises `InvalidConfig` for what a training like every other row's cannot train."""
    config = method.config()
    quantised = any(codec_of(module) is not None for module in model.modules())
    if quantised and method.name not in ON_QUANTISED:
        raise InvalidConfig(
            "PEFT has no layers of it for quantised weights, and would take their packed numbers "
            "for weights. Take a floating-point base."
        )
    if method.name in NEEDS_MORE:
        raise InvalidConfig(
            f"it takes {NEEDS_MORE[method.name]}, and a row is one training on one task. Leave it "
            "out."
        )
    if config.is_prompt_learning and not config.num_virtual_tokens:
        raise InvalidConfig(
            "it needs a length, for which PEFT has no default: "
            f"{method.provider}:{method.name}[num_virtual_tokens=20]."
        )


def _known_types(method: PeftTuner) -> Collection[str]:
    """The model types that PEFT has targets for; none where the tuner takes no such targets."""
    from peft import IA3Config
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING

    config = method.config()
    if isinstance(config, IA3Config):
        return TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    return vars(tuner).get("target_module_mapping") or ()


def _usual_targets(model: Any, name: str) -> tuple[str, dict[str, Any]]:
    """What a tuner is put on where PEFT does not know: in words, and as fields of its config."""
    if name == "ln_tuning":
        norms = NormTuning()
        named = model.base_model.named_modules(prefix=model.base_model_prefix)
        return "the norms", {
            "target_modules": [path for path, m in named if norms.trains_base_parameter("", m)]
        }
    if name == "ia3":
        down = _paths(model, Site.FFN_DOWN)
        targets = [*_paths(model, Site.ATTN_K, Site.ATTN_V), *down]
        words = "the key, value and second feed-forward projections"
        return words, {"target_modules": targets, "feedforward_modules": down}
    return "the query and value projections", {
        "target_modules": _paths(model, Site.ATTN_Q, Site.ATTN_V)
    }


def _paths(model: Any, *sites: Site) -> list[str]:
    return sorted({handle.path for handle in resolve(model) if handle.site in sites})


def _put_on(model: Any, config: Callable[[], Any]) -> Any:
    """PEFT's model around `model`.

    Raises:
        InvalidConfig: PEFT refuses it.
    """
    from peft import get_peft_model

    def wrapped(model: Any) -> Any:
        return get_peft_model(model, config(), ADAPTER, autocast_adapter_dtype=False)

    device = model.device
    spare = copy.deepcopy(model) if device.type == "meta" else None
    try:
        try:
            return _placed(wrapped(model), device)
        except RuntimeError:
            if spare is None:
                raise
            # Some tuners start from the weights, which a model on the meta device does not have.
            return wrapped(_filled(spare))
    except Exception as error:  # PEFT has no class of its own for what it refuses
        raise refusal(error, InvalidConfig) from None


def _placed(model: Any, device: torch.device) -> Any:
    """The model with all buffers on the device: VeRA leaves its projections on the CPU."""
    for buffer in model.buffers() if device.type != "meta" else ():
        buffer.data = buffer.data.to(device)
    return model


def _filled(model: nn.Module) -> nn.Module:
    """A model without weights with random ones, on the CPU."""
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model


@contextmanager
def _quiet(kind: type[DeltakitError] = NotMergeable) -> Iterator[None]:
    """Keeps PEFT's warnings back, and makes its errors of one kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except DeltakitError:
            raise
        except Exception as error:  # NotImplementedError, ValueError, AttributeError: each tuner's
            raise refusal(error, kind) from None


def _allocation(tuner: Any) -> Any:
    """AdaLoRA's part between two steps: it moves ranks to where they matter."""
    from transformers import TrainerCallback

    class Allocation(TrainerCallback):
        """A callback that gives AdaLoRA the number of steps, and the current one."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            config = tuner.peft_config[ADAPTER]
            if config.tinit >= state.max_steps - config.tfinal:
                raise InvalidConfig(
                    f"AdaLoRA's tinit={config.tinit} and tfinal={config.tfinal} leave none of the "
                    f"{state.max_steps} steps to move ranks in. Lower them, or train longer."
                )
            tuner.rankallocator.set_total_step(state.max_steps)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tuner.update_and_allocate(state.global_step + 1)

    return Allocation()
