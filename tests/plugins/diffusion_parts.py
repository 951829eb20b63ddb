"""Parts of the plugin `diffusion` over tiny models, without a run around them."""

from types import SimpleNamespace

import torch

from dumbo.bridge.bidirectional import make_bidirectional
from dumbo.data.collate import PackedCollator, PaddingCollator
from dumbo.plugins.diffusion.loss import build_loss
from dumbo.plugins.diffusion.mask_token import set_mask_token
from dumbo.plugins.diffusion.plugin import DiffusionOptions
from tests import builders

SEED = 3


def mask_tokenizer(**options):
    """A tokenizer with a mask token."""
    tokenizer = builders.build_tokenizer(**options)
    set_mask_token(tokenizer, DiffusionOptions())
    return tokenizer


def seeing_model(tokenizer, **shape):
    """A random model that sees both sides."""
    model = builders.build_tiny_model(len(tokenizer), seed=1, **shape).eval()
    make_bidirectional(model)
    return model


def diffusion_loss(tokenizer, rank=0, **options):
    """The loss that these options make."""
    services = SimpleNamespace(say=lambda line: None, rank=rank)
    return build_loss(DiffusionOptions(**options), SEED, tokenizer, services)


def made_rows(count, tokenizer, *, prompt=3, longest=14, seed=0):
    """Rows of random tokens, trained behind a prompt, that end in the end token."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        length = 6 + (7 * number) % (longest - 5)
        ids = torch.randint(10, 500, (length,), generator=draw)
        ids[-1] = tokenizer.eos_token_id
        labels = ids.clone()
        labels[:prompt] = -100
        rows.append({"input_ids": ids.numpy(), "labels": labels.numpy()})
    return rows


def padded(rows, tokenizer):
    """The batch that pads."""
    return PaddingCollator(tokenizer.pad_token_id)(rows)


def packed(rows):
    """The batch that packs."""
    return PackedCollator()(rows)


def seen_by(model):
    """A list that gets what each forward pass of the model was given for `input_ids`, and how to end that."""
    seen = []
    handle = model.register_forward_pre_hook(
        lambda module, given, named: seen.append(named["input_ids"].clone()), with_kwargs=True
    )
    return seen, handle
