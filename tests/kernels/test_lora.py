"""Layers with LoRA and gated blocks of them: values and gradients of the plain composition, and what is kept."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from dumbo.kernels.lora import GatedBlock, LoraLayer, SharedCast, gated_block, lora_linear

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "squared relu": lambda x: F.relu(x).square(),
}
TYPES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "adapter in float32": (torch.bfloat16, torch.float32),
}
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 2e-2}


def layer(inputs, outputs, *, seed=0, base=torch.float32, adapter=torch.float32, rank=3, more=(), dropout=0.0):
    """A layer with random tensors; `more` names those that it has besides W, A and B."""
    draw = torch.Generator().manual_seed(seed)

    def tensor(dtype, *shape):
        return (torch.randn(*shape, generator=draw, dtype=torch.float64) / shape[-1] ** 0.5).to(dtype)

    weight, a, b = tensor(base, outputs, inputs), tensor(adapter, rank, inputs), tensor(adapter, outputs, rank)
    bias, added = tensor(base, outputs), tensor(adapter, outputs)
    return LoraLayer(
        weight,
        bias.requires_grad_("trained bias" in more) if more else None,
        a.requires_grad_() if "no adapter" not in more else None,
        b.requires_grad_() if "no adapter" not in more else None,
        added.requires_grad_() if "added bias" in more else None,
        scaling=1.7,
        dropout=dropout,
    )


def plain(x, of):
    """As PEFT composes it."""
    y = F.linear(x, of.weight, of.bias)
    if of.a is None:
        return y
    inner = F.linear(F.dropout(x.to(of.a.dtype), of.dropout), of.a)
    return (y + F.linear(inner, of.b, of.added_bias) * of.scaling).to(y.dtype)


def plain_block(x, block):
    return plain(block.activation(plain(x, block.gate)) * plain(x, block.up), block.down)


def random_block(activation=F.silu, **kind):
    sizes = ((6, 10), (6, 10), (10, 6))
    layers = (layer(*size, seed=seed, **kind) for seed, size in enumerate(sizes))
    return GatedBlock(*layers, activation)


def trained(*layers):
    return [tensor for of in layers for tensor in of.tensors if tensor is not None and tensor.requires_grad]


def outcome(compute, x, leaves, seed=4):
    """The output, and the gradients of x and of `leaves` for a random gradient of it."""
    torch.manual_seed(seed)
    y = compute(x)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(y.dtype)
    wanted = [x, *leaves] if x.requires_grad else leaves
    return y.detach(), torch.autograd.grad(y, wanted, gradient)


def assert_same(one, other, tolerance):
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=0)
    assert len(one[1]) == len(other[1]) > 0
    for found, expected in zip(one[1], other[1], strict=True):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


def inputs(dtype=torch.float32, needs_gradient=True):
    x = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    return x.requires_grad_(needs_gradient)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("more", [(), ("bias",), ("trained bias", "added bias")], ids=lambda more: "-".join(more))
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_layer_is_that_of_the_plain_composition(kind, more, dropout):
    base, adapter = TYPES[kind]
    of, x = layer(6, 5, base=base, adapter=adapter, more=more, dropout=dropout), inputs(base)
    found = outcome(lambda x: lora_linear(x, of, SharedCast(), None), x, trained(of))
    assert_same(found, outcome(lambda x: plain(x, of), x, trained(of)), CLOSE[base])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_block_is_that_of_the_plain_composition(kind, dropout, name):
    base, adapter = TYPES[kind]
    block, x = random_block(ACTIVATIONS[name], base=base, adapter=adapter, dropout=dropout), inputs(base)
    found = outcome(lambda x: gated_block(x, block, SharedCast(), None), x, trained(*block.layers))
    assert_same(found, outcome(lambda x: plain_block(x, block), x, trained(*block.layers)), CLOSE[base])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_under_autocast_they_are_what_autocast_makes_of_it(dtype, dropout):
    block, x, of = random_block(dropout=dropout), inputs(dtype), layer(6, 5, more=("trained bias",), dropout=dropout)
    compute = torch.bfloat16
    with torch.autocast("cpu", dtype=compute):
        expected = outcome(lambda x: plain(x, of), x, trained(of))
        found = outcome(lambda x: lora_linear(x, of, SharedCast(), compute), x, trained(of))
        assert_same(found, expected, CLOSE[compute])
        expected = outcome(lambda x: plain_block(x, block), x, trained(*block.layers))
        found = outcome(lambda x: gated_block(x, block, SharedCast(), compute), x, trained(*block.layers))
        assert_same(found, expected, CLOSE[compute])


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "silu" else pytest.mark.full) for n in ACTIVATIONS])
def test_gradients_are_those_of_finite_differences(name):
    double = {"base": torch.float64, "adapter": torch.float64, "more": ("trained bias", "added bias")}
    block, x, of = random_block(ACTIVATIONS[name], **double), inputs(torch.float64), layer(6, 5, **double)
    leaves = trained(of)

    def compute(x, *tensors):
        given = iter(tensors)
        tensors = [next(given) if each is not None and each.requires_grad else each for each in of.tensors]
        return lora_linear(x, of.replaced(tensors), SharedCast(), None)

    def compute_block(x, *tensors):
        given, flat = iter(tensors), [tensor for each in block.layers for tensor in each.tensors]
        flat = [next(given) if each is not None and each.requires_grad else each for each in flat]
        return gated_block(x, block.replaced(flat), SharedCast(), None)

    assert torch.autograd.gradcheck(compute, (x, *leaves))
    assert torch.autograd.gradcheck(compute_block, (x, *trained(*block.layers)))


@pytest.mark.parametrize("without", range(3))
def test_a_layer_of_a_block_may_have_no_adapter(without):
    block = random_block()
    layers = [layer(6, 10), layer(6, 10, seed=1), layer(10, 6, seed=2)]
    layers[without] = layers[without].replaced([layers[without].weight, None, None, None, None])
    block = GatedBlock(*layers, F.silu)
    found = outcome(lambda x: gated_block(x, block, SharedCast(), None), inputs(), trained(*layers))
    assert_same(found, outcome(lambda x: plain_block(x, block), inputs(), trained(*layers)), 1e-5)


def test_what_is_not_trained_gets_no_gradient():
    """The first layer's input, and an adapter that is frozen."""
    block, x = random_block(), inputs(needs_gradient=False)
    block.gate.a.requires_grad_(False)
    found = outcome(lambda x: gated_block(x, block, SharedCast(), None), x, trained(*block.layers))
    assert len(found[1]) == 5
    assert_same(found, outcome(lambda x: plain_block(x, block), x, trained(*block.layers)), 1e-5)
    of = layer(6, 5)
    for tensor in (of.a, of.b):
        tensor.requires_grad_(False)
    assert not lora_linear(x, of, SharedCast(), None).requires_grad


def test_gradients_twice_over_are_the_same_and_gradients_of_gradients_are_refused():
    block, x = random_block(), inputs()
    y = gated_block(x, block, SharedCast(), None).square().sum()
    once, again = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, again), "nothing that is kept is overwritten"
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(y, x, create_graph=True)[0].sum().backward()


def kept_bytes(compute, *known):
    """Bytes that the graph of `compute()` keeps alive, without those of the tensors `known`."""
    storages = {tensor.untyped_storage().data_ptr() for tensor in known if tensor is not None}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = compute()
    assert kept.requires_grad
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize(
    ("kind", "autocast", "share"),
    [("float32", False, 0.54), ("bfloat16", False, 0.54), ("adapter in float32", False, 0.4), ("float32", True, 0.5)],
)
def test_a_block_keeps_half_of_the_activations(kind, autocast, share):
    base, adapter = TYPES[kind]
    sizes = ((64, 176), (64, 176), (176, 64))
    layers = [layer(*size, seed=seed, base=base, adapter=adapter, rank=2) for seed, size in enumerate(sizes)]
    block, x = GatedBlock(*layers, F.silu), torch.randn(128, 64, dtype=base, requires_grad=True)
    tensors, compute = [tensor for of in layers for tensor in of.tensors], torch.bfloat16 if autocast else None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        ours = kept_bytes(lambda: gated_block(x, block, SharedCast(), compute), *tensors)
        theirs = kept_bytes(lambda: plain_block(x, block), *tensors)
    assert ours <= share * theirs, (ours, theirs)
    width = (compute or base).itemsize
    assert ours == 128 * width * (64 + 2 * 176)


def test_layers_with_the_same_input_keep_one_copy_of_it():
    layers, shared = [layer(64, 64, seed=seed) for seed in range(3)], SharedCast()
    x = torch.randn(128, 64, requires_grad=True) * 1  # of leaves autocast keeps its copy
    tensors = [x, *(tensor for of in layers for tensor in of.tensors)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = kept_bytes(lambda: sum(lora_linear(x, of, shared, torch.bfloat16) for of in layers), *tensors)
        theirs = kept_bytes(lambda: sum(plain(x, of) for of in layers), *tensors)
    assert ours == 128 * 64 * 2
    assert theirs > 3 * ours


def test_a_copy_is_made_again_for_another_tensor_or_for_one_that_changed():
    shared, x = SharedCast(), torch.randn(4, 3)
    first = shared.of(x, torch.bfloat16)
    assert shared.of(x, torch.bfloat16) is first
    assert shared.of(x, torch.float16).dtype == torch.float16
    x.mul_(2)
    assert torch.equal(shared.of(x, torch.bfloat16), (first * 2))
    assert copy.deepcopy(shared)._cast is None
    del x
    gc.collect()
    assert shared._cast is None, "it goes with the tensor"
