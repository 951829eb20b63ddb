"""Cuts the smallest weights of a model's linear layers away: `python examples/prune.py MODEL PRUNED SHARE`."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(source: str, target: str, share: float) -> None:
    """Save the model in the folder `source` to `target`, with this share of each linear layer's weights zero."""
    model = AutoModelForCausalLM.from_pretrained(source)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                size = module.weight.abs().flatten()
                smallest = size.argsort()[: int(share * size.numel())]
                module.weight.view(-1)[smallest] = 0
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
