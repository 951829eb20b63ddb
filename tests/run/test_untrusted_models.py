"""Models, tokenizers, datasets and adapters of strangers: nothing of theirs runs unless it was asked for."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dumbo.cli.main import main
from tests import builders
from tests.run.whole_runs import weights_of


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Where Transformers keeps the code that it imports."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mark(tmp_path):
    """A file that is there once somebody's code has run."""
    return tmp_path / "it-ran"


@pytest.fixture
def folder(model_folder, tmp_path):
    return Path(shutil.copytree(model_folder, tmp_path / "theirs"))


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def edit(file, **changes):
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | changes))


def bring_code(folder, mark):
    """A model and a tokenizer with classes of their own, in modules that leave a mark when they are imported."""
    begin = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    (folder / "mine.py").write_text(
        begin + "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Mine(LlamaConfig):\n    model_type = 'mine'\n"
        "class MineLM(LlamaForCausalLM):\n    config_class = Mine\n"
        "class MineTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )


def model_of_their_own(folder, mark):
    bring_code(folder, mark)
    auto_map = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.MineLM"}
    edit(folder / "config.json", model_type="mine", auto_map=auto_map)


def tokenizer_of_their_own(folder, mark):
    bring_code(folder, mark)
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="MineTokenizer",
        auto_map={"AutoTokenizer": [None, "mine.MineTokenizer"]},
    )


def generation_of_their_own(folder, mark):
    bring_code(folder, mark)
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "mine.py", folder / "custom_generate" / "generate.py")


@pytest.mark.parametrize("verb", ["train", "check", "preprocess", "inspect", "generate"])
@pytest.mark.parametrize("brings", [model_of_their_own, tokenizer_of_their_own, generation_of_their_own])
def test_their_code_never_runs(verb, brings, folder, rows_file, mark, tmp_path, capsys):
    brings(folder, mark)
    words = [str(builders.write_config(tmp_path, folder, rows_file, {"trainer.arguments.max_steps": 1}))]
    words = [str(folder), "Hi", "--max-new-tokens", "1"] if verb == "generate" else words
    words += ["--rows"] if verb == "check" else ["trainer.data.cache=false"] if verb == "train" else []
    words += ["--output", str(tmp_path / "prepared")] if verb == "preprocess" else []
    status = main([verb, *words])
    said = capsys.readouterr().err
    assert not mark.exists()
    # Its own way of generating is left alone; the tokenizer alone decides where no model is loaded.
    refused = brings is tokenizer_of_their_own or (brings is model_of_their_own and verb in ("train", "generate"))
    if refused:
        assert status == 2
        assert "needs Python code of its own, which would run with all your rights" in said
        assert "trust_remote_code: true" in said or "--trust-remote-code" in said


def test_code_that_is_not_needed_is_left_alone_and_told_of(folder, rows_file, mark, tmp_path, capsys):
    bring_code(folder, mark)
    edit(folder / "config.json", auto_map={"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.MineLM"})
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "mine.MineTokenizer"]})
    file = builders.write_config(tmp_path, folder, rows_file, {"trainer.arguments.max_steps": 1})
    assert main(["train", str(file)]) == 0
    assert not mark.exists()
    said = capsys.readouterr().out
    note = f"note: '{folder}' brings Python code (mine.py), which is left alone: Transformers' own "
    used = [line.removeprefix(note) for line in said.splitlines() if line.startswith(note)]
    assert used[0] == "LlamaForCausalLM is used" and used[1].endswith(" is used") and len(used) == 2


@pytest.mark.parametrize("brings", [model_of_their_own, tokenizer_of_their_own])
def test_code_that_was_asked_for_runs_and_is_told_of(brings, folder, rows_file, mark, tmp_path, capsys):
    brings(folder, mark)
    changes = {"model.trust_remote_code": True, "trainer.arguments.max_steps": 1, "trainer.data.cache": False}
    assert main(["train", str(builders.write_config(tmp_path, folder, rows_file, changes))]) == 0
    assert mark.exists()
    said = capsys.readouterr().out
    assert f"warning: trust_remote_code is on: Python code of '{folder}' runs with all your rights (mine.py)" in said


def test_the_script_of_a_dataset_never_runs(model_folder, mark, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    (data / "data.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    changes = {
        "datasets.0.path": str(data),
        "datasets.0.type": "huggingface",
        "plugins": ["transformers", "transformers_trainer", "huggingface", "jinja_formatter"],
        "trainer.data.cache": False,
    }
    file = builders.write_config(tmp_path, model_folder, data, changes)
    for words in (["check", str(file), "--rows"], ["train", str(file)]):
        assert main(words) == 2
    assert not mark.exists()
    assert "Traceback" not in capsys.readouterr().err


def to_pickles(folder, names):
    """The weights as pickles; several have an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {name: dict(list(weights.items())[number :: len(names)]) for number, name in enumerate(names)}
    for name, part in parts.items():
        torch.save(part, folder / name)
    if len(names) > 1:
        where = {key: name for name, part in parts.items() for key in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


@pytest.mark.parametrize(
    ("names", "allowed"),
    [
        (("pytorch_model.bin",), ["pytorch_model.bin"]),
        (SHARDS, list(SHARDS)),
        (SHARDS, ["pytorch_model-*.bin"]),
    ],
)
def test_pickles_are_read_where_they_are_named(names, allowed, folder, model_folder, rows_file, tmp_path, capsys):
    to_pickles(folder, names)
    changes = {"trainer.arguments.learning_rate": 0.0, "trainer.arguments.max_steps": 1, "trainer.data.cache": False}
    file = builders.write_config(tmp_path, folder, rows_file, changes)
    assert main(["train", str(file)]) == 2
    said = capsys.readouterr().err
    assert "has weights only as pickles (pytorch_model" in said and "can run any code" in said
    assert f"model.allow_pickle: [{names[0] if len(names) == 1 else chr(39) + 'pytorch_model-*.bin' + chr(39)}]" in said
    assert main(["train", str(file), f"model.allow_pickle={json.dumps(allowed)}"]) == 0
    assert "only the tensors were read of the pickles" in capsys.readouterr().out
    ours, theirs = weights_of(tmp_path / "out" / "model"), load_file(model_folder / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for flags, status in (([], 2), ([word for name in names for word in ("--allow-pickle", name)], 0)):
        assert main(["generate", str(folder), "Hi", "--max-new-tokens", "1", *flags]) == status
    assert "--allow-pickle " in capsys.readouterr().err


def test_a_permission_is_for_what_is_read(folder, rows_file, tmp_path, capsys):
    file = builders.write_config(tmp_path, folder, rows_file, {"model.allow_pickle": ["pytorch_model.bin"]})
    assert main(["train", str(file)]) == 2
    assert "'pytorch_model.bin' is allowed for nothing" in capsys.readouterr().err
    to_pickles(folder, SHARDS)
    assert main(["train", str(file)]) == 2
    assert "has weights only as pickles (pytorch_model-00001-of-00002.bin" in capsys.readouterr().err
    assert main(["train", str(file), "model.allow_pickle=[../pytorch_model.bin]"]) == 2
    assert "model.allow_pickle.0" in capsys.readouterr().err


def test_an_index_of_safetensors_that_names_pickles_is_told_with_a_way_out(folder, rows_file, tmp_path, capsys):
    to_pickles(folder, SHARDS)
    index = folder / "model.safetensors.index.json"
    (folder / "pytorch_model.bin.index.json").rename(index)
    file = builders.write_config(tmp_path, folder, rows_file, {"trainer.arguments.max_steps": 1})
    for words in (["train", str(file)], ["generate", str(folder), "Hi", "--allow-pickle", "*.bin"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"{index} is an index of safetensors and names pickles ({', '.join(SHARDS)})" in said
        assert "damaged" not in said and "name it pytorch_model.bin.index.json" in said
    assert "--allow-pickle '*.bin'" in said
    index.rename(folder / "pytorch_model.bin.index.json")
    assert main(["train", str(file), "model.allow_pickle=['*.bin']"]) == 0


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (os.system, f"holds more than tensors: it wants to run {os.system.__module__}.system"),
        (eval, "holds more than tensors: it asks for eval"),
    ],
)
def test_what_a_pickle_wants_to_run_is_named(function, told, folder, rows_file, tmp_path, capsys):
    class Wanting:
        def __reduce__(self):
            return function, ("0",)

    (folder / "model.safetensors").unlink()
    torch.save({"evil": Wanting()}, folder / "pytorch_model.bin")
    file = builders.write_config(tmp_path, folder, rows_file, {"model.allow_pickle": ["pytorch_model.bin"]})
    assert main(["train", str(file)]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("write", [torch.save, lambda value, file: Path(file).write_bytes(pickle.dumps(value))])
def test_a_pickle_that_would_run_something_is_never_opened(write, folder, rows_file, mark, tmp_path, capsys):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write({**weights, "evil": Evil(mark)}, folder / "pytorch_model.bin")
    changes = {"model.allow_pickle": ["pytorch_model.bin"], "trainer.data.cache": False}
    assert main(["train", str(builders.write_config(tmp_path, folder, rows_file, changes))]) == 2
    said = capsys.readouterr().err
    assert "pytorch_model.bin" in said and "Traceback" not in said and "weights_only" not in said
    assert main(["generate", str(folder), "Hi", "--allow-pickle", "pytorch_model.bin"]) == 2
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_pickle_of_an_adapter_is_read_as_tensors_where_it_is_named(model_folder, mark, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_folder)
    adapter = tmp_path / "adapter"
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model_folder / name, adapter)
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(model_folder))
    weights = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(weights, adapter / "adapter_model.bin")
    words = ["generate", str(adapter), "Hi", "--max-new-tokens", "1"]
    assert main(words) == 2
    assert "has weights only as pickles (adapter_model.bin)" in capsys.readouterr().err
    assert main([*words, "--allow-pickle", "adapter_model.bin"]) == 0
    torch.save({**weights, "evil": Evil(mark)}, adapter / "adapter_model.bin")
    assert main([*words, "--allow-pickle", "adapter_model.bin"]) == 2
    assert not mark.exists()
