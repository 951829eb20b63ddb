"""Every kind of adapter in every way of training is PEFT's own, trained by hand; the plugin's page has the table."""

import itertools
import zlib
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dumbo.cli.main import main
from dumbo.data.dataset import TokenDataset
from dumbo.data.records import Example, Origin
from tests import builders
from tests.distributed.test_without_logits import on_two_processes
from tests.faults.stopping import STOPPER, assert_same_run, stop_by
from tests.numerics.training import random_rows, train_by_hand
from tests.run.whole_runs import SHIPPED, losses_of, printed_by, run_here

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*_pattern keys did not match:RuntimeWarning"),
]

PAGE = builders.ROOT / "src" / "dumbo" / "plugins" / "lora_kernels" / "README.md"
COUNT, EPOCHS = 12, 3
"""Rows, all of which are in each step, and steps."""
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# What is written in the run, and what PEFT is told by hand.
ADAPTERS = {
    "LoRA": ({}, {}),
    "rsLoRA": ({"use_rslora": True}, {"use_rslora": True}),
    "DoRA": ({"use_dora": True}, {"use_dora": True}),
    "rows of new tokens": ({}, {"trainable_token_indices": {"embed_tokens": [512, 513], "lm_head": [512, 513]}}),
    "head trained as a whole": ({"modules_to_save": ["lm_head"]}, {"modules_to_save": ["lm_head"]}),
    "LoRA on the head": (
        {"target_modules": [*LINEAR, "lm_head"]},
        {"target_modules": [*LINEAR, "lm_head"]},
    ),
}
WAYS = {
    "plain": {},
    "packing": {
        "trainer.data": {"packing": True, "sequence_length": 512},
        "trainer.arguments.batch_size": 1,
        "trainer.arguments.physical_batch_size": 1,
    },
    "accumulation": {"trainer.arguments.physical_batch_size": 3},
    "`gradient_checkpointing`": {"trainer.arguments.gradient_checkpointing": True},
    "`bf16`": {"trainer.arguments.bf16": True},
    "`cut_cross_entropy`": {"model.cut_cross_entropy.tile_tokens": 16, "plugins": ["cut_cross_entropy"]},
    "`lora_kernels`": {"plugins": ["lora_kernels"]},
    "`lora_kernels` and all of these": {
        "trainer.data": {"packing": True, "sequence_length": 512},
        "trainer.arguments.batch_size": 1,
        "trainer.arguments.physical_batch_size": 1,
        "trainer.arguments.gradient_checkpointing": True,
        "model.cut_cross_entropy.tile_tokens": 16,
        "plugins": ["cut_cross_entropy", "lora_kernels"],
    },
    "stopped, `--resume`": {"plugins": ["lora_kernels"]},
    "two processes": {"trainer.arguments.physical_batch_size": 6, "plugins": ["lora_kernels"]},
}
REFUSED = {
    ("DoRA", way): "'lora_kernels' has no effect: PEFT computes all layers of this model"
    for way, changes in WAYS.items()
    if "lora_kernels" in changes.get("plugins", ())
}
"""All other combinations are the training by hand."""
FAST = {
    *(("LoRA", way) for way in ("plain", "`lora_kernels` and all of these", "stopped, `--resume`")),
    *((adapter, "`lora_kernels`") for adapter in ("LoRA", "DoRA", "rows of new tokens", "LoRA on the head")),
    ("rsLoRA", "`gradient_checkpointing`"),
    ("LoRA on the head", "`cut_cross_entropy`"),
    ("head trained as a whole", "accumulation"),
}

FILL = '''
from dumbo.plugin_loader import ModelPatcherPlugin, Phase
from tests.plugins.test_adapter_combinations import fill


class FillPlugin(ModelPatcherPlugin):
    """Gives every new weight a value by its name, so that the same model can be made by hand."""

    name = "fill"
    phase = Phase.FREEZE

    def patch_model(self, model, config):
        return fill(model)
'''


def fill(model):
    """`model`, with values for all that is new in it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(parameter.shape, generator=draw) * 0.1
            if "lora_A" in name or "lora_B" in name or "trainable_tokens_delta" in name:
                parameter.copy_(noise)
            elif parameter.requires_grad:
                parameter.add_(noise)
            elif parameter.shape[0] == 514:
                parameter[512:] = noise[512:]
    return model


def examples(adapter):
    """Random rows; with new tokens in them where the adapter has such."""
    new = {4: 512, 5: 513, 6: 512} if adapter == "rows of new tokens" else {}
    rows = [
        ([new.get(token, token) for token in row["input_ids"]], [new.get(token, token) for token in row["labels"]])
        for row in ({name: list(row[name]) for name in ("input_ids", "labels")} for row in random_rows(COUNT))
    ]
    assert sum(len(ids) for ids, _ in rows) <= 512, "all fit into one packed row"
    return TokenDataset.from_examples(
        [Example(ids, labels, Origin("rows", number)) for number, (ids, labels) in enumerate(rows, start=1)]
    )


def by_hand(adapter, model_folder):
    """The losses and the weights of PEFT's own composition in a plain loop."""
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    theirs = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | ADAPTERS[adapter][1]
    if "trainable_token_indices" in theirs:
        base.resize_token_embeddings(514, mean_resizing=False)
    model = fill(get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **theirs)))
    model, losses = train_by_hand(model, examples(adapter), batch_size=COUNT, epochs=EPOCHS)
    return losses, get_peft_model_state_dict(model, save_embedding_layers=False)


@pytest.fixture(scope="module")
def references(model_folder):
    """Those that were trained by hand so far."""
    found = {}

    def reference(adapter):
        if adapter not in found:
            found[adapter] = by_hand(adapter, model_folder)
        return found[adapter]

    return reference


def write(folder, model_folder, adapter, way) -> Path:
    """The configuration of a run."""
    folder.mkdir(parents=True)
    (folder / "fill.py").write_text(FILL)
    (folder / "stopper.py").write_text(STOPPER)
    rows = [
        {name: [int(token) for token in row[name]] for name in ("input_ids", "labels")} for row in examples(adapter)
    ]
    changes = {
        "datasets.0.data_format": "tokens",
        "datasets.0.train_format": "tokens",
        "model.peft": {"rank": 4, **ADAPTERS[adapter][0]},
        "trainer.arguments": {"use_cpu": True, "logging_steps": 1, "learning_rate": 3e-3, "adam_epsilon": 1e-6}
        | {"batch_size": COUNT, "physical_batch_size": COUNT, "num_train_epochs": EPOCHS}
        | {"gradient_checkpointing": False},
    }
    if adapter == "rows of new tokens":
        changes["model.tokenizer.special_tokens"] = ["<a>", "<b>"]
    changes |= WAYS[way]
    own = ["text_formatter" if name == "jinja_formatter" else name for name in SHIPPED]
    own += ["peft", "./fill.py:FillPlugin", "./stopper.py:StopperPlugin"]
    changes["plugins"] = [*own, *WAYS[way].get("plugins", ())]
    return builders.write_config(folder, model_folder, builders.write_rows(folder / "rows.jsonl", rows), changes)


def trained(tmp_path, model_folder, adapter, way) -> Path:
    """The folder of a run that was trained in this way."""
    file = write(tmp_path / "run", model_folder, adapter, way)
    if way == "two processes":
        on_two_processes("-m", "dumbo", file)
    elif way == "stopped, `--resume`":
        with stop_by("SIGTERM", 2):
            assert main(["train", str(file)]) == 75
        assert main(["train", str(file), "--resume"]) == 0
        assert_same_run(file.parent / "out", run_here(write(tmp_path / "whole", model_folder, adapter, way)))
    else:
        run_here(file)
    return file.parent / "out"


CELLS = [
    pytest.param(adapter, way, marks=() if (adapter, way) in FAST else pytest.mark.full)
    for adapter, way in itertools.product(ADAPTERS, WAYS)
]


@pytest.mark.parametrize(("adapter", "way"), CELLS)
def test_a_combination_is_the_training_by_hand_or_is_refused(
    tmp_path, model_folder, references, adapter, way, capsys, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(builders.ROOT), prepend=":")
    if (adapter, way) in REFUSED:
        file = write(tmp_path / "run", model_folder, adapter, way)
        assert REFUSED[adapter, way] in printed_by(capsys, 2, "train", str(file)).err
        return
    out = trained(tmp_path, model_folder, adapter, way)
    losses, weights = references(adapter)
    found = load_file(out / "model" / "adapter_model.safetensors")
    assert found.keys() == weights.keys()
    if way == "`bf16`":
        assert losses_of(out) == pytest.approx(losses, rel=1e-2)
        return
    assert losses_of(out) == pytest.approx(losses, rel=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=5e-5, msg=name)
    assert losses[-1] < losses[0]


def table():
    """What the page says."""
    lines = [f"| | {' | '.join(ADAPTERS)} |", f"| --- |{' --- |' * len(ADAPTERS)}"]
    for way in WAYS:
        cells = ["refused" if (adapter, way) in REFUSED else "equal" for adapter in ADAPTERS]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_page_has_the_table_of_what_is_tested_here():
    assert table() in PAGE.read_text(encoding="utf-8"), table()
