"""Training without logits: the losses, weights and evaluations of training with them, in every combination."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import ModelOutput

from dumbo.bridge.token_loss import TokenLoss
from dumbo.kernels.linear_cross_entropy import LossOptions
from dumbo.losses.token import next_token_cross_entropy
from tests import builders
from tests.numerics.training import VOCABULARY, farthest_weight, random_rows, tiny_llama, train

SHAPE = {"batch_size": 8, "physical_batch_size": 4, "max_steps": 3, "optim": "sgd", "learning_rate": 0.3}
"""Plain gradient descent: Adam divides rounding errors by their own size."""
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}


@pytest.fixture(scope="module")
def rows():
    return random_rows(24)


@pytest.fixture(scope="module")
def held_out():
    return random_rows(7, seed=9)


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def without_logits(said=None, *, smoothing=0.0, tile_rows=7, **options):
    """The loss under test, which goes without logits however small they are; seven tokens do not divide a batch."""
    say = print if said is None else said.append
    return TokenLoss(LossOptions(smoothing, tile_rows=tile_rows), say, worthwhile_bytes=0, **options)


def assert_same(tmp_path, model, rows, held_out, *, tolerance=1e-5, lines=None, smoothing=0.0, **changes):
    """Train `model` both ways; `lines` are said of the one without logits. Return both."""
    arguments = SHAPE | EVALUATED | changes
    held = train(tmp_path / "held", model, rows, held_out, label_smoothing_factor=smoothing, **arguments)
    said = []
    loss = without_logits(said, smoothing=smoothing)
    left = train(tmp_path / "left", model, rows, held_out, loss, label_smoothing_factor=smoothing, **arguments)
    for path in ("train/loss", "train/grad_norm", "eval/loss"):
        values = held.metrics.values(path)
        assert len(values) == 3 + (path == "eval/loss")
        assert left.metrics.values(path) == pytest.approx(values, rel=tolerance), path
    assert farthest_weight(left.model, held.model) < tolerance
    assert farthest_weight(left.model, model) > 1e-3, "something was learned"
    if lines is None:
        assert len(said) == 1 and said[0].startswith("loss: logits are made for "), said
    else:
        assert said == lines
    return held, left


def tied(**overrides):
    return builders.build_tiny_model(VOCABULARY, seed=1, tie_word_embeddings=True, **overrides)


def frozen(model, *trained):
    """A copy in which only the parameters are trained whose names have one of the words."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(word in name for word in trained))
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"smoothing": 0.2},
        pytest.param({"physical_batch_size": 1}, marks=pytest.mark.full),
        {"physical_batch_size": 8},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"max_grad_norm": 0.1},
        pytest.param({"neftune_noise_alpha": 5.0}, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_training_is_the_same(tmp_path, model, rows, held_out, changes):
    assert_same(tmp_path, model, rows, held_out, **changes)


@pytest.mark.parametrize("words", [("lm_head",), ("layers",), ("embed_tokens", "norm"), ("lm_head", "layers.1")])
def test_parts_of_the_model_are_trained(tmp_path, model, rows, held_out, words):
    _, left = assert_same(tmp_path, frozen(model, *words), rows, held_out)
    for name, parameter in left.model.named_parameters():
        is_trained = any(word in name for word in words)
        assert torch.equal(parameter, model.get_parameter(name)) != is_trained, name


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_tied_head(tmp_path, rows, held_out, checkpointing):
    assert_same(tmp_path, tied(), rows, held_out, gradient_checkpointing=checkpointing)


def adapted(model, **options):
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", r=3, **options))
    with torch.no_grad():  # an update of zeros would hide mistakes
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


NEW = [5, VOCABULARY - 1]
ADAPTERS = {
    "elsewhere": {"target_modules": ["q_proj", "down_proj"]},
    "on the head": {"target_modules": ["lm_head", "q_proj"], "lora_alpha": 5},
    "on the head alone": {"target_modules": ["lm_head"]},
    "the head saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "head and embeddings saved whole": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head", "embed_tokens"],
    },
    "rows of new tokens": {
        "target_modules": ["v_proj"],
        "trainable_token_indices": {"embed_tokens": NEW, "lm_head": NEW},
    },
    "rows of new tokens in the embeddings": {
        "target_modules": ["v_proj"],
        "trainable_token_indices": {"embed_tokens": NEW},
    },
}
COMMON = ("on the head", "the head saved whole", "rows of new tokens")
SELDOM = [pytest.param(name, marks=pytest.mark.full) for name in ADAPTERS if name not in COMMON]


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", [*COMMON, *SELDOM])
def test_an_adapter(tmp_path, model, rows, held_out, name, checkpointing):
    start = adapted(model, **ADAPTERS[name])
    _, left = assert_same(tmp_path, start, rows, held_out, gradient_checkpointing=checkpointing, learning_rate=1.0)
    for parameter, before in zip(left.model.parameters(), start.parameters(), strict=True):
        assert parameter.requires_grad or torch.equal(parameter, before)


@pytest.mark.parametrize(
    "name", ["rows of new tokens in the embeddings", pytest.param("elsewhere", marks=pytest.mark.full)]
)
def test_an_adapter_on_a_tied_head(tmp_path, rows, held_out, name):
    assert_same(tmp_path, adapted(tied(), **ADAPTERS[name]), rows, held_out, learning_rate=1.0)


def test_dropout_of_an_adapter_on_the_head(tmp_path, model, rows, held_out):
    start = adapted(model, target_modules=["lm_head"], lora_dropout=0.3)
    assert_same(tmp_path, start, rows, held_out, learning_rate=1.0)


def test_an_adapter_that_is_not_of_low_rank_holds_logits_and_says_so_once(tmp_path, model, rows, held_out):
    start = adapted(model, target_modules=["lm_head"], use_dora=True)
    line = "loss: all logits are held, as the output head has an adapter that is not a low-rank update"
    assert_same(tmp_path, start, rows, held_out, lines=[line], learning_rate=1.0)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_is_switched_off(model, rows, name):
    """As the reference of a preference loss has it."""
    start = adapted(model, **ADAPTERS[name])
    with torch.no_grad():
        for parameter_name, parameter in start.named_parameters():
            if parameter.requires_grad and "lora_" not in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    batch = a_batch()
    with torch.no_grad():
        on = without_logits()(start, batch, torch.tensor(1))
        with start.disable_adapter():
            expected = next_token_cross_entropy(start(**inputs_of(batch)).logits, batch["labels"])
            found = without_logits()(start, batch, torch.tensor(1))
    torch.testing.assert_close(found, expected)
    assert abs(on - found) > 1e-4


@pytest.fixture(scope="module")
def mixture():
    return builders.build_tiny_model(
        VOCABULARY,
        config_type="mixtral",
        num_local_experts=4,
        num_experts_per_tok=2,
        output_router_logits=True,
        router_aux_loss_coef=0.5,
    )


def test_the_auxiliary_loss_of_experts_is_kept(tmp_path, mixture, rows, held_out):
    held, _ = assert_same(tmp_path, mixture, rows, held_out)
    plain = copy.deepcopy(mixture)
    plain.config.router_aux_loss_coef = 0.0
    bare = train(tmp_path / "bare", plain, rows, loss=without_logits(), **SHAPE)
    assert held.metrics.values("train/loss")[0] > bare.metrics.values("train/loss")[0] + 0.1


@pytest.mark.parametrize("overrides", [{"final_logit_softcapping": 1.5, "config_type": "gemma2", "head_dim": 8}])
def test_capped_logits(tmp_path, rows, held_out, overrides):
    model = builders.build_tiny_model(VOCABULARY, seed=1, **overrides)
    assert_same(tmp_path, model, rows, held_out, learning_rate=0.05)


# A batch with padding and with tokens that are not trained.
def a_batch(rows=3, tokens=9, vocabulary=VOCABULARY, seed=4):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, vocabulary, (rows, tokens), generator=generator)
    ids[:, 3] = NEW[0]
    lengths = torch.tensor([[tokens], [tokens - 3], [2]])
    mask = (torch.arange(tokens) < lengths).long()
    labels = ids.masked_fill((mask == 0) | (torch.arange(tokens) < 2), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def inputs_of(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


class Shapes(TorchDispatchMode):
    """Records the shapes of all results, in forward and backward passes."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_view = "view" in str(func) or any(name in str(func) for name in ("detach", ".t.", "slice", "alias"))
        if isinstance(result, torch.Tensor) and not is_view:
            self.made.append((tuple(result.shape), str(func)))
        return result

    def with_vocabulary(self):
        return [shape for shape, _ in self.made if VOCABULARY in shape]


def shapes_of(model, loss, batch):
    with Shapes() as shapes:
        loss(model, batch, torch.tensor(3)).backward()
    return shapes.with_vocabulary()


def test_no_tensor_of_the_vocabulary_is_made_for_a_frozen_head(model):
    start = frozen(model, "layers")
    tokens = 5  # of a tile
    shapes = shapes_of(start, without_logits(tile_rows=tokens), a_batch())
    assert (tokens, VOCABULARY) in shapes
    assert max(math.prod(shape) for shape in shapes) == tokens * VOCABULARY, shapes
    assert start.lm_head.weight.grad is None
    assert start.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0


def test_logits_are_never_made_as_a_whole(model):
    """The gradients of head and embeddings are as large as their weights; there is nothing larger."""
    batch = a_batch()
    shapes = shapes_of(copy.deepcopy(model), without_logits(tile_rows=5), batch)
    assert {shape for shape in shapes if shape[-1] == VOCABULARY} == {(5, VOCABULARY), (1, VOCABULARY)}
    held = shapes_of(copy.deepcopy(model), TokenLoss(LossOptions(), print), batch)
    assert (*batch["input_ids"].shape, VOCABULARY) in held, "the measure finds them"


def test_no_gradient_of_hidden_states_is_made_for_a_frozen_base(model):
    start = frozen(model, "lm_head")
    with Shapes() as shapes:
        loss = without_logits(tile_rows=5)(start, a_batch(), torch.tensor(3))
        before = len(shapes.made)
        loss.backward()
    assert {shape for shape, _ in shapes.made[before:] if len(shape) > 1} <= {tuple(start.lm_head.weight.shape)}
    assert all(parameter.grad is None for name, parameter in start.named_parameters() if name != "lm_head.weight")


@pytest.mark.parametrize("adapter", [None, "on the head", "rows of new tokens"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_nothing_is_supervised_loss_and_gradients_are_zero(model, adapter, dtype):
    start = copy.deepcopy(model) if adapter is None else adapted(model, **ADAPTERS[adapter])
    start.to(dtype)
    batch = a_batch()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = without_logits(smoothing=0.1)(start, batch, torch.tensor(1))
    assert loss.item() == 0
    for name, gradient in gradients_of(start, loss).items():
        assert gradient is not None, name
        assert not gradient.any(), name


def test_a_gradient_that_is_kept_can_be_taken_once_only(model):
    loss = without_logits()(model, a_batch(), torch.tensor(3))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated before"):
        loss.backward()


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def errors_against_float64(start, tile_rows, is_autocast):
    """Of the loss and of each gradient, with logits and without, as means over some batches."""
    exactly = copy.deepcopy(start).double()
    errors = {}
    for seed in range(6):
        batch = a_batch(seed=seed)
        loss = next_token_cross_entropy(exactly(**inputs_of(batch)).logits, batch["labels"]) / 3
        exact = {"loss": loss.detach(), **gradients_of(exactly, loss)}
        for way in ("held", "left"):
            with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
                if way == "held":
                    loss = next_token_cross_entropy(start(**inputs_of(batch)).logits, batch["labels"]) / 3
                else:
                    loss = without_logits(tile_rows=tile_rows)(start, batch, torch.tensor(3))
            assert loss.dtype == torch.float32
            found = {"loss": loss.detach(), **gradients_of(start, loss)}
            for name, value in found.items():
                assert name == "loss" or value.dtype == start.get_parameter(name).dtype
                errors.setdefault(name, {"held": 0.0, "left": 0.0})[way] += error(value, exact[name]) / 6
    return errors


def assert_no_worse(start, tile_rows=7, is_autocast=False):
    for name, of in errors_against_float64(start, tile_rows, is_autocast).items():
        assert of["held"] > 0 or name == "loss", "something is rounded"
        assert of["left"] < 1.25 * of["held"] + 1e-6, name


@pytest.mark.parametrize("adapter", [None, "on the head", "the head saved whole", "rows of new tokens"])
def test_under_autocast_no_worse_than_with_logits(model, adapter):
    assert_no_worse(copy.deepcopy(model) if adapter is None else adapted(model, **ADAPTERS[adapter]), is_autocast=True)


@pytest.mark.parametrize("tile_rows", [3, None])
def test_weights_in_bfloat16_no_worse_than_with_logits(model, tile_rows):
    assert_no_worse(copy.deepcopy(model).to(torch.bfloat16), tile_rows)


def test_training_under_autocast(tmp_path, model, rows, held_out):
    assert_same(tmp_path, model, rows, held_out, bf16=True, tolerance=2e-3)


def test_training_weights_in_bfloat16(tmp_path, model, rows, held_out):
    start = copy.deepcopy(model).to(torch.bfloat16)
    assert_same(tmp_path, start, rows, held_out, tolerance=2e-2)


class Unknown(torch.nn.Module):
    """A model of somebody's own, which shows neither a configuration nor a head."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Embedding(VOCABULARY, 8), torch.nn.Linear(8, VOCABULARY))

    def forward(self, input_ids):
        return ModelOutput(logits=self.inner(input_ids))


def test_a_model_that_shows_no_head_holds_its_logits_and_it_is_said_once():
    model, said = Unknown(), []
    loss, ids = without_logits(said), torch.arange(12).view(2, 6)
    found = [loss(model, {"input_ids": ids, "labels": ids}, torch.tensor(10)) for _ in range(2)]
    expected = next_token_cross_entropy(model(ids).logits, ids) / 10
    assert [value.item() for value in found] == [expected.item()] * 2
    assert said == ["loss: all logits are held, as the model does not show its output head"]
