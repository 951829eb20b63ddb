"""What is left out of texts and configurations: by name, by shape, and what is known; and what is left as it is."""

import contextvars
import json

import pytest

from dumbo.redact import REDACTED, is_secret_name, learn_secrets, redact, redact_shapes, redact_text

LONG = "Zk93hdJq72kdlsQ8fGh2"

NAMES_OF_SECRETS = """
    api_key hubToken X-Api-Key aws_secret_access_key passwords webhook auth basic_auth auth_header authToken authtoken
    cookie session_cookies pat github_pat X-Auth Authorization api_tokens hf_tokens hf_key openai_key ssh_key
    api_secret_key webhook_uri webhook_url password2 api_key_1 apiKey2 clientKey
"""
NAMES_OF_OTHERS = """
    eos_token eos_token_2 tokens special_tokens max_new_tokens key monkey keys key_2 sort_key share_att_key author
    authors path pattern spat patience num_experts_per_token tokens_per_second cookiecutter token_healing
"""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("https://me:pass@host/x", "https://me:<redacted>@host/x"),
        ("at https://me:p@ss@host/x, then", "at https://me:<redacted>@host/x, then"),
        ("https://me:pa/ss@host/x", "https://me:<redacted>@host/x"),
        ("postgresql+psycopg2://me:s3@host/db", "postgresql+psycopg2://me:<redacted>@host/db"),
        (f"https://{LONG}:@host", "https://<redacted>@host"),
        (f"https://{LONG}:x-oauth-basic@host", "https://<redacted>@host"),
        (f"https://{LONG}@host/x", "https://<redacted>@host/x"),
        (f"https://h/x?X-Amz-Signature={LONG}&part=2", "https://h/x?X-Amz-Signature=<redacted>&part=2"),
        (f"https://h/x#access_token={LONG}", "https://h/x#access_token=<redacted>"),
        (f"https://hooks.slack.com/services/T0/B0/{LONG}", "https://hooks.slack.com/services/<redacted>"),
        (f"https://discord.com/api/webhooks/1/{LONG}'", "https://discord.com/api/webhooks/<redacted>'"),
        (f"bad api_key='{LONG}'", "bad api_key='<redacted>'"),
        (f'{{"secret": "{LONG}"}}', '{"secret": "<redacted>"}'),
        (f"hubToken: {LONG} webhook_url=https://h/{LONG}", "hubToken: <redacted> webhook_url=<redacted>"),
        (f"token='{LONG}'", "token='<redacted>'"),
        (f"Authorization: Bearer {LONG}", "Authorization: Bearer <redacted>"),
        ("hf_" + "a" * 30, REDACTED),
        ("github_pat_" + "a" * 40, REDACTED),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END", "-----BEGIN RSA PRIVATE KEY-----<redacted>-----END"),
    ],
)
def test_secrets_are_told_by_their_shape(written, shown):
    assert redact_text(written) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:8080/datasets/owner/name@main",
        "hf://datasets/owner/name@main/rows.jsonl",
        "ssh://git@github.com/owner/name",
        "abfs://container@account.dfs.core.windows.net/rows.jsonl",
        "https://h/x?author=ada&part=2",
        "the last token: <|im_end|>",
        "pad_token: <|pad|>",
        "the next token: unbelievable-things, and secretary: welcome",
        "api_key: ${env:KEY}",
        "rows.jsonl:12: message 2 has no 'role'",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact_text(text) == text


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        *((name, True) for name in NAMES_OF_SECRETS.split()),
        *((name, False) for name in NAMES_OF_OTHERS.split()),
    ],
)
def test_names_of_secrets(name, is_secret):
    assert is_secret_name(name) is is_secret


def test_everything_below_the_name_of_a_secret_is_one():
    tree = {"credentials": {"user": "me", "pin": 1234}, "api_keys": ["a", "b"], "stop_token": "<|end|>", "password": 7}
    assert redact(tree) == {
        "credentials": {"user": REDACTED, "pin": REDACTED},
        "api_keys": [REDACTED, REDACTED],
        "stop_token": "<|end|>",
        "password": REDACTED,
    }
    assert redact({"https://me:pass@host": 1}) == {"https://me:<redacted>@host": 1}
    assert redact({"api_key": "${env:KEY}"}) == {"api_key": "${env:KEY}"}


def test_secrets_of_the_environment_are_known(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", LONG)
    monkeypatch.setenv("MY_WANDB_API_KEY", "a+b/c=d+e/f=")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:proxypassword@proxy:80")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "somewhat")
    monkeypatch.setenv("DEVOPS_PAT", "patpatpat123")
    assert redact_text("with patpatpat123") == f"with {REDACTED}"
    said = f"{LONG} a+b/c=d+e/f= a%2Bb%2Fc%3Dd%2Be%2Ff%3D proxypassword /home/me/key.json somewhat"
    assert redact_text(said) == f"{REDACTED} {REDACTED} {REDACTED} {REDACTED} /home/me/key.json somewhat"
    assert redact_shapes({"a": LONG}) == {"a": LONG}, "the same on every machine: keys of the cache are made of it"


@pytest.mark.parametrize(
    "secret", ["two\nlines of it", "tab\tand  spaces", "q\"uo'te\\d", "it's one", 'say "one"', "schlüssel"]
)
def test_a_secret_is_known_however_it_is_written(secret, monkeypatch):
    monkeypatch.setenv("DEPLOY_SECRET", secret)
    ways = {
        "as it is": secret,
        "on one line": " ".join(secret.split()),
        "indented": "\n    | ".join(secret.split("\n")),
        "by Python": repr(f"{secret}")[1:-1],
        "by Python beside a quote": repr(f"it's {secret}")[1:-1].removeprefix("it's ").removeprefix("it\\'s "),
        "by Python beside both": repr(f"\"'{secret}")[4:-1],
        "in JSON": json.dumps(secret)[1:-1],
        "in plain JSON": json.dumps(secret, ensure_ascii=False)[1:-1],
    }
    for way, written in ways.items():
        assert redact_text(f"cannot log in with {written}, sorry") == f"cannot log in with {REDACTED}, sorry", way


def test_secrets_of_the_configuration_are_known():
    def learn_and_say():
        learn_secrets(
            {"a": {"token": LONG, "pin": {"secret": "short"}}, "b": ["https://me:p%40ssword1@host/?sig=xyzxyzxyz"]}
        )
        return redact_text(f"{LONG} short p%40ssword1 p@ssword1 xyzxyzxyz")

    expected = f"{REDACTED} short {REDACTED} {REDACTED} {REDACTED}"
    assert contextvars.copy_context().run(learn_and_say) == expected
    assert redact_text(LONG) == LONG, "in a context of its own"


@pytest.mark.parametrize("piece", ["a", "a-", "x://", "x://:", "x://a:b", "token:", "eyJ-", "?token", "api_key ", "\n"])
def test_no_text_is_slow_to_search(piece):
    """What takes time that grows with the square of the length takes hours here."""
    text = "https://h/ " + piece * (200_000 // len(piece))
    assert redact_text(text).startswith("https://h/ ")


def names_of_dumbo():
    from dumbo.cli.composed import composed_model
    from dumbo.config.options import all_options

    return {option.name for option in all_options(composed_model())}


def names_of_transformers():
    from dataclasses import fields

    from transformers import GenerationConfig, PretrainedConfig, TrainingArguments

    classes = {*dir(PretrainedConfig), *vars(PretrainedConfig()), *vars(GenerationConfig())}
    return {field.name for field in fields(TrainingArguments)} | classes


def names_of_every_architecture():
    from inspect import signature

    from transformers import CONFIG_MAPPING

    classes = [CONFIG_MAPPING[name] for name in CONFIG_MAPPING]
    return {name for one in classes for name in (*signature(one.__init__).parameters, *dir(one))}


@pytest.mark.parametrize(
    ("names", "known", "secret"),
    [
        (names_of_dumbo, "max_new_tokens", set()),
        (names_of_transformers, "pad_token_id", {"hub_token"}),
        pytest.param(names_of_every_architecture, "num_key_value_heads", set(), marks=pytest.mark.full),
    ],
    ids=["dumbo", "transformers", "architectures"],
)
def test_no_usual_option_is_taken_for_a_secret(names, known, secret):
    found = names()
    assert known in found
    assert {name for name in found if is_secret_name(name)} == secret
