"""How the peers of `sft.py` are told to do what it measures, each with the options of its users.

`PYTHON benchmarks/sft_peers.py NAME RUN.json` trains with TRL or LLaMA-Factory in the environment of PYTHON; Axolotl is
started by its own command, with the clock as a plugin. Three defaults of theirs are changed so that all sides do the
same work: activation checkpointing is off (TRL, LLaMA-Factory), kernels that need a GPU are off (Axolotl's for LoRA),
and optimizer, schedule and clipping are the same for all. Needs the peer and the standard library.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Run = Mapping[str, Any]
RANK, ALPHA = 16, 32


def command(name: str, python: str, file: Path) -> list[str]:
    """What starts the peer on the run in `file`."""
    if name != "axolotl":
        return [python, __file__, name, str(file)]
    config = file.with_name("axolotl.json")
    config.write_text(json.dumps(axolotl_config(json.loads(file.read_text(encoding="utf-8")))), encoding="utf-8")
    return [str(Path(python).with_name("axolotl")), "train", str(config), "--launcher", "python"]


def shared(run: Run) -> dict[str, Any]:
    """Words of Transformers' `TrainingArguments` that TRL and LLaMA-Factory take over."""
    amount = {"max_steps": run["steps"]} if run["steps"] else {"num_train_epochs": 1}
    return {
        **amount,
        "output_dir": run["out"],
        "per_device_train_batch_size": run["batch"],
        "gradient_accumulation_steps": 1,
        "learning_rate": run["learning_rate"],
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "logging_steps": 10,
        "logging_first_step": True,
        "save_strategy": "no",
        "bf16": run["dtype"] == "bfloat16",
        "use_cpu": not run["gpu"],
        "dataloader_pin_memory": run["gpu"],
        "report_to": "none",
    }


def train_trl(run: Run) -> None:
    """TRL's `SFTTrainer`."""
    from datasets import load_dataset
    from peft import LoraConfig
    from sft_clock import StepClock
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        **shared(run),
        max_length=run["length"],
        packing=run["packed"],
        assistant_only_loss=True,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": run["dtype"]},
    )
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        run["model"],
        config,
        train_dataset=load_dataset("json", data_files=run["rows"], split="train"),
        peft_config=lora if run["lora"] else None,
        callbacks=[StepClock()],
    )
    trainer.train()


def train_llamafactory(run: Run) -> None:
    """What `llamafactory-cli train` calls."""
    from llamafactory.train.tuner import run_exp
    from sft_clock import StepClock

    run_exp(llamafactory_config(run, Path(run["out"]).parent), callbacks=[StepClock()])


def llamafactory_config(run: Run, folder: Path) -> dict[str, Any]:
    """A configuration of LLaMA-Factory, whose table of data sets is written into `folder`."""
    names = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    rows = {"file_name": run["rows"], "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": names}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    lora = {"lora_rank": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "lora_target": "all"}
    return {
        **shared(run),
        **(lora if run["lora"] else {}),
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": run["model"],
        "finetuning_type": "lora" if run["lora"] else "full",
        "dataset": "rows",
        "dataset_dir": str(folder),
        "template": "chatml",
        "cutoff_len": run["length"],
        "packing": run["packed"],
        "neat_packing": run["packed"],
        "flash_attn": "sdpa",
        "disable_gradient_checkpointing": True,
        "overwrite_cache": True,
    }


def axolotl_config(run: Run) -> dict[str, Any]:
    """A configuration of Axolotl; JSON is YAML."""
    lora = {"adapter": "lora", "lora_r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "lora_target_linear": True}
    kernels = dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), run["gpu"])
    rows = {"path": run["rows"], "ds_type": "json", "type": "chat_template", "field_messages": "messages"}
    return {
        **({"max_steps": run["steps"]} if run["steps"] else {}),
        **({**lora, **kernels} if run["lora"] else {}),
        "base_model": run["model"],
        "datasets": [rows],
        "chat_template": "chatml",
        "dataset_prepared_path": f"{run['out']}/prepared",
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
        "sequence_len": run["length"],
        "sample_packing": run["packed"],
        "pad_to_sequence_len": run["packed"],
        "flash_attention": False,
        "sdp_attention": True,
        "bf16": run["dtype"] == "bfloat16",
        "fp16": False,
        "micro_batch_size": run["batch"],
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "optimizer": "adamw_torch_fused",
        "lr_scheduler": "linear",
        "learning_rate": run["learning_rate"],
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "logging_steps": 10,
        "save_strategy": "no",
        "val_set_size": 0,
        "output_dir": run["out"],
        "plugins": ["sft_axolotl.ClockPlugin"],
    }


TRAINED: Mapping[str, Callable[[Run], None]] = {"trl": train_trl, "llamafactory": train_llamafactory}


if __name__ == "__main__":
    TRAINED[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
