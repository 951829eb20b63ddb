"""Writing by unmasking: the sampler, the commands before a prompt, blocks, batches."""

import pytest
import torch

from dumbo.errors import DumboError
from dumbo.inference.generate import Sampling
from dumbo.inference.prompting import PlainPromptWriter
from dumbo.plugins.diffusion.commands import COMPLETION, Request, parse
from dumbo.plugins.diffusion.generating import DiffusionGenerator
from dumbo.plugins.diffusion.plugin import DiffusionOptions
from dumbo.plugins.diffusion.sampling import choose, how_many, unmask
from tests import builders
from tests.plugins.diffusion_parts import mask_tokenizer, seeing_model

MASK, SIZE = 40, 41


class Recorder:
    """A model of random logits, which keeps every canvas that it is given."""

    def __init__(self):
        self.canvases = []
        self.draw = torch.Generator().manual_seed(0)

    def __call__(self, ids, places):
        self.canvases.append(ids.clone())
        assert torch.equal(places, ids == MASK), "asked for exactly what is still masked"
        return torch.randn(int(places.sum()), SIZE, generator=self.draw) * 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 7, 20, 100])
def test_after_all_steps_no_mask_is_left_and_what_was_filled_in_stays(steps, temperature):
    ids = torch.arange(36).view(3, 12)
    places = torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < torch.tensor([[0.9], [0.4], [0.0]])
    model = Recorder()
    made = unmask(model, ids, places, MASK, steps, temperature)
    assert not (made == MASK).any() and torch.equal(made[~places], ids[~places])
    canvases = [*model.canvases, made]
    assert len(model.canvases) <= min(steps, int(places.sum(dim=1).max()))
    for before, after in zip(canvases, canvases[1:], strict=False):
        kept = before != MASK
        assert torch.equal(before[kept], after[kept])
    for row in range(3):
        filled = [
            int((b[row] == MASK).sum() - (a[row] == MASK).sum()) for b, a in zip(canvases, canvases[1:], strict=False)
        ]
        left, expected = int(places[row].sum()), []
        for step in range(len(filled)):
            expected.append(min(left, max(1, int(left / (steps - step)))))
            left -= expected[-1]
        assert filled == expected and sum(filled) == int(places[row].sum())


def test_the_last_pass_fills_in_all():
    assert how_many(torch.tensor([7, 1, 0]), 1).tolist() == [7, 1, 0]
    assert how_many(torch.tensor([7, 1, 0]), 3).tolist() == [2, 1, 0]


def test_the_surest_token_is_the_first_and_never_the_mask():
    logits = torch.full((2, SIZE), -5.0)
    logits[0, MASK], logits[0, 3], logits[1, 7] = 9.0, 1.0, 4.0
    before = logits.clone()
    tokens, sure = choose(logits, MASK, 0.0)
    assert tokens.tolist() == [3, 7] and torch.equal(logits, before), "the model's logits stay as they are"
    kept = torch.softmax(logits[:, :MASK], dim=-1)
    torch.testing.assert_close(sure, kept.max(dim=-1).values)


def test_a_temperature_draws_in_the_right_shares():
    torch.manual_seed(0)
    logits = torch.tensor([1.0, 0.0, -1.0, 5.0]).expand(4000, 4)
    tokens, sure = choose(logits, 3, 2.0)
    shares = torch.bincount(tokens, minlength=4)[:3] / 4000
    torch.testing.assert_close(shares, torch.softmax(logits[0, :3] / 2, dim=-1), atol=0.03, rtol=0)
    torch.testing.assert_close(sure, torch.softmax(logits[0, :3], dim=-1)[tokens])


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("plain text", Request("plain text")),
        (":complete 5 hello", Request("hello", complete=5)),
        (":complete hello", Request("hello", complete=COMPLETION)),
        (":complete", Request("", complete=COMPLETION)),
        (":complete 5", Request("", complete=5)),
        (":complete 2.5 a", Request("2.5 a", complete=COMPLETION)),
        (":mask 0.4 a b", Request("a b", masks=True, share=0.4)),
        (":mask .5 a", Request("a", masks=True, share=0.5)),
        (":mask 1 a", Request("a", masks=True, share=1.0)),
        (":mask a b", Request("a b", masks=True)),
        (":mask nan a", Request("nan a", masks=True)),
        (":mask 0.3 :complete 4 a", Request("a", complete=4, masks=True, share=0.3)),
        (":complete 4 :mask 0.3 a", Request("a", complete=4, masks=True, share=0.3)),
        (":mask :complete a", Request("a", complete=COMPLETION, masks=True)),
        (":complete 4  two  spaces \n", Request(" two  spaces \n", complete=4)),
        (":mask 0.5\n\tcode:\n    x = 1", Request("\tcode:\n    x = 1", masks=True, share=0.5)),
        (":unknown a b", Request(":unknown a b")),
        (":complete 3 :unknown a", Request(":unknown a", complete=3)),
        (":completely a", Request(":completely a")),
        (" :mask a", Request(" :mask a")),
        (":) smile", Request(":) smile")),
    ],
)
def test_commands_are_read_from_the_left_and_whitespace_is_kept(prompt, expected):
    assert parse(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (":complete 0 a", ":complete 0 asks for no token"),
        (":complete -3 a", ":complete -3 asks for no token"),
        (":mask 0 a", ":mask 0 is no share"),
        (":mask 1.5 a", ":mask 1.5 is no share"),
        (":mask -0.2 a", ":mask -0.2 is no share"),
        (":mask 0.2 :mask 0.3 a", ":mask is written twice"),
    ],
)
def test_impossible_commands_are_refused(prompt, expected):
    with pytest.raises(DumboError, match=expected):
        parse(prompt)


@pytest.fixture(scope="module")
def tokenizer():
    return mask_tokenizer()


@pytest.fixture
def generator(tokenizer):
    return DiffusionGenerator(seeing_model(tokenizer), tokenizer, PlainPromptWriter(tokenizer), DiffusionOptions())


PROMPTS = ([20, 30, 40, 50], [60, 70], [80, 90, 100, 110, 120, 130, 140])


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(steps=3), Sampling(block_length=4), Sampling(steps=2, block_length=5)]
)
def test_a_batch_writes_what_its_prompts_write_alone(generator, sampling):
    together = generator.answers(PROMPTS, 9, sampling)
    assert together == [generator.answers([prompt], 9, sampling)[0] for prompt in PROMPTS]
    assert any(together) and all(generator.tokenizer.mask_token_id not in answer for answer in together)
    assert generator.answers(PROMPTS, 9, sampling) == together


def model_of_places(tokenizer):
    """One that says token 20 + n at place n, and from place 5 on the end, whatever stands in the text."""
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 4, "tie_word_embeddings": False}
    model = builders.build_tiny_model(len(tokenizer), config_type="gpt2", **shape)
    block, places = model.transformer.h[0], torch.eye(32)
    with torch.no_grad():
        for weight in (model.transformer.wte.weight, model.lm_head.weight):
            weight.zero_()
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()
        model.transformer.wpe.weight[:32] = places
        for place in range(1, 32):  # a token is predicted at the place before it
            said = tokenizer.eos_token_id if place >= 5 else 20 + place
            model.lm_head.weight[said] += 30 * places[place - 1]
    return model.eval()


def test_blocks_are_finished_from_left_to_right_and_an_end_token_ends_the_answer(tokenizer):
    model, canvases = model_of_places(tokenizer), []
    generator = DiffusionGenerator(model, tokenizer, PlainPromptWriter(tokenizer), DiffusionOptions())
    model.transformer.wte.register_forward_pre_hook(lambda module, inputs: canvases.append(inputs[0][0].clone()))
    assert generator.answers([[10, 11]], 12, Sampling(block_length=4)) == [[22, 23, 24]]
    masked = [(canvas == tokenizer.mask_token_id).nonzero().flatten().tolist() for canvas in canvases]
    assert masked[0] == list(range(2, 14)) and masked[-1][1:] == list(range(6, 14))
    assert len(canvases) == 4, "the blocks behind the end are not begun"


def test_a_text_is_filled_in_and_the_rest_of_it_stays(generator, tokenizer):
    text = "Licensed under  the Apache License,\n\tVersion 2.0"
    ids = tokenizer(text)["input_ids"]
    torch.manual_seed(0)
    reply = generator.reply([{"role": "user", "content": f":mask 0.5 {text}"}], 9, Sampling(), None)
    given = [piece for piece, mark in reply.pieces if mark is None]
    assert reply.asked is None and "".join(piece for piece, _ in reply.pieces) == reply.text
    assert reply.note.startswith("Masked (") and reply.note.count("<|diffusion_mask|>") == int(0.5 * (len(ids) - 1))
    assert any(mark is False for _, mark in reply.pieces) and all(
        piece in text for piece in given if "\ufffd" not in piece
    )
    with pytest.raises(DumboError, match="there is nothing to mask"):
        generator.reply([{"role": "user", "content": ":mask 0.5 "}], 9, Sampling(), None)


def test_several_texts_are_filled_in_as_each_alone_and_nothing_is_drawn(generator, tokenizer):
    texts = [tokenizer(text)["input_ids"] for text in ("the License", "Licensed under the Apache License", "a")]
    places = [[place % 2 == 1 for place in range(len(text))] for text in texts]
    before = torch.get_rng_state()
    found = generator.infillings(texts, places)
    assert torch.equal(torch.get_rng_state(), before), "the training goes on as without it"
    assert found == [generator.infillings([text], [masked])[0] for text, masked in zip(texts, places, strict=True)]
    assert [(f.original, f.total_tokens) for f in found] == [(tokenizer.decode(text), len(text)) for text in texts]
    assert [f.masked.count("<|diffusion_mask|>") for f in found] == [f.masked_tokens for f in found]


def test_a_text_may_be_filled_in_and_completed(generator, tokenizer):
    reply = generator.reply([{"role": "user", "content": ":mask 0.5 :complete 6 the License"}], 9, Sampling(), None)
    assert reply.note.endswith("<|diffusion_mask|>" * 6)
    with pytest.raises(DumboError, match="the model takes 1024"):
        generator.reply([{"role": "user", "content": ":mask 0.5 :complete 1100 the License"}], 9, Sampling(), None)


def test_the_model_trains_on_as_before(generator):
    generator.model.train()
    generator.answers([[20, 30]], 3)
    assert generator.model.training and torch.is_grad_enabled()
