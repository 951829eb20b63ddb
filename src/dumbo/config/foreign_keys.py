"""Keys and type names that people bring along from other tools, and what they write here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

_TOOLS = (("A", "Axolotl"), ("T", "TRL"), ("L", "LLaMA-Factory"))
_ADAPTER = "write model.peft, and peft under plugins"
_NO_ADAPTER = "not available: the plugin peft trains adapters, as PEFT computes them"
_MERGE = "leave it out; after the training, 'dumbo merge RUN' puts the adapter into its base model"
_QUANTIZED = "not available: base models are quantized by the plugins bitsandbytes (4 and 8 bits) and torchao (8 bits)"
_BITS = "write model.bitsandbytes: {bits: 4} (or 8), and bitsandbytes under plugins"
_DOUBLE = "write model.bitsandbytes.double_quant, and bitsandbytes under plugins"
_SHARDED = "not available: every process holds a whole copy of the model (DDP)"
_HUB = "not available: the model is saved in the run's folder, under model/"
_TRACKERS = "wandb, tensorboard, mlflow and trackio"
_NO_TRACKER = f"not available: the trackers are {_TRACKERS}; metrics.jsonl in the run's folder has every logged step"
_PLAIN_TEXT = "write data_format: {type: completion, field: ...} and train_format: completion"
_PRETRAINING = "write it under datasets with data_format and train_format: completion, and trainer.data.streaming: true"
_TWO_FORMATS = "'{0}' is a data_format here, and '{0}' is a train_format: write both, and text_formatter under plugins"
_ONE_METHOD = "not available: training is supervised, on the cross entropy of the next token"

_DATA_FORMATS = (
    *("columns", "alpaca_qa", "camel_ai", "concise_choice", "context_qa", "context_qa_404", "context_qa_v2"),
    *("creative_answer", "creative_critique", "creative_revise", "explain_choice", "gpt4all", "gpteacher"),
    *("jeopardy", "metharme", "oasst", "open_orca", "orca_mini", "reflection", "summarize_tldr"),
)
_ALPACA_CHAT = "{type: alpaca, prompt: chat}"
_WITH_SYSTEM = "{type: alpaca, prompt: chat, field_system: system}"
_RENAMED_FORMATS = (
    ("alpaca:chat", _ALPACA_CHAT),
    ("alpaca:phi", "{type: alpaca, prompt: phi}"),
    ("alpaca_chat", _ALPACA_CHAT),
    ("alpaca_chat.load", _ALPACA_CHAT),
    ("alpaca_chat.load_qa", "alpaca_qa"),
    ("alpaca_chat.load_camel_ai", "camel_ai"),
    ("alpaca_instruct", "alpaca"),
    ("alpaca_instruct.load", "alpaca"),
    ("alpaca_w_system", _WITH_SYSTEM),
    ("alpaca_w_system.load", _WITH_SYSTEM),
    ("alpaca_w_system.load_chat", _WITH_SYSTEM),
    ("alpaca_w_system.load_instruct", "{type: alpaca, field_system: system}"),
    ("alpaca_w_system.load_open_orca", "open_orca"),
    ("concisechoice", "concise_choice"),
    ("context_qa.load", "context_qa"),
    ("context_qa.load_404", "context_qa_404"),
    ("context_qa.load_v2", "context_qa_v2"),
    ("creative_acr.load_answer", "creative_answer"),
    ("creative_acr.load_critique", "creative_critique"),
    ("creative_acr.load_revise", "creative_revise"),
    ("explainchoice", "explain_choice"),
    ("orcamini", "orca_mini"),
    ("orcamini.load", "orca_mini"),
    ("pygmalion", "{type: messages, message_property_mappings: {content: value}}, and the names of its roles"),
    ("summarizetldr", "summarize_tldr"),
)

GROUPS: tuple[tuple[str, str, str], ...] = (
    # Model and tokenizer
    ("TL", "model_name_or_path model_id pretrained_model_name_or_path", "write model.base_model"),
    ("A", "base_model_config cls_model_config", "write model.base_model; its configuration is read from there"),
    ("T", "model_revision", "write model.revision"),
    ("A", "revision_of_model", "write model.revision"),
    ("T", "torch_dtype", "write model.dtype"),
    ("L", "infer_dtype", "write model.dtype"),
    (
        "A",
        "float32 float16 bfloat16 fp8",
        "write model.dtype, and trainer.arguments.bf16 for the precision of computing",
    ),
    ("A", "type_of_model model_type", "remove it; the model's class is found from its files"),
    (
        "A",
        "tokenizer_type processor_type tokenizer_legacy",
        "remove it; the tokenizer's class is found from its files",
    ),
    ("ATL", "tokenizer_use_fast use_fast_tokenizer use_fast", "remove it; the tokenizer is the fast one"),
    ("ATL", "tokenizer_config tokenizer_name tokenizer_name_or_path", "write model.tokenizer.path"),
    ("A", "overrides_of_model_config rope_scaling", "write model.config_overrides"),
    ("A", "chat_template_jinja", "write model.tokenizer.chat_template"),
    ("T", "chat_template_path", "write model.tokenizer.chat_template"),
    ("A", "additional_special_tokens", "write model.tokenizer.special_tokens"),
    ("L", "add_special_tokens new_special_tokens", "write model.tokenizer.special_tokens"),
    ("L", "add_tokens", "write model.tokenizer.tokens"),
    (
        "A",
        "flash_attention sdp_attention eager_attention flex_attention xformers_attention sage_attention",
        "write model.attention",
    ),
    ("ATL", "attn_implementation flash_attn use_flash_attention use_flash_attention_2", "write model.attention"),
    # Adapters and quantization
    ("A", "adapter", f"{_ADAPTER}; for qlora bitsandbytes, too"),
    ("ATL", "lora_r lora_rank", "write model.peft.rank, and peft under plugins"),
    ("ATL", "lora_alpha", "write model.peft.alpha, and peft under plugins"),
    ("ATL", "lora_dropout", "write model.peft.dropout, and peft under plugins"),
    ("ATL", "lora_target_modules lora_target", "write model.peft.target_modules, and peft under plugins"),
    ("A", "lora_target_linear", "remove it; model.peft.target_modules is all-linear by default"),
    ("A", "lora_modules_to_save", "write model.peft.modules_to_save, and peft under plugins"),
    ("L", "additional_target", "write model.peft.modules_to_save, and peft under plugins"),
    ("A", "peft_use_dora", "write model.peft.use_dora, and peft under plugins"),
    ("A", "peft_use_rslora", "write model.peft.use_rslora, and peft under plugins"),
    ("A", "peft_init_lora_weights", "write model.peft.init, and peft under plugins"),
    ("ATL", "use_peft", "write peft under plugins"),
    ("T", "peft_config lora_config", _ADAPTER),
    ("L", "finetuning_type", "write peft under plugins for LoRA; without it all weights are trained"),
    ("A", "loraplus_lr_ratio", "write model.peft.lora_plus_ratio, and peft under plugins"),
    ("AL", "loraplus_lr_embedding", "write model.peft.lora_plus_embedding_rate, and peft under plugins"),
    ("A", "lora_rank_pattern", "write model.peft.rank_pattern, and peft under plugins"),
    ("A", "lora_alpha_pattern", "write model.peft.alpha_pattern, and peft under plugins"),
    ("A", "peft_layers_to_transform", "write model.peft.layers_to_transform, and peft under plugins"),
    ("A", "peft_layers_pattern", "write model.peft.layers_pattern, and peft under plugins"),
    ("A", "lora_target_parameters", "write model.peft.target_parameters, and peft under plugins"),
    ("A", "peft_trainable_token_indices", "write model.peft.train_tokens, and peft under plugins"),
    ("A", "lora_model_dir", "write model.peft.start_from, and peft under plugins; an adapter needs no merge for that"),
    ("A", "lora_fan_in_fan_out", "remove it; it follows from the model"),
    ("A", "relora", _NO_ADAPTER),
    ("A", "llmcompressor", "write model.llm_compressor, and llm_compressor under plugins"),
    ("A", "lora_mlp_kernel", "write model.lora_kernels.mlp, and lora_kernels under plugins"),
    ("A", "lora_qkv_kernel lora_o_kernel", "write model.lora_kernels.linear, and lora_kernels under plugins"),
    ("A", "merge_lora", _MERGE),
    ("L", "adapter_name_or_path", "write model.peft.start_from, or merge_first, and peft under plugins"),
    ("ATL", "load_in_4bit", "write model.bitsandbytes: {bits: 4}, and bitsandbytes under plugins"),
    ("ATL", "load_in_8bit", "write model.bitsandbytes: {bits: 8}, and bitsandbytes under plugins"),
    ("A", "gptq qat quantization", _QUANTIZED),
    ("A", "bnb_config_kwargs", _BITS),
    ("T", "quantization_config", _BITS),
    ("T", "bnb_4bit_quant_type", "write model.bitsandbytes.quant_type, and bitsandbytes under plugins"),
    ("L", "quantization_bit quantization_method", _BITS),
    ("T", "bnb_4bit_compute_dtype", "write model.bitsandbytes.compute_dtype, and bitsandbytes under plugins"),
    ("T", "bnb_4bit_quant_storage", "write model.bitsandbytes.storage_dtype, and bitsandbytes under plugins"),
    ("TL", "bnb_4bit_use_double_quant use_bnb_nested_quant double_quantization", _DOUBLE),
    ("T", "llm_int8_threshold", "write model.bitsandbytes.threshold, and bitsandbytes under plugins"),
    ("T", "llm_int8_skip_modules", "write model.bitsandbytes.skip_modules, and bitsandbytes under plugins"),
    (
        "L",
        "freeze_trainable_layers freeze_trainable_modules",
        "write model.unfrozen_parameters, with the names' patterns",
    ),
    # Data
    ("T", "dataset_name dataset_path", "write datasets.0.path"),
    ("L", "dataset_dir", "write datasets.0.path"),
    ("T", "dataset_config dataset_config_name", "write datasets.0.name"),
    ("T", "dataset_train_split", "write datasets.0.split"),
    ("A", "ds_type", "write format"),
    ("L", "train_file", "write path: a file, a folder or a pattern"),
    ("A", "message_field_role", "write message_property_mappings: {role: ...} into data_format"),
    ("A", "message_field_content", "write message_property_mappings: {content: ...} into data_format"),
    ("A", "message_field_training", "write message_property_mappings: {train: ...} into data_format"),
    (
        "A",
        "message_field_training_detail field_thinking",
        "write message_property_mappings into data_format; it has a name for that too",
    ),
    ("A", "field_human field_model", "write roles into data_format: which names stand for user and assistant"),
    ("A", "conversation template_thinking_key", "remove it; the chat template writes what messages say and think"),
    ("A", "default_system_message", "write the system message into the rows, or system_prompt with columns"),
    ("A", "shards shards_idx preprocess_shards", "not available: shorten the file"),
    ("A", "input_transform input_format", "not available: data_format: columns puts columns together"),
    ("T", "assistant_only_loss completion_only_loss", "write train_on_inputs: false into train_format"),
    ("L", "mask_history", "not available: with train_on_inputs: false every turn of the assistant is trained"),
    ("T", "dataset_text_field", _PLAIN_TEXT),
    ("A", "text_column", _PLAIN_TEXT),
    ("A", "pretraining_dataset", _PRETRAINING),
    ("A", "streaming_multipack_buffer_size", "write trainer.data.shuffle_buffer: rows that are packed together"),
    ("L", "buffer_size", "write trainer.data.shuffle_buffer: rows that are shuffled together"),
    (
        "A",
        "pretrain_multipack_attn pretraining_sample_concatenation",
        "remove it; packed and joined documents never see each other",
    ),
    ("L", "neat_packing", "write trainer.data.packing: true, or joined for documents"),
    ("A", "test_datasets", "write such a source under datasets, with held_out: true"),
    ("TL", "eval_dataset dataset_test_split", "write such a source under datasets, with held_out: true"),
    ("L", "val_size", "write trainer.data.val_set_size"),
    ("A", "sequence_len", "write trainer.data.sequence_length"),
    ("T", "max_seq_length max_length seq_len max_seq_len", "write trainer.data.sequence_length"),
    ("L", "cutoff_len", "write trainer.data.sequence_length"),
    ("A", "excess_length_strategy", "write trainer.data.too_long"),
    ("A", "sample_packing", "write trainer.data.packing, and trainer.data.sequence_length"),
    ("T", "padding_free", "write trainer.data.packing, and trainer.data.sequence_length"),
    ("A", "eval_sample_packing", "remove it; evaluation pads, with rows of similar lengths together"),
    (
        "A",
        "pad_to_sequence_len batch_flattening multipack_real_batches",
        "remove it; trainer.data.packing: true leaves no padding",
    ),
    ("A", "dataset_exact_deduplication", "write trainer.data.deduplicate"),
    ("L", "interleave_probs mix_strategy", "write a weight for each entry under datasets, and trainer.data.mix"),
    (
        "A",
        "dataset_prepared_path",
        "remove it, as tokens and labels are cached by themselves; or write trainer.data.prepared",
    ),
    (
        "A",
        "dataset_keep_in_memory skip_prepare_dataset",
        "remove it; tokens and labels are kept in files, which need no memory",
    ),
    (
        "ATL",
        "dataset_processes dataset_num_proc preprocessing_num_workers",
        "remove it; the tokenizer works in threads of its own",
    ),
    (
        "L",
        "overwrite_cache",
        "remove it; what is cached is made again whenever anything has changed that it is made of",
    ),
    ("A", "shuffle_merged_datasets", "write trainer.data.shuffle"),
    ("L", "max_samples", "not available: shorten the file"),
    ("ATL", "remove_unused_columns", "remove it; formats read the columns that they need"),
    ("T", "dataloader_drop_last", "not available: every row is read, and seen once per epoch"),
    # Amount of work, optimizer, schedule
    (
        "ATL",
        "gradient_accumulation_steps",
        "write batch_size (per step) and physical_batch_size; accumulation follows",
    ),
    ("A", "micro_batch_size", "write physical_batch_size"),
    ("TL", "per_device_train_batch_size per_gpu_train_batch_size", "write physical_batch_size"),
    ("T", "train_batch_size", "write batch_size"),
    ("A", "eval_batch_size", "write per_device_eval_batch_size"),
    ("T", "per_gpu_eval_batch_size", "write per_device_eval_batch_size"),
    ("TA", "auto_find_batch_size", "not available: lower physical_batch_size where memory is short"),
    ("A", "num_epochs epochs", "write trainer.arguments.num_train_epochs"),
    ("T", "lr", "write trainer.arguments.learning_rate"),
    ("A", "optimizer", "write trainer.arguments.optim"),
    ("A", "lr_scheduler", "write trainer.arguments.lr_scheduler_type"),
    ("ATL", "warmup_ratio", "write warmup_steps: a number below 1 is a share of all steps"),
    ("A", "cosine_min_lr_ratio", "write trainer.arguments.lr_scheduler_type and lr_scheduler_kwargs"),
    (
        "A",
        "gradient_clipping grad_clip noisy_embedding_alpha",
        "write max_grad_norm, or neftune_noise_alpha for noise",
    ),
    ("A", "embedding_lr embedding_lr_scale", "write trainer.arguments.learning_rate_factors: {embed: ...}"),
    ("A", "lr_groups", "write trainer.arguments.learning_rate_factors: {pattern: factor}"),
    ("A", "data_seed", "write trainer.seed; rows and model share one seed"),
    ("T", "set_seed", "write trainer.seed; rows and model share one seed"),
    # Evaluation, checkpoints, logging
    ("A", "evals_per_epoch", "write eval_strategy: epoch, or eval_strategy: steps with eval_steps"),
    (
        "A",
        "profiler_steps profiler_steps_start",
        "write trainer.profile.num_steps and start_step, with profile under plugins",
    ),
    ("AT", "evaluation_strategy", "write trainer.arguments.eval_strategy"),
    ("A", "saves_per_epoch", "write save_strategy: epoch, or save_strategy: steps with save_steps"),
    ("TL", "do_train do_eval do_predict", "remove it; dumbo trains, and evaluates where rows are held out"),
    (
        "AT",
        "resume_from_checkpoint auto_resume_from_checkpoints",
        "not available: model.base_model can name a checkpoint, to go on from its weights",
    ),
    ("L", "overwrite_output_dir", "remove it; a folder that holds a run is never written over"),
    ("ATL", "early_stopping_patience", "write trainer.early_stopping.patience, with early_stopping under plugins"),
    ("ATL", "save_only_model save_safetensors", "remove it; checkpoints hold the model, as safetensors"),
    ("A", "hub_strategy hub_model_id hub_revision push_dataset_to_hub", _HUB),
    ("TL", "push_to_hub hub_token hub_private_repo", _HUB),
    ("A", "hf_use_auth_token", "remove it; log in with 'hf auth login', or export HF_TOKEN"),
    ("A", "use_wandb wandb_mode", "write wandb under plugins, and trainer.wandb.mode: offline to send nothing yet"),
    ("A", "wandb_project", "write trainer.wandb.project, and wandb under plugins"),
    ("A", "wandb_entity", "write trainer.wandb.entity, and wandb under plugins"),
    ("A", "wandb_name", "write trainer.wandb.name, and wandb under plugins"),
    ("A", "wandb_run_id", "not available: every run is a new one; trainer.wandb.name and group tell them apart"),
    ("A", "wandb_watch wandb_log_model", "not available: the plugin wandb sends metrics and configuration"),
    ("A", "use_mlflow", "write mlflow under plugins"),
    ("A", "mlflow_tracking_uri", "write trainer.mlflow.tracking_uri, and mlflow under plugins"),
    ("A", "mlflow_experiment_name", "write trainer.mlflow.experiment, and mlflow under plugins"),
    ("A", "mlflow_run_name", "write trainer.mlflow.name, and mlflow under plugins"),
    ("A", "hf_mlflow_log_artifacts", "not available: the plugin mlflow sends metrics and configuration"),
    ("A", "use_tensorboard", "write tensorboard under plugins"),
    ("A", "use_trackio", "write trackio under plugins"),
    ("A", "trackio_project_name", "write trainer.trackio.project, and trackio under plugins"),
    ("A", "trackio_run_name", "write trainer.trackio.name, and trackio under plugins"),
    ("A", "use_comet comet_project_name swanlab_project", _NO_TRACKER),
    ("T", "trackio_space_id", "not available: runs stay on this machine; 'trackio sync' uploads them"),
    ("TL", "report_to", f"list trackers under plugins: {_TRACKERS}"),
    ("TL", "logging_dir", "write trainer.tensorboard.log_dir, and tensorboard under plugins"),
    ("AL", "use_swanlab", _NO_TRACKER),
    ("L", "plot_loss", "remove it; the loss is drawn in the run's report"),
    ("T", "run_name", "write trainer.output_dir; its last part is the run's name"),
    (
        "TL",
        "logging_strategy logging_first_step",
        "write logging_steps; the first and the last step are always logged",
    ),
    # Processes and methods
    ("A", "fsdp_version tensor_parallel_size context_parallel_size sequence_parallel_degree dp_shard_size", _SHARDED),
    ("ATL", "deepspeed fsdp fsdp_config device_map accelerator_config local_rank", _SHARDED),
    ("A", "rl rl_beta trl dpo_beta orpo_alpha simpo_gamma kto_desirable_weight reward_model", _ONE_METHOD),
    ("A", "kd_trainer", "write kd under plugins, and its options under trainer.kd"),
    ("A", "kd_ce_alpha", "write trainer.kd.ce_alpha, and kd under plugins"),
    ("A", "kd_alpha", "write trainer.kd.alpha, and kd under plugins"),
    ("A", "kd_temperature", "write trainer.kd.temperature, and kd under plugins"),
    ("A", "kd_temperature_min", "not available: trainer.kd.temperature stays as it is"),
    ("A", "kd_beta", "write trainer.kd.beta, and kd under plugins"),
    ("A", "kd_normalize_topk", "write trainer.kd.outside: ignored for true, and zero for false; kd under plugins"),
    ("A", "kd_online_server_base_url", "write trainer.kd.server.url, and kd under plugins"),
    ("A", "kd_online_topk", "write trainer.kd.server.top_k, and kd under plugins"),
    ("A", "kd_online_server", "write trainer.kd.server.kind, and kd under plugins"),
    ("A", "kd_online_timeout", "write trainer.kd.server.timeout, and kd under plugins"),
    ("T", "loss_type num_generations max_prompt_length reward_funcs", _ONE_METHOD),
    ("A", "grokfast_alpha", "write trainer.grokfast.alpha, and grokfast under plugins"),
    ("A", "grokfast_lamb", "write trainer.grokfast.lamb, and grokfast under plugins"),
    ("A", "spectrum_top_fraction", "write model.spectrum.top_fraction, and spectrum under plugins"),
    ("A", "spectrum_model_name", "remove it; the plugin spectrum scans the weights of the run's own model"),
    (
        "A",
        "generate_samples generation_interval num_generation_samples generation_max_length",
        "write samples under plugins: evaluation.samples has every, count and max_new_tokens",
    ),
    ("A", "generation_steps", "write trainer.diffusion.num_diffusion_steps"),
    ("A", "generation_temperature", "not available: samples are the likeliest; dumbo generate has --temperature"),
    ("A", "liger_rope", "write model.liger.rope, and liger under plugins"),
    ("A", "liger_rms_norm", "write model.liger.rms_norm, and liger under plugins"),
    ("A", "liger_layer_norm", "write model.liger.layer_norm, and liger under plugins"),
    ("A", "liger_glu_activation liger_swiglu", "write model.liger.glu_activation, and liger under plugins"),
    ("A", "liger_rms_norm_gated", "not available: Liger has no kernel for it"),
    ("A", "liger_cross_entropy", "write model.liger.cross_entropy, and liger under plugins"),
    (
        "A",
        "liger_fused_linear_cross_entropy",
        "write model.liger.fused_linear_cross_entropy, and liger under plugins",
    ),
    ("A", "liger_use_token_scaling", "write model.liger.use_token_scaling, and liger under plugins"),
    ("TL", "use_liger_kernel use_liger enable_liger_kernel", "write liger under plugins"),
    ("L", "use_unsloth", "write liger under plugins for fused kernels"),
    ("L", "stage pref_beta pref_loss", _ONE_METHOD),
    ("AL", "use_eaft use_eaft_loss eaft_alpha", "write trainer.eaft.alpha, and eaft under plugins"),
    ("A", "eaft_k", "write trainer.eaft.top_k, and eaft under plugins"),
    ("L", "use_dft_loss", "write dft under plugins"),
    ("A", "strict", "remove it; unknown keys are always errors"),
)
"""Keys that have one answer: the first letters of the tools that have them (`T` is Transformers too), their last
parts, and what to write instead. What dumbo has nothing for is called `not available`; nothing is promised."""

FOREIGN_KEYS: Mapping[str, str] = MappingProxyType({key: hint for _, keys, hint in GROUPS for key in keys.split()})
"""Last part of a foreign key -> what to do."""

FOREIGN_PLACES: Mapping[str, str] = MappingProxyType(
    {
        "datasets.chat_template": "write train_format: {type: chat_template, chat_template: ...}",
        "cut_cross_entropy": "write cut_cross_entropy under plugins",
        "model.name": "write model.base_model",
        "streaming": "write trainer.data.streaming, with trainer.data.sequence_length and trainer.arguments.max_steps",
        "model.path": "write model.base_model",
        "model.peft.type": "write model.peft.method",
        "model.peft.r": "write model.peft.rank",
        "model.tokenizer.name": "write model.tokenizer.path",
        "dataset": "write datasets: a list, each with path, type, data_format and train_format",
    }
)
"""Whole keys whose last part is an option elsewhere, or near to one -> what to do."""

FOREIGN_MAPPINGS: Mapping[str, str] = MappingProxyType(
    {
        "special_tokens": "write model.tokenizer.pad_token, eos_token, bos_token, unk_token",
        "type": "type names the reader; formats of your own are data_format: {type: columns, format: ...}",
    }
)
"""Keys that dumbo has for something else, and which other tools have as mappings -> what to do."""

FOREIGN_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "alpaca": "'alpaca' is a data_format here; type names the reader",
        "messages": "'messages' is a data_format here; type names the reader",
        "chat_template": "'chat_template' is a train_format here, and goes with data_format: messages",
        "jinja_messages": "'jinja_messages' is a train_format here; type names the reader",
        "sharegpt": "write data_format: messages, which reads 'from' and 'value' too",
        **{name: f"'{name}' is a data_format here; type names the reader" for name in _DATA_FORMATS},
        **{name: f"write data_format: {data_format}" for name, data_format in _RENAMED_FORMATS},
        **{name: _TWO_FORMATS.format(name) for name in ("completion", "input_output", "stepwise", "tokens")},
        "stepwise_supervised": "write data_format: stepwise, train_format: stepwise, and text_formatter under plugins",
        "pretrain": f"{_PLAIN_TEXT}, and text_formatter under plugins",
        "synthetic": "'synthetic' is a reader here: write type: synthetic, and text_formatter under plugins",
    }
)
"""What other tools write behind a dataset's `type` (and people behind its formats) -> what to do."""


def looks_like(keys: Iterable[str]) -> str | None:
    """Whose configuration (`an Axolotl`, `another tool's`) has these unknown `keys`: one that knows at least 5."""
    names = set(keys)
    known = {tool: len(names.intersection(_keys_of(letter))) for letter, tool in _TOOLS}
    most = max(known.values())
    tools = [tool for tool, number in known.items() if number == most]
    if most < 5:
        return None
    return "another tool's" if len(tools) > 1 else f"{'an' if tools[0][0] == 'A' else 'a'} {tools[0]}"


def _keys_of(letter: str) -> Iterator[str]:
    return (key for tools, keys, _ in GROUPS if letter in tools for key in keys.split())
