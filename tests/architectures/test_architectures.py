"""The loss without logits is the loss of the logits, in whatever architecture Transformers has."""

from collections import Counter
from importlib.metadata import version

import pytest
import torch

from dumbo.bridge.head import leaving_logits
from dumbo.bridge.lazy_logits import LazyLogits
from tests.architectures import compare, table, tiny

PAGE = {(row.kind, row.name): row for row in table.rows()}
CHOSEN = {
    "llama": "",
    "gemma2": "scale, tanh, scale",
    "cohere": "scale",
    "granite": "scale",
    "falcon_h1": "scale",
    "gpt2": "",
    "opt": "",
    "phi": "",
    "bert": "",
    "prophetnet": "",
    "mixtral": "",
    "qwen3_next": "",
    "inkling2_text": "scale, tanh, scale",
    "reformer": "",
}
"""Soft caps, scales, tied weights, biases, a head with a transform, a padded vocabulary, experts, states, and layers
that are computed again in the backward pass."""
LEAST_FUSED = {"causal": 185, "image": 68}


@pytest.mark.parametrize("name", CHOSEN)
def test_losses_and_gradients_without_logits_are_those_with_them(name):
    found = compare.examine(name)
    assert (found.verdict, found.reason, found.own) == ("fused", "", "fused")
    assert found.steps == CHOSEN[name]


@pytest.mark.full
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in tiny.MAPPINGS for name in tiny.MAPPINGS[kind]])
def test_every_architecture_does_what_the_page_says(kind, name):
    found = compare.examine(name, kind)
    assert found.verdict != "MISMATCH", found.reason
    if (kind, name) in PAGE:
        said = PAGE[kind, name]
        assert (found.verdict, found.steps) == (said.verdict, said.steps), found.reason


def test_the_page_knows_every_architecture_and_counts_them():
    counts = Counter((row.kind, row.verdict) for row in PAGE.values())
    assert {verdict for _, verdict in counts} <= {"fused", "held", "no linear head", "not built here"}
    for kind, least in LEAST_FUSED.items():
        assert counts[kind, "fused"] >= least
        names = {name for found, name in PAGE if found == kind}
        assert f"\n{len(names)} names: {counts[kind, 'fused']} fused, " in table.PAGE.read_text(encoding="utf-8")
        if f"transformers {version('transformers')}," in table.PAGE.read_text(encoding="utf-8"):
            assert names == set(tiny.MAPPINGS[kind])


def test_what_is_not_fused_has_a_reason():
    assert all(row.reason for row in PAGE.values() if row.verdict != "fused")


def test_the_auxiliary_loss_of_experts_is_in_the_loss_of_the_model():
    model, batch = tiny.build("mixtral"), tiny.batch("mixtral")
    with leaving_logits(model):
        out = model(**batch)
    assert isinstance(out.logits, LazyLogits)
    assert out.logits.reason is None
    cross_entropy = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    )
    auxiliary = model.config.router_aux_loss_coef * out.aux_loss
    assert auxiliary > 1e-3
    torch.testing.assert_close(out.loss, cross_entropy + auxiliary)


def test_another_loss_is_a_mismatch(monkeypatch):
    """A step that were forgotten would be seen."""
    monkeypatch.setattr(compare, "TokenLoss", lambda options, say, **more: _Forgetful(options, say, **more))
    found = compare.examine("granite")
    assert found.verdict == "MISMATCH"
    assert "the loss of tokens" in found.reason


class _Forgetful(compare.TokenLoss):
    def __call__(self, model, batch, num_items):
        model.config.logits_scaling, scaling = 1.0, model.config.logits_scaling
        try:
            return super().__call__(model, batch, num_items)
        finally:
            model.config.logits_scaling = scaling
