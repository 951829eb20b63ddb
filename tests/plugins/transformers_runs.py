"""Builds what tests of the transformers plugin hand to it: a configuration, and the plugin with a listener."""

from types import SimpleNamespace

from dumbo.config.schema import DatasetEntry, FormatOptions, ModelSection, RunConfig
from dumbo.plugins.transformers.plugin import TransformersPlugin


class ChatFormat(FormatOptions):
    """A train format that cannot do without a chat template."""

    @property
    def needs_chat_template(self):
        return True


def run_config(train_format=FormatOptions, **model):
    """A configuration with this `model` section and one dataset entry of formats `train_format`."""
    entry = DatasetEntry(type="r", data_format=FormatOptions(type="d"), train_format=train_format(type="t"))
    return RunConfig(model=ModelSection.model_validate(model), datasets=(entry,), plugins=("transformers",))


def new_plugin():
    """The plugin as a run makes it; what it tells the user is in `said`."""
    plugin = TransformersPlugin()
    plugin.said = []
    plugin.services = SimpleNamespace(say=plugin.said.append)
    return plugin
