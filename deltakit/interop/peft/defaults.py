"""PEFT's default target modules, by the model's type."""

from collections.abc import Mapping

Table = Mapping[str, tuple[str, ...]]


def _table(modules: Mapping[str, str]) -> Table:
    """From modules to types of models, to the other way round; words are parted by spaces."""
    pairs = ((kind, names) for names, kinds in modules.items() for kind in kinds.split())
    return {kind: tuple(names.split()) for kind, names in pairs}


LORA = _table(
    {
        "q v": "t5 mt5",
        "q_proj v_proj": "bart opt llama mistral mixtral stablelm gemma gemma2 gemma3_text qwen2 "
        "qwen3 gptj",
        "q_proj v_proj fc1 fc2": "phi",
        "in_proj": "deberta",
        "c_attn": "gpt2",
        "query_key_value": "bloom gpt_neox falcon",
        "query value": "bert roberta xlm-roberta electra layoutlm",
        "query_proj value_proj": "deberta-v2",
    }
)
IA3_TARGETS = _table(
    {
        "k v wo": "t5",
        "k v wi_1": "mt5",
        "c_attn mlp.c_proj": "gpt2",
        "query_key_value mlp.dense_4h_to_h": "bloom",
        "key value output.dense": "bert roberta",
        "q_proj k_proj fc2": "opt",
        "query_key_value dense_4h_to_h": "gpt_neox falcon",
        "q_proj v_proj fc2": "bart phi",
        "q_proj v_proj fc_out": "gptj",
        "in_proj output.dense": "deberta",
        "k_proj v_proj down_proj": "llama mistral",
        "k_proj v_proj w2": "mixtral",
        "key_proj value_proj output.dense": "deberta-v2",
        "q_proj v_proj down_proj": "gemma gemma2 gemma3_text qwen2 qwen3",
    }
)
IA3_FEEDFORWARD = _table(
    {
        "wo": "t5",
        "": "mt5",
        "mlp.c_proj": "gpt2",
        "mlp.dense_4h_to_h": "bloom",
        "output.dense": "bert roberta deberta deberta-v2",
        "fc2": "opt bart phi",
        "fc_out": "gptj",
        "dense_4h_to_h": "gpt_neox falcon",
        "down_proj": "llama mistral gemma gemma2 gemma3_text qwen2 qwen3",
        "w2": "mixtral",
    }
)
