"""Run by test_liger.py in a process of its own: kernels and losses against PyTorch; prints what differs, as JSON."""

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.plugins import liger_interpreter  # noqa: F401, I001  (before anything imports Liger)

import torch
from peft import LoraConfig, get_peft_model

from dumbo.losses.token import next_token_cross_entropy
from dumbo.plugins.cut_cross_entropy.loss import build_loss as build_cut_loss
from dumbo.plugins.cut_cross_entropy.plugin import CutCrossEntropyOptions
from dumbo.plugins.liger.kernels import apply_kernels
from dumbo.plugins.liger.loss import build_loss
from dumbo.plugins.liger.plugin import LigerOptions
from tests import builders

OFF = {"rope": False, "rms_norm": False, "layer_norm": False, "glu_activation": False}
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = torch.tensor([[3, 7, 11, 5, 2], [9, 4, 4, 1, 0]])
LABELS = torch.tensor([[-100, 7, 11, -100, 2], [-100, -100, 4, 1, -100]])
BATCH = {"input_ids": IDS, "labels": LABELS}
ITEMS = torch.tensor(5)


def model_of(kind="llama", **changes):
    model = builders.build_tiny_model(37, config_type=kind, **SHAPE, num_key_value_heads=1, **changes)
    with torch.no_grad():  # norms of ones and tiny weights would hide mistakes
        for number, parameter in enumerate(model.parameters()):
            torch.manual_seed(number)
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def eager(model, smoothing=0.0):
    logits = model(input_ids=IDS).logits
    return next_token_cross_entropy(logits, LABELS, smoothing) / ITEMS


def scaled_eager(model):
    """The reference of token scaling: each token's loss times its probability, which has no gradient."""
    logits = model(input_ids=IDS).logits[:, :-1]
    supervised = LABELS[:, 1:] != -100
    logs = logits[supervised].log_softmax(-1).gather(-1, LABELS[:, 1:][supervised][:, None])
    return (-logs * logs.exp().detach()).sum() / ITEMS


def gradients(model, loss):
    """The loss and all gradients of `model`."""
    model.zero_grad()
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def difference(ours, theirs):
    """The largest difference of two losses and of all gradients, relative to the largest gradient."""
    worst = abs(ours[0] - theirs[0])
    for name, their in theirs[1].items():
        mine = ours[1][name]
        if (mine is None) != (their is None):
            return f"{name} has a gradient in one of them only"
        if mine is not None:
            worst = max(worst, ((mine - their).abs().max() / (their.abs().max() + 1e-6)).item())
    return worst


def kernel(name, kind="llama"):
    plain, said = model_of(kind), []
    patched = copy.deepcopy(plain)
    expected = gradients(plain, eager(plain))  # before, as rope is a function that all models of a kind share
    apply_kernels(patched, LigerOptions(**{**OFF, name: True}), said.append)
    return difference(gradients(patched, eager(patched)), expected), said


def print_to_nobody(line):
    """The result alone goes to standard output."""


def loss(options, kind="llama", *, smoothing=0.0, reference=None, prepare=None, compute=None, **changes):
    plain = model_of(kind, **changes)
    plain = plain if prepare is None else prepare(plain)
    fused = copy.deepcopy(plain)
    compute = compute or build_loss(LigerOptions(**OFF, **options), smoothing, print_to_nobody)
    expected = reference(plain) if reference else eager(plain, smoothing)
    worst = difference(gradients(fused, compute(fused, BATCH, ITEMS)), gradients(plain, expected))
    with torch.no_grad():  # an evaluation: neither smoothing nor scaling
        evaluated = abs((compute(fused, BATCH, ITEMS) - eager(plain)).item())
    nothing = {"input_ids": IDS, "labels": torch.full_like(LABELS, -100)}
    empty = compute(fused, nothing, ITEMS)
    empty.backward()
    return worst, evaluated, empty.item()


def frozen_but_the_head(model):
    model.requires_grad_(False)
    model.get_output_embeddings().requires_grad_(True)
    return model


def with_adapter(**options):
    return lambda model: get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, **options))


def refusals():
    """What is said of models and options that do not go together."""
    cases = {
        "no such kernel": ("llama", {"layer_norm": True}),
        "refused by Liger": ("glm4", {"rope": True}),
        "unknown model": ("gpt_neox", {}),
        "unknown model, asked": ("gpt_neox", {"rope": True, "fused_linear_cross_entropy": True}),
    }
    found = {}
    for name, (kind, options) in cases.items():
        try:
            apply_kernels(model_of(kind), LigerOptions(**options), lambda text: None)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    adapted = with_adapter(target_modules=["lm_head"])(model_of())
    for name, model in {"adapter on the head": adapted}.items():
        try:
            apply_kernels(model, LigerOptions(**OFF, fused_linear_cross_entropy=True), lambda text: None)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    odd = model_of()
    odd.register_forward_hook(lambda module, inputs, output: setattr(output, "logits", output.logits.square()))
    try:
        build_loss(LigerOptions(fused_linear_cross_entropy=True), 0.0, print_to_nobody)(odd, BATCH, ITEMS)
    except Exception as error:
        found["logits changed"] = f"{type(error).__name__}: {error}"
    return found


def of_cut_cross_entropy(kind="llama", *, smoothing=0.0, **changes):
    """The plugin cut_cross_entropy with `backend: liger`."""
    config = SimpleNamespace(trainer=SimpleNamespace(arguments=SimpleNamespace(label_smoothing_factor=smoothing)))
    compute = build_cut_loss(CutCrossEntropyOptions(backend="liger"), config, print_to_nobody)
    return loss({}, kind, smoothing=smoothing, compute=compute, **changes)


FUSED, PLAIN = {"fused_linear_cross_entropy": True}, {"cross_entropy": True}

KERNELS = {
    "rms_norm": lambda: kernel("rms_norm"),
    "glu_activation": lambda: kernel("glu_activation"),
    "glu_activation of gemma": lambda: kernel("glu_activation", "gemma"),
    # Last: all models of the kind have it from then on, and the interpreter is slow.
    "rope": lambda: kernel("rope"),
    "rope again": lambda: kernel("rope"),
}
LOSSES = {
    "fused": lambda: loss(FUSED),
    "fused, smoothed": lambda: loss(FUSED, smoothing=0.2),
    "fused, capped logits": lambda: loss(FUSED, "gemma2", final_logit_softcapping=2.0, head_dim=8),
    "none": lambda: loss({}, smoothing=0.2),
}
LONG = {
    "fused, scaled by probability": lambda: loss({**FUSED, "use_token_scaling": True}, reference=scaled_eager),
    "cross_entropy, smoothed": lambda: loss(PLAIN, smoothing=0.2),
    "cross_entropy": lambda: loss(PLAIN),
    "fused, only the head trained": lambda: loss(FUSED, prepare=frozen_but_the_head),
    "fused, tied": lambda: loss(FUSED, tie_word_embeddings=True),
    "fused, divided logits": lambda: loss(FUSED, "granite", logits_scaling=3.0),
    "fused, multiplied logits": lambda: loss(FUSED, "cohere", logit_scale=0.5),
    "fused, a model unknown to Liger": lambda: loss(FUSED, "gpt_neox"),
    "fused, adapter": lambda: loss(FUSED, prepare=with_adapter(target_modules=["q_proj"])),
    "of cut_cross_entropy": of_cut_cross_entropy,
    "of cut_cross_entropy, smoothed": lambda: of_cut_cross_entropy(smoothing=0.2),
    "of cut_cross_entropy, capped logits": lambda: of_cut_cross_entropy(
        "gemma2", final_logit_softcapping=2.0, head_dim=8
    ),
    "fused, head saved whole": lambda: loss(FUSED, prepare=with_adapter(modules_to_save=["lm_head"])),
    "fused, rows of new tokens": lambda: loss(
        FUSED, prepare=with_adapter(trainable_token_indices={"embed_tokens": [7], "lm_head": [7, 11]})
    ),
}


def whole_runs(folder):
    """Losses of a run, with and without the kernels."""
    from dumbo.cli.main import main
    from tests.run.whole_runs import SHIPPED, losses_of

    # The interpreter is slow: few tokens, one step.
    model = builders.save_tiny_model(folder / "model", builders.build_tokenizer(vocab_size=264), num_hidden_layers=1)
    rows = builders.write_rows(folder / "rows.jsonl", [{"instruction": "a", "input": "", "output": "b"}] * 3)
    shape = {
        "datasets.0.train_format.template": "{% for m in messages %}{{ m.content[-1:] }}c{% endfor %}",
        "trainer.data.val_set_size": 1,
        "trainer.arguments.batch_size": 2,
        "trainer.arguments.max_steps": 1,
        "trainer.arguments.label_smoothing_factor": 0.1,
    }
    curves = {}
    sys.stdout = sys.stderr  # what the runs say; the results alone go to the standard output
    runs = {"plain": None, "fused": {**OFF, **FUSED, "glu_activation": True}}
    for name, options in runs.items():
        changes = {} if options is None else {"plugins": [*SHIPPED, "liger"], "model.liger": options}
        file = builders.write_config(folder / name, model, rows, {**shape, **changes})
        assert main(["train", str(file)]) == 0
        out = folder / name / "out"
        curves[name] = losses_of(out) + losses_of(out, "eval/loss")
    sys.stdout = sys.__stdout__
    return curves


if __name__ == "__main__":
    part, folder = sys.argv[1], Path(sys.argv[2])
    results = {"refusals": refusals()} if part == "short" else {"runs": whole_runs(folder)}
    cases = LOSSES | KERNELS if part == "short" else LONG
    print(json.dumps(results | {name: case() for name, case in cases.items()}))
