"""Writes with a model that fills in masked tokens: answers on a canvas of masks, and masked texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from dumbo.bridge.bidirectional import make_bidirectional
from dumbo.bridge.head import logits_at
from dumbo.errors import DumboError
from dumbo.inference.generate import GREEDY, Reply, Sampling, TextGenerator, Writer, token_batches
from dumbo.inference.infilling import Infilling
from dumbo.losses.diffusion import predicting_places
from dumbo.plugins.diffusion.commands import Request, begins_with_command, parse
from dumbo.plugins.diffusion.mask_token import mask_token_id
from dumbo.plugins.diffusion.plugin import DiffusionOptions
from dumbo.plugins.diffusion.sampling import unmask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class DiffusionGenerator(TextGenerator):
    """Answers by unmasking a canvas of masks behind the prompt, whose first end token ends the answer."""

    way: ClassVar[str] = "by unmasking: each token is the likeliest, or drawn, of all"
    ignores: ClassVar[frozenset[str]] = frozenset({"top_p", "top_k", "repetition_penalty"})

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, writer: Writer, options: DiffusionOptions
    ) -> None:
        """`options` say how many steps, of which blocks, and where a token is predicted.

        Raises:
            RunError: the tokenizer has no mask token, or the model cannot see both sides.
        """
        super().__init__(model, tokenizer, writer)
        self._options, self._mask_token = options, mask_token_id(tokenizer)
        make_bidirectional(model)

    def reply(
        self, messages: Sequence[Mapping[str, Any]], max_new_tokens: int, sampling: Sampling, streamer: Any
    ) -> Reply:
        """As every generator's; the last message may begin with `:complete N` and `:mask R`.

        Raises:
            DumboError: a command with an impossible number, or nothing behind the commands.
        """
        request = parse(messages[-1]["content"])
        if not request.masks:
            asked = [*messages[:-1], {**messages[-1], "content": request.text}]
            ids = self.stream(self.prompt(asked), request.complete or max_new_tokens, sampling, streamer)
            text = self.text(ids)
            return Reply(text if self.is_literal(messages[-1]["content"]) else text.strip(), request.text)
        return self._infill(request, sampling)

    def draws(self, text: str | None = None) -> bool:
        """`:mask` draws the places, but for all of them."""
        if text is None:
            return True
        request = parse(text)
        return request.masks and request.share != 1

    def is_literal(self, text: str) -> bool:
        """That of commands is kept to the letter."""
        return begins_with_command(text)

    def infill(self, texts: Sequence[Sequence[int]], masked: Sequence[Sequence[bool]], sampling: Sampling) -> Tensor:
        """The texts with the masked tokens filled in, [texts, tokens], padded on the right."""
        width = max(len(text) for text in texts)
        pad = self._pad()
        ids = torch.tensor([[*text, *[pad] * (width - len(text))] for text in texts])
        mask = torch.tensor([[*places, *[False] * (width - len(places))] for places in masked])
        lengths = torch.tensor([len(text) for text in texts])
        with self.evaluating():
            return self._unmask(ids, mask, lengths, self._steps(sampling), sampling.temperature)

    def infillings(self, texts: Sequence[Sequence[int]], places: Sequence[Sequence[bool]]) -> list[Infilling]:
        """As `Infiller` says."""
        made: list[list[int]] = [[] for _ in texts]
        lengths = [len(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda index: lengths[index])
        for batch in token_batches(order, lengths, [0] * len(texts)):
            filled = self.infill([texts[index] for index in batch], [places[index] for index in batch], GREEDY)
            for index, ids in zip(batch, filled.tolist(), strict=True):
                made[index] = ids[: lengths[index]]
        found = []
        for text, masked, ids in zip(texts, places, made, strict=True):
            shown = [self._mask_token if is_masked else token for token, is_masked in zip(text, masked, strict=True)]
            words = [str(self.tokenizer.decode(list(tokens))) for tokens in (text, shown, ids)]
            found.append(Infilling(words[0], words[1], words[2], sum(masked), len(text)))
        return found

    def _infill(self, request: Request, sampling: Sampling) -> Reply:
        ids = list(self.tokenizer(request.text)["input_ids"])
        special = set(self.tokenizer.all_special_ids)
        places = [place for place, token in enumerate(ids) if place and token not in special]
        if not places:
            raise DumboError("there is nothing to mask: the first token of a text always stays")
        share = float(torch.rand(())) if request.share is None else request.share
        order = torch.randperm(len(places))[: max(1, int(share * len(places)))]
        chosen = {places[int(number)] for number in order}
        ids += [self._mask_token] * (request.complete or 0)
        masked = [place in chosen or place >= len(ids) - (request.complete or 0) for place in range(len(ids))]
        self._check_room(len(ids))
        made = self.infill([ids], [masked], sampling)[0].tolist()
        end = len(ids) - (request.complete or 0)
        made = [*made[:end], *self._until_end(made[end:])]
        marks = [None if not masked[place] else place >= end or made[place] == ids[place] for place in range(len(made))]
        shown = [self._mask_token if is_masked else token for token, is_masked in zip(ids, masked, strict=True)]
        note = f"Masked ({sum(masked) / len(masked):.1%}): {self.tokenizer.decode(shown)}"
        return Reply(self.text(made), None, note, tuple(self._pieces(made, marks)))

    def _pieces(self, ids: list[int], marks: list[bool | None]) -> list[tuple[str, bool | None]]:
        """The text, cut where the mark changes; a character that is on both sides goes with the second."""
        pieces, done, place = [], "", 0
        for mark, group in groupby(marks):
            place += len(list(group))
            text = self.text(ids[:place])
            text = text if place == len(ids) else text.rstrip("\ufffd")
            pieces.append((text[len(done) :], mark))
            done = text
        return pieces

    def _generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling, **more: Any
    ) -> list[list[int]]:
        """Block by block, until every row has an end token in the blocks that are finished."""
        starts = [len(prompt) for prompt in prompts]
        width = max(starts) + max_new_tokens
        ids = torch.full((len(prompts), width), self._pad())
        for row, prompt in enumerate(prompts):
            ids[row, : starts[row]] = torch.tensor(list(prompt))
            ids[row, starts[row] : starts[row] + max_new_tokens] = self._mask_token
        lengths = torch.tensor(starts) + max_new_tokens
        block = min(sampling.block_length or self._options.block_length or max_new_tokens, max_new_tokens)
        blocks = -(-max_new_tokens // block)
        steps = max(1, self._steps(sampling) // blocks)
        streamer, written = more.get("streamer"), 0
        if streamer is not None:
            streamer.put(ids[:, : starts[0]])
        answers: list[list[int]] = []
        for number in range(blocks):
            place = torch.arange(width)[None] - torch.tensor(starts)[:, None]
            now = (place >= number * block) & (place < min((number + 1) * block, max_new_tokens))
            ids = self._unmask(ids, now, lengths, steps, sampling.temperature)
            end = min((number + 1) * block, max_new_tokens)
            finished = [row[start : start + end].tolist() for row, start in zip(ids, starts, strict=True)]
            answers = [self._until_end(answer) for answer in finished]
            if streamer is not None and len(answers[0]) > written:
                streamer.put(torch.tensor(answers[0][written:]))
                written = len(answers[0])
            if all(len(answer) < end for answer in answers):
                break
        if streamer is not None:
            streamer.end()
        return answers

    def _unmask(self, ids: Tensor, places: Tensor, lengths: Tensor, steps: int, temperature: float) -> Tensor:
        """On the model's device, and back."""
        device = next(self.model.parameters()).device
        attended = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long().to(device)

        def predict(canvas: Tensor, wanted: Tensor) -> Tensor:
            inputs = {"input_ids": canvas, "attention_mask": attended, "use_cache": False}
            return logits_at(self.model, inputs, predicting_places(wanted, self._options.shift_logits))

        return unmask(predict, ids.to(device), places.to(device), self._mask_token, steps, temperature).cpu()

    def _steps(self, sampling: Sampling) -> int:
        return sampling.steps or self._options.num_diffusion_steps

    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else self._mask_token

    def _until_end(self, ids: list[int]) -> list[int]:
        ends = set(self.end_ids())
        return next((ids[:place] for place, token in enumerate(ids) if token in ends), ids)

    def _check_room(self, count: int) -> None:
        limit = self.context_length
        if limit is not None and count > limit:
            raise DumboError(f"the text has {count} tokens with what is to be written, and the model takes {limit}")
