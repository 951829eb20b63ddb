"""The data formats, built from their options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.plugins.jinja_formatter.alpaca import Alpaca
from dumbo.plugins.jinja_formatter.columns import Columns
from dumbo.plugins.jinja_formatter.data_options import AlpacaOptions, ColumnsOptions, FixedOptions
from dumbo.plugins.jinja_formatter.fixed_formats import Fixed
from dumbo.plugins.jinja_formatter.messages import Messages

if TYPE_CHECKING:
    from dumbo.data.records import DataFormat


def build_data_format(options: Any) -> DataFormat:
    """The function that makes a conversation from a row."""
    if isinstance(options, AlpacaOptions):
        return Alpaca(options)
    if isinstance(options, ColumnsOptions):
        return Columns(options)
    return Fixed(options.type) if isinstance(options, FixedOptions) else Messages(options)
