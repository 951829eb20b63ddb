"""Packed rows give what their documents give alone, on every architecture; nothing crosses from one to another."""

import itertools
import json

import pytest
import torch
from torch.testing import assert_close
from transformers.masking_utils import causal_mask_function, chunked_causal_mask_function

from dumbo.bridge import attention as bridge
from dumbo.bridge.packing import packed_batch_inputs, prepare_for_packing
from dumbo.data.collate import PackedCollator
from dumbo.data.dataset import TokenDataset
from dumbo.errors import RunError
from dumbo.kernels.packed_attention import Scoring, grouped_packed, packed_attention
from dumbo.kernels.packed_gpu import flex_packed
from dumbo.kernels.packed_row import PackedRow, Pattern, as_allows
from tests.kernels import models

PATTERNS = [Pattern(True), Pattern(True, 4), Pattern(True, 1), Pattern(False), Pattern(False, 3)]
SCORINGS = ["plain", "scaled", "capped", "sinks", "both"]


def states(lengths, heads=4, groups=2, size=8, value_size=8, device="cpu", dtype=torch.float32):
    total, draw = sum(lengths), torch.Generator().manual_seed(1)
    shapes = [(heads, size), (groups, size), (groups, value_size)]
    made = [torch.randn(1, count, total, width, generator=draw) for count, width in shapes]
    return [tensor.to(device, dtype).requires_grad_() for tensor in made]


def scoring_of(name, heads=4, device="cpu"):
    cap = 1.5 if name in ("capped", "both") else None
    sinks = torch.linspace(-1, 2, heads, device=device).requires_grad_() if name in ("sinks", "both") else None
    return Scoring(0.7 if name == "scaled" else None, cap, sinks)


def reference(query, key, value, lengths, pattern, scoring):
    """Attention written out, document by document and head by head, in float64; `[1, T, H, V]`."""
    results = []
    for start, length in zip(itertools.accumulate((0, *lengths)), lengths, strict=False):
        piece = slice(start, start + length)
        heads = []
        for head in range(query.shape[1]):
            of_key = head * key.shape[1] // query.shape[1]
            q, k, v = (t[0, h, piece].double() for t, h in ((query, head), (key, of_key), (value, of_key)))
            scores = q @ k.T * (scoring.scaling or q.shape[-1] ** -0.5)
            if scoring.softcap:
                scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
            back = torch.arange(length)[:, None] - torch.arange(length)[None]
            sees = back >= 0 if pattern.causal else torch.ones_like(back, dtype=torch.bool)
            if pattern.window:
                sees &= (back < pattern.window) if pattern.causal else (back.abs() <= pattern.window)
            scores = scores.masked_fill(~sees.to(scores.device), -torch.inf)
            weights = scores.exp()
            below = weights.sum(-1, keepdim=True)
            below = below if scoring.sinks is None else below + scoring.sinks[head].double().exp()
            heads.append(weights / below @ v)
        results.append(torch.stack(heads, 1))
    return torch.cat(results)[None]


def assert_is_reference(backend, lengths, pattern, scoring, tensors, tolerance=1e-5):
    row = PackedRow(tuple(lengths), tensors[0].device)
    inputs = [*tensors, *([scoring.sinks] if scoring.sinks is not None else [])]
    result = backend(*tensors, row, pattern, scoring)
    expected = reference(*tensors, lengths, pattern, scoring)
    weight = torch.linspace(-1, 1, result.numel(), device=result.device).view(result.shape)
    assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
    ours = torch.autograd.grad((result * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    assert_close(ours, theirs, rtol=10 * tolerance, atol=tolerance, check_dtype=False)


@pytest.mark.parametrize("scoring", ["scaled", "capped", "sinks", "both"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("lengths", [(5, 1, 7, 5, 2, 30), (4, 4, 4), (1, 1, 1)], ids=str)
def test_groups_are_attention_written_out(lengths, pattern, scoring):
    assert_is_reference(grouped_packed, lengths, pattern, scoring_of(scoring), states(lengths))


def test_values_may_be_narrower_than_keys():
    assert_is_reference(grouped_packed, (5, 2, 5), Pattern(True), Scoring(), states((5, 2, 5), value_size=3))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("scoring", ["scaled", "both"])
@pytest.mark.parametrize("pattern", [PATTERNS[1], PATTERNS[3]], ids=str)
def test_flex_attention_is_attention_written_out(pattern, scoring):
    """Without gradients: uncompiled it has none on a CPU."""
    lengths, given = (5, 1, 7, 5), scoring_of(scoring)
    tensors = [tensor.detach() for tensor in states(lengths)]
    row = PackedRow(lengths, tensors[0].device)
    with torch.no_grad():
        result = flex_packed(*tensors, row, pattern, given, compiled=False)
    assert_close(result.double(), reference(*tensors, lengths, pattern, given).detach(), rtol=1e-5, atol=1e-5)


def test_padding_is_bounded_and_groups_are_few():
    lengths = tuple(range(1, 65))
    layout = PackedRow(lengths, torch.device("cpu")).layout(64, True)
    assert len(layout.groups) < 8
    assert layout.size < 2 * sum(lengths)
    assert sorted(layout.places.tolist()) == sorted(set(layout.places.tolist()))


def test_dropout_drops_and_keeps_the_mean():
    lengths = (40, 24)
    tensors = states(lengths)
    tensors[2].data.fill_(1.0)
    for scoring in (Scoring(dropout=0.5), Scoring(softcap=5.0, dropout=0.5)):
        result = grouped_packed(*tensors, PackedRow(lengths, torch.device("cpu")), Pattern(True), scoring)
        assert result.std() > 0.05
        assert result.mean().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("boundaries", [[0, 3], [1, 5], [0, 3, 3, 5], [0, 4, 3, 5], [0], []])
def test_boundaries_that_do_not_fill_the_row_are_refused(boundaries):
    with pytest.raises(ValueError, match="boundaries"):
        PackedRow.from_boundaries(torch.tensor(boundaries, dtype=torch.int32), 5)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_packed_loss_and_gradients_are_those_of_documents_alone(name):
    models.assert_trains_as_alone(models.build(name), models.documents())


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_no_document_changes_another(name):
    model = models.build(name).eval()
    prepare_for_packing(model)
    models.assert_nothing_crosses(model)


@pytest.mark.parametrize("name", sorted(set(models.ARCHITECTURES) - {"gpt_oss", "opt"}))
def test_transformers_own_block_mask_agrees(name):
    """The oracle: eager attention, with the mask of all tokens by all tokens that Transformers makes of positions."""
    model = models.build(name, attn_implementation="eager").eval()
    texts = models.documents()
    with torch.no_grad():
        assert prepare_for_packing(model, "eager").implementation == "eager"
        expected = models.packed_logits(model, texts)
        assert prepare_for_packing(model).implementation == bridge.PACKED
        found = models.packed_logits(model, texts)
    assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["gpt_oss", "opt"])
def test_a_leak_is_found(name):
    """These models do not tell Transformers' masks of positions: what they do by themselves leaks."""
    model = models.build(name, attn_implementation="eager")
    with pytest.raises(RunError, match=f"a {name} model cannot keep documents apart: a token of one changes"):
        prepare_for_packing(model, "eager")


def test_a_model_with_attention_of_its_own_is_refused():
    from tests.builders import build_tiny_model

    with pytest.raises(RunError, match="a falcon model .* do not take an attention implementation"):
        prepare_for_packing(build_tiny_model(64, config_type="falcon"))


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_generation_and_padded_batches_are_as_before(name):
    model = models.build(name).eval()
    prompt = torch.stack(models.documents((12, 12)))
    batch = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    batch["attention_mask"][1, 9:] = 0
    left = {"input_ids": prompt, "attention_mask": batch["attention_mask"].flip(1)}
    greedy = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    with torch.no_grad():
        tokens, logits = model.generate(**left, **greedy), model(**batch).logits
        single = model.generate(prompt[:1], **greedy)
        packing = prepare_for_packing(model)
        with packing.switched_off():
            assert model.config._attn_implementation == packing.ordinary != bridge.PACKED
            assert torch.equal(model.generate(**left, **greedy), tokens)
            assert torch.equal(model(**batch).logits, logits)
        assert model.config._attn_implementation == bridge.PACKED
        # And without switching: the same name does what is right for these too.
        assert torch.equal(model.generate(**left, **greedy), tokens)
        assert torch.equal(model.generate(prompt[:1], **greedy), single)
        kept = batch["attention_mask"].bool()
        largest = float(logits.abs().max())
        assert_close(model(**batch).logits[kept], logits[kept], rtol=1e-5, atol=1e-5 * largest)


def test_bidirectional_models_see_both_ways_inside_of_a_document():
    model = models.build("llama", attn_implementation="eager").eval()
    model.config.is_causal = False
    texts = models.documents()
    with torch.no_grad():
        expected = models.alone_logits(model, texts)
        prepare_for_packing(model)
        assert_close(models.packed_logits(model, texts), expected, rtol=1e-5, atol=1e-4)
        assert_close(models.alone_logits(model, texts), expected, rtol=1e-5, atol=1e-4)


def test_gradient_checkpointing_changes_nothing():
    model, texts = models.build("gemma3_text"), models.documents()
    prepare_for_packing(model)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        models.loss_of(models.packed_logits(model, texts), texts).backward()
        found.append(models.gradients(model))
    assert_close(found[1], found[0])


def test_adapters_are_no_hindrance():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(models.build("llama"), LoraConfig(target_modules=["q_proj"])).eval()
    texts = models.documents()
    with torch.no_grad():
        expected = models.alone_logits(model, texts)
        prepare_for_packing(model)
        assert_close(models.packed_logits(model, texts), expected, rtol=1e-5, atol=1e-4)


def test_a_saved_model_does_not_know_of_it(tmp_path):
    model = models.build("llama")
    prepare_for_packing(model)
    model.save_pretrained(tmp_path)
    assert bridge.PACKED not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


def test_boundaries_that_do_not_arrive_are_missed():
    model, texts = models.build("llama"), models.documents()
    prepare_for_packing(model)
    inputs = packed_batch_inputs(torch.cat(texts)[None], models.LENGTHS)
    without = {name: value for name, value in inputs.items() if name not in bridge.BOUNDARIES}
    with pytest.raises(RunError, match="'cu_seq_lens_q' did not reach LlamaAttention"):
        model(**without)
    with pytest.raises(RunError, match="one row without padding or cache"):
        model(**inputs, attention_mask=torch.zeros(1, 1, 36, 36))


def attend_with(mask=None, **options):
    module = torch.nn.Module()
    return bridge.attend(module, *states((4, 5)), mask, **options)


def unmade(mask_function, **request):
    request = {"q_length": 9, "kv_length": 9, "batch_size": 1, "mask_function": mask_function, **request}
    return bridge.packed_mask(**request)


BOUNDARIES = torch.tensor([0, 4, 9], dtype=torch.int32)


def test_what_is_not_known_is_refused_by_name():
    known = unmade(causal_mask_function)
    assert attend_with(known, cu_seq_lens_q=BOUNDARIES, position_bias=None)[0].shape == (1, 9, 4, 8)
    for options in ({"position_bias": torch.zeros(1)}, {"cache": object()}, {"indices": torch.zeros(1)}):
        with pytest.raises(RunError, match=f"does not know '{min(options)}'"):
            attend_with(known, cu_seq_lens_q=BOUNDARIES, **options)
    with pytest.raises(RunError, match="no weights"):
        attend_with(known, output_attentions=True)
    with pytest.raises(RunError, match="is_causal=False contradicts"):
        attend_with(known, cu_seq_lens_q=BOUNDARIES, is_causal=False)
    with pytest.raises(RunError, match="not the boundaries"):
        attend_with(known, cu_seq_lens_q=BOUNDARIES - 1)


def test_masks_that_are_not_known_are_refused():
    chunks = chunked_causal_mask_function(3, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(RunError, match="neither causal"):
        attend_with(unmade(chunks, local_size=3), cu_seq_lens_q=BOUNDARIES)
    with pytest.raises(RunError, match="a mask of its own"):
        attend_with(unmade(causal_mask_function, use_vmap=True), cu_seq_lens_q=BOUNDARIES)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_pattern_is_recognised(pattern):
    row = PackedRow((9, 1, 12), torch.device("cpu"))

    def sees(batch, head, query, key):
        back = query - key
        if pattern.causal:
            return (back >= 0) & (back < (pattern.window or 99))
        return back.abs() <= (pattern.window or 99)

    assert row.recognise(as_allows(sees, row.device), pattern.window) == pattern
    if pattern.window:
        assert row.recognise(as_allows(sees, row.device), pattern.window + 1) is None
        assert row.recognise(as_allows(sees, row.device), max(pattern.window - 1, 1)) in (None, Pattern(True, 1))
        assert row.recognise(as_allows(sees, row.device), None) is None


def test_a_batch_of_documents_is_one_row():
    rows = TokenDataset.from_examples(_examples([[5, 6, 7], [8], [9, 10]]))
    batch = PackedCollator()([rows[0], rows[1], rows[2]])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, -100, 10]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 4, 6]
    assert batch["cu_seq_lens_q"].dtype == batch["seq_idx"].dtype == torch.int32
    assert batch["seq_idx"].tolist() == [[0, 0, 0, 1, 2, 2]]
    assert (batch["max_length_q"], batch["use_cache"]) == (3, False)
    assert "attention_mask" not in batch


def _examples(texts):
    from dumbo.data.records import Example, Origin

    return [Example(text, text, Origin("rows.jsonl", 1)) for text in texts]


@pytest.mark.parametrize(("shape", "lengths"), [((2, 3), [3, 3]), ((1, 3), [2]), ((1, 3), [3, 0]), ((1, 3), [])])
def test_lengths_that_do_not_fill_a_row_are_refused(shape, lengths):
    with pytest.raises(ValueError, match="row"):
        packed_batch_inputs(torch.zeros(shape, dtype=torch.int64), lengths)


def test_nothing_is_registered_at_import():
    from tests.house.imports import loaded_by

    statement = "import dumbo.bridge.packing, dumbo.kernels.packed_attention, dumbo.data.collate"
    assert loaded_by(statement, "transformers") == []


@pytest.mark.gpu
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_kernels_for_gpus_are_attention_written_out(dtype, pattern, scoring):
    lengths = (130, 1, 64, 64, 7)
    tensors = states(lengths, size=64, value_size=64, device="cuda", dtype=dtype)
    given, row = scoring_of(scoring, device="cuda"), PackedRow(lengths, tensors[0].device)
    result = packed_attention(*tensors, row, pattern, given)
    expected = grouped_packed(*[tensor.float() for tensor in tensors], row, pattern, given)
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-4
    assert_close(result.float(), expected, rtol=tolerance, atol=tolerance)
    ours = torch.autograd.grad(result.float().square().sum(), tensors)
    theirs = torch.autograd.grad(expected.square().sum(), tensors)
    assert_close(ours, theirs, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_models_on_gpus_keep_documents_apart(name):
    model = models.build(name).to("cuda", torch.bfloat16).eval()
    prepare_for_packing(model)
    texts, others = models.documents(device="cuda"), models.documents(seed=1, device="cuda")
    with torch.no_grad():
        before = models.packed_logits(model, texts)
        after = models.packed_logits(model, [texts[0], *others[1:]])
    assert_close(after[: models.LENGTHS[0]], before[: models.LENGTHS[0]], rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_flash_attention_keeps_documents_apart():
    pytest.importorskip("flash_attn")
    model = models.build("llama", head_dim=32, attn_implementation="flash_attention_2").to("cuda", torch.bfloat16)
    assert prepare_for_packing(model).implementation == "flash_attention_2"
