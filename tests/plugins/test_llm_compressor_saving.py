"""Zeros left out of the files: every bit comes back, files are smaller, and whatever loads a model loads these."""

import json
import shutil
import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dumbo.bridge import zero_bitmasks
from dumbo.bridge.causal_models import from_pretrained
from dumbo.bridge.inference_model import load_for_inference
from dumbo.bridge.zero_bitmasks import is_smaller, packed, unpacked
from dumbo.diagnosis.weights import tensor_shapes
from dumbo.errors import RunError
from dumbo.left_out_zeros import leaves_zeros_out
from dumbo.plugins.llm_compressor import saving
from dumbo.plugins.llm_compressor.saving import leave_zeros_out, put_zeros_in
from tests import builders
from tests.plugins.quantized_runs import WIDE
from tests.run.whole_runs import SHIPPED, losses_of, printed_by, run_here, weights_of, write_and_run

PLUGINS = [*SHIPPED, "llm_compressor"]
COMPRESSED = {"plugins": PLUGINS, "model.llm_compressor": {"save_compressed": True}}
LAYER = "model.layers.0.mlp.down_proj"


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(bits(found[name]), bits(tensor)), name


def sparse_model(share=0.5, **overrides):
    """A share of its layers' matrices is zero, one in sixteen of these with a minus."""
    model = builders.build_tiny_model(**overrides)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_proj" in name:
                drawn = torch.rand(weight.shape, generator=draw)
                weight.masked_fill_(drawn < share, 0).masked_fill_(drawn < share / 16, -0.0)
    return model


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def bytes_of(folder):
    return sum(len(content) for content in files_of(folder).values())


@pytest.fixture(scope="module")
def dense(tmp_path_factory, model_folder):
    """A sparse model whose files have its zeros."""
    folder = tmp_path_factory.mktemp("dense")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    sparse_model(**ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def without(tmp_path_factory, dense):
    """The same model, whose files leave them out."""
    folder = tmp_path_factory.mktemp("without") / "model"
    shutil.copytree(dense, folder)
    leave_zeros_out(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(3, 8), (5, 13), (1, 1), (7, 1), (4, 64)], ids=str)
def test_every_bit_of_a_matrix_comes_back(dtype, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight[torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.6] = 0
    weight[0, 0], weight[-1, -1] = -0.0, float("nan")
    weight = weight.to(dtype)
    parts = packed(weight)
    assert parts["bitmask"].shape == (shape[0], -(-shape[1] // 8))
    assert parts["compressed"].numel() == int((bits(weight).view(-1, weight.element_size()) != 0).any(-1).sum())
    assert_same_bits({"a": unpacked(parts, ValueError)}, {"a": weight})


def test_the_parts_are_those_of_the_format():
    parts = packed(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]]))
    assert {name: part.tolist() for name, part in parts.items()} == {
        "shape": [3, 3],
        "compressed": [2.0, 1.0, 3.0],
        "bitmask": [[0b010], [0b000], [0b101]],
        "row_offsets": [0, 1, 1],
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"compressed": torch.ones(3)}, "its bits are those of 4 values, and it has 3"),
        ({"bitmask": torch.zeros(2, 2, dtype=torch.uint8)}, "its bits are 2x2, and 2x8 values have 2x1 bytes"),
        ({"bitmask": torch.zeros(2, 1, dtype=torch.uint8)}, "its bits are those of 0 values"),
        ({"shape": torch.tensor([2**40, 8])}, "its bits are 2x1"),
        ({"shape": torch.tensor([16])}, "not those of a matrix"),
        ({"row_offsets": torch.tensor([0, 3])}, "its rows begin elsewhere"),
    ],
)
def test_parts_that_do_not_fit_are_damaged(change, words):
    parts = packed(torch.eye(8)[:2] + torch.eye(8)[2:4])
    with pytest.raises(ValueError, match=words):
        unpacked({**parts, **change}, ValueError)


@pytest.mark.parametrize(
    ("weight", "smaller"),
    [
        (torch.zeros(64, 64), True),
        (torch.zeros(64, 64, dtype=torch.int32), False),
        (torch.zeros(4096), False),
        (torch.zeros(4, 32, 32), False),
        (torch.ones(64, 64), False),
        (torch.zeros(4, 4), False),  # its zeros take less than the names of three more tensors
    ],
)
def test_only_matrices_that_get_smaller_are_meant(weight, smaller):
    assert is_smaller(weight) == smaller


KINDS = {
    "float32": {},
    "odd sizes": {"hidden_size": 44, "intermediate_size": 75, "head_dim": 10},
    "tied": {"tie_word_embeddings": True},
    "transposed": {"config_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2},
    "experts": {
        "config_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "head_dim": 8,
    },
}


@pytest.mark.parametrize(("dtype", "shard"), [(torch.float32, "1GB"), (torch.bfloat16, "40KB")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_comes_back_bit_for_bit(tmp_path, kind, shard, dtype):
    model = sparse_model(0.7, **KINDS[kind]).to(dtype)
    if kind == "transposed":
        with torch.no_grad():
            model.transformer.h[1].mlp.c_fc.weight[::2] = 0
    model.save_pretrained(tmp_path / "dense", max_shard_size=shard)
    (tmp_path / "dense" / "more").mkdir()
    (tmp_path / "dense" / "more" / "notes.txt").write_text("mine")
    shutil.copytree(tmp_path / "dense", tmp_path / "model")
    written = leave_zeros_out(tmp_path / "model")
    assert len(written.layers) >= 1
    assert written.after < written.before
    shutil.rmtree(tmp_path / "dense" / "more")
    assert (tmp_path / "model" / "more" / "notes.txt").read_text() == "mine"
    shutil.rmtree(tmp_path / "model" / "more")
    assert_folder_is_right(tmp_path / "model", written)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    found, report = from_pretrained("its name", tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    assert_same_bits(found.state_dict(), expected.state_dict())
    ends = [found.get_output_embeddings().weight, found.get_input_embeddings().weight]
    assert (ends[0] is ends[1]) == (kind in ("tied", "transposed"))
    assert found.generation_config.to_dict() == expected.generation_config.to_dict()
    assert (found.name_or_path, found.config.name_or_path) == ("its name", "its name")
    assert (type(found), found.training, found.config.to_diff_dict() | {"_name_or_path": ""}) == (
        type(expected),
        expected.training,
        expected.config.to_diff_dict() | {"_name_or_path": ""},
    )
    # Nothing of it tells how it was stored; neither do its files when it is written with its zeros again.
    for name, loaded in (("expected", expected), ("found", found)):
        loaded.save_pretrained(tmp_path / name, max_shard_size=shard)
    assert files_of(tmp_path / "found") == files_of(tmp_path / "expected")
    put_zeros_in(tmp_path / "model", tmp_path / "whole")
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "dense")


def assert_folder_is_right(folder, written):
    """Index, sizes and configuration say what is there."""
    tensors, places = {}, {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no mapping
            places |= dict.fromkeys(opened.keys(), file.name)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert written.after == total
    if len(set(places.values())) > 1:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == places
        assert index["metadata"]["total_size"] == total
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert section["quant_method"] == "compressed-tensors"
    sparsity = section["sparsity_config"]
    assert (sparsity["format"], sparsity["sparsity_structure"]) == ("sparse-bitmask", "unstructured")
    assert sparsity["targets"] == sorted(name.removesuffix(".bitmask") for name in places if name.endswith(".bitmask"))
    assert 0 < sparsity["global_sparsity"] < 1


def test_files_are_smaller_by_what_the_zeros_take(tmp_path):
    """Of a value of four bytes whose half is zero, a bit more than two are left."""
    sparse_model(hidden_size=256, intermediate_size=512, vocab_size=16).save_pretrained(tmp_path / "model")
    before = bytes_of(tmp_path / "model")
    leave_zeros_out(tmp_path / "model")
    # Values that are left, with zeros of a minus; bits; and the beginnings of rows.
    assert bytes_of(tmp_path / "model") / before == pytest.approx(0.5 + 0.5 / 16 + 1 / 32 + 2 / 256, abs=0.01)


def test_of_a_model_in_many_files_one_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """While they are written, and while what was written is compared."""
    sparse_model(0.7, num_hidden_layers=12).save_pretrained(tmp_path / "model", max_shard_size="40KB")
    files = [path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors")]
    alive, peaks = {}, []

    def counting(tensor, handles, read=zero_bitmasks._read):
        value = read(tensor, handles)
        alive[id(value)] = value.nbytes
        weakref.finalize(value, alive.pop, id(value))
        peaks.append(sum(alive.values()))
        return value

    monkeypatch.setattr(zero_bitmasks, "_read", counting)
    leave_zeros_out(tmp_path / "model")
    assert len(files) >= 12
    assert max(peaks) <= 2 * max(files) < sum(files) / 4


@pytest.mark.parametrize("change", ["a value", "a name"])
def test_what_is_read_back_otherwise_is_an_error_and_the_model_stays(tmp_path, dense, monkeypatch, change):
    """As of a disk that loses a bit."""
    shutil.copytree(dense, tmp_path / "model")

    def losing(tensors, file, metadata):
        name = next(name for name in tensors if "layernorm" in name)
        value = tensors.pop(name)
        save_file({**tensors, name if change == "a value" else "other": value + 1}, file, metadata=metadata)

    monkeypatch.setattr(saving, "save_file", losing)
    with pytest.raises(RunError, match="layernorm.weight is another one when it is read back"):
        leave_zeros_out(tmp_path / "model")
    assert files_of(tmp_path / "model") == files_of(dense)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_nothing_to_leave_out_is_an_error_and_the_model_stays(tmp_path):
    builders.build_tiny_model().save_pretrained(tmp_path / "model")
    before = files_of(tmp_path / "model")
    with pytest.raises(RunError, match=r"no matrix is smaller without them\n.*holds all of it, with its zeros"):
        leave_zeros_out(tmp_path / "model")
    assert files_of(tmp_path / "model") == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_disk_that_refuses_leaves_the_model(tmp_path, dense, monkeypatch):
    shutil.copytree(dense, tmp_path / "model")
    (tmp_path / "model.partial").write_text("a file in the way")
    with pytest.raises(RunError, match="zeros of the model could not be left out: File exists"):
        leave_zeros_out(tmp_path / "model")
    assert files_of(tmp_path / "model") == files_of(dense)


def change(folder, edit):
    """Edit the tensors of a folder with one file."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("part", ["bitmask", "compressed", "row_offsets", "shape"])
def test_a_missing_part_is_named(tmp_path, without, rows_file, capsys, part):
    shutil.copytree(without, tmp_path / "model")
    change(tmp_path / "model", lambda tensors: tensors.pop(f"{LAYER}.{part}"))
    words = f"the weight '{LAYER}.weight' in '{tmp_path / 'model'}' is damaged: '{LAYER}.{part}' is missing"
    assert words in printed_by(capsys, 2, "generate", str(tmp_path / "model"), "hello").err
    file = builders.write_config(tmp_path, tmp_path / "model", rows_file, {"plugins": PLUGINS})
    printed = printed_by(capsys, 2, "train", str(file))
    assert words in printed.err
    assert "copy or download the model again" in printed.err


def test_bits_of_other_values_are_damage(tmp_path, without, capsys):
    shutil.copytree(without, tmp_path / "model")
    change(tmp_path / "model", lambda tensors: tensors.update({f"{LAYER}.compressed": torch.ones(3)}))
    words = f"the weight '{LAYER}.weight' in '{tmp_path / 'model'}' is damaged: its bits are those of "
    assert words in printed_by(capsys, 2, "generate", str(tmp_path / "model"), "hello").err
    printed = printed_by(capsys, 2, "decompress", str(tmp_path / "model"), str(tmp_path / "new"))
    assert words in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_weight_twice_is_damage(tmp_path, without):
    shutil.copytree(without, tmp_path / "model")
    change(tmp_path / "model", lambda tensors: tensors.update({f"{LAYER}.weight": torch.ones(3, 3)}))
    with pytest.raises(RunError, match="is there twice, with its zeros too"):
        from_pretrained("a", tmp_path / "model")


def test_other_sparse_formats_are_named(tmp_path, without, capsys):
    shutil.copytree(without, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(file.read_text().replace("sparse-bitmask", "sparse-24-bitmask"))
    printed = printed_by(capsys, 2, "generate", str(tmp_path / "model"), "hello")
    assert "are stored sparse as 'sparse-24-bitmask', which is not read here" in printed.err


def test_a_run_saves_and_trains_on_and_generates_as_if_the_zeros_were_there(tmp_path, dense, rows_file, capsys):
    steps = {"trainer.arguments.max_steps": 3, "trainer.arguments.learning_rate": 0.01}
    saving = {"trainer.arguments.save_strategy": "steps", "trainer.arguments.save_steps": 2}
    first = write_and_run(tmp_path / "first", dense, rows_file, {**COMPRESSED, **steps, **saving})
    assert "of weights instead of" in capsys.readouterr().out
    plain = write_and_run(tmp_path / "plain", dense, rows_file, {**steps, "plugins": PLUGINS})
    assert leaves_zeros_out(first / "model")
    assert not leaves_zeros_out(plain / "model")
    # Checkpoints, from which a run goes on, are saved as ever.
    assert not leaves_zeros_out(first / "checkpoints" / "step-000002")
    assert bytes_of(first / "model") < bytes_of(plain / "model")
    assert not list(first.glob("*.partial"))
    note = json.loads((first / "summary.json").read_text())["saved without zeros"]
    assert note["bytes"] < note["bytes with zeros"]
    assert "dumbo decompress" in (first / "report.html").read_text()
    assert tensor_shapes(first / "model") == tensor_shapes(plain / "model")
    answers = [printed_by(capsys, 0, "generate", str(run), "Add 1 and 2.").out for run in (first, plain)]
    assert answers[0] == answers[1]
    on = [
        write_and_run(tmp_path / name, folder / "model", rows_file, {**steps, **more})
        for name, folder, more in (("on", first, COMPRESSED), ("plain_on", plain, {"plugins": PLUGINS}))
    ]
    assert losses_of(on[0]) == losses_of(on[1])
    put_zeros_in(on[0] / "model", tmp_path / "whole")
    assert files_of(tmp_path / "whole") == files_of(on[1] / "model")
    dense_again = write_and_run(tmp_path / "dense_again", first / "model", rows_file, {**steps, "plugins": PLUGINS})
    assert files_of(dense_again / "model") == files_of(on[1] / "model")


def test_a_run_from_it_goes_on_where_it_was_stopped(tmp_path, without, dense, rows_file):
    from tests.plugins.test_llm_compressor import STOP

    whole = write_and_run(tmp_path / "whole", dense, rows_file, {"plugins": PLUGINS, "trainer.arguments.max_steps": 5})
    steps = {"trainer.arguments.max_steps": 5, "trainer.arguments.save_strategy": "steps"}
    stopping = {**COMPRESSED, **steps, "trainer.arguments.save_steps": 2}
    (tmp_path / "stop.py").write_text(STOP)
    stopping["plugins"] = [*PLUGINS, str(tmp_path / "stop.py") + ":StopPlugin"]
    file = builders.write_config(tmp_path / "parts", without, rows_file, stopping)
    from dumbo.cli.main import main

    assert main(["train", str(file)]) != 0
    (tmp_path / "stop.py").write_text(STOP.replace("== 3", "== 300"))
    run = run_here(file, "--resume")
    put_zeros_in(run / "model", tmp_path / "again")
    assert_same_bits(load_file(tmp_path / "again" / "model.safetensors"), weights_of(whole / "model"))


def test_an_adapter_on_it_is_loaded_with_it(tmp_path, without, rows_file, capsys):
    more = {"plugins": [*SHIPPED, "peft"], "model.peft": {"rank": 2, "target_modules": ["q_proj"]}}
    run = write_and_run(tmp_path, without, rows_file, more)
    assert printed_by(capsys, 0, "generate", str(run), "Add 1 and 2.").out
    printed = printed_by(capsys, 2, "merge", str(run))
    assert "dumbo merge reads weights from the files, and those of" in printed.err
    assert f"write it out with its zeros first: dumbo decompress {without} NEW_FOLDER" in printed.err


@pytest.mark.full
def test_an_adapter_on_it_is_merged_into_the_model_with_its_zeros(tmp_path, without, rows_file, capsys):
    more = {"plugins": [*SHIPPED, "peft"], "model.peft": {"rank": 2, "target_modules": ["q_proj"]}}
    run = write_and_run(tmp_path, without, rows_file, more)
    printed_by(capsys, 0, "decompress", str(without), str(tmp_path / "base"))
    printed_by(capsys, 0, "merge", str(run), "--base", str(tmp_path / "base"))


@pytest.mark.full
def test_it_is_quantized_as_any_other(tmp_path, dense, rows_file, capsys):
    sparse_model(**WIDE).save_pretrained(tmp_path / "dense")
    AutoTokenizer.from_pretrained(dense).save_pretrained(tmp_path / "dense")
    shutil.copytree(tmp_path / "dense", tmp_path / "without")
    leave_zeros_out(tmp_path / "without")
    more = {"plugins": [*SHIPPED, "peft", "bitsandbytes"], "model.peft": {"rank": 2, "target_modules": ["q_proj"]}}
    runs = [write_and_run(tmp_path / f"run_{name}", tmp_path / name, rows_file, more) for name in ("dense", "without")]
    assert losses_of(runs[0]) == losses_of(runs[1])
    answers = [printed_by(capsys, 0, "generate", str(run), "Add 1 and 2.").out for run in runs]
    assert answers[0] == answers[1]


def test_a_model_with_code_of_its_own_is_loaded_when_it_is_trusted(tmp_path, without):
    folder = shutil.copytree(without, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.MineLM"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": auto_map}))
    (folder / "mine.py").write_text(CODE)
    model, _ = load_for_inference(folder, trust_remote_code=True)
    assert type(model).__name__ == "MineLM"
    assert_same_bits(model.state_dict(), load_for_inference(without)[0].state_dict())
    with pytest.raises(RunError, match="needs Python code of its own"):
        load_for_inference(folder)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class Mine(LlamaConfig):
    model_type = "mine"


class MineLM(LlamaForCausalLM):
    config_class = Mine
"""


def test_decompress_writes_the_model_of_a_run_or_a_folder(tmp_path, without, dense, capsys):
    printed = printed_by(capsys, 0, "decompress", str(without.parent), str(tmp_path / "new" / "whole"))
    assert f"without zeros in {without}" in printed.out
    assert files_of(tmp_path / "new" / "whole") == files_of(dense)


@pytest.mark.parametrize(
    ("model", "output", "words"),
    [
        ("dense", "new", "there is nothing to decompress: '{dense}' has its zeros"),
        ("without", "there", "exists already, and nothing is overwritten"),
        ("without", "{without}/new", "would lie in the model's own folder"),
        ("nowhere", "new", "there is no folder 'nowhere'"),
    ],
)
def test_decompress_refuses(tmp_path, monkeypatch, dense, without, capsys, model, output, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    places = {"dense": str(dense), "without": str(without)}
    printed = printed_by(capsys, 2, "decompress", places.get(model, model), output.format(**places))
    assert words.format(**places) in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_spectrum_refuses_files_without_zeros(without, capsys):
    printed = printed_by(capsys, 2, "spectrum", str(without))
    assert "dumbo spectrum reads weights from the files" in printed.err


def test_what_would_not_get_smaller_is_refused_before_the_training(tmp_path, dense, rows_file, capsys):
    more = {"plugins": PLUGINS, "model.llm_compressor": {"save_compressed": True, "targets": ["embed_tokens"]}}
    file = builders.write_config(tmp_path, dense, rows_file, more)
    printed = printed_by(capsys, 2, "train", str(file))
    assert "model.llm_compressor.save_compressed: no weight has enough zeros" in printed.err


@pytest.mark.parametrize("verb", ["check", pytest.param("generate", marks=pytest.mark.full)])
def test_without_the_package_it_is_refused(tmp_path, dense, without, rows_file, verb):
    """In a process that cannot find it."""
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    file = builders.write_config(tmp_path, dense, rows_file, COMPRESSED)
    words = ("check", file) if verb == "check" else ("generate", without, "hello")
    result = builders.dumbo(*words, PYTHONPATH=path_with(tmp_path))
    assert result.returncode == 2, result.stderr
    assert "the package 'compressed-tensors', which is not installed" in result.stderr
    assert "pip install 'dumbo-trainer[llm_compressor]'" in result.stderr


HIDE = """
import importlib.util
import sys

found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "compressed_tensors" else found(name, *more)
"""


def path_with(folder):
    import os

    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
