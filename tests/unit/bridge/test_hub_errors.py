"""What is said when a download fails for a reason on this machine, or for none that is known."""

import errno
import os

import pytest
from huggingface_hub.errors import HFValidationError

from dumbo.bridge.hub_errors import Repository, causes, explain
from dumbo.errors import RunError


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "no space is left for the download of {} in"),
        (errno.EROFS, "cannot be written"),
        (errno.EACCES, "cannot be written"),
        (errno.EIO, "{} cannot be fetched: OSError: [Errno 5]"),
    ],
)
def test_a_disk_that_says_no_is_explained(kind, number, expected):
    repository = Repository(kind, "a/b")
    error = explain(OSError(number, os.strerror(number)), repository, "model.base_model")
    assert isinstance(error, RunError) and expected.format(repository) in str(error)
    assert str(error).startswith("model.base_model: ") and f"{kind} 'a/b'" in str(error)


def test_an_error_without_a_key_starts_with_what_happened():
    assert str(explain(ValueError("first\nsecond"), Repository("dataset", "a/b"))) == (
        "dataset 'a/b' cannot be fetched: ValueError: first"
    )


def test_a_name_that_the_hub_cannot_know_is_one_that_is_not_there():
    error = explain(HFValidationError("no"), Repository("dataset", "a/b--c"), near=("did you mean 'a/b'?",))
    assert str(error).startswith("there is no dataset 'a/b--c' on ") and str(error).endswith(
        "\n    did you mean 'a/b'?"
    )


def test_causes_are_listed_once_and_the_nearest_first():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__context__ = second, first
    assert list(causes(first)) == [first, second]
    assert list(causes(None)) == []
