"""Streams, asked for or not: a draft is never the result, and a finished picture always is."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import bodies
import pytest
from bodies import DRAFT, FINAL, OTHER_DRAFT, USAGE, Shelf, b64, completed, data_url, delta, partial
from conftest import MODELS, table
from gateway import Gateway, Reply

pytestmark = pytest.mark.usefixtures("short_waits")

STREAM = ("--stream",)
DONE = "data: [DONE]"
TWO_LINES = json.dumps(bodies.made(FINAL)).replace(" ", "\ndata: ", 1)
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
DRAWN, DRAWN_BEFORE, DRAWN_FIRST = (
    bodies.markdown(data_url(data)) for data in (FINAL, DRAFT, OTHER_DRAFT)
)
PIECES = [DRAWN[:7], DRAWN[7:99], DRAWN[99:5000], DRAWN[5000:]]
# as OpenRouter, CLIProxyAPI and LiteLLM have it
SHOWN = delta("", images=[{**bodies.image_url(data_url(FINAL)), "index": 0}])


@pytest.fixture
def ask(gateway: Gateway, run: Any) -> Any:
    """ask(family, reply, *more): a run that saves cup.png and prints JSON."""

    def ask(family: str, reply: Reply, *more: Any) -> Any:
        gateway.answer(reply)
        words = ("--prompt", "a cup", "--model", MODELS[family], "--output", "cup.png")
        return run(*words, "--json", *more)

    return ask


# --- A draft is never the result ---

NULLS = {"choices": [{**delta(DRAWN_BEFORE)["choices"][0], "message": None}]}
DRAFTS = {
    "openai": [partial(OTHER_DRAFT), partial(DRAFT, 1)],
    "gemini": [delta(f"{DRAWN_FIRST}\n"), delta(DRAWN_BEFORE)],
}
LAST = {"openai": [completed(FINAL)], "gemini": [SHOWN, END]}
HALF_DRAFT = f"data: {json.dumps(partial(OTHER_DRAFT))[:-9]}"  # of an upstream that broke off
COUNTED = {"type": "image_generation.completed", "usage": USAGE}
BLOCKED = {"type": "image_generation_user_error", "code": "moderation_blocked", "message": "No."}
SERVER = {"type": "server_error", "message": "The server had an error."}
MAYBE = ("unavailable", 6, "maybe")
CHUNK = f"event: image.generation.chunk\ndata: {json.dumps({'b64_json': b64(DRAFT)})}"
RESULT = f"event: image.generation.result\ndata: {json.dumps(bodies.made(FINAL))}"
ENDS: dict[str, Any] = {  # how it goes on after the drafts: events, a fault; kind, code, billed
    "nothing": ([], {}, MAYBE),
    "a cut": (None, {"fault_after": 2}, MAYBE),
    "a reset": (None, {"fault_after": 2, "drop": "body"}, MAYBE),
    "silence": (None, {"fault_after": 2, "hang": "body"}, MAYBE),
    "a broken event": (None, {"fault_after": 2, "truncate": 5000}, MAYBE),
    # OpenAI, OpenRouter, and what gateways make of their upstream's
    "an error event": ([{"type": "error", "error": SERVER}], {}, MAYBE),
    "an error's name": ([f"event: error\ndata: {json.dumps(SERVER)}"], {}, MAYBE),
    "an error": ([{"error": {"code": 502, "message": "Provider returned error"}}], {}, MAYBE),
    "chatgpt2api's": (
        [f"event: image.generation.error\ndata: {json.dumps(SERVER)}", DONE],
        {},
        MAYBE,
    ),
    "an error, [DONE]": ([{"type": "upstream_error", "error": SERVER}, DONE], {}, MAYBE),
    "a flat error, [DONE]": ([{"type": "upstream_error", "message": "Down"}, DONE], {}, MAYBE),
    "an error's words, [DONE]": (["event: error\ndata: It is down.", DONE], {}, MAYBE),
    "a finish": ([{"error": SERVER, "choices": [{"finish_reason": "error"}]}], {}, MAYBE),
    "an error, a stop": ([{"error": SERVER, **END}], {}, MAYBE),
    "moderation": ([{"type": "error", "error": BLOCKED}], {}, ("refused", 7, "no")),
    "a rate limit": ([{"error": {"code": 429, "message": "Slow down"}}], {}, ("quota", 5, "no")),
}
BROKEN = {
    **{f"{family}: {end}": (family, *row) for family in DRAFTS for end, row in ENDS.items()},
    "gemini: null fields": ("gemini", [delta(None), NULLS], {}, MAYBE),
    "openai: [DONE]": ("openai", [DONE], {}, MAYBE),
    "openai: a chunk": ("openai", [CHUNK, DONE], {}, MAYBE),
    "openai: completed": ("openai", [COUNTED, DONE], {}, MAYBE),
    "openai: a broken draft": ("openai", [HALF_DRAFT, DONE], {}, MAYBE),
}


@table("family, more, fault, end", BROKEN)
@pytest.mark.parametrize("asked", [(), STREAM], ids=["uninvited", "asked for"])
def test_draft_is_kept_and_never_taken_for_the_picture(
    ask: Any, gateway: Gateway, kept: Path, asked: Any, family: str, more: Any, fault: Any, end: Any
) -> None:
    """Whatever follows the drafts: the last is named as `draft_at`, never as `saved_at`."""
    events = [*DRAFTS[family], *(LAST[family] if more is None else more)]
    limit = 1 if "hang" in fault else 60
    ended = ask(family, Reply(events=events, **fault), *asked, "--timeout", limit)
    error = ended.json["error"]
    assert (error["kind"], ended.code, error["billed"]) == end
    assert [str(path) for path in kept.iterdir()] == [error["draft_at"]]
    assert Path(error["draft_at"]).read_bytes() == DRAFT
    assert "saved_at" not in error and not Path("cup.png").exists()
    assert error["draft_at"] in ended.err and len(gateway.calls) == 1


# --- A finished picture always is ---

SUCCEEDED = {"type": "image_generation.partial_succeeded", "image_index": 0}  # Volcengine, MiniMax
THOUGHT = bodies.native(bodies.inline(DRAFT, thought=True), finishReason=None)
LITELLM = delta("", image={"url": data_url(FINAL)})
DRAFTED, LINKED = bodies.image_url(data_url(DRAFT)), bodies.image_url("$LINK")
LITELLM_LINK = delta("", image={"url": "$LINK"})
RESPONSES = [
    {"type": "response.image_generation_call.partial_image", "partial_image_b64": b64(DRAFT)},
    {"type": "response.output_item.done", "item": {"result": b64(FINAL)}},
    {"type": "response.completed", "response": {"usage": USAGE}},
]
FINISHED: dict[str, Any] = {  # events, which may have links to FINAL in them, and a fault
    "every field": ([partial(DRAFT), completed(FINAL, partial_image_index=0)], {}),
    "null fields": ([partial(DRAFT), completed(FINAL, partial_image_index=None, error=None)], {}),
    "Volcengine": ([{**SUCCEEDED, "url": "$LINK"}, COUNTED, DONE], {}),
    "Volcengine, base64": ([{**SUCCEEDED, "b64_json": b64(FINAL)}], {}),
    "OpenRouter": ([": OPENROUTER PROCESSING", delta("", reasoning="Hm."), SHOWN, END, DONE], {}),
    "OpenRouter, drafts": ([*DRAFTS["gemini"], delta(DRAWN), END], {}),
    "new-api": ([": PING", *map(delta, PIECES), END, {"choices": [], "usage": USAGE}, DONE], {}),
    "new-api, a link in pieces": ([delta("![image]("), delta("$LINK"), delta(")"), DONE], {}),
    "new-api, thoughts": ([delta(None, reasoning_content=data_url(DRAFT)), LITELLM, END], {}),
    "LiteLLM, drafts": ([delta("", image={"url": data_url(DRAFT)}), LITELLM_LINK, END], {}),
    "images, drafts": ([delta("", images=[each]) for each in (DRAFTED, LINKED)] + [END], {}),
    "parts": ([delta([LINKED], seen=b64(DRAFT)), END], {}),
    "a link beside bytes": ([delta("", images=[LINKED], seen=b64(DRAFT)), END], {}),
    "new-api, its upstream's": ([{**COUNTED, "data": [{"url": "$LINK"}]}], {}),
    "a whole answer": ([bodies.made(FINAL)], {}),
    "a whole chat": ([bodies.chat(DRAWN, None)], {}),
    "chatgpt2api": ([CHUNK, RESULT, DONE], {}),
    "Google": ([THOUGHT, bodies.native(bodies.inline(FINAL))], {}),
    "OpenAI's Responses": (RESPONSES, {}),
    "GrsAI": ([{"results": [{"url": "$LINK"}], "progress": 100, "status": "succeeded"}], {}),
    "a list": ([f"data: {json.dumps([bodies.made(FINAL)])}", DONE], {}),
    "events without blank lines": (
        [f"data: {json.dumps(partial(DRAFT))}\ndata: {json.dumps(completed(FINAL))}"],
        {},
    ),
    "two lines, no blank one": ([f"data: {TWO_LINES}\n{DONE}"], {}),
    "a text": ([f"data: {json.dumps(DRAWN)}", DONE], {}),
    "words between": ([*map(delta, PIECES[:3]), "data: ping", delta(PIECES[3]), END], {}),
    "an error after it": ([*DRAFTS["openai"], completed(FINAL), {"error": SERVER}], {}),
    "a draft after it": ([completed(FINAL), partial(DRAFT)], {}),
    "a cut after it": ([completed(FINAL), COUNTED], {"fault_after": 1, "truncate": 30}),
    "silence instead of [DONE]": ([completed(FINAL)], {"fault_after": 1, "hang": "body"}),
    "silence after it": ([completed(FINAL), DONE], {"fault_after": 2, "hang": "body"}),
    "a chat's silence after [DONE]": (
        [delta(DRAWN), DONE],
        {"fault_after": 2, "hang": "body"},
    ),
    "a reset after it": ([completed(FINAL), COUNTED], {"fault_after": 1, "drop": "body"}),
}


@table("events, fault", FINISHED)
def test_finished_picture(ask: Any, gateway: Gateway, events: Any, fault: Any) -> None:
    """The picture, and the usage of the last event; nothing is waited for after [DONE]."""
    filled = json.loads(Shelf(gateway).fill(json.dumps(events)))
    family = "gemini" if "choices" in str(events) else "openai"
    facts = ask(family, Reply(events=filled, **fault), "--timeout", 60).json
    assert (facts["ok"], len(facts["paths"]), facts["elapsed_s"] < 30) == (True, 1, True)
    assert Path("cup.png").read_bytes() == FINAL
    assert facts["usage"] == (USAGE if "total_tokens" in str(events) else {})


# --- What --stream asks for ---

ROUTES: dict[str, Any] = {  # model's family, more words, the fields of the request
    "chat": ("gemini", [], bodies.chat_request("a cup", stream=True)),
    "images": ("openai", [], bodies.image_request("a cup", stream=True, partial_images=2)),
    "drafts": ("openai", ["--param", "partial_images=1"], {"stream": True, "partial_images": 1}),
    "edits": ("openai", ["--reference-image"], {"n": "1", "stream": "true", "partial_images": "2"}),
}


@table("family, more, fields", ROUTES)
def test_stream_is_asked_for_and_read(
    ask: Any, gateway: Gateway, reference: Path, family: str, more: Any, fields: Any
) -> None:
    """`partial_images: 2` goes to the image endpoints only."""
    gateway.drafts = 2
    more = [*more, reference] if more == ["--reference-image"] else more
    facts = ask(family, Reply(), *STREAM, *more).json
    (sent,) = gateway.calls
    assert (facts["ok"], facts["width"], facts["total_tokens"] > 0) == (True, 1024, True)
    shown = sent.fields if sent.path.endswith("/edits") else sent.json
    assert {**shown, **fields} == shown
    assert ("partial_images" in shown) == (family == "openai")


INVALID = bodies.canonical("The parameter is not valid.", "InvalidParameter", param="stream")
N_1 = {"error": {"code": 400, "message": "Streaming is only supported with n=1."}}
REFUSALS: dict[str, Any] = {  # the answer, and whether the hint is to leave --stream out
    "older gateways": (Reply(400, body=bodies.canonical("Unknown parameter: 'stream'.")), True),
    "pydantic": (Reply(422, body={"detail": [{"loc": ["body", "stream"], "msg": "Extra"}]}), True),
    "Seedream": (Reply(400, body=INVALID), True),
    "drafts": (Reply(400, body=bodies.canonical("Unknown parameter: 'partial_images'.")), True),
    "in Chinese": (Reply(400, body=bodies.canonical("该模型不支持流式输出")), True),
    "an event": (Reply(events=[N_1]), True),
    "upstream": (Reply(400, body=bodies.canonical("Upstream request failed: bad image")), False),
}


@table("reply, is_hint", REFUSALS)
def test_gateway_that_does_not_stream(
    ask: Any, gateway: Gateway, reply: Reply, is_hint: bool
) -> None:
    """A 4xx that names streaming is `rejected`, and nothing is sent twice."""
    error = ask("openai", reply, *STREAM).json["error"]
    assert (error["kind"], error["billed"], len(gateway.calls)) == ("rejected", "no", 1)
    assert ("--stream" in error["hint"]) == is_hint


# --- Time, attempts, and what is told meanwhile ---


@pytest.mark.parametrize("status, more", [(500, STREAM), (524, STREAM), (524, ())])
def test_text_to_image_is_never_repeated(
    ask: Any, gateway: Gateway, status: int, more: Any
) -> None:
    """Not even where a 5xx names streaming; the hint of a 524 suggests `--stream`."""
    body = bodies.canonical("stream is not supported", kind="server_error")
    error = ask("openai", Reply(status, body=body), *more).json["error"]
    assert (error["kind"], error["billed"], len(gateway.calls)) == ("unavailable", "maybe", 1)
    assert ("--stream" in error["hint"]) == (not more)


def test_timeout_is_the_whole_time_of_an_attempt(ask: Any) -> None:
    """Drafts that keep arriving do not extend it."""
    drafts = [partial(DRAFT, index) for index in range(400)]
    started = time.monotonic()
    slow = Reply(events=drafts, trickle=(2**20, 0.1))
    error = ask("openai", slow, *STREAM, "--timeout", 1).json["error"]
    assert 1 <= time.monotonic() - started < 20
    assert (error["kind"], Path(error["draft_at"]).read_bytes()) == ("unavailable", DRAFT)


@pytest.mark.parametrize("last", [Reply(events=[": ping"]), Reply()], ids=["cut", "whole"])
def test_image_to_image_is_tried_again(
    ask: Any, gateway: Gateway, reference: Path, kept: Path, last: Reply
) -> None:
    """After a stream that was cut, and which may have been billed."""
    gateway.answer(Reply(events=[partial(OTHER_DRAFT)]), Reply(events=DRAFTS["openai"]))
    ended = ask("openai", last, *STREAM, "--reference-image", reference)
    facts = ended.json.get("error", ended.json)
    assert (ended.code, len(gateway.calls)) == (6 if last.events else 0, 3)
    assert facts["possible_cost_cny"] == pytest.approx(3 * 0.35)
    assert [path.read_bytes() for path in kept.iterdir()] == ([DRAFT] if last.events else [])


def test_live_line_tells_of_drafts(ask: Any, gateway: Gateway, monkeypatch: Any) -> None:
    """On a terminal, as they come; then the stream is cut."""
    silent = Reply(events=DRAFTS["openai"], fault_after=2, hang="body")
    terminal, side = pty.openpty()
    texts: list[str] = []

    def watch() -> None:
        with contextlib.suppress(OSError):  # the other side is closed
            while text := os.read(terminal, 65_536).decode():
                texts.append(text)
                if re.search(r"s draft 2 has arrived, waiting", "".join(texts)):
                    gateway.release()

    watcher = threading.Thread(target=watch)
    watcher.start()
    with open(side, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        assert ask("openai", silent, *STREAM, "--timeout", 60).code == 6
    watcher.join()
    os.close(terminal)
    assert "the connection was lost" in "".join(texts)
