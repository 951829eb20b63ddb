"""Keys that people bring along from other tools, and what they write here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FOREIGN_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "adapter": "list the plugin of the adapter under plugins: and give its options in its section",
        "base_model_config": "write model.base_model; its configuration is read from there",
        "data_seed": "write trainer.seed; rows and model share one seed",
        "dataset_prepared_path": "remove it",
        "gradient_accumulation_steps": "write batch_size (per step) and physical_batch_size; accumulation follows",
        "load_in_4bit": "quantized loading is a plugin's: see 'dumbo plugins'",
        "load_in_8bit": "quantized loading is a plugin's: see 'dumbo plugins'",
        "lr": "write trainer.arguments.learning_rate",
        "lr_scheduler": "write trainer.arguments.lr_scheduler_type",
        "max_length": "write trainer.data.sequence_length",
        "max_seq_length": "write trainer.data.sequence_length",
        "micro_batch_size": "write physical_batch_size",
        "model_name_or_path": "write model.base_model",
        "num_epochs": "write trainer.arguments.num_train_epochs",
        "optimizer": "write trainer.arguments.optim",
        "per_device_train_batch_size": "write physical_batch_size",
        "report_to": "list the tracker's plugin under plugins:",
        "sample_packing": "remove it; sequences are padded",
        "seq_len": "write trainer.data.sequence_length",
        "sequence_len": "write trainer.data.sequence_length",
        "special_tokens": "write model.tokenizer.pad_token, eos_token, bos_token, unk_token",
        "strict": "remove it; unknown keys are always errors",
        "tokenizer_type": "remove it; the tokenizer's class is found from its files",
        "torch_dtype": "write model.dtype",
        "train_batch_size": "write batch_size",
        "use_wandb": "list the tracker's plugin under plugins:",
        "warmup_ratio": "write warmup_steps: a number below 1 is a share of all steps",
    }
)
"""Last part of a foreign key -> what to do."""
