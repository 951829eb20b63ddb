"""Adapters made by PEFT with random weights on tiny models, merges of them, and what must come out."""

import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dumbo.cli.main import main

IDS = torch.tensor([[5, 9, 2, 17, 3, 88, 41, 7], [1, 1, 60, 33, 20, 4, 8, 16]])


def loaded(folder, **options):
    """The model of a folder, by plain Transformers."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model(ids).logits.float()


def adapt(base: Path, folder: Path, config, *, seed=1, rows=None, size=0.2, dtype=torch.float32):
    """Save an adapter of `config` with random weights on `base`; return the logits that PEFT computes with it."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        if rows is not None:
            old = model.get_input_embeddings().weight.shape[0]
            model.resize_token_embeddings(rows, mean_resizing=False)
            with torch.no_grad():
                for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
                    layer.weight[old:] = layer.weight[:old].mean(dim=0)
        wrapped = get_peft_model(model, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, parameter in wrapped.named_parameters():
                if parameter.requires_grad:
                    keeps = "magnitude" in name or "ia3" in name or "tokens_delta" in name
                    noise = torch.randn_like(parameter) * size
                    parameter.data.add_(noise * parameter if keeps else noise)  # Tied ones stay tied.
        wrapped.save_pretrained(folder, save_embedding_layers=False)
        return logits(wrapped.eval())


def merged(adapter: Path, *words, code=0):
    """The folder of the merged model, made by the command line without the proof."""
    output = adapter.with_name(f"{adapter.name}-merged")
    assert main(["merge", str(adapter), "--output", str(output), "--no-proof", *map(str, words)]) == code
    return output


def tensors(folder: Path) -> dict:
    """All tensors of a model's folder by name."""
    found = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= load_file(file)
    return found


def untouched(base: Path, folder: Path, *changed: str) -> None:
    """All tensors whose names have none of the parts `changed` are what they were, bit for bit."""
    old, new = tensors(base), tensors(folder)
    same = [name for name in old if not any(part in name for part in changed)]
    assert same
    for name in same:
        assert old[name].dtype == new[name].dtype and torch.equal(old[name], new[name]), name
    for name in set(old) - set(same):
        assert not torch.equal(old[name][: len(new[name])].float(), new[name][: len(old[name])].float()), name


def rewrite(folder: Path, **changes) -> None:
    """Change settings of an adapter."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(folder: Path, change) -> None:
    """Replace the tensors of an adapter by what `change` makes of them."""
    file = folder / "adapter_model.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(file)).items()}, file)
