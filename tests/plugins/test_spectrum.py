"""The spectrum plugin: the ratio is the paper's; what has most signal is trained, and never all by mistake."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dumbo.cli.main import main
from dumbo.errors import ConfigError, RunError
from dumbo.plugins.spectrum import scanning
from dumbo.plugins.spectrum.plugin import SpectrumOptions
from dumbo.plugins.spectrum.scanning import RatioCache, Scanned, choose, scan
from dumbo.plugins.spectrum.showing import table, write_chart
from dumbo.plugins.spectrum.signal import signal_to_noise, singular_values
from dumbo.plugins.spectrum.training import train_signal
from dumbo.plugins.spectrum.weights import Unit, Weight, units_of, weights_of_model
from tests import builders
from tests.distributed.test_two_processes import torchrun
from tests.faults.stopping import assert_same_run, stop_by, write_stoppable
from tests.run.whole_runs import SHIPPED, losses_of, printed_by, weights_of, write_and_run

PLUGINS = [*SHIPPED, "spectrum"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("DUMBO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "spectrum"


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A model of twelve layers with biases: there is a layer 1 and a layer 10."""
    return builders.save_tiny_model(tmp_path_factory.mktemp("deep"), num_hidden_layers=12, attention_bias=True)


def ratio(matrix):
    array = np.asarray(matrix, dtype=np.float32)
    return signal_to_noise(singular_values(array), *array.shape)


def paper(matrix):
    """The formula again, with a decomposition of NumPy's."""
    values = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    sigma = (np.quantile(values, 0.75) - np.quantile(values, 0.25)) / 1.349
    beta = min(matrix.shape) / max(matrix.shape)
    above = values > sigma * np.sqrt((1 + np.sqrt(beta)) ** 2)
    return values[above].sum() / (values[~above].sum() if (~above).any() else 1.0) / values.max()


def weight(name, *shape, is_end=False):
    return Weight(name, shape, lambda begin, end: np.zeros((end - begin, *shape[1:]), np.float32), is_end)


def units(*names):
    return [Unit(weight(f"{name}.weight", 2, 2), (f"{name}.weight",)) for name in names]


def test_the_ratio_of_known_matrices():
    """Diagonals, whose singular values are what they show."""
    assert ratio(np.diag([1.0, 2.0, 3.0, 4.0])) == pytest.approx((3 + 4) / (1 + 2) / 4)  # sigma 1.112, tau 2.224
    assert ratio(np.diag([5.0, 5.0, 5.0])) == pytest.approx(15 / 1 / 5), "no spread, no noise"
    assert ratio([[3.0, 4.0]]) == pytest.approx(1.0), "a vector"
    assert math.isnan(ratio(np.zeros((3, 4))))


@pytest.mark.parametrize("rank", [1, 3, 11])
def test_a_weight_that_is_mostly_zeros_has_a_ratio_and_comes_before_a_noisy_one(rank):
    """What is noise there is nothing, or what rounding leaves of it."""
    numbers = np.random.default_rng(2)
    rows = np.zeros((64, 48))
    rows[:rank] = numbers.normal(size=(rank, 48))
    product = numbers.normal(size=(64, rank)) @ numbers.normal(size=(rank, 48))
    for matrix in (np.diag([1.0, *[0.0] * 20]), rows, product):
        assert ratio(numbers.normal(size=(64, 48))) < ratio(matrix) < math.inf


@pytest.mark.parametrize("shape", [(8, 8), (64, 128), (128, 64), (5, 300), (1, 7)])
def test_the_ratio_is_the_paper_s_on_either_side(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert ratio(matrix) == pytest.approx(paper(matrix), rel=1e-5)


def test_noise_alone_is_not_zero():
    """As the page says: the spread is that of the singular values, not of the entries."""
    matrix = np.random.default_rng(0).normal(size=(64, 128))
    values = np.linalg.svd(matrix, compute_uv=False)
    spread = (np.quantile(values, 0.75) - np.quantile(values, 0.25)) / 1.349
    assert 0.55 < (values > spread * (1 + 0.5**0.5)).mean() < 0.75
    assert 0.1 < ratio(matrix) < 0.35


def test_a_component_of_low_rank_raises_the_share_of_the_signal_and_not_the_ratio():
    """Of the same noise, with a component of rank 4 that grows; the paper's last division is by the largest value."""
    numbers = np.random.default_rng(1)
    noise = numbers.normal(size=(96, 96))
    component = sum(np.outer(numbers.normal(size=96), numbers.normal(size=96)) for _ in range(4))
    matrices = [noise + strength * component for strength in (0, 1, 3)]
    shares, ratios = [signal_share(matrix) for matrix in matrices], [ratio(matrix) for matrix in matrices]
    assert shares[0] < shares[1] < shares[2] and ratios[0] > ratios[1] > ratios[2]
    assert ratios == pytest.approx([paper(matrix) for matrix in matrices], rel=1e-5)


def signal_share(matrix):
    """Signal over noise without the last division, by the largest value, which grows with the component."""
    values = singular_values(matrix.astype(np.float32))
    return signal_to_noise(values, *matrix.shape) * values.max().item()


def test_kinds_are_compared_by_themselves_and_rounded_down():
    found = [
        Scanned(unit, value) for unit, value in zip(units("a.0.q", "a.1.q", "a.2.q"), (1.0, 3.0, 2.0), strict=True)
    ]
    found += [Scanned(unit, value) for unit, value in zip(units("a.0.k", "a.1.k"), (math.nan, 0.1), strict=True)]
    names = [each.unit.weight.name for each in choose(found, 0.67)]
    assert names == ["a.1.q.weight", "a.2.q.weight", "a.1.k.weight"], "NaN is last, whatever the others are"
    assert [len(choose(found, share)) for share in (0, 0.3, 0.5, 1)] == [0, 0, 2, 5]
    many = [Scanned(unit, 1.0) for unit in units(*(f"a.{number}.q" for number in range(100)))]
    assert [len(choose(many, share / 100)) for share in range(101)] == list(range(101)), "0.29 * 100 is 28.999..."


def test_what_belongs_together():
    weights = [
        weight("model.embed_tokens.weight", 9, 4, is_end=True),
        weight("l.0.q.weight", 4, 4),
        weight("l.0.q.bias", 4),
        weight("l.0.norm.weight", 4),
        weight("l.0.norm.bias", 4),
        weight("l.0.experts.down_proj", 3, 4, 4),
        weight("l.0.experts.down_proj_bias", 3, 4),
        weight("l.0.conv.weight", 4, 1, 3),
        weight("l.0.scale"),
    ]
    found = {unit.weight.name: unit for unit in units_of(weights)}
    assert found["l.0.q.weight"].names == ("l.0.q.weight", "l.0.q.bias")
    assert found["l.0.experts.down_proj"].names == ("l.0.experts.down_proj", "l.0.experts.down_proj_bias")
    assert found["l.0.experts.down_proj"].weight.parts == 3 and found["l.0.conv.weight"].weight.parts == 1
    assert found["l.0.conv.weight"].weight.matrix(0).shape == (4, 3)
    assert found["l.0.scale"].weight.matrix(0).shape == (1, 1)
    assert found["l.0.q.weight"].kind == "l.*.q" and found["l.0.q.weight"].place == "0"
    everything = {name for unit in found.values() for name in unit.names}
    assert everything == {each.name for each in weights} - {"model.embed_tokens.weight"}


def test_experts_count_as_the_mean_of_theirs(tmp_path):
    model = builders.build_tiny_model(
        config_type="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8
    )
    found = {unit.weight.name: unit for unit in units_of(weights_of_model(model))}
    name = next(name for name in found if name.endswith("experts.down_proj"))
    said = []
    scanned = scan([found[name]], RatioCache("moe"), said.append)
    experts = model.get_parameter(name).detach().numpy()
    assert experts.shape[0] == 4
    assert scanned[0].ratio == pytest.approx(np.mean([paper(expert) for expert in experts]), rel=1e-4)
    assert said[0].startswith("spectrum: 4 matrices and vectors, 4 of them measured")


def test_a_second_scan_measures_nothing_and_a_changed_weight_is_measured_again(deep, cache, monkeypatch):
    model = builders.build_tiny_model()
    first = scan(units_of(weights_of_model(model)), RatioCache("a/b"), print)
    assert [file.name for file in cache.iterdir()] == ["a_b-v2.json"]
    asked = []
    monkeypatch.setattr(
        scanning, "singular_values", lambda matrix: asked.append(matrix.shape) or singular_values(matrix)
    )
    again = scan(units_of(weights_of_model(model)), RatioCache("a/b"), print)
    assert [each.ratio for each in again] == [each.ratio for each in first] and asked == []
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    scan(units_of(weights_of_model(model)), RatioCache("a/b"), print)
    assert asked == [(64, 32)]


def test_a_cache_that_is_damaged_or_refused_is_no_obstacle(tmp_path, cache):
    model, said = builders.build_tiny_model(num_hidden_layers=1), []
    cache.mkdir(parents=True)
    for text in ("{", '{"ratios": 3}', '{"ratios": {"2x2-00": "x"}}'):
        (cache / "m-v2.json").write_text(text)
        found = scan(units_of(weights_of_model(model)), RatioCache("m"), said.append)
        assert all(math.isfinite(each.ratio) for each in found)
        assert "measured in" in said[-1]
    (tmp_path / "file").write_text("")
    scan(units_of(weights_of_model(model)), RatioCache("m", tmp_path / "file"), said.append)
    assert "what was measured is not kept" in said[-2]


def trained_by(model, folder, **options):
    said, notes = [], {}
    services = SimpleNamespace(rank=0, world_size=1, say=said.append, note=notes.__setitem__, output_dir=folder)
    config = SimpleNamespace(model=SimpleNamespace(base_model="m"))
    train_signal(model, SpectrumOptions(**options), config, services)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}, said, notes


def test_fraction_zero_trains_the_ends_and_one_trains_all(tmp_path):
    model = builders.build_tiny_model()
    names = {name for name, _ in model.named_parameters()}
    ends = {"model.embed_tokens.weight", "lm_head.weight"}
    assert trained_by(model, tmp_path, top_fraction=0)[0] == ends
    assert trained_by(model, tmp_path, top_fraction=1)[0] == names
    assert trained_by(model, tmp_path, top_fraction=1, train_embeddings=False)[0] == names - ends


def test_a_share_that_chooses_nothing_is_an_error(tmp_path):
    with pytest.raises(
        ConfigError, match="less than one weight of any kind: there are 2 of the most frequent one"
    ) as e:
        trained_by(builders.build_tiny_model(), tmp_path, top_fraction=0.3)
    assert "write at least 0.5" in str(e.value)


def test_layer_1_is_not_layer_10(deep, tmp_path):
    """Layer 1 has the most signal by far: it alone is trained, with its bias, and no layer whose number begins so."""
    model = builders.build_tiny_model(num_hidden_layers=12, attention_bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".layers.1." in name and parameter.ndim == 2:
                parameter.copy_(torch.eye(*parameter.shape))  # without any noise
    names, said, notes = trained_by(model, tmp_path, top_fraction=0.09, train_embeddings=False)
    matrices = {name for name in names if "mlp" in name or "q_proj" in name}
    assert matrices and {name.split(".")[2] for name in matrices} == {"1"}
    assert "model.layers.1.self_attn.q_proj.bias" in names
    assert notes["spectrum"]["weights"] == len(names)
    assert any(line.startswith("spectrum: ") and "% of" not in line and "parameters (" in line for line in said)


def test_weights_that_cannot_be_scanned():
    model = builders.build_tiny_model()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 3] = math.nan
    with pytest.raises(RunError, match="layers.0.mlp.up_proj.weight has values that are not finite"):
        scan(units_of(weights_of_model(model)), RatioCache("m"), print)
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.int8), False)
    with pytest.raises(RunError, match=r"up_proj.weight is quantized \(int8\)"):
        weights_of_model(model)


def test_a_run_trains_what_was_chosen_and_leaves_table_chart_and_numbers(tmp_path, deep, rows_file, capsys):
    changes = {"model.spectrum": {"top_fraction": 0.25}, "trainer.arguments.learning_rate": 0.01, "plugins": PLUGINS}
    out = write_and_run(tmp_path, deep, rows_file, changes)
    said = capsys.readouterr().out
    numbers = json.loads((out / "spectrum.json").read_text())
    chosen = {name for name, entry in numbers.items() if entry["trained"]}
    before, after = weights_of(deep), weights_of(out / "model")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    biases = {name for name in changed if name.endswith(".bias")}
    assert changed - biases == chosen | {"model.embed_tokens.weight", "lm_head.weight"}
    assert {name.replace(".bias", ".weight") for name in biases} <= chosen
    for kind in ("mlp.down_proj", "self_attn.k_proj"):
        alike = {name: entry["snr"] for name, entry in numbers.items() if kind in name}
        best = sorted(alike, key=alike.get)[-3:]
        assert len(alike) == 12 and {name for name in alike if name in chosen} == set(best)
    assert "spectrum: 60,896 of 145,312 parameters (41.91%)" in said
    assert any(line.split()[:2] == ["layers.*.mlp.down_proj", "12"] for line in said.splitlines())
    assert (out / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "summary.json").read_text())["spectrum"]["parameters"] == 60896
    assert "all known from before" not in said
    write_and_run(tmp_path / "again", deep, rows_file, changes)
    assert "spectrum: 109 matrices and vectors, all known from before" in capsys.readouterr().out


def test_a_model_from_scratch_is_scanned_too(tmp_path, rows_file, capsys):
    shape = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    changes = {
        "model": {"architecture": shape | {"num_attention_heads": 4}, "spectrum": {"top_fraction": 0.5}},
        "datasets.0.train_format": "chat_template",
        "plugins": [*PLUGINS, "tokenizer_trainer"],
    }
    out = write_and_run(tmp_path, Path("none"), rows_file, changes)
    assert "spectrum: " in capsys.readouterr().out and losses_of(out)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"model.spectrum": {"top_fraction": 50}},
            ["model.spectrum.top_fraction: is a share: from 0 to 1", "for 50 in a hundred write 0.5"],
        ),
        ({"model.spectrum": {"top_fraction": -0.5}}, ["is a share: from 0 to 1"]),
        ({"model.spectrum": {"top_fraction": 0, "train_embeddings": False}}, ["nothing would be trained"]),
        (
            {"model.unfrozen_parameters": ["norm"]},
            ["model.unfrozen_parameters: has no effect with 'spectrum' listed", "dumbo spectrum MODEL --patterns"],
        ),
        (
            {"model.peft": {}, "plugins": [*PLUGINS, "peft"]},
            ["'spectrum' trains whole weights of the model, and 'peft' leaves all of them as they are"],
        ),
    ],
    ids=str,
)
def test_what_does_not_go_together(tmp_path, model_folder, rows_file, changes, lines, capsys):
    file = builders.write_config(tmp_path, model_folder, rows_file, {"plugins": PLUGINS} | changes)
    said = printed_by(capsys, 2, "check", str(file)).err
    for line in lines:
        assert line in said


def test_the_verb_shows_what_a_run_would_choose(tmp_path, deep, rows_file, capsys):
    words = ["spectrum", str(deep), "--top-fraction", "0.25", "--chart", str(tmp_path / "c.png")]
    printed = printed_by(capsys, 0, *words, "--json", str(tmp_path / "s.json"), "--patterns").out
    assert "60,896 of 145,312 parameters (41.91%) would be trained, model.embed_tokens.weight, lm_head" in printed
    assert (tmp_path / "c.png").stat().st_size > 10_000
    patterns = [line.strip()[3:-1] for line in printed.splitlines() if line.strip().startswith("- '^")]
    assert r"^model\.embed_tokens\.weight$" in patterns and len(patterns) == 41
    changes = {"model.spectrum": {"top_fraction": 0.25}, "trainer.arguments.max_steps": 1, "plugins": PLUGINS}
    out = write_and_run(tmp_path / "spectrum", deep, rows_file, changes)
    assert "all known from before" in capsys.readouterr().out, "files and memory are the same matrices"
    assert json.loads((out / "spectrum.json").read_text()) == json.loads((tmp_path / "s.json").read_text())
    changes = {"model.unfrozen_parameters": patterns, "trainer.arguments.max_steps": 1}
    by_hand = write_and_run(tmp_path / "patterns", deep, rows_file, changes)
    ours, theirs = weights_of(out / "model"), weights_of(by_hand / "model")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_verb_reads_shards_and_16_bits(tmp_path, deep, capsys):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(deep, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    printed_by(capsys, 0, "spectrum", str(tmp_path / "sharded"), "--json", str(tmp_path / "a.json"))
    found = json.loads((tmp_path / "a.json").read_text())
    name = "model.layers.3.mlp.up_proj.weight"
    assert found[name]["snr"] == pytest.approx(paper(model.get_parameter(name).detach().float().numpy()), rel=1e-4)
    scanned = scan(units_of(weights_of_model(model)), RatioCache("x"), print)
    assert {each.unit.weight.name: each.ratio for each in scanned} == {n: entry["snr"] for n, entry in found.items()}


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
MAMBA = {"tie_word_embeddings": False, "num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8}
GATED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8}


@pytest.mark.parametrize(
    ("kind", "options", "on_disk"),
    [
        pytest.param("qwen3_moe", EXPERTS, "model.layers.0.mlp.experts.0.gate_proj.weight", id="experts one by one"),
        pytest.param("deepseek_v3", GATED, "model.layers.1.mlp.gate.e_score_correction_bias", id="a buffer"),
        pytest.param("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "transformer.wte.weight", id="no prefix"),
        pytest.param("mamba2", MAMBA, "backbone.embeddings.weight", id="own names"),
    ],
)
def test_the_verb_finds_what_a_run_has_in_memory(tmp_path, capsys, kind, options, on_disk):
    model = builders.build_tiny_model(config_type=kind, **options)
    model.save_pretrained(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert on_disk in stored
    if kind == "gpt2":  # as the hub has it, with the mask that was a buffer once
        stored = {name.removeprefix("transformer."): value for name, value in stored.items()}
        stored["h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        save_file(stored, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    words = ["spectrum", str(tmp_path / "model"), "--json", str(tmp_path / "found.json"), "--patterns"]
    printed = printed_by(capsys, 0, *words).out
    weights = weights_of_model(model)
    said = []
    scanned = scan(units_of(weights), RatioCache(str(tmp_path / "model")), said.append)
    assert "all known from before" in said[0], "the same matrices"
    found = json.loads((tmp_path / "found.json").read_text())
    ratios = {each.unit.weight.name: None if math.isnan(each.ratio) else each.ratio for each in scanned}
    assert ratios == {name: entry["snr"] for name, entry in found.items()}
    trained = {name for each in choose(scanned, 0.5) for name in each.unit.names}
    trained |= {weight.name for weight in weights if weight.is_end}
    patterns = [line.strip()[4:-2] for line in printed.splitlines() if line.strip().startswith("- '^")]
    assert {pattern.replace("\\", "") for pattern in patterns} == trained


def test_however_a_folder_is_written_its_cache_is_one(tmp_path, deep, monkeypatch):
    monkeypatch.chdir(deep)
    assert RatioCache(".").file == RatioCache(str(deep)).file == RatioCache(f"../{deep.name}/").file
    assert RatioCache("owner/name").file.name == "owner_name-v2.json"


def test_the_verb_says_what_it_cannot_scan(tmp_path, deep, capsys):
    def said(*words):
        return printed_by(capsys, 2, "spectrum", *map(str, words)).err

    assert "there is no folder './nowhere'" in said("./nowhere")
    assert "--top-fraction is a share, from 0 to 1, not 50" in said(deep, "--top-fraction", "50")
    assert "--revision is for models on the hub" in said(deep, "--revision", "main")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "is an adapter; take its base model" in said(tmp_path / "adapter")
    (tmp_path / "empty").mkdir()
    assert "has no model.safetensors" in said(tmp_path / "empty")
    codes = load_file(deep / "model.safetensors")
    codes["model.layers.0.mlp.up_proj.weight"] = torch.ones(64, 32, dtype=torch.uint8)
    (tmp_path / "codes").mkdir()
    save_file(codes, tmp_path / "codes" / "model.safetensors")
    assert "up_proj.weight is quantized (U8)" in said(tmp_path / "codes")


def test_a_kind_without_several_matrices_has_no_chart(tmp_path):
    found = [Scanned(Unit(weight("a.norm.weight", 2), ("a.norm.weight",)), 1.0)]
    write_chart(tmp_path / "none.png", found, [], "t")
    assert not (tmp_path / "none.png").exists()
    assert table(found, []) == [["a.norm", 1, "1", "1", 0, ""]]


def test_spectrum_and_grokfast_together(tmp_path, deep, rows_file, capsys):
    """The filter keeps averages of what spectrum chose, and of nothing else."""
    from tests.plugins.test_grokfast import state_at

    changes = {
        "model.spectrum": {"top_fraction": 0.1},
        "trainer.grokfast": {"alpha": 0.9},
        "trainer.arguments.save_strategy": "steps",
        "trainer.arguments.save_steps": 2,
        "plugins": [*PLUGINS, "grokfast"],
    }
    out = write_and_run(tmp_path, deep, rows_file, changes)
    kept = set(state_at(out, 2))
    before, after = weights_of(deep), weights_of(out / "model")
    assert kept == {name for name in after if not torch.equal(before[name], after[name])}
    assert "grokfast: ema with alpha 0.9, lamb 2; it keeps 0.2 MB" in capsys.readouterr().out


def test_a_run_that_goes_on_trains_the_same_weights(tmp_path, deep, rows_file):
    options = {"model.spectrum": {"top_fraction": 0.25}}
    files = [write_stoppable(tmp_path / where, deep, rows_file, dict(options), ("spectrum",)) for where in "ab"]
    assert main(["train", str(files[0])]) == 0
    with stop_by("SIGTERM", 2):
        assert main(["train", str(files[1])]) == 75
    assert main(["train", str(files[1]), "--resume"]) == 0
    assert_same_run(tmp_path / "b" / "out", tmp_path / "a" / "out")


@pytest.mark.full
def test_two_processes_choose_alike(tmp_path, deep, rows_file):
    changes = {
        "model.spectrum": {"top_fraction": 0.25},
        "trainer.grokfast": {"alpha": 0.9},
        "trainer.arguments.adam_epsilon": 1e-6,
        "plugins": [*PLUGINS, "grokfast"],
    }
    result = torchrun(builders.write_config(tmp_path / "two", deep, rows_file, changes))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("layers.*.mlp.down_proj") == 1, "one process speaks"
    alone = write_and_run(tmp_path / "one", deep, rows_file, changes)
    one, two = weights_of(alone / "model"), weights_of(tmp_path / "two" / "out" / "model")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5, msg=name)
