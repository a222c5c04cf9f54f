"""Answers: the picture is found wherever a gateway puts it, and nothing else is ever taken for it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import zlib
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote, unquote

import generate
import pytest
from gateway import Gateway, Reply
from generate import Generation, ImageGenError
from pictures import HTML, PDF, SVG, cut, encoded, picture, zipped
from PIL import Image

USAGE = {"input_tokens": 52, "output_tokens": 4160, "total_tokens": 4212}

# FINAL is what every shape below is about; the others stand beside it.
FINAL, SECOND, THIRD, DRAFT, OTHER_DRAFT, REFERENCE = (picture(80, 60, noise=True, seed=seed) for seed in range(6))
JPEG = picture(120, 90, fmt="JPEG", noise=True)
WEBP = picture(120, 90, fmt="WEBP", noise=True)
THUMB = picture(16, 12)

SCRIPTED = Callable[["Shelf"], Any]


class Shelf:
    """Where a scripted answer's pictures lie when they are behind links: on the gateway itself."""

    def __init__(self, gateway: Gateway):
        self.gateway, self.origin = gateway, gateway.origin

    def link(self, data: bytes, name: str = "picture.png") -> str:
        return self.gateway.publish(f"{zlib.crc32(data):x}/{name}", data)

    def path(self, data: bytes, name: str = "picture.png") -> str:
        return self.link(data, name)[len(self.origin) :]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{b64(data)}"


def lines(text: str, width: int = 76, end: str = "\n") -> str:
    return end.join(text[i : i + width] for i in range(0, len(text), width))


def markdown(*links: str) -> str:
    return "\n\n".join(f"![image]({link})" for link in links)


def choice(**fields: Any) -> dict[str, Any]:
    return {"index": 0, "finish_reason": "stop", **fields}


def chat(content: Any = "", finish_reason: Any = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion; content=... leaves the field out."""
    said = {"role": "assistant", **({} if content is ... else {"content": content}), **message}
    choices = [choice(message=said, finish_reason=finish_reason)]
    return {"id": "chatcmpl-7f", "object": "chat.completion", "created": 1, "choices": choices, "usage": USAGE}


def image_url(link: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": link}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def listing(*items: Any, **more: Any) -> dict[str, Any]:
    """An answer of the image endpoints."""
    return {"created": 1, "data": list(items), "usage": USAGE, **more}


def native(*parts: Any, **candidate: Any) -> dict[str, Any]:
    """Google's own answer."""
    content = {"role": "model", "parts": list(parts)}
    return {"candidates": [{"content": content, "finishReason": "STOP", **candidate}], "usageMetadata": USAGE}


def inline(data: bytes, **more: Any) -> dict[str, Any]:
    return {"inlineData": {"mimeType": "image/png", "data": b64(data)}, **more}


def stream(*events: Any, head: str = "") -> bytes:
    """An event stream, as if it had been asked for."""
    return (head + "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n").encode()


def delta(content: Any, **more: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": content, **more}}]}


def dumped(tree: Any, **options: Any) -> str:
    return json.dumps(tree, **options)


def php(tree: Any) -> bytes:
    """As PHP writes JSON."""
    return json.dumps(tree).replace("/", "\\/").encode()


# --- One picture ---

CHAT: dict[str, SCRIPTED] = {
    # new-api and its relatives
    "markdown": lambda s: chat(f"Here you go\n{markdown(data_url(FINAL))}"),
    "markdown: a draft first": lambda s: chat(
        f"Sketch:\n{markdown(data_url(DRAFT))}\nFinal:\n{markdown(data_url(FINAL))}"
    ),
    "markdown: three drafts": lambda s: chat(markdown(*map(data_url, (DRAFT, OTHER_DRAFT, THIRD, FINAL)))),
    "markdown: link": lambda s: chat(f"Here you go\n{markdown(s.link(FINAL))}"),
    "markdown: drafts as links": lambda s: chat(markdown(s.link(DRAFT), s.link(OTHER_DRAFT), s.link(FINAL))),
    "markdown: link with a title": lambda s: chat(f'![image]({s.link(FINAL)} "A red apple")'),
    "markdown: signed link": lambda s: chat(markdown(s.link(FINAL, "5f3a") + "?Expires=17&Signature=a%2Fb%3D")),
    "markdown: link in pointed brackets": lambda s: chat(f"![image](<{s.link(FINAL)}>)"),
    "markdown: link that only downloads": lambda s: chat(f"[Download image]({s.link(FINAL)})"),
    "markdown: picture that links to itself": lambda s: chat(f"[![image]({s.link(FINAL)})]({s.link(FINAL)})"),
    "markdown: link by number": lambda s: chat(f"![image][1]\n\n[1]: {s.link(FINAL)}"),
    "markdown: progress before it": lambda s: chat(
        f"> queued 0%\n> drawing 50%\n> done 100%\n\n{markdown(s.link(FINAL))}"
    ),
    "markdown: brackets in the label": lambda s: chat(f"![a [red] apple (ripe)]({data_url(FINAL)})"),
    "markdown: in a code fence": lambda s: chat(f"```\n{data_url(FINAL)}\n```"),
    # LiteLLM, OpenRouter, Vercel
    "images": lambda s: chat("Here you go.", images=[{**image_url(data_url(FINAL)), "index": 0}]),
    "images: no text": lambda s: chat("", images=[image_url(data_url(FINAL))]),
    "images: null text": lambda s: chat(None, images=[image_url(data_url(FINAL))]),
    "images: text missing": lambda s: chat(..., images=[image_url(data_url(FINAL))]),
    "images: drafts": lambda s: chat("", images=[image_url(data_url(data)) for data in (DRAFT, OTHER_DRAFT, FINAL)]),
    "images: link": lambda s: chat("", images=[image_url(s.link(FINAL))]),
    "images: link without a name": lambda s: chat("", images=[image_url(s.link(FINAL, "5f3a"))]),
    "images: plain texts": lambda s: chat("", images=[data_url(FINAL)]),
    "images: url as text": lambda s: chat("", images=[{"type": "image_url", "image_url": data_url(FINAL)}]),
    "images: b64_json": lambda s: chat("", images=[{"b64_json": b64(FINAL)}]),
    "images: beside the message": lambda s: {"choices": [choice(message={"content": ""}, images=[data_url(FINAL)])]},
    "images: the same in the text": lambda s: chat(markdown(data_url(FINAL)), images=[image_url(data_url(FINAL))]),
    # content as parts
    "parts": lambda s: chat([text_part("hi"), image_url(data_url(FINAL))]),
    "parts: text after it": lambda s: chat([image_url(data_url(FINAL)), text_part("Anything else?")]),
    "parts: drafts": lambda s: chat([image_url(data_url(DRAFT)), text_part("better:"), image_url(data_url(FINAL))]),
    "parts: link": lambda s: chat([image_url(s.link(FINAL))]),
    "parts: image": lambda s: chat([{"type": "image", "image": data_url(FINAL)}]),
    "parts: source": lambda s: chat([{"type": "image", "source": {"media_type": "image/png", "data": b64(FINAL)}}]),
    "parts: inline_data": lambda s: chat(
        "", multi_mod_content=[{"inline_data": {"mime_type": "image/png", "data": b64(FINAL)}}]
    ),
    "parts: Google's in a chat": lambda s: chat("", parts=[{"text": "hi"}, inline(FINAL)]),
    # the text is something else
    "text: a bare data URL": lambda s: chat(data_url(FINAL)),
    "text: bare base64": lambda s: chat(b64(FINAL)),
    "text: a bare link": lambda s: chat(s.link(FINAL)),
    "text: a link without a name": lambda s: chat(s.link(FINAL, "5f3a") + "?sig=1"),
    "text: a link in a sentence": lambda s: chat(f"Your picture: {s.link(FINAL)}."),
    "text: a link in Chinese": lambda s: chat(f"图片已生成:{s.link(FINAL)}。"),
    "text: HTML": lambda s: chat(f"<p>Done</p><img alt='x' src='{s.link(FINAL)}' width=512>"),
    "text: HTML, unquoted": lambda s: chat(f"<IMG SRC={s.link(FINAL)}>"),
    "text: HTML with a data URL": lambda s: chat(f'<img src="{data_url(FINAL)}"/>'),
    "text: HTML with an escaped link": lambda s: chat(f'<img src="{s.link(FINAL, "5f3a")}?a=1&amp;b=2"/>'),
    "text: HTML with a path": lambda s: chat(f'<img src="{s.path(FINAL)}">'),
    "text: JSON": lambda s: chat(dumped({"image": b64(FINAL), "note": "done"})),
    "text: JSON with a link": lambda s: chat(dumped({"image_url": s.link(FINAL)})),
    "text: JSON in a code fence": lambda s: chat(f"```json\n{dumped({'image_url': s.link(FINAL)}, indent=2)}\n```"),
    "text: Chinese goes on": lambda s: chat(f"图片已生成：{s.link(FINAL)}，有效期24小时"),
    "text: Chinese brackets": lambda s: chat(f"图片（{s.link(FINAL)}）已生成"),
    "text: as code": lambda s: chat(f"`{s.link(FINAL)}`"),
    "text: bold": lambda s: chat(f"**{s.link(FINAL)}**"),
    "text: long thoughts": lambda s: chat(f"<think>I can't draw it. {'Hm. ' * 4000}</think>{markdown(s.link(FINAL))}"),
    "text: the prompt again": lambda s: chat(f'{{"prompt": "I CAN\'T MAKE IT UP"}} done.\n{markdown(s.link(FINAL))}'),
    "text: a caveat": lambda s: chat(f"{markdown(s.link(FINAL))}\nI was unable to draw the logo exactly."),
    "text: a path in markdown": lambda s: chat(markdown(s.path(FINAL))),
    "text: no scheme": lambda s: chat(markdown(s.link(FINAL)[len("http:") :])),
    "tool call": lambda s: chat(None, tool_calls=[{"function": {"arguments": dumped({"url": s.link(FINAL)})}}]),
    # thinking
    "thoughts: a draft in the reasoning": lambda s: chat(
        markdown(data_url(FINAL)), reasoning_content=markdown(data_url(DRAFT))
    ),
    "thoughts: the reasoning comes last": lambda s: chat(
        markdown(s.link(FINAL)), reasoning_details=[{"type": "image", "data": b64(DRAFT)}]
    ),
    "thoughts: signatures": lambda s: chat(
        markdown(data_url(FINAL)), thought_signatures=[b64(zlib.compress(THUMB * 9))]
    ),
    # Google's own shape
    "native": lambda s: native({"text": "Here you go."}, inline(FINAL)),
    "native: drafts": lambda s: native(inline(DRAFT), inline(OTHER_DRAFT), inline(FINAL)),
    "native: thoughts": lambda s: native({"text": "hm", "thought": True}, inline(DRAFT, thought=True), inline(FINAL)),
    "native: a thought comes last": lambda s: native(inline(FINAL), inline(DRAFT, thought=True)),
    "native: signature": lambda s: native(inline(FINAL, thoughtSignature=b64(zlib.compress(DRAFT)))),
    "native: snake case": lambda s: native({"inline_data": {"mime_type": "image/png", "data": b64(FINAL)}}),
    "native: a file": lambda s: native({"fileData": {"mimeType": "image/png", "fileUri": s.link(FINAL, "5f3a")}}),
    "native: as a stream's list": lambda s: [native({"text": "…"}), native(inline(FINAL)), native({"text": ""})],
    "native: URL-safe": lambda s: native(
        {"inlineData": {"mimeType": "image/png", "data": base64.urlsafe_b64encode(FINAL).decode().rstrip("=")}}
    ),
    "native: wrapped": lambda s: {"response": native(inline(FINAL)), "traceId": "7f"},
    # streams that nobody asked for
    "stream": lambda s: stream(delta("Here: "), delta(markdown(data_url(FINAL)))),
    "stream: drafts": lambda s: stream(delta(markdown(data_url(DRAFT))), delta(markdown(data_url(FINAL)))),
    "stream: images": lambda s: stream(delta("hi"), delta("", images=[image_url(data_url(FINAL))])),
    "stream: keep-alive": lambda s: stream(delta(markdown(s.link(FINAL))), head=": PROCESSING\n\n: PROCESSING\n\n"),
    "stream: event names, CRLF": lambda s: stream(
        delta(markdown(data_url(FINAL))), head="event: message\nid: 1\n"
    ).replace(b"\n", b"\r\n"),
    "stream: Google's": lambda s: stream(native({"text": "…"}), native(inline(DRAFT)), native(inline(FINAL))),
    "stream: one picture in many events": lambda s: stream(
        *(delta(piece) for piece in lines(f"Here: {markdown(data_url(FINAL))}", 1000, "\0").split("\0"))
    ),
    "stream: one per line": lambda s: "\n".join(map(dumped, (delta("…"), delta(markdown(data_url(FINAL)))))),
    # other envelopes
    "responses": lambda s: {"output": [{"type": "reasoning"}, {"type": "image_generation_call", "result": b64(FINAL)}]},
    "two choices": lambda s: {"choices": [choice(message={"content": markdown(data_url(x))}) for x in (DRAFT, FINAL)]},
    "legacy text": lambda s: {"choices": [choice(text=markdown(data_url(FINAL)))]},
    "an image endpoint's answer": lambda s: listing({"b64_json": b64(FINAL)}),
    "an error beside the picture": lambda s: {**chat(markdown(data_url(FINAL))), "error": {"message": "", "code": 0}},
    "a safety verdict beside the picture": lambda s: chat(
        markdown(data_url(FINAL)), content_filter_results={"sexual": {"filtered": False, "severity": "safe"}}
    ),
    "a modest word beside the picture": lambda s: chat(
        f"I cannot draw real people, so here is a lookalike:\n{markdown(data_url(FINAL))}"
    ),
    "an avatar beside the picture": lambda s: chat(
        f"![avatar]({s.link(THUMB, 'avatar.png')})\n{markdown(s.link(FINAL))}",
        author={"avatar_url": s.link(THUMB, "me.png")},
    ),
    "the reference beside the picture": lambda s: chat(
        f"From {markdown(data_url(REFERENCE))} to {markdown(data_url(FINAL))}"
    ),
    "the reference after the picture": lambda s: chat(
        f"{markdown(data_url(FINAL))} from {markdown(data_url(REFERENCE))}"
    ),
}

IMAGES: dict[str, SCRIPTED] = {
    # the API itself, and OmniMaaS' documentation
    "b64_json": lambda s: listing({"b64_json": b64(FINAL)}, output_format="png"),
    "b64_json: no usage": lambda s: {"created": 1, "data": [{"b64_json": b64(FINAL)}]},
    "b64_json: a lying format": lambda s: listing({"b64_json": b64(FINAL)}, output_format="webp"),
    "url: what was asked for is an avatar": lambda s: listing({"url": s.link(FINAL, "avatar-of-a-cat.png")}),
    "b64_json: cut off, escaped as .NET does": lambda s: (
        dumped(listing({"b64_json": b64(FINAL)})).replace("+", "\\u002B").rpartition('"usage"')[0]
    ),
    "url, empty b64_json": lambda s: listing(
        {"url": s.link(FINAL) + "?Signature=a%2Fb", "b64_json": "", "revised_prompt": ""}
    ),
    "url, null b64_json": lambda s: listing({"url": s.link(FINAL), "b64_json": None}),
    "url, b64_json missing": lambda s: listing({"url": s.link(FINAL)}),
    "b64_json, empty url": lambda s: listing({"url": "", "b64_json": b64(FINAL)}),
    "b64_json, null url": lambda s: listing({"url": None, "b64_json": b64(FINAL)}),
    "path": lambda s: listing({"url": s.path(FINAL)}),
    "path without a name": lambda s: listing({"url": s.path(FINAL, "5f3a")}),
    "path without a slash": lambda s: listing({"url": s.path(FINAL)[1:]}),
    "no scheme": lambda s: listing({"url": s.link(FINAL)[len("http:") :]}),
    "scheme in capitals": lambda s: listing({"url": "HTTP" + s.link(FINAL)[len("http") :]}),
    "link with blanks, brackets and a quote": lambda s: listing(
        {"url": unquote(s.link(FINAL, quote("a (1) [o'k].png", safe="()'")))}
    ),
    "link with a bracket in its query": lambda s: listing({"url": s.link(FINAL) + "?sig=a)b"}),
    "link after an internal file name": lambda s: listing({"url": s.link(FINAL, "5f3a"), "file_name": "z1_abc.png"}),
    "link between blanks": lambda s: listing({"url": f"  {s.link(FINAL)}\n"}),
    "link with letters beyond ASCII": lambda s: listing(
        {"url": s.link(FINAL, quote("苹果.png")).replace(quote("苹果"), "苹果")}
    ),
    # both, and one of them is no good
    "both": lambda s: listing({"url": s.link(FINAL), "b64_json": b64(FINAL)}),
    "both: the link is dead": lambda s: listing({"url": s.origin + "/media/gone.png", "b64_json": b64(FINAL)}),
    "both: the base64 is cut off": lambda s: listing({"b64_json": b64(FINAL)[:3000], "url": s.link(FINAL)}),
    "both: the base64 is something else": lambda s: listing({"b64_json": b64(PDF), "url": s.link(FINAL)}),
    "both: the base64 says so": lambda s: listing({"b64_json": "see url", "url": s.link(FINAL)}),
    "both: the link is a page": lambda s: listing(
        {"url": s.gateway.publish("x.png", HTML.encode()), "b64_json": b64(FINAL)}
    ),
    # thumbnails
    "thumbnail after it": lambda s: listing({"url": s.link(FINAL), "thumbnail_url": s.link(THUMB)}),
    "thumbnail before it": lambda s: listing({"thumbnail_url": s.link(THUMB), "url": s.link(FINAL)}),
    "thumbnail in base64": lambda s: listing({"thumb": b64(THUMB), "url": s.link(FINAL)}),
    "sizes": lambda s: listing(
        {"urls": {"thumb": s.link(THUMB), "small_preview": s.link(DRAFT), "full": s.link(FINAL)}}
    ),
    "a preview beside the list": lambda s: {"preview": s.link(THUMB), **listing({"b64_json": b64(FINAL)})},
    "thumbnail object": lambda s: {
        "images": [{"thumbnail": {"url": s.link(THUMB)}, "original": {"url": s.link(FINAL)}}]
    },
    # other words
    "images": lambda s: {
        "images": [{"url": s.link(FINAL), "width": 80, "content_type": "image/png"}],
        "prompt": "a cup",
    },
    "images: texts": lambda s: {"images": [b64(FINAL)], "parameters": {}, "info": '{"seed": 1}'},
    "images and data": lambda s: {"images": [{"url": s.link(FINAL)}], "data": [{"url": s.link(FINAL)}], "seed": 1},
    "image": lambda s: {"image": b64(FINAL), "finish_reason": "SUCCESS", "seed": 4},
    "image_base64": lambda s: {
        "data": {"image_base64": [b64(FINAL)]},
        "base_resp": {"status_code": 0, "status_msg": "success"},
    },
    "image_urls": lambda s: {"data": {"image_urls": [s.link(FINAL)]}, "metadata": {"success_count": "1"}},
    "artifacts": lambda s: {"artifacts": [{"base64": b64(FINAL), "seed": 4, "finishReason": "SUCCESS"}]},
    "predictions": lambda s: {"predictions": [{"mimeType": "image/png", "bytesBase64Encoded": b64(FINAL)}]},
    "generatedImages": lambda s: {"generatedImages": [{"image": {"imageBytes": b64(FINAL)}}]},
    "result": lambda s: {"result": {"image": b64(FINAL)}, "success": True, "errors": [], "messages": []},
    "result: sample": lambda s: {"id": "7f", "status": "Ready", "result": {"sample": s.link(FINAL, "5f3a"), "seed": 4}},
    "data.result": lambda s: {"code": 0, "msg": "success", "data": {"result": {"imageUrl": s.link(FINAL)}}},
    "data.result.list": lambda s: {"code": 200, "message": "ok", "data": {"result": [{"img": b64(FINAL)}]}},
    "data as a text": lambda s: {"success": True, "data": b64(FINAL)},
    "data as an object": lambda s: {"data": {"b64_json": b64(FINAL)}},
    "data as a link": lambda s: {"code": "200", "data": s.link(FINAL)},
    "data of texts": lambda s: {"data": [s.link(FINAL)]},
    "data in data": lambda s: {"data": {"data": [{"b64_json": b64(FINAL)}]}},
    "data in a text": lambda s: {"data": dumped({"images": [{"url": s.link(FINAL)}]})},
    "output": lambda s: {"id": "7f", "status": "succeeded", "output": [s.link(FINAL)], "error": None},
    "output: one text": lambda s: {"status": "succeeded", "output": s.link(FINAL), "logs": "100%|##########| 4/4"},
    "output with its own addresses": lambda s: {
        "urls": {"get": s.origin + "/predictions/7f", "cancel": s.origin + "/predictions/7f/cancel"},
        "output": [s.link(FINAL)],
        "status": "succeeded",
    },
    "output: results": lambda s: {
        "output": {"task_id": "7f", "task_status": "SUCCEEDED", "results": [{"url": s.link(FINAL)}]}
    },
    "output: a chat": lambda s: {"output": {"choices": [choice(message={"content": [{"image": s.link(FINAL)}]})]}},
    "Response.ResultImage": lambda s: {"Response": {"ResultImage": b64(FINAL), "RequestId": "7f"}},
    "a made-up word": lambda s: {"bild": b64(FINAL)},
    "deep down": lambda s: {"a": [{"b": {"c": [[{"d": {"e": data_url(FINAL)}}]]}}]},
    "as a chat": lambda s: chat(markdown(data_url(FINAL))),
    "as a chat's images": lambda s: chat(None, images=[image_url(data_url(FINAL))]),
    # bytes in other clothes
    "a data URL": lambda s: listing({"url": data_url(FINAL)}),
    "a data URL for b64_json": lambda s: listing({"b64_json": data_url(FINAL)}),
    "a Buffer": lambda s: listing({"b64_json": {"type": "Buffer", "data": list(FINAL)}}),
    "a Buffer alone": lambda s: {"type": "Buffer", "data": list(FINAL)},
    "a list of bytes": lambda s: {"image": list(FINAL)},
    # what may stand beside a picture
    "verdicts": lambda s: listing(
        {"url": s.link(FINAL), "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}},
        content_filter=[{"role": "user", "level": 3}],
        has_nsfw_concepts=[False],
    ),
    "a link in the revised prompt": lambda s: listing(
        {"b64_json": b64(FINAL), "revised_prompt": f"an apple as in {s.link(DRAFT)} or ![this]({s.link(THIRD)})"}
    ),
    "the request echoed before it": lambda s: {
        "input": {"image": b64(DRAFT), "image_url": s.link(THIRD)},
        **listing({"b64_json": b64(FINAL)}),
    },
    "documentation before it": lambda s: {"documentation_url": s.origin + "/docs", **listing({"b64_json": b64(FINAL)})},
    "a status link before it": lambda s: {"status_url": s.origin + "/status/7f", **listing({"b64_json": b64(FINAL)})},
    "a link to itself before it": lambda s: {
        "links": {"self": s.origin + "/v1/images/7f"},
        **listing({"url": s.link(FINAL)}),
    },
    "a watermark logo": lambda s: {"logo": s.link(THUMB, "logo.png"), **listing({"url": s.link(FINAL)})},
    "the reference first": lambda s: {"images": [b64(REFERENCE), b64(FINAL)]},
    "the reference as source": lambda s: {"source": data_url(REFERENCE), "result": data_url(FINAL)},
    "a price": lambda s: listing({"url": s.link(FINAL)}, cost={"amount": "0.35", "currency": "CNY"}, balance="12.50"),
    # streams that nobody asked for
    "stream": lambda s: stream({"type": "image_generation.completed", "b64_json": b64(FINAL), "usage": USAGE}),
    "stream: partial pictures": lambda s: stream(
        {"type": "image_generation.partial_image", "partial_image_index": 0, "b64_json": b64(DRAFT)},
        {"type": "image_generation.partial_image", "partial_image_index": 1, "b64_json": b64(OTHER_DRAFT)},
        {"type": "image_generation.completed", "b64_json": b64(FINAL)},
    ),
    "stream: progress": lambda s: stream({"progress": 10}, {"progress": 60}, listing({"url": s.link(FINAL)})),
}

ENVELOPES: dict[str, SCRIPTED] = {  # the whole body, of either family
    "bytes": lambda s: FINAL,
    "bytes in gzip": lambda s: gzip.compress(FINAL),
    "gzip in two members": lambda s: gzip.compress(FINAL[:900]) + gzip.compress(FINAL[900:]),
    "zlib": lambda s: zlib.compress(FINAL),
    "base64": lambda s: b64(FINAL),
    "base64 in lines": lambda s: lines(b64(FINAL), 64, "\r\n") + "\r\n",
    "base64 as JSON": lambda s: dumped(b64(FINAL)),
    "data URL": lambda s: data_url(FINAL),
    "data URL as JSON": lambda s: dumped(data_url(FINAL)),
    "link": lambda s: s.link(FINAL) + "\n",
    "link as JSON": lambda s: dumped(s.link(FINAL)),
    "list of a link": lambda s: [s.link(FINAL)],
    "list of an object": lambda s: [{"url": s.link(FINAL)}],
    "JSON in JSON": lambda s: dumped(dumped(listing({"b64_json": b64(FINAL)}))),
    "JSON in JSON in JSON": lambda s: dumped({"body": dumped({"data": dumped([data_url(FINAL)])})}),
    "HTML": lambda s: f'<html><body><p>Done</p><img src="{data_url(FINAL)}"></body></html>',
    "byte order mark": lambda s: b"\xef\xbb\xbf" + dumped(listing({"b64_json": b64(FINAL)})).encode(),
    "UTF-16": lambda s: dumped(listing({"b64_json": b64(FINAL)})).encode("utf-16"),
    "UTF-16 without a mark": lambda s: dumped(chat(markdown(data_url(FINAL)))).encode("utf-16-le"),
    "UTF-16 the other way round": lambda s: dumped(chat(markdown(data_url(FINAL)))).encode("utf-16-be"),
    "UTF-32": lambda s: dumped(listing({"b64_json": b64(FINAL)})).encode("utf-32"),
    "latin-1": lambda s: dumped(chat(f"Voilà: {markdown(data_url(FINAL))}"), ensure_ascii=False).encode("latin-1"),
    "GBK": lambda s: dumped(chat(f"图片: {markdown(data_url(FINAL))}"), ensure_ascii=False).encode("gbk"),
    "lone surrogates": lambda s: dumped(chat(f"\ud83d {markdown(data_url(FINAL))}")),
    "line feeds within a text": lambda s: dumped(chat(f"Done:\\n{markdown(data_url(FINAL))}")).replace("\\\\n", "\n"),
    "NaN": lambda s: dumped({**listing({"b64_json": b64(FINAL)}), "seed": float("nan")}),
    "PHP": lambda s: php(chat(markdown(data_url(FINAL)))),
    "PHP with a link": lambda s: php(listing({"url": s.link(FINAL)})),
    "escapes": lambda s: dumped(listing({"b64_json": b64(FINAL)})).replace("+", "\\u002b").replace("=", "\\u003D"),
    "blanks before it": lambda s: " \r\n\t\n" * 2000 + dumped(listing({"b64_json": b64(FINAL)})),
    "comments before it": lambda s: ": PROCESSING\n\n" * 9 + dumped(listing({"b64_json": b64(FINAL)})),
    "guard before it": lambda s: ")]}',\n" + dumped(listing({"b64_json": b64(FINAL)})),
    "a script around it": lambda s: f"callback({dumped(listing({'b64_json': b64(FINAL)}))});",
    "more after it": lambda s: dumped(listing({"b64_json": b64(FINAL)})) + '\n{"done": true}',
    "cut off after the picture": lambda s: dumped(listing({"b64_json": b64(FINAL)}))[:-30],
    "cut off after a chat's picture": lambda s: php(chat(markdown(data_url(FINAL))))[:-60],
    "gzip": lambda s: gzip.compress(dumped(listing({"b64_json": b64(FINAL)})).encode()),
}

SPELLINGS: dict[str, str] = {  # of one picture's base64, wherever it stands
    "plain": b64(FINAL),
    "lines of 64": lines(b64(FINAL), 64),
    "lines of 76, CRLF": lines(b64(FINAL), 76, "\r\n") + "\r\n",
    "lines that are indented": lines(b64(FINAL), 60, "\n    "),
    "blanks between": lines(b64(FINAL), 4, " "),
    "lines of 40": lines(b64(FINAL), 40),
    "blanks around": f"\n  {b64(FINAL)}\t ",
    "URL-safe": base64.urlsafe_b64encode(FINAL).decode(),
    "URL-safe in lines": lines(base64.urlsafe_b64encode(FINAL).decode(), 64),
    "URL-safe, no padding": base64.urlsafe_b64encode(SECOND + b"\0").decode().rstrip("="),
    "one = too few": b64(FINAL + b"\0" * (1 - len(FINAL) % 3)).rstrip("=") + "=",
    "no padding": b64(FINAL + b"\0\0").rstrip("="),
    "too much padding": b64(FINAL).rstrip("=") + "====",
    "percent signs": quote(b64(FINAL), safe=""),
    "only + in percent": b64(FINAL).replace("+", "%2B"),
    "lower case percent": b64(FINAL).replace("+", "%2b").replace("/", "%2f").replace("=", "%3d"),
    "data URL": data_url(FINAL),
    "data URL in capitals": f"DATA:IMAGE/PNG;BASE64,{b64(FINAL)}",
    "data URL of no type": f"data:;base64,{b64(FINAL)}",
    "data URL of bytes": f"data:application/octet-stream;base64,{b64(FINAL)}",
    "data URL with a charset": f"data:image/png;charset=utf-8;base64,{b64(FINAL)}",
    "data URL with a name": f'data:image/png;name="red apple.png";base64,{b64(FINAL)}',
    "data URL with blanks": f"data:image/png; charset=UTF-8; base64, {b64(FINAL)}",
    "data URL in lines": f"data:image/png;base64,\n{lines(b64(FINAL))}",
    "data URL in percent": f"data:image/png;base64,{quote(b64(FINAL), safe='')}",
    "data URL, percent and lines": f"data:image/png;base64,{lines(b64(FINAL), 76, '%0A').replace('=', '%3D')}",
    "data URL, URL-safe": f"data:image/png;base64,{base64.urlsafe_b64encode(FINAL).decode().rstrip('=')}",
    "data URL twice": f"data:image/png;base64,{data_url(FINAL)}",
}


def rows(table: dict[str, Any]) -> list[Any]:
    return [pytest.param(value, id=name) for name, value in table.items()]


pytestmark = pytest.mark.usefixtures("short_waits")


@pytest.fixture
def reference(tmp_path: Path) -> str:
    path = tmp_path / "reference.png"
    path.write_bytes(REFERENCE)
    return str(path)


def ask(family: str, gateway: Gateway, answer: Any, **options: Any) -> Generation:
    """What the library makes of one scripted answer: a body, or a whole Reply."""
    gateway.answer(answer if isinstance(answer, Reply) else Reply(body=answer))
    if family == "gemini":
        return generate.generate_gemini("a red apple", **options)
    return generate.generate_openai("a red apple", "gpt-image-2", **options)


def fetched(gateway: Gateway) -> list[str]:
    return [received.path for received in gateway.requests if received.method == "GET"]


def stripped(data: bytes) -> bytes:
    """Without the zeros that filled up a group of base64."""
    return data.rstrip(b"\0")


@pytest.mark.parametrize("shape", rows(CHAT))
def test_chat_answer(gateway: Gateway, reference: str, shape: SCRIPTED) -> None:
    """The fear: my gateway puts the picture where no other does."""
    generation = ask("gemini", gateway, shape(Shelf(gateway)), ref_images=[reference], attempts=1)
    assert generation.images == [FINAL]
    assert len(gateway.calls) == 1


@pytest.mark.parametrize("shape", rows(IMAGES))
def test_image_answer(gateway: Gateway, reference: str, shape: SCRIPTED) -> None:
    generation = ask("openai", gateway, shape(Shelf(gateway)), ref_images=[reference], attempts=1)
    assert generation.images == [FINAL]
    assert len(gateway.calls) == 1


@pytest.mark.parametrize("family", ["openai", "gemini"])
@pytest.mark.parametrize("shape", rows(ENVELOPES))
def test_envelope(gateway: Gateway, family: str, shape: SCRIPTED) -> None:
    """Neither the encoding nor what stands around the JSON hides the picture."""
    assert ask(family, gateway, shape(Shelf(gateway))).images == [FINAL]


@pytest.mark.parametrize(
    "wrap", rows({"b64_json": lambda x: listing({"b64_json": x}), "images": lambda x: chat("", images=[x])})
)
@pytest.mark.parametrize("family", ["openai", "gemini"])
@pytest.mark.parametrize("text", rows(SPELLINGS))
def test_base64_spelling(gateway: Gateway, family: str, text: str, wrap: Callable[[str], Any]) -> None:
    image, _ = ask(family, gateway, wrap(text))
    assert stripped(image) in (stripped(FINAL), stripped(SECOND))


@pytest.mark.parametrize(
    "name", [name for name in SPELLINGS if name.startswith("data URL") and name != "data URL twice"]
)
def test_data_url_in_markdown(gateway: Gateway, name: str) -> None:
    image, _ = ask("gemini", gateway, chat(f"Here you go\n{markdown(SPELLINGS[name])}\nAnything else?"))
    assert image == FINAL


@pytest.mark.parametrize("family", ["openai", "gemini"])
@pytest.mark.parametrize("data", rows({"PNG": FINAL, "JPEG": JPEG, "WebP": WEBP}))
@pytest.mark.parametrize(
    "said", ["image/png", "image/jpeg", "image/jpg", "image/webp", "image/heic", "text/plain", "image/*"]
)
def test_declared_type_lies(gateway: Gateway, family: str, data: bytes, said: str) -> None:
    """The bytes themselves say what they are, and are not touched."""
    assert ask(family, gateway, chat(markdown(data_url(data, said)))).images == [data]


@pytest.mark.parametrize("family", ["openai", "gemini"])
@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("place", ["body", "b64_json", "link"])
def test_every_format(gateway: Gateway, family: str, fmt: str, place: str) -> None:
    data = encoded(Image.open(io.BytesIO(FINAL)), fmt)
    bodies = {"body": data, "b64_json": listing({"b64_json": b64(data)})}
    body = bodies.get(place) or listing({"url": Shelf(gateway).link(data, "5f3a")})
    assert ask(family, gateway, body).images == [data]


def test_keep_alive_blanks(gateway: Gateway) -> None:
    """Some gateways send a line feed now and then while they draw."""
    assert ask("gemini", gateway, Reply(body=chat(markdown(data_url(FINAL))), blanks=5, chunked=True)).images == [FINAL]


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": None}, {"Content-Encoding": "identity"}], ids=str)
def test_gzip(gateway: Gateway, headers: dict[str, Any]) -> None:
    reply = Reply(body=listing({"b64_json": b64(FINAL)}), gzip=True, headers=headers)
    assert ask("openai", gateway, reply).images == [FINAL]


@pytest.mark.parametrize(
    "kind", ["text/html", "text/plain; charset=utf-16", "image/png", "application/octet-stream", "x", None]
)
def test_content_type_lies(gateway: Gateway, kind: str | None) -> None:
    reply = Reply(body=chat(markdown(data_url(FINAL))), headers={"Content-Type": kind})
    assert ask("gemini", gateway, reply).images == [FINAL]


@pytest.mark.parametrize("status", [200, 201, 202, 203, 206])
def test_every_success(gateway: Gateway, status: int) -> None:
    assert ask("openai", gateway, Reply(status, body=listing({"b64_json": b64(FINAL)}))).images == [FINAL]


def test_a_link_is_asked_for_once_and_only_when_needed(gateway: Gateway) -> None:
    """Bytes in hand need no request; a link needs one, which must not carry the key (the stand-in refuses it then)."""
    shelf = Shelf(gateway)
    ask("openai", gateway, listing({"url": shelf.link(FINAL), "b64_json": b64(FINAL)}))
    assert fetched(gateway) == []
    ask("openai", gateway, listing({"url": shelf.link(FINAL), "b64_json": ""}))
    assert fetched(gateway) == [shelf.path(FINAL)]


# --- Several pictures ---

SEVERAL: dict[str, tuple[int, SCRIPTED, list[bytes]]] = {
    "two in base64": (2, lambda s: listing({"b64_json": b64(FINAL)}, {"b64_json": b64(SECOND)}), [FINAL, SECOND]),
    "two links": (2, lambda s: listing({"url": s.link(FINAL)}, {"url": s.link(SECOND)}), [FINAL, SECOND]),
    "one of each": (
        2,
        lambda s: listing({"url": s.link(FINAL), "b64_json": ""}, {"b64_json": b64(SECOND)}),
        [FINAL, SECOND],
    ),
    "both of each": (
        2,
        lambda s: listing(*({"url": s.link(data), "b64_json": b64(data)} for data in (FINAL, SECOND))),
        [FINAL, SECOND],
    ),
    "three": (
        3,
        lambda s: listing(*({"b64_json": b64(data)} for data in (THIRD, FINAL, SECOND))),
        [THIRD, FINAL, SECOND],
    ),
    "the same twice": (2, lambda s: listing({"b64_json": b64(FINAL)}, {"b64_json": b64(FINAL)}), [FINAL, FINAL]),
    "the same link twice": (2, lambda s: listing({"url": s.link(FINAL)}, {"url": s.link(FINAL)}), [FINAL, FINAL]),
    "with thumbnails": (
        2,
        lambda s: listing(*({"thumb_url": s.link(THUMB), "url": s.link(data)} for data in (FINAL, SECOND))),
        [FINAL, SECOND],
    ),
    "texts": (2, lambda s: {"images": [b64(FINAL), b64(SECOND)]}, [FINAL, SECOND]),
    "links as texts": (2, lambda s: {"output": [s.link(FINAL), s.link(SECOND)]}, [FINAL, SECOND]),
    "nested": (
        2,
        lambda s: {"data": {"results": [{"image": {"url": s.link(x)}} for x in (FINAL, SECOND)]}},
        [FINAL, SECOND],
    ),
    "images and data": (
        2,
        lambda s: {name: [{"url": s.link(FINAL)}, {"url": s.link(SECOND)}] for name in ("images", "data")},
        [FINAL, SECOND],
    ),
    "predictions": (
        2,
        lambda s: {"predictions": [{"bytesBase64Encoded": b64(x)} for x in (FINAL, SECOND)]},
        [FINAL, SECOND],
    ),
    "fewer than asked for": (
        3,
        lambda s: listing({"b64_json": b64(FINAL)}, {"b64_json": b64(SECOND)}),
        [FINAL, SECOND],
    ),
    "one of ten": (10, lambda s: listing({"b64_json": b64(FINAL)}), [FINAL]),
    "an empty one among them": (
        3,
        lambda s: listing({"b64_json": b64(FINAL)}, {}, {"url": s.link(SECOND)}),
        [FINAL, SECOND],
    ),
    "a null among them": (2, lambda s: listing(None, {"b64_json": b64(FINAL)}), [FINAL]),
    "an error among them": (
        2,
        lambda s: listing({"b64_json": b64(FINAL)}, {"error": {"code": "moderation_blocked", "message": "No."}}),
        [FINAL],
    ),
    "a refused one beside a link": (
        2,
        lambda s: listing({"url": s.link(FINAL)}, {"finish_reason": "content_filter"}),
        [FINAL],
    ),
    "lists as PHP writes them": (
        2,
        lambda s: {"data": {"0": {"url": s.link(FINAL)}, "1": {"b64_json": b64(SECOND)}}},
        [FINAL, SECOND],
    ),
    "JSON lines": (
        2,
        lambda s: "\n".join(dumped({"b64_json": b64(data)}) for data in (FINAL, SECOND)),
        [FINAL, SECOND],
    ),
    "a broken one among them": (
        2,
        lambda s: listing({"b64_json": b64(cut(FINAL))}, {"b64_json": b64(SECOND)}),
        [SECOND],
    ),
    "a dead link among them": (
        2,
        lambda s: listing({"url": s.origin + "/media/gone"}, {"url": s.link(FINAL)}),
        [FINAL],
    ),
    "the reference among them": (2, lambda s: listing({"b64_json": b64(REFERENCE)}, {"b64_json": b64(FINAL)}), [FINAL]),
    "more than asked for": (1, lambda s: listing({"b64_json": b64(FINAL)}, {"b64_json": b64(SECOND)}), [FINAL, SECOND]),
}


@pytest.mark.parametrize(("n", "shape", "images"), [pytest.param(*row, id=name) for name, row in SEVERAL.items()])
def test_several_pictures(
    gateway: Gateway, reference: str, caplog: pytest.LogCaptureFixture, n: int, shape: SCRIPTED, images: list[bytes]
) -> None:
    """Every picture paid for comes back, in order, and a missing one is spoken of."""
    with caplog.at_level(logging.WARNING, "image-gen"):
        generation = ask("openai", gateway, shape(Shelf(gateway)), n=n, ref_images=[reference], attempts=1)
    assert generation.images == images
    warned = [message for message in caplog.messages if str(n) in message and str(len(images)) in message]
    assert len(warned) == (len(images) < n)


def test_link_of_a_missing_picture_is_said(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """One of two links is dead: the paid picture behind it is not lost without a word."""
    shelf = Shelf(gateway)
    gone = shelf.origin + "/media/gone.png"
    with caplog.at_level(logging.WARNING, "image-gen"):
        ask("openai", gateway, listing({"url": shelf.link(FINAL)}, {"url": gone}), n=2)
    assert gone in caplog.text


def test_the_same_picture_twice_is_two_files(gateway: Gateway, run: Callable[..., Any], tmp_path: Path) -> None:
    gateway.answer(Reply(body=listing({"b64_json": b64(FINAL)}, {"b64_json": b64(FINAL)})))
    done = run("--prompt", "a cup", "--model", "gpt-image-2", "--n", 2, "--output", "cup.png")
    assert (done.code, done.out.split()) == (0, [str(tmp_path / "cup.png"), str(tmp_path / "cup-2.png")])
    assert [Path(name).read_bytes() for name in done.out.split()] == [FINAL, FINAL]


def test_both_forms_of_a_picture_are_one_file(gateway: Gateway, run: Callable[..., Any], tmp_path: Path) -> None:
    gateway.answer(Reply(body=listing({"url": Shelf(gateway).link(FINAL), "b64_json": b64(FINAL)})))
    assert run("--prompt", "a cup", "--model", "gpt-image-2", "--output", "cup.png").code == 0
    assert list(tmp_path.glob("cup*")) == [tmp_path / "cup.png"]


# --- Usage ---


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        pytest.param(listing({"b64_json": b64(FINAL)}), USAGE, id="as it came"),
        pytest.param(native(inline(FINAL)), USAGE, id="usageMetadata"),
        pytest.param(
            {"data": [{"b64_json": b64(FINAL)}], "usage": {"total_tokens": 0, "image_count": 1}},
            {"total_tokens": 0, "image_count": 1},
            id="zero",
        ),
        pytest.param({"data": [{"b64_json": b64(FINAL)}]}, {}, id="missing"),
        pytest.param({"data": [{"b64_json": b64(FINAL)}], "usage": None}, {}, id="null"),
        pytest.param({"data": [{"b64_json": b64(FINAL)}], "usage": [1, 2]}, {}, id="a list"),
        pytest.param({"data": [{"b64_json": b64(FINAL)}], "usage": "4212"}, {}, id="a text"),
        pytest.param([{"b64_json": b64(FINAL)}], {}, id="no object"),
        pytest.param({"data": listing({"b64_json": b64(FINAL)})}, USAGE, id="below data"),
        pytest.param({"response": native(inline(FINAL)), "traceId": "7f"}, USAGE, id="below response"),
        pytest.param(
            stream(delta(data_url(FINAL)), {"choices": [], "usage": USAGE}), USAGE, id="a stream's last event"
        ),
        pytest.param(stream({"usage": {"total_tokens": 1}}, chat(data_url(FINAL))), USAGE, id="the last one counts"),
        pytest.param(FINAL, {}, id="bytes"),
    ],
)
def test_usage(gateway: Gateway, body: Any, usage: dict[str, Any]) -> None:
    image, said = ask("openai", gateway, body)
    assert (image, said) == (FINAL, usage)


# --- No picture ---

NOISE = b64(bytes(range(256)) * 40)
SORRY = "I'm sorry, I can't create that image."

NOTHING: dict[str, tuple[str, SCRIPTED]] = {  # a successful answer without a usable picture: family, body
    "choices: none": ("gemini", lambda s: {"choices": [], "usage": USAGE}),
    "choices: null": ("gemini", lambda s: {"choices": None}),
    "choice: empty": ("gemini", lambda s: {"choices": [{}]}),
    "message: null": ("gemini", lambda s: {"choices": [choice(message=None)]}),
    "content: null": ("gemini", lambda s: chat(None)),
    "content: empty": ("gemini", lambda s: chat("")),
    "content: absent": ("gemini", lambda s: chat(...)),
    "content: no parts": ("gemini", lambda s: chat([])),
    "content: empty part": ("gemini", lambda s: chat([image_url("")])),
    "content: null in a part": ("gemini", lambda s: chat([{"type": "image_url", "image_url": None}])),
    "images: none": ("gemini", lambda s: chat("", images=[])),
    "candidates: none": ("gemini", lambda s: {"candidates": []}),
    "candidates: no parts": ("gemini", lambda s: native()),
    "data: null": ("openai", lambda s: {"data": None}),
    "data: none": ("openai", lambda s: {"data": []}),
    "data: empty object": ("openai", lambda s: {"data": [{}]}),
    "data: absent": ("openai", lambda s: {"created": 1, "usage": USAGE}),
    "data: both empty": ("openai", lambda s: listing({"url": "", "b64_json": ""})),
    "data: both null": ("openai", lambda s: listing({"url": None, "b64_json": None})),
    "data: wrong types": ("openai", lambda s: listing({"url": 5, "b64_json": True}, 7, [], "")),
    "data: a thumbnail that is gone": ("openai", lambda s: listing({"thumb_url": s.origin + "/media/gone.png"})),
    "body: empty": ("openai", lambda s: b""),
    "body: blanks": ("openai", lambda s: b" \r\n" * 50),
    "body: null": ("gemini", lambda s: b"null"),
    "body: number": ("openai", lambda s: b"0"),
    "body: boolean": ("gemini", lambda s: b"true"),
    "body: text": ("openai", lambda s: b'""'),
    "body: object": ("openai", lambda s: {}),
    "body: list": ("gemini", lambda s: []),
    "body: NUL": ("openai", lambda s: b"\0" * 1000),
    "body: gzip of nothing": ("openai", lambda s: gzip.compress(b"")),
    "body: broken gzip": ("openai", lambda s: gzip.compress(b"{}" * 100)[:20]),
    "body: empty stream": ("gemini", lambda s: stream()),
    "looks like base64: letters": ("gemini", lambda s: chat("abcd" * 500)),
    "looks like base64: bytes": ("openai", lambda s: listing({"b64_json": NOISE})),
    "looks like base64: a PDF": ("openai", lambda s: listing({"b64_json": b64(PDF * 9)})),
    "looks like base64: a ZIP": ("openai", lambda s: listing({"b64_json": b64(zipped())})),
    "looks like base64: a page": ("openai", lambda s: listing({"b64_json": b64(HTML.encode() * 9)})),
    "looks like base64: a token": ("gemini", lambda s: chat(f"eyJhbGciOiJIUzI1NiJ9.{NOISE}.{NOISE[:43]}")),
    "looks like base64: a signature": ("gemini", lambda s: native({"text": "Hm.", "thoughtSignature": NOISE})),
    "looks like base64: first bytes of a PNG": ("openai", lambda s: listing({"b64_json": "iVBORw0KGgo" + NOISE})),
    "looks like base64: first bytes of a JPEG": ("openai", lambda s: listing({"b64_json": "/9j/" + NOISE})),
    "looks like base64: only the header": ("openai", lambda s: listing({"b64_json": b64(FINAL[:33])})),
    "other data: SVG": ("gemini", lambda s: chat(markdown(data_url(SVG.encode() * 9, "image/svg+xml")))),
    "other data: sound": ("gemini", lambda s: chat("", audio={"data": b64(b"RIFF\0\0\0\0WAVEfmt " + bytes(9000))})),
    "other data: a page named picture": ("gemini", lambda s: chat(markdown(data_url(HTML.encode() * 9)))),
    "other data: empty": ("gemini", lambda s: chat(markdown("data:image/png;base64,"))),
    "avatar: in markdown": ("gemini", lambda s: chat(f"![avatar]({s.link(FINAL)})\n{SORRY}")),
    "avatar: by its name": ("gemini", lambda s: chat(f"{SORRY} ![me]({s.link(FINAL, 'avatar.png')})")),
    "avatar: any picture in a refusal": ("gemini", lambda s: chat(f"{SORRY} ![image]({s.link(FINAL)})")),
    "avatar: a link in a refusal": ("gemini", lambda s: chat(f"{SORRY} See {s.link(FINAL, 'policy.png')}")),
    "avatar: in Chinese": ("gemini", lambda s: chat(f"抱歉,我无法生成这张图片。![头像]({s.link(FINAL)})")),
    "avatar: of the author": (
        "gemini",
        lambda s: chat(SORRY, author={"avatar_url": s.link(FINAL), "icon": s.link(FINAL)}),
    ),
    "avatar: of the assistant": ("gemini", lambda s: {**chat(SORRY), "assistant": {"avatar": data_url(FINAL)}}),
    "avatar: of the user": ("openai", lambda s: {"user": {"picture": s.link(FINAL)}, "data": []}),
    "echo: markdown": ("gemini", lambda s: chat(f"You sent {markdown(data_url(REFERENCE))}")),
    "echo: part": ("gemini", lambda s: chat([image_url(data_url(REFERENCE)), text_part("Nice shoe!")])),
    "echo: link": ("gemini", lambda s: chat(markdown(s.link(REFERENCE)))),
    "echo: b64_json": ("openai", lambda s: listing({"b64_json": b64(REFERENCE)})),
    "echo: url": ("openai", lambda s: listing({"url": s.link(REFERENCE)})),
    "echo: bytes": ("openai", lambda s: REFERENCE),
    "echo: URL-safe in lines": (
        "openai",
        lambda s: listing({"b64_json": lines(base64.urlsafe_b64encode(REFERENCE).decode().rstrip("="))}),
    ),
    "echo: the whole request": (
        "gemini",
        lambda s: {**chat(""), "request": {"messages": [{"content": [image_url(data_url(REFERENCE))]}]}},
    ),
    "echo: another's input": ("openai", lambda s: {"input": {"image": b64(DRAFT)}, "data": []}),
    "revised prompt": ("openai", lambda s: listing({"revised_prompt": f"as in {s.link(FINAL)}", "url": ""})),
    "a link to a page": ("openai", lambda s: listing({"url": s.gateway.publish("page", HTML.encode(), "text/html")})),
    "a link to nothing": ("openai", lambda s: listing({"url": s.gateway.publish("void.png", b"")})),
    "a link to half a picture": ("openai", lambda s: listing({"url": s.link(cut(FINAL))})),
    "a link to a file": ("openai", lambda s: listing({"url": "file:///etc/hostname"})),
    "a link to a socket": ("openai", lambda s: listing({"url": "ftp://127.0.0.1/picture.png"})),
    "a script": ("gemini", lambda s: chat(markdown("javascript:alert(1)"))),
}


def failure(family: str, gateway: Gateway, answer: Any, **options: Any) -> ImageGenError:
    with pytest.raises(ImageGenError) as caught:
        ask(family, gateway, answer, **options)
    error = caught.value
    assert len(gateway.calls) == 1
    assert error.message == " ".join(error.message.split()) and 10 < len(error.message) < 700
    return error


@pytest.mark.parametrize(("family", "shape"), [pytest.param(*row, id=name) for name, row in NOTHING.items()])
def test_answer_without_a_picture(gateway: Gateway, reference: str, family: str, shape: SCRIPTED) -> None:
    """Never a wrong picture, never a traceback: the answer may have been billed, and trying again is the caller's call."""
    error = failure(family, gateway, shape(Shelf(gateway)), ref_images=[reference])
    assert (error.kind, error.retryable, error.billed) == ("response", False, "yes")


@pytest.mark.parametrize(
    "body",
    rows(
        {
            "nothing": {"data": []},
            "a refusal": chat("", finish_reason="content_filter"),
            "a task": {"task_id": "7f"},
            "half a picture": listing({"b64_json": b64(cut(FINAL))}),
            "a dead link": listing({"url": "/media/gone.png"}),
        }
    ),
)
def test_status_of_an_answer_without_a_picture(gateway: Gateway, body: Any) -> None:
    """The JSON of a failure tells the caller that it was HTTP 200 all the same."""
    assert failure("openai", gateway, body).status == 200


SIGNED = "https://gateway.example/v1/files/abc?sig=1"


@pytest.mark.parametrize(
    "body",
    rows(
        {
            "in prose": chat(f"Here is your image: {SIGNED}"),
            "in markdown": chat(f"Done. [View]({SIGNED})"),
            "in HTML": chat(f'<a href="{SIGNED}">View</a>'),
            "in a code fence": chat(f"```json\n{dumped({'image_url': SIGNED})}\n```"),
            "in words that sound like a refusal": chat(f"I cannot make real logos, so here is ![one]({SIGNED})"),
        }
    ),
)
def test_link_that_is_not_known_to_be_a_picture_s_is_told(gateway: Gateway, body: Any) -> None:
    assert failure("gemini", gateway, body).image_url == SIGNED


def test_a_link_of_an_ipv6_host_is_found() -> None:
    link = "http://[::1]:8000/f.png"
    assert [find.link for find in generate.find_images(listing({"url": link}))] == [link]


def test_a_page_s_links_are_not_told(gateway: Gateway) -> None:
    page = f"<html><script src='{gateway.origin}/app.js'></script></html>"
    assert failure("gemini", gateway, page.encode()).image_url is None


def test_an_escaped_link_is_fetched_with_its_whole_query(gateway: Gateway) -> None:
    link = Shelf(gateway).link(FINAL)
    assert ask("gemini", gateway, chat(f'<img src="{link}?a=1&amp;b=2"/>')).images == [FINAL]
    assert [received.target for received in gateway.requests if received.method == "GET"][0].endswith("?a=1&b=2")


def test_an_internal_file_name_is_not_fetched_before_the_link(gateway: Gateway) -> None:
    """It is no address; a gateway that is silent on such a path would use up the time for the good link."""
    link = Shelf(gateway).link(FINAL, "5f3a")
    ask("openai", gateway, listing({"url": link, "file_name": "z1_abc.png"}))
    assert [gateway.origin + path for path in fetched(gateway)] == [link]


def test_a_draft_that_stands_in_for_the_lost_last_picture_is_told(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gone = gateway.origin + "/media/gone.png"
    assert ask("gemini", gateway, chat(markdown(Shelf(gateway).link(DRAFT), gone))).images == [DRAFT]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "an earlier one is taken" in warning and gone in warning


@pytest.mark.parametrize("where", ["policy", "avatar"])
def test_refusal_s_links_are_not_even_fetched(gateway: Gateway, where: str) -> None:
    link = Shelf(gateway).link(FINAL, f"{where}.png")
    error = failure("gemini", gateway, chat(f"{SORRY} ![{where}]({link})"))
    assert SORRY in error.message
    assert fetched(gateway) == []


QUOTED: dict[str, tuple[Any, str]] = {  # body, and what the message repeats of it
    "text": (chat(SORRY), SORRY),
    "text in parts": (chat([text_part("Let me think."), text_part(SORRY)]), SORRY),
    "text of Google's": (native({"text": SORRY}), SORRY),
    "plain text": (b"upstream says hello", "upstream says hello"),
    "page": (f"<html><head><title>One  API</title></head><body>{'x' * 9999}", "One API"),
    "no image": (chat("", finish_reason="NO_IMAGE"), "NO_IMAGE"),
    "no image, small": (chat(None, finish_reason="no_image"), "no_image"),
    "no image of Google's": (native(finishReason="NO_IMAGE"), "NO_IMAGE"),
    "cut short": (chat("", finish_reason="length"), "length"),
    "a message": ({"success": False, "message": "queue is full"}, "queue is full"),
    "msg": ({"code": -1, "msg": "参数错误", "data": None}, "参数错误"),
    "error in a choice": (
        {"choices": [choice(message={"content": ""}, error={"message": "Upstream died"})]},
        "Upstream died",
    ),
    "error as a text": ({"error": "the model is asleep"}, "the model is asleep"),
    "errors": ({"success": False, "errors": [{"code": 7003, "message": "No route"}], "result": None}, "No route"),
    "a long text": (chat("word " * 5000), "word word word"),
    "line feeds": (chat("one\n\n\ttwo\x1b[31m\u202e three"), "one two"),
}


@pytest.mark.parametrize(("body", "quote"), [pytest.param(*row, id=name) for name, row in QUOTED.items()])
def test_message_quotes_the_answer(gateway: Gateway, body: Any, quote: str) -> None:
    """What the gateway said is the best hint there is."""
    error = failure("gemini", gateway, body)
    assert (error.kind, quote in error.message) == ("response", True)
    assert error.message.isprintable()


def test_page_in_place_of_an_answer_hints_at_the_url(gateway: Gateway) -> None:
    """A base URL without /v1 on many gateways: 200 and the dashboard's page."""
    error = failure("openai", gateway, "<!doctype html><title>New API</title><div id=root></div>")
    assert "/v1" in error.message + error.hint


REFUSALS: dict[str, tuple[Any, str]] = {
    **{
        f"finish_reason: {reason}": (chat("", finish_reason=reason), reason)
        for reason in ("content_filter", "image_safety", "IMAGE_SAFETY", "PROHIBITED_CONTENT", "prohibited_content")
    },
    **{
        f"finishReason: {reason}": (native(finishReason=reason), reason)
        for reason in ("SAFETY", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "RECITATION")
    },
    "native_finish_reason": (
        {"choices": [choice(message={"content": ""}, native_finish_reason="IMAGE_SAFETY")]},
        "IMAGE_SAFETY",
    ),
    "blockReason": ({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}, "PROHIBITED_CONTENT"),
    "refusal": (chat(None, refusal="I can't help with that."), "I can't help with that"),
    "a text with it": (chat("Let's talk of something else.", finish_reason="content_filter"), "content_filter"),
    "in a stream": (
        stream(delta("Well"), {"choices": [choice(delta={}, finish_reason="content_filter")]}),
        "content_filter",
    ),
    "error: moderation_blocked": (
        {"error": {"message": "Your request was rejected.", "code": "moderation_blocked"}},
        "Your request was rejected",
    ),
    "error: content_policy_violation": (
        {"error": {"code": "content_policy_violation", "message": None}},
        "content_policy",
    ),
    "artifact": ({"artifacts": [{"base64": "", "finishReason": "CONTENT_FILTERED"}]}, "CONTENT_FILTERED"),
}


@pytest.mark.parametrize(("body", "quote"), [pytest.param(*row, id=name) for name, row in REFUSALS.items()])
def test_refusal(gateway: Gateway, body: Any, quote: str) -> None:
    error = failure("gemini", gateway, body)
    assert (error.kind, error.retryable, error.billed) == ("refused", False, "no")
    assert quote in error.message


def test_avatar_beside_a_refusal_by_reason(gateway: Gateway) -> None:
    link = Shelf(gateway).link(FINAL)
    error = failure("gemini", gateway, chat(f"Look: ![image]({link})", finish_reason="content_filter"))
    assert (error.kind, fetched(gateway)) == ("refused", [])


def test_picture_outweighs_the_finish_reason(gateway: Gateway) -> None:
    """Bytes that are there are the picture, whatever the reason says."""
    body = chat(markdown(data_url(FINAL)), finish_reason="content_filter")
    assert ask("gemini", gateway, body).images == [FINAL]


TASKS: dict[str, Any] = {
    "task_id": {"task_id": "7f3a-task"},
    "taskId": {"code": 0, "data": {"taskId": "7f3a-task"}},
    "task_id and status": {"output": {"task_status": "PENDING", "task_id": "7f3a-task"}, "request_id": "r-1"},
    "id and status": {"id": "7f3a-task", "status": "queued", "created_at": 1},
    "id and state": {"job": {"id": "7f3a-task", "state": "pending"}},
    "id in capitals": {"data": {"id": "7f3a-task", "status": "IN_PROGRESS"}},
    "prediction": {
        "id": "7f3a-task",
        "status": "starting",
        "output": None,
        "urls": {"get": "/v1/predictions/7f3a-task"},
    },
    "polling": {"id": "7f3a-task", "polling_url": "/v1/get_result?id=7f3a-task"},
    "request_id": {"status": "IN_QUEUE", "request_id": "7f3a-task", "queue_position": 3},
    "job_id": {"sdGenerationJob": {"jobId": "7f3a-task"}},
    "generation_id": {"generation_id": "7f3a-task", "status": "waiting"},
    "in a chat": chat("Submitted", task_id="7f3a-task"),
    "response": {"id": "7f3a-task", "object": "response", "status": "in_progress", "output": []},
    "a number": {"task_id": 73},
    "an id that is a number": {"id": 73, "status": "processing"},
}


@pytest.mark.parametrize("body", rows(TASKS))
def test_task_in_place_of_a_picture(gateway: Gateway, body: dict[str, Any]) -> None:
    """The picture may be made and billed later: the id is what the user can ask for it with."""
    error = failure("openai", gateway, body)
    assert (error.kind, error.retryable, error.billed) == ("response", False, "yes")
    assert ("73" if "73" in dumped(body) else "7f3a-task") in error.message


def minimax(code: int, message: str) -> dict[str, Any]:
    return {"id": "x", "data": {}, "base_resp": {"status_code": code, "status_msg": message}}


STATED: dict[str, tuple[Any, str, bool, str]] = {  # errors that come as a success: kind, retryable, words
    "429": ({"error": {"message": "Rate limit exceeded", "code": 429}}, "quota", True, "Rate limit exceeded"),
    "429 as a text": ({"error": {"message": "Slow down", "code": "429"}}, "quota", True, "Slow down"),
    "429 below a status": ({"status": 429, "error": "Too many requests"}, "quota", True, "Too many requests"),
    "Google's": ({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Quota"}}, "quota", True, "Quota"),
    "no credit": ({"error": {"code": "insufficient_user_quota", "message": "额度不足"}}, "quota", False, "额度不足"),
    "no balance": ({"code": "INSUFFICIENT_BALANCE", "message": "Top up"}, "quota", False, "Top up"),
    "MiniMax': no credit": (minimax(1008, "insufficient balance"), "quota", False, "insufficient balance"),
    "MiniMax': too fast": (minimax(1002, "rate limit exceeded(RPM)"), "quota", True, "rate limit exceeded"),
    "MiniMax': moderation": (minimax(1026, "input new_sensitive"), "refused", False, "new_sensitive"),
    "MiniMax': a bad key": (minimax(2049, "invalid api key"), "auth", False, "invalid api key"),
    "DashScope's": (
        {"output": {"task_id": "8", "task_status": "FAILED", "code": "DataInspectionFailed", "message": "No."}},
        "refused",
        False,
        "No.",
    ),
    "a description": ({"code": 24, "description": "可能包含敏感词"}, "refused", False, "可能包含敏感词"),
    "401": ({"error": {"message": "Who are you?", "code": 401}}, "auth", False, "Who are you?"),
    "a bad key": ({"error": {"message": "Nope", "code": "invalid_api_key"}}, "auth", False, "Nope"),
    "500": ({"error": {"message": "Boom", "code": 500}}, "unavailable", True, "Boom"),
    "503": ({"code": 503, "message": "Overloaded"}, "unavailable", True, "Overloaded"),
    "400": ({"error": {"message": "Bad size", "code": 400}}, "rejected", False, "Bad size"),
    "unknown model": ({"error": {"message": "No such", "code": "model_not_found"}}, "rejected", False, "No such"),
}


@pytest.mark.parametrize(
    ("body", "kind", "retryable", "words"), [pytest.param(*row, id=name) for name, row in STATED.items()]
)
def test_error_that_comes_as_a_success(gateway: Gateway, body: Any, kind: str, retryable: bool, words: str) -> None:
    error = failure("gemini", gateway, body)
    assert (error.kind, error.retryable, error.billed) == (kind, retryable, "maybe" if kind == "unavailable" else "no")
    assert words in error.message


# --- Paid, and nearly lost ---


@pytest.mark.parametrize("family", ["openai", "gemini"])
@pytest.mark.parametrize("name", ["gone.png", "page.png", "half.png"])
def test_link_that_fails_is_in_the_error(gateway: Gateway, family: str, name: str) -> None:
    """The user can still open it in a browser."""
    gateway.publish("page.png", HTML.encode())
    gateway.publish("half.png", cut(FINAL))
    link = f"{gateway.origin}/media/{name}?Signature=a%2Fb"
    error = failure(family, gateway, listing({"url": link}))
    assert (error.kind, error.billed, error.image_url) == ("response", "yes", link)
    assert len(fetched(gateway)) == (generate.FETCH_TRIES if name == "gone.png" else 1)


def test_relative_link_that_fails_is_whole_in_the_error(gateway: Gateway) -> None:
    error = failure("openai", gateway, listing({"url": "/media/gone.png"}))
    assert error.image_url == gateway.origin + "/media/gone.png"


def test_half_a_picture_is_kept(gateway: Gateway) -> None:
    """A picture that does not decode may still be mended."""
    error = failure("openai", gateway, listing({"b64_json": b64(cut(FINAL))}))
    assert error.saved_at and error.saved_at in error.message + error.hint
    assert Path(error.saved_at).read_bytes() == cut(FINAL)


@pytest.mark.parametrize("family", ["openai", "gemini"])
@pytest.mark.parametrize(
    "body",
    rows(
        {
            "a router's log": {**chat("No."), "provider_metadata": {"attempts": [{"provider": "a", "status": 503}]}},
            "its words, streamed": "".join(
                "data: " + dumped({"choices": [{"delta": {"content": words}}]}) + "\n\n"
                for words in ("A sign with a ", "rate limit", " of 50")
            ),
        }
    ),
)
def test_a_text_is_paid_once_whatever_it_speaks_of(gateway: Gateway, reference: str, family: str, body: Any) -> None:
    """What others said, or the model itself, is no error of the gateway, and no reason to ask again."""
    gateway.answer_always(Reply(body=body))
    with pytest.raises(generate.ResponseError) as caught:
        ask(family, gateway, body, ref_images=[reference])
    assert (caught.value.billed, caught.value.retryable, len(gateway.calls)) == ("yes", False, 1)


def test_a_place_that_is_no_web_address_is_told(gateway: Gateway) -> None:
    with pytest.raises(generate.ResponseError) as caught:
        ask("openai", gateway, {"predictions": [{"gcsUri": "gs://bucket/apple.png", "mimeType": "image/png"}]})
    assert caught.value.image_url == "gs://bucket/apple.png"


@pytest.mark.timeout(60)
def test_an_answer_full_of_half_links_does_not_hang(gateway: Gateway) -> None:
    """A pattern that started anew at every bracket took minutes."""
    with pytest.raises(generate.ResponseError):
        ask("gemini", gateway, chat(["<img <img [![" * 600] * 300))


@pytest.mark.parametrize("family", ["openai", "gemini"])
@pytest.mark.parametrize(
    "told",
    rows(
        {
            "fal": {"request_id": "764cabcf", "status": "IN_QUEUE", "response_url": "/media/gone", "cancel_url": "/no"},
            "Replicate": {"id": "764cabcf", "status": "starting", "output": None, "urls": {"get": "/media/gone"}},
            "a proxy of Midjourney": {"code": 1, "description": "提交成功", "result": "764cabcf"},
        }
    ),
)
def test_task_with_links_to_its_state(gateway: Gateway, family: str, told: dict[str, Any]) -> None:
    """What lies behind them is no picture; the id is what finds it again."""
    with pytest.raises(generate.ResponseError, match="764cabcf"):
        ask(family, gateway, told)
