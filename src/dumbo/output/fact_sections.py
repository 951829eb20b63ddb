"""The parts of a report below the curves: use, settings, data, parameters, choices, machine, repetition."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from dumbo.left_out_zeros import leaves_zeros_out
from dumbo.output.markup import Html, any_value, code, code_block, facts, joined, prose, section, table, text
from dumbo.output.numerals import count, percent
from dumbo.output.run_reading import RunRecord, is_number
from dumbo.output.settings import settings_of
from dumbo.redact import REDACTED, redact
from dumbo.run_folder import yaml_text

KNOWN_FACTS = frozenset(
    {"name", "outcome", "config_file", "started", "ended", "resumed", "seconds", "steps", "total_steps", "last"}
    | {"versions", "machine", "plugins", "data", "parameters", "chosen", "model", "error"}
)
"""Keys of `summary.json` that have places of their own; others are plugins' notes."""
_DATA = (
    ("source", "Source"),
    ("rows", "Rows"),
    ("tokens", "Tokens"),
    ("trained", "Trained tokens"),
    ("share", "Trained share"),
    ("held_out", "Held out"),
    ("bad", "Bad, dropped"),
    ("too_long", "Too long"),
    ("emptied", "Nothing to train"),
)
_SNIPPET = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({path})
tokenizer = AutoTokenizer.from_pretrained({path})
"""


def use_section(run: RunRecord) -> Html:
    """How to talk to the model, and how to load it."""
    if run.model is None:
        return Html("")
    folder = shlex.quote(str(run.folder))
    shell, model = f'dumbo chat {folder}\ndumbo generate {folder} "..."\n', run.model
    if leaves_zeros_out(run.model):
        model = run.folder / "whole"  # Transformers does not read the files without the zeros.
        shell += f"dumbo decompress {folder} {shlex.quote(str(model))}\n"
    return section(
        "use",
        "Use the result",
        [
            Html('<div class="two"><div><h3>In a terminal</h3>' + code_block(shell, "Commands") + "</div>"),
            Html("<div><h3>In Python</h3>"),
            code_block(_SNIPPET.format(path=_quoted(str(model))), "Python"),
            Html("</div></div>"),
        ],
        f"Model and tokenizer{' as they were last' if run.model.name != 'model' else ''} are in {code(run.model)}. "
        "Paths are as seen from where the run was started.",
    )


def _quoted(path: str) -> str:
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def settings_section(run: RunRecord) -> Html:
    """What was set otherwise than by default, and the whole configuration folded away."""
    if not run.config:
        return Html("")
    rows = [
        [
            Html(code(s.key) + (f'<span class="doc">{prose(s.doc)}</span>' if s.doc else "")),
            code(s.value),
            _default(s.default),
        ]
        for s in settings_of(run.config)
        if s.differs
    ]
    whole = code_block(yaml_text(redact(dict(run.config))), "The whole configuration")
    names = run.config.get("plugins")
    plugins = joined([code(name) for name in names]) if isinstance(names, list) else ""
    return section(
        "settings",
        "Settings",
        [
            table("Settings that differ from their defaults", ["Setting", "In this run", "Default"], rows)
            if rows
            else "",
            f'<p class="note">Plugins: {plugins}</p>' if plugins else "",
            f'<details class="more"><summary>The whole configuration (run.yaml)</summary>{whole}</details>',
        ],
        "What the run sets otherwise than by default. Everything else is at its default.",
    )


def _default(value: str | None) -> Html:
    words = "has none" if value is None else {"null": "not set", "{}": "empty", "[]": "empty"}.get(value)
    return Html(f'<span class="soft">{words}</span>') if words else code(value)


def data_section(run: RunRecord) -> Html:
    """The sources: rows, tokens, how many of them are trained, and what was left out."""
    entries = [_with_share(entry) for entry in _mappings(run.summary.get("data"))]
    if not entries:
        return Html("")
    titles = dict(_DATA)
    keys = [key for key in titles if any(key in entry for entry in entries)]
    keys += [key for key in dict.fromkeys(key for entry in entries for key in entry) if key not in titles]
    keys = [
        key for key in keys if key not in ("bad", "too_long", "emptied") or any(entry.get(key) for entry in entries)
    ]
    if len(entries) > 1:
        sums = {key: sum(e[key] for e in entries if is_number(e.get(key))) for key in keys if _adds_up(key, entries)}
        entries.append(_with_share({"source": "together", **sums}))
    rows = [[_data_cell(key, entry.get(key)) for key in keys] for entry in entries]
    numeric = [i for i, key in enumerate(keys) if key == "share" or _adds_up(key, entries)]
    header = [titles.get(key, key.replace("_", " ")) for key in keys]
    lead = "Where the rows came from. Trained tokens are those that the loss counts; the others are only read."
    return section("data", "Data", [table("Data by source", header, rows, numeric, total=len(entries) > 1)], lead)


def _with_share(entry: Mapping[str, Any]) -> dict[str, Any]:
    tokens, trained = entry.get("tokens"), entry.get("trained")
    known = is_number(tokens) and is_number(trained) and tokens
    return {**entry, "share": percent(trained / tokens)} if known else dict(entry)  # type: ignore[operator]


def _adds_up(key: str, entries: list[dict[str, Any]]) -> bool:
    values = [entry[key] for entry in entries if entry.get(key) is not None]
    return key not in ("source", "share") and bool(values) and all(map(is_number, values))


def _data_cell(key: str, value: Any) -> Html:
    if key == "source" and value is not None:
        return text(value)
    return Html('<span class="soft">–</span>') if value is None else any_value(value)


def parameters_section(run: RunRecord) -> Html:
    """What the optimizer may change, by part of the model."""
    parts = [p for p in _mappings(run.summary.get("parameters")) if is_number(p.get("trainable", 0))]
    parts = [p for p in parts if is_number(p.get("frozen", 0))]
    if not parts:
        return Html("")
    amounts = [(str(p.get("part", "")), p.get("trainable", 0), p.get("frozen", 0)) for p in parts]
    amounts.append(("together", sum(a[1] for a in amounts), sum(a[2] for a in amounts)))
    rows = [
        [
            text(name),
            *(text(count(n)) for n in (trainable, frozen)),
            text(percent(trainable / ((trainable + frozen) or 1))),
        ]
        for name, trainable, frozen in amounts
    ]
    header = ["Part", "Trainable", "Frozen", "Trained share"]
    lead = "How many numbers the model is made of. Frozen ones stay as they were."
    return section("parameters", "Parameters", [table("Parameters by part", header, rows, (1, 2, 3), total=True)], lead)


def chosen_section(run: RunRecord) -> Html:
    """What `auto` came to, and the notes of plugins."""
    chosen = run.summary.get("chosen")
    notes = {key: value for key, value in run.summary.items() if key not in KNOWN_FACTS}
    parts = []
    if isinstance(chosen, dict) and chosen:
        lead = Html("What <code>auto</code> came to on this machine.")
        parts.append(section("chosen", "Chosen for you", [facts(_spaced(chosen))], lead))
    if notes:
        parts.append(
            section("notes", "Noted on the way", [facts(_spaced(notes))], "What plugins kept for this report.")
        )
    return joined(parts)


def machine_section(run: RunRecord) -> Html:
    """Versions, and the machine."""
    versions, machine = run.summary.get("versions"), run.summary.get("machine")
    parts = []
    if isinstance(machine, dict) and machine:
        parts.append(Html(f"<div><h3>Machine</h3>{facts(_spaced(machine))}</div>"))
    if isinstance(versions, dict) and versions:
        parts.append(Html(f"<div><h3>Versions</h3>{facts(versions)}</div>"))
    return section("machine", "Machine and versions", [f'<div class="two">{joined(parts)}</div>'] if parts else [])


def repeat_section(run: RunRecord) -> Html:
    """The command that runs the same again, and what has to be there for it."""
    if not run.config:
        return Html("")
    file, again = shlex.quote(str(run.folder / "run.yaml")), shlex.quote(f"{run.folder}-again")
    whole = yaml_text(redact(dict(run.config)))
    needs = ["Relative paths in run.yaml start where the run was started: start it from there."]
    if "${env:" in whole:
        needs.append("Environment variables that run.yaml names with ${env:NAME} must be set.")
    if REDACTED in whole:
        needs.append(f"Secrets were left out ({REDACTED}) and have to be filled in.")
    names = run.config.get("plugins")
    if any(str(name).startswith((".", "/")) for name in (names if isinstance(names, list) else ())):
        written = run.summary.get("config_file")
        beside = f", {written}," if isinstance(written, str) else ""
        needs.append(f"Plugins in files are looked for beside run.yaml: copy it to where the first file{beside} lies.")
    items = "".join(f"<li>{text(need)}</li>" for need in needs)
    command = code_block(f"dumbo {file} trainer.output_dir={again}\n", "Command")
    lead = "run.yaml is the whole configuration, with everything merged that it extended or overrode."
    return section("repeat", "Repeat the run", [command, f'<ul class="note">{items}</ul>'], lead)


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _spaced(facts_by_key: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key).replace("_", " "): value for key, value in facts_by_key.items()}
