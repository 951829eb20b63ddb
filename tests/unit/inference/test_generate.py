"""Generated text does not depend on its batch, stops where answers stop, and leaves the training as it was."""

import pytest
import torch

from dumbo.errors import DumboError
from dumbo.inference import generate
from dumbo.inference.generate import Sampling, TextGenerator
from dumbo.inference.prompting import PlainPromptWriter
from tests import builders


@pytest.fixture(scope="module")
def generator(tokenizer):
    model = builders.build_tiny_model(len(tokenizer), max_position_embeddings=64)
    return TextGenerator(model, tokenizer, PlainPromptWriter(tokenizer))


PROMPTS = [[40, 41, 42], [50], [60, 61, 62, 63, 64, 65, 66], [70, 71]]


def test_an_answer_is_the_same_alone_and_in_a_batch(generator, monkeypatch):
    together = generator.answers(PROMPTS, 8)
    assert together == [generator.answers([prompt], 8)[0] for prompt in PROMPTS]
    monkeypatch.setattr(generate, "_TOKENS_AT_ONCE", 20)
    assert generator.answers(PROMPTS, 8) == together
    assert all(len(answer) == 8 for answer in together), "a random model does not stop by itself"


def test_greedy_answers_are_the_likeliest_tokens(generator):
    ids = list(PROMPTS[0])
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(generator.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert generator.answers(PROMPTS[:1], 5) == [ids[3:]]


def test_an_end_token_ends_an_answer_and_is_left_out(generator):
    (whole,) = generator.answers(PROMPTS[:1], 8)
    ended = TextGenerator(generator.model, generator.tokenizer, generator._writer)
    ended.end_ids = lambda: [whole[3]]
    assert ended.answers(PROMPTS[:1], 8) == [whole[: whole.index(whole[3])]]


def test_the_tokenizer_s_and_the_model_s_end_tokens_count(generator, tokenizer):
    config = generator.model.generation_config
    before, config.eos_token_id = config.eos_token_id, [5, 6]
    assert generator.end_ids() == [5, 6, tokenizer.eos_token_id]
    config.eos_token_id = before


def test_training_goes_on_as_it_was(generator):
    model = generator.model
    model.train()
    model.config.use_cache = False
    state = torch.random.get_rng_state()
    generator.answers(PROMPTS, 3)
    assert model.training and model.config.use_cache is False
    assert torch.equal(torch.random.get_rng_state(), state), "greedy answers draw nothing"
    model.eval()
    generator.answers(PROMPTS, 3)
    assert not model.training


def test_drawing_follows_the_seed(generator):
    def drawn(seed, sampling):
        torch.manual_seed(seed)
        return generator.answers(PROMPTS[:1], 12, sampling)

    hot = Sampling(temperature=5.0)
    assert drawn(1, hot) == drawn(1, hot) != drawn(2, hot)
    assert drawn(1, Sampling(temperature=5.0, top_k=1)) == generator.answers(PROMPTS[:1], 12)
    assert drawn(1, Sampling(temperature=5.0, top_p=1e-6)) == generator.answers(PROMPTS[:1], 12)


def test_streamed_pieces_join_to_the_answer(generator, tokenizer):
    from dumbo.bridge.streaming import WordStreamer

    pieces = []
    ids = generator.stream(PROMPTS[0], 10, generate.GREEDY, WordStreamer(tokenizer, pieces.append))
    assert len(pieces) > 1
    assert "".join(pieces) == generator.text(ids)
    assert ids == generator.answers(PROMPTS[:1], 10)[0]


def test_an_answer_ends_where_the_model_does(generator, tokenizer):
    from dumbo.bridge.streaming import WordStreamer

    silent = WordStreamer(tokenizer, lambda _: None)
    assert len(generator.stream([7] * 60, 100, generate.GREEDY, silent)) == 4
    with pytest.raises(DumboError, match="the prompt has 64 tokens, and the model takes 64"):
        generator.stream([7] * 64, 1, generate.GREEDY, silent)


def test_what_the_model_s_files_want_of_generation_changes_no_answer(generator, tokenizer):
    from dumbo.bridge.streaming import WordStreamer

    model, own = generator.model, generator.model.generation_config
    expected = generator.answers(PROMPTS, 8)
    banned = sorted({token for answer in expected for token in answer})
    wishes = {"num_beams": 3, "suppress_tokens": banned, "bad_words_ids": [[token] for token in banned]}
    model.generation_config = type(own)(**wishes, eos_token_id=own.eos_token_id)
    wanted = model.generation_config.to_dict()
    try:
        assert generator.answers(PROMPTS, 8) == expected
        assert generator.stream(PROMPTS[0], 8, generate.GREEDY, WordStreamer(tokenizer, print)) == expected[0]
        assert model.generation_config.to_dict() == wanted, "and it is saved with the model as it was"
    finally:
        model.generation_config = own


def test_nor_behind_an_adapter(tokenizer):
    from peft import LoraConfig, get_peft_model

    model = builders.build_tiny_model(len(tokenizer))
    (expected,) = TextGenerator(model, tokenizer, PlainPromptWriter(tokenizer)).answers(PROMPTS[:1], 8)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.generation_config.suppress_tokens = expected
    generator = TextGenerator(adapted, tokenizer, PlainPromptWriter(tokenizer))
    assert generator.answers(PROMPTS[:1], 8) == [expected]
    assert adapted.generation_config.suppress_tokens == model.generation_config.suppress_tokens == expected


def test_answers_to_long_prompts_are_cut_and_those_beside_them_are_not(tokenizer):
    gpt2 = {"config_type": "gpt2", "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    model = builders.build_tiny_model(len(tokenizer), max_position_embeddings=64, **gpt2)
    generator = TextGenerator(model, tokenizer, PlainPromptWriter(tokenizer))
    prompts = [[40, 41, 42], [7] * 70, [50] * 60, [60] * 62, [61] * 60, [70] * 64, [71] * 48]
    together = generator.answers(prompts, 16)
    assert [len(answer) for answer in together] == [16, 0, 4, 2, 4, 0, 16]
    assert together == [generator.answers([prompt], 16)[0] for prompt in prompts]


def test_a_format_is_asked_for_its_end_once(generator, tokenizer, monkeypatch):
    asked = []

    class Counted(PlainPromptWriter):
        def end_ids(self):
            asked.append(1)
            return [5]

    counted = TextGenerator(generator.model, tokenizer, Counted(tokenizer))
    monkeypatch.setattr(generate, "_TOKENS_AT_ONCE", 20)
    counted.answers(PROMPTS, 3)
    assert 5 in counted.end_ids() and len(asked) == 1
