"""The options of distillation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dumbo.config.schema import FormatOptions
from dumbo.config.section import Section

TextOption = Annotated[str, Field(min_length=1)]
Weight = Annotated[float, Field(ge=0, le=1)]


class TeacherOptions(Section):
    """A teacher in this process."""

    path: TextOption
    """Folder or hub name of the teacher, whose tokens must be the student's."""
    dtype: Literal["model", "float32", "bfloat16", "float16"] = "model"
    """The type of its weights; `model`: as those of the student (`model.dtype`)."""
    device: str | None = None
    """Where it computes, such as `cuda:1`; by default where the student does."""


class ServerOptions(Section):
    """A teacher behind HTTP, which is given token ids and tells the log-probabilities of its likeliest tokens."""

    url: TextOption
    """Address of the server, such as `http://localhost:8000`."""
    kind: Literal["vllm", "sglang"] = "vllm"
    """What it speaks: `vllm` the completions of OpenAI with `prompt_logprobs`, `sglang` its own `/generate`."""
    model: str | None = None
    """The model to ask; by default the first one that the server lists."""
    top_k: Annotated[int, Field(ge=1)] = 20
    """How many tokens it tells at each place; vLLM allows 20 unless it is started with a larger `--max-logprobs`."""
    rows_per_request: Annotated[int, Field(ge=1)] = 8
    """Rows that are asked about at once."""
    timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds to wait for an answer."""
    retries: Annotated[int, Field(ge=0)] = 10
    """How often a request is made again that found no server, a busy one, or one with a fault."""
    retry_wait: Annotated[float, Field(ge=0)] = 5.0
    """Seconds before it is made again."""
    api_key_env: str | None = None
    """Name of the environment variable with the key that the server wants."""


class RecordedOptions(Section):
    """What a teacher said of the training set, in files that `dumbo teacher-logprobs CONFIG` writes."""

    folder: TextOption
    """The folder of the files."""
    top_k: Annotated[int, Field(ge=1)] = 32
    """Log-probabilities to record at each place: those of the teacher's likeliest tokens."""
    dtype: Literal["float16", "float32"] = "float16"
    """The type of the numbers in the files: 6 or 8 bytes for each, with the token's id."""


class KdOptions(Section):
    """Distillation: alpha * T^2 * divergence(teacher, student) + ce_alpha * cross entropy, of every trained token. With
    none of `teacher`, `server` and `recorded`, the rows bring what the teacher said (`data_format: kd_messages`)."""

    teacher: TeacherOptions | None = None
    """A model in this process, whose whole distribution is learned."""
    server: ServerOptions | None = None
    """A model behind HTTP, of which the likeliest tokens are learned."""
    recorded: RecordedOptions | None = None
    """Train on what was recorded before; `teacher` or `server` then says who is recorded."""
    alpha: Weight = 0.5
    """Weight of the divergence, from 0 to 1."""
    ce_alpha: Weight = 0.5
    """Weight of the cross entropy with the rows' own tokens, from 0 to 1."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """T, by which the logits of both are divided; a larger one shows more of what the teacher finds unlikely."""
    beta: Weight = 0.0
    """0: KL(teacher || student), forward; 1: KL(student || teacher), reverse; between them the generalised
    Jensen-Shannon divergence of arXiv 2306.13649."""
    outside: Literal["zero", "bucket", "ignored"] = "zero"
    """Of tokens that are not among the teacher's top_k: `zero`, they have no probability by the teacher; `bucket`, all
    of them together count as one more; `ignored`, they are left out on both sides."""
    tile_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens whose logits are there at the same time. By default what takes 32 MiB on a CPU and 512 MiB on a GPU."""


class TaughtOptions(FormatOptions):
    """What rows with a teacher's log-probabilities have in common."""

    field_logprobs: TextOption = "logprobs"
    """Column with a list for each of the last tokens of the row: log-probabilities, or entries with `token`
    (`token_id:123`) and `logprob`. The list of a token has the teacher's likeliest tokens at its place."""
    field_token_ids: TextOption = "target_token_ids"
    """Column with the token ids of the log-probabilities, where these are plain numbers."""
    top_k: Annotated[int, Field(ge=1)]
    """How many are kept at each place, the likeliest; places that have fewer are filled with -inf."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """The temperature at which the teacher had these probabilities."""


class TaughtMessages(TaughtOptions):
    """Rows with messages, and what a teacher said of their last tokens."""

    field_messages: TextOption = "messages"
    """Column with the messages, each with `role` and `content`."""


class TaughtTokens(TaughtOptions):
    """Rows of token ids, and what a teacher said of the last of them."""

    field_input_ids: TextOption = "input_ids"
    """Column with the token ids."""
    field_labels: TextOption = "labels"
    """Column with the labels, -100 where a token is not trained; rows without it are trained as a whole."""
