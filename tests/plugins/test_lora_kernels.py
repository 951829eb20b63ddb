"""The plugin `lora_kernels`: the same training as with PEFT's own layers, in every way, and what it refuses."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from dumbo.bridge.lora_seam import fuse_lora, release_lora
from dumbo.cli.main import main
from tests import builders
from tests.numerics.training import VOCABULARY, farthest_weight, random_rows, train
from tests.run.whole_runs import SHIPPED, losses_of, write_and_run

PLUGINS = [*SHIPPED, "peft", "lora_kernels"]
IDS = torch.arange(3, 33)[None]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*_pattern keys did not match:RuntimeWarning"),
]


def adapted(config_type="llama", *, shape=None, dtype=None, **options):
    """A tiny model with an adapter that does something."""
    model = builders.build_tiny_model(VOCABULARY, config_type=config_type, seed=1, **(shape or {}))
    theirs = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | options
    torch.manual_seed(2)
    model = get_peft_model(model if dtype is None else model.to(dtype), LoraConfig(task_type="CAUSAL_LM", **theirs))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def fused(model, **kinds):
    """A copy of `model` with the kernels, and what was found in it."""
    model = copy.deepcopy(model)
    return model, fuse_lora(model, **({"blocks": True, "layers": True} | kinds))


def gradients(model, ids=IDS, seed=5):
    """The loss and the gradients of a training pass."""
    model.train().zero_grad()
    torch.manual_seed(seed)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(one, other, tolerance=1e-5):
    (loss, of_one), (expected, of_other) = gradients(one), gradients(other)
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    assert of_one.keys() == of_other.keys() and of_one
    largest = max(float(gradient.abs().max()) for gradient in of_other.values())
    for name, gradient in of_one.items():
        torch.testing.assert_close(gradient, of_other[name], rtol=0, atol=tolerance * largest, msg=name)


ARCHITECTURES = {
    "llama": ({}, 2, {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "qwen3": ({"head_dim": 8}, 2, {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "gemma2": ({"head_dim": 8}, 2, {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "phi3": ({}, 0, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
    "gpt2": ({"n_embd": 32, "n_head": 4, "n_layer": 2}, 0, {"c_attn", "c_proj", "c_fc"}),
    "nemotron": ({}, 0, {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}),
    "qwen2_moe": (
        {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 24, "num_experts": 2}
        | {"num_experts_per_tok": 1},
        2,
        {"q_proj", "k_proj", "v_proj", "o_proj", "shared_expert_gate"},
    ),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k in ("llama", "gemma2") else pytest.mark.full) for k in ARCHITECTURES]
)
def test_any_architecture_has_the_same_gradients(kind):
    shape, blocks, layers = ARCHITECTURES[kind]
    model = adapted(kind, shape=shape)
    ours, found = fused(model)
    assert len(found.blocks) == blocks, found
    assert {name.rpartition(".")[2] for name in found.layers} >= layers
    assert_same_gradients(ours, model)


CASES = {
    "dropout": {"lora_dropout": 0.3},
    "adapter's bias": {"lora_bias": True},
    "rsLoRA": {"use_rslora": True},
    "some layers": {"target_modules": ["q_proj", "down_proj"]},
    "biases": {"bias": "lora_only"},
    "head": {"target_modules": ["q_proj", "lm_head", "gate_proj", "up_proj", "down_proj"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "whole head": {"modules_to_save": ["lm_head"]},
    "rows of the embeddings": {"trainable_token_indices": [5, 6]},
    "ranks of their own": {"rank_pattern": {"up_proj": 7}, "alpha_pattern": {"q_proj": 3}},
}


@pytest.mark.parametrize("name", CASES)
def test_any_adapter_has_the_same_gradients(name):
    kind = {"config_type": "llama", "shape": {"mlp_bias": True}} if name == "biases" else {}
    model = adapted(**kind, **CASES[name])
    ours, found = fused(model)
    assert found.blocks or found.layers
    assert_same_gradients(ours, model)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_any_precision_has_the_same_gradients(dtype, autocast):
    model = adapted(dtype=dtype)
    assert next(p for n, p in model.named_parameters() if "lora_A" in n).dtype == torch.float32
    ours, _ = fused(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert_same_gradients(ours, model, 1e-5 if dtype is None and not autocast else 2e-2)


ARGUMENTS = {"batch_size": 4, "physical_batch_size": 2, "num_train_epochs": 2.0}
WAYS = {
    "accumulation": {},
    "checkpointing": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "autocast": {"bf16": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dropout", [0.0, pytest.param(0.2, marks=pytest.mark.full)])
def test_a_training_is_the_same(tmp_path, way, dropout):
    model, rows = adapted(lora_dropout=dropout), random_rows(8)
    if way == "reentrant":
        model.enable_input_require_grads()
    plain = train(tmp_path / "a", model, rows, **ARGUMENTS, **WAYS[way])
    found = train(tmp_path / "b", fused(model)[0], rows, **ARGUMENTS, **WAYS[way])
    tolerance = 2e-2 if way == "autocast" else 1e-5
    assert found.metrics.values("train/loss") == pytest.approx(plain.metrics.values("train/loss"), rel=tolerance)
    assert farthest_weight(found.model, plain.model) < (1e-2 if way == "autocast" else 1e-5)


def called(model, name, monkeypatch):
    """How often the kernel `name` is called in a pass of the model."""
    from dumbo.bridge import lora_seam

    calls, real = [], getattr(lora_seam, name)
    monkeypatch.setattr(lora_seam, name, lambda *given: calls.append(1) or real(*given))
    gradients(model)
    monkeypatch.undo()
    return len(calls)


def test_kernels_compute_in_training_and_peft_everywhere_else(monkeypatch):
    model = adapted()
    ours, _ = fused(model)
    assert called(ours, "gated_block", monkeypatch) == 2
    assert called(ours, "lora_linear", monkeypatch) == 8
    with monkeypatch.context() as patch:
        for name in ("gated_block", "lora_linear"):
            patch.setattr(f"dumbo.bridge.lora_seam.{name}", None)
        assert torch.equal(ours.eval()(IDS).logits, model.eval()(IDS).logits)
        with torch.no_grad():
            assert torch.equal(ours.train()(IDS).logits, model.train()(IDS).logits)
        assert torch.equal(ours.eval().generate(IDS, max_new_tokens=3), model.eval().generate(IDS, max_new_tokens=3))
        with ours.train().disable_adapter(), model.train().disable_adapter():
            assert torch.equal(ours(IDS).logits, model(IDS).logits)
    only_blocks, found = fused(model, layers=False)
    assert not found.layers and called(only_blocks, "lora_linear", monkeypatch) == 0
    only_layers, found = fused(model, blocks=False)
    assert not found.blocks and called(only_layers, "lora_linear", monkeypatch) == 14
    assert_same_gradients(only_layers, model)


def test_switching_and_merging_adapters_is_that_of_peft(monkeypatch):
    ours, _ = fused(adapted())
    model = release_and_copy(ours)
    for each in (ours, model):
        torch.manual_seed(3)
        each.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
        each.set_adapter("second")
    assert_same_gradients(ours, model)
    assert called(ours, "gated_block", monkeypatch) == 2
    for each in (ours, model):
        each.base_model.set_adapter(["default", "second"])
    assert_same_gradients(ours, model)
    assert called(ours, "lora_linear", monkeypatch) == 6, "not where two are active: PEFT computes them"
    for each in (ours, model):
        each.base_model.set_adapter("default")
        each.merge_adapter()
    assert torch.equal(ours.train()(IDS).logits, model.train()(IDS).logits)
    for each in (ours, model):
        each.unmerge_adapter()
    assert_same_gradients(ours, model)
    merged = ours.merge_and_unload()
    assert not any(isinstance(module, PeftModel) or hasattr(module, "lora_A") for module in merged.modules())
    assert torch.equal(merged.train()(IDS).logits, model.merge_and_unload().train()(IDS).logits)


def release_and_copy(model):
    plain = copy.deepcopy(model)
    release_lora(plain)
    return plain


def test_it_can_be_taken_out_and_a_copy_has_kernels_of_its_own(monkeypatch):
    model = adapted()
    ours, _ = fused(model)
    assert list(ours.state_dict()) == list(model.state_dict())
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in model.named_modules()]
    again = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert_same_gradients(again, model)
    assert called(again, "gated_block", monkeypatch) == 2
    release_lora(again)
    assert not any("forward" in vars(module) for module in again.modules())
    assert called(again, "gated_block", monkeypatch) == 0
    assert_same_gradients(again, model)


def test_hooks_see_what_they_would_see_without(monkeypatch):
    ours, found = fused(adapted())
    block, name = ours.get_submodule(found.blocks[0]), found.layers[0]
    seen = []
    block.gate_proj.register_forward_hook(lambda *given: seen.append("gate"))
    ours.get_submodule(name).lora_A["default"].register_forward_hook(lambda *given: seen.append("A"))
    assert called(ours, "gated_block", monkeypatch) == 1
    assert called(ours, "lora_linear", monkeypatch) == 7
    assert seen == ["A", "gate"] * 2


class NotABlock(nn.Module):
    """Looks like a gated block, and adds one."""

    def __init__(self, size, inner, activation):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(size, inner, bias=False) for _ in range(2))
        self.down_proj, self.act_fn = nn.Linear(inner, size, bias=False), activation

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * (self.up_proj(x) + 1))


class Renamed(nn.Module):
    """A gated block whose parts have other names, in another order."""

    def __init__(self, size, inner, activation):
        super().__init__()
        self.w2, self.w3, self.w1 = nn.Linear(inner, size), nn.Linear(size, inner), nn.Linear(size, inner)
        self.activation = activation

    def forward(self, hidden):
        return self.w2(self.w3(hidden) * self.activation(self.w1(hidden)))


class Drops(Renamed):
    """One with dropout of its own."""

    def forward(self, hidden):
        return torch.dropout(super().forward(hidden), 0.5, self.training)


class Squashes(nn.Module):
    """An activation with a weight."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.tanh(self.slope * x)


def with_mlp(kind, activation=None):
    model = builders.build_tiny_model(VOCABULARY, seed=1)
    torch.manual_seed(0)
    for block in model.model.layers:
        block.mlp = kind(32, 48, activation or nn.SiLU())
    names = [name for name, _ in model.model.layers[0].mlp.named_children() if name[0] in "gudw"]
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", *names]))


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(approximate="tanh"), torch.nn.functional.gelu, torch.relu])
def test_blocks_are_known_by_what_they_compute(activation):
    model = with_mlp(Renamed, activation)
    ours, found = fused(model)
    assert len(found.blocks) == 2 and not found.left_blocks
    assert_same_gradients(ours, model)


@pytest.mark.parametrize("kind", [NotABlock, Drops])
def test_what_only_looks_like_a_block_is_left(kind):
    model = with_mlp(kind)
    ours, found = fused(model)
    assert not found.blocks
    assert set(found.left_blocks.values()) == {"it is not down(act(gate(x)) * up(x))"}
    assert len(found.layers) == 8
    assert_same_gradients(ours, model)


def test_an_activation_with_weights_is_left():
    _, found = fused(with_mlp(Renamed, Squashes()))
    assert not found.blocks and len(found.layers) == 8


def test_trying_a_block_leaves_no_trace():
    model = adapted(lora_dropout=0.5).eval()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fuse_lora(model, blocks=True, layers=True)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# Whole runs.


def refusal(tmp_path, model, rows, options, capsys, changes=None, verb="train"):
    shape = {"plugins": PLUGINS, "model.lora_kernels": options, **(changes or {})}
    file = builders.write_config(tmp_path, model, rows, shape)
    capsys.readouterr()
    assert main([verb, str(file)]) == 2
    return capsys.readouterr().err


def test_a_whole_run_says_where_they_are_and_leaves_the_same_adapter(tmp_path, model_folder, rows_file, capsys):
    from safetensors.torch import load_file

    changes = {"model.peft": {"rank": 4, "dropout": 0.1}, "plugins": PLUGINS[:-1], "trainer.data.val_set_size": 3}
    plain = write_and_run(tmp_path / "plain", model_folder, rows_file, changes)
    capsys.readouterr()
    out = write_and_run(tmp_path / "fused", model_folder, rows_file, changes | {"plugins": PLUGINS})
    said = capsys.readouterr().out
    line = "lora_kernels: in 2 gated feed-forward blocks and 8 layers (q_proj 2, k_proj 2, v_proj 2, o_proj 2)"
    assert line in said.splitlines()
    assert "left to PEFT" not in said
    for path in ("train/loss", "train/grad_norm", "eval/loss"):
        assert losses_of(out, path) == pytest.approx(losses_of(plain, path), rel=1e-5), path
    one, other = (load_file(folder / "model" / "adapter_model.safetensors") for folder in (plain, out))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=2e-5, msg=name)


def test_what_is_left_is_named(tmp_path, model_folder, rows_file, capsys):
    targets = {"target_modules": ["q_proj", "embed_tokens"]}
    write_and_run(tmp_path, model_folder, rows_file, {"plugins": PLUGINS, "model.peft": targets})
    said = capsys.readouterr().out.splitlines()
    assert "lora_kernels: in 2 layers (q_proj 2)" in said
    assert "lora_kernels: left to PEFT: embed_tokens 1: an adapter of the kind Embedding" in said


@pytest.mark.parametrize(
    ("options", "peft", "lines"),
    [
        (
            {},
            {"use_dora": True},
            [
                "plugins: 'lora_kernels' has no effect: PEFT computes all layers of this model",
                "mlp 2: gate_proj: DoRA",
                "q_proj 2, k_proj 2, v_proj 2, o_proj 2, gate_proj 2, up_proj 2, down_proj 2: DoRA",
                "remove 'lora_kernels' from plugins",
            ],
        ),
        (
            {"mlp": True},
            {"use_dora": True},
            ["model.lora_kernels.mlp: has no effect: mlp 2: gate_proj: DoRA", "leave it out"],
        ),
        (
            {"mlp": True},
            {"target_modules": ["q_proj"]},
            ["model.lora_kernels.mlp: has no effect: the model has no gated feed-forward blocks with LoRA"],
        ),
        (
            {"linear": True},
            {"target_modules": ["up_proj"]},
            ["model.lora_kernels.linear: has no effect: there are no layers with LoRA outside of the blocks"],
        ),
    ],
)
def test_what_has_no_effect_is_refused(tmp_path, model_folder, rows_file, options, peft, lines, capsys):
    said = refusal(tmp_path, model_folder, rows_file, options, capsys, {"model.peft": peft})
    for line in lines:
        assert line in said, said


@pytest.mark.parametrize(
    ("options", "changes", "line"),
    [
        ({"mlp": False, "linear": False}, {}, "model.lora_kernels: every kernel is switched off"),
        ({}, {"trainer.arguments.torch_compile": True}, "torch_compile: cannot be combined with 'lora_kernels'"),
        ({}, {"plugins": [*SHIPPED, "lora_kernels"]}, "'peft'"),
        ({"qkv": True}, {}, "model.lora_kernels.qkv: unknown option"),
    ],
)
def test_a_check_finds_what_needs_no_model(tmp_path, model_folder, rows_file, options, changes, line, capsys):
    assert line in refusal(tmp_path, model_folder, rows_file, options, capsys, changes, verb="check")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_weights_have_the_same_gradients(kind):
    """Four bits in blocks too; of eight the layers alone, as their matrix is not that of the forward pass."""
    bnb = pytest.importorskip("bitsandbytes")
    model = builders.build_tiny_model(VOCABULARY, seed=1, hidden_size=64, intermediate_size=128)
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, quantized(bnb, child, kind))
    flag = "is_loaded_in_4bit" if kind == "nf4" else "is_loaded_in_8bit"
    setattr(model, flag, True)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=r".*_proj"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.enable_input_require_grads()
    model.train()
    expected = gradients(model)
    found = fuse_lora(model, blocks=True, layers=True)
    assert (len(found.blocks), len(found.layers)) == ((2, 8) if kind == "nf4" else (0, 14)), found
    loss, ours = gradients(model)
    torch.testing.assert_close(loss, expected[0])
    assert ours.keys() == expected[1].keys() and ours
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-4, atol=1e-6, msg=name)


def quantized(bnb, linear, kind):
    if kind == "nf4":
        made = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, quant_type="nf4")
        made.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
    else:
        made = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False)
        made.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    return made.to("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
def test_on_a_gpu_gradients_are_the_same_and_less_memory_is_taken(autocast):
    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4}
    model = adapted(shape=shape, dtype=torch.bfloat16).cuda()
    ours, _ = fused(model.cpu())
    ids = torch.randint(4, VOCABULARY, (4, 512), device="cuda")
    peaks, outcomes = [], []
    for each in (model, ours):
        each.cuda()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            gradients(each, ids)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            outcomes.append(gradients(each, ids))
        peaks.append(torch.cuda.max_memory_allocated() - before)
        each.cpu()
    assert peaks[1] < 0.8 * peaks[0], peaks
    torch.testing.assert_close(outcomes[1][0], outcomes[0][0], rtol=1e-2, atol=0)
    largest = max(float(gradient.abs().max()) for gradient in outcomes[0][1].values())
    for name, gradient in outcomes[1][1].items():
        torch.testing.assert_close(gradient, outcomes[0][1][name], rtol=0, atol=5e-2 * largest, msg=name)
