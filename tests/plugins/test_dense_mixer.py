"""Router gradients from all experts: the formula in float64, what must not change, and models that are refused."""

import copy
import re
import warnings
from importlib.metadata import version

import pytest
import torch
import transformers
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig

from dumbo.bridge.inference_model import load_for_inference
from dumbo.cli.main import main
from dumbo.errors import ConfigError
from dumbo.plugin_finder import find_plugin
from dumbo.plugin_rules import in_order
from dumbo.plugins.dense_mixer.attaching import add_dense_mixer, is_experts
from dumbo.plugins.dense_mixer.experts import NAME, base_forward, mixer_of, register
from dumbo.plugins.dense_mixer.routing import UnknownRouter, recognise
from tests import builders
from tests.architectures import mixers, tiny
from tests.architectures.compare import gradients
from tests.plugins.quantized_runs import WIDE, changes
from tests.run.whole_runs import SHIPPED, losses_of, metrics_of, weights_of, write_and_run

CHOSEN = ("olmoe", "qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss", "nemotron_h")
"""Softmax as it is and over those chosen, sigmoid with groups and a bias, experts with biases, without gates."""
SHAPE = {
    "config_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
    "head_dim": 8,
}


def mixing(model, pairs=16):
    """The model with the plugin in it, and what was said."""
    register()
    model.set_experts_implementation(NAME)
    said = []
    return add_dense_mixer(model, pairs, said.append), said


def both(name):
    """Two equal models, the second one with the plugin, and a batch."""
    plain = tiny.build(name)
    return plain, mixing(copy.deepcopy(plain))[0], tiny.batch(name)


def trained(model, batch):
    torch.manual_seed(0)
    loss = model(**batch).loss
    return loss.detach(), gradients(loss, model)


def experts_of(model):
    return {name: module for name, module in model.named_modules() if is_experts(module)}


def outputs_of_all(experts, hidden):
    """[T, E, H]: every expert's output for every token, by the model's own code."""
    own = type(experts).forward.__wrapped__
    ones = torch.ones(len(hidden), 1, dtype=hidden.dtype)
    each = [own(experts, hidden, torch.full((len(hidden), 1), index), ones) for index in range(experts.num_experts)]
    return torch.stack(each, dim=1)


def softmax_of_all(router, logits, chosen):
    return logits.softmax(dim=-1)


def softmax_over_chosen(router, logits, chosen):
    """As the package `densemixer` has it: through the sum of the chosen for the chosen, and not for others."""
    probabilities = logits.softmax(dim=-1)
    mask = torch.zeros_like(probabilities).scatter(-1, chosen, 1.0)
    total = (probabilities * mask).sum(dim=-1, keepdim=True)
    return probabilities * mask / total + probabilities * (1 - mask) / total.detach()


def scaled_sigmoid_over_chosen(router, logits, chosen):
    values = logits.sigmoid()
    mask = torch.zeros_like(values).scatter(-1, chosen, 1.0)
    total = (values * mask).sum(dim=-1, keepdim=True) + 1e-20
    return (values * mask / total + values * (1 - mask) / total.detach()) * router.routed_scaling_factor


FORMULAS = {
    "olmoe": softmax_of_all,
    "qwen3_moe": softmax_over_chosen,
    "mixtral": softmax_over_chosen,
    "deepseek_v3": scaled_sigmoid_over_chosen,
    "gpt_oss": softmax_over_chosen,
}


def layer_of(model):
    """The last layer of experts: its block, router and experts."""
    name = list(experts_of(model))[-1].rpartition(".")[0]
    block = model.get_submodule(name)
    return block, getattr(block, "gate", None) or block.router, block.experts


class Wide(TorchFunctionMode):
    """Whatever asks for float32 gets float64: routers compute in float32, whatever the type of a model is."""

    def __torch_function__(self, function, types, positional=(), named=None):
        if function is torch.Tensor.float:
            return positional[0].double()
        positional = [torch.float64 if value is torch.float32 else value for value in positional]
        named = {key: torch.float64 if value is torch.float32 else value for key, value in (named or {}).items()}
        return function(*positional, **named)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_gradients_of_router_and_tokens_are_those_of_the_dense_formula_in_float64(name):
    plain = tiny.build(name)
    if name == "deepseek_v3":
        layer_of(plain)[1].e_score_correction_bias.normal_(0, 0.1)
        layer_of(plain)[1].routed_scaling_factor = 2.5
    if name == "qwen3_moe":
        layer_of(plain)[1].norm_topk_prob = True
    model, _ = mixing(plain)
    model.double()
    block, router, experts = layer_of(model)
    mixer_of(experts).base = base_forward(experts, "eager")  # grouped_mm has no float64
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, 7, model.config.hidden_size, generator=draw, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(7, model.config.hidden_size, generator=draw, dtype=torch.float64)
    leaves = [*(parameter for parameter in router.parameters() if parameter.requires_grad), hidden]

    with Wide():
        logits, _, chosen = router(hidden[0])
        weights, outputs = FORMULAS[name](router, logits, chosen), outputs_of_all(experts, hidden[0])
        assert logits.dtype == weights.dtype == torch.float64
        is_chosen = torch.zeros_like(weights).scatter(-1, chosen, 1.0)
        y = (weights[..., None] * outputs.detach()).sum(dim=1)
        y = y + ((weights * is_chosen).detach()[..., None] * (outputs - outputs.detach())).sum(dim=1)
        if hasattr(block, "shared_experts"):
            y = y + block.shared_experts(hidden[0])
        expected = torch.autograd.grad((y * cotangent).sum(), leaves)

        output = block(hidden)
        output = output[0] if isinstance(output, tuple) else output
        got = torch.autograd.grad((output.reshape(7, -1) * cotangent).sum(), leaves)
    for mine, reference in zip(got, expected, strict=True):
        assert mine.dtype == torch.float64
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CHOSEN)
def test_the_output_is_the_same_bit_by_bit_and_so_are_the_gradients_of_experts(name):
    plain, mixed, batch = both(name)
    (loss, without), (mixed_loss, within) = trained(plain, batch), trained(mixed, batch)
    assert torch.equal(loss, mixed_loss)
    last = list(experts_of(plain))[-1]
    own = [parameter for parameter in without if parameter.startswith(f"{last}.")]
    assert own
    assert all(torch.equal(without[parameter], within[parameter]) for parameter in own)
    assert not all(torch.equal(without[parameter], within[parameter]) for parameter in without)
    plain.eval(), mixed.eval()
    with torch.no_grad():
        assert torch.equal(plain(**batch).logits, mixed(**batch).logits)


def test_routers_learn_of_experts_that_they_did_not_choose():
    """With a sigmoid of its own for every expert nothing else reaches them."""
    found = []
    for model in both("deepseek_v3")[:2]:
        block, router, _ = layer_of(model)
        router.norm_topk_prob = False
        hidden = torch.randn(1, 1, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        chosen = router(hidden)[2][0]
        block(hidden).sum().backward()
        others = [index for index in range(4) if index not in chosen.tolist()]
        found.append(router.weight.grad[others].abs().max())
    assert found[0] == 0
    assert found[1] > 1e-3


def test_a_factor_of_each_expert_counts_for_those_not_chosen():
    """Gemma 4 multiplies weights by a number for each expert, and its layers have the experts beside the router."""
    shape = tiny.shrunk(Gemma4TextConfig, "gemma4_text").to_dict()
    more = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(Gemma4TextConfig(**(shape | more)), dtype=torch.float32)
    model, said = mixing(model.train())
    (name, experts), *_ = experts_of(model).items()
    assert mixer_of(experts).routing.factor == "router.per_expert_scale"
    router = model.get_submodule(name.rpartition(".")[0]).router
    with torch.no_grad():
        router.per_expert_scale.uniform_(0.5, 2)
    hidden = torch.randn(5, model.config.hidden_size)
    probabilities, weights, chosen = router(hidden)
    mask = torch.zeros_like(probabilities).scatter(-1, chosen, 1.0)
    total = (probabilities * mask).sum(dim=-1, keepdim=True)
    dense = (probabilities * mask / total + probabilities * (1 - mask) / total.detach()) * router.per_expert_scale
    expected = torch.autograd.grad(
        (dense[..., None] * outputs_of_all(experts, hidden).detach()).sum(), router.proj.weight
    )[0]
    _, weights, chosen = router(hidden)
    got = torch.autograd.grad(experts(hidden, chosen, weights).sum(), router.proj.weight)[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.full
def test_every_architecture_is_served_or_refused_as_the_page_says():
    found = mixers.examine_all()
    assert not [finding for finding in found if finding.verdict == "MISMATCH"], found
    assert mixers.files() == {file for finding in found for file in finding.files}
    assert all(finding.reason for finding in found if finding.verdict != mixers.SERVED)
    assert mixers.table(found) in mixers.PAGE.read_text(encoding="utf-8")


def test_every_file_of_transformers_with_experts_is_on_the_page():
    page = mixers.PAGE.read_text(encoding="utf-8")
    if f"Transformers {version('transformers')}" in page:
        listed = page[page.index("\nServed, ") : page.index("\n## What it costs")]
        names = set(re.findall(r"[a-z0-9_]+", listed))
        parts = ("", "_text", "_thinker")
        assert not [file for file in mixers.files() if not names & {f"{file}{part}" for part in parts}]


@pytest.mark.parametrize("name", ["beam", "gemma4_text"])
def test_models_with_experts_in_some_layers_or_as_an_option_are_served(name):
    found = mixers.examine(name, "causal")
    assert (found.verdict, found.reason) == (mixers.SERVED, "")


def test_a_model_that_cannot_be_looked_at_is_named_with_the_reason():
    found = mixers.examine("diffusion_gemma", "image")
    assert (found.verdict, found.reason) == (mixers.LEFT, "it computes no loss of tokens")
    assert "diffusion_gemma (it computes no loss of tokens)" in mixers.table([found])


@pytest.mark.parametrize("pairs", [1, 5, 10_000])
def test_how_many_are_computed_at_a_time_changes_nothing(pairs):
    plain, batch = tiny.build("qwen3_moe"), tiny.batch("qwen3_moe")
    reference = trained(mixing(copy.deepcopy(plain), 64)[0], batch)[1]
    for name, gradient in trained(mixing(plain, pairs)[0], batch)[1].items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    _, model, batch = both("qwen3_moe")
    model.config.output_router_logits = False  # a reentrant checkpoint has no gradient for what models record
    loss, reference = trained(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    again, found = trained(model, batch)
    assert torch.equal(loss, again)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-5, atol=1e-7)


def test_sixteen_bits_by_autocast_have_the_same_forward_and_close_gradients():
    plain, mixed, batch = both("qwen3_moe")
    reference = trained(mixed, batch)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, mixed_loss = plain(**batch).loss, mixed(**batch).loss
    assert torch.equal(loss, mixed_loss)
    found = gradients(mixed_loss, mixed)
    name = next(name for name in found if name.endswith("layers.1.mlp.gate.weight"))
    assert functional.cosine_similarity(found[name].flatten(), reference[name].flatten(), dim=0) > 0.98


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
def test_adapters_on_experts_are_in_what_the_router_learns_of():
    from peft import LoraConfig, get_peft_model

    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    options = LoraConfig(r=4, target_parameters=targets, target_modules=[], lora_alpha=16)
    model = get_peft_model(tiny.build("qwen3_moe"), options)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("gate.weight") or "lora_" in name)
            if "lora_" in name:
                parameter.normal_(0, 0.1, generator=draw)
    merged = copy.deepcopy(model).merge_and_unload()
    batch = tiny.batch("qwen3_moe")
    adapted, expected = [], []
    for whole, gates in ((mixed_inside(model), adapted), (mixing(merged)[0], expected)):
        found = trained(whole, batch)[1]
        gates += [gradient for name, gradient in found.items() if name.endswith("gate.weight")]
    assert len(adapted) == len(expected) == 2
    for mine, reference in zip(adapted, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-5)


def mixed_inside(model):
    register()
    model.get_base_model().set_experts_implementation(NAME)
    return add_dense_mixer(model, 16, print)


def test_routers_that_are_not_trained_are_an_error():
    model = tiny.build("qwen3_moe")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("gate.weight" not in name)
    with pytest.raises(ConfigError, match="no router of Qwen3MoeForCausalLM is trained"):
        mixing(model)
    next(parameter for name, parameter in model.named_parameters() if "1.mlp.gate.weight" in name).requires_grad_()
    model.set_experts_implementation("grouped_mm")
    mixing(model)


def test_a_router_that_cannot_be_followed_is_refused_by_name():
    with pytest.raises(ConfigError, match="PhimoeForCausalLM: in model.layers.0.mlp.experts, the weights that its"):
        mixing(tiny.build("phimoe"))
    with pytest.raises(ConfigError, match="LlamaForCausalLM has no experts that Transformers lets others compute"):
        add_dense_mixer(builders.build_tiny_model(), 16, print)


def test_experts_that_something_else_computes_are_refused():
    model = tiny.build("qwen3_moe")
    with pytest.raises(ConfigError, match="is computed by 'grouped_mm', which another plugin or option asked for"):
        add_dense_mixer(model, 16, print)
    first = next(iter(experts_of(model).values()))
    first.forward = lambda hidden, chosen, weights: hidden
    with pytest.raises(ConfigError, match=r"model.layers.0.mlp.experts of Qwen3MoeForCausalLM took no part"):
        mixing(model)


def test_experts_that_are_shared_out_to_devices_are_refused():
    model = tiny.build("qwen3_moe")
    list(experts_of(model).values())[-1]._is_expert_parallel = True  # as Transformers marks them
    with pytest.raises(ConfigError, match="experts that are shared out to several devices"):
        mixing(model)


def test_it_comes_after_the_plugins_that_may_change_experts():
    found = in_order([find_plugin(name, None) for name in ("dense_mixer", "lora_kernels", "liger", "peft")])
    assert [plugin.name for plugin in found][-1] == "dense_mixer"


@pytest.mark.full
def test_experts_and_routers_of_a_base_of_four_bits_are_not_quantized(tmp_path, rows_file):
    model = builders.save_tiny_model(tmp_path / "model", **SHAPE, **WIDE)
    more = changes("bitsandbytes", {"bits": 4}, **{"trainer.arguments.max_steps": 2})
    more["model.peft"] = {"rank": 2, "target_modules": ["q_proj"], "target_parameters": ["gate.weight"]}
    plain = write_and_run(tmp_path / "plain", model, rows_file, more)
    mixed = write_and_run(tmp_path / "mixed", model, rows_file, {**more, "plugins": [*more["plugins"], "dense_mixer"]})
    assert losses_of(plain)[0] == losses_of(mixed)[0]
    assert metrics_of(mixed)[0]["train/grad_norm"] != metrics_of(plain)[0]["train/grad_norm"]
    base = load_for_inference(mixed / "model")[0]
    experts = next(module for module in base.modules() if is_experts(module))
    assert {parameter.dtype for parameter in experts.parameters()} == {torch.float32}


def test_a_router_that_chooses_by_a_table_is_left_as_it_is():
    model, said = mixing(tiny.build("deepseek_v4"))
    assert "1 more with a router that chooses by a table of tokens is left out" in said[0]
    plain, batch = tiny.build("deepseek_v4"), tiny.batch("deepseek_v4")
    assert torch.equal(trained(plain, batch)[0], trained(model, batch)[0])


def test_functions_that_cannot_be_told_apart_are_refused():
    """One expert for each token, with the weight one whatever its score is."""
    scores = torch.randn(8, 4)
    with pytest.raises(UnknownRouter, match="no function of its scores"):
        recognise({"gate": scores}, {}, scores.argmax(-1, keepdim=True), torch.ones(8, 1))
    alike = torch.zeros(8, 4) + 1e-7 * scores
    chosen = alike.topk(2).indices
    with pytest.raises(UnknownRouter, match="softmax or sigmoid: they are too much alike to tell"):
        recognise({"gate": alike}, {}, chosen, torch.full((8, 2), 0.5))


def test_a_run_begins_with_the_same_loss_and_goes_another_way(tmp_path, rows_file, capsys):
    model = builders.save_tiny_model(tmp_path / "model", **SHAPE)
    more = {"trainer.arguments.max_steps": 3, "trainer.arguments.learning_rate": 0.01}
    plain = write_and_run(tmp_path / "plain", model, rows_file, more)
    changes = {**more, "plugins": [*SHIPPED, "dense_mixer"], "model.dense_mixer": {"pairs_at_a_time": 50}}
    mixed = write_and_run(tmp_path / "mixed", model, rows_file, changes)
    said = capsys.readouterr().out
    assert "dense_mixer: 2 layers of 4 experts, whose routers (softmax) learn from all of them" in said
    assert losses_of(plain)[0] == losses_of(mixed)[0]
    assert losses_of(plain)[2] != losses_of(mixed)[2]
    assert metrics_of(mixed)[0]["train/grad_norm"] != metrics_of(plain)[0]["train/grad_norm"]
    assert set(weights_of(mixed / "model")) == set(weights_of(plain / "model"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transformers.AutoModelForCausalLM.from_pretrained(mixed / "model")


def test_a_model_from_scratch_can_have_it(tmp_path, rows_file):
    shape = {"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    changes = {
        "model": {"architecture": shape},
        "datasets.0.train_format": "chat_template",
        "plugins": [*SHIPPED, "tokenizer_trainer", "dense_mixer"],
        "trainer.arguments.max_steps": 1,
    }
    assert losses_of(write_and_run(tmp_path, tmp_path, rows_file, changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainer.arguments.torch_compile": True}, "which a compiler cannot look into"),
        ({"model.dense_mixer": {"pairs_at_a_time": 0}}, "pairs_at_a_time"),
        ({"model.dense_mixer": True}, "model.dense_mixer"),
        ({"plugins": [*SHIPPED, "dense_mixer", "./other.py:OtherPlugin"]}, "experts_implementation"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, rows_file, capsys, changes, words):
    model = builders.save_tiny_model(tmp_path / "model", **SHAPE)
    (tmp_path / "other.py").write_text(
        "from dumbo.plugin_loader import LoadOptionsPlugin\n\n\nclass OtherPlugin(LoadOptionsPlugin):\n"
        "    def load_kwargs(self, config):\n        return {'experts_implementation': 'batched_mm'}\n"
    )
    changes = {"plugins": [*SHIPPED, "dense_mixer"], **changes}
    file = builders.write_config(tmp_path, model, rows_file, changes)
    assert main(["train", str(file)]) == 2
    assert words in capsys.readouterr().err
