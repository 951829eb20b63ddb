"""`dumbo doctor`: says what is there and what to do, and works where nothing else does."""

import os
import sys
from pathlib import Path

import pytest

from dumbo.cli.main import main
from dumbo.diagnosis import devices, libraries
from dumbo.diagnosis.findings import Finding, Section, as_text, troubles
from dumbo.diagnosis.libraries import Probed, probe_libraries
from dumbo.diagnosis.weights import adapter_count, parameter_count, tensor_shapes
from dumbo.starting.machine import Gpu
from tests import builders
from tests.house.imports import loaded_by

TOKEN = "hf_" + "a" * 30
BLOCKER = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise {error}

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def probed() -> Probed:
    return probe_libraries()


@pytest.fixture
def probed_once(probed, monkeypatch):
    """What the libraries said, without asking them in every test."""
    monkeypatch.setattr(libraries, "probe_libraries", lambda: probed)


def rows_of(text: str, title: str) -> dict[str, str]:
    """The findings of one section of the output, by name."""
    section = next(part for part in text.split("\n\n") if part.startswith(f"{title}\n"))
    lines = [line[2:] for line in section.splitlines()[1:] if line[2:3].strip()]
    return {line[: line.index("  ")]: line[line.index("  ") :].strip() for line in lines if "  " in line}


def test_everything_is_in_order_here(probed_once, monkeypatch, tmp_path, capfd):
    for name, value in {"HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    assert main(["doctor"]) == 0
    said, errors = capfd.readouterr()
    assert errors == ""
    versions = rows_of(said, "versions")
    assert versions["transformers"].startswith("5.") and "(needs >=5.17,<6)" in versions["transformers"]
    assert versions["python"].startswith(".".join(map(str, sys.version_info[:3])))
    there = rows_of(said, "devices")
    assert f"{devices.usable_cores()} cores" in there["cpu"] and "GiB free" in there["cpu"]
    assert "OMP_NUM_THREADS=1, torch uses 1" in there["threads"]
    hub = rows_of(said, "hub")
    assert hub["home"] == f"{tmp_path} (HF_HOME)"
    assert hub["offline mode"].startswith("yes")
    ready = said.partition("\nplugins\n")[2]
    assert "jinja_formatter" in ready and "transformers_trainer" in ready
    assert said.endswith("\nnothing has to be mended\n")
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("blocked", "error", "said"),
    [
        ({"torch"}, "ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13"),
        pytest.param(
            {"torch", "transformers"},
            "OSError('undefined symbol')",
            "OSError: undefined symbol",
            marks=pytest.mark.full,
        ),
        ({"torch", "transformers", "packaging", "huggingface_hub"}, "ModuleNotFoundError('gone')", "gone"),
        ({"torch", "pydantic"}, "ImportError('no core')", "no core"),
    ],
    ids=["torch", "two", "four", "pydantic"],
)
def test_it_works_where_libraries_cannot_be_imported(tmp_path, config_file, blocked, error, said):
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(blocked=blocked, error=error))
    done = builders.dumbo("doctor", config_file, PYTHONPATH=f"{tmp_path}:{builders.ROOT / 'src'}")
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("! torch"))
    assert "cannot be imported" in line and said in line
    assert "install it again: pip install --force-reinstall 'torch" in done.stdout
    assert "devices" in done.stdout and "plugins" in done.stdout and "to be mended" in done.stdout


def test_a_library_that_kills_its_process_is_named(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        BLOCKER.format(blocked={"tokenizers"}, error="__import__('os').abort()").replace("raise ", "")
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probe_libraries()
    assert found.error("tokenizers") == "its import ended the process (SIGABRT)"
    assert found.error("torch") == "" and found.torch["threads"] >= 1


def install(folder: Path, requires: list[str], python: str = ">=3.11") -> None:
    """Metadata of a dumbo that asks for other versions than are here."""
    info = folder / "dumbo_trainer-0.1.0.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.4", "Name: dumbo-trainer", "Version: 0.1.0", f"Requires-Python: {python}"]
    (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {text}" for text in requires)]) + "\n")


def test_versions_out_of_range_have_to_be_mended(tmp_path, probed, probed_once, monkeypatch, capsys):
    install(
        tmp_path,
        [
            "trl>=99; extra == 'test'",
            "transformers>=4,<5",
            "peft>=99; extra == 'peft'",
            "numpy>=2",
            "nowhere-to-be-found>=1",
        ],
        "<3.9",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["doctor"]) == 2
    said = capsys.readouterr().out
    assert "! transformers" in said and "pip install 'transformers>=4,<5'" in said
    assert "! peft" in said and "pip install 'peft>=99'" in said
    assert "! nowhere-to-be-found" in said and "not installed  (needs >=1)" in said
    assert "! python" in said
    assert "! numpy" not in said and "! trl" not in said
    assert "4 things have to be mended" in said


def test_a_token_is_never_shown(probed_once, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@hub.example")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert rows_of(said, "hub")["logged in"] == "yes"
    assert TOKEN not in said and "secret" not in said
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    main(["doctor"])
    assert rows_of(capsys.readouterr().out, "hub")["logged in"].startswith("no")
    (tmp_path / "token").write_text(TOKEN)
    main(["doctor"])
    said = capsys.readouterr().out
    assert rows_of(said, "hub")["logged in"] == "yes" and TOKEN not in said


def test_a_configuration_is_looked_at(probed_once, config_file, capsys):
    assert main(["doctor", str(config_file)]) == 0
    found = rows_of(capsys.readouterr().out, str(config_file))
    assert found["configuration"] == "fine, and so are its 4 plugins"
    assert "on this machine" in found["model"] and "on this machine" in found["data"]
    assert "all weights are trained" in found["memory"]


def test_a_quantized_base_takes_less(probed_once, tmp_path, rows_file, capsys):
    model = builders.save_tiny_model(tmp_path / "model", hidden_size=256, intermediate_size=512)
    taken = []
    for names in (["peft"], ["peft", "torchao"], ["peft", "bitsandbytes"]):
        plugins = [*builders.run_config(model, rows_file)["plugins"], *names]
        file = builders.write_config(tmp_path / names[-1], model, rows_file, {"plugins": plugins})
        assert main(["doctor", str(file)]) == 0
        found = rows_of(capsys.readouterr().out, str(file))["memory"]
        assert "LoRA's weights alone are trained" in found
        taken.append(float(found.split("weights ")[1].split()[0]))
    assert taken[0] > 2 * taken[1] > 2.5 * taken[2]


def test_its_mistakes_are_those_of_check(probed_once, tmp_path, model_folder, rows_file, capsys):
    changes = {"trainer.arguments.learning_rte": 1, "datasets.0.path": "nowhere.jsonl"}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    assert main(["check", str(file)]) == 2
    problems = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(" ")]
    assert main(["doctor", str(file)]) == 2
    said = capsys.readouterr().out
    assert problems and all(problem in said for problem in problems)
    assert "did you mean 'learning_rate'?" in said
    assert main(["doctor", "nowhere.yaml"]) == 2


def test_what_is_not_here_is_downloaded_or_out_of_reach(
    probed_once, tmp_path, model_folder, rows_file, monkeypatch, capsys
):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    file = builders.write_config(tmp_path, model_folder, rows_file, {"model.base_model": "owner/name"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert main(["doctor", str(file)]) == 0
    assert "it is downloaded by the first run" in rows_of(capsys.readouterr().out, str(file))["model"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["doctor", str(file)]) == 2
    said = capsys.readouterr().out
    assert "the hub is switched off" in said and "unset HF_HUB_OFFLINE" in said
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(model_folder)
    assert main(["doctor", str(file)]) == 0
    found = rows_of(capsys.readouterr().out, str(file))
    assert found["model"] == "owner/name, in the hub's cache" and "weights" in found["memory"]


def test_weights_that_cannot_fit_have_to_be_mended(probed_once, config_file, monkeypatch, capsys):
    from dumbo.diagnosis import run_needs

    monkeypatch.setattr(run_needs, "memory_bytes", lambda: (1000, 2000))
    assert main(["doctor", str(config_file)]) == 2
    said = capsys.readouterr().out
    assert "it cannot fit" in said and "a smaller model, or LoRA" in said


def test_the_headers_of_weights_are_the_model(model_folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    assert parameter_count(tensor_shapes(model_folder)) == sum(p.numel() for p in model.parameters())


# PEFT, used by itself as the reference, asks Transformers for what it renames.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*self_attn\.o_proj"])
def test_the_adapter_is_as_large_as_peft_makes_it(model_folder, targets):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM"))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert adapter_count(tensor_shapes(model_folder), 3, targets) == trained


def test_lora_is_counted_by_its_own_weights(probed_once, tmp_path, model_folder, rows_file, capsys):
    changes = {"model.peft": {"rank": 2}, "plugins.4": "peft"}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    assert main(["doctor", str(file)]) == 0
    assert "LoRA's weights alone are trained" in capsys.readouterr().out


GPU = {"name": "NVIDIA X", "free": 70 * 2**30, "total": 80 * 2**30, "capability": "9.0", "bf16": True}


@pytest.mark.parametrize(
    ("torch", "known", "text", "mend"),
    [
        ({"cuda": "12.8", "gpus": [GPU]}, [Gpu("X", "570")], "70.0 GiB of 80.0 GiB free, compute capability 9.0", ""),
        ({"cuda": None, "gpus": []}, [Gpu("X", "570")], "torch is built without CUDA, driver 570", "pytorch.org"),
        ({"cuda": "13.0", "gpu_error": "driver too old"}, [Gpu("X", "450")], "driver too old", "update it"),
        ({"cuda": None, "gpus": []}, [], "none found (torch is built without CUDA)", ""),
        ({}, [Gpu("X", "570")], "torch cannot be asked", ""),
    ],
)
def test_gpus_are_told(monkeypatch, torch, known, text, mend):
    monkeypatch.setattr(devices, "driver_gpus", lambda: known)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = list(devices.device_findings(Probed({"torch": torch} if torch else {"torch": {"error": "gone"}})))
    gpu = [finding for finding in found if finding.name.startswith("gpu")]
    assert text in gpu[0].text
    assert (mend in gpu[0].mend) if mend else not gpu[0].mend


def test_the_drivers_tool_is_read(tmp_path, monkeypatch):
    from dumbo.starting.machine import driver_gpus, find_gpu

    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.1, 143771'\necho 'NVIDIA Odd, 570.1, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert driver_gpus() == [Gpu("NVIDIA H200", "570.1", 143771), Gpu("NVIDIA Odd", "570.1", None)]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_gpu() == Gpu("NVIDIA H200", "570.1", 143771)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_gpu() is None
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert driver_gpus() == []


def test_a_broken_plugin_package_is_a_trouble(tmp_path, probed_once, monkeypatch, capsys):
    (tmp_path / "dumbo_broken.py").write_text("raise RuntimeError('half installed')\n")
    info = tmp_path / "dumbo_broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: dumbo-broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[dumbo.plugins]\nbroken_one = dumbo_broken\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["doctor"]) == 2
    said = capsys.readouterr().out
    assert "! broken" in said and "half installed" in said and "1 thing has to be mended" in said


def test_a_missing_extra_is_no_trouble(probed_once, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert rows_of(said, "plugins")["wandb"] == "needs wandb, which is not installed"
    assert "pip install" in said


def test_findings_stand_in_columns():
    found = [Section("one", [Finding("a", "fine\nmore"), Finding("long name", "bad", "do this\nor that")])]
    assert as_text([*found, Section("empty", [])]) == [
        "one",
        "  a          fine",
        "               more",
        "! long name  bad",
        "               do this",
        "               or that",
    ]
    assert troubles(found) == 1


def test_nothing_is_imported_before_it_is_needed():
    assert loaded_by("import dumbo.cli.commands.doctor", "torch", "transformers", "pydantic", "yaml") == []
    assert loaded_by("import dumbo.diagnosis.probe", "torch", "transformers") == []
