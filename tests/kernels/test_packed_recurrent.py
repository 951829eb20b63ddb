"""Packed rows give what their documents give alone in models with layers that carry a state from token to token."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dumbo.bridge.packing import packed_batch_inputs, prepare_for_packing
from dumbo.bridge.recurrent import MixerForward, RememberingCheckpoint, recurrent_mixers
from dumbo.errors import RunError
from dumbo.kernels.packed_row import SPARE, PackedRow, lay_out, take_back
from tests.kernels import models

CHECKPOINTED = ("qwen3_next", "mamba", "zamba2")
"""Layers that are told of boundaries, that are not, and that lie inside of others."""


@pytest.mark.parametrize("name", models.RECURRENT)
def test_packed_loss_and_gradients_are_those_of_documents_alone(name):
    packing = models.assert_trains_as_alone(models.build(name), models.documents())
    assert packing.separate is not None


@pytest.mark.parametrize("name", models.RECURRENT)
def test_no_document_changes_another(name):
    model = models.build(name).eval()
    prepare_for_packing(model)
    models.assert_nothing_crosses(model)


@pytest.mark.parametrize("name", ["lfm2", "qwen3_5_text", "mamba2", "recurrent_gemma"])
def test_documents_of_very_different_lengths(name):
    """Longer than chunks of linear attention, and in several groups."""
    lengths = (150, 3, 70, 33, 1)
    assert len(PackedRow(lengths, torch.device("cpu")).sequences.groups) == 4
    models.assert_trains_as_alone(models.build(name), models.documents(lengths))


def test_padding_and_steps_are_bounded():
    draw = torch.Generator().manual_seed(0)
    for count in (1, 3, 40, 200):
        lengths = tuple((torch.rand(count, generator=draw) ** 4 * 3000 + 1).long().tolist())
        row = PackedRow(lengths, torch.device("cpu"))
        groups = row.sequences.groups
        assert row.sequences.size <= 2 * sum(lengths) + SPARE * len(groups)
        assert sum(group.length for group in groups) <= 2 * max(lengths)
        tokens = torch.randn(sum(lengths), 2, generator=draw)
        assert torch.equal(take_back(lay_out(tokens, row.sequences), row.sequences), tokens)
    assert len(PackedRow((24, 20, 3, 1), torch.device("cpu")).sequences.groups) == 2


@pytest.mark.parametrize("name", models.MIXED)
def test_states_that_cannot_be_reached_are_refused(name):
    model = models.build(name)
    before = model.config._attn_implementation
    with pytest.raises(RunError, match=f"^packing: a {name} model cannot keep documents apart: a token of one changes"):
        prepare_for_packing(model)
    assert model.config._attn_implementation == before
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_leak_smaller_than_rounding_is_refused_beside_experts():
    """Experts round otherwise with other tokens: that alone is no leak, and does not hide one."""
    model = models.build("jamba").eval()
    mixer = model.model.layers[0].mamba

    def leak(module, inputs, states):
        return states + 1e-7 * states.cumsum(1)

    handle = mixer.register_forward_hook(leak)
    with pytest.raises(RunError, match="linear_attention carry a state across documents"):
        prepare_for_packing(model)
    assert "forward" not in vars(mixer)
    handle.remove()
    assert prepare_for_packing(model).separate is not None


class Isolating(nn.Module):
    """Computes documents one by one, as kernels do that are told of boundaries."""

    layer_type = "linear_attention"

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states, cu_seq_lens_q=None, **others):
        cuts = [0, hidden_states.shape[1]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
        pieces = [hidden_states[:, start:end] for start, end in zip(cuts, cuts[1:], strict=False)]
        return torch.cat([self.inner(piece) for piece in pieces], dim=1)


def test_layers_that_isolate_by_themselves_are_left_alone():
    model = models.build("lfm2")
    layer = model.model.layers[0]
    layer.conv = Isolating(layer.conv)
    assert list(recurrent_mixers(model)) == ["layers.0.conv"]
    packing = models.assert_trains_as_alone(model, models.documents())
    assert packing.separate is None
    assert "forward" not in vars(layer.conv)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_gradient_checkpointing_changes_nothing(name, reentrant):
    """Two rows before one backward pass: each layer is computed again with the documents that it had."""
    model = models.build(name).train()
    rows = [models.documents(), models.documents((20, 16), seed=1)]
    prepare_for_packing(model)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        sum(models.loss_of(models.packed_logits(model, texts), texts) for texts in rows).backward()
        found.append(models.gradients(model))
    assert_close(found[1], found[0])


@pytest.mark.parametrize("name", models.RECURRENT)
def test_generation_and_padded_batches_are_as_before(name):
    model = models.build(name).eval()
    prompt = torch.stack(models.documents((12, 12)))
    mask = torch.ones_like(prompt)
    mask[1, 9:] = 0
    batch = {"input_ids": prompt, "attention_mask": mask, "use_cache": False}
    greedy = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0}
    with torch.no_grad():
        logits, tokens = model(**batch).logits, model.generate(prompt[:1], **greedy)
        packing = prepare_for_packing(model)
        with packing.switched_off():
            assert torch.equal(model(**batch).logits, logits)
            assert torch.equal(model.generate(prompt[:1], **greedy), tokens)
        assert torch.equal(model.generate(prompt[:1], **greedy), tokens)
        kept = mask.bool()
        assert_close(model(**batch).logits[kept], logits[kept], rtol=1e-5, atol=1e-5 * float(logits.abs().max()))
        models.assert_nothing_crosses(model)


def test_switched_off_a_row_is_one_text():
    model, texts = models.build("mamba").eval(), models.documents()
    inputs = packed_batch_inputs(torch.cat(texts)[None], models.LENGTHS)
    with torch.no_grad():
        before = model(**inputs).logits
        packing = prepare_for_packing(model)
        assert not torch.equal(model(**inputs).logits, before)
        with packing.switched_off():
            assert torch.equal(model(**inputs).logits, before)


def test_preparing_again_and_removing_leaves_one_or_none():
    model = models.build("lfm2")
    prepare_for_packing(model)
    packing = prepare_for_packing(model)
    mixer = model.model.layers[0].conv
    assert packing.separate is not None
    assert not isinstance(mixer.forward.ordinary, MixerForward)
    model.gradient_checkpointing_enable()
    models.packed_logits(model.train(), models.documents())
    packing.separate.remove()
    assert vars(mixer).get("forward") is None
    assert not model._forward_hooks and not model.model._forward_hooks and not model.model._forward_pre_hooks
    functions = [vars(module).get("_gradient_checkpointing_func") for module in model.modules()]
    assert any(functions) and not any(isinstance(function, RememberingCheckpoint) for function in functions)


def test_a_copy_is_a_model_of_its_own():
    model, texts = models.build("qwen3_5_text").eval(), models.documents()
    prepare_for_packing(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        before = models.packed_logits(other, texts)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(models.packed_logits(other, texts), before)


def test_a_saved_model_does_not_know_of_it(tmp_path):
    model = models.build("lfm2")
    before = set(model.state_dict())
    prepare_for_packing(model)
    model.save_pretrained(tmp_path)
    assert set(model.state_dict()) == before
    assert "dumbo" not in (tmp_path / "config.json").read_text()
    assert type(model).from_pretrained(tmp_path).config.model_type == "lfm2"


def test_adapters_are_no_hindrance():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["in_proj", "q_proj"], init_lora_weights=False)
    models.assert_trains_as_alone(get_peft_model(models.build("lfm2"), config), models.documents())


def test_the_backbone_alone_is_told_of_documents():
    """A loss without logits may leave the head out."""
    model, texts = models.build("mamba").eval(), models.documents()
    prepare_for_packing(model)
    inputs = packed_batch_inputs(torch.cat(texts)[None], models.LENGTHS)
    with torch.no_grad():
        assert_close(model.lm_head(model.backbone(**inputs).last_hidden_state)[0], models.packed_logits(model, texts))


def test_what_cannot_be_taken_apart_is_refused_by_name():
    model, texts = models.build("lfm2"), models.documents()
    prepare_for_packing(model)
    inputs = packed_batch_inputs(torch.cat(texts)[None], models.LENGTHS)
    with pytest.raises(RunError, match=r"do not fill \[1, 35, 32\], which Lfm2ShortConv \(layers.0.conv\)"):
        model(**{**inputs, "input_ids": inputs["input_ids"][:, 1:], "position_ids": inputs["position_ids"][:, 1:]})
    with pytest.raises(RunError, match="a cache beside packed documents"):
        model(**{**inputs, "use_cache": True})
    holes = torch.ones_like(inputs["input_ids"])
    holes[0, 3] = 0
    with pytest.raises(RunError, match="an attention_mask beside packed documents|without padding"):
        model(**inputs, attention_mask=holes)
    with pytest.raises(RunError, match="not the boundaries"):
        model(**{**inputs, "cu_seq_lens_q": inputs["cu_seq_lens_q"].flip(0)})
    with pytest.raises(RunError, match="outside of the model's forward pass"):
        model.model.layers[0](torch.zeros(1, 4, 32))
    models.packed_logits(model, texts)


@pytest.mark.gpu
@pytest.mark.parametrize("name", models.RECURRENT)
def test_models_on_gpus_train_as_alone(name):
    models.assert_trains_as_alone(models.build(name).to("cuda"), models.documents(device="cuda"))
