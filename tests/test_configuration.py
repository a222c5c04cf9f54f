"""Where key and URL come from, what is refused before anything is sent, and what is never shown."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import generate
import pytest
from gateway import KEY, Gateway, Reply

KEYS = [
    "OMNIMAAS_API_KEY",
    "PRODUCT_SHOTS_IMAGEGEN_API_KEY",
    "RENDER_API_KEY",
    "CANVASFLOW_IMAGEGEN_API_KEY",
    "~/.product_shots_imagegen_api_key",
    "~/.product_shots_render_api_key",
    "~/.canvasflow_imagegen_api_key",
]
URLS = ["OMNIMAAS_BASE_URL", "PRODUCT_SHOTS_IMAGEGEN_BASE_URL", "RENDER_BASE_URL", "CANVASFLOW_IMAGEGEN_BASE_URL"]
ROWS = list(zip(KEYS, URLS))
BLANKS = ["", " ", "\t \n"]
URL = "https://gateway.example/v1"
SECRET = "sk-Zq7" + "XwV4uTs2" * 4
MESSAGE = """\
**This skill needs an image-gateway API key before it can generate.** You haven't configured one yet — here's the 30-second setup:

**Option A — temporary (this terminal only):**
```bash
export OMNIMAAS_API_KEY="sk-..."             # your OmniMaaS / Cloubic token
# optional: only set this if you have a private gateway endpoint
# export OMNIMAAS_BASE_URL="https://api.omnimaas.com/v1"
```

**Option B — persistent across sessions:**
Add the same `export` line to your `~/.zshrc` (or `~/.bashrc`), then `source ~/.zshrc`.

**Option C — file-based (no env vars):**
```bash
echo "sk-..." > ~/.product_shots_imagegen_api_key
chmod 600 ~/.product_shots_imagegen_api_key
```

**Where the key comes from:** [docs.cloubic.com](https://docs.cloubic.com) — get a token from the OmniMaaS / Cloubic dashboard. The same token covers both OpenAI `gpt-image-2` and Gemini `gemini-3-pro-image-preview` (Nano Banana Pro).

Any OpenAI-SDK-compatible image gateway also works — replace `OMNIMAAS_*` with `PRODUCT_SHOTS_IMAGEGEN_BASE_URL` + `PRODUCT_SHOTS_IMAGEGEN_API_KEY` pointing at your gateway.

Once configured, re-run the original request.
"""


@pytest.fixture
def configure(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """configure({source: value}): sets variables, and writes files (names beginning with ~) with mode 600."""

    def put(settings: Mapping[str, str]) -> None:
        for source, value in settings.items():
            if source.startswith("~"):
                path = Path(os.path.expanduser(source))
                path.write_bytes(value.encode())
                path.chmod(0o600)
            else:
                monkeypatch.setenv(source, value)

    return put


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Any:
    """What has been warned of so far."""
    caplog.set_level(logging.INFO, "image-gen")
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def no_trace_of(secret: str, *texts: str) -> bool:
    """Not the secret, nor any eight of its letters in a row from the ninth on."""
    bits = [secret[i : i + 8] for i in range(8, max(9, len(secret) - 7))]
    return not any(bit in text for bit in [secret, *bits] for text in texts)


# --- Which key, which URL ---


@pytest.mark.parametrize("first", range(len(KEYS)), ids=KEYS)
def test_each_key_source_is_found_and_beats_all_below_it(configure: Any, first: int) -> None:
    configure({source: f"sk-key-of-{number}" for number, source in enumerate(KEYS) if number >= first})
    assert generate.load_api_key() == (f"sk-key-of-{first}", KEYS[first])


@pytest.mark.parametrize("source", KEYS)
def test_each_key_source_is_enough_alone(configure: Any, source: str) -> None:
    configure({source: SECRET})
    assert generate.load_api_key() == (SECRET, source)


@pytest.mark.parametrize("blank", BLANKS, ids=["empty", "blank", "white"])
@pytest.mark.parametrize("source", KEYS)
def test_a_blank_key_counts_as_unset(configure: Any, source: str, blank: str) -> None:
    """`export OMNIMAAS_API_KEY=` is how people take a key away."""
    others = [other for other in KEYS if other != source]
    configure({source: blank})
    with pytest.raises(generate.ConfigError):
        generate.load_api_key()
    configure({others[-1]: SECRET})
    assert generate.load_api_key() == (SECRET, others[-1])


@pytest.mark.parametrize("first", range(len(URLS)), ids=URLS)
def test_each_url_variable_is_found_and_beats_all_below_it(configure: Any, first: int) -> None:
    configure({KEYS[0]: SECRET, **{name: f"https://host-{i}.example/v1" for i, name in enumerate(URLS) if i >= first}})
    assert generate.load_base_url() == (f"https://host-{first}.example/v1", URLS[first])


@pytest.mark.parametrize("blank", BLANKS, ids=["empty", "blank", "white"])
@pytest.mark.parametrize("variable", URLS)
def test_a_blank_url_counts_as_unset(configure: Any, variable: str, blank: str) -> None:
    configure({KEYS[0]: SECRET, variable: blank})
    assert generate.load_base_url()[0] == "https://api.omnimaas.com/v1"
    other = URLS[-1] if variable != URLS[-1] else URLS[0]
    configure({other: URL})
    assert generate.load_base_url() == (URL, other)


@pytest.mark.parametrize("source", [KEYS[0], KEYS[4]])
def test_the_default_url_goes_with_the_two_keys_that_need_no_more(configure: Any, warned: Any, source: str) -> None:
    """The onboarding message promises that this one setting is enough."""
    configure({source: SECRET})
    target = generate.load_target()
    assert (target.key, target.key_source, target.url) == (SECRET, source, "https://api.omnimaas.com/v1")
    assert warned() == []


@pytest.mark.parametrize("source", [source for source in KEYS if source not in (KEYS[0], KEYS[4])])
def test_any_other_key_without_url_is_refused_naming_the_variable(run: Any, configure: Any, source: str) -> None:
    """A key of some other gateway must not travel to the default one."""
    configure({source: SECRET})
    with pytest.raises(generate.ConfigError):
        generate.load_target()
    outcome = run("--prompt", "a cup")
    assert (outcome.code, outcome.out) == (3, "")
    assert source in outcome.err
    assert dict(ROWS).get(source, "_BASE_URL") in outcome.err
    assert no_trace_of(SECRET, outcome.err)


def test_home_is_looked_up_at_call_time(
    configure: Any, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    configure({KEYS[4]: "sk-first-home"})
    assert generate.load_api_key()[0] == "sk-first-home"
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("moved")))
    configure({KEYS[4]: "sk-second-home"})
    assert generate.load_api_key()[0] == "sk-second-home"


@pytest.mark.parametrize("source", [KEYS[0], KEYS[4]])
@pytest.mark.parametrize(
    "written",
    [f" {SECRET}", f"{SECRET}\n", f"{SECRET}\r\n", f"\n\t{SECRET} \n\n"],
    ids=["blank before", "line feed after", "CR LF after", "white all round"],
)
def test_white_space_around_a_key_is_no_part_of_it(configure: Any, source: str, written: str) -> None:
    """`echo sk-… > file` leaves a line feed, and so does copying from a web page."""
    configure({source: written})
    assert generate.load_api_key() == (SECRET, source)


def test_a_byte_order_mark_is_no_part_of_a_key(configure: Any) -> None:
    configure({KEYS[4]: f"\ufeff{SECRET}\r\n"})
    assert generate.load_api_key() == (SECRET, KEYS[4])


# --- A key only goes where it belongs ---


@pytest.mark.parametrize(("key", "url"), ROWS)
def test_key_and_url_of_one_row_belong_together(configure: Any, warned: Any, key: str, url: str) -> None:
    configure({key: SECRET, url: URL})
    target = generate.load_target()
    assert (target.key, target.key_source, target.url, target.url_source) == (SECRET, key, URL, url)
    assert warned() == []


@pytest.mark.parametrize(
    ("key", "url"),
    [pytest.param(KEYS[i], URLS[j], id=f"{KEYS[i]} to {URLS[j]}") for i in range(4) for j in range(i + 1, 4)]
    + [pytest.param(KEYS[i], URLS[j], id=f"{KEYS[i]} past {URLS[j]}") for i in range(4) for j in range(i)]
    + [pytest.param(name, url, id=f"{name} to {url}") for name in KEYS[4:] for url in URLS],
)
def test_a_row_with_a_url_and_no_key_takes_another_key_with_a_warning(
    configure: Any, warned: Any, key: str, url: str
) -> None:
    configure({key: SECRET, url: URL})
    target = generate.load_target()
    assert (target.key, target.key_source, target.url, target.url_source) == (SECRET, key, URL, url)
    assert len(warned()) == 1
    assert key in warned()[0]
    assert url in warned()[0]


@pytest.mark.parametrize("blank", [None, *BLANKS], ids=["unset", "empty", "blank", "white"])
def test_a_blank_key_in_the_url_s_row_is_none(configure: Any, warned: Any, blank: str | None) -> None:
    configure({KEYS[0]: SECRET, URLS[2]: URL, **({} if blank is None else {KEYS[2]: blank})})
    assert generate.load_target().key == SECRET
    assert len(warned()) == 1


@pytest.mark.parametrize(
    ("key", "url", "own"), [(KEYS[i], URLS[j], KEYS[j]) for i in range(4) for j in range(i + 1, 4)]
)
def test_a_key_does_not_go_to_a_gateway_that_has_its_own(
    gateway: Gateway, run: Any, configure: Any, monkeypatch: pytest.MonkeyPatch, key: str, url: str, own: str
) -> None:
    """Two half-finished set-ups in one shell must not hand one provider's key to the other."""
    for name in (KEYS[0], URLS[0]):
        monkeypatch.delenv(name)
    configure({key: SECRET, own: "sk-own-" + KEY, url: gateway.url})
    outcome = run("--prompt", "a cup", "--json")
    assert outcome.code == 3
    said = outcome.json["error"]["message"] + outcome.json["error"]["hint"]
    assert all(name in said for name in (key, url, own))
    assert re.search(r"\b(un)?set\b", said, re.IGNORECASE)
    assert gateway.requests == []
    assert no_trace_of(SECRET, outcome.out, outcome.err)


def test_a_warning_of_two_sources_reaches_the_user_and_the_request_goes_on(
    gateway: Gateway, run: Any, configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEYS[0])
    configure({KEYS[1]: gateway.key})
    outcome = run("--prompt", "a cup")
    assert outcome.code == 0
    assert [line for line in outcome.err.splitlines() if "warning" in line and KEYS[1] in line and URLS[0] in line]
    assert gateway.calls[0].headers["Authorization"] == f"Bearer {gateway.key}"


# --- Keys and files at fault ---

MALFORMED = {
    "line feed inside": "sk-Zq7XwV\n4uTs2XwV4uTs2",
    "carriage return inside": "sk-Zq7XwV\r4uTs2XwV4uTs2",
    "em dash inside": "sk-Zq7XwV—4uTs2XwV4uTs2",
    "blank inside": "sk-Zq7XwV 4uTs2XwV4uTs2",
    "tab inside": "sk-Zq7XwV\t4uTs2XwV4uTs2",
    "zero-width space": "sk-Zq7XwV\u200b4uTs2XwV4uTs2",
    "curly quotes": "“sk-Zq7XwV4uTs2XwV4uTs2”",
    "ellipsis of a masked key": "sk-Zq7XwV4uTs2XwV4uTs2…",
    "fullwidth letters": "ｓｋ-Zq7XwV4uTs2XwV4uTs2",
    "escape character": "sk-Zq7XwV\x1b4uTs2XwV4uTs2",
    "delete character": "sk-Zq7XwV\x7f4uTs2XwV4uTs2",
    "two lines": "sk-Zq7XwV4uTs2XwV4uTs2\nsk-Bb7XwV4uTs2XwV4uTs2",
}


@pytest.mark.parametrize("source", [KEYS[0], KEYS[4]])
@pytest.mark.parametrize("key", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_key_is_named_by_source_and_not_shown(
    gateway: Gateway, run: Any, configure: Any, monkeypatch: pytest.MonkeyPatch, source: str, key: str
) -> None:
    """requests would show it in a traceback, or send half of it."""
    monkeypatch.delenv(KEYS[0])
    configure({source: key})
    for flags in ([], ["--json"]):
        outcome = run("--prompt", "a cup", *flags)
        assert outcome.code == 3
        assert source in outcome.err
        assert "Traceback" not in outcome.err
        assert not re.search("Zq7|XwV|4uTs", outcome.out + outcome.err)
    assert gateway.requests == []


@pytest.mark.parametrize("key", ["k", "sk-1", "~!@#$%^&*()_+{}|:<>?`-=[]\\;',./\"", "a" * 2000], ids=len)
def test_any_printable_ascii_is_a_key(configure: Any, key: str) -> None:
    configure({KEYS[0]: key})
    assert generate.load_api_key() == (key, KEYS[0])


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o660, 0o666, 0o777], ids=oct)
@pytest.mark.parametrize("name", KEYS[4:])
def test_a_key_file_open_to_others_is_warned_of(configure: Any, warned: Any, name: str, mode: int) -> None:
    configure({name: SECRET})
    Path(os.path.expanduser(name)).chmod(mode)
    assert generate.load_api_key() == (SECRET, name)
    readable = bool(mode & 0o044)
    assert len(warned()) == 1 if readable else len(warned()) <= 1
    assert all(re.search(rf"chmod 600 \S*{re.escape(name[2:])}", text) for text in warned())
    assert no_trace_of(SECRET, *warned())


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700], ids=oct)
def test_a_key_file_of_the_owner_s_own_is_not_warned_of(configure: Any, warned: Any, mode: int) -> None:
    configure({KEYS[4]: SECRET})
    Path(os.path.expanduser(KEYS[4])).chmod(mode)
    assert generate.load_api_key()[0] == SECRET
    assert warned() == []


def test_a_key_file_that_is_not_used_is_nobody_s_business(configure: Any, warned: Any) -> None:
    configure({KEYS[0]: SECRET, KEYS[4]: "sk-other"})
    Path(os.path.expanduser(KEYS[4])).chmod(0o666)
    assert generate.load_api_key() == (SECRET, KEYS[0])
    assert warned() == []


def test_a_key_file_may_be_a_symbolic_link(configure: Any, tmp_path: Path, warned: Any) -> None:
    path = tmp_path / "secrets"
    path.write_text(SECRET)
    path.chmod(0o600)
    Path(os.path.expanduser(KEYS[4])).symlink_to(path)
    assert generate.load_api_key() == (SECRET, KEYS[4])
    assert warned() == []


@pytest.mark.parametrize("fault", ["a folder", "bytes that are no text", "a picture"])
def test_a_key_file_that_holds_no_key_is_a_configuration_error(run: Any, fault: str) -> None:
    path = Path(os.path.expanduser(KEYS[4]))
    if fault == "a folder":
        path.mkdir()
    else:
        path.write_bytes(b"sk-\xff\xfe\xfa" if fault == "bytes that are no text" else b"\x89PNG\r\n\x1a\n" + bytes(999))
        path.chmod(0o600)
    outcome = run("--prompt", "a cup")
    assert (outcome.code, outcome.out) == (3, "")
    assert KEYS[4] in outcome.err
    assert "Traceback" not in outcome.err


# --- URLs ---


@pytest.mark.parametrize(
    ("written", "used"),
    [
        (URL, URL),
        (URL + "/", URL),
        (URL + "///", URL),
        (f"  {URL}\n", URL),
        ("https://gateway.example", "https://gateway.example"),
        ("https://gateway.example/", "https://gateway.example"),
        ("https://gateway.example:8443/openai/v1/", "https://gateway.example:8443/openai/v1"),
        ("HTTPS://Gateway.Example/v1", "HTTPS://Gateway.Example/v1"),
        ("http://localhost:4000/v1", "http://localhost:4000/v1"),
        ("http://[::1]:4000/v1", "http://[::1]:4000/v1"),
        ("https://gateway.example/edits/v1", "https://gateway.example/edits/v1"),
    ],
)
def test_good_urls_lose_their_trailing_slashes_and_nothing_else(configure: Any, written: str, used: str) -> None:
    configure({KEYS[0]: SECRET, URLS[0]: written})
    url, source = generate.load_base_url()
    assert source == URLS[0]
    assert url in (used, used.replace("HTTPS://Gateway.Example", "https://gateway.example"))


@pytest.mark.parametrize("variable", URLS)
@pytest.mark.parametrize(
    "url",
    [
        pytest.param("gateway.example/v1", id="no scheme"),
        pytest.param("localhost:8000/v1", id="no scheme but a port"),
        pytest.param("//gateway.example/v1", id="scheme left out"),
        pytest.param("ftp://gateway.example/v1", id="another scheme"),
        pytest.param("file:///etc/passwd", id="a file"),
        pytest.param("https:gateway.example/v1", id="no slashes"),
        pytest.param("https://", id="no host"),
        pytest.param("https:///v1", id="no host but a path"),
        pytest.param("https://:443/v1", id="a port only"),
        pytest.param("https://gateway.example:port/v1", id="a port that is no number"),
        pytest.param("https://gateway.example:99999/v1", id="a port beyond all"),
        pytest.param("http://[::1/v1", id="half a bracket"),
        pytest.param("https://gate way.example/v1", id="a blank inside"),
        pytest.param("https://gateway.example/v1\nX-Injected: 1", id="a line feed inside"),
        pytest.param("https://gateway.example/v1?key=1", id="a query"),
        pytest.param("https://gateway.example/v1#top", id="a fragment"),
        pytest.param("sk-this-is-not-a-url", id="a word"),
    ],
)
def test_a_malformed_url_is_named_with_its_variable(run: Any, configure: Any, variable: str, url: str) -> None:
    configure({dict(zip(URLS, KEYS))[variable]: SECRET, variable: url})
    outcome = run("--prompt", "a cup", "--json")
    assert outcome.code == 3
    said = outcome.json["error"]["message"] + outcome.json["error"]["hint"]
    assert variable in said
    assert url.split("\n")[0] in said
    assert re.search(r"https?://\w", outcome.json["error"]["hint"]), "what would be right"
    assert generate.DEFAULT_BASE_URL not in outcome.json["error"]["hint"], "a stranger's gateway for this key"
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("slash", ["", "/"], ids=["bare", "slash"])
@pytest.mark.parametrize("endpoint", ["/chat/completions", "/images/generations", "/images/edits"])
def test_a_url_that_ends_in_an_endpoint_is_answered_with_the_right_one(
    gateway: Gateway, run: Any, configure: Any, endpoint: str, slash: str
) -> None:
    """The documentation's curl lines show it in full, and that is what people copy."""
    configure({URLS[0]: gateway.url + endpoint + slash})
    outcome = run("--prompt", "a cup", "--json")
    assert outcome.code == 3
    said = outcome.json["error"]["message"] + " " + outcome.json["error"]["hint"]
    assert gateway.url + endpoint in said
    assert re.search(rf"{re.escape(gateway.url)}(?!/)", said), "the right one stands alone"
    assert gateway.requests == []


def test_a_password_in_a_url_is_never_shown(run: Any, configure: Any) -> None:
    configure({KEYS[0]: SECRET, URLS[0]: "https://user:pa55word@gateway.example/v1?x=1"})
    outcome = run("--prompt", "a cup", "--json")
    assert outcome.code == 3
    assert "pa55word" not in outcome.out + outcome.err


@pytest.mark.parametrize(
    "host", ["gateway.example", "10.0.0.7:3000", "192.168.1.2", "host.docker.internal", "[fe80::1]"]
)
def test_plain_http_to_another_machine_is_warned_of(configure: Any, warned: Any, host: str) -> None:
    configure({KEYS[0]: SECRET, URLS[0]: f"http://{host}/v1"})
    assert generate.load_base_url()[0] == f"http://{host}/v1"
    assert len(warned()) == 1
    assert host in warned()[0]
    assert "unencrypted" in warned()[0]


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://127.8.9.1:80/v1", "http://[::1]:8000/v1"]
    + ["http://LOCALHOST/v1", "https://10.0.0.7/v1", "HTTPS://gateway.example/v1"],
)
def test_loopback_and_https_are_not_warned_of(configure: Any, warned: Any, url: str) -> None:
    configure({KEYS[0]: SECRET, URLS[0]: url})
    assert generate.load_base_url()[0].lower() == url.lower()
    assert warned() == []


@pytest.mark.parametrize("host", ["localhost.evil.example", "127.0.0.1.evil.example", "127evil.example"])
def test_hosts_that_only_look_like_loopback_are_warned_of(configure: Any, warned: Any, host: str) -> None:
    configure({KEYS[0]: SECRET, URLS[0]: f"http://{host}/v1"})
    generate.load_base_url()
    assert len(warned()) == 1


# --- No key at all ---


@pytest.mark.parametrize("flags", [[], ["--dry-run"], ["--check"], ["--quiet"], ["--aspect-ratio", "5:7"]])
def test_without_a_key_the_onboarding_message_is_shown_word_for_word(
    gateway: Gateway, cli: Any, flags: list[str]
) -> None:
    """It is required output; the key comes first, before any argument is judged."""
    outcome = cli("--prompt", "a cup", *flags, env={KEYS[0]: None})
    assert (outcome.code, outcome.out, outcome.err) == (3, "", MESSAGE)
    assert gateway.requests == []


def test_without_a_key_json_stays_one_object(gateway: Gateway, cli: Any) -> None:
    outcome = cli("--prompt", "a cup", "--json", env={KEYS[0]: None})
    assert outcome.code == 3
    assert (outcome.json["ok"], outcome.json["error"]["kind"]) == (False, "config")
    assert outcome.json["error"]["hint"].strip() == MESSAGE.strip()
    assert outcome.err in ("", MESSAGE)
    assert gateway.requests == []


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "cp1252", "ascii"])
def test_the_onboarding_message_survives_any_console(cli: Any, encoding: str) -> None:
    """An em dash must not turn the first thing that a newcomer reads into a traceback."""
    outcome = cli("--prompt", "a cup", env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert outcome.code == 3
    assert "export OMNIMAAS_API_KEY=" in outcome.err
    assert "Traceback" not in outcome.err


def test_the_message_s_options_work_as_written(gateway: Gateway, cli: Any, tmp_path: Path) -> None:
    """Option C, typed into a shell, is a working set-up."""
    _, _, option = MESSAGE.partition("**Option C")
    script = option.split("```")[1][len("bash") :].replace("sk-...", gateway.key)
    assert os.system(script) == 0
    assert Path(os.path.expanduser(KEYS[4])).stat().st_mode & 0o777 == 0o600
    outcome = cli("--prompt", "a cup", "--output", tmp_path / "cup.jpeg", env={KEYS[0]: None})
    assert outcome.code == 0
    assert gateway.calls[0].headers["Authorization"] == f"Bearer {gateway.key}"


# --- What is shown of a key ---


@pytest.mark.parametrize("length", [1, 2, 3, 8, 12, 15, 16, 17, 40, 200])
def test_never_more_than_eight_characters_nor_half_of_a_key_are_shown(length: int) -> None:
    key = "".join(chr(ord("A") + i % 26) for i in range(length))
    shown = generate.mask_key(key).rstrip("…")
    assert key.startswith(shown)
    assert len(shown) <= min(8, length / 2)
    assert length < 16 or len(shown) == 8


@pytest.mark.parametrize("flag", ["--check", "--dry-run"])
def test_only_the_beginning_of_the_key_in_use_is_shown(gateway: Gateway, run: Any, flag: str) -> None:
    outcome = run("--prompt", "a cup", flag)
    assert outcome.code == 0
    assert gateway.key[:8] in outcome.out
    assert gateway.key[:9] not in outcome.out + outcome.err
    assert no_trace_of(gateway.key, outcome.out, outcome.err)


def test_the_repr_of_a_target_keeps_the_key_to_itself(configure: Any) -> None:
    configure({KEYS[0]: SECRET})
    target = generate.load_target()
    assert no_trace_of(SECRET, repr(target), str(target), f"{target}", repr([target]), repr({"target": target}))


@pytest.mark.parametrize("variable", KEYS[1:4])
def test_keys_that_are_set_but_not_in_use_are_blotted_out_too(
    gateway: Gateway, run: Any, configure: Any, variable: str
) -> None:
    """A proxy in front may echo the whole environment of a neighbour; wherever a key comes from, it stays unseen."""
    configure({variable: SECRET})
    gateway.answer(Reply(400, body={"error": {"message": f"bad token {SECRET} given", "code": "bad_request"}}))
    outcome = run("--prompt", "a cup", "--json")
    assert outcome.code == 7
    assert no_trace_of(SECRET, outcome.out, outcome.err)


def test_sources_are_reported(gateway: Gateway, run: Any) -> None:
    """Which of seven places did it take? The answer must be in the output, without the key."""
    outcome = run("--prompt", "a cup", "--json")
    facts = json.loads(outcome.out)
    assert (facts["key_source"], facts["url_source"], facts["base_url"]) == (KEYS[0], URLS[0], gateway.url)
    assert KEYS[0] in outcome.err
