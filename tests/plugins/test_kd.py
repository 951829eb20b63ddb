"""Distillation: the loss, its teachers in the process, beside the rows and behind HTTP; what is refused."""

import copy
import json
import math
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dumbo.cli.main import main
from dumbo.data.collate import PackedCollator, PaddingCollator
from dumbo.data.columns import Columns
from dumbo.data.dataset import TokenDataset
from dumbo.data.records import Example, Origin, Row
from dumbo.errors import ConfigError, DataError, RunError
from dumbo.losses.token import count_supervised
from dumbo.plugins.kd.loss import KdLoss
from dumbo.plugins.kd.options import KdOptions, ServerOptions, TaughtMessages, TaughtTokens, TeacherOptions
from dumbo.plugins.kd.recording import IDS, LOGPROBS, column_types
from dumbo.plugins.kd.rows import arrays_of, taught_format
from dumbo.plugins.kd.server import TeacherServer
from dumbo.plugins.kd.teachers import LiveTeacher, RowTeacher, ServerTeacher
from tests import builders
from tests.faults.stopping import assert_same_run, checkpoints_in, stop_by, write_stoppable
from tests.faults.test_out_of_memory import TIGHT
from tests.numerics import training
from tests.numerics.test_without_logits import Shapes
from tests.plugins.kd_parts import config_of, make_parts, serving
from tests.run.whole_runs import SHIPPED, losses_of, metrics_of, printed_by, run_here

ORIGIN = Origin("rows.jsonl", 1)
VOCABULARY = 64


@pytest.fixture(scope="module")
def student():
    return builders.build_tiny_model(VOCABULARY, seed=1)


@pytest.fixture(scope="module")
def teacher():
    return builders.build_tiny_model(VOCABULARY, seed=2, hidden_size=48)


@pytest.fixture(scope="module")
def rows():
    numbers = np.random.default_rng(0)
    examples = []
    for length in (9, 5, 7, 2):
        ids = numbers.integers(0, VOCABULARY, length).tolist()
        examples.append(Example(ids, [-100] * (length // 3) + ids[length // 3 :], ORIGIN))
    return TokenDataset.from_examples(examples)


def batch_of(rows, packed=False):
    items = [rows[row] for row in range(len(rows))]
    return PackedCollator()(items) if packed else PaddingCollator(0, rows.column_types)(items)


def beside(rows, ids, logs):
    """`rows` with what a teacher said: [all tokens, K] both."""
    types = column_types(ids.shape[1], "float32")
    values = {IDS: np.asarray(ids, np.int32), LOGPROBS: np.asarray(logs, np.float32)}
    return rows.with_columns(Columns.of_rows(types, values, rows.length))


def taught_by(rows, teacher, count, temperature=1.0):
    """`rows` with the `count` likeliest tokens of a model beside them."""
    live = LiveTeacher(teacher, TeacherOptions(path="t"), KdOptions(temperature=temperature), VOCABULARY)
    ids, logs = np.zeros((rows.num_tokens, count)), np.full((rows.num_tokens, count), -np.inf)
    at = 0
    for row in range(len(rows)):
        length = int(rows.length[row])
        kept = torch.arange(length)[None] < length - 1
        found = live.top_k({"input_ids": torch.tensor(rows[row]["input_ids"][None])}, kept, count)
        ids[at : at + length - 1], logs[at : at + length - 1] = (part.numpy() for part in found)
        at += length
    return beside(rows, ids, logs)


def live(teacher, num_tokens=VOCABULARY, **options):
    kd = KdOptions(teacher=TeacherOptions(path="t"), **options)
    return KdLoss(kd, LiveTeacher(teacher, kd.teacher, kd, num_tokens), print)


def from_rows(power=1.0, **options):
    kd = KdOptions(**options)
    return KdLoss(kd, RowTeacher(kd, power, VOCABULARY), print)


def measured(loss, student, batch):
    """The loss as a mean, and the gradients of all weights."""
    student.zero_grad()
    found = loss(student, batch, count_supervised(batch["labels"]))
    found.backward()
    return float(found.detach()), torch.cat([weight.grad.flatten() for weight in student.parameters()])


def assert_alike(one, other, tolerance=2e-5):
    assert one[0] == pytest.approx(other[0], abs=tolerance)
    assert torch.allclose(one[1], other[1], atol=tolerance)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(student, rows):
    for temperature, beta in ((1.0, 0.0), (2.0, 0.5), (2.0, 1.0)):
        loss = live(student, alpha=1.0, ce_alpha=0.0, temperature=temperature, beta=beta)
        student.requires_grad_(True)  # a teacher's weights are frozen, and these are the student's, too
        found, gradient = measured(loss, student, batch_of(rows))
        assert abs(found) < 1e-6 and gradient.abs().max() < 1e-6


@pytest.mark.parametrize("packed", [False, True])
def test_a_teacher_that_knows_the_next_token_is_the_cross_entropy(student, rows, packed):
    """A row that were one off, or a document that saw the next one, would be another loss."""
    following = np.concatenate([np.append(rows[row]["input_ids"][1:], 0) for row in range(len(rows))])
    taught = beside(rows, following[:, None], np.zeros((rows.num_tokens, 1)))
    plain = from_rows(alpha=0.0, ce_alpha=1.0)
    kd = from_rows(alpha=1.0, ce_alpha=0.0)
    assert_alike(measured(kd, student, batch_of(taught, packed)), measured(plain, student, batch_of(taught, packed)))


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_tokens_beside_the_rows_are_a_teacher_in_the_process(student, teacher, rows, beta, temperature):
    taught = taught_by(rows, teacher, VOCABULARY, temperature)
    options = {"temperature": temperature, "beta": beta}
    whole = measured(live(teacher, **options), student, batch_of(rows))
    for outside in ("bucket", "ignored"):
        assert_alike(measured(from_rows(**options, outside=outside), student, batch_of(taught)), whole)
    raw = taught_by(rows, teacher, VOCABULARY)
    again = from_rows(1 / temperature, **options, outside="ignored")
    assert_alike(measured(again, student, batch_of(raw)), whole)


def test_the_gradient_at_a_temperature_is_that_of_the_value(student, teacher, rows):
    """T^2 belongs to both: a step along the gradient changes the loss by as much as it says."""
    loss, batch = live(teacher, alpha=1.0, ce_alpha=0.0, temperature=4.0), batch_of(rows)
    found, gradient = measured(loss, student, batch)
    length, step = float(gradient.norm()), 1e-2
    before = [weight.detach().clone() for weight in student.parameters()]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(
                torch.nn.utils.parameters_to_vector(before) + sign * step * gradient / length, student.parameters()
            )
        values.append(measured(loss, student, batch)[0])
    with torch.no_grad():
        for weight, kept in zip(student.parameters(), before, strict=True):
            weight.copy_(kept)
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(length, rel=0.02)


@pytest.mark.parametrize("tile_tokens", [1, 3])
def test_it_does_not_matter_how_rows_lie_and_how_many_tokens_a_tile_has(student, teacher, rows, tile_tokens):
    whole = measured(live(teacher, temperature=2.0, beta=0.5), student, batch_of(rows))
    tiled = live(teacher, temperature=2.0, beta=0.5, tile_tokens=tile_tokens)
    assert_alike(measured(tiled, student, batch_of(rows)), whole)
    assert_alike(measured(tiled, student, batch_of(rows, packed=True)), whole)
    kd, ce, tokens = tiled.counts.tolist()
    assert tokens == 2 * rows.num_supervised and (kd + ce) / 2 / tokens == pytest.approx(whole[0], abs=1e-5)


def test_a_head_that_is_not_one_layer_is_learned_with_its_logits(teacher, rows):
    gemma = builders.build_tiny_model(VOCABULARY, seed=1)
    expected = measured(live(teacher), gemma, batch_of(rows))
    head = gemma.lm_head.weight
    gemma.lm_head = torch.nn.Sequential(torch.nn.Linear(32, VOCABULARY, bias=False))
    gemma.lm_head[0].weight = head
    assert_alike(measured(live(teacher), gemma, batch_of(rows)), expected)


def test_without_gradients_it_is_the_cross_entropy(student, teacher, rows):
    batch = batch_of(rows)
    with torch.no_grad():
        found = float(live(teacher)(student, batch, count_supervised(batch["labels"])))
    assert found == pytest.approx(
        measured(
            from_rows(alpha=0.0, ce_alpha=1.0),
            student,
            batch_of(beside(rows, np.zeros((rows.num_tokens, 1)), np.zeros((rows.num_tokens, 1)))),
        )[0],
        abs=1e-5,
    )


@pytest.mark.parametrize("teaching", ["live", "rows"])
def test_no_logits_are_held_of_the_student_or_of_a_teacher_in_the_process(teaching):
    """Of each there are those of a tile, forward and backward; heads that are not one layer show what is measured."""
    size, tile = 80, 3  # the layers have no 80
    pupil, master = builders.build_tiny_model(size, seed=1), builders.build_tiny_model(size, seed=2, hidden_size=48)
    ids = torch.randint(0, VOCABULARY, (4, 10), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    if teaching == "rows":
        batch |= {IDS: torch.stack([ids, ids.flip(0)], -1).int(), LOGPROBS: torch.full((4, 10, 2), -1.0)}

    def largest(student, teacher):
        options = {"tile_tokens": tile, "temperature": 2.0, "beta": 0.5}
        loss = from_rows(**options) if teaching == "rows" else live(teacher, size, **options)
        with Shapes() as shapes:
            loss(student, batch, torch.tensor(36)).backward()
        return max(math.prod(shape) for shape, _ in shapes.made if shape[-1:] == (size,))

    def held(model):
        model = copy.deepcopy(model)
        model.lm_head = torch.nn.Sequential(model.lm_head)
        return model

    assert largest(pupil, master) == tile * size
    assert largest(held(pupil), master) >= 36 * size
    if teaching == "live":
        assert largest(pupil, held(master)) >= 36 * size


def test_a_teacher_computes_in_the_types_of_the_student(tmp_path):
    """In the mixed precision of the run, which is that of the model's forward pass alone; packed, too."""
    pupil, master = training.tiny_llama(), builders.build_tiny_model(training.VOCABULARY, seed=2, hidden_size=48)
    seen = set()
    for name, model in (("student", pupil), ("teacher", master)):
        layer = model.get_decoder().layers[0].mlp.up_proj
        layer.register_forward_hook(lambda module, inputs, output, name=name: seen.add((name, output.dtype)))
    kd = KdOptions(teacher=TeacherOptions(path="t"))
    rows = training.random_rows(8)
    for is_mixed, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        seen.clear()
        loss = KdLoss(kd, LiveTeacher(master, kd.teacher, kd, training.VOCABULARY), print)
        arguments = {"batch_size": 4, "physical_batch_size": 4, "max_steps": 1, "bf16": is_mixed}
        training.train(tmp_path / str(dtype), pupil, rows, None, loss, **arguments)
        assert seen == {("student", dtype), ("teacher", dtype)}
        assert all(weight.dtype == torch.float32 for weight in master.parameters())


def test_a_packed_teacher_is_looked_at_in_the_types_that_it_computes_in(student, teacher, rows, monkeypatch):
    asked = []
    prepare = "dumbo.plugins.kd.teachers.prepare_for_packing"
    monkeypatch.setattr(prepare, lambda model, autocast: asked.append(autocast))
    for autocast in (nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)):
        loss = live(copy.deepcopy(teacher))
        loss.autocast = autocast
        measured(loss, student, batch_of(rows, packed=True))
    assert asked == [None, torch.bfloat16]


@pytest.mark.gpu
def test_a_teacher_may_be_elsewhere_than_its_student(student, teacher, rows):
    expected = measured(live(teacher), student, batch_of(rows))
    kd = KdOptions(teacher=TeacherOptions(path="t", device="cuda:0"))
    there = LiveTeacher(copy.deepcopy(teacher), kd.teacher, kd, VOCABULARY)
    assert_alike(measured(KdLoss(kd, there, print), student, batch_of(rows)), expected, 1e-4)
    assert {weight.device.type for weight in there.model.parameters()} == {"cuda"}


@pytest.mark.parametrize("device", ["cuda:99", "the other one"])
def test_a_device_that_is_not_there_is_told(teacher, device):
    kd = KdOptions(teacher=TeacherOptions(path="t", device=device))
    with pytest.raises(ConfigError, match=f"there is no device '{device}'"):
        LiveTeacher(teacher, kd.teacher, kd, VOCABULARY)


def test_vocabularies_that_are_filled_up_differently_are_compared_where_both_have_tokens(student, teacher, rows):
    larger = builders.build_tiny_model(VOCABULARY, seed=2, hidden_size=48)
    larger.resize_token_embeddings(VOCABULARY + 8)
    assert_alike(measured(live(larger), student, batch_of(rows)), measured(live(teacher), student, batch_of(rows)))


def test_a_token_that_nobody_knows_is_told(student, rows):
    taught = beside(rows, np.full((rows.num_tokens, 1), VOCABULARY), np.zeros((rows.num_tokens, 1)))
    with pytest.raises(RunError, match="names the token id 64"):
        measured(from_rows(), student, batch_of(taught))
    with pytest.raises(RunError, match="left it out"):
        measured(from_rows(), student, batch_of(rows))


# Rows that bring their own.

V1 = [
    [{"token": "token_id:5", "logprob": -0.1}, {"token": "token_id:6", "logprob": -3}],
    [{"token": "token_id:7", "logprob": -0.5}],
]


def columns_of(row, options, ids):
    columns = taught_format(options)(Row(row, ORIGIN)).columns(ids, ids)
    return columns[IDS].values.tolist(), columns[LOGPROBS].values.tolist()


def test_lists_of_both_kinds_stand_before_the_tokens_that_they_predict():
    inf = float("inf")
    options = TaughtTokens(type="kd_tokens", top_k=2)
    ids = [1, 2, 3, 4]
    ours = ([[0, 0], [5, 6], [7, 0], [0, 0]], [[-inf, -inf], pytest.approx([-0.1, -3]), [-0.5, -inf], [-inf, -inf]])
    assert columns_of({"input_ids": ids, "logprobs": V1}, options, ids) == ours
    v2 = {"input_ids": ids, "logprobs": [[-0.1, -3.0], [-0.5]], "target_token_ids": [[5, 6], [7]]}
    assert columns_of(v2, options, ids) == ours
    padded = v2 | {"logprobs": [[-3.0, -0.1], [-inf, -0.5]], "target_token_ids": [[6, 5], [0, 7]]}
    assert columns_of(padded, options, ids) == ours


def test_of_a_longer_list_the_last_are_taken_and_the_first_token_is_predicted_by_none():
    places = [[(number, -1.0)] for number in range(6)]
    found = arrays_of(places, 4, 1, temperature=2.0)
    assert found[IDS].values[:, 0].tolist() == [3, 4, 5, 0]
    assert found[LOGPROBS].values[:, 0].tolist() == [-2, -2, -2, -float("inf")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"logprobs": [[0.5]], "target_token_ids": [[1]]}, "0.5 is no log-probability"),
        ({"logprobs": [[-0.5]], "target_token_ids": [[1, 2]]}, "not as many log-probabilities"),
        ({"logprobs": [[-0.5]]}, "does not have as many lists of ids"),
        ({"logprobs": [[{"token": "the", "logprob": -1}]]}, "no token such as 'token_id:123'"),
        ({"logprobs": "no"}, "no list with a list"),
        ({"messages": "no", "logprobs": []}, "no messages in 'messages'"),
    ],
)
def test_rows_that_cannot_be_used_are_told(row, message):
    options = TaughtMessages(type="kd_messages", top_k=2)
    with pytest.raises(DataError, match=message):
        taught_format(options)(Row({"messages": [{"role": "user", "content": "Hi"}], **row}, ORIGIN))


# A server: a model behind HTTP, which answers as vLLM and SGLang do.


@pytest.fixture
def server(teacher):
    with serving(teacher) as served:
        yield served


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_server_says_what_the_same_model_says_in_the_process(student, teacher, rows, server, kind, packed):
    address, asked = server.address, server.asked
    options = ServerOptions(url=f"{address}/v1", kind=kind, top_k=5, rows_per_request=3)
    kd = KdOptions(server=options, temperature=2.0)
    loss = KdLoss(kd, ServerTeacher(TeacherServer(options, print), kd, VOCABULARY), print)
    taught = taught_by(rows, teacher, 5)
    expected = measured(from_rows(0.5, temperature=2.0), student, batch_of(taught, packed))
    assert_alike(measured(loss, student, batch_of(rows, packed)), expected)
    assert [len(request.get("prompt", request.get("input_ids"))) for request in asked] == [3, 1]


def test_a_busy_server_is_asked_again_and_a_wrong_answer_is_told(server):
    address, asked, first = server.address, server.asked, server.first
    said = []
    options = ServerOptions(url=address, top_k=2, retries=2, retry_wait=0.01, timeout=20)
    client = TeacherServer(options, said.append)
    first += [(503, {"error": "loading"}), (500, {})]
    assert client.top_k([[1, 2, 3]])[0][0].shape == (2, 2) and len(asked) == 3
    assert len(said) == 1 and "503" in said[0]
    first += [(503, {})] * 3
    with pytest.raises(RunError, match="was asked 3 times"):
        client.top_k([[1, 2]])
    first.append((200, {}, 100))  # cut off
    assert client.top_k([[1, 2, 3]])[0][0].shape == (2, 2)
    answers = [(400, {"message": "too many logprobs"}), (200, {"choices": [{"index": 0}]}), (200, {"choices": []})]
    for answer, message in zip(
        answers, ("too many logprobs", "without prompt_logprobs", "0 answers to 1"), strict=True
    ):
        first.append(answer)
        with pytest.raises(RunError, match=message):
            client.top_k([[1, 2]])
    with pytest.raises(RunError, match="log-probabilities at 2 places for a row of 3 tokens"):
        first.append((200, {"choices": [{"index": 0, "prompt_logprobs": [None, {"1": {"logprob": -1}}]}]}))
        client.top_k([[1, 2, 3]])


def test_a_server_without_the_model_or_without_anybody_is_told(server):
    with pytest.raises(Exception, match="there is no model 'small'"):
        TeacherServer(ServerOptions(url=server.address, model="small"), print)
    with pytest.raises(RunError, match="was asked once"):
        TeacherServer(ServerOptions(url="http://127.0.0.1:9", retries=0), print)
    with pytest.raises(Exception, match="there is no variable NO_SUCH_KEY"):
        TeacherServer(ServerOptions(url=server.address, api_key_env="NO_SUCH_KEY"), print)


def test_the_key_is_sent_with_every_request_and_without_one_none_is(server, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "open sesame")
    for number, name in enumerate(("TEACHER_KEY", None)):
        client = TeacherServer(ServerOptions(url=server.address, top_k=2, api_key_env=name), print)
        client.top_k([[1, 2, 3]])
        sent = "Bearer open sesame" if name else None
        assert server.keys[2 * number :] == [sent, sent], "for the list of models, and for the row"


# Whole runs.


@pytest.fixture(scope="module")
def parts(tmp_path_factory, model_folder):
    return make_parts(tmp_path_factory.mktemp("kd"), model_folder)


def test_a_run_with_a_teacher_is_the_same_packed_and_begins_so_with_peft(parts, tmp_path):
    """Every step has all rows, whichever way they lie: the numbers of both runs are the same, step after step. An
    adapter begins as nothing."""
    # With opinions, so that a document that saw the one before it would show.
    teacher = builders.save_tiny_model(tmp_path / "teacher", builders.build_tokenizer(), initializer_range=0.5)
    kd = {"teacher": {"path": str(teacher), "dtype": "float32"}, "temperature": 2.0, "alpha": 0.75, "ce_alpha": 0.25}
    descent = {"trainer.arguments.optim": "sgd", "trainer.arguments.learning_rate": 0.3}
    plain = {"trainer.arguments.batch_size": 20, "trainer.arguments.physical_batch_size": 4, **descent}
    lora = {"plugins": [*SHIPPED, "kd", "peft"], "model.peft": {"rank": 4}}
    packing = {
        "trainer.data.packing": True,
        "trainer.data.sequence_length": 300,  # two rows
        "trainer.arguments.batch_size": 10,
        "trainer.arguments.physical_batch_size": 2,
    }
    runs = {"plain": plain, "packed": plain | packing, "packed lora": plain | packing | lora}
    found = {}
    for name, changes in runs.items():
        rows = [r for r in metrics_of(run_here(config_of(parts, tmp_path / name, kd, **changes))) if "train/loss" in r]
        keys = ("train/kd_loss", "train/ce_loss", "train/loss", "train/grad_norm")
        found[name] = [[row[key] for key in keys] for row in rows]
        assert [row["train/epoch"] for row in rows] == [1, 2]
        for divergence, ce, loss, _ in found[name]:
            assert loss == pytest.approx(0.75 * divergence + 0.25 * ce, rel=1e-4) and divergence > 0.1
    for step in range(2):
        assert found["packed"][step] == pytest.approx(found["plain"][step], rel=1e-4)
    assert found["packed lora"][0][:3] == pytest.approx(found["plain"][0][:3], rel=1e-4)
    first, second = (step[0] for step in found["packed lora"])
    assert second < first and second != pytest.approx(found["plain"][1][0], rel=1e-4), "it learns, another way"


def test_rows_with_messages_bring_their_teacher(parts, tmp_path):
    rows = [
        {
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}],
            "logprobs": [[-0.1, -3.0]] * 4,
            "target_token_ids": [[5, 6]] * 4,
        }
    ] * 6
    parts = SimpleNamespace(**vars(parts) | {"rows": builders.write_rows(tmp_path / "rows.jsonl", rows)})
    changes = {
        "datasets.0.data_format": {"type": "kd_messages", "top_k": 2},
        "datasets.0.train_format": {"type": "chat_template"},
        "trainer.data.val_set_size": 1,
    }
    out = run_here(config_of(parts, tmp_path, {}, **changes))
    assert all(row["train/kd_loss"] > 0 for row in metrics_of(out) if "train/loss" in row)


@pytest.mark.parametrize(
    ("kd", "message"),
    [
        ({}, "there is no teacher"),
        ({"teacher": {"path": "TEACHER"}, "server": {"url": "http://x"}}, "teacher and server are both given"),
        ({"teacher": {"path": "TEACHER"}, "alpha": 0.0}, "nothing is learned from the teacher"),
        ({"teacher": {"path": "TEACHER"}, "outside": "bucket"}, "none is outside"),
        ({"server": {"url": "http://x"}, "beta": 1.0}, "is infinite where the teacher"),
        ({"server": {"url": "http://x"}, "outside": "bucket", "temperature": 2.0}, "not known at another temperature"),
        ({"teacher": {"path": "OTHER"}}, "teacher and student have different tokens"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_trained(parts, tmp_path, capsys, kd, message):
    text = json.dumps(kd).replace("TEACHER", str(parts.teacher)).replace("OTHER", str(parts.other))
    assert message in printed_by(capsys, 2, "train", str(config_of(parts, tmp_path, json.loads(text)))).err


@pytest.mark.parametrize("seeing", ["student", "teacher"])
def test_a_model_that_sees_both_sides_is_refused_before_the_first_step(parts, tmp_path, capsys, seeing):
    """What a teacher sees it would repeat, and a student would copy."""
    folder = tmp_path / "both sides"
    shutil.copytree(getattr(parts, seeing), folder)
    description = folder / "config.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"is_causal": False}))
    changed = SimpleNamespace(**vars(parts) | {seeing: folder})
    file = config_of(changed, tmp_path, {"teacher": {"path": str(changed.teacher)}})
    said = printed_by(capsys, 2, "train", str(file)).err
    if seeing == "student":
        assert "it would learn to copy" in said and "in place of 'kd'" in said
    else:
        assert f"the teacher {folder} sees both sides of a token" in said and "trainer.kd.teacher.path" in said
    assert not (tmp_path / "out" / "metrics.jsonl").exists(), "no step was made"


@pytest.mark.full
def test_a_step_that_is_made_again_counts_once(parts, tmp_path):
    """In halves, and by a run that goes on; of a teacher with opinions, so that what was counted twice would show."""
    teacher = builders.save_tiny_model(tmp_path / "teacher", builders.build_tokenizer(), initializer_range=0.5)
    shape = {
        "trainer.arguments.batch_size": 8,
        "trainer.arguments.physical_batch_size": 4,
        "plugins": [*SHIPPED, "kd", "./own.py:TightPlugin"],
    }

    def write(name, tight, on_oom):
        kd, faults = {"teacher": {"path": str(teacher)}}, {"trainer.faults.on_oom": on_oom}
        file = config_of(parts, tmp_path / name, kd, **shape, **faults)
        (file.parent / "own.py").write_text(TIGHT)
        (file.parent / "tight.json").write_text(json.dumps({"where": "backward", "how": "", **tight}))
        return file

    whole = run_here(write("whole", {"holds": 8}, "fail"))
    halved = run_here(write("halved", {"holds": 2, "after": 1}, "halve"))
    assert "2" in (tmp_path / "halved" / "passes.txt").read_text().split()
    failed = write("failed", {"holds": 2, "after": 3}, "fail")
    assert main(["train", str(failed)]) == 2
    write("failed", {"holds": 8}, "fail")
    again = run_here(failed, "--resume")
    assert len((tmp_path / "failed" / "passes.txt").read_text().split()) == 6, "of the second step both passes, twice"
    for path in ("train/kd_loss", "train/ce_loss"):
        expected = losses_of(whole, path)
        assert len(expected) == 2
        for other in (halved, again):
            assert losses_of(other, path) == pytest.approx(expected, rel=1e-5)


@pytest.mark.full
def test_a_run_that_was_stopped_goes_on_bit_for_bit(parts, tmp_path):
    """Stopped between two logs, so that both parts of the loss are means over steps on both sides."""
    more = {"trainer.kd": {"teacher": {"path": str(parts.teacher)}, "temperature": 2.0}}
    files = [
        write_stoppable(tmp_path / name, parts.student, parts.rows, more, ("kd",)) for name in ("whole", "stopped")
    ]
    whole = run_here(files[0])
    with stop_by("SIGTERM", 6):
        assert main(["train", str(files[1])]) == 75
    stopped = files[1].parent / "out"
    assert metrics_of(stopped)[-1]["step"] < 6 and checkpoints_in(stopped) == ["step-000006"]
    assert_same_run(run_here(files[1], "--resume"), whole)
    assert len(losses_of(whole, "train/kd_loss")) > 2
