"""The grokfast plugin: the filters are the paper's, each step counts once, clipping comes after, and a run goes on."""

import copy
import json
from collections import deque

import pytest
import torch

from dumbo.checkpoint.opening import STATE
from dumbo.checkpoint.tree import read_tree
from dumbo.cli.main import main
from dumbo.errors import RunError
from dumbo.plugins.grokfast.filtering import AmplifySlowGradients
from dumbo.plugins.grokfast.filters import ExponentialAverage, MovingAverage
from dumbo.plugins.grokfast.plugin import GrokfastOptions
from tests import builders
from tests.faults.stopping import assert_same_run, stop_by, write_stoppable
from tests.faults.test_bad_steps import SPOILING
from tests.faults.test_out_of_memory import TIGHT
from tests.faults.test_spikes import LEAPS
from tests.numerics.training import SEED, build_trainer, farthest_weight, loss_of_rows, random_rows, tiny_llama
from tests.run.whole_runs import SHIPPED, losses_of, printed_by, write_and_run

PLUGINS = [*SHIPPED, "grokfast"]
KEPT = {"trainer.arguments.save_strategy": "steps", "trainer.arguments.save_steps": 1, "plugins": PLUGINS}


def gradients(steps=25, *shape, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randn(*(shape or (3, 4)), generator=numbers, dtype=torch.float64) for _ in range(steps)]


def filtered(way, given, name="w"):
    left = []
    for gradient in given:
        changed = gradient.clone()
        way.apply(name, changed)
        left.append(changed)
    return left


def state_at(out, step):
    """What the plugin has in the checkpoint of a step."""
    tree = read_tree(out / "checkpoints" / f"step-{step:06}" / STATE, "rank-00000")
    return tree["plugins"]["grokfast"]["kept"]


def paper_ma(given, size, lamb, kind, warmup):
    """Algorithm 1, the sum made anew at every step."""
    last, left = deque(maxlen=size), []
    for gradient in given:
        last.append(gradient)
        average = sum(last) / (len(last) if kind == "mean" else 1)
        left.append(gradient + lamb * average if len(last) == size or not warmup else gradient)
    return left


def test_a_gradient_that_stays_is_amplified_by_one_plus_lamb_from_the_first_step_on():
    given = [gradients(1)[0]] * 8
    for left in filtered(ExponentialAverage(0.98, 2.0), given):
        torch.testing.assert_close(left, 3 * given[0], rtol=1e-14, atol=0)


def test_the_exponential_average_is_its_closed_form():
    """After n steps m = a^(n-1) g_1 + (1-a) sum a^(n-k) g_k over the later ones."""
    given, alpha, lamb = gradients(), 0.9, 2.0
    left = filtered(ExponentialAverage(alpha, lamb), given)
    for n in range(1, len(given) + 1):
        m = alpha ** (n - 1) * given[0] + sum((1 - alpha) * alpha ** (n - k) * given[k - 1] for k in range(2, n + 1))
        torch.testing.assert_close(left[n - 1], given[n - 1] + lamb * m, rtol=1e-12, atol=1e-13)


def test_alpha_zero_remembers_nothing_and_lamb_zero_changes_nothing():
    given = gradients()
    assert all(
        torch.equal(left, 3 * g) for left, g in zip(filtered(ExponentialAverage(0, 2), given), given, strict=True)
    )
    assert all(torch.equal(*pair) for pair in zip(filtered(ExponentialAverage(0.98, 0), given), given, strict=True))


@pytest.mark.parametrize("kind", ["mean", "sum"])
@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("size", [1, 4, 9])
def test_the_moving_average_is_the_paper_s(kind, warmup, size):
    given = gradients()
    ours = filtered(MovingAverage(size, 5.0, kind == "sum", warmup), given)
    for one, other in zip(ours, paper_ma(given, size, 5.0, kind, warmup), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: ExponentialAverage(0.9, 2), lambda: MovingAverage(4, 5, False, True)])
def test_a_gradient_that_comes_late_begins_there(make):
    given, way = gradients(9), make()
    filtered(way, given[:4], "early")
    late = filtered(way, given[4:], "late")
    assert all(torch.equal(*pair) for pair in zip(late, filtered(make(), given[4:]), strict=True))
    assert set(way.state()) == {"early", "late"}


@pytest.mark.parametrize("make", [lambda: ExponentialAverage(0.9, 2), lambda: MovingAverage(4, 5, False, True)])
@pytest.mark.parametrize("stop", [2, 7])
def test_a_filter_goes_on_bit_by_bit(make, stop):
    given, whole, first, second = gradients(12), make(), make(), make()
    expected = filtered(whole, given)
    left = filtered(first, given[:stop])
    second.load(copy.deepcopy(first.state()))
    left += filtered(second, given[stop:])
    assert all(torch.equal(*pair) for pair in zip(left, expected, strict=True))


def test_averages_of_16_bits_are_kept_in_32():
    """In bfloat16 an average of 1 would not move for a gradient of 1.1 at alpha 0.98."""
    way = ExponentialAverage(0.98, 2.0)
    filtered(way, [torch.ones(2, dtype=torch.bfloat16), *[torch.full((2,), 1.1, dtype=torch.bfloat16)] * 50])
    average = way.state()["w"]
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, torch.full((2,), 1.1015625 - 0.1015625 * 0.98**50), rtol=1e-5, atol=0)


def test_weights_of_another_shape_than_in_the_checkpoint_are_an_error():
    way = ExponentialAverage(0.9, 2)
    way.load({"w": torch.zeros(2)})
    with pytest.raises(RunError, match=r"gradients of w has another shape: \[2\] in the checkpoint, \[3\] now"):
        way.apply("w", torch.zeros(3))


def train_by_hand(model, rows, *, batch_size, steps, alpha, lamb, clip):
    """A plain loop: filter, clip, AdamW, a linear schedule."""
    import numpy as np

    model, averages, norms = copy.deepcopy(model).train(), {}, []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, eps=1e-6, weight_decay=0.0)
    order = np.random.default_rng([SEED, 0]).permutation(len(rows)).tolist()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (steps - step) / steps
        total, count = loss_of_rows(model, [rows[i] for i in order[step * batch_size : (step + 1) * batch_size]])
        (total / count).backward()
        for name, parameter in model.named_parameters():
            averages.setdefault(name, parameter.grad.clone())
            averages[name] = alpha * averages[name] + (1 - alpha) * parameter.grad
            parameter.grad += lamb * averages[name]
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item())
        optimizer.step()
        optimizer.zero_grad()
    return model, norms


@pytest.mark.parametrize(("physical", "clip"), [(8, 1.0), (2, 1.0), (4, 0.0)])
def test_a_step_is_filtered_once_whatever_its_passes_and_clipped_afterwards(tmp_path, physical, clip):
    """With each clipping: the weights of a loop by hand, and the norm that is logged is that of the filtered one."""
    rows = random_rows(32)
    sizes = {"batch_size": 8, "physical_batch_size": physical, "max_steps": 4, "max_grad_norm": clip}
    ours = build_trainer(tmp_path, tiny_llama(), rows, **sizes)
    said, seen = [], []
    ours.trainer.add_callback(AmplifySlowGradients(GrokfastOptions(alpha=0.9), said.append))
    update = torch.optim.AdamW.step

    def noting(optimizer, *more, **named):
        seen.append(torch.nn.utils.get_total_norm([p.grad for g in optimizer.param_groups for p in g["params"]]).item())
        return update(optimizer, *more, **named)

    optimizer = ours.trainer.create_optimizer()
    optimizer.step = noting.__get__(optimizer)
    ours.trainer.train_to_end()
    limit = clip or float("inf")
    by_hand, norms = train_by_hand(tiny_llama(), rows, batch_size=8, steps=4, alpha=0.9, lamb=2.0, clip=limit)
    assert farthest_weight(ours.model, by_hand) < 1e-5
    assert ours.metrics.values("train/grad_norm") == pytest.approx(norms, rel=1e-4)
    assert max(norms) > 1.5
    assert seen == pytest.approx([min(norm, limit) for norm in norms], rel=1e-4)
    assert said == ["grokfast: ema with alpha 0.9, lamb 2; it keeps 0.1 MB of gradients in float32"]


def test_what_a_callback_spoils_never_reaches_the_weights(tmp_path):
    class Spoil(AmplifySlowGradients):
        def on_gradient(self, args, state, control, model):
            super().on_gradient(args, state, control, model)
            model.lm_head.weight.grad[0, 0] = float("inf")

    ours = build_trainer(tmp_path, tiny_llama(), random_rows(8), batch_size=8, physical_batch_size=8, max_steps=1)
    ours.trainer.add_callback(Spoil(GrokfastOptions(), print))
    with pytest.raises(RunError, match="step 1: the gradient is finite, and not so after Spoil"):
        ours.trainer.train_to_end()
    assert farthest_weight(ours.model, tiny_llama()) == 0


@pytest.mark.parametrize("how", [{"filter": "ema", "alpha": 0.9}, {"filter": "ma", "window_size": 4}], ids=str)
def test_a_run_goes_on_bit_by_bit(tmp_path, model_folder, how):
    rows = builders.write_rows(tmp_path / "rows.jsonl", builders.alpaca_rows(26))
    changes = {"trainer.grokfast": how}
    files = [write_stoppable(tmp_path / where, model_folder, rows, dict(changes), ("grokfast",)) for where in "ab"]
    assert main(["train", str(files[0])]) == 0
    with stop_by("SIGTERM", 7):
        assert main(["train", str(files[1])]) == 75
    assert main(["train", str(files[1]), "--resume"]) == 0
    assert_same_run(tmp_path / "b" / "out", tmp_path / "a" / "out")


def test_a_run_that_goes_on_with_another_filter_says_that_it_begins_anew(tmp_path, model_folder, rows_file, capfd):
    file = write_stoppable(tmp_path / "a", model_folder, rows_file, {"trainer.grokfast": {}}, ("grokfast",))
    with stop_by("SIGTERM", 2):
        assert main(["train", str(file)]) == 75
    assert main(["train", str(file), "--resume", "trainer.grokfast.filter=ma"]) == 2
    assert "trainer.grokfast" in capfd.readouterr().err
    words = ["trainer.grokfast.filter=ma", "--allow-change", "trainer.grokfast"]
    assert main(["train", str(file), "--resume", *words]) == 0
    assert "grokfast: it was another filter in the checkpoint; its averages begin anew" in capfd.readouterr().out


@pytest.mark.parametrize("kind", [{"loss": {"2": "nan"}}, {"gradient": {"2": "inf"}}], ids=str)
def test_a_step_that_is_not_finite_is_not_averaged(tmp_path, model_folder, rows_file, kind):
    (tmp_path / "own.py").write_text(SPOILING)
    (tmp_path / "spoil.json").write_text(json.dumps({"loss": {}, "gradient": {}} | kind))
    own = {"plugins": [*PLUGINS, "./own.py:SpoilPlugin"], "trainer.grokfast": {"filter": "ma", "window_size": 3}}
    out = write_and_run(tmp_path, model_folder, rows_file, {**KEPT, "trainer.arguments.max_steps": 5} | own)
    windows = state_at(out, 5)
    assert {window["seen"] for window in windows.values()} == {4}
    assert all(torch.isfinite(window["last"]).all() for window in windows.values())
    assert all(torch.isfinite(torch.tensor(losses_of(out)[3:])))


@pytest.mark.parametrize(("save_steps", "seen"), [(26, 25), (13, 13 + 1)])
def test_a_step_that_leaps_is_not_averaged(tmp_path, model_folder, rows_file, monkeypatch, save_steps, seen):
    """Step 25 leaps. Where there is a checkpoint to go back to, the averages are those of the checkpoint."""
    monkeypatch.setenv("DUMBO_LEAPS", "25")
    (tmp_path / "leaps.py").write_text(LEAPS)
    changes = {
        "trainer.arguments.max_steps": 26,
        "trainer.arguments.save_strategy": "steps",
        "trainer.arguments.save_steps": save_steps,
        "trainer.faults.on_spike": "rollback",
        "trainer.grokfast": {"filter": "ma", "window_size": 30},
        "plugins": [*PLUGINS, "./leaps.py:LeapsPlugin"],
    }
    out = write_and_run(tmp_path, model_folder, rows_file, changes)
    assert {window["seen"] for window in state_at(out, 26).values()} == {seen}


def test_a_step_that_is_made_again_counts_once(tmp_path, model_folder, rows_file):
    (tmp_path / "own.py").write_text(TIGHT)
    (tmp_path / "tight.json").write_text(json.dumps({"holds": 1, "where": "backward", "how": "cuda"}))
    changes = {
        "trainer.faults.on_oom": "halve",
        "trainer.grokfast": {"filter": "ma", "window_size": 3},
        "plugins": [*PLUGINS, "./own.py:TightPlugin"],
    }
    out = write_and_run(tmp_path, model_folder, rows_file, KEPT | changes)
    assert {window["seen"] for window in state_at(out, 2).values()} == {2}


def test_only_what_is_trained_is_kept_under_its_own_name(tmp_path, model_folder, rows_file):
    """Together with `unfrozen_parameters`, and with the names that an adapter gives."""
    out = write_and_run(
        tmp_path / "a", model_folder, rows_file, {**KEPT, "model.unfrozen_parameters": ["layers.1.mlp"]}
    )
    mlp = {f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert set(state_at(out, 2)) == mlp
    changes = {**KEPT, "model.peft": {"rank": 2, "target_modules": ["q_proj"]}, "plugins": [*PLUGINS, "peft"]}
    out = write_and_run(tmp_path / "b", model_folder, rows_file, changes)
    names = set(state_at(out, 2))
    assert len(names) == 4
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight" in names


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (
            {"alpha": 2.0, "lamb": 0.98},
            [
                "trainer.grokfast.alpha: must be at least 0 and below 1",
                "alpha and lamb look swapped: write alpha: 0.98 and lamb: 2",
            ],
        ),
        ({"alpha": 2.0}, ["some texts have alpha and lamb swapped: the paper has alpha: 0.98 and lamb: 2"]),
        ({"alpha": 1.0}, ["must be at least 0 and below 1", "the paper has 0.98"]),
        ({"alpha": -0.1}, ["must be at least 0 and below 1"]),
        ({"lamb": -2.0}, ["trainer.grokfast.lamb: must not be below 0"]),
        ({"filter": "ma", "alpha": 0.9}, ["trainer.grokfast.alpha: has no effect with filter: ma"]),
        ({"window_size": 9}, ["trainer.grokfast.window_size: has no effect with filter: ema", "write filter: ma"]),
        ({"filter": "ma", "window_size": 0}, ["trainer.grokfast.window_size"]),
        ({"filter": "kalman"}, ["trainer.grokfast.filter"]),
    ],
    ids=str,
)
def test_values_without_sense_are_refused(tmp_path, model_folder, rows_file, options, lines, capsys):
    changes = {"trainer.grokfast": options, "plugins": PLUGINS}
    said = printed_by(capsys, 2, "check", str(builders.write_config(tmp_path, model_folder, rows_file, changes))).err
    for line in lines:
        assert line in said
