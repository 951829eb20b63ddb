"""The transformers plugin downloads from a hub, works from its cache, and explains every refusal of a hub."""

import json
import os
import subprocess
import sys

import pytest

from tests import builders
from tests.hub import commit_of, serve

TOKEN = "hf_aTokenThatNobodyMaySee"
FETCH = """
import json, os, sys
from dumbo.errors import DumboError
from dumbo.plugins.transformers.hub import fetch

answers = []
for name, revision, token in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        source = fetch(name, revision, "model.base_model", weights=True, trusted=False)
        answers.append(sorted(file.name for file in source.folder.iterdir()))
    except DumboError as error:
        answers.append(f"{type(error).__name__}: {error}")
print(json.dumps(answers))
"""

LOAD = """
import json, sys
from tests.plugins.transformers_runs import new_plugin, run_config

plugin = new_plugin()
plugin.config = run_config(base_model=sys.argv[1])
plugin.check(plugin.config)
model = plugin.load_model(plugin.config)
tokenizer = plugin.load_tokenizer(plugin.config, model=model)
print(json.dumps([model.name_or_path, len(tokenizer), model.lm_head.weight.sum().item()]))
"""


def run(code, *words, home, endpoint, **environment):
    """Run `code` in a process of its own, as huggingface_hub reads its settings when it is imported."""
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    settings["PYTHONPATH"] = os.pathsep.join([str(builders.ROOT / "src"), str(builders.ROOT)])
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith(("_proxy", "hf_token"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=kept | settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def fetch(*cases, home, endpoint, **environment):
    return run(
        FETCH, json.dumps([(*case, None, None)[:3] for case in cases]), home=home, endpoint=endpoint, **environment
    )


@pytest.mark.full
def test_a_model_is_downloaded_once_and_then_needs_no_hub(model_folder, tmp_path):
    home = tmp_path / "home"
    with serve(models={"acme/tiny": model_folder}) as hub:
        name, size, total = run(LOAD, "acme/tiny", home=home, endpoint=hub.address)
        address, asked = hub.address, list(hub.requests)
    assert name == "acme/tiny" and size == len(builders.build_tokenizer()) and total != 0
    # Transformers asks for nothing that the download did not bring: no adapter, no pickle, no conversion.
    assert {path.rpartition("/")[2] for path in asked if "/resolve/" in path} == {
        file.name for file in model_folder.iterdir()
    }
    assert {path.split("?")[0] for path in asked if "/resolve/" not in path} == {
        "/api/models/acme/tiny/revision/main",
        f"/api/models/acme/tiny/tree/{commit_of('acme/tiny')}",
    }
    (unreachable,) = fetch(["acme/tiny"], home=home, endpoint=address)
    (offline,) = fetch(["acme/tiny"], home=home, endpoint=address, HF_HUB_OFFLINE="1")
    assert unreachable == offline == sorted(file.name for file in model_folder.iterdir())


def test_shards_are_fetched_by_the_index_and_pickles_are_not(model_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(folder, max_shard_size="60KB")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "model.gguf"):
        (folder / name).write_bytes(b"large")
    with serve(models={"acme/sharded": folder}) as hub:
        (names,) = fetch(["acme/sharded", "main"], home=tmp_path / "home", endpoint=hub.address)
    assert names == sorted(
        file.name for file in folder.iterdir() if file.name.startswith("model-") or file.suffix == ".json"
    )
    assert (tmp_path / "home" / "hub" / "models--acme--sharded" / "snapshots" / commit_of("acme/sharded")).is_dir()


def test_every_refusal_is_a_line_and_a_way_out(model_folder, tmp_path):
    cases = [
        ["refused/gated", None, TOKEN],
        ["refused/gated"],
        ["refused/gated-without-login"],
        ["acme/nothing"],
        ["acme/nothing", None, TOKEN],
        ["refused/private"],
        ["refused/private", None, TOKEN],
        ["acme/tiny", "v9"],
        ["refused/disabled"],
        ["refused/forbidden", None, TOKEN],
        ["refused/forbidden"],
        ["refused/bad-token", None, TOKEN],
        ["refused/locked"],
        ["refused/busy"],
        ["refused/broken"],
    ]
    with serve(models={"acme/tiny": model_folder}) as hub:
        answers = fetch(*cases, home=tmp_path / "home", endpoint=hub.address)
        at = hub.address
    first = [answer.splitlines()[0].removeprefix("RunError: model.base_model: ") for answer in answers]
    assert first == [
        "model 'refused/gated' is gated, and your token has no access to it",
        "model 'refused/gated' is gated, and no token is set",
        "model 'refused/gated-without-login' is gated, and no token is set",
        f"there is no model 'acme/nothing' on {at}, or it is private",
        f"there is no model 'acme/nothing' on {at}, or it is private",
        f"there is no model 'refused/private' on {at}, or it is private",
        f"there is no model 'refused/private' on {at}, or it is private",
        "model 'acme/tiny' has no revision 'v9'",
        "model 'refused/disabled' was disabled by its owner or by the hub",
        f"{at} refuses your token access to model 'refused/forbidden' (HTTP 403)",
        f"{at} refuses access to model 'refused/forbidden' (HTTP 403), and no token is set",
        f"{at} does not accept your token for model 'refused/bad-token' (HTTP 401)",
        f"{at} refuses access to model 'refused/locked' (HTTP 401), and no token is set",
        f"{at} answers no more requests for now (model 'refused/busy', HTTP 429)",
        f"{at} cannot give model 'refused/broken' (HTTP 500)",
    ]
    assert f"accept its conditions at {at}/refused/gated" in answers[0] and "hf auth login" not in answers[0]
    assert "hf auth login" in answers[1] and "HF_TOKEN" in answers[2] and "hf auth login" in answers[5]
    assert all("your token may not be allowed to see it" in answers[number] for number in (4, 6))
    assert all("hf auth login" in answers[number] for number in (3, 10, 12, 13))
    assert all(line.startswith("    ") for answer in answers for line in answer.splitlines()[1:])


def test_a_folder_of_nearly_that_name_is_offered_for_a_model_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "models" / "tiny-2").mkdir(parents=True)
    (tmp_path / "sub" / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with serve() as hub:
        (answer,) = fetch(["models/tiny"], home=tmp_path / "home", endpoint=hub.address)
    assert answer.splitlines()[3:] == [
        f"    there is no file or folder 'models/tiny' in {tmp_path} either",
        "    did you mean 'models/tiny-2'?",
        f"    relative paths start at {tmp_path}; there is '{tmp_path}/sub/models/tiny'",
    ]


def test_no_network_and_offline_mode_are_told_apart(tmp_path):
    with serve() as hub:
        closed = hub.address
    with_password = closed.replace("http://", "http://me:secret@")
    (refused,) = fetch(["acme/tiny"], home=tmp_path, endpoint=with_password)
    assert refused.startswith(
        f"RunError: model.base_model: {closed} cannot be reached (Connection refused), "
        "and model 'acme/tiny' is not (wholly)"
    )
    assert "HTTPS_PROXY" in refused and "secret" not in refused
    (offline,) = fetch(["acme/tiny"], home=tmp_path, endpoint=closed, HF_HUB_OFFLINE="1")
    assert "is not (wholly) in the cache" in offline and "unset HF_HUB_OFFLINE" in offline
