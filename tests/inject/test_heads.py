"""Task heads of the classes that transformers registers: found, trained and saved with a delta."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModel
from transformers.models.auto import modeling_auto

import deltakit as dk
from deltakit.errors import DeltakitError
from deltakit.inject.base_names import base_parameters, head_names

pytestmark = pytest.mark.filterwarnings("ignore")  # about the libraries' own defaults

SMALL = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "d_embed"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "hidden_dim"), 32),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_inner"), 32),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("vocab_size", "vocab_size_or_config_json_file"), 320),
    **dict.fromkeys(("num_experts", "num_local_experts", "moe_intermediate_size"), 8),
    "head_dim": 8,
    "d_kv": 8,
    "embedding_size": 32,
    "image_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Values for configs that have settings of these names."""
PRETRAINED = ("PRETRAINING", "BACKBONE", "MASKED_IMAGE", "MASK_GENERATION", "TEXT_ENCODING")
"""Mappings of classes without a task head, or whose head is part of what was pre-trained."""


def registered() -> dict[str, list[tuple[type, type]]]:
    """The config and the class of each model, by the mapping that has it; each class once."""
    found: dict[str, list[tuple[type, type]]] = {}
    seen: set[type] = set()
    for name in sorted(vars(modeling_auto)):
        if not (name.startswith("MODEL_FOR_") and name.endswith("_MAPPING")):
            continue
        if any(word in name for word in PRETRAINED):
            continue
        pairs = [*_pairs(getattr(modeling_auto, name))]
        found[name.removeprefix("MODEL_FOR_").removesuffix("_MAPPING").lower()] = [
            pair for pair in pairs if pair[1] not in seen
        ]
        seen |= {kind for _, kind in pairs}
    return found


def _pairs(mapping: Any) -> Iterator[tuple[type, type]]:
    for config in mapping.keys():  # noqa: SIM118 (a loop over it yields names)
        kinds = mapping[config]
        for kind in kinds if isinstance(kinds, tuple | list) else (kinds,):
            yield config, kind


def small(config: Any) -> Any:
    """A small config, or the default one where small values do not fit together."""
    plain = config()
    fitting = {key: value for key, value in SMALL.items() if hasattr(plain, key)}
    for values in (fitting, {k: v for k, v in fitting.items() if "layer" in k}, {}):
        try:
            made = config(**values)
            with torch.device("meta"):
                AutoModel.from_config(copy.deepcopy(made))
        except Exception:
            continue
        return made
    raise ValueError("it cannot be made from a config alone")


def outside(model: Any) -> set[str]:
    """The parameters that the plain body of the same config has not, by the names of both."""
    with torch.device("meta"):
        body = {*AutoModel.from_config(copy.deepcopy(model.config)).state_dict()}
    prefix = f"{model.base_model_prefix}."
    names = base_parameters(model)
    return {name for name in names if not {name, name.removeprefix(prefix)} & body}


ITS_OWN_BODY = {"HiggsAudioV2ForConditionalGeneration"}
"""Classes with a head that transformers registers as bodies, so nothing says what is outside."""


def wrong(config: type, kind: Any) -> str | None:
    """What is wrong with the head that is found, in one line."""
    if kind.__name__ in ITS_OWN_BODY:
        return None
    made = small(config)
    with torch.device("meta"):
        model = kind(made)
    if model.get_output_embeddings() is not None:
        return f"a language head is found: {head_names(model)}" if head_names(model) else None
    found, expected = head_names(model), outside(model)
    inside = {id(p) for p in model.base_model.parameters()} if model.base_model is not model else {}
    expected -= {name for name, p in base_parameters(model).items() if id(p) in inside}
    if found != expected:
        return f"missing {sorted(expected - found)[:3]}, too much {sorted(found - expected)[:3]}"
    return None


REGISTERED = registered()


def judged(pairs: list[tuple[type, type]]) -> tuple[dict[str, str], int]:
    """What is wrong, by class, and how many classes could be made from a config alone."""
    found: dict[str, str] = {}
    made = 0
    for config, kind in pairs:
        try:
            fault = wrong(config, kind)
        except DeltakitError:
            raise
        except Exception:  # noqa: S112 (it needs another library, or other settings)
            continue
        made += 1
        if fault is not None:
            found[kind.__name__] = fault
    return found, made


@pytest.mark.parametrize("task", REGISTERED)
def test_a_head_is_found_in_a_class_of_each_mapping(task: str) -> None:
    for config, kind in REGISTERED[task]:
        found, made = judged([(config, kind)])
        if made:
            assert found == {}
            return
    pytest.skip("none of its classes can be made from a config alone")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", REGISTERED)
def test_a_head_is_found_in_every_class(task: str) -> None:
    found, made = judged(REGISTERED[task])
    assert found == {}
    print(f"{made} of {len(REGISTERED[task])} classes of {task}")


TRAINED = (
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "CLIPForImageClassification",
    "DistilBertForQuestionAnswering",
    "LlamaForQuestionAnswering",
    "MT5ForQuestionAnswering",
    "T5ForTokenClassification",
    "ViTForImageClassification",
    "WhisperForAudioClassification",
    "Wav2Vec2ForSequenceClassification",
)


@pytest.mark.parametrize("name", TRAINED)
def test_a_head_is_trained_and_saved(name: str, tmp_path: Path) -> None:
    kind = getattr(transformers, name)
    model, other = (kind(small(kind.config_class)).eval() for _ in range(2))
    dk.attach(model, dk.HeadOnly())
    expected = outside(model)
    assert expected and {n for n, p in model.named_parameters() if p.requires_grad} == expected
    assert dk.summary(model).head_params == sum(p.numel() for p in own(model).values())
    with torch.no_grad():
        for parameter in own(model).values():
            parameter.add_(1.0)
    dk.save(model, tmp_path)
    dk.load(other, tmp_path)
    assert own(other).keys() == own(model).keys()
    assert all(torch.equal(own(other)[key], value) for key, value in own(model).items())


def own(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_a_head_added_to_a_body_by_a_class_of_its_own() -> None:
    class Added(transformers.BertModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.scores = torch.nn.Linear(config.hidden_size, 3)

    assert head_names(Added(small(transformers.BertConfig))) == {"scores.weight", "scores.bias"}


TWO_HEADED = {
    "GPT2DoubleHeadsModel": "multiple_choice_head.",
    "OpenAIGPTDoubleHeadsModel": "multiple_choice_head.",
}


@pytest.mark.parametrize("name", TWO_HEADED)
def test_a_head_beside_that_of_the_vocabulary(name: str) -> None:
    kind = getattr(transformers, name)
    head = head_names(kind(small(kind.config_class)))
    assert head and all(each.startswith(TWO_HEADED[name]) for each in head)


def test_a_head_beside_that_of_the_vocabulary_is_trained_and_saved(tmp_path: Path) -> None:
    kind = transformers.GPT2DoubleHeadsModel
    model, other = (kind(small(kind.config_class)).eval() for _ in range(2))
    dk.attach(model, dk.LoRA(rank=2, targets="all"))
    ids = torch.tensor([[[5, 6, 7], [5, 8, 9]]])
    model(ids, mc_token_ids=torch.tensor([[2, 2]]), mc_labels=torch.tensor([1])).mc_loss.backward()
    assert all(own(model)[each].grad is not None for each in head_names(other))
    with torch.no_grad():
        for each in own(model).values():
            each.add_(0.3)
    dk.save(model, tmp_path)
    dk.load(other, tmp_path)
    assert all(torch.equal(own(other)[key], value) for key, value in own(model).items())


def test_a_value_head_of_a_class_of_its_own_beside_that_of_the_vocabulary() -> None:
    class Valued(transformers.BertForMaskedLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.value = torch.nn.Linear(config.hidden_size, 1)

    class Plain(transformers.BertForMaskedLM):
        pass

    config = small(transformers.BertConfig)
    assert head_names(Valued(config)) == {"value.weight", "value.bias"}
    assert head_names(Plain(config)) == frozenset()


def with_language_heads() -> Iterator[Any]:
    """Every class of transformers' that has a projection to the vocabulary, as a small model."""
    for name in dir(transformers):
        kind = None if name.startswith("Auto") else getattr(transformers, name, None)
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
            continue
        try:
            with torch.device("meta"):
                model = kind(small(kind.config_class))
            predicts = model.get_output_embeddings()
        except Exception:  # noqa: S112 (it needs another library, or other settings)
            continue
        if predicts is not None:
            yield model


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_other_class_with_a_vocabulary_has_a_head() -> None:
    found = {type(model).__name__ for model in with_language_heads() if head_names(model)}
    assert found == {*TWO_HEADED}


def test_a_body_whose_layers_are_called_its_base_has_no_head() -> None:
    with torch.device("meta"):
        model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig())
    assert model.base_model is not model and head_names(model) == frozenset()


def test_a_body_under_another_name_in_a_class_of_its_own() -> None:
    class Scored(transformers.PreTrainedModel):
        config_class = transformers.BertConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.reader = transformers.BertModel(config)
            self.scale = torch.nn.Parameter(torch.ones(3))
            self.scores = torch.nn.Linear(config.hidden_size, 3)
            self.post_init()

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.scores(self.reader(input_ids).pooler_output) * self.scale

    model = Scored(small(transformers.BertConfig)).eval()
    head = {"scale", "scores.weight", "scores.bias"}
    assert head_names(model) == head
    dk.attach(model, dk.LoRA(rank=2) + dk.PromptTuning(length=2))
    assert head < {name for name, p in model.named_parameters() if p.requires_grad}
    model(torch.tensor([[5, 6, 7]])).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
