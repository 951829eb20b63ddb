"""The configuration class of a run has the sections, readers and formats of its plugins, and no others."""

from typing import ClassVar

import pytest
from pydantic import ValidationError

from dumbo.config.compose import compose
from dumbo.config.schema import FormatOptions, RunConfig
from dumbo.config.section import Section
from dumbo.plugin_loader import BasePlugin, DataFormatPlugin, ReaderPlugin, TrainFormatPlugin


class FastOptions(Section):
    """Options with defaults."""

    every: int = 1
    """How often."""


class NeedyOptions(Section):
    """Options without a default."""

    teacher: str
    """Whom to ask."""


class FastPlugin(BasePlugin):
    section, options_type = "trainer.fast", FastOptions


class NeedyPlugin(BasePlugin):
    section, options_type = "evaluation.needy", NeedyOptions


class ListReader(Section):
    """A reader's keys."""

    rows: tuple[int, ...] = ()
    """The rows."""
    pairs: tuple[tuple[str, int], ...] | None = None
    """The pairs."""


class OtherReader(Section):
    """Another reader's keys."""

    url: str
    """Where."""


class Readers(ReaderPlugin):
    readers: ClassVar = {"list": ListReader, "other": OtherReader}


class PlainFormat(FormatOptions):
    """A format with a key."""

    field: str = "text"
    """Column."""


class WideFormat(FormatOptions):
    """A format with another key."""

    width: int
    """How wide."""


class Formats(DataFormatPlugin, TrainFormatPlugin):
    data_formats: ClassVar = {"plain": PlainFormat, "wide": WideFormat}
    train_formats: ClassVar = {"only": PlainFormat}


ENTRY = {"type": "list", "data_format": "plain", "train_format": "only"}


def config(**sections):
    return {"datasets": [ENTRY], "plugins": ["any"], **sections}


def errors(plugins, tree):
    """The last part of the location, and the kind, of every error; not that a list without its bad entries is short."""
    with pytest.raises(ValidationError) as caught:
        compose(plugins).model_validate(tree)
    return {(e["loc"][-1], e["type"]) for e in caught.value.errors() if e["type"] != "too_short"}


def test_a_section_stands_where_the_plugin_says():
    built = compose([FastPlugin, Readers, Formats]).model_validate(config(trainer={"fast": {"every": 3}}))
    assert isinstance(built, RunConfig)
    assert built.trainer.fast.every == 3
    assert built.trainer.arguments.batch_size == 8, "the core's keys are still there"


def test_a_section_that_is_left_out_or_empty_has_its_defaults():
    model = compose([FastPlugin, Readers, Formats])
    assert model.model_validate(config()).trainer.fast.every == 1
    assert model.model_validate(config(trainer={"fast": None})).trainer.fast.every == 1
    assert model.model_validate(config(trainer=None)).trainer.fast.every == 1


def test_a_section_with_required_options_is_required():
    assert errors([NeedyPlugin, Readers, Formats], config()) == {("evaluation", "missing")}
    assert errors([NeedyPlugin, Readers, Formats], config(evaluation={})) == {("needy", "missing")}
    assert errors([NeedyPlugin, Readers, Formats], config(evaluation={"needy": None})) == {("teacher", "missing")}


def test_a_section_of_no_listed_plugin_is_unknown():
    assert errors([Readers, Formats], config(trainer={"fast": {}})) == {("fast", "extra_forbidden")}


def test_composing_leaves_the_core_as_it_was():
    compose([FastPlugin, NeedyPlugin, Readers, Formats])
    assert errors([Readers, Formats], config(trainer={"fast": {}})) == {("fast", "extra_forbidden")}
    assert "fast" not in RunConfig.model_fields["trainer"].annotation.model_fields


def test_an_entry_is_of_the_class_of_its_reader_and_formats():
    entry = {
        "type": "list",
        "rows": [1, 2],
        "pairs": [["a", 1]],
        "data_format": {"type": "wide", "width": 3},
        "train_format": "only",
    }
    built = compose([Readers, Formats]).model_validate(config(datasets=[entry]))
    (found,) = built.datasets
    assert isinstance(found, ListReader)
    assert found.rows == (1, 2)
    assert found.pairs == (("a", 1),)
    assert isinstance(found.data_format, WideFormat)
    assert found.data_format.width == 3
    assert isinstance(found.train_format, PlainFormat)
    assert found.train_format.type == "only"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"url": "x"}, {("url", "extra_forbidden")}),
        ({"type": "other"}, {("url", "missing")}),
        ({"type": "nobody"}, {(0, "choice_unknown")}),
        ({"type": 3}, {(0, "choice_unknown")}),
        ({"type": None}, {(0, "choice_missing")}),
        ({"data_format": {"type": "plain", "width": 1}}, {("width", "extra_forbidden")}),
        ({"data_format": {"type": "wide"}}, {("width", "missing")}),
        ({"data_format": "wide"}, {("width", "missing")}),
        ({"data_format": "only"}, {("data_format", "choice_unknown")}),
        ({"train_format": {"field": "x"}}, {("train_format", "choice_missing")}),
        ({"train_format": ["only"]}, {("train_format", "choice_form")}),
        ({"train_format": None}, {("train_format", "choice_form")}),
    ],
)
def test_each_type_has_its_own_keys(changes, expected):
    assert errors([Readers, Formats], config(datasets=[ENTRY | changes])) == expected


def test_without_readers_and_formats_every_type_is_unknown():
    assert errors([], config()) == {(0, "choice_unknown")}
    assert errors([Readers], config()) == {("data_format", "choice_unknown"), ("train_format", "choice_unknown")}


def test_a_configuration_is_frozen():
    built = compose([FastPlugin, Readers, Formats]).model_validate(config())
    for section, name in ((built, "plugins"), (built.trainer, "seed"), (built.trainer.fast, "every")):
        with pytest.raises(ValidationError):
            setattr(section, name, 1)


def test_what_was_read_is_known_and_reading_may_be_nested():
    options = FastOptions.model_validate({"every": 2})
    assert options.unread() == ("every",)
    assert options.every == 2
    assert options.unread() == ()
    earlier = options.start_reading()
    assert options.unread() == ("every",)
    options.resume_reading(earlier)
    assert options.unread() == ()
    assert FastOptions().unread() == (), "a default that nobody wrote is nobody's concern"
