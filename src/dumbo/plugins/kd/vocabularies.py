"""Whether teacher and student mean the same by a token id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer

from dumbo.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KEY = "trainer.kd.teacher.path"


def insist_on_one_vocabulary(path: str, student: PreTrainedTokenizerBase) -> None:
    """Raise a ConfigError unless the tokenizer of the teacher has the ids of the student's; which token pads does not
    matter."""
    try:
        folder = Path(path).expanduser()
        teacher = AutoTokenizer.from_pretrained(folder if folder.exists() else path)
    except (OSError, ValueError) as error:
        message = f"the teacher's tokenizer cannot be loaded: {str(error).splitlines()[0]}"
        raise ConfigError.at(
            _KEY, message, "distillation needs a teacher with the same tokens as the student"
        ) from error
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    padding = {teacher.pad_token, student.pad_token}
    other = [name for name, index in ours.items() if theirs.get(name) != index and name not in padding]
    more = [name for name in theirs if name not in ours and name not in padding]
    if other or more:
        name = min(other or more)
        message = f"teacher and student have different tokens: {len(other) + len(more):,} of them, such as '{name}'"
        hint = f"its id is {theirs.get(name, 'none')} for the teacher, and {ours.get(name, 'none')} for the student"
        raise ConfigError.at(_KEY, message, hint, "distillation needs a teacher with the same tokens as the student")
