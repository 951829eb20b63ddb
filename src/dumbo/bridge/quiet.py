"""Keep what other libraries print out of the run's own lines."""

from __future__ import annotations


def quieten_libraries() -> None:
    """Only their errors remain: what matters in their notes and bars is an error or a line of ours."""
    from logging import ERROR, getLogger

    import huggingface_hub.utils
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # They need not be imported yet; torchao makes PyTorch warn about what it is to change.
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        getLogger(name).setLevel(ERROR)
    huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
