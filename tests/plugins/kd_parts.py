"""What runs with a teacher need: models with the same tokens and with others, rows, and a server that has a model."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import torch

from tests import builders
from tests.run.whole_runs import SHIPPED


def make_parts(folder: Path, student: Path) -> SimpleNamespace:
    """Folders of a student, of a teacher, of one with `other` tokens, and 24 rows."""
    tokenizer = builders.build_tokenizer()
    teacher = builders.save_tiny_model(folder / "teacher", tokenizer, hidden_size=48, seed=5)
    other = builders.save_tiny_model(folder / "other", builders.build_tokenizer(vocab_size=400))
    rows = builders.write_rows(folder / "rows.jsonl", builders.alpaca_rows(24))
    return SimpleNamespace(student=student, teacher=teacher, other=other, rows=rows)


def config_of(parts: SimpleNamespace, folder: Path, kd: dict, **changes) -> Path:
    """The file of a run of two steps on 20 of the rows, with `kd` as its section; 4 are held out."""
    held_out = {"trainer.data.val_set_size": 4, "trainer.arguments.save_strategy": "no"}
    every = {"plugins": [*SHIPPED, "kd"], "trainer.kd": kd} | held_out
    return builders.write_config(folder, parts.student, parts.rows, every | changes)


@contextmanager
def serving(model) -> Iterator[SimpleNamespace]:
    """A server at `address` that answers with what `model` says, as vLLM and SGLang do; `asked` are the requests,
    `keys` what they had to show, and `first` are answers to give before."""
    served = SimpleNamespace(asked=[], first=[], keys=[])

    class Answers(BaseHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_GET(self):  # noqa: N802
            served.keys.append(self.headers["Authorization"])
            self.answer(200, {"data": [{"id": "big"}]})

        def do_POST(self):  # noqa: N802
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.keys.append(self.headers["Authorization"])
            served.asked.append(request)
            if served.first:
                return self.answer(*served.first.pop(0))
            if self.path == "/generate":
                told = [said(model, row, request["top_logprobs_num"]) for row in request["input_ids"]]
                lists = [[None] + [[(v, t, None) for t, v in place] for place in row] for row in told]
                return self.answer(200, [{"meta_info": {"input_top_logprobs": row}} for row in lists])
            told = [said(model, row, request["prompt_logprobs"], add=row) for row in request["prompt"]]
            rows = [[None] + [{str(t): {"logprob": v} for t, v in place} for place in row] for row in told]
            choices = [{"index": number, "prompt_logprobs": row} for number, row in enumerate(rows)]
            return self.answer(200, {"choices": choices[::-1]})

        def answer(self, code, body, missing=0):
            sent = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(sent) + missing))
            self.end_headers()
            self.wfile.write(sent)

    running = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    served.address = f"http://127.0.0.1:{running.server_address[1]}"
    yield served
    running.shutdown()


def said(model, row, count, add=None):
    """(token, log-probability) of the likeliest at each place but the last; of those in `add`, too."""
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
    places = []
    for place, following in zip(logs[:-1], row[1:], strict=True):
        best = place.topk(count).indices.tolist()
        chosen = dict.fromkeys([*([following] if add else []), *best])
        places.append([(token, float(place[token])) for token in chosen])
    return places
