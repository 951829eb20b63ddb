"""Plugins are made, given their options and called; what they do wrong is blamed on them by name, method and line."""

import inspect
from types import SimpleNamespace

import pytest

from dumbo import plugin_loader as hooks
from dumbo.config.arguments import TrainerArguments
from dumbo.config.schema import DatasetEntry, FormatOptions, RunConfig
from dumbo.config.section import Section
from dumbo.configure import configure
from dumbo.errors import ConfigError, DumboError, PluginError, RunError
from dumbo.launch import Launch
from dumbo.metrics import Metrics, MetricsCollector, RunInfo
from dumbo.plugin_finder import FoundPlugin, plugin_name
from dumbo.plugin_interfaces import INTERFACES
from dumbo.plugin_loader import BasePlugin
from dumbo.plugin_manager import PluginManager
from dumbo.plugin_results import merge_load_options
from dumbo.plugin_rules import check_consumers
from tests import builders

ENTRY = DatasetEntry(type="r", data_format=FormatOptions(type="d"), train_format=FormatOptions(type="t"))


def run_config(**trainer):
    trainer = {"arguments": trainer} if trainer else {}
    return RunConfig.model_validate({"model": {}, "datasets": (ENTRY,), "plugins": ["x"], "trainer": trainer})


def manager(*types, config=None):
    """A manager of started plugins."""
    found = [FoundPlugin(plugin_name(type), type, "test", position) for position, type in enumerate(types)]
    made = PluginManager(found)
    assert made.start(config or run_config()) == []
    return made


def line_of(function, text):
    """Where `text` stands in the source of a function of this file."""
    lines, first = inspect.getsourcelines(function)
    return f"{__file__}:{first + next(number for number, line in enumerate(lines) if text in line)}"


def test_a_plugin_has_its_config_options_seats_and_services():
    class LonePlugin(BasePlugin, MetricsCollector):
        def get_metrics_collector(self):
            return self

        def log_metrics(self, metrics, step): ...

    config = run_config()
    made = manager(LonePlugin, config=config)
    services = SimpleNamespace(say=print)
    made.bind(services)
    ((name, plugin),) = made.call_each(hooks.LoggingPlugin)
    assert name == "lone"
    assert plugin.config is config
    assert isinstance(plugin.options, Section)
    assert plugin.seats == {hooks.LoggingPlugin}
    assert plugin.services is services


def test_a_value_is_handed_from_patcher_to_patcher():
    class Model(tuple):
        named_parameters = ()

    def patcher(name, **declared):
        def patch_model(self, model, config):
            return Model((*model, name))

        return type(name, (BasePlugin,), {"patch_model": patch_model, **declared})

    made = manager(patcher("late", phase=hooks.Phase.KERNELS), patcher("b"), patcher("a", after=frozenset({"b"})))
    assert made.fold(hooks.ModelPatcherPlugin, Model(), None) == ("b", "a", "late")


def test_an_empty_seat_has_nobody():
    made = manager(type("Other", (BasePlugin,), {"patch_model": lambda self, model, config: model}))
    assert made.call_seat(hooks.LossPlugin, None, None) is None
    assert made.seat(hooks.OptimizerPlugin, None) is None


def test_keywords_with_defaults_reach_the_hook():
    class Loader(BasePlugin):
        def load_tokenizer(self, config, model=None):
            return config, model

    assert manager(Loader).call_one(hooks.TokenizerLoaderPlugin, "config", model="model") == ("config", "model")


CALLS = {
    **{interface.hook: "call_one" for interface in INTERFACES if interface.claim.name != "ANY_NUMBER"},
    **{interface.hook: "call_each" for interface in INTERFACES if interface.claim.name == "ANY_NUMBER"},
    **dict.fromkeys(("patch_model", "transform_dataset", "after_train"), "fold"),
    **dict.fromkeys(("build_data_format", "build_train_format"), "call_provider"),
    "read": "iterate_provider",
}
TABLES = {"read": "readers", "build_data_format": "data_formats", "build_train_format": "train_formats"}


def call(made, interface):
    """Call the hook of `interface` in the way that a run does."""
    how = getattr(made, CALLS[interface.hook])
    if interface.hook in TABLES:
        return list(how(interface.type, TABLES[interface.hook], "mine", None) or ())
    if CALLS[interface.hook] == "fold":
        return how(interface.type, "value", None)
    result = how(interface.type)
    return list(result) if CALLS[interface.hook] == "call_each" else result


def plugin_with(interface, method):
    table = {TABLES[interface.hook]: {"mine": Section}} if interface.hook in TABLES else {}
    return type("BadPlugin", (BasePlugin,), {interface.hook: method, **table})


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda interface: interface.hook)
def test_what_a_hook_raises_is_blamed_on_it(interface):
    def method(self, *arguments, **keywords):
        inspect.signature(3)  # the error comes from within another library

    made = manager(plugin_with(interface, method))
    with pytest.raises(PluginError) as caught:
        call(made, interface)
    place = line_of(test_what_a_hook_raises_is_blamed_on_it, "inspect.signature(3)")
    assert str(caught.value) == (
        f"plugin 'bad' failed in {interface.hook}: TypeError: 3 is not a callable object ({place})"
    )
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda interface: interface.hook)
def test_an_error_that_explains_itself_passes(interface):
    def method(self, *arguments, **keywords):
        raise RunError("the disk is full")

    with pytest.raises(RunError, match="^the disk is full$"):
        call(manager(plugin_with(interface, method)), interface)


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda interface: interface.hook)
def test_a_hook_that_returns_nothing_is_an_error(interface):
    made = manager(plugin_with(interface, lambda self, *arguments, **keywords: None))
    with pytest.raises(PluginError, match=f"plugin 'bad'.*{interface.hook}"):
        call(made, interface)


def test_what_a_format_raises_for_a_row_is_blamed_on_its_plugin():
    def to_record(row):
        return {}[row]

    Formats = type(
        "MyFormats", (BasePlugin,), {"build_data_format": lambda self, o: to_record, "data_formats": {"d": 1}}
    )
    made = manager(Formats)
    function = made.call_provider(hooks.DataFormatPlugin, "data_formats", "d", None)
    guarded = made.guarded(hooks.DataFormatPlugin, "data_formats", "d", function, str, "a text")
    place = line_of(test_what_a_format_raises_for_a_row_is_blamed_on_its_plugin, "{}[row]")
    with pytest.raises(PluginError) as caught:
        guarded("x")
    assert str(caught.value) == (
        f"plugin 'my_formats' failed in what build_data_format returned: KeyError: 'x' ({place})"
    )


def test_a_format_that_makes_nothing_of_a_row_is_an_error():
    made = manager(type("F", (BasePlugin,), {"build_data_format": lambda self, o: print, "data_formats": {"d": 1}}))
    guarded = made.guarded(hooks.DataFormatPlugin, "data_formats", "d", lambda row: None, str, "a text")
    message = "plugin 'f': what build_data_format returned made None of a row; it must make a text"
    with pytest.raises(PluginError, match=message):
        guarded("x")


def test_a_reader_that_fails_on_the_way_is_blamed():
    def read(self, options):
        yield 1
        raise OSError("gone")

    made = manager(type("Reading", (BasePlugin,), {"read": read, "readers": {"r": 1}}))
    rows = made.iterate_provider(hooks.ReaderPlugin, "readers", "r", None)
    assert next(rows) == 1
    with pytest.raises(PluginError, match="plugin 'reading' failed in read: OSError: gone"):
        next(rows)


def test_checks_and_constructors_that_fail_are_all_reported():
    def failing(name, error):
        def check(self, config):
            raise error

        return type(name, (BasePlugin,), {"check": check})

    def init(self):
        raise ValueError("no")

    types = [
        failing("a", ConfigError.at("trainer.seed", "is odd")),
        failing("b", RunError("no disk")),
        failing("c", KeyError("k")),
        type("d", (BasePlugin,), {"__init__": init, "check": lambda self, config: None}),
    ]
    made = PluginManager([FoundPlugin(type.__name__, type, "test", number) for number, type in enumerate(types)])
    said = [str(problem) for problem in made.start(run_config())]
    assert said[:2] == ["trainer.seed: is odd", "plugins.1: no disk"]
    assert said[2].startswith("plugins.2: plugin 'c' failed in check: KeyError: 'k' (")
    assert said[3].startswith("plugins.3: plugin 'd' cannot be made: ValueError: no (")


# Keys that nobody reads


@pytest.fixture
def configured(tmp_path, model_folder, rows_file):
    """From the text of a plugin file, its classes and changes, to the configuration of a run and its file."""

    def make(text, classes, changes, drop=()):
        (tmp_path / "mine.py").write_text("from dumbo.plugin_loader import *\n" + text)
        listed = [
            name for name in ("transformers", "transformers_trainer", "polars", "jinja_formatter") if name not in drop
        ]
        listed += [f"./mine.py:{name}" for name in classes]
        file = builders.write_config(tmp_path, model_folder, rows_file, {"plugins": listed, **changes})
        return configure(file, (), Launch()), file

    return make


def test_a_loader_that_ignores_a_key_that_the_user_set_is_found_out(configured):
    text = """
class LoaderPlugin(ModelLoaderPlugin):
    def load_model(self, config):
        config.model.base_model, config.model.attention
        self.named_parameters = ()
        return self
"""
    good, _ = configured(text, ["LoaderPlugin"], {})
    assert good.plugins.call_one(hooks.ModelLoaderPlugin, good.config)
    bad, file = configured(text, ["LoaderPlugin"], {"model.dtype": "bfloat16", "model.attention": "sdpa"})
    with pytest.raises(ConfigError) as caught:
        bad.plugins.call_one(hooks.ModelLoaderPlugin, bad.config)
    said = str(bad.explain(caught.value))
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if text.strip().startswith("dtype"))
    assert said.startswith(
        f"{file}:{line}:3: model.dtype: nothing uses this: the plugin 'loader', which has 'load_model'"
    )
    assert "attention" not in said


def test_what_a_loader_declares_is_known_before_it_is_called(configured):
    text = """
class LoaderPlugin(ModelLoaderPlugin):
    consumes = frozenset({"model.base_model"})
    def load_model(self, config): ...
"""
    configured(text, ["LoaderPlugin"], {})
    with pytest.raises(ConfigError, match="model.dtype: nothing uses this"):
        configured(text, ["LoaderPlugin"], {"model.dtype": "bfloat16"})


@pytest.mark.parametrize("name", sorted(TrainerArguments.model_fields))
def test_a_trainer_that_does_not_consume_a_key_refuses_it(name):
    class Training(hooks.TrainerPlugin):
        consumes = frozenset(f"trainer.arguments.{other}" for other in TrainerArguments.model_fields if other != name)

        def build_trainer(self, job): ...

    found = [FoundPlugin("training", Training, "test")]
    others = TrainerArguments.model_validate(
        {
            key: f.get_default(call_default_factory=True)
            for key, f in TrainerArguments.model_fields.items()
            if key != name
        }
    )
    assert list(check_consumers(run_config().model_copy(update={"trainer": _trainer(others)}), found)) == []
    value = TrainerArguments.model_fields[name].get_default(call_default_factory=True)
    written = TrainerArguments.model_validate({name: value})
    (problem,) = check_consumers(run_config().model_copy(update={"trainer": _trainer(written)}), found)
    assert problem.path == ("trainer", "arguments", name)
    assert "the plugin 'training', which has 'build_trainer', does not read it" in str(problem)


def _trainer(arguments):
    return run_config().trainer.model_copy(update={"arguments": arguments})


SEATS = [
    ("LossPlugin", "build_loss", ("label_smoothing_factor",)),
    ("OptimizerPlugin", "build_optimizer", ("learning_rate", "weight_decay", "adam_beta1")),
    ("SchedulerPlugin", "build_scheduler", ("warmup_steps", "lr_scheduler_type")),
]


@pytest.mark.parametrize(("base", "hook", "keys"), SEATS, ids=[seat[0] for seat in SEATS])
def test_a_seat_takes_its_keys_over_from_the_trainer(base, hook, keys):
    taken = keys[0]

    class Training(hooks.TrainerPlugin):
        consumes = frozenset({"trainer.arguments.batch_size"})

        def build_trainer(self, job): ...

    class Made:
        param_groups = get_last_lr = __call__ = print

    def method(self, *arguments):
        assert [getattr(self.config.trainer.arguments, key) for key in keys]
        return Made()

    default = TrainerArguments.model_fields[taken].default
    config = run_config(**{taken: default})
    Reading = type("Reading", (getattr(hooks, base),), {hook: method})
    Deaf = type("Deaf", (getattr(hooks, base),), {hook: lambda self, *arguments: Made()})

    def problems(*types):
        return list(check_consumers(config, [FoundPlugin(plugin_name(type), type, "test") for type in types]))

    assert len(problems(Training)) == 1, "the trainer does not consume it"
    assert problems(Training, Reading) == [], "the seat answers for it"
    assert manager(Training, Reading, config=config).call_one(getattr(hooks, base))
    with pytest.raises(ConfigError, match=f"trainer.arguments.{taken}: nothing uses this: the plugin 'deaf'"):
        manager(Training, Deaf, config=config).call_one(getattr(hooks, base))


def test_a_watched_trainer_may_ask_for_its_optimizer_while_it_is_built():
    config = run_config(batch_size=4, learning_rate=0.1, logging_steps=3)

    class Made(SimpleNamespace):
        train = save_model = print

    class Optimizing(hooks.OptimizerPlugin):
        def build_optimizer(self, model, config):
            return Made(param_groups=config.trainer.arguments.learning_rate)

    class Training(hooks.TrainerPlugin):
        def build_trainer(self, job):
            arguments = self.config.trainer.arguments
            assert arguments.batch_size == 4
            assert job("model").param_groups == 0.1
            return Made(steps=arguments.logging_steps if self.reads_all else None)

    for reads_all in (True, False):
        Training.reads_all = reads_all
        made = manager(Training, Optimizing, config=config)
        build = made.seat(hooks.OptimizerPlugin, config)
        if reads_all:
            assert made.call_one(hooks.TrainerPlugin, build).steps == 3
        else:
            with pytest.raises(ConfigError) as caught:
                made.call_one(hooks.TrainerPlugin, build)
            assert [problem.path[-1] for problem in caught.value.problems] == ["logging_steps"]


def test_load_options_that_agree_are_merged_and_others_refused():
    assert merge_load_options(iter([("a", {"x": 1}), ("b", {"x": 1, "y": 2})])) == {"x": 1, "y": 2}
    with pytest.raises(RunError, match="disagree on 'x' in the loading of the model: 'a' wants 1, 'b' wants 2"):
        merge_load_options(iter([("a", {"x": 1}), ("b", {"x": 2})]))


# Metrics


class Recorder(MetricsCollector):
    """Notes what it is told, and fails where it is asked to."""

    def __init__(self, fails=()):
        self.told, self.fails = [], fails

    def _note(self, what, *more):
        if what in self.fails:
            raise OSError("no network")
        self.told.append((what, *more))

    def open(self, run):
        self._note("open", run.name)

    def log_metrics(self, metrics, step):
        self._note("log", dict(metrics), step)
        metrics.clear()

    def close(self, outcome):
        self._note("close", outcome)


@pytest.fixture
def info(tmp_path):
    return RunInfo("run", tmp_path, {})


def test_every_collector_is_told_everything(info):
    both = [Recorder(), Recorder()]
    metrics = Metrics([("a", both[0]), ("b", both[1])])
    metrics.open(info)
    metrics.log({"train/loss": 1.0}, 1)
    metrics.close("finished")
    metrics.close("failed")
    for recorder in both:
        assert recorder.told == [("open", "run"), ("log", {"train/loss": 1.0}, 1), ("close", "finished")]


def test_a_collector_that_cannot_be_opened_stops_the_run(info):
    metrics = Metrics([("a", Recorder()), ("tracker", Recorder({"open"}))])
    with pytest.raises(DumboError, match="the metrics collector of 'tracker' cannot be opened: OSError: no network"):
        metrics.open(info)


@pytest.mark.parametrize("fails", ["log", "close"])
def test_a_collector_that_fails_later_is_reported_once_and_dropped(info, capsys, fails):
    good, bad = Recorder(), Recorder({fails})
    metrics = Metrics([("bad", bad), ("good", good)])
    metrics.open(info)
    for step in (1, 2, 3):
        metrics.log({"train/loss": 1.0}, step)
    metrics.close("finished")
    assert [told[0] for told in good.told] == ["open", "log", "log", "log", "close"]
    assert len(bad.told) == (1 if fails == "log" else 4), "it is not asked again"
    assert capsys.readouterr().err.count("'bad' failed in ") == 1


def test_a_collector_needs_one_method(info):
    class Small(MetricsCollector):
        steps = ()

        def log_metrics(self, metrics: dict, step: int):
            self.steps = (*self.steps, step)

    small = Small()
    metrics = Metrics([("small", small)])
    metrics.open(info)
    metrics.log({}, 3)
    metrics.close("finished")
    assert small.steps == (3,)
