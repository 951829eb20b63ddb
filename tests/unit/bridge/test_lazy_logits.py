"""Logits that nobody has computed: all that is done with them gives what the values give, and the same gradients."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from dumbo.bridge.head import HeadError, head_shape, leaving_logits
from dumbo.bridge.lazy_logits import LazyLogits
from dumbo.kernels.linear_cross_entropy import LossOptions, linear_cross_entropy
from dumbo.kernels.linear_logits import LinearLogits, Step
from tests import builders

B, T, H, V = 2, 5, 4, 7
HALF = torch.tensor(0.5)
MASK = torch.tensor([[True, False, True, True, False], [False, True, False, False, True]])
PLACES = torch.tensor([1, 0, 1])

NOTED = {
    "times a number": lambda z: 3 * z * 0.25,
    "torch.mul by name": lambda z: torch.mul(z, other=2.5),
    "times a constant": lambda z: z * HALF,
    "times a constant of one": lambda z: torch.full((1, 1), 0.5) * z,
    "divided": lambda z: z / 3.0,
    "torch.div by name": lambda z: torch.div(z, other=4),
    "soft cap": lambda z: 2.0 * torch.tanh(z / 2.0),
    "two caps": lambda z: (z.tanh() * 3).tanh(),
    "in place": lambda z: z.clone().mul_(2.0).div_(3.0),
    "operators in place": lambda z: _operators_in_place(z.clone()),
    "double": lambda z: z.double() * 0.3,
    "to a type": lambda z: z.to(torch.float64),
    "to the same": lambda z: z.to(z.device, torch.float32, non_blocking=True).float(),
    "to that of another": lambda z: z.type_as(torch.zeros(1, dtype=torch.float64)),
    "cpu": lambda z: z.cpu().contiguous().clone(),
    "view": lambda z: z.view(-1, V),
    "view of a size": lambda z: z.view(torch.Size([T, B, V])),
    "view with the vocabulary open": lambda z: z.reshape(B * T, -1),
    "view as": lambda z: z.view_as(torch.zeros(1, B * T, V)),
    "flatten": lambda z: torch.flatten(z, end_dim=1),
    "squeeze": lambda z: z[:1].squeeze(0),
    "shift": lambda z: z[..., :-1, :].contiguous().view(-1, V),
    "shift of two": lambda z: z[:, 1:],
    "a sequence": lambda z: z[-1],
    "a token": lambda z: z[:, -1, :],
    "mask": lambda z: z[MASK],
    "some places": lambda z: z[PLACES, torch.tensor([0, 4, 4])],
    "first logits": lambda z: z[:, :, :4] * 2.0,
    "all but the last logits": lambda z: z[..., :-2],
    "all of a padded vocabulary": lambda z: z[..., : 2 * V],
}
"""What a model may do before its loss."""

COMPUTED = {
    "add": (lambda z: z + 1.0, "add"),
    "times a vector": (lambda z: z * torch.arange(V), "mul"),
    "times what has more dimensions": (lambda z: z * torch.ones(1, 1, 1, 1), "mul"),
    "times what has more digits": (lambda z: z * torch.full((1,), 0.3, dtype=torch.float64), "mul"),
    "divided by nothing": (lambda z: (z / 0).isinf().float() * z, "div"),
    "a number divided": (lambda z: 1.0 / (z**2 + 1), "pow"),
    "rounded": (lambda z: torch.div(z, 0.5, rounding_mode="floor") * z, "div"),
    "transpose": (lambda z: z.transpose(1, 2), "transpose"),
    "permute": (lambda z: z.permute(0, 2, 1).sum(-1), "permute"),
    "one logit": (lambda z: z[..., 3], "__getitem__"),
    "last logits": (lambda z: z[..., 2:], "__getitem__"),
    "a new dimension": (lambda z: z[None], "__getitem__"),
    "other rows": (lambda z: z.view(B, -1), "view"),
    "flat": (lambda z: z.flatten(), "flatten"),
    "log_softmax": (lambda z: F.log_softmax(z, -1), "log_softmax"),
    "cat": (lambda z: torch.cat([z, z]), "cat"),
    "where": (lambda z: torch.where(MASK[..., None], z, 0.0), "where"),
    "masked": (lambda z: z.masked_fill_(MASK[..., None], -3.0), "masked_fill_"),
    "to whole numbers": (lambda z: z.to(torch.int64) * z, "to"),
    "by name": (lambda z: torch.add(input=z, other=z, alpha=2), "add"),
    "squeeze of all": (lambda z: z.squeeze(), "squeeze"),
    "topk": (lambda z: z.topk(3).values, "topk"),
    "einsum": (lambda z: torch.einsum("btv,btv->bt", z, z), "einsum"),
}
"""What needs values, and what is said of it."""


def _operators_in_place(z):
    z *= 2.0
    z /= 5.0
    return z


def leaves(frozen=(), dtype=torch.float32):
    """Hidden states, weight and bias, as results of parameters."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"hidden": (B, T, H), "weight": (V, H), "bias": (V,)}
    made = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    return {name: tensor.requires_grad_(name not in frozen) for name, tensor in made.items()}


def linear(tensors, **more):
    return LinearLogits((tensors["hidden"],), (tensors["weight"],), tensors["bias"], **more)


def stock(tensors):
    return F.linear(tensors["hidden"], tensors["weight"], tensors["bias"])


def gradients(result, tensors):
    """Of a sum in which every number of the result has a weight of its own."""
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    total = (torch.nan_to_num(result) * weights).sum()
    wanted = [tensor for tensor in tensors.values() if tensor.requires_grad]
    return torch.autograd.grad(total, wanted)


def assert_same(lazy, plain, tensors, others):
    assert (lazy.shape, lazy.dtype, lazy.requires_grad) == (plain.shape, plain.dtype, plain.requires_grad)
    values = lazy.values_of("the test") if isinstance(lazy, LazyLogits) else lazy
    assert type(values) is torch.Tensor
    assert_close(values, plain)
    assert_close(gradients(values, tensors), gradients(plain, others))


@pytest.mark.parametrize("change", NOTED.values(), ids=NOTED)
def test_what_is_noted_gives_what_the_values_give(change):
    tensors, others = leaves(), leaves()
    lazy = change(LazyLogits.of(linear(tensors)))
    assert isinstance(lazy, LazyLogits)
    assert lazy.reason is None
    assert_same(lazy, change(stock(others)), tensors, others)


@pytest.mark.parametrize(("change", "reason"), COMPUTED.values(), ids=COMPUTED)
def test_what_is_not_noted_is_computed_and_says_why(change, reason):
    tensors, others = leaves(), leaves()
    logits = LazyLogits.of(linear(tensors))
    result = change(logits)
    assert not isinstance(result, LazyLogits)
    assert logits.reason == reason
    assert_same(result, change(stock(others)), tensors, others)


@pytest.mark.parametrize(("reduction", "smoothing"), [("mean", 0.0), ("sum", 0.1)])
@pytest.mark.parametrize("change", NOTED.values(), ids=NOTED)
def test_the_cross_entropy_of_what_is_noted_is_that_of_the_values(change, reduction, smoothing):
    tensors, others = leaves(), leaves()
    lazy, plain = change(LazyLogits.of(linear(tensors))), change(stock(others))
    lazy, plain = lazy.reshape(-1, lazy.shape[-1]), plain.reshape(-1, plain.shape[-1])
    targets = torch.arange(len(plain)) % plain.shape[-1]
    targets[0] = -100
    ours, theirs = (F.cross_entropy(z, targets, reduction=reduction, label_smoothing=smoothing) for z in (lazy, plain))
    assert lazy.reason is None
    assert_close(ours, theirs)
    assert_close(gradients(ours, tensors), gradients(theirs, others))


@pytest.mark.parametrize("options", [{"weight": torch.arange(1.0, V + 1)}, {"reduction": "none"}], ids=str)
def test_other_cross_entropies_have_the_values(options):
    tensors, others = leaves(), leaves()
    lazy, plain = LazyLogits.of(linear(tensors)).view(-1, V), stock(others).view(-1, V)
    targets = torch.arange(B * T) % V
    ours, theirs = F.cross_entropy(lazy, targets, **options), F.cross_entropy(plain, targets, **options)
    assert lazy.reason == "cross_entropy"
    assert_same(ours, theirs, tensors, others)


def test_cross_entropy_of_no_tokens_is_pytorch_s():
    logits = LazyLogits.of(linear(leaves())).view(-1, V)
    nothing = torch.full((B * T,), -100)
    assert F.cross_entropy(logits, nothing).isnan()
    assert F.cross_entropy(logits, nothing, reduction="sum") == 0


def test_a_low_rank_update_is_part_of_the_head():
    tensors, others = leaves(), leaves()
    draw = torch.Generator().manual_seed(2)
    low, up = torch.randn(B, T, 2, generator=draw), torch.randn(V, 2, generator=draw)
    lazy = LazyLogits.of(linear(tensors)) + LazyLogits.of(LinearLogits((low,), (up,))) * 0.5
    assert lazy.reason is None
    assert len(lazy.linear.weights) == 2
    assert_same(lazy * 2.0, (stock(others) + low @ up.T * 0.5) * 2.0, tensors, others)


def test_an_update_of_another_shape_is_added_to_the_values():
    tensors, others = leaves(), leaves()
    low, up = torch.ones(1, T, 2), torch.ones(V, 2)
    total = LazyLogits.of(linear(tensors)) + LazyLogits.of(LinearLogits((low,), (up,)))
    assert_same(total, stock(others) + low @ up.T, tensors, others)


def test_facts_need_no_values():
    logits = LazyLogits.of(linear(leaves()))
    facts = (logits.shape, logits.size(-1), logits.dtype, logits.device, logits.dim(), logits.ndim, len(logits))
    assert facts == ((B, T, V), V, torch.float32, torch.device("cpu"), 3, 3, B)
    assert logits.requires_grad and not logits.is_leaf and logits.is_floating_point() and logits.numel() == B * T * V
    assert logits.reason is None


def test_printing_needs_no_values():
    logits = LazyLogits.of(linear(leaves())) * 2.0
    assert repr(logits) == str([logits])[1:-1] == "LazyLogits([2, 5, 7], steps=['scale'])"
    assert logits.reason is None


def test_values_are_made_once_and_stay():
    logits = LazyLogits.of(linear(leaves()))
    first = logits.values_of("one")
    assert logits.values_of("two") is first
    assert logits.reason == "one"
    assert (logits * 2.0).grad_fn is not None
    assert not isinstance(logits * 2.0, LazyLogits)


def test_who_asks_first_without_gradients_takes_them_from_nobody():
    tensors, others = leaves(), leaves()
    logits = LazyLogits.of(linear(tensors))
    with torch.no_grad():
        assert not logits.argmax(-1).requires_grad
    assert_same(logits, stock(others), tensors, others)


def test_detached_logits_have_no_gradient():
    tensors = leaves()
    logits = LazyLogits.of(linear(tensors))
    detached = logits.detach()
    assert isinstance(detached, LazyLogits) and not detached.requires_grad and detached.grad_fn is None
    assert not (detached * 2.0).values_of("the test").requires_grad
    assert_close(detached.values_of("the test"), stock(tensors).detach())
    mixed = F.cross_entropy(detached[0], torch.arange(T)) + F.cross_entropy(logits[1], torch.arange(T))
    (gradient,) = torch.autograd.grad(mixed, tensors["hidden"])
    assert not gradient[0].any() and gradient[1].any()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_leads_to_the_tensors(mode):
    tensors = leaves()
    with mode():
        logits = LazyLogits.of(linear(tensors)) / 2.0
        loss = F.cross_entropy(logits.view(-1, V), torch.arange(B * T) % V)
        expected = F.cross_entropy(stock(tensors).view(-1, V) / 2.0, torch.arange(B * T) % V)
        best = logits.argmax(-1)
        logits.mul_(2.0)
    assert_close(loss, expected)
    assert torch.equal(best, stock(tensors).argmax(-1))
    assert not logits.requires_grad and not loss.requires_grad


def test_what_is_made_without_gradients_has_none_later():
    logits = LazyLogits.of(linear(leaves()))
    with torch.no_grad():
        half = logits / 2.0
    assert not half.requires_grad
    assert not linear_cross_entropy(half[0].linear, torch.arange(T), LossOptions()).total.requires_grad


def test_writing_to_the_logits_is_seen_by_all_who_use_them():
    tensors, others = leaves(), leaves()
    lazy, plain = LazyLogits.of(linear(tensors)), stock(others)
    for z in (lazy, plain):
        z[:, 0, 2] = -4.0
        z.masked_fill_(MASK[..., None], 0.5)
    assert lazy.reason == "__setitem__"
    assert_same(lazy, plain, tensors, others)


@pytest.mark.parametrize("change", [lambda z: z.mul_(2.0), lambda z: z.zero_(), lambda z: z.__setitem__(0, 1.0)])
@pytest.mark.parametrize("view", [lambda z: z[:, 1:], lambda z: z.view(-1, V), lambda z: z.detach()])
def test_writing_where_there_are_views_is_refused(change, view):
    """What PyTorch does to all of them would be done to one."""
    for which in (0, 1):
        logits = LazyLogits.of(linear(leaves()))
        both = (logits, view(logits))
        with torch.no_grad(), pytest.raises(RuntimeError, match="changed in place while there are views"):
            change(both[which])
    change(view(LazyLogits.of(linear(leaves(frozen=("hidden", "weight", "bias"))))))  # the first is gone


def test_a_copy_may_be_written():
    tensors, others = leaves(), leaves()
    lazy, plain = LazyLogits.of(linear(tensors)), stock(others)
    for z in (lazy, plain):
        z.clone().mul_(5.0)
    assert lazy.reason is None
    assert_same(lazy, plain, tensors, others)


class Squares(torch.autograd.Function):
    """Somebody's function that takes logits: what it is given goes around the seams of Python."""

    @staticmethod
    def forward(ctx, logits):
        ctx.save_for_backward(logits)
        return (logits * logits).sum(-1)

    @staticmethod
    def backward(ctx, upstream):
        (logits,) = ctx.saved_tensors
        return 2 * logits * upstream[..., None]


@pytest.mark.parametrize("frozen", [(), ("weight",), ("weight", "bias"), ("hidden",)], ids=str)
@pytest.mark.parametrize("change", ["soft cap", "double", "first logits", "shift", "in place"])
def test_functions_that_take_no_notice_have_the_values_and_give_gradients(change, frozen):
    tensors, others = leaves(frozen), leaves(frozen)
    lazy, plain = NOTED[change](LazyLogits.of(linear(tensors))), NOTED[change](stock(others))
    ours, theirs = Squares.apply(lazy), Squares.apply(plain)
    assert_close(torch.Tensor(ours), torch.Tensor(theirs))
    assert_close(gradients(ours, tensors), gradients(theirs, others))


class Half(torch.autograd.Function):
    """Passes on what it is given, and half of the gradient."""

    @staticmethod
    def forward(ctx, logits):
        return logits.clone()

    @staticmethod
    def backward(ctx, upstream):
        return upstream / 2


def test_functions_that_pass_logits_on_have_their_gradient():
    tensors, others = leaves(), leaves()
    lazy, plain = Half.apply(LazyLogits.of(linear(tensors)) * 2.0), Half.apply(stock(others) * 2.0)
    assert lazy.reason == "HalfBackward"
    assert_same(lazy * 3.0, plain * 3.0, tensors, others)
    with pytest.raises(RuntimeError, match="after a function of gradients"):
        Half.apply(LazyLogits.of(linear(tensors))).mul_(2.0)


def test_ddp_that_looks_for_unused_parameters_passes_them_on():
    model, alone = builders.build_tiny_model(64), builders.build_tiny_model(64)
    ids = torch.arange(12).view(2, 6)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        for _ in range(2):
            with leaving_logits(wrapped):
                logits = wrapped(input_ids=ids).logits
            assert logits.reason is None
            F.cross_entropy(logits.view(-1, 64), ids.view(-1)).backward()
            F.cross_entropy(alone(input_ids=ids).logits.view(-1, 64), ids.view(-1)).backward()
            assert_close([p.grad for p in model.parameters()], [p.grad for p in alone.parameters()])
    finally:
        torch.distributed.destroy_process_group()


def test_operators_below_python_s_functions_have_the_values():
    tensors, others = leaves(), leaves()
    lazy, plain = LazyLogits.of(linear(tensors)) * 2.0, stock(others) * 2.0
    with torch._C.DisableTorchFunctionSubclass():
        ours = torch.cat([torch.sin(lazy), torch.exp(lazy)])
        assert lazy.reason is not None
        with pytest.raises(RuntimeError, match="in place"):
            lazy.zero_()
    assert_same(ours, torch.cat([torch.sin(plain), torch.exp(plain)]), tensors, others)


def test_gradients_of_gradients_are_refused():
    tensors = leaves()
    total = Squares.apply(LazyLogits.of(linear(tensors))).sum()
    (first,) = torch.autograd.grad(total, tensors["hidden"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad|differentiate twice"):
        first.sum().backward()


def test_a_function_that_takes_no_notice_sees_no_values_that_were_written():
    """It would lead to gradients of what they were before."""
    logits = LazyLogits.of(linear(leaves()))
    logits[:, 0] = 0.0
    with pytest.raises(RuntimeError, match="changed in place, and then used"):
        Squares.apply(logits).sum().backward()


def test_whoever_follows_the_graph_finds_the_parameters():
    tensors = leaves()
    found, waiting = set(), [(LazyLogits.of(linear(tensors)) * 2.0).grad_fn]
    while waiting:
        node = waiting.pop()
        found.add(getattr(node, "variable", None))
        waiting += [above for above, _ in node.next_functions if above is not None]
    assert {id(tensor) for tensor in tensors.values()} <= {id(tensor) for tensor in found}


def test_copies_and_pickles_are_of_the_values():
    tensors = leaves()
    with torch.no_grad():
        logits = LazyLogits.of(linear(tensors)) * 2.0
    for made in (copy.deepcopy(logits), pickle.loads(pickle.dumps(logits)), _saved(logits)):
        assert type(made) is torch.Tensor
        assert_close(made, stock(tensors).detach() * 2.0)
    with pytest.raises(RuntimeError, match="deepcopy"):  # as of any result that has gradients
        copy.deepcopy(LazyLogits.of(linear(tensors)))


def _saved(logits):
    stream = io.BytesIO()
    torch.save({"logits": logits}, stream)
    stream.seek(0)
    return torch.load(stream)["logits"]


def test_types_of_autocast_are_those_of_its_products():
    tensors = leaves()
    logits = LazyLogits.of(linear(tensors, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        plain = stock(tensors)
    assert logits.dtype == plain.dtype == torch.bfloat16
    assert torch.equal(logits.values_of("the test"), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casts_round_where_the_model_rounds(dtype):
    tensors = leaves(dtype=dtype)
    logits, plain = LazyLogits.of(linear(tensors)) * 0.3, stock(tensors) * 0.3
    assert logits.float().linear.steps == (Step("scale", 0.3), Step("cast", torch.float32))
    assert torch.equal(logits.float().values_of("the test"), plain.float())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_within_a_model_only_the_head_leaves_its_logits(name):
    model = builders.build_tiny_model(64, config_type=name).eval()
    ids = torch.arange(12).view(2, 6)
    expected = model(ids).logits
    with leaving_logits(model):
        logits = model(ids).logits
        with pytest.raises(HeadError, match="replaced already"), leaving_logits(model):
            raise AssertionError("the head is taken")
    assert isinstance(logits, LazyLogits)
    assert_close(logits.values_of("the test"), expected)
    assert type(model(ids).logits) is torch.Tensor


def test_a_head_that_somebody_has_replaced_is_known_before():
    model = builders.build_tiny_model(64)
    model.lm_head.forward = lambda hidden: 2 * torch.nn.Linear.forward(model.lm_head, hidden)
    with pytest.raises(HeadError, match="replaced already"):
        head_shape(model)
