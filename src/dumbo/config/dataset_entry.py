"""An entry under `datasets:`: what every source has, whatever its reader and formats."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dumbo.config.section import Section


class FormatOptions(Section):
    """Options of a data format or train format; plugins subclass it once per type name."""

    type: str
    """Name of the format."""

    @property
    def needs_chat_template(self) -> bool:
        """Whether the tokenizer must have a chat template; asked before anything is loaded."""
        return False


class DatasetEntry(Section):
    """A source of rows and what becomes of them. The reader's own options stand beside these keys."""

    type: str
    """Reader: where rows come from."""
    data_format: FormatOptions
    """What a row is: a name, or `{type: name, ...options}`."""
    train_format: FormatOptions
    """How a record becomes tokens and labels: a name, or `{type: name, ...options}`."""
    held_out: bool = False
    """Evaluate on all rows of this source, and train on none of them."""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """How much an epoch has of this source, by `trainer.data.mix`: by default, how often it goes through it. 0.5 is
    half of the rows, the others in the next epoch; 2 is each row twice."""
    loss_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """How much each trained token of this source counts in the loss, beside those of other sources."""
    loss_weight_field: str | None = None
    """Column with such a weight for each row, a number from 0 on: a row of weight 2 counts as if it were there twice,
    and one of 0 is not trained. The loss is the mean by these weights, in evaluation, too."""
