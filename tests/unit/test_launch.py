"""Who a process is among those of a run, and what the first of them decides for all."""

import json
import os
import subprocess
import sys

import pytest

from dumbo.errors import ConfigError
from dumbo.launch import Launch
from tests import builders


def test_a_process_on_its_own_is_the_first_of_one():
    launch = Launch.from_environment({})
    assert (launch.rank, launch.world_size, launch.is_first) == (0, 1, True)


def test_a_launched_process_reads_its_place_from_the_environment():
    launch = Launch.from_environment({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
    assert (launch.rank, launch.world_size, launch.is_first) == (3, 4, False)


def test_a_process_on_its_own_decides_for_itself():
    assert Launch().decide(lambda: "folder") == "folder"
    with pytest.raises(ConfigError, match="no"):
        Launch().decide(refuse)


def refuse():
    raise ConfigError.at("trainer.output_dir", "no")


RANK = """
import json, sys
from dumbo.config.arguments import TrainerArguments
from dumbo.errors import ConfigError
from dumbo.launch import Launch

launch = Launch.from_environment()
launch.connect(TrainerArguments(use_cpu=True))
chosen = launch.decide(lambda: f"by {launch.rank}")

def refuse():
    raise ConfigError.at("trainer.output_dir", f"no from {launch.rank}")

try:
    launch.decide(refuse)
except ConfigError as error:
    refused = error.problems[0].message
launch.disconnect()
launch.disconnect()
print(json.dumps([launch.rank, chosen, refused]))
"""


@pytest.mark.full
def test_the_first_of_two_decides_for_both():
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env=builders.clean_environment(**port, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    answers = [json.loads(output.splitlines()[-1]) for output, _ in results]
    assert answers == [[0, "by 0", "no from 0"], [1, "by 0", "no from 0"]]
