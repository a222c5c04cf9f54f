"""Errors: what a status and a body mean, whatever dialect the gateway speaks, and how long it asks to wait."""

from __future__ import annotations

import email.utils
import json
import pickle
import time
from typing import Any

import generate
import pytest
from gateway import Gateway, Reply
from generate import (
    AuthError,
    ImageGenError,
    QuotaError,
    RefusedError,
    RejectedError,
    ResponseError,
    UnavailableError,
    classify_response_error,
    handle_http_error,
)
from pictures import HTML

BILLED = {
    AuthError: "no",
    QuotaError: "no",
    RefusedError: "no",
    RejectedError: "no",
    UnavailableError: "maybe",
    ResponseError: "yes",
}
QUOTA_SENTENCE = "You exceeded your current quota, please check your plan and billing details."
EDGE_PAGE = (
    "<html>\n<head><title>example.com | {0}: A timeout  occurred</title></head><body class=x>\n{1}</body></html>"
)


def canonical(
    message: Any = "No.", code: Any = None, kind: Any = "invalid_request_error", param: Any = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def google(status: int, name: str, message: str, *details: Any) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "status": name, "details": list(details)}}


# status, body, what it is, may it pass by itself, words of the message
TABLE: dict[str, tuple[int, Any, type[ImageGenError], bool, list[str]]] = {
    # -- the request is at fault
    "canonical": (400, canonical("Invalid value: 'x'.", "invalid_value", param="size"), RejectedError, False, ["Invalid value: 'x'"]),
    "message null": (400, canonical(None, "invalid_size"), RejectedError, False, ["invalid_size"]),
    "message empty": (400, canonical("", "invalid_size"), RejectedError, False, ["invalid_size"]),
    "message missing": (400, {"error": {"code": "invalid_size"}}, RejectedError, False, ["invalid_size"]),
    "message a number": (400, canonical(17, None, None), RejectedError, False, []),
    "message an object": (400, {"error": {"message": {"en": "Bad size"}}}, RejectedError, False, []),
    "code a number": (400, canonical("Bad size", 1210), RejectedError, False, ["Bad size"]),
    "code empty": (400, canonical("Bad size", "", "", ""), RejectedError, False, ["Bad size"]),
    "all null": (400, canonical(None, None, None), RejectedError, False, []),
    "error a text": (400, {"error": "Bad size"}, RejectedError, False, ["Bad size"]),
    "error empty": (400, {"error": {}}, RejectedError, False, []),
    "error null": (400, {"error": None}, RejectedError, False, []),
    "error in error": (400, {"error": {"error": {"message": "Bad size"}}}, RejectedError, False, ["Bad size"]),
    "error in a list": (400, [{"error": {"message": "Bad size"}}], RejectedError, False, ["Bad size"]),
    "error in a text": (400, canonical(json.dumps({"error": {"message": "Bad size"}})), RejectedError, False, ["Bad size"]),
    "errors": (400, {"errors": [{"code": 7003, "message": "Bad size"}]}, RejectedError, False, ["Bad size"]),
    "detail": (400, {"detail": "Bad size"}, RejectedError, False, ["Bad size"]),
    "detail list": (
        422,
        {"detail": [{"loc": ["body", "image"], "msg": "Field required", "type": "missing"}]},
        RejectedError,
        False,
        ["image", "Field required"],
    ),
    "detail list of texts": (422, {"detail": ["Bad size"]}, RejectedError, False, ["Bad size"]),
    "detail object": (422, {"detail": {"error": "Bad size"}}, RejectedError, False, ["Bad size"]),
    "message alone": (400, {"message": "Bad size"}, RejectedError, False, ["Bad size"]),
    "msg alone": (400, {"code": 1, "msg": "Bad size"}, RejectedError, False, ["Bad size"]),
    "error_msg": (400, {"error_code": 336, "error_msg": "Bad size"}, RejectedError, False, ["Bad size"]),
    "errorMessage": (400, {"errorMessage": "Bad size"}, RejectedError, False, ["Bad size"]),
    "Response.Error": (400, {"Response": {"Error": {"Code": "X", "Message": "Bad size"}}}, RejectedError, False, ["Bad size"]),
    "problem": (400, {"title": "Bad size", "status": 400, "type": "about:blank"}, RejectedError, False, ["Bad size"]),
    "plain text": (400, "Bad size", RejectedError, False, ["Bad size"]),
    "JSON text": (400, json.dumps("Bad size").encode(), RejectedError, False, ["Bad size"]),
    "empty body": (400, b"", RejectedError, False, ["400"]),
    "page": (400, HTML.replace("502 Bad Gateway", "Bad size"), RejectedError, False, ["Bad size"]),
    "UTF-16": (400, json.dumps(canonical("Bad size")).encode("utf-16"), RejectedError, False, ["Bad size"]),
    "UTF-8 with a mark": (400, b"\xef\xbb\xbf" + json.dumps(canonical("Bad size")).encode(), RejectedError, False, ["Bad size"]),
    "not UTF-8": (400, '{"message": "Größe 100 is bad"}'.encode("latin-1"), RejectedError, False, ["100 is bad"]),
    "an image": (400, b"\x89PNG\r\n\x1a\n" + bytes(5000), RejectedError, False, ["400"]),
    "unknown model": (404, canonical("The model 'x' does not exist.", "model_not_found"), RejectedError, False, ["'x' does not exist"]),
    "unknown URL": (404, canonical("Invalid URL (POST /v1/v1/images/edits)"), RejectedError, False, ["Invalid URL", "/v1/v1/"]),
    "404 page": (404, "<html><head><title>404 Not Found</title></head></html>", RejectedError, False, ["404 Not Found"]),
    "404 empty": (404, b"", RejectedError, False, ["404"]),
    "405": (405, {"detail": "Method Not Allowed"}, RejectedError, False, ["Method Not Allowed"]),
    "408": (408, "", RejectedError, False, ["408"]),
    "409": (409, canonical("Busy"), RejectedError, False, ["Busy"]),
    "413 page": (413, "<html><title>413 Request Entity Too Large</title></html>", RejectedError, False, ["Too Large"]),
    "415": (415, canonical("Unsupported", "unsupported_file_mimetype"), RejectedError, False, ["Unsupported"]),
    "418": (418, "", RejectedError, False, ["418"]),
    "451": (451, "", RejectedError, False, ["451"]),
    "unsupported place": (400, google(400, "FAILED_PRECONDITION", "User location is not supported."), RejectedError, False, ["location"]),
    # -- new-api and its relatives: 500 and 503 for what no second try can mend
    "500 invalid_request": (500, canonical("size is bad", "invalid_request", "new_api_error"), RejectedError, False, ["size is bad"]),
    "500 convert_request_failed": (500, canonical("n?", "convert_request_failed", "new_api_error"), RejectedError, False, ["n?"]),
    "500 sensitive_words_detected": (500, canonical("sensitive words", "sensitive_words_detected"), RefusedError, False, ["sensitive"]),
    "503 model_not_found": (503, canonical("无可用渠道", "model_not_found", "new_api_error"), RejectedError, False, ["无可用渠道"]),
    "500 no credit": (500, canonical("用户额度不足", "insufficient_user_quota"), QuotaError, False, ["用户额度不足"]),
    "500 upstream": (500, canonical("upstream error", "bad_response_status_code", "upstream_error"), UnavailableError, True, ["upstream"]),
    "500 do_request_failed": (500, canonical("do request failed", "do_request_failed", "new_api_error"), UnavailableError, True, ["do request failed"]),
    "503 no channel": (503, canonical("no channel is free", "get_channel_failed", "new_api_error"), UnavailableError, True, ["no channel"]),
    # -- the key
    "401": (401, canonical("Incorrect API key provided.", "invalid_api_key"), AuthError, False, ["Incorrect API key"]),
    "401 empty": (401, b"", AuthError, False, ["401"]),
    "401 page": (401, HTML, AuthError, False, ["401"]),
    "401 error text": (401, {"error": "unauthorized"}, AuthError, False, ["unauthorized"]),
    "401 of new-api": (401, canonical("无效的令牌", "", "new_api_error"), AuthError, False, ["无效的令牌"]),
    "401 of LiteLLM": (401, canonical("Authentication Error, Invalid proxy server token", "401", "auth_error"), AuthError, False, ["proxy server token"]),
    "403": (403, canonical("You may not use this model.", None, "permission_error"), AuthError, False, ["may not use"]),
    "403 page": (403, "<html><title>Just a moment...</title></html>", AuthError, False, ["Just a moment"]),
    "403 of Google": (403, google(403, "PERMISSION_DENIED", "Denied."), AuthError, False, ["Denied"]),
    "400 a bad key, of Google": (
        400,
        google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", {"reason": "API_KEY_INVALID"}),
        AuthError,
        False,
        ["API key not valid"],
    ),
    # -- no credit
    "402": (402, canonical("Insufficient credits"), QuotaError, False, ["Insufficient credits"]),
    "402 empty": (402, b"", QuotaError, False, ["402"]),
    "403 insufficient_user_quota": (403, canonical("用户额度不足, 剩余额度: 0", "insufficient_user_quota"), QuotaError, False, ["额度不足"]),
    "403 pre_consume": (403, canonical("token quota", "pre_consume_token_quota_failed"), QuotaError, False, ["token quota"]),
    "429 insufficient_quota": (429, canonical(QUOTA_SENTENCE, "insufficient_quota", "insufficient_quota"), QuotaError, False, ["current quota"]),
    "400 billing_hard_limit_reached": (400, canonical("Hard limit", "billing_hard_limit_reached"), QuotaError, False, ["Hard limit"]),
    "400 INSUFFICIENT_BALANCE": (400, {"code": "INSUFFICIENT_BALANCE", "message": "Top up"}, QuotaError, False, ["Top up"]),
    "500 INSUFFICIENT_BALANCE": (500, {"code": "INSUFFICIENT_BALANCE", "message": "Top up"}, QuotaError, False, ["Top up"]),
    "400 Arrearage": (400, {"code": "Arrearage", "message": "Access denied."}, QuotaError, False, ["Access denied"]),
    "400 balance in words": (400, {"message": "Account balance is not enough: insufficient balance."}, QuotaError, False, ["not enough"]),
    "400 InsufficientBalance": (400, {"code": "InsufficientBalance", "message": "Top up"}, QuotaError, False, ["Top up"]),
    "403 AccountOverdue": (403, {"error": {"code": "AccountOverdueError", "message": "overdue balance"}}, QuotaError, False, ["overdue"]),
    "403 of SiliconFlow": (403, {"code": 30001, "message": "Sorry, your account balance is insufficient"}, QuotaError, False, ["balance"]),
    "403 of fal": (403, {"detail": "User is locked. Reason: Exhausted balance. Top up."}, QuotaError, False, ["locked"]),
    "403 of xAI": (403, {"code": "No permission", "error": "Your team doesn't have any credits yet."}, QuotaError, False, ["any credits"]),
    "429 of xAI": (429, {"error": "Your team has used all available credits."}, QuotaError, False, ["available credits"]),
    "429 of Stability": (429, {"name": "x", "errors": ["Your organization does not have enough balance."]}, QuotaError, False, ["enough"]),
    "429 of Moonshot": (429, canonical("Suspended", "exceeded_current_quota_error"), QuotaError, False, ["Suspended"]),
    "403 free tier": (403, {"code": "AllocationQuota.FreeTierOnly", "message": "Used up"}, QuotaError, False, ["Used up"]),
    "403 insufficient_permissions": (403, canonical("Not yours", "insufficient_permissions"), AuthError, False, ["Not yours"]),
    # -- too fast
    "429": (429, canonical("Rate limit reached.", "rate_limit_exceeded", "requests"), QuotaError, True, ["Rate limit"]),
    "429 empty": (429, b"", QuotaError, True, ["429"]),
    "429 page": (429, "<html><title>429 Too Many Requests</title></html>", QuotaError, True, ["Too Many"]),
    "429 RESOURCE_EXHAUSTED": (429, google(429, "RESOURCE_EXHAUSTED", QUOTA_SENTENCE), QuotaError, True, ["current quota"]),
    "429 RESOURCE_EXHAUSTED in a list": (429, [google(429, "RESOURCE_EXHAUSTED", QUOTA_SENTENCE)], QuotaError, True, ["current quota"]),
    "429 RESOURCE_EXHAUSTED in words": (
        429,
        canonical(f'RateLimitError: GeminiException - {{"status": "RESOURCE_EXHAUSTED"}} {QUOTA_SENTENCE}', "429", "throttling_error"),
        QuotaError,
        True,
        ["RESOURCE_EXHAUSTED"],
    ),
    "429 code a number": (429, canonical("Slow down", 429), QuotaError, True, ["Slow down"]),
    "429 Throttling": (429, {"code": "Throttling.RateQuota", "message": "Requests rate limit exceeded"}, QuotaError, True, ["rate limit"]),
    "500 rate_limit": (500, canonical("Slow down", "rate_limit_exceeded"), QuotaError, True, ["Slow down"]),
    "503 rate limit in words": (503, {"message": "Rate limit exceeded, retry later"}, QuotaError, True, ["Rate limit"]),
    # -- moderation
    "400 moderation_blocked": (
        400,
        canonical("Rejected by the safety system.", "moderation_blocked", "image_generation_user_error"),
        RefusedError,
        False,
        ["safety system"],
    ),
    "400 content_policy_violation": (400, canonical("Against policy", "content_policy_violation"), RefusedError, False, ["Against policy"]),
    "403 flagged, nothing charged": (
        403,
        {"error": {"code": 403, "message": 'Your input was flagged for "violence". No credits were charged.'}},
        RefusedError,
        False,
        ["violence"],
    ),
    "400 quoted by a proxy": (400, canonical('Upstream: {"code": "moderation_blocked"}', "400"), RefusedError, False, ["Upstream"]),
    "400 the field of that name": (400, canonical("Unknown parameter: 'moderation'.", "unknown_parameter"), RejectedError, False, ["Unknown"]),
    "400 prompt_blocked": (400, canonical("Blocked", "prompt_blocked"), RefusedError, False, ["Blocked"]),
    "400 contentFilter": (400, {"error": {"code": "contentFilter", "message": "Your task failed."}}, RefusedError, False, ["task failed"]),
    "400 inner error": (
        400,
        {"error": {"code": "x", "message": "Bad", "inner_error": {"code": "ResponsibleAIPolicyViolation"}}},
        RefusedError,
        False,
        ["Bad"],
    ),
    "400 DataInspectionFailed": (400, {"code": "DataInspectionFailed", "message": "Not allowed."}, RefusedError, False, ["Not allowed"]),
    "400 in words": (400, {"message": "Request blocked by content moderation."}, RefusedError, False, ["moderation"]),
    "400 in Chinese": (400, {"code": "1301", "message": "输入内容可能包含不安全或敏感内容"}, RefusedError, False, ["敏感"]),
    "403 flagged": (
        403,
        {"error": {"code": 403, "message": "Your input was flagged", "metadata": {"reasons": ["violence"], "type": "moderation"}}},
        RefusedError,
        False,
        ["flagged"],
    ),
    # -- may pass by itself
    "500": (500, canonical("The server had an error.", None, "server_error"), UnavailableError, True, ["server had an error"]),
    "500 empty": (500, b"", UnavailableError, True, ["500"]),
    "500 text": (500, "Internal Server Error", UnavailableError, True, ["Internal Server Error"]),
    "500 of Google": (500, google(500, "INTERNAL", "Try again."), UnavailableError, True, ["Try again"]),
    "502 page": (502, HTML, UnavailableError, True, ["502 Bad Gateway"]),
    "503 of Google": (503, google(503, "UNAVAILABLE", "The model is overloaded."), UnavailableError, True, ["overloaded"]),
    "504 of Google": (504, google(504, "DEADLINE_EXCEEDED", "Too slow."), UnavailableError, True, ["Too slow"]),
    "529": (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, UnavailableError, True, ["Overloaded"]),
    "599": (599, b"", UnavailableError, True, ["599"]),
    **{
        f"{status} page": (status, EDGE_PAGE.format(status, "x" * 9000), UnavailableError, True, [f"{status}: A timeout occurred"])
        for status in (502, 504, 520, 521, 522, 523, 524)
    },
}  # fmt: skip


def raised(status: int, body: Any, headers: dict[str, str] | None = None, family: str = "openai") -> ImageGenError:
    with pytest.raises(ImageGenError) as caught:
        handle_http_error(family, status, body, headers or {})
    return caught.value


@pytest.mark.parametrize("family", ["openai", "gemini"])
@pytest.mark.parametrize(
    ("status", "body", "kind", "retryable", "words"), [pytest.param(*row, id=name) for name, row in TABLE.items()]
)
def test_http_error(
    family: str, status: int, body: Any, kind: type[ImageGenError], retryable: bool, words: list[str]
) -> None:
    """The right exit code, no second bill for what cannot help, and the gateway's own words."""
    error = raised(status, body, family=family)
    assert (type(error), error.retryable, error.billed, error.status) == (kind, retryable, BILLED[kind], status)
    assert [word for word in words if word not in error.message] == []
    assert str(status) in error.message
    assert error.message.isprintable() and len(error.message) < 500
    assert "<" not in error.message
    assert error.hint


@pytest.mark.parametrize("form", ["bytes", "text", "tree"])
@pytest.mark.parametrize("name", ["canonical", "detail list", "403 pre_consume", "429 RESOURCE_EXHAUSTED", "500"])
def test_body_in_any_form(name: str, form: str) -> None:
    """A caller of the function may have parsed the body already, or not."""
    status, body, kind, retryable, words = TABLE[name]
    given = {"bytes": json.dumps(body).encode(), "text": json.dumps(body), "tree": body}[form]
    error = raised(status, given)
    assert (type(error), error.retryable, words[-1] in error.message) == (kind, retryable, True)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("name", ["Location", "location", "LOCATION"])
def test_redirect_shows_where_to(status: int, name: str) -> None:
    """A POST must not follow, so the user has to mend the base URL."""
    error = raised(status, b"", {name: "https://new.example/v1/images/edits"})
    assert (error.kind, error.retryable, error.billed) == ("rejected", False, "no")
    assert "https://new.example/v1/images/edits" in error.message


def test_redirect_without_a_location() -> None:
    assert str(304) in raised(304, b"").message


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "--check"), (403, "--check"), (404, "/v1"), (429, "again"), (402, "top up"), (500, "again")],
)
def test_hint_is_the_next_thing_to_do(status: int, words: str) -> None:
    assert words in raised(status, b"").hint.lower()


@pytest.mark.parametrize("family", ["openai", "gemini"])
@pytest.mark.parametrize("name", TABLE)
def test_over_the_wire(gateway: Gateway, family: str, name: str) -> None:
    """From text alone it is one attempt, whatever the error, and the same error as from the function."""
    status, body, kind, retryable, _ = TABLE[name]
    gateway.answer(Reply(status, body=body), Reply())
    with pytest.raises(ImageGenError) as caught:
        if family == "gemini":
            generate.generate_gemini("a cup")
        else:
            generate.generate_openai("a cup", "gpt-image-2")
    error = caught.value
    assert (type(error), error.retryable, error.billed, error.status) == (kind, retryable, BILLED[kind], status)
    assert len(gateway.calls) == 1


# --- Errors under status 200 ---

CLASSIFIED: dict[str, tuple[Any, type[ImageGenError], bool, str]] = {
    "code 429": (canonical("Rate limit exceeded", 429), QuotaError, True, "Rate limit exceeded"),
    "code 429 as text": (canonical("Rate limit exceeded", "429"), QuotaError, True, "Rate limit exceeded"),
    "code 402": (canonical("Pay first", 402), QuotaError, False, "Pay first"),
    "code 500": (canonical("Boom", 500, None), UnavailableError, True, "Boom"),
    "code 524": ({"code": 524, "message": "Slow"}, UnavailableError, True, "Slow"),
    "code 401": ({"code": 401, "message": "Who?"}, AuthError, False, "Who?"),
    "code 404": ({"error": {"message": "Gone", "code": 404}}, RejectedError, False, "Gone"),
    "no credit": (canonical("Top up", "insufficient_user_quota"), QuotaError, False, "Top up"),
    "no balance": ({"code": "INSUFFICIENT_BALANCE", "message": "Top up", "data": None}, QuotaError, False, "Top up"),
    "moderation": (canonical("Blocked", "moderation_blocked"), RefusedError, False, "Blocked"),
    "unknown model": (canonical("No such model", "model_not_found"), RejectedError, False, "No such model"),
    "Google's": (google(429, "RESOURCE_EXHAUSTED", QUOTA_SENTENCE), QuotaError, True, "current quota"),
    "Google's in a list": ([google(429, "RESOURCE_EXHAUSTED", QUOTA_SENTENCE)], QuotaError, True, "current quota"),
    "a text": ({"error": "asleep"}, ResponseError, False, "asleep"),
    "detail": ({"detail": "asleep"}, ResponseError, False, "asleep"),
    "a page": (HTML, ResponseError, False, "502 Bad Gateway"),
    "nothing": ({}, ResponseError, False, "no image"),
    "null": (None, ResponseError, False, "no image"),
    "a list": ([], ResponseError, False, "no image"),
    "code 0": ({"code": 0, "message": "ok", "data": None}, ResponseError, False, "ok"),
    "code 200": ({"code": 200, "message": "success", "data": {}}, ResponseError, False, "success"),
    "code ok": ({"code": "ok", "msg": "success", "data": {}}, ResponseError, False, "success"),
    "content filter": ({"choices": [{"finish_reason": "content_filter"}]}, RefusedError, False, "content_filter"),
    "no image": ({"choices": [{"finish_reason": "NO_IMAGE"}]}, ResponseError, False, "NO_IMAGE"),
}


@pytest.mark.parametrize("family", ["openai", "gemini"])
@pytest.mark.parametrize("form", ["bytes", "tree"])
@pytest.mark.parametrize(
    ("body", "kind", "retryable", "words"), [pytest.param(*row, id=name) for name, row in CLASSIFIED.items()]
)
def test_response_error(
    family: str, form: str, body: Any, kind: type[ImageGenError], retryable: bool, words: str
) -> None:
    """HTTP 200 is not success."""
    given = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    with pytest.raises(ImageGenError) as caught:
        classify_response_error(family, given if form == "bytes" else body)
    error = caught.value
    assert (type(error), error.retryable, error.billed) == (kind, retryable, BILLED[kind])
    assert words in error.message
    assert error.hint


# --- Retry-After ---


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({"Retry-After": "7"}, 7, id="seconds"),
        pytest.param({"Retry-After": "2.5"}, 2.5, id="decimals"),
        pytest.param({"Retry-After": "0"}, 0, id="zero"),
        pytest.param({"Retry-After": " 7 "}, 7, id="blanks"),
        pytest.param({"Retry-After": "60"}, 60, id="the most"),
        pytest.param({"Retry-After": "3600"}, 60, id="an hour"),
        pytest.param({"Retry-After": "9" * 400}, 60, id="for ever"),
        pytest.param({"retry-after": "7"}, 7, id="small letters"),
        pytest.param({"RETRY-AFTER": "7"}, 7, id="capitals"),
        pytest.param({"Retry-After": 20}, 20, id="date"),
        pytest.param({"Retry-After": 86_400}, 60, id="date tomorrow"),
        pytest.param({"Retry-After": -20}, 0, id="date past"),
        pytest.param({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0, id="date zero"),
        pytest.param({"Retry-After": "Sunday, 06-Nov-94 08:49:37 GMT"}, 0, id="old date"),
        pytest.param({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 60, id="date far off"),
        pytest.param({"Retry-After": "Mon, 99 Foo 99999 99:99:99 GMT"}, 0, id="no date"),
        pytest.param({"Retry-After": "-7"}, 0, id="negative"),
        pytest.param({"Retry-After": "soon"}, 0, id="word"),
        pytest.param({"Retry-After": ""}, 0, id="empty"),
        pytest.param({"Retry-After": "nan"}, 0, id="not a number"),
        pytest.param({"Retry-After": "1.2.3"}, 0, id="dots"),
        pytest.param({"Retry-After": "\0\x7fé"}, 0, id="rubbish"),
        pytest.param({"retry-after-ms": "1500"}, 1.5, id="milliseconds"),
        pytest.param({"Retry-After-Ms": "250.5"}, 0.2505, id="parts of milliseconds"),
        pytest.param({"retry-after-ms": "9000000"}, 60, id="many milliseconds"),
        pytest.param({"retry-after-ms": "x"}, 0, id="no milliseconds"),
        pytest.param({"Retry-After": "", "retry-after-ms": "1500"}, 1.5, id="milliseconds only"),
        pytest.param({}, 0, id="none"),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(status: int, headers: dict[str, Any], seconds: float) -> None:
    """Obeyed, up to a minute; what cannot be read is no reason to fail. A bare number stands for a date that far off."""
    said = {
        name: email.utils.formatdate(time.time() + value, usegmt=True) if isinstance(value, int) else value
        for name, value in headers.items()
    }
    assert raised(status, b"", said).retry_after_s == pytest.approx(seconds, abs=2 if said != headers else 1e-6)


# --- The errors themselves ---


FACTS = ("kind", "exit_code", "message", "hint", "status", "retryable", "billed", "image_url", "saved_at")


def facts(error: ImageGenError) -> dict[str, Any]:
    return {name: getattr(error, name) for name in FACTS}


@pytest.mark.parametrize("kind", ImageGenError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_error_survives_a_process_pool(kind: type[ImageGenError]) -> None:
    """What a worker process raises is what its caller catches."""
    error = kind(
        "It broke.", "Mend it.", status=503, retryable=True, billed="maybe", image_url="http://a/b", saved_at="/c"
    )
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert facts(copy) == facts(error)
    assert (str(copy), copy.args) == (str(error), error.args)


@pytest.mark.parametrize("kind", ImageGenError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_error_says_what_and_what_next(kind: type[ImageGenError]) -> None:
    error = kind("It broke.", "Mend it.")
    assert str(error) == "It broke. Mend it."
    assert facts(error) == {
        **facts(kind("")),
        "message": "It broke.",
        "hint": "Mend it.",
        "status": None,
        "image_url": None,
        "saved_at": None,
    }


def test_every_kind_has_its_exit_code() -> None:
    kinds = {kind.kind: kind.exit_code for kind in ImageGenError.__subclasses__()}
    assert kinds == {
        "internal": 1,
        "usage": 2,
        "config": 3,
        "auth": 4,
        "quota": 5,
        "unavailable": 6,
        "refused": 7,
        "rejected": 7,
        "response": 7,
        "save": 8,
        "interrupted": 130,
    }
