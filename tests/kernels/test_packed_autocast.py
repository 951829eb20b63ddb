"""Packed rows under autocast: weights in float32, computing in half precision."""

import pytest
import torch
from torch.testing import assert_close

from dumbo.bridge import attention as bridge
from dumbo.bridge import packing
from dumbo.bridge.packing import HALF_TOLERANCE, prepare_for_packing
from dumbo.cli.main import main
from dumbo.errors import RunError
from dumbo.kernels import packed_attention as kernels
from dumbo.kernels.packed_attention import Scoring, in_autocast, packed_attention, scaled_dot_product
from dumbo.kernels.packed_gpu import flex_packed
from dumbo.kernels.packed_row import PackedRow, Pattern
from tests import builders
from tests.kernels import models

LENGTHS = (5, 1, 7, 5, 2, 30)
SCORINGS = ("plain", "capped", "sinks", "both")


def under_autocast(device="cpu", dtype=torch.bfloat16):
    return torch.autocast(device, dtype)


def states(device="cpu", size=8, lengths=LENGTHS):
    """Queries and keys in float32, as rotary positions make them, and values in bfloat16."""
    draw = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, heads, sum(lengths), size, generator=draw) for heads in (4, 2, 2))
    return [tensor.to(device).requires_grad_() for tensor in (query, key, value.bfloat16())]


def scoring_of(name, device="cpu"):
    sinks = torch.linspace(-1, 2, 4, device=device).requires_grad_() if name in ("sinks", "both") else None
    return Scoring(softcap=1.5 if name in ("capped", "both") else None, sinks=sinks)


def recording(function, into):
    """`function` itself, which also notes the types of the queries, keys and values that it is given."""

    def recorded(query, key, value, *others):
        into.append((query.dtype, key.dtype, value.dtype))
        return function(query, key, value, *others)

    return recorded


def assert_is_as_in_float32(scoring, device="cpu", size=8, lengths=LENGTHS):
    """Results and gradients; gives the result."""
    tensors, row = states(device, size, lengths), PackedRow(lengths, torch.device(device))
    inputs = [*tensors, *([scoring.sinks] if scoring.sinks is not None else [])]
    with under_autocast(device):
        result = packed_attention(*tensors, row, Pattern(True, 4), scoring)
    exact = kernels.grouped_packed(*[tensor.float() for tensor in tensors], row, Pattern(True, 4), scoring)
    assert_close(result.float(), exact, rtol=3e-2, atol=3e-2)
    weight = torch.linspace(-1, 1, exact.numel(), device=device).view(exact.shape)
    found = torch.autograd.grad((result.float() * weight).sum(), inputs)
    wanted = torch.autograd.grad((exact * weight).sum(), inputs)
    assert [gradient.dtype for gradient in found] == [tensor.dtype for tensor in inputs]
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours.float(), theirs.float(), rtol=5e-2, atol=3e-2 * max(1.0, float(theirs.abs().max())))
    return result


@pytest.mark.parametrize("name", SCORINGS)
def test_attention_is_that_of_float32_within_rounding(name):
    assert assert_is_as_in_float32(scoring_of(name)).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_takes_what_autocast_made():
    row, scoring = PackedRow(LENGTHS, torch.device("cpu")), scoring_of("both")
    with torch.no_grad(), under_autocast():
        tensors = [in_autocast(tensor.detach()) for tensor in states()]
        found = flex_packed(*tensors, row, Pattern(True), scoring, compiled=False)
        expected = packed_attention(*states(), row, Pattern(True), scoring)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert_close(found, expected, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SCORINGS)
def test_kernels_are_given_one_type_and_give_what_sdpa_gives(name, dtype, monkeypatch):
    """The kernel is chosen by the type: a query in float32 would never come to that for half precision."""
    given = []
    monkeypatch.setattr(kernels, "grouped_packed", recording(kernels.grouped_packed, given))
    query, key, value = states()
    with under_autocast(dtype=dtype):
        result = packed_attention(query, key, value, PackedRow(LENGTHS, query.device), Pattern(True), scoring_of(name))
        theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        padded = scaled_dot_product(query, key, value, None, True, scoring_of(name))
    assert given == [(dtype, dtype, dtype)]
    assert result.dtype == theirs.dtype == padded.dtype == dtype


def test_what_autocast_leaves_alone_stays():
    single, double = torch.ones(2), torch.ones(2, dtype=torch.float64)
    assert in_autocast(single) is single
    with under_autocast():
        assert in_autocast(single).dtype == torch.bfloat16
        assert in_autocast(double) is double
        with torch.autocast("cpu", enabled=False):
            assert in_autocast(single) is single


@pytest.mark.parametrize("name", builders.thinned(models.ARCHITECTURES | models.RECURRENT, 2))
def test_models_give_what_documents_give_alone(name):
    """Logits, loss and gradients."""
    model, texts = models.build(name), models.documents()
    found = []
    for compute in (models.alone_logits, models.packed_logits):
        with under_autocast():
            logits = compute(model, texts)
        loss = models.loss_of(logits, texts)
        loss.backward()
        found.append((logits.detach().float(), loss.detach(), models.gradients(model)))
        prepare_for_packing(model, autocast=torch.bfloat16)
    (alone, expected, wanted), (packed, loss, gradients) = found
    assert_close(packed, alone, rtol=0, atol=HALF_TOLERANCE * float(alone.abs().max()))
    assert_close(loss, expected, rtol=1e-2, atol=0)
    assert gradients.keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        largest = max(float(gradient.abs().max()), 1.0)
        assert_close(gradients[parameter], gradient, rtol=0, atol=HALF_TOLERANCE * largest, msg=parameter)


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "mixtral", "lfm2", "mamba2", "jamba"])
def test_no_document_changes_another(name):
    model = models.build(name).eval()
    prepare_for_packing(model, autocast=torch.bfloat16)
    with under_autocast():
        models.assert_nothing_crosses(model)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
def test_isolation_is_proven_in_the_type_of_the_run(autocast):
    model, seen = models.build("llama"), []
    query = model.model.layers[0].self_attn.q_proj
    query.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    prepare_for_packing(model, autocast=autocast)
    assert seen and set(seen) == {autocast or torch.float32}
    assert not torch.is_autocast_enabled("cpu")


def test_gradients_are_proven_inside_of_the_callers_autocast():
    """It keeps the weights that the proof without gradients brought to its type."""
    model = models.build("jamba")
    first, second = models.documents((7, 5))
    with under_autocast():
        assert not packing._gradients_are_apart(model, torch.bfloat16, first, second)
        prepare_for_packing(model, autocast=torch.bfloat16)
        assert packing._gradients_are_apart(model, torch.bfloat16, first, second)


@pytest.mark.parametrize("name", ["gpt_oss", "opt"])
def test_a_leak_is_found(name):
    model = models.build(name, attn_implementation="eager")
    with pytest.raises(RunError, match=f"a {name} model cannot keep documents apart: a token of one changes"):
        prepare_for_packing(model, "eager", torch.bfloat16)


@pytest.mark.parametrize("name", models.MIXED)
def test_states_that_cannot_be_reached_are_refused(name):
    with pytest.raises(RunError, match=f"a {name} model cannot keep documents apart: a token of one changes"):
        prepare_for_packing(models.build(name), autocast=torch.bfloat16)


@pytest.mark.parametrize("bf16", [True, False])
def test_a_run_proves_isolation_as_it_computes(bf16, tmp_path, model_folder, rows_file, monkeypatch, capsys):
    """Queries reach the kernel in the same type in the proof and in training."""
    given = []
    monkeypatch.setattr(kernels, "grouped_packed", recording(kernels.grouped_packed, given))
    proofs = []
    prove = packing.prove_isolation

    def proving(*inputs):
        prove(*inputs)
        proofs.append(len(given))

    monkeypatch.setattr(packing, "prove_isolation", proving)
    changes = {"trainer.data.packing": True, "trainer.data.sequence_length": 256, "trainer.arguments.bf16": bf16}
    assert main([str(builders.write_config(tmp_path, model_folder, rows_file, changes))]) == 0
    assert len(proofs) == 1 and 0 < proofs[0] < len(given)
    assert set(given) == {(torch.bfloat16 if bf16 else torch.float32,) * 3}
    assert f"computing in {'bfloat16' if bf16 else 'float32'}, attention {bridge.PACKED}" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("name", SCORINGS)
def test_kernels_for_gpus_are_those_for_half_precision(name, monkeypatch):
    given, scoring = [], scoring_of(name, "cuda")
    kernel = "varlen_packed" if scoring.is_plain else "flex_packed"
    monkeypatch.setattr(kernels, kernel, recording(getattr(kernels, kernel), given))
    assert assert_is_as_in_float32(scoring, "cuda", 64, (130, 1, 64, 64, 7)).dtype == torch.bfloat16
    assert given == [(torch.bfloat16,) * 3]


@pytest.mark.gpu
def test_flash_attention_takes_weights_in_float32():
    pytest.importorskip("flash_attn")
    model = models.build("llama", head_dim=32, attn_implementation="flash_attention_2").to("cuda")
    assert prepare_for_packing(model, autocast=torch.bfloat16).implementation == "flash_attention_2"
