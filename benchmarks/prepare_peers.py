"""What peers make of a folder that `prepare.py` wrote, each run by the Python of its own environment.

`PYTHON benchmarks/prepare_peers.py NAME FOLDER LENGTH` prints one JSON object. It needs the peer and the standard
library; dumbo is not there. Axolotl is measured with what `axolotl preprocess` does and the packing that its training
begins with, LLaMA-Factory with what `llamafactory-cli train` does to its data (`packing`, `neat_packing`).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clock import clocked

AXOLOTL = """\
base_model: {folder}
datasets:
  - {{path: {folder}/rows.jsonl, ds_type: json, type: chat_template, field_messages: messages}}
chat_template: chatml
dataset_prepared_path: {cache}
dataset_num_proc: 1
sequence_len: {length}
sample_packing: true
pad_to_sequence_len: true
flash_attention: false
sdp_attention: true
bf16: false
fp16: false
micro_batch_size: 1
gradient_accumulation_steps: 16
num_epochs: 1
optimizer: adamw_torch
learning_rate: 1e-4
output_dir: {folder}/axolotl
"""


def measure_llamafactory(folder: Path, length: int) -> dict[str, float]:
    """Its packed rows; it packs 1,000 rows at a time, and cuts off what is too long."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    names = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    rows = {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": names}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    values = {"stage": "sft", "do_train": True, "model_name_or_path": str(folder), "output_dir": str(folder / "out")}
    values |= {"dataset": "rows", "dataset_dir": str(folder), "template": "chatml", "cutoff_len": length}
    values |= {"packing": True, "neat_packing": True, "overwrite_cache": True, "report_to": "none", "use_cpu": True}
    model, data, training, _, _ = get_train_args(values)
    with clocked() as found:
        module = load_tokenizer(model)
        template = get_template_and_fix_tokenizer(module["tokenizer"], data)
        packed = get_dataset(template, model, data, training, stage="sft", **module)["train_dataset"]
    tokens = trained = 0
    for batch in packed.with_format("numpy").iter(1000):
        tokens += sum(int((mask > 0).sum()) for mask in batch["attention_mask"])
        trained += _trained(batch["labels"])
    return {**found, "tokens": tokens, "trained": trained, "sequences": len(packed)}


def measure_axolotl(folder: Path, length: int) -> dict[str, float]:
    """Its rows and the batches of its first epoch; it drops rows that are too long."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.utils.samplers import MultipackBatchSampler, get_dataset_lengths
    from torch.utils.data import RandomSampler

    file = folder / f"axolotl-{length}.yaml"
    file.write_text(AXOLOTL.format(folder=folder, length=length, cache=os.environ["HF_DATASETS_CACHE"]))
    config = load_cfg(str(file))
    with clocked() as found:
        rows = load_datasets(cfg=config).train_dataset
        lengths = get_dataset_lengths(rows)
        sampler = MultipackBatchSampler(
            RandomSampler(rows), lengths=lengths, batch_max_len=length, batch_size=1, bin_size=200, num_processes=1
        )
        packed = [row for batch in sampler for row in batch]
    kept = [index for row in packed for index in row]
    trained = sum(_trained(batch["labels"]) for batch in rows.select(kept).with_format("numpy").iter(1000))
    return {**found, "tokens": int(sum(lengths[kept])), "trained": trained, "sequences": len(packed)}


def _trained(labels: Iterable[Any]) -> int:
    return sum(int((row != -100).sum()) for row in labels)


MEASURED = {"llamafactory": measure_llamafactory, "axolotl": measure_axolotl}


def main() -> None:
    """Measure the peer that is named; what it prints goes to standard error."""
    name, folder, length = sys.argv[1:]
    with tempfile.TemporaryDirectory() as cache, contextlib.redirect_stdout(sys.stderr):
        os.environ |= {"HF_DATASETS_CACHE": cache, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
        found = MEASURED[name](Path(folder), int(length))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
