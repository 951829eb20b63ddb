"""Run by test_without_logits.py on each of two processes: trains with the loss without logits, and prints what came."""

import copy
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dumbo.bridge.token_loss import TokenLoss
from dumbo.kernels.linear_cross_entropy import LossOptions
from tests import builders

VOCABULARY = 96
STEPS, ROWS, LENGTH = 4, 4, 12


def model_of(kind):
    model = builders.build_tiny_model(VOCABULARY, seed=1, tie_word_embeddings=kind == "tied")
    if kind in ("lm_head", "layers"):  # they alone are trained
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(kind in name)
    return model


def batches():
    """Of each step four rows, of which each process takes two; their trained tokens differ in number."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(STEPS):
        ids = torch.randint(4, VOCABULARY, (ROWS, LENGTH), generator=generator)
        labels = ids.masked_fill(torch.arange(LENGTH) < torch.tensor([[1], [9], [11], [4]]), -100)
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def train(model, loss, rank=0, world_size=1):
    """The losses of the whole batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for batch in batches():
        count = (batch["labels"][:, 1:] != -100).sum()
        share = {name: value[rank::world_size] for name, value in batch.items()}
        value = loss(model, share, count) * world_size
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = value.detach().clone()
        if world_size > 1:
            distributed.all_reduce(mean)
            mean /= world_size
        losses.append(mean.item())
    return losses


def wrapped(model, how):
    """The model as it is distributed, and whether its parameters are sharded."""
    if how.startswith("ddp"):
        options = {"ddp": {}, "ddp unused": {"find_unused_parameters": True}, "ddp static": {"static_graph": True}}
        return DistributedDataParallel(model, **options[how])
    units = [*model.model.layers, *([model.lm_head] if how == "fsdp of the head" else [])]
    for unit in units:
        fully_shard(unit)
    fully_shard(model, reshard_after_forward=True if how == "fsdp resharded" else None)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def main(how, kind):
    """Print the losses of two processes and of one, what was said, and what went wrong."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, model, said = distributed.get_rank(), model_of(kind), []
    alone = copy.deepcopy(model)
    loss = TokenLoss(LossOptions(tile_rows=5), said.append, worthwhile_bytes=0)
    try:
        found = train(wrapped(model, how), loss, rank, 2)
        error = None
    except Exception as failure:
        found, error = [], f"{type(failure).__name__}: {failure}"
    held = train(alone, TokenLoss(LossOptions(), said.append, worthwhile_bytes=1 << 60))
    farthest = None
    if found:
        pairs = zip(model.parameters(), alone.parameters(), strict=True)
        whole = [(one.full_tensor() if isinstance(one, DTensor) else one, other) for one, other in pairs]
        farthest = max((one - other).abs().max().item() for one, other in whole)
    if rank == 0:
        result = {"two": found, "one": held, "said": said, "error": error, "farthest": farthest}
        print(json.dumps(result), flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
