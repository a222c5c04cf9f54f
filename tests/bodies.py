"""What goes over the wire, each shape built in one place: answers, streams, errors, requests.

Every function returns JSON material, text or bytes; `gateway.Reply(body=…)` takes any of them.
The family "openai" is answered with a `listing`, "gemini" with a `chat`; `answer` builds either.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import Any

from gateway import Gateway, Received, Reply
from pictures import HTML, picture

Tree = dict[str, Any]  # JSON material

USAGE = {"input_tokens": 52, "output_tokens": 4160, "total_tokens": 4212}

# FINAL is the picture that was paid for; the others stand beside it. All but THUMB are larger
# than the 10,000 bytes below which a saved picture is reported as suspiciously small.
NAMES = ("FINAL", "SECOND", "THIRD", "DRAFT", "OTHER_DRAFT", "REFERENCE")
PICTURES = {name: picture(80, 60, noise=True, seed=seed) for seed, name in enumerate(NAMES)}
FINAL, SECOND, THIRD, DRAFT, OTHER_DRAFT, REFERENCE = PICTURES.values()
PICTURES["THUMB"] = THUMB = picture(16, 12)
PICTURES["HALF"] = HALF = FINAL[:6000]  # it does not decode
PICTURES["PAGE"] = HTML.encode() * 9


# --- A picture as text ---


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{b64(data)}"


def lines(text: str, width: int = 76, end: str = "\n") -> str:
    """The text in lines of that width, as MIME has it."""
    return end.join(text[i : i + width] for i in range(0, len(text), width))


def markdown(*links: str) -> str:
    """![image](link) for each link, which may be a data URL."""
    return "\n\n".join(f"![image]({link})" for link in links)


SLOT = re.compile(r"\$(B64|DATA|LINK|PATH|GONE)(?:\((\w+)(?:, ([^)]+))?\))?")


class Shelf:
    """Where the pictures of an answer lie when they are behind links: on the gateway itself."""

    def __init__(self, gateway: Gateway):
        self.gateway, self.origin = gateway, gateway.origin
        self.gone = f"{self.origin}/media/gone.png"  # a link to nothing

    def fill(self, template: str) -> str:
        """FINAL for $B64, $DATA, $LINK, $PATH; $B64(DRAFT), $LINK(FINAL, me.png); $GONE is dead."""

        def text(match: re.Match[str]) -> str:
            data, name = PICTURES[match[2] or "FINAL"], match[3] or "picture.png"
            texts = {
                "B64": b64(data),
                "DATA": data_url(data),
                "LINK": self.link(data, name),
                "PATH": self.path(data, name),
            }
            return texts.get(match[1]) or self.gone

        return SLOT.sub(text, template)

    def link(self, data: bytes, name: str = "picture.png") -> str:
        return self.gateway.publish(f"{zlib.crc32(data):x}/{name}", data)

    def path(self, data: bytes, name: str = "picture.png") -> str:
        return self.link(data, name)[len(self.origin) :]


# --- Answers of chats ---


def choice(**fields: Any) -> Tree:
    return {"index": 0, "finish_reason": "stop", **fields}


def chat(content: Any = "", finish_reason: Any = "stop", **message: Any) -> Tree:
    """A chat completion; other fields go into the message."""
    said = {"role": "assistant", "content": content, **message}
    return {
        "id": "chatcmpl-7f",
        "object": "chat.completion",
        "created": 1,
        "choices": [choice(message=said, finish_reason=finish_reason)],
        "usage": USAGE,
    }


def text_part(text: str) -> Tree:
    return {"type": "text", "text": text}


def image_url(link: str) -> Tree:
    """A part of a message, in answers and in requests."""
    return {"type": "image_url", "image_url": {"url": link}}


def native(*parts: Any, **candidate: Any) -> Tree:
    """Google's own answer, which some gateways pass through."""
    first = {"content": {"role": "model", "parts": list(parts)}, "finishReason": "STOP"}
    return {"candidates": [{**first, **candidate}], "usageMetadata": USAGE}


def inline(data: bytes, **more: Any) -> Tree:
    """A part of Google's own answer."""
    return {"inlineData": {"mimeType": "image/png", "data": b64(data)}, **more}


# --- Answers of the image endpoints ---


def listing(*items: Any, **more: Any) -> Tree:
    """An answer of the image endpoints with these items."""
    return {"created": 1, "data": list(items), "usage": USAGE, **more}


def made(*pictures: bytes, **more: Any) -> Tree:
    """An answer of the image endpoints with these pictures in base64."""
    return listing(*({"b64_json": b64(data)} for data in pictures), **more)


# --- Answers of either family ---


def answer(family: str, *pictures: bytes) -> Tree:
    """The usual success of this family with these pictures."""
    if family == "openai":
        return made(*pictures)
    return chat("Here you go\n" + markdown(*map(data_url, pictures)))


def linked(family: str, *links: str) -> Tree:
    """The usual success of this family with links in place of the pictures."""
    if family == "openai":
        return listing(*({"url": link, "b64_json": ""} for link in links))
    return chat("Here you go\n" + markdown(*links))


def family_of(received: Received) -> str:
    """The family whose endpoint was asked."""
    return "gemini" if received.path.endswith("/chat/completions") else "openai"


def answer_to(received: Received, *pictures: bytes) -> Reply:
    """These pictures, in the shape of the endpoint that was asked."""
    return Reply(body=answer(family_of(received), *pictures))


# --- Event streams ---


def stream(*events: Any, end: str = "data: [DONE]\n\n") -> bytes:
    """An event stream of JSON material; a text among the events is taken as it stands."""
    texts = (each if isinstance(each, str) else f"data: {json.dumps(each)}\n\n" for each in events)
    return ("".join(texts) + end).encode()


def delta(content: Any, finish_reason: Any = None, **more: Any) -> Tree:
    """An event of a chat's stream."""
    piece = {"index": 0, "delta": {"content": content, **more}, "finish_reason": finish_reason}
    return {"object": "chat.completion.chunk", "choices": [piece]}


def partial(data: bytes, index: int = 0, kind: str = "image_generation") -> Tree:
    """A draft in an image endpoint's stream; kind is "image_edit" on edits."""
    return {"type": f"{kind}.partial_image", "partial_image_index": index, "b64_json": b64(data)}


def completed(data: bytes, kind: str = "image_generation", **more: Any) -> Tree:
    """The finished picture in an image endpoint's stream."""
    return {"type": f"{kind}.completed", "b64_json": b64(data), "usage": USAGE, **more}


# --- Errors ---


def canonical(
    message: Any = "No.", code: Any = None, kind: Any = "invalid_request_error", param: Any = None
) -> Tree:
    """The error body of OpenAI and of nearly all gateways."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def google(status: int, name: str, message: str, *details: Any) -> Tree:
    """Google's error body; in streams it is the only item of a list."""
    facts = {"code": status, "message": message, "status": name, "details": list(details)}
    return {"error": facts}


def page(title: str, text: str = "") -> str:
    """The page of a proxy on the way."""
    return f"<html>\n<head><title>{title}</title></head><body class=x>\n{text}</body></html>"


# --- Requests ---


def user_message(*parts: Any) -> Tree:
    """The message of a chat request; texts become text parts."""
    content = [text_part(part) if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


def chat_request(*parts: Any, **changes: Any) -> Tree:
    model = "gemini-3-pro-image-preview"
    return {"model": model, "messages": [user_message(*parts)], **changes}


def image_request(prompt: str = "a red apple", **changes: Any) -> Tree:
    """The fields of /images/generations; those of /images/edits are the same, as a form."""
    return {"model": "gpt-image-2", "prompt": prompt, "n": 1, "size": "1024x1024", **changes}


def prompt_in(received: Received) -> str:
    """The composed prompt of a request to any endpoint."""
    if received.path.endswith("/edits"):
        return received.fields["prompt"]
    if family_of(received) == "openai":
        return str(received.json["prompt"])
    return str(received.json["messages"][0]["content"][0]["text"])


def references_in(received: Received) -> list[tuple[str, bytes]]:
    """The MIME type and the bytes of each reference in a request, a mask left out."""
    if received.path.endswith("/edits"):
        parts = (part for part in received.files if part.name == "image[]")
        return [(str(part.content_type), part.data) for part in parts]
    if family_of(received) == "openai":
        return []
    content = received.json["messages"][0]["content"]
    links = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    pairs = (link[len("data:") :].split(";base64,") for link in links)
    return [(mime, base64.b64decode(text)) for mime, text in pairs]
