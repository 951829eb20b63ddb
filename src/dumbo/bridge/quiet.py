"""Keep what other libraries print out of the run's own lines."""

from __future__ import annotations


def quieten_libraries() -> None:
    """Only their errors remain: what matters in their notes and bars is an error or a line of ours."""
    from logging import ERROR, getLogger

    import huggingface_hub.utils
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for name in ("bitsandbytes", "torchao"):  # which need not be imported yet
        getLogger(name).setLevel(ERROR)
    huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
