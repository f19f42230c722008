"""A small ViT, pre-trained on the digits 0 to 4, for a comparison on the digits 5 to 9.

    python examples/digits_vit.py digits

writes ``digits/vit``, and the other digits to ``digits/five-to-nine``, a folder for each. Without a
folder it takes a few steps, and keeps nothing.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from deltakit.compare.tasks.data.pictures import opened
from deltakit.compare.tasks.shipped.digits import png


def pretrain(images: list[bytes], digits: Any, folder: Path, steps: int) -> float:
    """Trains on pictures of the first five digits; returns the share that it tells right."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 128}
    config = ViTConfig(image_size=8, patch_size=2, num_attention_heads=4, num_labels=5, **sizes)
    model = ViTForImageClassification(config)
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    pixels = processor([opened(each) for each in images], return_tensors="pt")["pixel_values"]
    labels, optimiser = torch.tensor(digits), torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(labels), (64,))
        model(pixel_values=pixels[rows], labels=labels[rows]).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    for each in (model, processor):
        each.save_pretrained(folder)
    return float((model(pixel_values=pixels).logits.argmax(-1) == labels).float().mean())


def main(place: Path, steps: int) -> None:
    """Writes the model and the pictures of the other digits."""
    grey, digits = load_digits(return_X_y=True)
    images = [png(each.reshape(8, 8)) for each in grey]
    first = [row for row, digit in enumerate(digits) if digit < 5]
    right = pretrain([images[row] for row in first], digits[first], place / "vit", steps)
    for row in set(range(len(digits))) - set(first):
        folder = place / "five-to-nine" / str(digits[row])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{row:04}.png").write_bytes(images[row])
    print(f"{right:.1%} of {len(first)} training pictures are told right after {steps} steps.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), steps=400)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch), steps=5)
