"""Any answer at all: its picture where there is one, else one error that makes sense, and soon."""

from __future__ import annotations

import functools
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import generate
import pytest
from bodies import (
    DRAFT,
    FINAL,
    SECOND,
    Shelf,
    b64,
    chat,
    completed,
    data_url,
    delta,
    image_url,
    made,
    partial,
)
from conftest import MODELS, both_families, table
from gateway import Gateway, Reply
from generate import ImageGenError, classify_response_error, handle_http_error
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pictures import encoded
from PIL import Image
from test_answers import SHAPES

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("short_waits")]

BILLED = {"response": ("yes", "maybe"), "unavailable": ("maybe",)}  # of others: no
WORDS_ARE_QUOTED = r"The answer (holds no image|is a web page)(: |\.$)"
FAMILIES = st.sampled_from(list(MODELS))


def cases(count: int) -> settings:
    """The same cases on every machine: a failure here is a failure everywhere."""
    unhurried = {"deadline": None, "suppress_health_check": list(HealthCheck)}
    return settings(max_examples=count, derandomize=True, database=None, **unhurried)


def coherent(error: ImageGenError) -> None:
    """Asserts what every error about an answer must be."""
    assert type(error) in ImageGenError.__subclasses__()
    assert error.billed in BILLED.get(error.kind, ("no",))
    if (error.kind, error.billed) == ("response", "maybe"):
        assert re.match(WORDS_ARE_QUOTED, error.message)
    assert error.retryable == (error.kind == "unavailable") or error.kind == "quota"
    assert error.message.isprintable() and 0 < len(error.message) < 1000
    assert error.hint and isinstance(error.image_url, (str, type(None)))


def read(gateway: Gateway, family: str, body: Any, **options: Any) -> list[bytes]:
    """The pictures of an answer, or none where there is one coherent error."""
    if not isinstance(body, bytes):
        text = body if isinstance(body, str) else json.dumps(body)
        body = text.encode("utf-8", "surrogatepass")
    gateway.answer(Reply(body=body))
    call = generate.generate_gemini if family == "gemini" else generate.generate_openai
    try:
        return call("a red apple", MODELS[family], **options).images
    except ImageGenError as error:
        coherent(error)
        return []


RESULTS = "data result output response body content value items image images picture url link src"
OTHERS = "file b64_json base64 artifact 图片 x 0 Größe created choices message parts candidates"
FATEFUL = "error detail code type status state msg loc id task_id refusal thought usage"
WORDS = f"{RESULTS} {OTHERS}".split()
NEUTRAL = st.sampled_from(
    [None, True, 0, 7, -1.5, "", " ", "ok", "stop", "success", "苹果", "#fff"]
    + [[], {}, [None], {"x": None}, [[]], {"total_tokens": 7}, {"code": 0}, [1, 2, 3]]
)
HOSTILE = NEUTRAL | st.sampled_from(
    [b64(FINAL)[:500], b64(bytes(range(256)) * 4), "data:image/png;base64,", "/9j/4AAQ"]
    + ["/media/gone.png", "//", "/", "http://", "https://[", "http://a:b:c/x.png", "ftp://x/y.png"]
    + ["![](", "![image]()", "<img src=", "{" * 50, "[" * 50, '{"a": [', "\0", "\ud800", "\u202e"]
    + ["content_filter", "queued", "I cannot draw that.", "insufficient_quota", "429", 429, 500]
    + [1e308, float("nan"), float("inf"), 10**400, {"error": {"message": "No", "code": 429}}]
    + [{"error": None}, {"finish_reason": None}, {"usage": "x"}, {"": ""}, "x" * 5000]
)  # fmt: skip
NAMES = st.sampled_from([*WORDS, *FATEFUL.split()]) | st.text(max_size=5)
TREES = st.recursive(
    HOSTILE, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5)
)


def mutated(draw: Any, tree: Any, harmful: bool) -> Any:
    """The tree with one thing moved, renamed or joined by another; harmful: replaced or lost."""
    word, beside = draw(st.sampled_from(WORDS)), draw(HOSTILE if harmful else NEUTRAL)
    if isinstance(tree, (dict, list)) and tree and draw(st.integers(0, 3)):
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = draw(st.sampled_from(keys))
        copy: Any = tree.copy()
        copy[key] = mutated(draw, tree[key], harmful)
        return copy
    forms = [{word: tree}, [tree], [beside, tree], [tree, beside], {"x1": beside, word: tree}]
    if isinstance(tree, dict):
        forms += [{**tree, f"{word}_2": beside}, dict(draw(st.permutations(list(tree.items()))))]
    if isinstance(tree, dict) and word not in tree:
        forms += [{word if name == min(tree) else name: tree[name] for name in tree}]
    if harmful:
        forms += [beside, None, str(tree)[: draw(st.integers(0, 2000))] + str(beside)]
    return draw(st.sampled_from(forms))


@st.composite
def answers(draw: Any, templates: list[str], harmful: bool = False) -> str:
    tree = json.loads(draw(st.sampled_from(templates)))
    for _ in range(draw(st.integers(0, 6 if harmful else 4))):
        tree = mutated(draw, tree, harmful)
    return json.dumps(tree)


KNOWN = [  # bodies with nothing but base64 in them
    template.replace("$B64", b64(FINAL)).replace("$DATA", data_url(FINAL))
    for _, template in SHAPES.values()
    if not re.search(r"\$(LINK|PATH|GONE|\w+\()", template)
]
PLACES = [  # for a link or base64
    '{"choices": [{"message": {"content": "Here you go\\n![image]($)"}, "finish_reason": "stop"}]}',
    '{"choices": [{"message": {"images": [{"image_url": {"url": "$"}, "index": 0}]}}]}',
    '{"candidates": [{"content": {"parts": [{"text": "hi"}, {"inlineData": {"data": "$"}}]}}]}',
    '{"created": 1, "data": [{"b64_json": null, "url": "$", "revised_prompt": ""}]}',
    '{"output": ["$"], "status": "succeeded", "error": null, "id": "7f"}',
]


@cases(900)
@given(answers(PLACES), st.sampled_from(["$LINK", "$DATA", "$B64"]), FAMILIES)
def test_picture_is_found(gateway: Gateway, answer: str, form: str, family: str) -> None:
    """Moved, renamed, nested, reordered: a paid picture is never overlooked."""
    body = Shelf(gateway).fill(answer.replace("$", form))
    assert set(read(gateway, family, body)) == {FINAL}


@cases(900)
@given(answers(KNOWN, harmful=True), FAMILIES)
def test_mutated_answer(gateway: Gateway, body: str, family: str) -> None:
    """Whatever a gateway makes of its own format: its pictures or one error."""
    assert set(read(gateway, family, body)) <= {FINAL, DRAFT}


CUT = st.builds(lambda body, end: body.encode()[:end], st.sampled_from(KNOWN), st.integers(1, 900))
BODIES = TREES | CUT | st.binary(max_size=300) | st.text(max_size=300)


@cases(600)
@given(BODIES, FAMILIES)
@example({"error": {"error": {"error": []}}}, "openai")
@example('data: {"a":1}\n\ndata: {', "gemini")
def test_any_body(gateway: Gateway, body: Any, family: str) -> None:
    """As an answer and as an error, the wire included."""
    assert read(gateway, family, body) == []
    with pytest.raises(ImageGenError) as caught:
        classify_response_error(family, body)
    coherent(caught.value)


@cases(500)
@given(st.integers(300, 599), BODIES, st.text(max_size=20), FAMILIES)
def test_any_error(status: int, body: Any, wish: str, family: str) -> None:
    """No error body breaks the reading of errors."""
    with pytest.raises(ImageGenError) as caught:
        handle_http_error(family, status, body, {"Retry-After": wish, "Location": wish})
    coherent(caught.value)
    assert caught.value.status == status
    assert 0 <= caught.value.retry_after_s <= generate.MAX_RETRY_AFTER_S


# --- Too deep, too much ---

CPU_S = 30.0  # seconds where a pattern that backtracks, or a walk that starts over, takes minutes
DEPTH, MUCH = 100_000, 4_000_000
TRAPS = {  # texts that nearly match, over and over
    "brackets": "[" * DEPTH + "]" * DEPTH,
    "objects": '{"a":' * DEPTH + "1" + "}" * DEPTH,
    "an error of brackets": '{"error": ' + "[" * DEPTH + "]" * DEPTH + "}",
    **{
        unit: unit * (MUCH // len(unit))
        for unit in (" ", "a", "0", "\0", "data:image/png;base64,", ";base64,", "![a](", "![", "[")
        + ("(", "https://a.example/b ", "http://a/", "<img ", "<img src='", "<title>")
        + ("data: {}\n\n", "data: {\n", "%41", "a" * 63 + " ")
        + ("iVBORw0KGgo", "\\", '"', "-_", "=", "I cannot ")
    },
}  # fmt: skip


@table("text", {name: (text,) for name, text in TRAPS.items()})
@pytest.mark.parametrize("wrapped", [False, True], ids=["body", "words"])
def test_reading_takes_linear_time(gateway: Gateway, text: str, wrapped: bool) -> None:
    """Four megabytes, or a hundred thousand brackets, as the body and as a chat's words."""
    started = time.process_time()
    assert read(gateway, "gemini", chat(text) if wrapped else text, timeout=120) == []
    assert time.process_time() - started < CPU_S


def test_picture_among_much_of_nothing(gateway: Gateway) -> None:
    """Blanks of a patient gateway before it, megabytes of usage behind it."""
    body = json.dumps({**made(SECOND), "usage": {"note": "x" * MUCH}})
    assert read(gateway, "openai", "\n" * 20_000_000 + body, timeout=120) == [SECOND]


@pytest.mark.parametrize("reply", [Reply(404), Reply(hang="accept")], ids=["gone", "silent"])
def test_hundreds_of_dead_links_end_in_time(gateway: Gateway, reply: Reply) -> None:
    """Each of them may be the picture, but the time allowed is for all of them."""
    gateway.answer_always(reply, path="/media/")
    links = [{"image_url": {"url": f"/media/{number}.png"}} for number in range(300)]
    started = time.monotonic()
    assert read(gateway, "gemini", chat(links), timeout=2) == []
    assert time.monotonic() - started < 60


# --- Streams ---

STREAMS = {  # the events of a draft, and of the result
    "openai": (lambda data: [partial(data)], lambda data: [completed(data)]),
    "gemini": (
        lambda data: [delta("", images=[image_url(data_url(data))])],
        lambda data: [delta("", "stop", images=[image_url(data_url(data))])],
    ),
}
PEAK_KB = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0])["main"]()
finally:
    print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read there")
@both_families
def test_drafts_take_no_more_memory_than_the_result(gateway: Gateway, family: str) -> None:
    """Three drafts of 2048 x 2048 pixels: at most 1.3 times what the last one takes alone."""
    of_draft, of_result = STREAMS[family]
    drafts = [event for seed in range(3) for event in of_draft(large_picture(seed))]
    result = of_result(large_picture(3))
    words = ("--prompt", "a cup", "--model", MODELS[family], "--stream", "--output", "cup")
    peaks = []
    for events in (result, drafts + result):
        gateway.answer(Reply(events=events))
        script = [sys.executable, "-c", PEAK_KB, generate.__file__, *words]
        done = subprocess.run(script, capture_output=True, text=True, check=True)
        *_, saved, peak = done.stdout.split()
        assert Path(saved).read_bytes() == large_picture(3)
        peaks.append(int(peak))
    assert peaks[1] < 1.3 * peaks[0], peaks


@functools.cache
def large_picture(seed: int) -> bytes:
    """Noise, which is as large as a picture can be: 12.6 MB."""
    noise = random.Random(seed).randbytes(2048 * 2048 * 3)
    return encoded(Image.frombytes("RGB", (2048, 2048), noise), "PNG", compress_level=0)
