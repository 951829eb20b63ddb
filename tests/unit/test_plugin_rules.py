"""Who sits where, in which order, and what is refused: whatever the order of the list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumbo.config.section import Section
from dumbo.plugin_finder import FoundPlugin, find_plugin, plugin_name
from dumbo.plugin_interfaces import INTERFACES
from dumbo.plugin_loader import BasePlugin, DataFormatPlugin, ModelLoaderPlugin, ModelPatcherPlugin, Phase, ReaderPlugin
from dumbo.plugin_rules import check_plugins, claims, in_order, serving

BY_HOOK = {interface.hook: interface for interface in INTERFACES}


def plugin(name, *hooks, bases=(BasePlugin,), **declared):
    """A plugin class with the methods `hooks`."""
    methods = {hook: lambda self, *arguments, **keywords: arguments[0] for hook in hooks}
    return type(name, bases, methods | {"name": name} | declared)


def listed(*types):
    return [FoundPlugin(plugin_name(type), type, "test", position) for position, type in enumerate(types)]


def problems(*types):
    """What is said of these plugins, beside the shipped ones, whose seats they may take."""
    shipped = [find_plugin(name, None).type for name in ("transformers", "transformers_trainer")]
    return [str(problem) for problem in check_plugins(listed(*types, *shipped))]


def names(found):
    return [plugin.name for plugin in found]


def patchers():
    """Patchers of random phases and `after`, without cycles: nobody goes after a plugin of a later number or phase."""

    @st.composite
    def draw_patchers(draw):
        size = draw(st.integers(1, 7))
        letters = draw(st.permutations("abcdefg"))[:size]
        phases = sorted(draw(st.lists(st.sampled_from(list(Phase)), min_size=size, max_size=size)))
        types = []
        for number, letter in enumerate(letters):
            after = frozenset(draw(st.sets(st.sampled_from([*letters[:number], "unlisted"]))))
            types.append(plugin(letter, "patch_model", phase=phases[number], after=after))
        return types, draw(st.permutations(types))

    return draw_patchers()


@given(patchers())
def test_the_order_of_the_list_never_matters(drawn):
    types, shuffled = drawn
    assert names(in_order(listed(*types))) == names(in_order(listed(*shuffled)))


@given(patchers())
def test_phase_goes_first_then_after(drawn):
    ordered = in_order(listed(*drawn[1]))
    assert len(ordered) == len(drawn[1])
    assert [found.type.phase for found in ordered] == sorted(found.type.phase for found in ordered)
    seen = set()
    for found in ordered:
        assert not (found.type.after & set(names(ordered))) - seen, "all that it goes after went before"
        seen.add(found.name)


def test_within_a_phase_the_name_decides():
    types = [plugin(name, "patch_model", phase=Phase.FREEZE) for name in "cab"]
    early = plugin("z", "patch_model")
    assert names(in_order(listed(*types, early))) == ["z", "a", "b", "c"]


def test_a_method_claims_an_interface_whatever_the_class_inherits():
    duck = plugin("duck", "get_metrics_collector")
    assert claims(duck, BY_HOOK["get_metrics_collector"])
    assert [hook for hook, interface in BY_HOOK.items() if claims(duck, interface)] == ["get_metrics_collector"]
    assert not claims(type("Idle", (ModelLoaderPlugin,), {}), BY_HOOK["load_model"])
    assert not claims(plugin("no_method", load_model=3), BY_HOOK["load_model"])


def test_a_plugin_with_one_method_and_nothing_declared_is_fine():
    class CustomMetricsPlugin(BasePlugin):
        def get_metrics_collector(self): ...

    assert problems(CustomMetricsPlugin) == []


def test_one_that_yields_leaves_its_seat_to_another():
    found = listed(plugin("a_loader", "load_tokenizer"), find_plugin("transformers", None).type)
    assert names(serving(BY_HOOK["load_tokenizer"], found)) == ["a_loader"]
    assert names(serving(BY_HOOK["load_model"], found)) == ["transformers"]


def test_one_whose_seats_are_all_taken_has_nothing_to_do():
    (problem,) = problems(plugin("loader", "load_model", "load_tokenizer"))
    assert problem.startswith("plugins.1: plugin 'transformers' has nothing left to do")


@pytest.mark.parametrize("hook", [i.hook for i in INTERFACES if i.claim.name != "ANY_NUMBER"])
def test_two_claimants_of_a_seat_are_refused(hook):
    both = [plugin("first", hook), plugin("second", hook)]
    (problem,) = [problem for problem in problems(*both) if "all want to be" in problem]
    for part in ("'first'", "'second'", f"with '{hook}'", "list "):
        assert part in problem


@pytest.mark.parametrize("hook", [i.hook for i in INTERFACES if i.claim.name == "ANY_NUMBER"])
def test_other_hooks_have_any_number(hook):
    assert problems(plugin("first", hook), plugin("second", hook)) == []


def test_a_seat_that_nobody_takes_is_refused_with_who_could():
    said = [str(problem) for problem in check_plugins(listed(plugin("log", "get_metrics_collector")))]
    assert [problem.split("'")[1] for problem in said] == ["load_model", "load_tokenizer", "build_trainer"]
    assert "add 'transformers' under plugins:" in said[0]


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"requires": frozenset({"missing_one"})}, "plugin 'mine' needs 'missing_one'\n    add 'missing_one' under"),
        ({"requires": frozenset({"transformers"})}, None),
        (
            {"conflicts": frozenset({"transformers"})},
            "plugin 'mine' cannot be combined with 'transformers'\n    remove",
        ),
        ({"conflicts": frozenset({"missing_one"})}, None),
        ({"after": frozenset({"missing_one"})}, None),
    ],
)
def test_requirements_and_conflicts(declared, expected):
    said = problems(plugin("mine", "get_callbacks", **declared))
    assert len(said) == (expected is not None)
    assert all(expected in problem for problem in said)


def test_a_cycle_is_refused_with_its_members():
    circle = [
        plugin(name, "patch_model", after=frozenset({after})) for name, after in (("a", "b"), ("b", "c"), ("c", "a"))
    ]
    (problem,) = problems(*circle)
    assert "these plugins want to go after each other in patch_model: " in problem
    assert all(name in problem.partition("patch_model: ")[2] for name in "abc")


def test_going_after_a_plugin_of_a_later_phase_is_a_cycle():
    early = plugin("early", "patch_model", after=frozenset({"late"}))
    late = plugin("late", "patch_model", phase=Phase.KERNELS)
    (problem,) = problems(early, late)
    assert "go after each other" in problem


def test_plugins_of_different_hooks_may_name_each_other():
    first = plugin("first", "patch_model", after=frozenset({"second"}))
    second = plugin("second", "get_callbacks", after=frozenset({"first"}))
    assert problems(first, second) == []


def test_a_plugin_without_a_hook_says_what_is_near():
    (problem,) = problems(plugin("mine", "get_metric_collector"))
    assert "plugin 'mine' has none of the methods of a plugin" in problem
    assert "did you mean 'get_metrics_collector' by 'get_metric_collector'?" in problem


def test_a_plugin_that_checks_only_is_one():
    assert problems(plugin("mine", "check")) == []


def test_an_interface_without_its_method_is_refused():
    (problem,) = problems(plugin("mine", "get_callbacks", bases=(ModelPatcherPlugin,)))
    assert problem == "plugins.0: plugin 'mine' is a ModelPatcherPlugin without 'patch_model'"


@pytest.mark.parametrize(
    ("base", "hook", "table", "what"),
    [
        (ReaderPlugin, "read", "readers", "reader"),
        (DataFormatPlugin, "build_data_format", "data_formats", "data format"),
    ],
)
def test_a_type_name_has_one_provider(base, hook, table, what):
    class Options(Section):
        """Options."""

    both = [plugin(name, hook, bases=(base,), **{table: {"rows": Options}}) for name in ("first", "second")]
    (problem,) = problems(*both)
    assert problem.startswith(f"plugins.1: the plugins 'first' and 'second' both bring a {what} called 'rows'")


def test_interfaces_name_methods_that_their_classes_have():
    for interface in INTERFACES:
        assert callable(getattr(interface.type, interface.hook))
        assert not claims(interface.type, interface)
    hooks = [interface.hook for interface in INTERFACES]
    assert len(hooks) == len(set(hooks))
