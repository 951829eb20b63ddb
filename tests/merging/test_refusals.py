"""What cannot be merged is said in a line, and nothing is left."""

import json
import re
import shutil
import subprocess

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, VeraConfig

from dumbo.cli.main import main
from tests import builders
from tests.merging import made

CONFIG = LoraConfig(r=4, target_modules=["q_proj", "down_proj"])


@pytest.fixture
def base(tmp_path):
    folder = builders.save_tiny_model(tmp_path / "base")
    made.loaded(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def adapter(base, tmp_path):
    made.adapt(base, tmp_path / "adapter", CONFIG)
    return tmp_path / "adapter"


@pytest.fixture
def refused(adapter, capsys):
    """What is said against a merge; nothing may be left of it."""

    def try_it(*words, run=adapter):
        before = sorted(adapter.parent.iterdir())
        capsys.readouterr()
        code = main(["merge", str(run), "--output", str(adapter.parent / "out"), "--no-proof", *map(str, words)])
        said = capsys.readouterr().err
        assert code == 2, said
        assert "Traceback" not in said
        assert sorted(adapter.parent.iterdir()) == before
        return said

    return try_it


def test_the_base_model_is_gone(refused, base, tmp_path):
    base.rename(tmp_path / "away")
    said = refused()
    assert f"is missing: there is no folder '{base}'" in said and "base_model_name_or_path" in said


def test_a_shard_is_missing(refused, base):
    next(iter(sorted(base.glob("model-*"))[1:])).unlink()
    assert "weight files are missing: model-00002" in refused()


def test_a_file_is_cut_off(refused, base, adapter):
    file = sorted(base.glob("model-*"))[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert f"{file} is damaged or incomplete: it has {len(whole) - 100:,} bytes and should have" in refused()
    file.write_bytes(whole[:20])
    assert "its header is cut off" in refused()
    file.write_bytes(whole)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert f"{weights} is damaged" in refused()


def test_another_model_has_other_shapes(refused, tmp_path):
    other = builders.save_tiny_model(tmp_path / "other", hidden_size=48)
    said = refused("--base", other)
    assert re.search(r"does not fit: its model\.layers\.0\.\S+ is \d+x\d+, and the base model's is \d+x\d+", said)


def test_another_model_has_other_modules(refused, tmp_path):
    other = builders.save_tiny_model(tmp_path / "other", num_hidden_layers=1)
    said = refused("--base", other)
    assert "has no place: the base model has no model.layers.1." in said


def test_a_name_that_is_nowhere(refused, adapter):
    made.change_weights(adapter, lambda found: found | {"base_model.model.model.odd.weight": torch.zeros(2)})
    assert "base_model.model.model.odd.weight has no place" in refused()


def test_an_adapter_in_which_nothing_was_trained(refused, adapter):
    def zero(found):
        return {name: value * (".lora_B." not in name) for name, value in found.items()}

    made.change_weights(adapter, zero)
    assert "nothing was trained" in refused()


def test_a_file_with_nothing_in_it(refused, adapter):
    made.change_weights(adapter, lambda found: {})
    assert "is empty" in refused()


def test_a_whole_model_has_nothing_to_merge(refused, base):
    assert f"there is nothing to merge: '{base}' is a whole model" in refused(run=base)


def test_a_folder_with_nothing(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds neither a run nor an adapter" in refused(run=tmp_path / "empty")
    assert "there is no folder" in refused(run=tmp_path / "adaptr")


def test_a_matrix_is_missing(refused, adapter):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    made.change_weights(adapter, lambda found: {key: value for key, value in found.items() if key != name})
    assert "lacks lora_B of model.layers.0.self_attn.q_proj" in refused()


def test_a_rank_that_is_not_that_of_the_matrices(refused, adapter):
    made.rewrite(adapter, r=8)
    assert "gives model.layers.0.mlp.down_proj rank 8, and its matrices have 4" in refused()


def test_dora_without_its_lengths(refused, adapter):
    made.rewrite(adapter, use_dora=True)
    assert "is DoRA and has no magnitude of" in refused()


def test_numbers_that_are_not_finite(refused, adapter):
    made.change_weights(adapter, lambda found: {name: value * 1e6 for name, value in found.items()})
    said = refused("--dtype", "float16")
    assert "are not finite in float16" in said and "--dtype bfloat16" in said


def test_a_folder_that_exists_is_not_overwritten(adapter, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    assert main(["merge", str(adapter), "--output", str(tmp_path / "there"), "--no-proof"]) == 2
    assert "exists already, and nothing is overwritten" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_methods_that_are_no_sums(refused, base, tmp_path):
    from peft import get_peft_model

    prompt = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    get_peft_model(made.loaded(base), prompt).save_pretrained(tmp_path / "prompt")
    said = refused(run=tmp_path / "prompt")
    assert "it is a part of the prompt, not of the weights" in said
    made.adapt(base, tmp_path / "vera", VeraConfig(r=4, target_modules=["q_proj"]))
    said = refused(run=tmp_path / "vera")
    assert "the method VERA, which dumbo cannot merge" in said and "merge_and_unload" in said


def test_several_adapters_that_cannot_be_added(refused, base, adapter, tmp_path):
    dora = tmp_path / "dora"
    made.adapt(base, dora, LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]))
    assert "its length belongs to its own sum" in refused("--adapter", "default", "--adapter", dora)
    for number in (1, 2):
        saved = LoraConfig(r=4, target_modules=["down_proj"], modules_to_save=["lm_head"])
        made.adapt(base, tmp_path / f"saved{number}", saved, seed=number)
    said = refused("--adapter", tmp_path / "saved1", "--adapter", tmp_path / "saved2")
    assert "both bring lm_head.weight as a whole" in said
    assert "which has no weight" in refused(f"--adapter={tmp_path / 'saved1'}=0.5")
    assert "'half' is no weight" in refused("--adapter=default=half")
    assert "there is no adapter and no folder 'defualt'\n    did you mean 'default'?" in refused("--adapter", "defualt")
    assert "is asked for twice" in refused("--adapter", "default", "--adapter", "default=2")


def test_several_adapters_and_nobody_says_which(refused, adapter):
    shutil.copytree(adapter, adapter / "second")
    assert "has 2 adapters: default, second\n    write which: --adapter default" in refused()


def test_a_base_model_that_is_quantized_on_disk(refused, base):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    said = refused()
    assert "is quantized on disk (gptq)" in said and "--base" in said


def test_a_disk_without_room(adapter, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a disk")
    try:
        assert main(["merge", str(adapter), "--output", str(disk / "out"), "--no-proof"]) == 2
        said = capsys.readouterr().err
        assert "the merged model needs" in said and "has room for" in said
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_mistakes_are_found_before_torch_is_imported(adapter, base):
    (base / "config.json").unlink()
    result = builders.dumbo("merge", adapter, PYTHONPROFILEIMPORTTIME="1")
    assert result.returncode == 2
    assert "cannot be read" in result.stderr
    assert not any(line.endswith("| torch") for line in result.stderr.splitlines())
