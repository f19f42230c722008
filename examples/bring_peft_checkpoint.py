"""Bring a checkpoint of PEFT: load it, check it, merge it, and take it back.

    python examples/bring_peft_checkpoint.py       # needs the extra "peft"

The checkpoint is made by PEFT here. deltakit computes the same with it, and writes it back bit for
bit, so the two libraries can be used on the same files.
"""

import tempfile
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file
from tiny import make_model, make_tokenizer

import deltakit as dk


def make_checkpoint(folder: Path, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Saves a LoRA of PEFT, its values random, and returns its logits."""
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["query", "value"],
        task_type="SEQ_CLS",
        init_lora_weights=False,
    )
    model = peft.get_peft_model(make_model(), config).eval()
    model.save_pretrained(str(folder))
    with torch.no_grad():
        return model(**batch).logits


@torch.no_grad()
def main(folder: Path) -> None:
    """PEFT to deltakit, and back."""
    batch = dict(make_tokenizer()(["a great film", "a weak plot"], return_tensors="pt"))
    expected = make_checkpoint(folder / "theirs", batch)

    model = make_model()
    dk.load(model, folder / "theirs", name="lora")
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-5, atol=1e-5)
    print(dk.summary(model))
    print(dk.merge(model))
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    dk.unmerge(model)

    dk.save(model, folder / "back", name="lora", format="peft")
    first, second = (
        load_file(folder / each / "adapter_model.safetensors") for each in ("theirs", "back")
    )
    assert all(torch.equal(first[key], second[key]) for key in first.keys() | second.keys())
    print(f"back in PEFT's format: {len(first)} tensors, the same bits")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
