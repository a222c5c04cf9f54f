"""Retries: how often the program asks, how long it waits in between, what it then sends, and what it says about it.

The fear behind all of these: to pay twice for one picture, or to give up on one that a second try would have got.
"""

from __future__ import annotations

import base64
import email.utils
import io
import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generate
import pictures
import pytest
from conftest import MODELS, Run, both_families, table
from gateway import Gateway, Received, Reply
from PIL import Image

SLACK_S = 2.0  # what a busy machine may add to a wait
WAITS_S, LONGEST_S = generate.RETRY_WAITS_S, generate.MAX_RETRY_AFTER_S  # as shipped: the tests shorten them
SMALL = pictures.picture(120, 90, fmt="JPEG", noise=True)  # an answer that costs no drawing


pytestmark = pytest.mark.usefixtures("short_waits")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.jpg"
    path.write_bytes(pictures.picture(1600, 800, fmt="JPEG"))
    return path


def ask(run: Run, family: str, *references: Path, **flags: Any) -> Any:
    """One call with --json, written into the current folder."""
    words = [f"--reference-image={path}" for path in references]
    words += [f"--{name}={value}" for name, value in flags.items()]
    return run("--json", "--prompt", "a red apple", "--model", MODELS[family], *words, "--output", "out.jpeg")


def picture_reply(received: Received, data: bytes = SMALL) -> Reply:
    """The small picture in the shape of the endpoint asked."""
    encoded = base64.b64encode(data).decode()
    if received.path.endswith("/chat/completions"):
        text = f"![image](data:image/jpeg;base64,{encoded})"
        return Reply(body={"choices": [{"message": {"role": "assistant", "content": text}}]})
    return Reply(body={"data": [{"b64_json": encoded}]})


def refusal(code: str, message: str = "No.") -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "param": None, "code": code}}


def gaps(gateway: Gateway) -> list[float]:
    """Seconds from each POST to the next."""
    times = [call.at for call in gateway.calls]
    return [later - earlier for earlier, later in zip(times, times[1:])]


def announcements(err: str) -> list[str]:
    """The lines on standard error that announce a retry."""
    return [line for line in err.splitlines() if re.search(r"attempt.* billed.* [\d.]+ s\b", line)]


def sent_sizes(received: Received) -> list[tuple[int, int]]:
    """Pixel sizes of the references in a request."""
    if received.path.endswith("/edits"):
        data = [part.data for part in received.files if part.name == "image[]"]
    else:
        content = received.json["messages"][0]["content"]
        urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        data = [base64.b64decode(url.partition(",")[2]) for url in urls]
    return [Image.open(io.BytesIO(each)).size for each in data]


# --- How often ---

PASSING = {  # faults that a second try may get past: (what the gateway does, kind, billed at the end)
    "429": (Reply(429), "quota", "no"),
    "429-gemini-resource-exhausted": (
        Reply(429, body=refusal("RESOURCE_EXHAUSTED", "You exceeded your current quota.")),
        "quota",
        "no",
    ),
    **{str(status): (Reply(status), "unavailable", "maybe") for status in (500, 501, 502, 503, 504, 507, 520, 521)},
    **{str(status): (Reply(status), "unavailable", "maybe") for status in (522, 523, 524, 529, 599)},
    "502-html-page": (Reply(502, body="<html><title>Bad gateway</title></html>"), "unavailable", "maybe"),
    "524-empty": (Reply(524, body=b""), "unavailable", "maybe"),
    "500-codes-all-null": (
        Reply(500, body={"error": {"message": None, "type": "", "param": None, "code": None}}),
        "unavailable",
        "maybe",
    ),
    "reset-before-the-answer": (Reply(drop="before"), "unavailable", "maybe"),
    "reset-amid-headers": (Reply(drop="headers"), "unavailable", "maybe"),
    "reset-amid-the-body": (Reply(drop="body"), "unavailable", "maybe"),
    "closed-amid-the-body": (Reply(truncate=900), "unavailable", "maybe"),
    "closed-amid-chunks": (Reply(truncate=900, chunked=True), "unavailable", "maybe"),
    "closed-without-an-answer": (Reply(raw=b""), "unavailable", "maybe"),
}
SILENT = {place: (Reply(hang=place), "unavailable", "maybe") for place in ("accept", "headers", "body")}
LASTING = {  # faults that stay: (what the gateway does, kind)
    **{str(status): (Reply(status), "auth") for status in (401, 403)},
    "402": (Reply(402), "quota"),
    **{str(s): (Reply(s), "rejected") for s in (400, 404, 405, 406, 408, 409, 410, 411, 413, 415, 422, 425, 431)},
    **{f"{s}-redirect": (Reply(s, {"Location": "/v1/elsewhere"}), "rejected") for s in (301, 302, 303, 307, 308)},
    "401-in-a-500-dress": (Reply(500, body=refusal("invalid_api_key")), "auth"),
    "403-no-credit": (Reply(403, body=refusal("insufficient_user_quota")), "quota"),
    "403-no-credit-token": (Reply(403, body=refusal("pre_consume_token_quota_failed")), "quota"),
    "429-no-credit": (Reply(429, body=refusal("insufficient_quota")), "quota"),
    "429-no-credit-retry-after": (Reply(429, {"Retry-After": "1"}, refusal("insufficient_quota")), "quota"),
    "400-no-credit": (Reply(400, body=refusal("billing_hard_limit_reached")), "quota"),
    "500-no-credit": (Reply(500, body={"code": "INSUFFICIENT_BALANCE", "message": "Top up."}), "quota"),
    "400-moderation": (Reply(400, body=refusal("moderation_blocked")), "refused"),
    "400-content-policy": (Reply(400, body=refusal("content_policy_violation")), "refused"),
    "400-prompt-blocked": (Reply(400, body=refusal("prompt_blocked")), "refused"),
    "500-word-filter": (Reply(500, body=refusal("sensitive_words_detected")), "refused"),
    "500-bad-request": (Reply(500, body=refusal("invalid_request")), "rejected"),
    "500-bad-parameter": (Reply(500, body=refusal("convert_request_failed")), "rejected"),
    "503-unknown-model": (Reply(503, body=refusal("model_not_found")), "rejected"),
    "200-without-a-picture": (Reply(body={"choices": [], "data": []}), "response"),
    "200-refused": (
        Reply(body={"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}),
        "refused",
    ),
    "200-no-json": (Reply(body="all is well"), "response"),
}


@both_families
@table("reply, kind, billed", PASSING)
def test_image_to_image_is_tried_three_times(
    run: Run, gateway: Gateway, reference: Path, family: str, reply: Reply, kind: str, billed: str
) -> None:
    """A bad minute at the gateway must not cost the user the picture, nor must it go on for ever."""
    gateway.answer_always(reply)
    outcome = ask(run, family, reference)
    error = outcome.json["error"]
    assert (len(gateway.calls), error["kind"], error["retryable"]) == (3, kind, True)
    assert error["billed"] == billed
    assert outcome.code == {"quota": 5, "unavailable": 6}[kind]


@both_families
@table("reply, kind, billed", {**PASSING, **SILENT})
def test_text_to_image_is_tried_once(
    run: Run, gateway: Gateway, family: str, reply: Reply, kind: str, billed: str
) -> None:
    """Without references an attempt that failed may have been paid for: the user decides about another one."""
    gateway.answer_always(reply)
    outcome = ask(run, family, attempts=5, timeout=0.6)
    assert len(gateway.calls) == 1
    assert (outcome.json["error"]["kind"], outcome.json["error"]["retryable"]) == (kind, True)
    assert not announcements(outcome.err)


@both_families
@table("reply, kind", LASTING)
def test_what_cannot_pass_is_tried_once(
    run: Run, gateway: Gateway, reference: Path, family: str, reply: Reply, kind: str
) -> None:
    """A wrong key, an empty account or a refused prompt stays one however often it is tried."""
    gateway.answer_always(reply)
    outcome = ask(run, family, reference)
    error = outcome.json["error"]
    assert (len(gateway.calls), error["kind"], error["retryable"]) == (1, kind, False)


@table("reply, kind, billed", {**PASSING, **SILENT})
def test_second_attempt_saves_the_day(
    run: Run, gateway: Gateway, reference: Path, reply: Reply, kind: str, billed: str
) -> None:
    """One fault and then a picture: exit 0, two requests, one retry announced with its reason and its price."""
    gateway.answer(reply)
    gateway.answer_always(picture_reply)
    outcome = ask(run, "gemini", reference, timeout=1.5)
    assert (outcome.code, len(gateway.calls), outcome.json["attempts"]) == (0, 2, 2)
    assert Image.open("out.jpeg").format == "JPEG"
    retries = announcements(outcome.err)
    assert len(retries) == 1 and retries[0].startswith("[image-gen] ")
    assert re.search("not billed" if billed == "no" else "may have been billed", retries[0])
    if reply.status != 200:
        assert str(reply.status) in retries[0]
    assert len(announcements("\n".join(outcome.json["warnings"]))) == 1
    assert gateway.key not in outcome.err + outcome.out


def test_error_dressed_as_success_is_tried_again(run: Run, gateway: Gateway, reference: Path) -> None:
    """Some gateways say 429 in a body of status 200."""
    gateway.answer(Reply(body={"error": {"message": "Rate limit exceeded", "code": 429}}))
    outcome = ask(run, "gemini", reference)
    assert (outcome.code, len(gateway.calls)) == (0, 2)


@pytest.mark.parametrize("attempts", range(1, 6))
@both_families
def test_attempts_sets_the_number(run: Run, gateway: Gateway, reference: Path, family: str, attempts: int) -> None:
    gateway.answer_always(Reply(503))
    assert ask(run, family, reference, attempts=attempts).code == 6
    assert len(gateway.calls) == attempts


@table(
    "replies, attempts",
    {
        "first": ([], 1),
        "third": ([Reply(500), Reply(429)], 3),
        "fifth": ([Reply(500), Reply(drop="before"), Reply(429), Reply(524)], 5),
    },
)
def test_success_tells_its_attempt(
    run: Run, gateway: Gateway, reference: Path, replies: list[Reply], attempts: int
) -> None:
    gateway.answer(*replies)
    outcome = ask(run, "openai", reference, attempts=5)
    assert (outcome.code, outcome.json["attempts"], len(gateway.calls)) == (0, attempts, attempts)


def test_lasting_fault_ends_the_retries(run: Run, gateway: Gateway, reference: Path) -> None:
    gateway.answer(Reply(503), Reply(401), Reply(200))
    outcome = ask(run, "gemini", reference, attempts=5)
    assert (outcome.code, len(gateway.calls)) == (4, 2)


@table("references, calls", {"with": (True, 3), "without": (False, 1)})
@both_families
def test_library_tries_as_often(gateway: Gateway, reference: Path, family: str, references: bool, calls: int) -> None:
    """Callers in Python get the same rules as callers in a shell."""
    gateway.answer_always(Reply(503))
    function = {"gemini": generate.generate_gemini, "openai": generate.generate_openai}[family]
    with pytest.raises(generate.UnavailableError):
        function("a red apple", MODELS[family], ref_images=[reference] if references else [])
    assert len(gateway.calls) == calls


def test_retry_sends_the_same_request(run: Run, gateway: Gateway, reference: Path) -> None:
    """A plain retry changes nothing: same prompt, same picture, same key."""
    gateway.answer(Reply(503), Reply(429))
    assert ask(run, "gemini", reference).code == 0
    assert len({call.body for call in gateway.calls}) == 1
    assert {call.headers["Authorization"] for call in gateway.calls} == {f"Bearer {gateway.key}"}


# --- Never connected ---


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port on which nobody listens, and nobody else will."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setenv("OMNIMAAS_API_KEY", "sk-closed-0123456789abcdefghij")
        monkeypatch.setenv("OMNIMAAS_BASE_URL", f"http://127.0.0.1:{port}/v1")
        yield port


@table("with_reference, retries", {"with-reference": (True, 2), "without": (False, 0)})
def test_refused_connection(run: Run, closed_port: int, reference: Path, with_reference: bool, retries: int) -> None:
    """Nothing was ever sent, so nothing was billed, however often it was tried."""
    outcome = ask(run, "gemini", *[reference] * with_reference)
    error = outcome.json["error"]
    assert (outcome.code, error["retryable"], error["billed"]) == (6, True, "no")
    lines = announcements(outcome.err)
    assert len(lines) == retries and all("not billed" in line for line in lines)


def test_gateway_that_comes_up_between_attempts(
    run: Run, reference: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Refused at first, up for the second attempt: the picture is made."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    gateways: list[Gateway] = []

    class Starter(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING and not gateways:
                gateways.append(Gateway(port=port).__enter__())
                request.addfinalizer(lambda: gateways[0].__exit__())

    starter = Starter()
    generate.log.addHandler(starter)
    request.addfinalizer(lambda: generate.log.removeHandler(starter))
    monkeypatch.setenv("OMNIMAAS_API_KEY", Gateway.__init__.__defaults__[0])
    monkeypatch.setenv("OMNIMAAS_BASE_URL", f"http://127.0.0.1:{port}/v1")
    outcome = ask(run, "gemini", reference)
    assert (outcome.code, outcome.json["attempts"], len(gateways[0].calls)) == (0, 2, 1)


# --- How long in between ---


def test_waits_are_those_of_the_design() -> None:
    assert (*WAITS_S, LONGEST_S) == (1, 4, 16, 60)


@both_families
def test_each_wait_has_its_turn(
    run: Run, gateway: Gateway, reference: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Second, third and fourth attempt come after the first, second and third wait."""
    waits = (1.2, 0.1, 0.6)
    monkeypatch.setattr(generate, "RETRY_WAITS_S", waits)
    gateway.answer_always(Reply(500))
    outcome = ask(run, family, reference, attempts=4)
    assert outcome.code == 6 and len(gateway.calls) == 4
    assert all(wait <= gap < wait + SLACK_S for wait, gap in zip(waits, gaps(gateway)))
    assert gaps(gateway)[1] < 1.1  # not the first one's again


def test_nothing_is_waited_for_after_the_last(
    run: Run, gateway: Gateway, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "RETRY_WAITS_S", (0.01, 30.0, 30.0))
    gateway.answer_always(Reply(429, {"Retry-After": "0"}))
    started = time.monotonic()
    assert ask(run, "gemini", reference, attempts=2).code == 5
    assert time.monotonic() - started < 10


def date_in(seconds: float, form: str = "%a, %d %b %Y %H:%M:%S GMT") -> str:
    return time.strftime(form, time.gmtime(time.time() + seconds))


@pytest.mark.slow
@table(
    "headers, least, most",
    {
        "seconds": ({"Retry-After": "1"}, 1.0, 1.0),
        "lower-case": ({"retry-after": "1"}, 1.0, 1.0),
        "fraction": ({"Retry-After": "0.7"}, 0.7, 0.7),
        "blanks": ({"Retry-After": " 1 "}, 1.0, 1.0),
        "milliseconds": ({"retry-after-ms": "700"}, 0.7, 0.7),
        "milliseconds-fraction": ({"retry-after-ms": "700.5"}, 0.7, 0.7),
        "date": ({"Retry-After": "DATE"}, 1.0, 2.0),
        "date-rfc-850": ({"Retry-After": "DATE-850"}, 1.0, 2.0),
        "date-asctime": ({"Retry-After": "DATE-ASCTIME"}, 1.0, 2.0),
        "shorter-than-ours": ({"Retry-After": "0"}, 0.3, 0.3),
        "date-in-the-past": ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.3, 0.3),
        "negative": ({"Retry-After": "-5"}, 0.3, 0.3),
        "blank": ({"Retry-After": ""}, 0.3, 0.3),
        "word": ({"Retry-After": "soon"}, 0.3, 0.3),
        "nan": ({"Retry-After": "nan"}, 0.3, 0.3),
        "two-dots": ({"Retry-After": "1.2.3"}, 0.3, 0.3),
        "other-digits": ({"Retry-After": "\xb2"}, 0.3, 0.3),
        "none": ({}, 0.3, 0.3),
        "503": ({"Retry-After": "0.7", "STATUS": "503"}, 0.7, 0.7),
        "524": ({"Retry-After": "0.7", "STATUS": "524"}, 0.7, 0.7),
    },
)
def test_retry_after_is_obeyed_when_longer(
    run: Run, gateway: Gateway, reference: Path, monkeypatch: pytest.MonkeyPatch,
    headers: dict[str, str], least: float, most: float,
) -> None:  # fmt: skip
    """A gateway that asks for patience gets it, in whatever form it asks, and the user's time zone does not matter."""
    monkeypatch.setattr(generate, "RETRY_WAITS_S", (0.3, 0.3, 0.3))
    monkeypatch.setenv("TZ", "XXX-8")
    time.tzset()
    forms = {
        "DATE": "%a, %d %b %Y %H:%M:%S GMT",
        "DATE-850": "%A, %d-%b-%y %H:%M:%S GMT",
        "DATE-ASCTIME": "%a %b %d %H:%M:%S %Y",
    }

    def busy(received: Received) -> Reply:
        dated = {name: date_in(2, forms[value]) if value in forms else value for name, value in headers.items()}
        return Reply(int(dated.pop("STATUS", 429)), dated)

    try:
        gateway.answer(busy)
        gateway.answer_always(picture_reply)
        assert ask(run, "gemini", reference).code == 0
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    (gap,) = gaps(gateway)
    assert least - 0.01 <= gap < most + SLACK_S


def gap_after(value: str, run: Run, gateway: Gateway, reference: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """The seconds to the second attempt after this wish, when half a second is the most that is granted."""
    monkeypatch.setattr(generate, "MAX_RETRY_AFTER_S", 0.5)
    gateway.answer(Reply(429, {"Retry-After": value}))
    gateway.answer_always(picture_reply)
    assert ask(run, "gemini", reference).code == 0
    (gap,) = gaps(gateway)
    return gap


@table(
    "value",
    {
        "hour": ("3600",),
        "far-date": (email.utils.formatdate(time.time() + 86_400, usegmt=True),),
        "beyond-a-float": ("9" * 400,),
    },
)
def test_retry_after_is_capped(
    run: Run, gateway: Gateway, reference: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """No header makes the program sleep for an hour."""
    gap = gap_after(value, run, gateway, reference, monkeypatch)
    assert 0.5 <= gap < 0.5 + SLACK_S


@pytest.mark.parametrize("value", ["1e999", "inf", "-inf", "Wed, 99 Oct 9999 07:28:00 GMT", "9" * 5000, "1e-999"])
def test_odd_retry_after_is_no_long_wait(
    run: Run, gateway: Gateway, reference: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Whether it counts as very long or as nothing is a matter of taste; that the picture comes is not."""
    gap = gap_after(value, run, gateway, reference, monkeypatch)
    assert gap < 0.5 + SLACK_S


def test_retry_after_does_not_hold_up_text_to_image(run: Run, gateway: Gateway) -> None:
    gateway.answer_always(Reply(429, {"Retry-After": "30"}))
    started = time.monotonic()
    outcome = ask(run, "gemini")
    assert (outcome.code, len(gateway.calls)) == (5, 1)
    assert time.monotonic() - started < 10


# --- What the next attempt sends ---

SHRINKS = {
    "524-twice": ([Reply(524), Reply(524)], [1024, 768, 512]),
    "524-four-times": ([Reply(524)] * 4, [1024, 768, 512, 512, 512]),
    "timeout-twice": ([Reply(hang="accept")] * 2, [1024, 768, 512]),
    "timeout-amid-headers": ([Reply(hang="headers")], [1024, 768]),
    "timeout-amid-the-body": ([Reply(hang="body")], [1024, 768]),
    "timeout-by-trickle": ([Reply(trickle=(1, 0.2))], [1024, 768]),
    "524-then-timeout": ([Reply(524), Reply(hang="accept")], [1024, 768, 512]),
    "503-between": ([Reply(524), Reply(503), Reply(524)], [1024, 768, 768, 512]),
    **{
        str(status): ([Reply(status)] * 2, [1024, 1024, 1024])
        for status in (429, 500, 502, 503, 504, 520, 521, 522, 523)
    },
    "reset": ([Reply(drop="before"), Reply(drop="body", body="x" * 5000)], [1024, 1024, 1024]),
    "cut": ([Reply(body="x" * 5000, truncate=900)], [1024, 1024]),
}


@pytest.mark.slow
@both_families
@table("replies, edges", SHRINKS)
def test_references_shrink_after_a_timeout_only(
    run: Run, gateway: Gateway, large: Path, family: str, replies: list[Reply], edges: list[int]
) -> None:
    """A 524 means the request was too heavy for the edge proxy; any other fault is no reason to lose detail."""
    gateway.answer(*replies)
    gateway.answer_always(picture_reply)
    outcome = ask(run, family, large, attempts=len(edges), timeout=1)
    assert outcome.code == 0
    assert [sent_sizes(call) for call in gateway.calls] == [[(edge, edge // 2)] for edge in edges]


def test_all_references_shrink_and_small_ones_stay(run: Run, gateway: Gateway, large: Path, reference: Path) -> None:
    middling = large.with_name("middling.png")
    middling.write_bytes(pictures.picture(700, 700))
    gateway.answer(Reply(524), Reply(524))
    gateway.answer_always(picture_reply)
    assert ask(run, "openai", large, reference, middling).code == 0
    assert [sent_sizes(call) for call in gateway.calls] == [
        [(1024, 512), (40, 30), (700, 700)],
        [(768, 384), (40, 30), (700, 700)],
        [(512, 256), (40, 30), (512, 512)],
    ]
    assert {call.files[1].data for call in gateway.calls} == {reference.read_bytes()}


def test_mask_that_is_gone_by_then_is_sent_as_it_was(run: Run, gateway: Gateway, large: Path) -> None:
    mask = large.with_name("mask.png")
    mask.write_bytes(pictures.picture(1600, 800, "RGBA"))

    def lose_it(received: Received) -> Reply:
        mask.unlink()
        return Reply(524)

    gateway.answer(lose_it)
    assert ask(run, "openai", large, mask=mask).code == 0
    assert len(gateway.calls) == 2


def test_mask_shrinks_in_step(run: Run, gateway: Gateway, large: Path) -> None:
    """A mask of another size than its picture is refused by the real service."""
    mask = large.with_name("mask.png")
    mask.write_bytes(pictures.picture(1600, 800, "RGBA"))
    gateway.answer(Reply(524), Reply(524))
    assert ask(run, "openai", large, mask=mask).code == 0  # the stand-in demands equal sizes
    masks = [part for call in gateway.calls for part in call.files if part.name == "mask"]
    assert [Image.open(io.BytesIO(part.data)).size for part in masks] == [(1024, 512), (768, 384), (512, 256)]


# --- What it cost, and what is said ---


@table(
    "replies, kind, billed",
    {
        "all-refused-up-front": ([Reply(429), Reply(429), Reply(429)], "quota", "no"),
        "first-may-have-been-paid": ([Reply(524), Reply(429), Reply(429)], "quota", "maybe"),
        "one-in-the-middle": ([Reply(429), Reply(drop="before"), Reply(429)], "quota", "maybe"),
        "then-a-wrong-key": ([Reply(502), Reply(401)], "auth", "maybe"),
        "then-a-refusal": ([Reply(524), Reply(400, body=refusal("moderation_blocked"))], "refused", "maybe"),
        "then-a-bad-request": ([Reply(504), Reply(400)], "rejected", "maybe"),
        "then-no-picture": ([Reply(503), Reply(body={"data": []})], "response", "yes"),
        "free-then-a-wrong-key": ([Reply(429), Reply(403)], "auth", "no"),
    },
)
def test_bill_covers_all_attempts(
    run: Run, gateway: Gateway, reference: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    replies: list[Reply], kind: str, billed: str,
) -> None:  # fmt: skip
    """`billed` answers "has this command cost money?", so an earlier attempt counts as much as the last one."""
    ledger = tmp_path / "ledger.jsonl"
    monkeypatch.setenv("PRODUCT_SHOTS_IMAGEGEN_LEDGER", str(ledger))
    gateway.answer(*replies)
    error = ask(run, "openai", reference).json["error"]
    assert (error["kind"], error["billed"], len(gateway.calls)) == (kind, billed, len(replies))
    (line,) = ledger.read_text().splitlines()
    assert (json.loads(line)["kind"], json.loads(line)["billed"]) == (kind, billed)


def test_each_retry_is_announced(run: Run, gateway: Gateway, reference: Path) -> None:
    """One line a retry: why, what it may have cost, how long until the next one; the key is in none of them."""
    echo = refusal("overloaded", f"Overloaded; your key was {gateway.key}")
    gateway.answer(Reply(503, body=echo), Reply(524), Reply(429), Reply(drop="before"))
    outcome = ask(run, "gemini", reference, attempts=5)
    assert outcome.code == 0
    lines = announcements(outcome.err)
    reasons = ("503.*overloaded.*may have been billed", "524.*may have been billed", "429.*billed", "may have been")
    assert len(lines) == 4
    assert all(re.search(reason, line, re.I) for reason, line in zip(reasons, lines))
    assert gateway.key not in outcome.err and gateway.key[-12:] not in outcome.err


def test_quiet_still_announces_retries(run: Run, gateway: Gateway, reference: Path) -> None:
    """A retry may cost money: --quiet hides news, not warnings."""
    gateway.answer(Reply(503))
    outcome = run("--quiet", "--prompt", "x", "--reference-image", reference, "--output", "out.png")
    assert outcome.code == 0
    assert len(announcements(outcome.err)) == 1


def test_timeout_holds_for_each_attempt(run: Run, gateway: Gateway, reference: Path) -> None:
    """Three silent attempts take three timeouts, not one and not more."""
    gateway.answer_always(Reply(hang="accept"))
    started = time.monotonic()
    outcome = ask(run, "gemini", reference, timeout=0.7)
    elapsed = time.monotonic() - started
    assert (outcome.code, len(gateway.calls)) == (6, 3)
    assert 3 * 0.5 <= elapsed < 3 * 0.7 + 3 * 1.5
    assert all(gap < 0.7 + 1.5 for gap in gaps(gateway))
