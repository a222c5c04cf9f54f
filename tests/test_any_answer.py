"""Any answer at all: it is a picture or one error that makes sense, soon, and a picture that is there is found."""

from __future__ import annotations

import copy
import functools
import gzip
import json
import logging
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Callable
from urllib.parse import quote, urljoin, urlsplit

import generate
import pytest
from gateway import Gateway, Reply
from generate import Args, ImageGenError, ResponseError, classify_response_error, handle_http_error
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from pictures import HTML, picture
from test_answers import CHAT, ENVELOPES, IMAGES, REFERENCE, Shelf, b64, chat, choice, data_url, lines, listing
from test_errors import CLASSIFIED, TABLE

JSON = Any
Draw = Callable[[st.SearchStrategy[Any]], Any]

FINAL = picture(24, 18, noise=True, seed=1)  # small, so that thousands of answers are read in a minute
OWN = picture(24, 18, noise=True, seed=2)

settings.register_profile(
    "answers",
    deadline=None,
    derandomize=True,  # the same cases on every machine: a failure here is a failure everywhere
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)


def cases(count: int) -> settings:
    return settings(settings.get_profile("answers"), max_examples=count)


# --- Reading without a socket ---


class Store:
    """What the links of an answer lead to, without a server."""

    origin = "https://pictures.example"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def publish(self, name: str, data: bytes, content_type: str = "") -> str:
        self.files[f"/media/{name}"] = data
        return f"{self.origin}/media/{name}"

    def fetch(self, link: str, waiting: int) -> bytes:
        parts = urlsplit(urljoin(self.origin + "/v1", link))
        found = self.files.get(quote(parts.path, safe="/%")) if parts.netloc == urlsplit(self.origin).netloc else None
        if found is None:
            raise ResponseError(f"{link} cannot be fetched", image_url=link)
        return found


STORE = Store()
SHELF = Shelf(SimpleNamespace(publish=STORE.publish, origin=STORE.origin))  # type: ignore[arg-type]


def encoded(answer: Any) -> bytes:
    if isinstance(answer, bytes):
        return answer
    return (answer if isinstance(answer, str) else json.dumps(answer)).encode("utf-8", "surrogatepass")


def read(answer: Any, family: str, n: int = 1) -> list[bytes]:
    """What the engine makes of a successful answer: pictures, or an ImageGenError."""
    args = Args("a cup", family=family, n=n)

    def fetch(link: str, waiting: int) -> generate.Picture:
        return generate.read_picture(STORE.fetch(link, waiting), link)

    pictures, usage = generate.read_answer(encoded(answer), args, [OWN, REFERENCE], fetch)
    assert isinstance(usage, dict)
    return [each.data for each in pictures]


BILLED = {**dict.fromkeys(("auth", "quota", "refused", "rejected"), "no"), "response": "yes", "unavailable": "maybe"}


def coherent(error: ImageGenError) -> bool:
    """Asserts what every error about an answer must be."""
    kinds = {kind.kind: kind for kind in ImageGenError.__subclasses__()}
    assert type(error) is kinds[error.kind] and error.exit_code == kinds[error.kind].exit_code
    assert error.billed == BILLED[error.kind]
    assert error.retryable in ((True, False) if error.kind == "quota" else (error.kind == "unavailable",))
    assert error.status is None or (type(error.status) is int and 100 <= error.status <= 599)
    assert error.message and error.message.isprintable() and len(error.message) < 1000
    assert error.hint and isinstance(error.hint, str)
    assert error.image_url is None or isinstance(error.image_url, str)
    return True


def outcome(answer: Any, family: str, n: int = 1) -> list[bytes]:
    """The pictures, or none when there is a coherent error; any other exception is a failure of the test."""
    try:
        found = read(answer, family, n)
    except ImageGenError as error:
        assert coherent(error)
        return []
    assert found and not {OWN, REFERENCE} & set(found)
    assert all(map(generate.read_picture, found))
    return found


# --- Mutations ---

WORDS = st.sampled_from(
    [
        "data",
        "result",
        "results",
        "output",
        "outputs",
        "response",
        "payload",
        "body",
        "content",
        "value",
        "values",
        "item",
        "items",
        "image",
        "images",
        "picture",
        "url",
        "uri",
        "link",
        "href",
        "src",
        "file",
        "b64",
        "b64_json",
        "base64",
        "bytes",
        "blob",
        "media",
        "asset",
        "artifact",
        "图片",
        "x",
        "a",
        "0",
        "Größe",
        "camelCase",
        "created",
        "choices",
        "message",
        "messages",
        "parts",
        "candidates",
    ]
)
NEUTRAL = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(),
    st.sampled_from(
        ["", " ", "ok", "stop", "success", "a red apple", "苹果", "7f3a-9c", "2026-11-22T10:00:00Z", "#fff", "1:1"]
    ),
    st.sampled_from([[], {}, [None], {"x": None}, [[]], {"total_tokens": 7}, {"code": 0}, [1, 2, 3]]),
    st.text(max_size=20).filter(lambda text: "/" not in text and ":" not in text),
)
HOSTILE = st.one_of(
    NEUTRAL,
    st.sampled_from(
        [
            b64(OWN),
            data_url(OWN),
            b64(FINAL)[:500],
            b64(bytes(range(256)) * 4),
            "data:image/png;base64,",
            "data:image/png;base64,AAAA",
            "iVBORw0KGgo",
            "/9j/4AAQ",
            "https://pictures.example/media/gone.png",
            "//",
            "/",
            "http://",
            "https://[",
            "https://[::1/x.png",
            "http://a:b:c/x.png",
            "ftp://x/y.png",
            "![](",
            "![image]()",
            "<img src=",
            "{" * 50,
            "[" * 50,
            '{"a": [',
            "NaN",
            "\0",
            "\ud800",
            "\u202e",
            "x" * 5000,
            "content_filter",
            "NO_IMAGE",
            "queued",
            "I cannot draw that.",
            "insufficient_quota",
            "429",
            429,
            500,
            1e308,
            float("nan"),
            float("inf"),
            -0.0,
            10**400,
            {"type": "Buffer", "data": [300, -1]},
            {"type": "Buffer", "data": list(FINAL[:40])},
            {"error": {"message": "No", "code": 429}},
            {"error": None},
            {"finish_reason": None},
            {"usage": "x"},
            {"": ""},
        ]
    ),
)


def paths(tree: JSON, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(tree, (dict, list)):
        for key, node in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from paths(node, (*path, key))


def at(tree: JSON, path: tuple[Any, ...]) -> JSON:
    return functools.reduce(lambda node, key: node[key], path, tree)


def put(tree: JSON, path: tuple[Any, ...], value: JSON) -> JSON:
    """The tree with one node replaced."""
    if not path:
        return value
    tree = copy.copy(tree)
    tree[path[0]] = put(tree[path[0]], path[1:], value)
    return tree


def some(draw: Draw, tree: JSON, kind: Any = object) -> tuple[Any, ...]:
    """The path to some node of a kind; the root's when there is none."""
    return draw(st.sampled_from([path for path in paths(tree) if isinstance(at(tree, path), kind)] or [()]))


def wrap(draw: Draw, tree: JSON, extra: st.SearchStrategy[JSON]) -> JSON:
    """Nested one level deeper, alone or beside something."""
    path = some(draw, tree)
    node, word, beside = at(tree, path), draw(WORDS), draw(extra)
    forms = [
        {word: node},
        [node],
        [beside, node],
        [node, beside],
        {"x1": beside, word: node},
        {word: node, "x2": beside},
    ]
    return put(tree, path, draw(st.sampled_from(forms)))


def add(draw: Draw, tree: JSON, extra: st.SearchStrategy[JSON]) -> JSON:
    """Something more in an object or a list, at any place."""
    path = some(draw, tree, (dict, list))
    node, new = at(tree, path), draw(extra)
    if isinstance(node, list):
        place = draw(st.integers(0, len(node)))
        return put(tree, path, [*node[:place], new, *node[place:]])
    if isinstance(node, dict):
        name = f"{draw(WORDS)}_{len(node)}"
        return put(tree, path, draw(st.sampled_from([{name: new, **node}, {**node, name: new}])))
    return tree


def rename(draw: Draw, tree: JSON, extra: st.SearchStrategy[JSON]) -> JSON:
    path = some(draw, tree, dict)
    node, word = at(tree, path), draw(WORDS)
    if not isinstance(node, dict) or not node or word in node:
        return tree
    old = draw(st.sampled_from(sorted(node)))
    return put(tree, path, {word if name == old else name: value for name, value in node.items()})


def shuffle(draw: Draw, tree: JSON, extra: st.SearchStrategy[JSON]) -> JSON:
    path = some(draw, tree, dict)
    node = at(tree, path)
    return put(tree, path, dict(draw(st.permutations(list(node.items()))))) if isinstance(node, dict) else tree


def as_text(draw: Draw, tree: JSON, extra: st.SearchStrategy[JSON]) -> JSON:
    """JSON in a text, as gateways that forward one another make it."""
    path = some(draw, tree, (dict, list))
    return tree if isinstance(tree, str) else put(tree, path, json.dumps(at(tree, path)))


def replace(draw: Draw, tree: JSON, extra: st.SearchStrategy[JSON]) -> JSON:
    """Nulled, emptied, or of another type."""
    return put(tree, some(draw, tree), draw(extra))


def remove(draw: Draw, tree: JSON, extra: st.SearchStrategy[JSON]) -> JSON:
    path = some(draw, tree)
    if not path:
        return tree
    parent = copy.copy(at(tree, path[:-1]))
    del parent[path[-1]]
    return put(tree, path[:-1], parent)


def move(draw: Draw, tree: JSON, extra: st.SearchStrategy[JSON]) -> JSON:
    """A copy of one node in another's place."""
    return put(tree, some(draw, tree), copy.deepcopy(at(tree, some(draw, tree))))


def double(draw: Draw, tree: JSON, extra: st.SearchStrategy[JSON]) -> JSON:
    path = some(draw, tree, (str, list))
    return put(tree, path, at(tree, path) * 2) if path else tree


def disturb(draw: Draw, tree: JSON, extra: st.SearchStrategy[JSON]) -> JSON:
    """One text with something in the middle, or without its end."""
    path = some(draw, tree, str)
    text, place = at(tree, path), draw(st.integers(0, 2000))
    junk = draw(st.sampled_from(["", " ", "\n", "=", "%", "%zz", "\\", '"', "\0", "…", "data:", "![", ")", "{"]))
    return (
        put(tree, path, text[:place] + junk + text[place + draw(st.integers(0, 9)) :])
        if isinstance(text, str)
        else tree
    )


HARMLESS = [wrap, add, rename, shuffle, as_text]
HARMFUL = [*HARMLESS, replace, remove, move, double, disturb]

# As in test_answers, but with the small picture; those with one picture only can be told to find it whatever is done.
SMALL = json.loads(
    json.dumps(
        {name: build(SHELF) for name, build in {**CHAT, **IMAGES}.items() if not isinstance(build(SHELF), (bytes, str))}
    )
)


def shapes(final: str) -> dict[str, JSON]:
    """Known shapes around one picture's text, which is base64 or a link."""
    url = final if final.startswith("http") else f"data:image/png;base64,{final}"
    return {
        "markdown": chat(f"Here you go\n![image]({url})"),
        "images": chat("", images=[{"type": "image_url", "image_url": {"url": url}, "index": 0}]),
        "parts": chat([{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": url}}]),
        "native": {
            "candidates": [
                {"content": {"parts": [{"text": "hi"}, {"inlineData": {"data": url}}]}, "finishReason": "STOP"}
            ]
        },
        "responses": {"output": [{"type": "reasoning"}, {"type": "image_generation_call", "result": final}]},
        "legacy": {"choices": [choice(text=f"![image]({url})")]},
        "data": listing({"b64_json": "" if final.startswith("http") else final, "url": url}),
        "null beside it": listing({"b64_json": None, "url": url, "revised_prompt": ""}),
        "result": {"code": 0, "msg": "success", "data": {"result": {"image": final}}},
        "output": {"id": "7f", "status": "succeeded", "output": [final], "error": None},
        "artifacts": {"artifacts": [{"base64": final, "finishReason": "SUCCESS"}]},
        "alone": {"image": final},
        "list": [final],
        "text": final,
    }


@st.composite
def answers(
    draw: Draw, known: dict[str, JSON], mutations: list[Any], extra: st.SearchStrategy[JSON], most: int = 4
) -> JSON:
    tree = known[draw(st.sampled_from(sorted(known)))]
    for mutation in draw(st.lists(st.sampled_from(mutations), max_size=most)):
        tree = mutation(draw, tree, extra)
    return tree


FAMILIES = st.sampled_from(["openai", "gemini"])
LINK = SHELF.link(FINAL)


@cases(500)
@given(answers(shapes(b64(FINAL)), HARMLESS, NEUTRAL), FAMILIES)
def test_base64_that_is_there_is_found(answer: JSON, family: str) -> None:
    """Moved, renamed, nested, reordered, wrapped in texts: a paid picture is never overlooked."""
    assert set(read(answer, family)) == {FINAL}


@cases(500)
@given(answers(shapes(LINK), HARMLESS, NEUTRAL), FAMILIES)
def test_link_that_is_there_is_found(answer: JSON, family: str) -> None:
    assert set(read(answer, family)) == {FINAL}


SPELT = st.builds(
    lambda spell, pad: pad(spell(b64(FINAL))),
    st.sampled_from([str, lines, lambda s: lines(s, 64, "\r\n"), lambda s: s.replace("+", "-").replace("/", "_")]),
    st.sampled_from([str, lambda s: s.rstrip("="), lambda s: quote(s, safe="")]),
)


@cases(300)
@given(SPELT.flatmap(lambda text: answers(shapes(text), HARMLESS, NEUTRAL, most=3)), FAMILIES)
def test_base64_in_any_spelling_is_found(answer: JSON, family: str) -> None:
    """Lines, URL-safe letters, missing padding, percent signs, wherever the picture stands."""
    assert set(read(answer, family)) == {FINAL}


@cases(200)
@given(st.binary(max_size=30), st.sampled_from(sorted(ENVELOPES)), FAMILIES)
def test_envelope_with_blanks_around(blanks: bytes, name: str, family: str) -> None:
    """Keep-alive blanks before and after, however many and of whatever kind."""
    body = encoded(ENVELOPES[name](SHELF))
    assume(body.isascii() and b"\0" not in body)  # no picture, nor packed, nor in an encoding of other blanks
    around = bytes(b" \t\r\n"[byte % 4] for byte in blanks)
    assert set(read(around + body + around, family)) == set(read(body, family))


@cases(900)
@given(answers({**SMALL, **shapes(b64(FINAL)), **shapes(LINK)}, HARMFUL, HOSTILE, most=6), FAMILIES, st.integers(1, 3))
def test_mutated_answer(answer: JSON, family: str, n: int) -> None:
    """Whatever a gateway makes of its own format: a picture or one error."""
    outcome(answer, family, n)


TREES = st.recursive(
    HOSTILE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.one_of(
                WORDS,
                st.text(max_size=5),
                st.sampled_from(
                    [
                        "error",
                        "errors",
                        "detail",
                        "code",
                        "type",
                        "status",
                        "state",
                        "msg",
                        "loc",
                        "id",
                        "task_id",
                        "finish_reason",
                        "refusal",
                        "thought",
                        "usage",
                    ]
                ),
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@cases(600)
@given(TREES, FAMILIES)
@example({"error": {"error": {"error": []}}}, "openai")
@example({"choices": {"message": "x"}}, "gemini")
@example({"data": [{"b64_json": ["x"], "url": {}}]}, "openai")
def test_any_json(answer: JSON, family: str) -> None:
    assert outcome(answer, family) == []


@cases(400)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=300)), FAMILIES)
@example(b"\xff\xfe", "openai")
@example(b"\0\0\xfe\xff", "openai")
@example(b"\x1f\x8b\x08", "gemini")
@example("data: [", "gemini")
@example('data: {"a":1}\n\ndata: {', "gemini")
def test_any_bytes(body: bytes | str, family: str) -> None:
    assert outcome(body, family) == []


@cases(400)
@given(
    st.sampled_from([*SMALL.values(), *shapes(b64(FINAL)).values()]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=5),
    st.floats(0, 1),
    FAMILIES,
)
def test_damaged_bytes(answer: JSON, damage: list[tuple[float, int]], share: float, family: str) -> None:
    """A body with flipped bytes, or cut off anywhere."""
    body = bytearray(encoded(answer))
    for place, byte in damage:
        body[int(place * len(body))] = byte
    outcome(bytes(body[: int(len(body) * share) + 1]), family)


@cases(150)
@given(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "latin-1", "gbk", "cp1252", "shift_jis", "euc-kr", "koi8-r", "big5"]),
       st.sampled_from(["", "à", "图", "я", "ア"]), FAMILIES)  # fmt: skip
def test_any_charset(charset: str, letter: str, family: str) -> None:
    """Whatever the letters around it are written in, the picture is ASCII."""
    text = json.dumps(chat(f"{letter}\n![image]({data_url(FINAL)})"), ensure_ascii=False)
    assert read(text.encode(charset, "replace"), family) == [FINAL]


@cases(500)
@given(
    st.sampled_from(list(range(300, 600))),
    st.one_of(
        TREES, st.binary(max_size=200), st.text(max_size=200), st.sampled_from([row[1] for row in TABLE.values()])
    ),
    st.dictionaries(st.sampled_from(["Retry-After", "retry-after-ms", "Location", "X"]), st.text(max_size=20)),
    FAMILIES,
)
def test_any_error_body(status: int, body: Any, headers: dict[str, str], family: str) -> None:
    """No error body breaks the reading of errors."""
    given_body = body if isinstance(body, (bytes, str)) else encoded(body)
    with pytest.raises(ImageGenError) as caught:
        handle_http_error(family, status, given_body, headers)
    assert coherent(caught.value)
    assert caught.value.status == status
    assert 0 <= caught.value.retry_after_s <= generate.MAX_RETRY_AFTER_S


@cases(400)
@given(
    st.one_of(
        TREES, st.binary(max_size=200), answers({name: row[0] for name, row in CLASSIFIED.items()}, HARMFUL, HOSTILE)
    ),
    FAMILIES,
)
def test_any_answer_without_a_picture(body: Any, family: str) -> None:
    with pytest.raises(ImageGenError) as caught:
        classify_response_error(family, body)
    assert coherent(caught.value)


# --- Too deep, too much ---

DEPTH = 100_000
CPU_S = 30.0  # seconds where a pattern that backtracks, or a walk that starts over, takes minutes


def soon(work: Callable[[], Any], limit_s: float = CPU_S) -> Any:
    """The result, provided that it took no more processor time than that."""
    started = time.process_time()
    result = work()
    assert time.process_time() - started < limit_s
    return result


@pytest.mark.parametrize("family", ["openai", "gemini"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param("[" * DEPTH, id="open brackets"),
        pytest.param("[" * DEPTH + "]" * DEPTH, id="brackets"),
        pytest.param('{"a":' * DEPTH + "1" + "}" * DEPTH, id="objects"),
        pytest.param('[{"data":' * DEPTH, id="mixed"),
        pytest.param('{"data": "' + "[" * DEPTH + '"}', id="brackets in a text"),
        pytest.param('{"error": ' + "[" * DEPTH + "]" * DEPTH + "}", id="an error of brackets"),
        pytest.param("data: " + "[" * DEPTH + "\n\n", id="brackets in a stream"),
        pytest.param("(" * DEPTH, id="parentheses"),
        pytest.param("![" * DEPTH, id="labels"),
        pytest.param("<" * DEPTH, id="angles"),
    ],
)
def test_too_deep(body: str, family: str) -> None:
    """A hundred thousand brackets are no reason for a crash of the interpreter."""
    assert soon(lambda: outcome(body, family)) == []
    with pytest.raises(ImageGenError):
        soon(lambda: handle_http_error(family, 500, body.encode()))


@pytest.mark.parametrize("depth", [10, 100, 300])
def test_picture_deep_down(depth: int) -> None:
    tree: JSON = {"image": b64(FINAL)}
    for level in range(depth):
        tree = {"data": tree} if level % 2 else [tree]
    assert read(tree, "openai") == [FINAL]


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_picture_in_texts_in_texts(depth: int) -> None:
    tree: JSON = {"image": b64(FINAL)}
    for _ in range(depth):
        tree = {"data": json.dumps(tree)}
    assert set(read(tree, "gemini")) == {FINAL}


MUCH = 50_000_000  # bytes of nothing
SOME = 4_000_000

NOTHINGS = {"blanks": b" ", "zeros": b"\0", "letters": b"a", "digits": b"0", "line feeds": b"\n", "bytes": b"\xff"}

TRAPS = {  # texts on which a careless pattern takes quadratic time
    "data:": "data:",
    "data URLs without a picture": "data:image/png;base64,",
    "data URL of parameters": "data:;a" + ";a",
    "semicolons": ";base64,",
    "markdown": "![a](",
    "markdown labels": "![",
    "links": "https://a.example/b.png ",
    "schemes": "http://",
    "one long link": "http://a/",
    "images": "<img ",
    "image sources": "<img src='",
    "titles": "<title>",
    "stream events": 'data: {"a": 1}\n\n',
    "broken stream events": "data: {\n\n",
    "percent signs": "%41",
    "percent signs alone": "%",
    "words of 63 letters": "a" * 63 + " ",
    "base64 that begins like a PNG": "iVBORw0KGgo",
    "escapes": "\\",
    "quotes": '"',
    "dashes": "-_",
    "equal signs": "=",
    "refusals": "I cannot ",
    "Chinese": "无法",
}


@pytest.mark.parametrize("family", ["openai", "gemini"])
@pytest.mark.parametrize("byte", [pytest.param(byte, id=name) for name, byte in NOTHINGS.items()])
def test_much_of_nothing(byte: bytes, family: str) -> None:
    """Fifty megabytes of one byte take seconds, not minutes."""
    assert soon(lambda: outcome(byte * MUCH, family)) == []


@pytest.mark.parametrize("wrapped", [False, True], ids=["body", "text"])
@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in TRAPS.items()])
def test_patterns_are_linear(text: str, wrapped: bool) -> None:
    """Four megabytes that nearly match, as the body and as a text within it."""
    body = text * (SOME // len(text))
    answer = chat(body) if wrapped else body
    assert soon(lambda: outcome(answer, "gemini")) == []


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"data": [{}] * 300_000}, id="empty items"),
        pytest.param({"data": [{"url": ""}] * 100_000}, id="empty urls"),
        pytest.param({f"k{i}": i for i in range(300_000)}, id="keys"),
        pytest.param({"choices": [{"message": {"content": "x"}}] * 100_000}, id="choices"),
        pytest.param({"error": {"code": ["c"] * 300_000, "message": ["m"] * 300_000}}, id="codes"),
        pytest.param({"detail": [{"loc": ["body", "x"], "msg": "m"}] * 100_000}, id="details"),
        pytest.param({"x": list(range(256)) * 4000}, id="numbers"),
        pytest.param(chat(lines("a" * SOME)), id="lines of letters"),
        pytest.param({"data": [], "usage": {"note": "x" * SOME}}, id="usage"),
    ],
)
def test_many_of_nothing(answer: JSON) -> None:
    assert soon(lambda: outcome(answer, "openai")) == []


def test_picture_behind_much_of_nothing() -> None:
    """A patient gateway's blanks may be many."""
    assert soon(lambda: read(b"\n" * 20_000_000 + encoded(listing({"b64_json": b64(FINAL)})), "openai")) == [FINAL]


# --- Over the wire ---


def test_mutated_answers_over_the_wire(gateway: Gateway, short_waits: None) -> None:
    """The same through the library: nothing on the way adds another kind of failure."""
    shelf = Shelf(gateway)
    link = shelf.link(FINAL)

    @cases(60)
    @given(answers({**shapes(b64(FINAL)), **shapes(link)}, HARMFUL, NEUTRAL), FAMILIES)
    def check(answer: JSON, family: str) -> None:
        gateway.answer(Reply(body=encoded(answer)))
        try:
            if family == "gemini":
                found = generate.generate_gemini("a cup")
            else:
                found = generate.generate_openai("a cup", "gpt-image-2")
        except ImageGenError as error:
            assert coherent(error)
        else:
            assert set(found.images) == {FINAL}

    check()
    assert gateway.calls


@pytest.mark.parametrize("byte", [pytest.param(byte, id=name) for name, byte in NOTHINGS.items()][:3])
@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gzip"])
def test_much_of_nothing_over_the_wire(gateway: Gateway, byte: bytes, gzipped: bool) -> None:
    body = byte * MUCH
    gateway.answer(Reply(body=gzip.compress(body, 1) if gzipped else body))
    with pytest.raises(ImageGenError) as caught:
        soon(lambda: generate.generate_openai("a cup", "gpt-image-2", timeout=60), 2 * CPU_S)
    assert coherent(caught.value)


def test_usage_of_megabytes(gateway: Gateway) -> None:
    """What is not looked at costs nothing: a long text in the usage, beside a picture."""
    gateway.answer(Reply(body={**listing({"b64_json": b64(FINAL)}), "usage": {"note": "x" * SOME}}))
    image, _ = soon(lambda: generate.generate_openai("a cup", "gpt-image-2", timeout=60))
    assert image == FINAL


@pytest.mark.parametrize("dead", ["gone", "slow"])
def test_hundreds_of_dead_links_end_in_time(gateway: Gateway, short_waits: None, dead: str) -> None:
    """Each of them may be the picture, but the time allowed is for all of them."""
    gateway.answer_always(Reply(404) if dead == "gone" else Reply(hang="accept"), path="/media/")
    gateway.answer(
        Reply(body=chat([{"type": "image_url", "image_url": {"url": f"/media/{i}.png"}} for i in range(300)]))
    )
    started = time.monotonic()
    with pytest.raises(ImageGenError) as caught:
        generate.generate_gemini("a cup", timeout=2)
    assert time.monotonic() - started < 8
    assert coherent(caught.value)


def test_error_page_of_megabytes(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    gateway.answer(Reply(502, body=HTML + "<p>x</p>" * (SOME // 8)))
    with caplog.at_level(logging.DEBUG), pytest.raises(ImageGenError) as caught:
        soon(lambda: generate.generate_gemini("a cup", timeout=60))
    assert coherent(caught.value)
    assert len(caplog.text) < 5000
