"""Asks a server for a teacher's likeliest tokens, by token ids, as vLLM and SGLang answer."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dumbo.errors import ConfigError, RunError
from dumbo.plugins.kd.options import ServerOptions
from dumbo.redact import redact_text

_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Answers after which it is worth asking again."""
_KEY = "trainer.kd.server"


class TeacherServer:
    """A client of one server."""

    def __init__(self, options: ServerOptions, say: Callable[[str], None]) -> None:
        """Ask the server for its models.

        Raises:
            ConfigError: it does not have the one that is asked for, or the key's variable is not set.
            RunError: it does not answer.
        """
        self._options, self._say = options, say
        self._url = options.url.rstrip("/").removesuffix("/v1")
        self._shown = redact_text(self._url)
        self._headers = {"Content-Type": "application/json"}
        if options.api_key_env is not None:
            key = os.environ.get(options.api_key_env)
            if not key:
                raise ConfigError.at(f"{_KEY}.api_key_env", f"there is no variable {options.api_key_env}")
            self._headers["Authorization"] = f"Bearer {key}"
        self._model = self._find_model() if options.kind == "vllm" else ""

    def top_k(self, rows: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        """Of each row of n token ids: ids, int64 [n - 1, K], and log-probabilities, float32 [n - 1, K], -inf where
        there is none; row i of them predicts token i + 1.

        Raises:
            RunError: the server does not answer, or answers something else.
        """
        at_once, found = self._options.rows_per_request, []
        for first in range(0, len(rows), at_once):
            asked = [list(row) for row in rows[first : first + at_once]]
            answers = self._ask_vllm(asked) if self._options.kind == "vllm" else self._ask_sglang(asked)
            if len(answers) != len(asked):
                raise self._wrong(f"{len(answers)} answers to {len(asked)} rows")
            found += [self._arrays(answer, len(row)) for answer, row in zip(answers, asked, strict=True)]
        return found

    def _ask_vllm(self, rows: list[list[int]]) -> list[list[dict[int, float]]]:
        """Of each row, what was likely at the places of its tokens from the second on: token id -> log-probability."""
        # Some servers answer to no request without a new token.
        asked = {"model": self._model, "prompt": rows, "max_tokens": 1, "temperature": 1.0, "add_special_tokens": False}
        answer = self._send("/v1/completions", {**asked, "prompt_logprobs": self._options.top_k})
        try:
            choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
            return [[_vllm_place(place) for place in choice["prompt_logprobs"][1:]] for choice in choices]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise self._wrong("an answer without prompt_logprobs, which vLLM has") from error

    def _ask_sglang(self, rows: list[list[int]]) -> list[list[dict[int, float]]]:
        asked = {
            "input_ids": rows,
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": self._options.top_k,
        }
        answer = self._send("/generate", asked)
        try:
            told = [one["meta_info"]["input_top_logprobs"] for one in answer]
            return [[{int(token): float(value) for value, token, *_ in place} for place in row[1:]] for row in told]
        except (KeyError, TypeError, ValueError) as error:
            raise self._wrong("an answer without input_top_logprobs, which SGLang has") from error

    def _arrays(self, places: Sequence[Mapping[int, float]], length: int) -> tuple[Tensor, Tensor]:
        if len(places) != length - 1:
            raise self._wrong(f"log-probabilities at {len(places) + 1} places for a row of {length} tokens")
        count = self._options.top_k
        ids, logs = torch.zeros(length - 1, count, dtype=torch.int64), torch.full((length - 1, count), -torch.inf)
        for row, place in enumerate(places):
            # vLLM adds the row's own token to the likeliest where it is none of them.
            likeliest = sorted(place.items(), key=lambda pair: -pair[1])[:count]
            if not likeliest or not all(value <= 1e-3 for _, value in likeliest):
                raise self._wrong("log-probabilities that are none")
            for column, (token, value) in enumerate(likeliest):
                ids[row, column], logs[row, column] = token, value
        return ids, logs

    def _find_model(self) -> str:
        answer = self._send("/v1/models", None)
        try:
            names = [str(model["id"]) for model in answer["data"]]
        except (KeyError, TypeError) as error:
            raise self._wrong("no list of models") from error
        wanted = self._options.model
        if wanted is None and names:
            return names[0]
        if wanted is None or wanted not in names:
            what = f"the server at {self._shown} has {', '.join(names) or 'no model'}"
            raise ConfigError.at(f"{_KEY}.model", f"there is no model '{wanted}'" if wanted else what, what)
        return wanted

    def _send(self, path: str, asked: Mapping[str, Any] | None) -> Any:
        """The answer to a request, asked again while the server is busy or not there."""
        body = None if asked is None else json.dumps(asked).encode()
        for attempt in range(self._options.retries + 1):
            request = urllib.request.Request(f"{self._url}{path}", data=body, headers=self._headers)  # noqa: S310
            try:
                with urllib.request.urlopen(request, timeout=self._options.timeout) as answer:  # noqa: S310
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace").strip()
                reason = f"it answers {error.code} to {path}: {said[:300] or error.reason}"
                if error.code not in _BUSY:
                    raise self._wrong(reason) from error
            except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are of the first
                reason = f"{getattr(error, 'reason', None) or error}"
            except ValueError as error:
                raise self._wrong("an answer that is no JSON") from error
            if attempt < self._options.retries:
                if not attempt:
                    self._say(f"the teacher's server {self._shown}: {reason}; asked again")
                time.sleep(self._options.retry_wait)
        tried = f"{attempt + 1} times" if attempt else "once"
        raise RunError(f"the teacher's server {self._shown} was asked {tried}\n    {reason}")

    def _wrong(self, what: str) -> RunError:
        return RunError(f"the teacher's server {self._shown} cannot be used\n    {what}")


def _vllm_place(place: Mapping[str, Any]) -> dict[int, float]:
    return {int(token): float(entry["logprob"]) for token, entry in place.items()}
