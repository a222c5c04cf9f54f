"""Where key and URL come from, what is refused before anything is sent, and what is never shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import generate
import pytest
from gateway import Gateway

OWNERS = ("OMNIMAAS", "PRODUCT_SHOTS_IMAGEGEN", "RENDER", "CANVASFLOW_IMAGEGEN")
FILES = ("product_shots_imagegen", "product_shots_render", "canvasflow_imagegen")
KEYS = [f"{owner}_API_KEY" for owner in OWNERS] + [f"~/.{name}_api_key" for name in FILES]
URLS = [f"{owner}_BASE_URL" for owner in OWNERS]
URL = "https://gateway.example/v1"
ASK = ["--prompt", "a cup", "--json"]
SECRET = "sk-Zq7" + "XwV4uTs2" * 4
SKILL = Path(generate.__file__).resolve().parents[1] / "SKILL.md"
QUOTED = re.findall(r"(?m)^>(?: (.*))?\n", SKILL.read_text(encoding="utf-8"))
MESSAGE = "".join(f"{line}\n" for line in QUOTED)  # the specification's, in its own words


@pytest.fixture
def configure(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """configure({source: value}) sets variables (None unsets) and writes files of mode 600."""

    def put(settings: Mapping[str, str | None], mode: int = 0o600) -> None:
        for source, value in settings.items():
            if source.startswith("~"):
                path = Path(os.path.expanduser(source))
                path.write_bytes(str(value).encode("utf-8", "surrogateescape"))
                path.chmod(mode)
            elif value is None:
                monkeypatch.delenv(source, raising=False)
            else:
                monkeypatch.setenv(source, value)

    return put


def refused(outcome: Any, *names: str) -> str:
    """What is said by a configuration error, which ends in exit code 3 and names all of these."""
    error = outcome.json["error"]
    assert (outcome.code, error["kind"], error["billed"]) == (3, "config", "no")
    said = f"{error['message']} {error['hint']}"
    assert all(name in said for name in names)
    assert "Traceback" not in outcome.err
    assert not re.search("Zq7|XwV|4uTs", outcome.out + outcome.err), "the key is shown"
    return said


@pytest.mark.parametrize("first", range(7), ids=KEYS)
def test_the_first_key_that_is_set_is_used(configure: Any, caplog: Any, first: int) -> None:
    """Seven sources in order; blank counts as unset; a file is judged when its key is in use."""
    configure(dict.fromkeys(KEYS[:first], " \t\n"))
    configure(dict.fromkeys(KEYS[first:], SECRET), mode=0o644)
    assert generate.load_api_key() == (SECRET, KEYS[first])
    assert len(caplog.records) == (first > 3)


@pytest.mark.parametrize("first", range(4), ids=URLS)
def test_the_first_url_that_is_set_is_used(configure: Any, first: int) -> None:
    """`load_base_url() -> (url, source)` follows a list of its own."""
    configure({KEYS[0]: SECRET, **dict.fromkeys(URLS[:first], "")})
    configure(dict.fromkeys(URLS[first:], URL))
    assert generate.load_base_url() == (URL, URLS[first])


@pytest.mark.parametrize(
    ("key", "url"), list(zip(KEYS, [None, URLS[1], URLS[2], URLS[3], None, URLS[1], URLS[1]]))
)
def test_the_default_url_goes_with_two_keys(run: Any, configure: Any, key: str, url: Any) -> None:
    """`OMNIMAAS_API_KEY` or the first file is enough; any other key needs the variable named."""
    configure({key: SECRET})
    outcome = run(*ASK, "--dry-run")
    if url:
        refused(outcome, key, url)
    else:
        assert outcome.json["url"] == "https://api.omnimaas.com/v1/chat/completions"
        assert outcome.json["warnings"] == []


@pytest.mark.parametrize("key", ["k", "~!@#$%^&*()_+{}|:<>?`-=[]\\;',./\"", "a" * 2000], ids=len)
def test_any_printable_ascii_is_a_key(configure: Any, key: str) -> None:
    """`echo sk-… > file` leaves a line feed; white space around is no part of a key."""
    for written in (key, f"\n\t{key} \r\n", f"\ufeff{key}\n"):
        configure({KEYS[4]: written})
        assert generate.load_api_key() == (key, KEYS[4])


@pytest.mark.parametrize(
    ("key", "url", "warnings"), [(0, 0, 0), (3, 3, 0), (0, 2, 1), (1, 0, 1), (5, 0, 1)]
)
def test_key_and_url_of_two_rows_earn_a_warning(
    gateway: Gateway, run: Any, configure: Any, key: int, url: int, warnings: int
) -> None:
    """The URL's row has no key of its own: go on, with a warning that names both sources."""
    configure({KEYS[0]: None, URLS[0]: None, KEYS[2]: " "})
    configure({KEYS[key]: gateway.key, URLS[url]: gateway.url})
    facts = run(*ASK).json
    assert (facts["key_source"], facts["url_source"]) == (KEYS[key], URLS[url])
    assert gateway.calls[0].headers["Authorization"] == f"Bearer {gateway.key}"
    assert len(facts["warnings"]) == warnings
    assert all(KEYS[key] in text and URLS[url] in text for text in facts["warnings"])


@pytest.mark.parametrize("row", [0, 2])
def test_a_key_does_not_go_to_a_gateway_that_has_its_own(
    gateway: Gateway, run: Any, configure: Any, row: int
) -> None:
    """Two half-finished set-ups must not hand one provider's key to the other: refuse."""
    configure({KEYS[0]: None, URLS[0]: None})
    configure({KEYS[row]: SECRET, KEYS[3]: gateway.key, URLS[3]: gateway.url})
    said = refused(run(*ASK), KEYS[row], KEYS[3], URLS[3])
    assert re.search(r"\b([Uu]n)?set\b", said)
    assert gateway.requests == []


# --- Keys and files at fault ---


@pytest.mark.parametrize(
    "fault", ["\n", "—", " ", "\u200b", "“", "ｓ", "\x7f", "\udcff"], ids=ascii
)
@pytest.mark.parametrize("source", [KEYS[0], KEYS[4]])
def test_a_malformed_key_is_named_by_source_and_not_shown(
    gateway: Gateway, run: Any, configure: Any, source: str, fault: str
) -> None:
    """A key must be printable ASCII without spaces; else an error that does not show it."""
    configure({KEYS[0]: None})
    configure({source: f"sk-Zq7XwV{fault}4uTs2XwV"})
    refused(run(*ASK), source)
    assert gateway.requests == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o600, 0o400], ids=oct)
def test_a_key_file_open_to_others_is_warned_of(configure: Any, caplog: Any, mode: int) -> None:
    """A key file readable by group or others: warn, with the `chmod 600` to type."""
    configure({KEYS[5]: SECRET}, mode)
    assert generate.load_api_key() == (SECRET, KEYS[5])
    assert len(caplog.records) == bool(mode & 0o044)
    assert all(f"chmod 600 {KEYS[5]}" in text for text in caplog.messages)
    assert SECRET[8:] not in caplog.text


# --- URLs ---


@pytest.mark.parametrize(
    "url", ["https://a.example", "https://a.example:65535/edits/v1", "HTTPS://A.Example/v1"]
)
def test_trailing_slashes_are_dropped(configure: Any, caplog: Any, url: str) -> None:
    """URL: http or https with a host; trailing slashes dropped."""
    configure({KEYS[0]: SECRET, URLS[0]: f"  {url}///\n"})
    assert (generate.load_base_url(), caplog.messages) == ((url, URLS[0]), [])


@pytest.mark.parametrize(
    "url",
    [
        "gateway.example/v1",
        "ftp://gateway.example/v1",
        "https:gateway.example/v1",
        "https:///v1",
        "https://:443/v1",
        "https://gateway.example:port/v1",
        "https://gateway.example:65536/v1",
        "http://[::1/v1",
        "https://gate way.example/v1",
        "https://gateway.example/v1\nX-Injected: 1",
        "https://gateway.example/v1?key=1",
        "https://gateway.example/v1#top",
        "https://user:pa55word@gateway.example/v1",
    ],
)
def test_a_malformed_url_is_named_with_its_variable(run: Any, configure: Any, url: str) -> None:
    """http or https with a host, no query or fragment; a password in it is never shown."""
    configure({KEYS[1]: SECRET, URLS[1]: url})
    outcome = run(*ASK)
    said = refused(outcome, URLS[1])
    assert (url.split("\n")[0] in said) == ("pa55" not in url)
    assert "pa55" not in outcome.out + outcome.err
    hint = outcome.json["error"]["hint"]
    assert re.search(r"https?://\w", hint)
    assert generate.DEFAULT_BASE_URL not in hint, "a stranger's gateway for this key"


@pytest.mark.parametrize("end", ["/chat/completions", "/images/generations/", "/images/edits"])
def test_an_endpoint_is_answered_with_the_right_url(run: Any, configure: Any, end: str) -> None:
    """A URL that ends in one of the three endpoint paths: error that shows the right one."""
    configure({KEYS[0]: SECRET, URLS[0]: URL + end})
    said = refused(run(*ASK), URL + end.rstrip("/"))
    assert re.search(rf"{re.escape(URL)}(?!/)", said), "the right one stands alone"


@pytest.mark.parametrize(
    ("host", "warnings"),
    [
        ("localhost:8000", 0),
        ("LOCALHOST", 0),
        ("127.8.9.1:80", 0),
        ("[::1]", 0),
        ("10.0.0.7:3000", 1),
        ("localhost.evil.example", 1),
        ("127.0.0.1.evil.example", 1),
    ],
)
def test_plain_http_is_warned_of(configure: Any, caplog: Any, host: str, warnings: int) -> None:
    """Plain http to a host that is not loopback: warn that the key travels unencrypted."""
    configure({KEYS[0]: SECRET, URLS[0]: f"http://{host}/v1"})
    assert generate.load_base_url() == (f"http://{host}/v1", URLS[0])
    assert len(caplog.records) == warnings
    assert caplog.text.count("unencrypted") == caplog.text.count(host) == warnings


@pytest.mark.parametrize("flag", ["--dry-run", "--check", "--quiet", "--aspect-ratio=5:7"])
def test_without_a_key_the_onboarding_message_is_shown(run: Any, flag: str) -> None:
    """No key: the onboarding message, word for word, before any argument is judged; exit 3."""
    outcome = run("--prompt", "a cup", flag)
    assert (outcome.code, outcome.out, outcome.err) == (3, "", MESSAGE)
    json = run("--prompt", "a cup", flag, "--json")
    refused(json)
    assert json.json["error"]["hint"].strip() == MESSAGE.strip()


def test_the_onboarding_message_survives_any_console(cli: Any) -> None:
    """An em dash must not turn the first thing that a newcomer reads into a traceback."""
    outcome = cli("--prompt", "cup", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert (outcome.code, outcome.err) == (3, MESSAGE.encode("ascii", "backslashreplace").decode())


def test_option_c_works_as_written(gateway: Gateway, run: Any, configure: Any) -> None:
    """Option C, typed into a shell, is a working set-up."""
    script = MESSAGE.partition("**Option C")[2].split("```")[1].removeprefix("bash")
    assert os.system(script.replace("sk-...", gateway.key)) == 0
    configure({KEYS[0]: None})
    facts = run(*ASK).json
    assert (facts["ok"], facts["key_source"]) == (True, KEYS[4])
    assert Path(os.path.expanduser(KEYS[4])).stat().st_mode & 0o777 == 0o600


def test_a_url_alone_is_looked_up_by_the_key_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """load_base_url() -> (url, source), without being told where the key comes from."""
    monkeypatch.setenv("RENDER_API_KEY", "sk-render-0123456789")
    with pytest.raises(generate.ConfigError, match="RENDER_API_KEY has no base URL"):
        generate.load_base_url()
    monkeypatch.setenv("OMNIMAAS_API_KEY", "sk-omni-0123456789")
    assert generate.load_base_url() == (generate.DEFAULT_BASE_URL, "default")
