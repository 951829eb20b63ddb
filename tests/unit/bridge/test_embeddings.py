"""A model gets a row for every token, with sensible values, and nothing else of it changes."""

import pytest
import torch

from dumbo.bridge.embeddings import fit_embeddings
from tests import builders


def say_nothing(text):
    pass


@pytest.fixture
def grown():
    """A tokenizer with two tokens more than its vocabulary had."""
    tokenizer = builders.build_tokenizer()
    tokenizer.add_tokens(["<one>", "<two>"])
    return tokenizer


def pretrained(**overrides):
    model = builders.build_tiny_model(len(builders.build_tokenizer()), **overrides)
    model.config.name_or_path = model.name_or_path = "somewhere"
    return model


def test_new_rows_of_a_pretrained_model_are_the_mean_of_the_old(grown):
    model, said = pretrained(), []
    old, old_head = model.model.embed_tokens.weight.detach().clone(), model.lm_head.weight.detach().clone()
    size = len(old)
    assert fit_embeddings(model, grown, said.append) is model
    new, head = model.model.embed_tokens.weight, model.lm_head.weight
    assert len(new) == len(head) == len(grown) == model.config.vocab_size == size + 2
    assert torch.equal(new[:size], old) and torch.equal(head[:size], old_head)
    torch.testing.assert_close(new[size:], old.mean(0).expand(2, -1))
    torch.testing.assert_close(head[size:], old_head.mean(0).expand(2, -1))
    assert said == [
        f"embeddings: {size} -> {size + 2} rows for the tokenizer; the new ones are the mean of the old ones"
    ]


def test_logits_of_old_tokens_do_not_change(grown):
    model = pretrained().eval()
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    after = fit_embeddings(model, grown, say_nothing)(ids).logits
    torch.testing.assert_close(after[..., :-2], before)


def test_a_tied_head_stays_tied(grown, tmp_path):
    model = fit_embeddings(pretrained(tie_word_embeddings=True), grown, say_nothing)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_head_that_only_the_configuration_ties_is_kept(grown, tmp_path):
    from transformers import AutoModelForCausalLM

    model = pretrained()
    model.config.tie_word_embeddings = True
    model.save_pretrained(tmp_path, state_dict={name: w.clone() for name, w in model.state_dict().items()})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    fit_embeddings(loaded, grown, say_nothing)
    assert torch.equal(loaded.lm_head.weight[:-2], model.lm_head.weight)
    assert loaded.config.tie_word_embeddings is False


def test_the_bias_of_a_head_grows_with_it(grown):
    model = pretrained(config_type="gptj", n_head=4, rotary_dim=8, n_positions=64)
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.arange(len(model.lm_head.bias)))
    mean = model.lm_head.bias.mean().item()
    fit_embeddings(model, grown, say_nothing)
    assert model.lm_head.bias[-2:].tolist() == [mean, mean]


def test_new_rows_of_a_random_model_are_drawn_by_its_initialiser(grown):
    def rows(seed):
        model = builders.build_tiny_model(len(builders.build_tokenizer()), initializer_range=0.5)
        torch.manual_seed(seed)
        return fit_embeddings(model, grown, say_nothing).model.embed_tokens.weight[-2:].detach()

    assert torch.equal(rows(1), rows(1)) and not torch.equal(rows(1), rows(2))
    assert 0.2 < rows(1).std() < 0.9
    assert not torch.equal(rows(1)[0], rows(1)[1])


def test_rows_are_never_taken_away(grown):
    model, said = pretrained(), []
    model.resize_token_embeddings(600, mean_resizing=False)
    fit_embeddings(model, grown, said.append)
    assert len(model.model.embed_tokens.weight) == 600 and said == []


def test_special_ids_follow_the_tokenizer(grown):
    model = pretrained(eos_token_id=1, bos_token_id=1, pad_token_id=0)
    fit_embeddings(model, grown, say_nothing)
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == grown.eos_token_id
        assert config.pad_token_id == grown.pad_token_id
    assert model.config.bos_token_id == 1


def test_a_list_of_stops_is_kept_where_it_has_the_tokenizers(grown):
    model = pretrained()
    model.generation_config.eos_token_id = [grown.eos_token_id, 0]
    model.config.eos_token_id = [0, 1]
    fit_embeddings(model, grown, say_nothing)
    assert model.generation_config.eos_token_id == [grown.eos_token_id, 0]
    assert model.config.eos_token_id == grown.eos_token_id


def test_a_model_that_hides_its_embeddings_is_left_alone(grown):
    model = pretrained()
    model.get_input_embeddings = lambda: None
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    fit_embeddings(model, grown, say_nothing)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
