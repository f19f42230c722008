"""A hybrid of your own: the sum of two methods, and MAM as one such sum.

    python examples/mam_hybrid.py

He et al. (2022) found MAM by taking methods apart: a prefix at the attention and a scaled parallel
adapter at the feed-forward. Here the same method is written as a sum, in code and as a spec.
"""

import torch
from tiny import make_model, make_tokenizer

import deltakit as dk
from deltakit.core.method import Method


def describe(method: Method) -> None:
    """The method as its list of placements."""
    print(f"{method!r:.70}")
    for each in method.placements():
        print(f"    at {each.site}: {each.insertion.name.lower()}, scale {each.scale}")


def main() -> None:
    """Builds the hybrid, trains it for a few steps and takes it off again."""
    hybrid = dk.PrefixTuning(length=4, bottleneck=8) + dk.ParallelAdapter(bottleneck=8, scale=4.0)
    describe(dk.MAM(length=4, prefix_bottleneck=8, bottleneck=8))
    describe(hybrid)
    describe(dk.parse_method("prefix[length=4, bottleneck=8] + lora[rank=4]"))

    model, tokenizer = make_model(), make_tokenizer()
    batch = tokenizer(
        ["a great film", "the plot and the awful end"], padding=True, return_tensors="pt"
    )
    before = model(**batch).logits
    dk.attach(model, hybrid, name="hybrid")
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for step in range(5):
        loss = model(**batch, labels=torch.tensor([1, 0])).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        print(f"step {step}: loss {loss:.3f}")
    print(dk.summary(model))
    dk.detach(model)
    assert torch.equal(model(**batch).logits, before)


if __name__ == "__main__":
    main()
