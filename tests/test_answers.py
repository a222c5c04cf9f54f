"""Answers: the picture is found wherever a gateway puts it, and nothing else is taken for it.

The rows are bodies as gateways send them, with a name where a picture stands: see Shelf.fill.
"""

from __future__ import annotations

import io
import json
import re
import zlib
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote, unquote

import bodies
import generate
import pytest
from bodies import DRAFT, FINAL, PICTURES, REFERENCE, USAGE, Shelf, b64, chat, lines
from conftest import table
from gateway import Gateway, Reply, event
from generate import Generation, ImageGenError
from pictures import SVG, encoded
from PIL import Image

pytestmark = pytest.mark.usefixtures("short_waits")

SORRY = "I'm sorry, but I can't create that image."

# --- Where the picture stands ---

TALK = {  # a chat's words
    # new-api and its relatives; their thinking models put drafts first
    "markdown": "Here you go\n![image]($DATA)",
    "drafts": "![image]($DATA(DRAFT))\n\n![image]($DATA(OTHER_DRAFT))\n\nFinal:\n![image]($DATA)",
    "a signed link": "![image]($LINK(FINAL, 5f3a)?Expires=17&Signature=a%2Fb%3D)",
    "a link in pointed brackets": "![image](<$LINK>)",
    "a picture that is a link": "[![image]($LINK)]($LINK)",
    "brackets in the label": "![a [red] apple (ripe)]($DATA)",
    "a path": "![image]($PATH)",
    # filesystem.site, the store of many relays of gpt-4o-image
    "progress, picture, download": "> 进度 **2%**\n\n![]($LINK)\n[下载⏬]($LINK(FINAL, save))",
    # models that write the link themselves, and bridges to bots
    "base64": "$B64",
    "a link that is all": "$LINK(FINAL, 5f3a)?sig=1",
    "a sentence": "Your picture: $LINK.",
    "Chinese goes on": "图片已生成：$LINK，有效期24小时",
    "HTML": "<p>Done</p><img alt='x' src='$PATH(FINAL, 5f3a)' width=512>",
    "HTML, bare": "<img src=$PATH(FINAL, 5f3a)>",
    "HTML, escaped": '<img src="$LINK(FINAL, 5f3a)?a=1&amp;b=2"/>',
    # words beside it
    "thoughts": f"<think>I can't draw it. {'Hm. ' * 4000}</think>![image]($LINK)",
    "a download below a preview": "![x]($LINK(DRAFT, s.png))\n[点击下载]($LINK(FINAL, l.png))",
    "a source below it": "![image]($LINK)\nSee $LINK(DRAFT, d.png)",
    "an echo of the prompt": '{"prompt": "I CAN\'T MAKE IT UP"} done.\n![image]($LINK)',
    "a caveat": "![image]($LINK)\nI was unable to draw the logo exactly.",
    "a refusal beside bytes": f"{SORRY}\n![image]($DATA)",
    "a refusal, bytes and a link": f"{SORRY} ![image]($DATA) https://policy.example/x",
    "the reference first": "From ![image]($DATA(REFERENCE)) to ![image]($DATA)",
    "the reference last": "![image]($DATA) from ![image]($DATA(REFERENCE))",
}

MESSAGES = {  # the fields of a chat's message
    # OpenRouter, LiteLLM, Vercel
    "images": '"content": "Hi", "images": [{"type": "image_url", "image_url": {"url": "$DATA"}}]',
    "images, blank text": '"content": "", "images": [{"image_url": {"url": "$DATA"}, "index": 0}]',
    "images, null text": '"content": null, "images": [{"image_url": {"url": "$DATA"}}]',
    "images, no text": '"images": [{"image_url": {"url": "$DATA(DRAFT)"}}, {"image_url": "$DATA"}]',
    "images, bytes beside": '"images": [{"image_url": {"url": "$LINK"}}], "seen": "$B64(DRAFT)"',
    # parts
    "parts": '"content": [{"type": "text", "text": "hi"}, {"image_url": {"url": "$DATA"}}]',
    "parts: a link": '"content": [{"image_url": {"url": "$LINK(FINAL, 5f3a)"}}]',
    "parts: Anthropic's": '"content": [{"source": {"media_type": "image/png", "data": "$B64"}}]',
    "parts: AiHubMix": '"content": "", "multi_mod_content": [{"inline_data": {"data": "$B64"}}]',
    # thinking and company
    "reasoning": '"content": "![image]($DATA)", "reasoning_content": "![image]($DATA(DRAFT))"',
    "reasoning last": '"content": "![image]($LINK)", "reasoning_details": ["$B64(DRAFT)"]',
    "an author": '"content": "$LINK", "author": {"avatar_url": "$LINK(THUMB, me.png)"}',
    "Azure's verdict": '"content": "$DATA", "content_filter_results": {"hate": {"x": false}}',
}

THOUGHT = bodies.inline(DRAFT, thought=True)
PARTS = {  # of Google's own answer, which some gateways pass through
    "Google's drafts": [bodies.inline(DRAFT), bodies.inline(FINAL)],
    "Google's thoughts": [{"text": "Hm.", "thought": True}, THOUGHT, bodies.inline(FINAL)],
    "Google's thoughts last": [bodies.inline(FINAL), THOUGHT],
    "Google's in snake case": [{"inline_data": {"mime_type": "image/png", "data": "$B64"}}],
    "Google's file": [{"fileData": {"mimeType": "image/png", "fileUri": "$LINK(FINAL, 5f3a)"}}],
    "Google's signature": [bodies.inline(FINAL, thoughtSignature=b64(zlib.compress(DRAFT)))],
}

CHATS = {
    **{name: json.dumps(chat(text)) for name, text in TALK.items()},
    **{name: f'{{"choices": [{{"message": {{{row}}}}}]}}' for name, row in MESSAGES.items()},
    **{name: json.dumps(bodies.native(*parts)) for name, parts in PARTS.items()},
    "Code Assist's": json.dumps({"response": bodies.native(THOUGHT, bodies.inline(FINAL))}),
    "Google's stream": json.dumps([bodies.native(bodies.inline(FINAL)), bodies.native()]),
    "OpenAI's responses": '{"output": [{"type": "image_generation_call", "result": "$B64"}]}',
    "beside the message": '{"choices": [{"message": {"content": ""}, "images": ["$DATA"]}]}',
    "an empty error": '{"choices": [{"text": "$DATA"}], "error": {"message": "", "code": 0}}',
    "a reason to refuse": '{"choices": [{"text": "$DATA", "finish_reason": "content_filter"}]}',
    "the talk so far": (
        '{"choices": [{"message": {"content": "![image]($LINK)"}}],'
        ' "messages": [{"content": [{"image_url": {"url": "$LINK(DRAFT)"}}]}]}'
    ),
    "citations": '{"choices": [{"text": "$LINK"}], "citations": [{"favicon": "$LINK(THUMB)"}]}',
}

KEYS = ("uri", "link", "href", "src", "path", "image", "file", "output", "result")
ITEMS = {  # the fields of the one item of `data`
    # the API itself, and OmniMaaS' documentation
    "b64_json": '"b64_json": "$B64"',
    "url, blank b64_json": '"url": "$LINK?Signature=a%2Fb", "b64_json": "", "revised_prompt": ""',
    "url, null b64_json": '"url": "$LINK", "b64_json": null',
    "a path": '"url": "$PATH"',
    "blanks around a link": '"url": "  $LINK(FINAL, 5f3a)\\n"',
    "a bracket in the query": '"url": "$LINK?sig=a)b"',
    "an avatar was asked for": '"url": "$LINK(FINAL, avatar-of-a-cat.png)"',
    "a data URL": '"url": "$DATA"',
    # both, and one of them is no good
    "a dead link": '"url": "$GONE", "b64_json": "$B64"',
    "half of the base64": '"b64_json": "$B64(HALF)", "url": "$LINK"',
    "base64 of something else": '"b64_json": "$B64(PAGE)", "url": "$LINK"',
    # what is likely no result comes after what may be one
    "a thumbnail first": '"thumbnail_url": "$LINK(THUMB)", "url": "$LINK"',
    "a thumbnail in base64": '"thumb": "$B64(THUMB)", "url": "$LINK"',
    "sizes": '"urls": {"small": {"preview": "$LINK(DRAFT)"}, "full": "$LINK"}',
    "a link in the prompt": '"b64_json": "$B64", "revised_prompt": "as ![this]($LINK(DRAFT))"',
    # keys that make a text without scheme and ending a link
    **{f"the key {key}": f'"{key}": "$PATH(FINAL, 5f3a)"' for key in KEYS},
}

IMAGES = {
    **{name: f'{{"created": 1, "data": [{{{row}}}]}}' for name, row in ITEMS.items()},
    # what a gateway says of the reference comes after what stands where the API has the result
    "a reference's link": '{"data": [{"url": "$LINK", "init_image": "$LINK(DRAFT)"}]}',
    "references' links": '{"data": [{"url": "$LINK", "source_images": ["$LINK(DRAFT)"]}]}',
    "its other sizes": '{"data": [{"url": "$LINK", "sizes": [{"url": "$LINK(DRAFT)"}]}]}',
    "the request": '{"input": {"image": "$B64(DRAFT)"}, "data": [{"b64_json": "$B64"}]}',
    "a link before it": '{"page_image": "$LINK(DRAFT)", "data": [{"b64_json": "$B64"}]}',
    "documentation": '{"documentation_url": "$GONE", "data": [{"b64_json": "$B64"}]}',
    "the reference": '{"images": ["$B64(REFERENCE)", "$B64"]}',
    "fal": '{"images": [{"url": "$LINK", "content_type": "image/png"}], "prompt": "a cup"}',
    "Stability v1": '{"artifacts": [{"base64": "$B64", "finishReason": "SUCCESS"}]}',
    "MiniMax": '{"data": {"image_base64": ["$B64"]}, "base_resp": {"status_code": 0}}',
    "Vertex": '{"predictions": [{"mimeType": "image/png", "bytesBase64Encoded": "$B64"}]}',
    "Cloudflare": '{"result": {"image": "$B64"}, "success": true, "errors": []}',
    "Black Forest Labs": '{"status": "Ready", "result": {"sample": "$LINK(FINAL, 5f3a)"}}',
    "Replicate": '{"urls": {"get": "$GONE"}, "output": ["$LINK"], "status": "succeeded"}',
    "DashScope, chat": '{"output": {"choices": [{"message": {"content": [{"image": "$LINK"}]}}]}}',
    "Tencent": '{"Response": {"ResultImage": "$B64", "RequestId": "7f"}}',
    "a relay's data": '{"code": 200, "msg": "success", "data": {"result": {"imageUrl": "$LINK"}}}',
    "a made-up word": '{"a": [{"b": {"c": [[{"bild": "$B64"}]]}}]}',
    "a chat's": '{"choices": [{"message": {"content": "![image]($DATA)"}}]}',
}

SHAPES = {
    **{f"gemini: {name}": ("gemini", template) for name, template in CHATS.items()},
    **{f"openai: {name}": ("openai", template) for name, template in IMAGES.items()},
}


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A reference image that the gateway may echo."""
    path = tmp_path / "reference.png"
    path.write_bytes(REFERENCE)
    return str(path)


def ask(family: str, gateway: Gateway, answer: Any, **options: Any) -> Generation:
    """What the library makes of one answer: a body, a template, or a whole Reply."""
    if isinstance(answer, str):
        answer = Shelf(gateway).fill(answer)
    gateway.answer(answer if isinstance(answer, Reply) else Reply(body=answer))
    if family == "gemini":
        return generate.generate_gemini("a red apple", **options)
    return generate.generate_openai("a red apple", "gpt-image-2", **options)


def failure(family: str, gateway: Gateway, answer: Any, **options: Any) -> ImageGenError:
    """The error that one answer amounts to, said in one line."""
    with pytest.raises(ImageGenError) as caught:
        ask(family, gateway, answer, **options)
    error = caught.value
    assert len(gateway.calls) == 1
    assert (error.status, error.message) == (200, " ".join(error.message.split()))
    assert error.message.isprintable() and 10 < len(error.message) < 700
    return error


def fetched(gateway: Gateway) -> list[str]:
    return [received.target for received in gateway.requests if received.method == "GET"]


@table("family, template", SHAPES)
def test_picture_is_found(gateway: Gateway, own: str, family: str, template: str) -> None:
    """One tolerant reader that finds image material wherever the body carries it."""
    assert ask(family, gateway, template, ref_images=[own], attempts=1).images == [FINAL]
    assert len(gateway.calls) == 1


# --- How it is written and sent ---

ANSWER, WORDS = '{"data": [{"b64_json": "$B64"}]}', json.dumps(chat("Voilà ![image]($DATA)"))
SPELLINGS = {  # of base64, as `data`
    "lines": lines,
    "no padding": lambda text: text.rstrip("="),
    "URL-safe": lambda text: text.replace("+", "-").replace("/", "_").rstrip("="),
    "a type that lies": lambda text: f"data:image/jpeg;base64,{text}",
    "a charset": lambda text: f"data:image/png; charset=UTF-8; base64, {text}",
    "a data URL in lines": lambda text: f"data:image/png;base64,\n{lines(text)}",
}


@table("spell", {name: (spell,) for name, spell in SPELLINGS.items()})
@pytest.mark.parametrize("zeros", [0, 2])
def test_base64_as_gateways_spell_it(gateway: Gateway, spell: Any, zeros: int) -> None:
    """With one and with two = at its end."""
    data = FINAL + bytes(zeros)
    assert ask("openai", gateway, {"data": [spell(b64(data))]}).images == [data]


WHOLE_BODIES: dict[str, Callable[[Shelf], Any]] = {
    "bytes": lambda s: FINAL,
    "base64": lambda s: s.fill("$B64"),
    "a byte order mark": lambda s: b"\xef\xbb\xbf" + s.fill(ANSWER).encode(),
    "UTF-16": lambda s: s.fill(WORDS).encode("utf-16"),
    "GBK": lambda s: s.fill('{"choices": [{"text": "图片: $DATA"}]}').encode("gbk"),
    "PHP's slashes": lambda s: s.fill(WORDS).replace("/", "\\/"),
    ".NET's escapes": lambda s: s.fill(ANSWER).replace("+", "\\u002B"),
    "brackets in a path": lambda s: chat(f"![image]({s.path(FINAL, 'cup_(1).png')})"),
    "brackets in a link": lambda s: chat(f"It is at {s.link(FINAL, 'cup_(1).png')}."),
    # kie.ai
    "JSON within JSON": lambda s: {"resultJson": json.dumps([s.link(FINAL)]).replace("/", "\\/")},
    "blanks first": lambda s: " \r\n\t\n" * 2000 + s.fill(ANSWER),  # sub2api, CLIProxyAPI
    "comments first": lambda s: ": OPENROUTER PROCESSING\n\n" * 9 + s.fill(ANSWER),
}  # fmt: skip


@table("build", {name: (build,) for name, build in WHOLE_BODIES.items()})
def test_neither_encoding_nor_wrapping_hides_the_picture(gateway: Gateway, build: Any) -> None:
    assert ask("gemini", gateway, Reply(body=build(Shelf(gateway)))).images == [FINAL]


PRETTY = json.dumps(bodies.completed(FINAL), indent=1).replace("\n", "\ndata: ")
PING = 'event: ping\ndata: {"type": "ping"}\n\n: keep-alive\n\n:\n\n'
STREAM_SPELLINGS: dict[str, Any] = {  # of a draft and a picture
    "LF": lambda draft, final: draft + final,
    "CRLF": lambda draft, final: (draft + final).replace("\n", "\r\n"),
    "no event lines": lambda draft, final: re.sub("event: .*\n", "", draft + final),
    "no types": lambda draft, final: re.sub('"type": "[^"]*", ', "", draft + final),
    "no index": lambda draft, final: draft.replace('"partial_image_index": 0, ', "") + final,
    "no blanks": lambda draft, final: (draft + final).replace("data: ", "data:"),
    "no last line end": lambda draft, final: (draft + final).rstrip(),
    "data in many lines": lambda draft, final: draft + (final and f"data: {PRETTY}\n\n"),
    "ids": lambda draft, final: f"retry: 3000\n\nid: 7\n{draft}id: 8\n{final}",
    "pings and comments": lambda draft, final: PING + draft + PING * 9 + final + PING,
    "a byte order mark": lambda draft, final: "\ufeff" + draft + final,
    "blanks first": lambda draft, final: "\n" * 300 + draft + final,  # sub2api, CLIProxyAPI
}


@table("spell", {name: (spell,) for name, spell in STREAM_SPELLINGS.items()})
def test_spelling_of_a_stream_changes_nothing(
    gateway: Gateway, kept: Path, spell: Callable[[str, str], str]
) -> None:
    """Whole it is the picture; cut before its last event it is a draft."""
    draft, final = (
        event(each).decode() for each in (bodies.partial(DRAFT), bodies.completed(FINAL))
    )
    assert ask("openai", gateway, spell(draft, final)).images == [FINAL]
    with pytest.raises(generate.UnavailableError):
        ask("openai", gateway, spell(draft, ""))
    assert [path.read_bytes() for path in kept.iterdir()] == [DRAFT]


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_known_by_its_bytes(gateway: Gateway, fmt: str) -> None:
    data = encoded(Image.open(io.BytesIO(FINAL)), fmt)
    assert ask("openai", gateway, bodies.made(data, output_format="png")).images == [data]


SENT: list[dict[str, Any]] = [
    {"blanks": 5, "chunked": True},  # while it draws
    {"gzip": True},
    {"headers": {"Content-Type": "text/html"}},
    {"status": 201},
]


@pytest.mark.parametrize("word", ["false", "none", "BLOCK_REASON_UNSPECIFIED"])
def test_reason_that_is_none(gateway: Gateway, word: str) -> None:
    """A field that says that nothing was refused is no refusal."""
    error = failure("gemini", gateway, json.dumps({"promptFeedback": {"blockReason": word}}))
    assert error.kind == "response"


@pytest.mark.parametrize("options", SENT, ids=str)
def test_the_way_it_is_sent_makes_no_difference(gateway: Gateway, options: Any) -> None:
    body = Shelf(gateway).fill(WORDS)
    assert ask("gemini", gateway, Reply(body=body, **options)).images == [FINAL]


# --- Links ---

SPELT: dict[str, Callable[[Shelf], str]] = {
    "no scheme": lambda s: s.link(FINAL)[len("http:") :],
    "capitals": lambda s: "HTTP" + s.link(FINAL)[len("http") :],
    "no slash": lambda s: s.path(FINAL)[1:],
    "blanks and brackets": lambda s: unquote(s.link(FINAL, quote("a (1) [o'k].png", safe="()'"))),
}


@table("spell", {name: (spell,) for name, spell in SPELT.items()})
def test_link_as_gateways_spell_it(gateway: Gateway, spell: Callable[[Shelf], str]) -> None:
    assert ask("openai", gateway, bodies.linked("openai", spell(Shelf(gateway)))).images == [FINAL]


def test_link_is_fetched_once_and_only_when_needed(gateway: Gateway) -> None:
    """Bytes in hand need no request; a link needs one, whole, and a file name is hardly one."""
    ask("openai", gateway, '{"data": [{"url": "$LINK", "b64_json": "$B64"}]}')
    assert fetched(gateway) == []
    ask("openai", gateway, '{"data": [{"url": "$LINK(FINAL, 5f3a)", "file_name": "z1_abc.png"}]}')
    assert fetched(gateway) == [Shelf(gateway).path(FINAL, "5f3a")]
    ask("gemini", gateway, CHATS["HTML, escaped"])
    assert fetched(gateway)[1].endswith("/5f3a?a=1&b=2")


def test_draft_stands_in_for_a_lost_last_picture(gateway: Gateway, caplog: Any) -> None:
    lost = json.dumps(chat("![image]($LINK(DRAFT)) ![image]($GONE)"))
    assert ask("gemini", gateway, lost).images == [DRAFT]
    lost = '{"thumbnail_url": "$LINK(DRAFT)", "image_url": "$GONE"}'
    assert ask("openai", gateway, lost).images == [DRAFT]
    assert "another one is" in caplog.text and Shelf(gateway).gone in caplog.text


# --- Several pictures, and what they cost ---

B64, LINK = '{"b64_json": "$B64"}', '{"url": "$LINK"}'
B64_2, LINK_2 = '{"b64_json": "$B64(SECOND)"}', '{"url": "$LINK(SECOND)"}'
SEVERAL = {  # n, the items of `data`, the pictures
    "base64": (2, f"{B64}, {B64_2}", "FINAL SECOND"),
    "links": (2, f"{LINK}, {LINK_2}", "FINAL SECOND"),
    "the same twice": (2, f"{B64}, {B64}", "FINAL FINAL"),
    "the same twice, and once too much": (1, f"{B64}, {B64}", "FINAL"),
    "one of ten": (10, B64, "FINAL"),
    "blanks among them": (3, f"{B64}, {{}}, null, {LINK_2}", "FINAL SECOND"),
    "an error among them": (2, f'{B64}, {{"error": {{"code": "moderation_blocked"}}}}', "FINAL"),
    "a refusal among them": (2, f'{LINK}, {{"finish_reason": "content_filter"}}', "FINAL"),
    "half a picture": (2, f'{{"b64_json": "$B64(HALF)"}}, {B64_2}', "SECOND"),
    "a dead link": (2, f'{{"url": "$GONE"}}, {LINK}', "FINAL"),
    "the reference": (2, f'{{"b64_json": "$B64(REFERENCE)"}}, {B64}', "FINAL"),
    "more than asked for": (1, f"{B64}, {LINK_2}", "FINAL SECOND"),
}


@table("n, items, names", SEVERAL)
def test_several(gateway: Gateway, own: str, caplog: Any, n: int, items: str, names: str) -> None:
    """Every picture paid for comes back, in order; a missing one and its link are spoken of."""
    made = ask("openai", gateway, f'{{"data": [{items}]}}', n=n, ref_images=[own], attempts=1)
    assert made.images == [PICTURES[name] for name in names.split()]
    short = f"made only {len(made.images)} of {n} " in caplog.text
    assert short == (len(made.images) < n)
    assert (Shelf(gateway).gone in caplog.text) == ("$GONE" in items)


TOKENS = {"total_tokens": 7, "image_count": 1}
USED: dict[str, tuple[dict[str, Any], Any]] = {
    "as it came": ({"usage": TOKENS}, TOKENS),
    "Google's, wrapped": ({"response": {"usageMetadata": TOKENS}}, TOKENS),
    "zero": ({"usage": {"total_tokens": 0}}, {"total_tokens": 0}),
    "null": ({"usage": None}, {}),
    "beyond JSON": ({"usage": {"x": float("inf")}}, {"x": None}),
}


@table("fields, usage", USED)
def test_usage(gateway: Gateway, fields: Any, usage: Any) -> None:
    image, said = ask("openai", gateway, {"images": [b64(FINAL)], **fields})
    assert (image, said) == (FINAL, usage)


def test_usage_of_a_stream_is_the_last(gateway: Gateway) -> None:
    events = {"usage": {"total_tokens": 1}}, bodies.completed(FINAL), bodies.delta("")
    assert ask("openai", gateway, bodies.stream(*events)).usage == USAGE


# --- No picture ---

NOISE = b64(bytes(range(256)) * 40)
NOTHING = {  # a template as gemini's answer, unless it is `data`
    "choices: none": '{"choices": [], "usage": {"total_tokens": 4212}}',
    "content: null": '{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}',
    "content: a blank part": '{"choices": [{"message": {"content": [{"image_url": ""}]}}]}',
    "data: none": '{"data": []}',
    "data: an empty object": '{"data": [{}]}',
    "data: all blank": '{"data": [{"url": "", "b64_json": "", "revised_prompt": ""}]}',
    "data: wrong types": '{"data": [{"url": 5, "b64_json": true}, 7, [], ""]}',
    "body: empty": "",
    "body: an empty stream": "data: [DONE]\n\n",  # new-api, where the prompt was blocked
    "base64 of no picture": f'{{"data": [{{"b64_json": "{NOISE}"}}]}}',
    "a signature": f'{{"candidates": [{{"text": "Hm.", "thoughtSignature": "{NOISE}"}}]}}',
    "SVG": f'{{"data": [{{"url": "data:image/svg+xml;base64,{b64(SVG.encode() * 9)}"}}]}}',
    "the first bytes of a PNG": f'{{"data": [{{"b64_json": "iVBORw0KGgo{NOISE}"}}]}}',
    "the reference": '{"data": [{"b64_json": "$B64(REFERENCE)", "url": "$LINK(REFERENCE)"}]}',
    "the request": '{"request": {"messages": [{"image_url": {"url": "$DATA(REFERENCE)"}}]}}',
    "a link to a page": '{"data": [{"url": "$LINK(PAGE, 5f3a)"}]}',
    "a link to half a picture": '{"data": [{"url": "$LINK(HALF)"}]}',
    "a link to a file": '{"data": [{"url": "file:///etc/hostname"}]}',
    "a malformed link": '{"data": [{"url": "http://[::/x.png"}]}',
    "too deep": f'{"[" * 300}"$B64"{"]" * 300}',
    "a script": '{"choices": [{"text": "![image](javascript:alert(1))"}]}',
}


@table("template", {name: (template,) for name, template in NOTHING.items()})
def test_answer_without_a_picture(gateway: Gateway, own: str, template: str) -> None:
    """HTTP 200 is not success: it was billed, or maybe not where it holds words."""
    family = "openai" if '"data"' in template else "gemini"
    error = failure(family, gateway, template, ref_images=[own])
    billed = "maybe" if '"text"' in template else "yes"
    assert (error.kind, error.retryable, error.billed) == ("response", False, billed)


LINKED = f"data: {json.dumps(bodies.delta('Here: ![image]($LINK)'))}\n\n"


@pytest.mark.parametrize("template", [LINKED, ": PING\n\n", ":\n\n"])
def test_stream_that_ends_without_any_picture(gateway: Gateway, template: str) -> None:
    """A link in it may lead to the picture: it is told."""
    error = failure("gemini", gateway, template)
    assert (error.kind, error.billed, error.draft_at) == ("unavailable", "maybe", None)
    assert error.image_urls == ([Shelf(gateway).link(FINAL)] if template is LINKED else [])


QUOTED = {  # what the message repeats of an answer
    SORRY: json.dumps(chat(SORRY)),
    "Google's": '{"candidates": [{"content": {"parts": [{"text": "Google\'s"}]}}]}',
    "upstream says hello": "upstream says hello",
    "NO_IMAGE": '{"candidates": [{"finishReason": "NO_IMAGE"}]}',
    "queue is full": '{"success": false, "message": "queue is full"}',
    "error calling safety checker": '{"error": "error calling safety checker"}',
    "NSFW checker crashed": '{"reason": "", "msg": "NSFW checker crashed: no memory"}',
    "参数错误": '{"code": -1, "msg": "参数错误", "data": null}',
    "Upstream died": '{"choices": [{"error": {"message": "Upstream died"}}]}',
    "No route": '{"success": false, "errors": [{"code": 7003, "message": "No route"}]}',
    "one two": json.dumps(chat("one\n\n\ttwo\x1b[31m\u202e three")),
    "/v1": "<!doctype html><title>New API</title>",  # the hint: a base URL without it, on new-api
    "gs://bucket/a.png": '{"predictions": [{"gcsUri": "gs://bucket/a.png"}]}',  # Vertex
    "503 of a rate limit": json.dumps(chat("A sign: 503 of a rate limit")),  # a model's words
}

WORDLESS = ("NO_IMAGE", "gs://bucket/a.png")


@table("quote, body", {quote: (quote, body) for quote, body in QUOTED.items()})
def test_message_quotes_the_answer(gateway: Gateway, quote: str, body: str) -> None:
    """What the gateway said is the best hint there is; words may be a refusal that cost nothing."""
    error = failure("gemini", gateway, body)
    billed = "yes" if quote in WORDLESS else "maybe"
    assert (error.kind, error.billed) == ("response", billed)
    assert quote in f"{error} {error.image_url}"
    assert ("reword the prompt" in error.hint) == (billed == "maybe" and quote != "/v1")


REASONS = ("content_filter", "image_safety", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII")
REFUSALS = {  # what the message repeats, and the body; OpenAI's reasons, then Google's
    **{word: f'{{"choices": [{{"finish_reason": "{word}"}}]}}' for word in REASONS[:2]},
    **{word: f'{{"candidates": [{{"finishReason": "{word}"}}]}}' for word in REASONS[2:]},
    "SAFETY": '{"promptFeedback": {"blockReason": "SAFETY"}}',
    "it is unsafe": '{"predictions": [{"raiFilteredReason": "it is unsafe"}]}',  # Vertex
    "nsfw": '{"state": "nsfw"}',  # Higgsfield
    "content_filtered": '{"stop_reason": "content_filtered"}',  # Bedrock
    "output_moderation": '{"status": "failed", "failure_reason": "output_moderation"}',  # GrsAI
    "moderation_blocked": '{"state": "failed", "failure_reason": "moderation_blocked"}',
    "I can't help": '{"choices": [{"message": {"content": null, "refusal": "I can\'t help"}}]}',
    "CONTENT_FILTERED": '{"artifacts": [{"base64": "", "finishReason": "CONTENT_FILTERED"}]}',
    "Your request": '{"error": {"message": "Your request", "code": "moderation_blocked"}}',
    "new_sensitive": '{"base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}}',
    "可能包含敏感词": '{"code": 24, "description": "可能包含敏感词"}',  # for Midjourney
    "No.": '{"output": {"task_id": "8", "code": "DataInspectionFailed", "message": "No."}}',
}


@table("quote, body", {quote: (quote, body) for quote, body in REFUSALS.items()})
def test_refusal(gateway: Gateway, quote: str, body: str) -> None:
    error = failure("gemini", gateway, body)
    assert (error.kind, error.retryable, error.billed) == ("refused", False, "no")
    assert quote in error.message


UNFINISHED = "IN_QUEUE queued Pending processing SUBMITTED in_progress RUNNING created waiting"
TASKS = {  # of gateways that only begin the work
    **{key: f'{{"data": {{"{key}": "7f3a-task"}}}}' for key in ("task_id", "JobId")},
    **{key: f'{{"data": {{"{key}": "7f3a-task"}}}}' for key in ("generationId", "predictionID")},
    **{word: f'{{"id": "7f3a-task", "state": "{word}"}}' for word in UNFINISHED.split()},
    "Replicate": '{"id": "7f3a-task", "status": "starting", "urls": {"get": "/v1/predictions/7f"}}',
    "fal": '{"status": "IN_QUEUE", "request_id": "7f3a-task", "response_url": "/media/gone"}',
    "fal, its state": '{"status": "IN_QUEUE", "request_id": "7f3a-task", "status_url": "/queue/7f"}',
    "OpenAI": '{"id": "7f3a-task", "object": "response", "status": "in_progress", "output": []}',
    "Midjourney": '{"code": 1, "description": "提交成功", "result": "7f3a-task"}',
}


@table("body", {name: (body,) for name, body in TASKS.items()})
def test_task_in_place_of_a_picture(gateway: Gateway, body: str) -> None:
    """The picture may be made and billed later: the id is what the user can ask for it with."""
    error = failure("openai", gateway, body)
    assert (error.kind, error.retryable, error.billed) == ("response", False, "yes")
    quoted = "7f3a-task" if "提交成功" in body else "task 7f3a-task"
    assert quoted in error.message
    assert (error.image_urls == ["/queue/7f"]) == ("status_url" in body)


def test_task_of_a_lost_picture(gateway: Gateway) -> None:
    """Its id is told, too, and so is every link, but no more than 12 of them are tried."""
    gone = [f"{gateway.origin}/media/{number}.png" for number in range(14)]
    error = failure("gemini", gateway, {"task_id": "7f3a-task", "images": gone})
    assert "picture of the task 7f3a-task could not be retrieved" in error.message
    assert "only 12 links" in error.message and "Download it soon" in error.hint
    assert (error.image_urls, error.billed) == (gone[::-1], "yes")
    assert len(set(fetched(gateway))) == 12


# --- Paid, and nearly lost ---

AVIF = (b"avif", b"avis", b"mif1\0\0\0\0avif", b"msf1\0\0\0\0miafavis")  # brands
BRANDS = (*AVIF, b"heic", b"hevc", b"mif1", b"msf1")  # the others are HEIF's
FIRST_BYTES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\1\0\0\0WEBP", b"GIF89a", b"MM\0*")


@pytest.mark.parametrize("first", [*FIRST_BYTES, *(b"\0\0\0\x18ftyp" + brand for brand in BRANDS)])
def test_picture_that_does_not_decode_is_kept(gateway: Gateway, kept: Path, first: bytes) -> None:
    """A paid image is never lost: it may still be mended, or opened elsewhere."""
    error = failure("openai", gateway, bodies.made(first + bytes(200)))
    assert [str(path) for path in kept.iterdir()] == [error.saved_at]
    assert f"The part that arrived is kept at {error.saved_at}." in error.hint
    assert str(error.saved_at).endswith(".avif") == first.endswith(AVIF)
    assert Path(str(error.saved_at)).read_bytes() == first + bytes(200)


@table("text", {text: (text,) for text in ("Here it is: $", "[View]($)", '<a href="$">View</a>')})
def test_link_that_may_be_the_picture_s_is_told(gateway: Gateway, text: str) -> None:
    link = "https://gateway.example/v1/files/abc?sig=1"
    error = failure("gemini", gateway, chat(text.replace("$", link)))
    assert (error.image_url, link in error.hint) == (link, True)


def test_link_that_leads_to_no_picture_is_told_whole(gateway: Gateway) -> None:
    error = failure("openai", gateway, '{"data": [{"url": "$PATH(PAGE, 5f3a)"}]}')
    assert error.image_url == Shelf(gateway).link(PICTURES["PAGE"], "5f3a")


REFUSING = """
I'm sorry, but I can't create that image.
I'm very sorry, but I cannot generate images of real people.
I'm really sorry, I won't make that.
I'm so sorry, but I am not able to draw it.
I'm afraid I'm unable to produce it.
Sorry, we are unable to help with that.
Unfortunately I will not assist with that.
I apologize, but I won't be able to fulfill this request.
I apologise, I can not edit this photo.
I must decline to comply.
I cannot directly process this.
We can't provide such images.
I can’t do that.
抱歉，我无法生成这张图片。
很抱歉，这张图片无法给您。
非常遗憾，这张图片不能给您。
对不起，这张图片没办法给您。
"""
SHORT = "我无法生成 无法创建 不能绘出 暂时没办法画 无法制作 无法提供 无法协助 无法帮您 无法处理 无法满足 无法完成 无法编辑"


@pytest.mark.parametrize("words", [*REFUSING.strip().splitlines(), *SHORT.split()])
def test_links_behind_a_refusal_are_left_alone(gateway: Gateway, words: str) -> None:
    """An answer without a picture: what it links to is none of it."""
    link = Shelf(gateway).link(FINAL)
    error = failure("gemini", gateway, chat(f"{words} ![x]({link})"))
    assert (error.kind, error.image_url, fetched(gateway)) == ("response", link, [])


@pytest.mark.parametrize("shape", ["%s", '{"choices": [{"text": "%s"}]}'])
def test_refusal_stands_wherever_words_do(gateway: Gateway, shape: str) -> None:
    error = failure("gemini", gateway, Reply(body=shape % f"{SORRY} {Shelf(gateway).link(FINAL)}"))
    assert (error.kind, fetched(gateway)) == ("response", [])


@pytest.mark.parametrize("words", ["here's a generic one", "here is one", "here are two"])
def test_no_refusal_of_the_picture(gateway: Gateway, words: str) -> None:
    """What is refused is only a part of it."""
    answer = json.dumps(chat(f"I can't draw real logos, but {words}: ![x]($LINK)"))
    assert ask("gemini", gateway, answer).images == [FINAL]


# --- Candidates are ranked, not filtered ---

RANKED = {
    "harmless words": json.dumps(chat("You can't resist this dog! ![image]($LINK)")),
    "words after it": json.dumps(chat('<img src="$LINK?a=1&amp;b=2"> I can\'t draw real logos.')),
    "request": '{"request": {"id": "7f", "images": ["$B64"]}}',
    "support": '{"support": {"picture": "$LINK"}}',
    "prompt_outputs": '{"prompt_outputs": [{"url": "$LINK"}]}',
    "input": '{"input": {"image": "$B64"}, "data": []}',
    "user": '{"user": {"picture": "$LINK"}, "data": []}',
    "avatar, refused": '{"choices": [{"text": "I\'m sorry, I can\'t"}], "avatar": "$DATA"}',
    "prompt": '{"data": [{"revised_prompt": "as in ![this]($LINK)", "url": ""}]}',
    "an error beside it": '{"error": {"code": 500, "message": "Late"}, "data": [{"url": "$LINK"}]}',
    "words like an error's": '{"message": "Rate limit: 3 left", "images": [{"url": "$LINK"}]}',
    "a part that failed": '{"output": ["$LINK"], "errors": [{"code": "content_filter"}]}',
    "another's state": '{"webhook_status": "failed", "status": "succeeded", "output": "$LINK"}',
    "a failed attempt": '{"attempts": [{"status": "failed"}], "output": "$LINK"}',
    "a failed task's bytes": '{"status": "failed", "image": "$B64"}',
    "unfinished, with bytes": '{"status": "processing", "image": "$B64"}',
}


@table("body", {name: (body,) for name, body in RANKED.items()})
def test_everything_that_may_be_a_picture_is_a_candidate(gateway: Gateway, body: str) -> None:
    """Decoding is the proof; where it stood decides only which comes first."""
    assert ask("gemini", gateway, body).images == [FINAL]


# What a gateway hands back or shows beside the fault; a relay passes on such a task as its answer.
ECHOED = {  # the error, and the answer
    "Replicate, starting": ("response", '{"status": "starting", "input": {"image": "$LINK"}}'),
    "Replicate, failed": ("response", '{"status": "failed", "input": {"image": "$LINK"}}'),
    "an echo in bytes": ("response", '{"status": "failed", "input": {"image": "$B64"}}'),
    "PiAPI": ("response", '{"data": {"status": "Failed", "input": {"image_url": "$LINK"}}}'),
    "kie.ai": (
        "refused",
        '{"failMsg": "It was flagged by a filter", "param": "{\\"u\\":\\"$LINK\\"}"}',
    ),
    "ModelsLab": ("response", '{"status": "processing", "meta": {"init_image": "$LINK"}}'),
    "a QR code": (
        "quota",
        '{"error": {"code": "insufficient_user_quota", "message": "![QR]($LINK)"}}',
    ),
    "of what was sent": ("refused", '{"finish_reason": "content_filter", "request": "$LINK"}'),
    "DashScope": ("refused", '{"code": "DataInspectionFailed", "input": {"image": "$LINK"}}'),
    "a log-in page": ("response", '<!DOCTYPE html><img src="$LINK"><img src="$DATA">'),
    "a page behind a comment": ("response", '<!-- v2 --><body><img src="$LINK">'),
    "a page's head": ("response", '<html><meta property="og:image" content="$LINK"></html>'),
}


@table("kind, body", ECHOED)
def test_what_is_shown_beside_a_fault_is_no_result(gateway: Gateway, kind: str, body: str) -> None:
    error = failure("openai", gateway, body)
    assert (error.kind, fetched(gateway)) == (kind, [])


def test_link_that_does_something_is_never_opened(gateway: Gateway) -> None:
    """Some image hosts delete a picture when its delete_url is opened; Replicate has a cancel."""
    body = '{"cancel": "$LINK(DRAFT)", "image": {"delete_url": "$LINK(DRAFT)", "url": "$LINK"}}'
    assert ask("openai", gateway, body).images == [FINAL]
    assert fetched(gateway) == [Shelf(gateway).path(FINAL)]


@pytest.mark.parametrize("cut", ['{"data": [{"url": "$LINK?a=1\\u0026b=2"}]', '{"x": 1}$DATA'])
def test_body_that_is_not_quite_json(gateway: Gateway, cut: str) -> None:
    """Go escapes the & of links, PHP every slash: two values, or one that was cut."""
    filled = Shelf(gateway).fill(cut).replace("/", "\\/")
    assert ask("openai", gateway, Reply(body=filled)).images == [FINAL]
    assert all(target.endswith("?a=1&b=2") for target in fetched(gateway))


DRAFTS = "thumbnail_url preview_url draft partial_image_b64 thought thinking reasoning_details"
FOREIGN = "avatar favicon author_image user input_image request prompt.image support_image emoji"
FOREIGN += " callback webhook citations annotations icon logo profile mask help docs homepage"
FOREIGN += " website terms policy policies qr_code init_image param parameters status_url fetch"
FOREIGN += " stream video_url audio grounding_metadata"


@pytest.mark.parametrize("key", f"{DRAFTS} {FOREIGN}".split())
def test_what_is_less_likely_by_its_key_comes_last(gateway: Gateway, key: str) -> None:
    """Drafts, what was sent, and whose it is: all before the result, and as good a picture."""
    body = f'{{"{key}": {{"data": "$B64(DRAFT)"}}, "output": "$B64"}}'
    assert ask("openai", gateway, body).images == [FINAL]


COMPANY = "avatar.png favicon.ico emoji.png [logo] [Icon] [badge] [banner] [QR] [qrcode]"


@pytest.mark.parametrize("words", COMPANY.split())
def test_a_service_s_own_pictures_do_not_count(gateway: Gateway, words: str) -> None:
    """Avatars, favicons, logos and the like below the picture, told by their labels or names."""
    label, name = (words, "a.png") if words[0] == "[" else ("[]", words)
    answer = chat(f"![image]($LINK)\nSource: !{label}($LINK(DRAFT, {name}))")
    assert ask("gemini", gateway, json.dumps(answer)).images == [FINAL]


LABELS = ("Image", "Your picture", "photo 1", "Download", "查看大图", "点击下载")
EXTENSIONS = ("png", "jpg", "jpeg", "webp", "gif", "avif")


@pytest.mark.parametrize("label", LABELS)
def test_label_makes_a_link_a_picture_s(gateway: Gateway, label: str) -> None:
    """It is as likely as one with a picture's name, so that the last one counts."""
    words = json.dumps(chat(f"$LINK(DRAFT, d.png) and [{label}]($LINK(FINAL, 5f3a))"))
    assert ask("gemini", gateway, words).images == [FINAL]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_extension_makes_a_link_a_picture_s(gateway: Gateway, extension: str) -> None:
    """In prose; and where it is a file's name, it makes it a link at all."""
    words = json.dumps(chat(f"Image: $LINK(DRAFT, 1) and then $LINK(FINAL, x.{extension}) here"))
    assert ask("gemini", gateway, words).images == [FINAL]
    path = Shelf(gateway).path(FINAL, f"x.{extension}")[1:]
    assert ask("openai", gateway, bodies.linked("openai", path)).images == [FINAL]


def test_each_link_that_was_left_alone_is_told(gateway: Gateway) -> None:
    links = [Shelf(gateway).link(data) for data in (FINAL, DRAFT)]
    error = failure("gemini", gateway, chat(f"{SORRY} {bodies.markdown(*links, *links)}"))
    assert (error.kind, fetched(gateway)) == ("response", [])
    assert error.image_urls == links
