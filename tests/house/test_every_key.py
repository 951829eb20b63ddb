"""Every key of the configuration does something: each is set to another value, and what a run does is then another."""

import contextlib
import hashlib
import json
import re
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType

import pytest

from dumbo.bridge.training_args import training_arguments
from dumbo.cli.composed import composed_model
from dumbo.cli.main import main
from dumbo.config.options import all_options
from dumbo.config.schema import DatasetEntry, FormatOptions, ModelSection, RunConfig
from dumbo.plugin_finder import find_installed
from dumbo.plugins.transformers.loading import ModelRequest
from dumbo.run_folder import yaml_text
from tests import builders

OPTIONS = all_options(composed_model())

# trainer.arguments: values that are not the defaults; what Transformers is given must change with each.
ARGUMENTS = MappingProxyType(
    {
        "batch_size": 16,
        "physical_batch_size": 4,
        "per_device_eval_batch_size": 5,
        "num_train_epochs": 2,
        "max_steps": 7,
        "optim": "sgd",
        "optim_args": "momentum=0.5",
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "adam_beta1": 0.8,
        "adam_beta2": 0.9,
        "adam_epsilon": 1e-6,
        "max_grad_norm": 0.5,
        "lr_scheduler_type": "cosine",
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "warmup_steps": 3,
        "neftune_noise_alpha": 5.0,
        "bf16": True,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "torch_compile": True,
        "torch_compile_backend": "eager",
        "torch_compile_mode": "reduce-overhead",
        "torch_empty_cache_steps": 5,
        "logging_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "eval_delay": 2,
        "eval_on_start": True,
        "save_strategy": "steps",
        "save_steps": 20,
        "save_total_limit": 2,
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
        "dataloader_prefetch_factor": 3,
        "ddp_find_unused_parameters": True,
        "ddp_bucket_cap_mb": 10,
        "ddp_broadcast_buffers": False,
        "ddp_timeout": 60,
        "full_determinism": True,
    }
)
# What these change depends on the machine: that they are read for Transformers is what can be shown on every one.
OF_THE_MACHINE = MappingProxyType(
    {"fp16": True, "tf32": True, "use_cpu": True, "dataloader_pin_memory": False, "ddp_backend": "gloo"}
)
NEEDS = MappingProxyType(
    {
        "gradient_checkpointing_kwargs": {"gradient_checkpointing": True},
        "torch_compile_mode": {"torch_compile_backend": "inductor"},
        "dataloader_persistent_workers": {"dataloader_num_workers": 1},
        "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
        "eval_steps": {"eval_strategy": "steps"},
        "physical_batch_size": {"batch_size": 16},
    }
)

CHAT = MappingProxyType({"datasets.0.train_format": "chat_template"})
MESSAGES = MappingProxyType({"datasets.0.data_format": {"type": "messages"}})
CHAT_OPTIONS = MappingProxyType({"datasets.0.train_format": {"type": "chat_template"}})
BRIEFED = MappingProxyType({"datasets.0.data_format": {"type": "messages", "field_messages": "briefed"}})
COLUMNS = MappingProxyType({"datasets.0.data_format": {"type": "columns"}})
TOOLS = MappingProxyType(
    {
        **CHAT,
        **MESSAGES,
        "model.tokenizer.chat_template": "{{ tools | tojson }}" + builders.CHATML,
        "datasets.0.path": "tools.jsonl",
    }
)
SHIPPED = ("transformers", "transformers_trainer", "polars", "jinja_formatter")
FROM_SCRATCH = MappingProxyType(
    {
        "model": {"architecture": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64}},
        "datasets.0.train_format": "chat_template",
        "plugins": [*SHIPPED, "tokenizer_trainer"],
    }
)
EARLY_STOPPING = MappingProxyType(
    {
        "trainer.arguments.max_steps": 3,
        "trainer.arguments.eval_strategy": "steps",
        "trainer.arguments.eval_steps": 1,
        "trainer.data.val_set_size": 2,
        "trainer.early_stopping": {"patience": 1, "min_delta": 1.0},
        "plugins": [*SHIPPED, "early_stopping"],
    }
)
DIVERGING = MappingProxyType(
    {
        "trainer.arguments.max_steps": 4,
        "trainer.arguments.learning_rate": 1e30,
        "trainer.faults.bad_steps": None,
        "plugins": [*SHIPPED, "watch"],
    }
)
SPECTRUM = MappingProxyType({"plugins": [*SHIPPED, "spectrum"]})
GROKFAST = MappingProxyType({"trainer.arguments.max_steps": 3, "plugins": [*SHIPPED, "grokfast"]})
MOVING = GROKFAST | {"trainer.grokfast": {"filter": "ma", "window_size": 3, "warmup": False}}
THROUGH_DATASETS = MappingProxyType(
    {
        "datasets.0.type": "huggingface",
        "datasets.0.path": "json",
        "datasets.0.data_files": "rows.jsonl",
        "plugins": [*SHIPPED, "huggingface"],
    }
)
TEXTS = MappingProxyType(
    {
        name: {
            "datasets.0.path": "steps.jsonl" if name == "stepwise" else "texts.jsonl",
            "datasets.0.data_format": {"type": name},
            "datasets.0.train_format": {"type": name},
            "plugins": [*SHIPPED, "text_formatter"],
        }
        for name in ("completion", "input_output", "tokens", "stepwise")
    }
)
COMPLETION = TEXTS["completion"] | {"datasets.0.data_format": {"type": "completion", "field": "output"}}
RANDOM_IDS = {"type": "synthetic", "sequence_length": 8, "max_input_id": 400} | {
    kind: {"type": "tokens"} for kind in ("data_format", "train_format")
}
SYNTHETIC = MappingProxyType({"datasets.0": RANDOM_IDS, "plugins": [*SHIPPED, "text_formatter"]})
WITH_TOKENIZER = MappingProxyType({"model.tokenizer.path": "tokenizer-2"})
TINY = MappingProxyType({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2})
BEST = MappingProxyType(
    {
        "trainer.arguments.max_steps": 2,
        "trainer.arguments.learning_rate": 1.0,
        "trainer.arguments.lr_scheduler_type": "constant",
        "trainer.arguments.eval_strategy": "steps",
        "trainer.arguments.eval_steps": 1,
        "trainer.data.val_set_size": 2,
    }
)
SELDOM = MappingProxyType({"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2})
KEPT = BEST | {"trainer.arguments.load_best_model_at_end": True}
ASKED = MappingProxyType(
    {
        "datasets.0.train_format": {"type": "chat_template", "train_on_inputs": False},
        "trainer.data.val_set_size": 5,
        "evaluation.samples": {"count": 2, "max_new_tokens": 5},
        "plugins": [*SHIPPED, "samples", "exact_match"],
    }
)
PROFILE = MappingProxyType({"trainer.profile": {"start_step": 1, "num_steps": 1}, "plugins": [*SHIPPED, "profile"]})
STREAMED = MappingProxyType({"trainer.data.sequence_length": 256, "trainer.data.streaming": True})
ADAPTER = MappingProxyType({"model.peft": {"rank": 2}, "plugins": [*SHIPPED, "peft"]})
QLORA = ADAPTER | {"plugins": [*SHIPPED, "peft", "bitsandbytes"]}
INT8 = ADAPTER | {"plugins": [*SHIPPED, "peft", "torchao"]}

DIFFUSION = MappingProxyType({"plugins": [*SHIPPED, "diffusion"]})
UNMASKED = ASKED | {"plugins": [*SHIPPED, "samples", "exact_match", "diffusion"]}

WITHOUT_LOGITS = MappingProxyType({"plugins": [*SHIPPED, "cut_cross_entropy"]})

SECOND = builders.run_config(Path(), Path("more.jsonl"))["datasets"][0]

# Other keys: (what else is written in both runs, the value of the key in the second).
RUNS = MappingProxyType(
    {
        "trainer.arguments.label_smoothing_factor": ({}, 0.2),
        "trainer.seed": ({}, 8),
        "trainer.output_dir": ({}, "elsewhere"),
        "trainer.data.sequence_length": ({"trainer.data.too_long": "truncate"}, 16),
        "trainer.data.too_long": ({"trainer.data.sequence_length": 16}, "truncate"),
        "trainer.data.val_set_size": ({}, 3),
        "trainer.data.on_bad_row": ({"datasets.0.path": "bad.jsonl"}, "drop"),
        "trainer.data.shuffle": ({}, False),
        "trainer.data.mix": ({"datasets.0.weight": 0.5, "datasets.1": SECOND}, "rows"),
        "trainer.data.deduplicate": ({"datasets.1": SECOND, "datasets.2": SECOND}, True),
        "trainer.data.packing": ({"trainer.data.sequence_length": 256}, True),
        "trainer.data.packing (joined)": ({"trainer.data.sequence_length": 256}, "joined"),
        "trainer.data.streaming": ({"trainer.data.sequence_length": 256}, True),
        "trainer.data.shuffle_buffer": (STREAMED, 3),
        "datasets.weight": ({}, 0.5),
        "datasets.loss_weight": ({"datasets.1": SECOND, "trainer.arguments.batch_size": 64}, 0.5),
        "datasets.loss_weight_field": ({"trainer.arguments.batch_size": 64}, "worth"),
        "trainer.eaft.alpha": ({"plugins": [*SHIPPED, "eaft"]}, 3.0),
        "trainer.eaft.top_k": ({"plugins": [*SHIPPED, "eaft"]}, 3),
        "trainer.dft.alpha": ({"plugins": [*SHIPPED, "dft"]}, 0.5),
        "trainer.data.group_by_length": ({}, True),
        "trainer.faults.bad_steps": (DIVERGING, 2),
        "model.base_model": ({}, "model-2"),
        "model.revision": ({}, "main"),
        "model.dtype": ({}, "bfloat16"),
        "model.attention": ({}, "eager"),
        "model.config_overrides": ({}, {"rms_norm_eps": 0.1}),
        "model.tokenizer.path": ({}, "tokenizer-2"),
        "model.tokenizer.pad_token": ({}, "<|endoftext|>"),
        "model.tokenizer.eos_token": ({}, "<|endoftext|>"),
        "model.tokenizer.bos_token": ({}, "<|im_start|>"),
        "model.tokenizer.unk_token": ({}, "<|endoftext|>"),
        "model.tokenizer.special_tokens": ({}, ["<new>"]),
        "model.tokenizer.tokens": ({}, ["word"]),
        "model.tokenizer.chat_template": (CHAT, builders.CHATML.replace("\n", " ")),
        "model.peft.rank": (ADAPTER, 4),
        "model.peft.alpha": (ADAPTER, 3.0),
        "model.peft.dropout": (ADAPTER, 0.5),
        "model.peft.target_modules": (ADAPTER, ["q_proj"]),
        "model.peft.modules_to_save": (ADAPTER, ["lm_head"]),
        "model.peft.bias": (ADAPTER, "all"),
        "model.peft.use_rslora": (ADAPTER, True),
        "model.peft.use_dora": (ADAPTER, True),
        "model.peft.init": (ADAPTER, "gaussian"),
        "model.peft.method": (ADAPTER | {"model.peft": {}}, "ia3"),
        "model.peft.exclude_modules": (ADAPTER, ["q_proj"]),
        "model.peft.layers_to_transform": (ADAPTER, [1]),
        "model.peft.layers_pattern": (ADAPTER | {"model.peft": {"rank": 2, "layers_to_transform": [1]}}, "h"),
        "model.peft.train_tokens": (ADAPTER, [90]),
        "model.peft.eva_rho": (ADAPTER | {"model.peft": {"rank": 2, "init": "eva"}}, 1.0),
        "model.peft.rank_pattern": (ADAPTER, {"q_proj": 1}),
        "model.peft.alpha_pattern": (ADAPTER, {"q_proj": 1.0}),
        "model.peft.lora_plus_ratio": (ADAPTER, 4.0),
        "model.peft.lora_plus_embedding_rate": (
            ADAPTER | {"model.peft": {"lora_plus_ratio": 2.0, "target_modules": ["embed_tokens"]}},
            1e-3,
        ),
        "model.peft.settings": (ADAPTER | {"model.peft": {"method": "vera"}}, {"d_initial": 0.5}),
        "model.unfrozen_parameters": ({}, ["norm"]),
        "trainer.arguments.learning_rate_factors": ({}, {"embed_tokens": 0.0}),
        "model.bitsandbytes.bits": (QLORA, 8),
        "model.bitsandbytes.quant_type": (QLORA, "fp4"),
        "model.bitsandbytes.double_quant": (QLORA, False),
        "model.bitsandbytes.compute_dtype": (QLORA, "bfloat16"),
        "model.bitsandbytes.storage_dtype": (QLORA, "bfloat16"),
        "model.bitsandbytes.skip_modules": (QLORA, ["down_proj"]),
        "model.bitsandbytes.quantize_head": (QLORA, True),
        "model.torchao.format": (INT8, "float8"),
        "model.torchao.group_size": (INT8, 16),
        "model.torchao.skip_modules": (INT8, ["down_proj"]),
        "model.torchao.quantize_head": (INT8, True),
        "model.tokenizer_trainer.vocab_size": (FROM_SCRATCH, 300),
        "model.tokenizer_trainer.min_frequency": (FROM_SCRATCH, 4),
        "model.tokenizer_trainer.split_digits": (FROM_SCRATCH, True),
        "datasets.type": ({}, "other"),
        "datasets.path": ({}, "more.jsonl"),
        "datasets.format": ({}, "csv"),
        "datasets.field": ({"datasets.0.path": "object.json"}, "rows"),
        "datasets.rows": (TEXTS["completion"] | {"datasets.0.path": "prose.txt"}, "line"),
        "datasets.split": ({"datasets.0.path": "splits"}, "test"),
        "datasets.name": ({}, "main"),
        "datasets.revision": ({}, "main"),
        "datasets.data_files": (THROUGH_DATASETS, "more.jsonl"),
        "datasets.data_dir": (THROUGH_DATASETS | {"datasets.0.data_files": "train.jsonl"}, "splits"),
        "datasets.streaming": (THROUGH_DATASETS | {"datasets.0.split": "train[:6]"}, True),
        "datasets.data_format.type": ({"datasets.0.data_format": {"type": "alpaca"}}, "messages"),
        "datasets.data_format.field_instruction": ({"datasets.0.data_format": {"type": "alpaca"}}, "input"),
        "datasets.data_format.field_input": ({"datasets.0.data_format": {"type": "alpaca"}}, "output"),
        "datasets.data_format.field_output": ({"datasets.0.data_format": {"type": "alpaca"}}, "instruction"),
        "datasets.data_format.prompt": ({"datasets.0.data_format": {"type": "alpaca"}}, "plain"),
        "datasets.data_format.field_messages": (MESSAGES, "turns"),
        "datasets.data_format.field_tools": (TOOLS, "helpers"),
        "datasets.data_format.field_system": (MESSAGES, "input"),
        "datasets.data_format.message_property_mappings": (BRIEFED, {"content": "name"}),
        "datasets.data_format.roles": (CHAT | MESSAGES, {"assistant": ["user"], "user": ["assistant"]}),
        "datasets.data_format.split_thinking": (BRIEFED, True),
        "datasets.data_format.drop_system_message": (BRIEFED, True),
        "datasets.data_format.system_prompt": (COLUMNS, "Be short."),
        "datasets.data_format.system_format": (
            {"datasets.0.data_format": {"type": "columns", "system_prompt": "Be short."}},
            "Note: {system}",
        ),
        "datasets.data_format.format": (COLUMNS, "{input}: {instruction}"),
        "datasets.data_format.no_input_format": (
            {"datasets.0.data_format": {"type": "columns", "field_input": "nothing"}},
            "Do: {instruction}",
        ),
        "datasets.data_format.field": (COMPLETION, "instruction"),
        "datasets.data_format.field (segments)": (TEXTS["input_output"], "parts"),
        "datasets.data_format.field_input_ids": (TEXTS["tokens"], "other_ids"),
        "datasets.data_format.field_labels": (TEXTS["tokens"], "targets"),
        "datasets.data_format.field_labels (steps)": (TEXTS["stepwise"], "verdicts"),
        "datasets.data_format.field_attention_mask": (TEXTS["tokens"], "mask"),
        "datasets.data_format.field_prompt": (TEXTS["stepwise"], "instruction"),
        "datasets.data_format.field_completions": (TEXTS["stepwise"], "thoughts"),
        "datasets.num_rows": (SYNTHETIC, 20),
        "datasets.sequence_length": (SYNTHETIC, 16),
        "datasets.min_input_id": (SYNTHETIC, 300),
        "datasets.max_input_id": (SYNTHETIC, 300),
        "datasets.seed": (SYNTHETIC, 1),
        "datasets.train_format.end_token": (COMPLETION, False),
        "datasets.train_format.allow_special_tokens": (
            COMPLETION | {"datasets.0.data_format": {"type": "completion", "field": "marked"}},
            True,
        ),
        "datasets.train_format.train_on_inputs (segments)": (TEXTS["input_output"], True),
        "datasets.train_format.step_separator": (TEXTS["stepwise"], " "),
        "datasets.train_format.max_completion_length": (TEXTS["stepwise"], 2),
        "datasets.train_format.train_on_last_step_only": (TEXTS["stepwise"], True),
        "datasets.train_format.type": ({}, "chat_template"),
        "datasets.train_format.template": ({}, "{{ messages[1].content }}"),
        "datasets.train_format.train_on_inputs": ({}, False),
        "datasets.train_format.train_on_inputs (chat)": ({"datasets.0.train_format": {"type": "chat_template"}}, True),
        "datasets.train_format.chat_template": (CHAT_OPTIONS, "alpaca"),
        "datasets.train_format.roles_to_train": (CHAT_OPTIONS, ["user"]),
        "datasets.train_format.train_on_eos": (CHAT_OPTIONS, "none"),
        "datasets.train_format.train_on_eot": (CHAT_OPTIONS, "all"),
        "datasets.train_format.eot_tokens": (
            CHAT_OPTIONS
            | {"model.tokenizer.chat_template": builders.CHATML.replace("<|im_end|>", "<|im_end|> <|endoftext|>")},
            ["<|endoftext|>"],
        ),
        "datasets.train_format.hidden_thinking": (
            CHAT_OPTIONS | BRIEFED | {"datasets.0.data_format.split_thinking": True},
            "train",
        ),
        "datasets.train_format.chat_template_kwargs": (
            {
                "datasets.0.train_format": {"type": "chat_template"},
                "model.tokenizer.chat_template": "{{ mood }}" + builders.CHATML,
            },
            {"mood": "glad"},
        ),
        "datasets.held_out": ({"datasets.1": SECOND}, True),
        "model.architecture": ({"model.base_model": builders.REMOVE, **WITH_TOKENIZER}, {"model_type": "llama"} | TINY),
        "trainer.arguments.load_best_model_at_end": (BEST, True),
        "trainer.arguments.metric_for_best_model": (KEPT, "eval/bleu"),
        "trainer.arguments.greater_is_better": (KEPT, True),
        "evaluation.samples.count": (ASKED, 3),
        "evaluation.samples.prompts": (ASKED | {"evaluation.samples": {"max_new_tokens": 5}}, ["Add 3 and 4."]),
        "evaluation.samples.every": (
            ASKED | {f"trainer.arguments.{name}": value for name, value in SELDOM.items()},
            1,
        ),
        "evaluation.samples.max_new_tokens": (ASKED, 6),
        "evaluation.samples.mask_ratio": (UNMASKED, 1.0),
        "trainer.early_stopping.metric": (EARLY_STOPPING, "eval/bleu"),
        "trainer.early_stopping.patience": (EARLY_STOPPING, 3),
        "trainer.early_stopping.min_delta": (EARLY_STOPPING, 0.0),
        "trainer.early_stopping.mode": (EARLY_STOPPING | {"trainer.early_stopping": {"patience": 1}}, "max"),
        "model.cut_cross_entropy.gradient_filter": (WITHOUT_LOGITS, 0.01),
        "model.cut_cross_entropy.z_loss": (WITHOUT_LOGITS, 0.1),
        "model.cut_cross_entropy.token_metrics": (WITHOUT_LOGITS, True),
        "model.spectrum.top_fraction": (SPECTRUM, 1.0),
        "model.spectrum.train_embeddings": (SPECTRUM, False),
        "trainer.grokfast.filter": (GROKFAST, "ma"),
        "trainer.grokfast.alpha": (GROKFAST, 0.5),
        "trainer.grokfast.lamb": (GROKFAST, 3.0),
        "trainer.grokfast.window_size": (MOVING, 2),
        "trainer.grokfast.average": (MOVING, "sum"),
        "trainer.grokfast.warmup": (MOVING, True),
        "trainer.diffusion.noise_schedule": (DIFFUSION, "cosine"),
        "trainer.diffusion.min_mask_ratio": (DIFFUSION, 0.5),
        "trainer.diffusion.max_mask_ratio": (DIFFUSION, 0.5),
        "trainer.diffusion.eps": (DIFFUSION, 0.9),
        "trainer.diffusion.importance_weighting": (DIFFUSION, False),
        "trainer.diffusion.shift_logits": (DIFFUSION, False),
        "trainer.diffusion.end_padding": (DIFFUSION, 3),
        "trainer.diffusion.mask_token_id": (DIFFUSION, 1),
        "trainer.diffusion.mask_token_str": (DIFFUSION, "<|im_start|>"),
        "trainer.diffusion.num_diffusion_steps": (UNMASKED, 1),
        "trainer.diffusion.block_length": (UNMASKED, 1),
        "trainer.profile.start_step": (PROFILE, 2),
        "trainer.profile.num_steps": (PROFILE, 2),
        "trainer.watch.on_alarm": (DIVERGING, "stop"),
        "trainer.watch.after": (
            DIVERGING | {"trainer.arguments.learning_rate": 1.0, "trainer.watch": {"on_alarm": "stop", "after": 0}},
            10,
        ),
        "trainer.watch.ignore": (DIVERGING | {"trainer.watch": {"on_alarm": "stop"}}, ["train/loss"]),
        "plugins": ({}, ["transformers", "polars", "jinja_formatter"]),
    }
)
REFUSED = frozenset(
    {"model.revision", "datasets.type", "datasets.format", "datasets.name", "datasets.revision", "plugins"}
    | {"model.peft.layers_pattern"}  # this model's layers are not called so
    | {"model.peft.bias"}  # this model has none; tests/plugins/test_peft.py has one with biases
    | {
        "trainer.arguments.metric_for_best_model",
        "trainer.early_stopping.metric",
        "trainer.watch.on_alarm",
        "datasets.streaming",
    }
    | {"trainer.faults.bad_steps"}
    | {"trainer.profile.start_step", "trainer.profile.num_steps"}
)
"""What the value does here is that the run is refused: there is no hub, no other reader, no second plugin of a seat."""
REFUSED_WITHOUT = frozenset(
    {"trainer.data.on_bad_row", "trainer.data.too_long", "datasets.field", "model.architecture"}
    | {"trainer.watch.after", "trainer.watch.ignore", "datasets.data_dir"}
    | {"datasets.train_format.allow_special_tokens", "datasets.train_format.hidden_thinking"}
)
"""Here it is the run without the key that is refused."""
TRACKERS = frozenset(
    {
        *(f"trainer.wandb.{name}" for name in ("project", "name", "entity", "group", "tags", "notes", "mode", "dir")),
        *(f"trainer.tensorboard.{name}" for name in ("log_dir", "flush_secs")),
        *(f"trainer.mlflow.{name}" for name in ("tracking_uri", "experiment", "name", "tags", "notes")),
        *(f"trainer.trackio.{name}" for name in ("project", "name", "group", "dir")),
    }
)
"""What they change is in the trackers' stores; tests/plugins/test_trackers.py reads them."""
OF_THE_PROFILE = frozenset(f"trainer.profile.{name}" for name in ("memory", "record_shapes", "with_stack"))
"""What these change stands in the profile alone."""
OF_EXACT_MATCH = frozenset(f"evaluation.exact_match.{name}" for name in ("max_rows", "max_new_tokens", "ignore_case"))
"""A random model is never right; tests/plugins/test_exact_match.py has one that is."""
KERNELS = frozenset(
    {
        *(f"model.liger.{name}" for name in ("rope", "rms_norm", "layer_norm", "glu_activation", "cross_entropy")),
        *(f"model.liger.{name}" for name in ("fused_linear_cross_entropy", "use_token_scaling")),
    }
)
"""Kernels need a GPU, or Triton's interpreter: tests/plugins/test_liger.py runs each there."""
OF_THE_LOSS = frozenset({"model.cut_cross_entropy.backend", "model.cut_cross_entropy.tile_tokens"})
"""The loss is the same with any: tests/plugins/test_cut_cross_entropy.py."""
OF_LORA_KERNELS = frozenset({"model.lora_kernels.mlp", "model.lora_kernels.linear"})
"""So is the training: tests/plugins/test_lora_kernels.py."""
OF_OTHER_EXPERTS = frozenset({"model.dense_mixer.pairs_at_a_time"})
"""It takes memory and changes nothing: tests/plugins/test_dense_mixer.py."""
OF_ZEROS = frozenset({f"model.llm_compressor.{key}" for key in ("targets", "recipe", "save_compressed")})
"""They need a model that was pruned: tests/plugins/test_llm_compressor.py has one."""
OF_THE_CACHE = frozenset({"trainer.data.cache", "trainer.data.prepared"})
"""A run is the same with them and without: tests/run/test_cache.py."""
OF_FAULTS = frozenset({f"trainer.faults.{key}" for key in ("step_timeout", "on_oom", "on_spike", "spike_factor")})
"""A run in which nothing goes wrong is the same with them: tests/faults."""
OF_CHECKPOINTS = frozenset({"trainer.checkpoints.every_minutes", "trainer.checkpoints.background"})
"""Weights and logs are the same with any: tests/faults/test_resume.py."""
OF_EARLIER_ADAPTERS = frozenset({f"model.peft.{key}" for key in ("start_from", "merge_first", "beside")})
"""They need the run of an adapter: tests/plugins/test_peft_previous.py has one."""
OF_EXPERTS = frozenset({"model.peft.target_parameters"})
"""They need a model with experts: tests/plugins/test_peft_lora.py has one."""
OF_OUTLIERS = frozenset({"model.bitsandbytes.threshold"})
"""On a CPU training has no outliers: tests/plugins/test_bitsandbytes.py looks at what the layers are given."""
OF_TEACHERS = frozenset(
    option.key for option in OPTIONS if option.key.startswith("trainer.kd.") and not option.is_section
) | {f"datasets.data_format.{key}" for key in ("field_logprobs", "field_token_ids", "top_k", "temperature")}
"""They need a teacher: tests/plugins/test_kd.py has several."""
OWN_TEST = (
    frozenset({"model.trust_remote_code", "model.allow_pickle"})
    | OF_EARLIER_ADAPTERS
    | OF_EXPERTS
    | OF_OUTLIERS
    | OF_FAULTS
    | OF_CHECKPOINTS
    | OF_THE_CACHE
    | OF_EXACT_MATCH
    | TRACKERS
    | OF_THE_PROFILE
    | KERNELS
    | OF_THE_LOSS
    | OF_LORA_KERNELS
    | OF_OTHER_EXPERTS
    | OF_ZEROS
    | OF_TEACHERS
)


def test_every_key_has_its_row():
    keys = {option.key for option in OPTIONS if not option.is_section}
    rows = {f"trainer.arguments.{name}" for name in (*ARGUMENTS, *OF_THE_MACHINE)}
    rows |= {key.partition(" ")[0] for key in RUNS} | OWN_TEST
    assert keys - rows == set(), "a new key: show here what it does"
    assert rows - keys == set(), "a key that is gone"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_folder):
    """Models, tokenizers and rows of every kind that the keys choose among."""
    folder = tmp_path_factory.mktemp("keys")
    builders.save_tiny_model(folder / "model-2", seed=1)
    builders.build_tokenizer(vocab_size=300).save_pretrained(folder / "tokenizer-2")
    rows = []
    for row in builders.alpaca_rows(8):
        row["input"] = row["input"] or "Nothing."
        turns = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        more = {"messages": turns, "turns": [*turns, *turns]}
        brief, thought = {"role": "system", "content": "Be short."}, f"<think>Hm.</think>{row['output']}"
        briefed = [brief, turns[0], {"role": "assistant", "content": thought, "name": "Ada"}]
        rows.append(row | more | {"briefed": briefed, "nothing": "", "worth": len(rows) % 3})
    builders.write_rows(folder / "rows.jsonl", rows)
    tools = {"tools": [{"name": "a"}], "helpers": [{"name": "bc"}]}
    builders.write_rows(folder / "tools.jsonl", [row | tools for row in rows])
    write_texts(folder)
    builders.write_rows(folder / "more.jsonl", rows[::-1] + builders.alpaca_rows(12))
    builders.write_rows(folder / "bad.jsonl", [*rows, {"instruction": 3}])
    (folder / "object.json").write_text(json.dumps({"rows": rows, "version": 1}))
    (folder / "splits").mkdir()
    builders.write_rows(folder / "splits" / "train.jsonl", rows)
    builders.write_rows(folder / "splits" / "test.jsonl", rows[2:])
    return folder


def write_texts(folder):
    """Rows without messages."""
    (folder / "prose.txt").write_text("\n".join(row["output"] for row in builders.alpaca_rows(8)))
    steps = {"completions": ["One.", "Two."], "thoughts": ["Two.", "One."], "labels": [1, 1], "verdicts": [0, 1]}
    ids = {"input_ids": [90, 91, 92], "other_ids": [92, 91, 90], "targets": [-100, -100, 92], "mask": [0, 1, 1]}
    texts, solutions = [], []
    for row in builders.alpaca_rows(8):
        ask, answer = {"label": False, "text": row["instruction"]}, {"label": True, "text": row["output"]}
        segments = {"segments": [ask, answer], "parts": [ask, answer, ask, answer]}
        texts.append(row | ids | segments | {"marked": f"{row['output']}<|endoftext|>"})
        solutions.append(row | steps | {"prompt": row["output"]})
    builders.write_rows(folder / "texts.jsonl", texts)
    builders.write_rows(folder / "steps.jsonl", solutions)


ALWAYS = MappingProxyType({"trainer.arguments.max_steps": 1, "trainer.data.cache": False})


def what_happens(changes, model_folder, capsys):
    """What a run says, measures and leaves behind, without times and the run's own folder."""
    config = builders.run_config(model_folder, Path("rows.jsonl"), {**ALWAYS, **changes})
    if config["trainer"]["data"].get("streaming"):
        del config["trainer"]["data"]["cache"]  # Of a stream nothing is kept.
    number = len(list(Path().glob("*.yaml")))
    config["trainer"].setdefault("output_dir", f"out-{number}")
    file = Path(f"{number}.yaml")
    file.write_text(yaml_text(config), encoding="utf-8")
    capsys.readouterr()
    status = main(["train", str(file)])
    said = capsys.readouterr()
    out = Path(config["trainer"]["output_dir"])
    metrics = []
    if (out / "metrics.jsonl").exists():
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        metrics = [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in rows]
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("model/*")}
    mistakes = [line.partition(": ")[2] for line in said.err.splitlines()] if status else []
    samples = (out / "samples.jsonl").read_text() if (out / "samples.jsonl").exists() else ""
    spoken = [line for line in said.out.splitlines() if line.startswith(("model:", "on ", "tokenizer:"))]
    metrics += [samples] if samples else []
    return status, metrics, files, re.sub(r"\d+\.yaml", "", "\n".join(mistakes)), spoken, out.name.rstrip("0123456789")


@pytest.fixture(scope="module")
def known():
    """What happened in the runs that several keys are compared with."""
    return {}


def rows():
    """Those of plugins are for the full tests, as each plugin has tests of its own; so is half of the others."""
    sections = {found.type.section for found in find_installed()[0]}
    of_plugins = [row for row in RUNS if ".".join(row.split(" ")[0].split(".")[:2]) in sections]
    yield from (pytest.param(row, marks=pytest.mark.full) for row in of_plugins)
    yield from builders.thinned((row for row in RUNS if row not in of_plugins), 2)


@pytest.mark.parametrize("row", list(rows()))
def test_a_key_changes_what_a_run_does(row, folder, model_folder, known, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    context, value = RUNS[row]
    key = row.partition(" ")[0].replace("datasets.", "datasets.0.")
    key = key.replace("_format.type", "_format")  # the keys beside a type are the type's own
    name = json.dumps(dict(context), default=repr)
    if name not in known:
        known[name] = what_happens(context, model_folder, capsys)
    status, *_ = found = what_happens({**context, key: value}, model_folder, capsys)
    assert found != known[name]
    assert status == (2 if row in REFUSED else 0), found
    assert known[name][0] == (2 if row in REFUSED_WITHOUT else 0), known[name]


def test_a_run_is_repeatable_so_that_a_difference_has_a_cause(folder, model_folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    first = what_happens({}, model_folder, capsys)
    assert first[0] == 0
    assert first[1:4] != ([], {}, "")
    assert what_happens({}, model_folder, capsys) == first


def argument_config(arguments):
    entry = DatasetEntry(type="r", data_format=FormatOptions(type="d"), train_format=FormatOptions(type="t"))
    sections = {"model": {}, "datasets": (entry,), "trainer": {"arguments": arguments}, "plugins": ("x",)}
    return RunConfig.model_validate(sections)


def transformers_arguments(arguments, tmp_path):
    """What Transformers is given for `arguments`, every field of it."""
    made = training_arguments(argument_config(arguments), tmp_path, 1, evaluates=True)
    return {field.name: repr(getattr(made, field.name)) for field in fields(made)}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_changes_what_transformers_is_given(name, tmp_path):
    context = NEEDS.get(name, {})
    with_key = transformers_arguments({**context, name: ARGUMENTS[name]}, tmp_path)
    assert with_key != transformers_arguments(context, tmp_path)


@pytest.mark.parametrize("name", OF_THE_MACHINE)
def test_an_argument_for_other_machines_is_read_for_transformers(name, tmp_path):
    arguments = argument_config({name: OF_THE_MACHINE[name]}).trainer.arguments
    config = argument_config({}).model_copy()
    config = config.model_copy(update={"trainer": config.trainer.model_copy(update={"arguments": arguments})})
    arguments.start_reading()
    with contextlib.suppress(ValueError):  # this machine cannot do it, and says so
        training_arguments(config, tmp_path, 1, evaluates=True)
    assert arguments.unread() == ()


def test_a_backend_may_be_named_for_one_process(folder, model_folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    status, *_ = what_happens({"trainer.arguments.ddp_backend": "gloo"}, model_folder, capsys)
    assert status == 0


def test_the_kind_of_an_adapter_is_checked(folder, model_folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    status, _, _, said, *_ = what_happens({**ADAPTER, "model.peft.method": "lora2"}, model_folder, capsys)
    assert status == 2
    assert "model.peft.method: no method of adapters is called 'lora2'" in said


@pytest.mark.parametrize("trusted", [True, False])
def test_trust_reaches_the_loading_of_the_model(trusted):
    # That code then runs, or is refused, is shown where loading is tested.
    model = {"base_model": "x", "trust_remote_code": trusted}
    config = argument_config({}).model_copy(update={"model": ModelSection.model_validate(model)})
    assert ModelRequest.of_run(config, {}).trusted is trusted
