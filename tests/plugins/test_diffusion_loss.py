"""The loss of masked diffusion against its formula: what is masked, how much it weighs, and by what it is divided."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from dumbo.bridge.bidirectional import make_bidirectional, prove_bidirectional
from dumbo.bridge.packing import prepare_for_packing
from dumbo.errors import ConfigError, RunError
from dumbo.losses.diffusion import MaskSchedule
from dumbo.plugins.diffusion.loss import COUNTED, build_loss, metrics_of
from dumbo.plugins.diffusion.plugin import DiffusionOptions
from tests import builders
from tests.plugins.diffusion_parts import (
    diffusion_loss,
    made_rows,
    mask_tokenizer,
    packed,
    padded,
    seeing_model,
    seen_by,
)


def count_of(rows):
    return torch.tensor(float(sum((row["labels"][1:] != -100).sum() for row in rows)))


def test_the_schedules_are_their_formulas():
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    linear, cosine = MaskSchedule("linear", 0.2, 0.7, 1e-3), MaskSchedule("cosine", 0.2, 0.7, 1e-3)
    expected = [0.2 + 0.5 * (1 - math.cos(math.pi * t / 2)) for t in times.tolist()]
    assert cosine.probabilities(times).tolist() == pytest.approx(expected)
    assert linear.probabilities(times).tolist() == pytest.approx([0.2, 0.325, 0.45, 0.575, 0.7])
    assert linear.mean == pytest.approx(0.45) and cosine.mean == pytest.approx(0.2 + 0.5 * (1 - 2 / math.pi), abs=1e-6)
    assert MaskSchedule("linear", 0.0, 1.0, 0.05).probabilities(times).min() == 0.05


@pytest.mark.parametrize(
    ("options", "is_bound"),
    [
        ({}, True),
        ({"eps": 0.2}, True),
        ({"noise_schedule": "cosine"}, False),
        ({"min_mask_ratio": 0.1}, False),
        ({"min_mask_ratio": 1e-3}, False),
        ({"max_mask_ratio": 0.9}, False),
        ({"importance_weighting": False}, False),
    ],
)
def test_the_run_says_that_the_loss_is_a_bound_where_it_is_one(options, is_bound):
    """The bound is the integral over p of the nats per masked token, which below eps are those at eps."""
    lines, options = [], DiffusionOptions(**options)
    services = SimpleNamespace(say=lines.append, rank=0)
    schedule = build_loss(options, 0, mask_tokenizer(), services)._masking.schedule
    assert ("the loss is a bound on the negative log-likelihood" in lines[0]) is is_bound
    assert ("no bound on a likelihood" in lines[0]) is not is_bound
    p = schedule.probabilities((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
    nats = p**2  # any that rise with p
    loss = (schedule.weights(p, options.importance_weighting) * p * nats).mean()
    bound = options.eps**3 + (1 - options.eps**3) / 3
    assert (abs(float(loss) - bound) < 1e-6) is is_bound


@pytest.mark.parametrize(
    ("options", "quantiles"),
    [
        ({}, (0.25, 0.5, 0.75)),
        ({"noise_schedule": "cosine"}, [1 - math.cos(math.pi * t / 2) for t in (0.25, 0.5, 0.75)]),
        ({"min_mask_ratio": 0.4, "max_mask_ratio": 0.6}, (0.45, 0.5, 0.55)),
        ({"max_mask_ratio": 0.2}, (0.05, 0.1, 0.15)),
        ({"eps": 0.6}, (0.6, 0.6, 0.75)),
    ],
)
def test_every_key_of_the_schedule_decides_how_much_is_masked(options, quantiles):
    """None of them is read and then forgotten."""
    tokenizer = mask_tokenizer()
    masking = diffusion_loss(tokenizer, **options)._masking
    torch.manual_seed(0)
    batch = padded(made_rows(200, tokenizer), tokenizer)
    p = torch.cat([masking.draw(batch, training=True).p_D for _ in range(20)])
    found = torch.quantile(p, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    assert found == pytest.approx(list(quantiles), abs=0.025)


@pytest.mark.parametrize("options", [{}, {"noise_schedule": "cosine", "min_mask_ratio": 0.2}, {"shift_logits": False}])
def test_the_weighted_loss_has_the_mean_of_the_whole(options):
    """Of a model for which all tokens are alike it is ln V times the share of what may be masked."""
    tokenizer = mask_tokenizer(bos_token="<|im_start|>")
    model = seeing_model(tokenizer)
    model.lm_head.weight.data.zero_()
    rows = made_rows(64, tokenizer)
    for row in rows[::2]:  # a token that is trained and never masked
        row["input_ids"][4] = row["labels"][4] = tokenizer.bos_token_id
    total = count_of(rows)
    maskable = 1 - 32 / float(total)
    loss, batch = diffusion_loss(tokenizer, eps=0.05, **options), padded(rows, tokenizer)
    torch.manual_seed(0)
    values = torch.stack([loss(model, batch, total).detach() for _ in range(40)])
    error = 4 * float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - math.log(len(tokenizer)) * maskable) < error < 0.4


def test_without_weights_all_masked_tokens_count_alike():
    tokenizer = mask_tokenizer()
    model = seeing_model(tokenizer)
    model.lm_head.weight.data.zero_()
    rows = made_rows(64, tokenizer)
    loss = diffusion_loss(tokenizer, importance_weighting=False)
    torch.manual_seed(0)
    values = [float(loss(model, padded(rows, tokenizer), count_of(rows)).detach()) for _ in range(60)]
    assert sum(values) / 60 == pytest.approx(math.log(len(tokenizer)), rel=0.04)
    counts = dict(zip(COUNTED, loss.counts.tolist(), strict=True))
    assert counts["weights"] / counts["masked"] == pytest.approx(2.0, rel=1e-3)  # 1 / E[p], and p is even from 0 to 1


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("worthwhile", [0, 1 << 40])
def test_loss_and_gradients_are_those_of_the_formula(shift, worthwhile):
    tokenizer = mask_tokenizer()
    model = seeing_model(tokenizer)
    rows = made_rows(5, tokenizer)
    batch, loss = padded(rows, tokenizer), diffusion_loss(tokenizer, shift_logits=shift)
    loss._worthwhile = worthwhile
    torch.manual_seed(5)
    value = loss(model, batch, torch.tensor(7.0))
    value.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(5)
    noise = loss._masking.draw(batch, training=True)
    noised = batch["input_ids"].masked_fill(noise.masked_BT, tokenizer.mask_token_id)
    logits = model(input_ids=noised, attention_mask=batch["attention_mask"]).logits
    if shift:
        logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
    each = F.cross_entropy(logits.transpose(1, 2), batch["input_ids"], reduction="none")
    expected = (each / noise.p_BT.clamp(min=1e-9) * noise.masked_BT).sum() / 7
    expected.backward()
    torch.testing.assert_close(value, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
    counts = dict(zip(COUNTED, loss.counts.tolist(), strict=True))
    assert counts["masked"] == int(noise.masked_BT.sum())
    assert counts["cross_entropy"] == pytest.approx(float((each * noise.masked_BT).sum().detach()), rel=1e-5)
    assert counts["correct"] == int(((logits.argmax(-1) == batch["input_ids"]) & noise.masked_BT).sum())


def test_prompt_padding_and_specials_are_never_masked_and_the_end_token_is():
    tokenizer = mask_tokenizer(bos_token="<|im_start|>", pad_token="<|im_end|>")  # padded with the end token
    model, rows = seeing_model(tokenizer), made_rows(12, tokenizer)
    for row in rows:
        row["input_ids"][3] = row["labels"][3] = tokenizer.bos_token_id
    batch, loss = padded(rows, tokenizer), diffusion_loss(tokenizer)
    seen, handle = seen_by(model)
    torch.manual_seed(0)
    for _ in range(60):
        loss(model, batch, torch.tensor(1.0))
    handle.remove()
    masked = torch.stack([ids == tokenizer.mask_token_id for ids in seen if ids.shape == batch["labels"].shape])
    ever = masked.any(dim=0)
    allowed = (batch["labels"] != -100) & (batch["input_ids"] != tokenizer.bos_token_id)
    assert len(masked) == 60 and torch.equal(ever, allowed)
    ends = (batch["labels"] == tokenizer.eos_token_id).nonzero().tolist()
    assert len(ends) == 12 and all(ever[row, place] for row, place in ends)
    whole = torch.where(masked, tokenizer.mask_token_id, batch["input_ids"])
    assert all(torch.equal(ids, row) for ids, row in zip(seen[-60:], whole, strict=True)), "nothing else changes"


def test_evaluation_has_the_same_noise_whatever_the_batches():
    tokenizer = mask_tokenizer()
    model, rows = seeing_model(tokenizer), made_rows(9, tokenizer)
    loss, one = diffusion_loss(tokenizer), torch.tensor(1.0)
    with torch.no_grad():
        torch.manual_seed(1)
        whole = loss(model, padded(rows, tokenizer), one)
        drawn = torch.rand(1)
        torch.manual_seed(2)
        singly = sum(loss(model, padded([row], tokenizer), one) for row in reversed(rows))
        torch.manual_seed(1)
        assert torch.rand(1) == drawn, "an evaluation draws nothing from the training's generator"
    torch.testing.assert_close(whole, singly)
    with torch.no_grad():
        assert loss(model, padded(rows, tokenizer), one) == whole
        assert diffusion_loss(tokenizer, rank=1)(model, padded(rows, tokenizer), one) == whole
    training = [float(loss(model, padded(rows, tokenizer), one).detach()) for _ in range(2)]
    assert training[0] != training[1]


def test_ranks_mask_differently_and_a_state_of_the_generator_brings_the_noise_back():
    tokenizer = mask_tokenizer()
    batch = padded(made_rows(6, tokenizer), tokenizer)

    def draw(rank):
        torch.manual_seed(0)
        return diffusion_loss(tokenizer, rank=rank)._masking.draw(batch, training=True).masked_BT

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


def test_no_masked_token_is_a_loss_of_zero_with_a_gradient():
    tokenizer = mask_tokenizer()
    model, rows = seeing_model(tokenizer), made_rows(2, tokenizer)
    for row in rows:
        row["labels"][:] = -100
    for worthwhile in (0, 1 << 40):
        loss = diffusion_loss(tokenizer)
        loss._worthwhile = worthwhile
        value = loss(model, padded(rows, tokenizer), torch.tensor(1.0))
        value.backward()
        assert value.item() == 0 and all(not p.grad.any() for p in model.parameters() if p.grad is not None)
        assert metrics_of(loss.counts.tolist()) == {}


def test_packed_documents_are_apart_and_lose_what_they_lose_alone():
    tokenizer = mask_tokenizer()
    model, rows = seeing_model(tokenizer), made_rows(6, tokenizer)
    loss, one = diffusion_loss(tokenizer), torch.tensor(1.0)
    with torch.no_grad():
        alone = loss(model, padded(rows, tokenizer), one)
        packing = prepare_for_packing(model)
        torch.testing.assert_close(loss(model, packed(rows), one), alone)
        batch = packed(rows)
        before = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        first, second = batch["cu_seq_lens_q"].tolist()[1:3]
        batch["input_ids"][0, first:second] += 1
        after = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    assert packing.implementation == "dumbo_packed"
    assert torch.equal(before[0, :first], after[0, :first]) and torch.equal(before[0, second:], after[0, second:])
    assert (before[0, first:second] != after[0, first:second]).any(dim=-1).all(), "inside, every token sees every other"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masks_over_whole_rows_cannot_keep_documents_apart(attention):
    """Transformers' masks to both sides know nothing of packed documents: refused, not leaked."""
    with pytest.raises(RunError, match="cannot keep documents apart"):
        prepare_for_packing(seeing_model(mask_tokenizer()), attention)


MODELS = {
    "llama": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gemma3_text": {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "mistral": {"sliding_window": 4},
}


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        *((kind, attention) for kind in MODELS for attention in ("sdpa", "eager")),
        pytest.param("llama", "flex_attention", marks=pytest.mark.full),  # slow on a CPU: one model is enough
    ],
)
def test_every_backend_sees_both_sides(kind, attention):
    model = builders.build_tiny_model(96, config_type=kind, **MODELS[kind])
    model.set_attn_implementation(attention)
    with pytest.raises(RunError, match=f"a {kind} model cannot see both sides of a token: token 1"):
        prove_bidirectional(model, torch.device("cpu"))
    make_bidirectional(model)
    prove_bidirectional(model, torch.device("cpu"))
    assert model.training


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "its layers of the kinds conv read from left to right"),
        ("mamba", {}, "(linear_attention read|carries a state) from left to right"),
        ("llama4_text", {"layer_types": ["chunked_attention", "full_attention"]}, "of the kinds chunked_attention"),
    ],
)
def test_what_reads_from_left_to_right_is_refused_by_name(kind, shape, expected):
    model = builders.build_tiny_model(96, config_type=kind, **shape)
    with pytest.raises(RunError, match=f"a {kind} model cannot see both sides of a token: .*{expected}"):
        make_bidirectional(model)


def test_a_model_that_turns_out_to_be_causal_is_refused_at_the_first_batch():
    tokenizer = mask_tokenizer()
    model = builders.build_tiny_model(len(tokenizer))
    with pytest.raises(ConfigError, match="diffusion: a llama model cannot see both sides"):
        diffusion_loss(tokenizer)(model, padded(made_rows(2, tokenizer), tokenizer), torch.tensor(1.0))
