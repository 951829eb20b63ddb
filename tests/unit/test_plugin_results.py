"""What a plugin's collator returns is looked at, batch by batch, and the plugin is named."""

import pytest
import torch
from transformers import BatchEncoding

from dumbo.errors import PluginError
from dumbo.plugin_results import checked_collator

IDS = torch.ones(2, 5, dtype=torch.int64)


@pytest.mark.parametrize("has_loss", [False, True])
@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (None, "None; it must return name -> tensor"),
        ([IDS], "a list; it must return name -> tensor"),
        ({"input_ids": IDS}, "a batch without 'labels', by which the tokens that are trained are counted"),
        ({"input_ids": IDS, "labels": [[1, 2]]}, "a list for 'labels'; it must be a tensor"),
        ({"input_ids": IDS, "labels": IDS[0]}, "'labels' of the shape [5]; it must be [sequences, tokens]"),
        ({"input_ids": IDS, "labels": IDS * 1.0}, "'labels' of the type torch.float32; they must be torch.int64"),
    ],
)
def test_what_no_training_can_do_without(batch, said, has_loss):
    collate = checked_collator("pairs", lambda rows: batch, has_loss)
    with pytest.raises(PluginError) as caught:
        collate([])
    assert str(caught.value) == f"plugin 'pairs': its collator returned {said}"


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"labels": IDS}, "a batch without 'input_ids'; only a plugin with a loss of its own can do without"),
        ({"input_ids": [[1]], "labels": IDS}, "a list for 'input_ids'; it must be a tensor"),
        (
            {"input_ids": IDS, "attention_mask": IDS[:1], "labels": IDS},
            "tensors of different shapes: 'input_ids' [2, 5], 'attention_mask' [1, 5], 'labels' [2, 5]; "
            "each token has one label",
        ),
    ],
)
def test_what_a_loss_of_a_plugin_can_do_without(batch, said):
    assert checked_collator("pairs", lambda rows: batch, True)([]) is batch
    with pytest.raises(PluginError) as caught:
        checked_collator("pairs", lambda rows: batch, False)([])
    assert str(caught.value) == f"plugin 'pairs': its collator returned {said}"


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": IDS, "labels": IDS},
        {"input_ids": IDS.int(), "attention_mask": IDS.bool(), "labels": IDS, "of_rows": [1, 2]},
        {"inputs_embeds": torch.ones(2, 5, 3), "labels": IDS},
        BatchEncoding({"input_ids": IDS, "labels": IDS}),
    ],
)
def test_a_batch_is_handed_on_as_it_is(batch):
    assert checked_collator("pairs", lambda rows: batch, False)([]) is batch


def test_a_collator_takes_the_rows():
    with pytest.raises(PluginError, match=r"plugin 'pairs': the collator takes \(\) \(.+\), must take \(rows\)"):
        checked_collator("pairs", lambda: {}, False)
