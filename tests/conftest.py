"""What every test finds: one thread, no network, and a tiny model, tokenizer and set of rows made once per process."""

import gc
import os
from pathlib import Path

# Before anything imports torch or transformers, which read these when they are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["PYTHONUTF8"] = "1"

import pytest
from hypothesis import settings

from tests import builders

# How long an example takes is the machine's matter.
settings.register_profile("dumbo", deadline=None, max_examples=builders.examples(100))
settings.load_profile("dumbo")


@pytest.fixture(scope="module", autouse=True)
def _light_collections():
    """Every run collects garbage when it starts, and would go through all that was imported: a quarter of a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    """Libraries that count their objects at the end find all of them collected."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Prepared data of tests stays among the tests, and is shared by all of them in a process."""
    os.environ["DUMBO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer with pad, eos and a ChatML template. Do not change it: build your own."""
    return builders.build_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer) -> Path:
    """A folder with a random two-layer Llama and the tokenizer of the fixture `tokenizer`."""
    return builders.save_tiny_model(tmp_path_factory.mktemp("model") / "tiny-llama", tokenizer)


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory) -> Path:
    """Twelve rows in Alpaca's shape, as JSON lines."""
    return builders.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture
def config_file(tmp_path, model_folder, rows_file) -> Path:
    """A run of two optimizer steps on `model_folder` and `rows_file`, in `tmp_path`."""
    return builders.write_config(tmp_path, model_folder, rows_file)
