"""Errors: what statuses, codes and sentences mean, and how often and when the program asks again.

The fears: to pay twice for one picture, to give up on one that a second try would have got, and to
send the user after the wrong fault.
"""

from __future__ import annotations

import copy
import datetime
import importlib
import io
import json
import pickle
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bodies
import generate
import pictures
import pytest
from bodies import canonical, google, page
from conftest import Outcome, Run, table
from gateway import Gateway, Received, Reply
from generate import ImageGenError, classify_response_error, handle_http_error
from PIL import Image

MEANINGS = {  # kind, billed, may the same call succeed later
    ("quota", "no", False): "no credit",
    ("quota", "no", True): "too fast",
    ("refused", "no", False): "refused",
    ("auth", "no", False): "auth",
    ("rejected", "no", False): "rejected",  # or "no model", with a hint of its own
    ("unavailable", "maybe", True): "passes",
    ("response", "yes", False): "unusable",
    ("response", "maybe", False): "words",
}
QUOTA = "You exceeded your current quota, please check your plan and billing details."

# What it means | status | code | what counts of the sentence | where it was seen. Most are harmless
# neighbours of the messages above the rows of MEANINGS.
REAL = """
no credit | 500 | insufficient_user_quota | No. | new-api, types/error.go: a code holds in a 500
passes | 502 | upstream_not_found | its upstream is gone | proxies: only a 500 and 503 are their own
passes | 499 | - | client closed request | nginx
auth | 403 | - | User is locked. Reason: Admin lock. | fal-ai/fal#1168
rejected | 400 | - | not supported without a billing account linked | chatlabs#120
too fast | 429 | 429 | GeminiException - {"status": "RESOURCE_EXHAUSTED"} QUOTA | LiteLLM's words
too fast | 429 | - | All accounts exhausted | Antigravity-Manager#1861
rejected | 400 | - | Unknown parameter: 'moderation'. | the name of a field
rejected | 400 | - | Invalid 'safety_identifier': too long. | the name of a field
passes | 500 | channel:invalid_key | No. | new-api, types/error.go: its own key
rejected | 400 | FAILED_PRECONDITION | User location is not supported | big-AGI#284
passes | 503 | - | 对于模型 x 无可用渠道 | one-api#2340: words alone, and so not surely free
passes | 500 | bad_response_status_code | upstream error | new-api, types/error.go
passes | 500 | - | error calling safety checker | image services
rejected | 400 | - | Unknown parameter: 'thinking_budget_tokens' | chat models' proxies
passes | 503 | load_balance_error | No. | proxies of the new-api family
rejected | 400 | - | Model names are case-insensitive | nearest to sensitive
rejected | 400 | - | The signature is time-sensitive | nearest to sensitive
rejected | 400 | - | Invalid safety_settings | the name of a field of Google's
passes | 503 | 503 | all api_keys are rate-limited | proxies with many keys
passes | 503 | - | Rate limit exceeded, retry later | words alone in a 5xx
passes | 500 | - | output new_sensitive (1027) | MiniMax: words alone in a 5xx
auth | 403 | Forbidden | blocked: it may violate our content policy | pollinations#12446
auth | 403 | - | account restricted by risk control | nearest to a prompt's risk
passes | 500 | upstream_auth_failure | No. | proxies: not the caller's key
too fast | 429 | - | Concurrent usage limit exceeded | nearest to a plan's usage limit
rejected | 400 | dataset_limit_exceeded | No. | nearest to a set limit
rejected | 400 | unsupported_moderation | No. | the value of a field
rejected | 400 | - | Content moderation filter must be one of low, auto | the value of a field
rejected | 400 | - | Invalid safety filter threshold: BLOCK_NOTHING | the value of a field of Imagen's
rejected | 400 | - | Invalid value of safe (true to allow NSFW content) | the value of a field
rejected | 400 | - | You can only generate limited sizes | nearest to a rate limit
rejected | 400 | - | Invalid prompt 'a sign: out of credits' | the prompt's words
"""
# Codes that decide by themselves: what they mean | a status that alone means something else | codes
CODES = """
too fast | 400 | RateLimitExceeded.EndpointRPMExceeded TooManyRequests Throttling.RateQuota
too fast | 400 | token_concurrency_limit_reached RequestLimitExceeded
no credit | 400 | INSUFFICIENT_BALANCE insufficient_credits insufficient_funds QuotaExceeded
no credit | 400 | pre_consume_token_quota_failed exceeded_current_quota_error quota_not_enough
no credit | 400 | billing_hard_limit_reached AccountOverdueError Arrearage budget_exceeded
no credit | 403 | AllocationQuota.FreeTierOnly entitlement_daily_limit_exceeded
no credit | 400 | NOT_ENOUGH_BALANCE not_enough_credits payment_required no_credits
no credit | 400 | BILLING_BALANCE_NOT_ENOUGH SetLimitExceeded credit_exhausted credits_depleted
refused | 400 | moderation_blocked content_filter contentFilter content_policy prompt_blocked
refused | 400 | InputTextSensitiveContentDetected DataInspectionFailed InputTextRiskDetection
refused | 400 | moderation moderation_failed moderation_flagged moderation_refused NSFW
refused | 400 | safety_violation ContentPolicyViolationError
refused | 200 | ResponsibleAIPolicyViolation SAFETY BLOCKLIST PROHIBITED_CONTENT RECITATION SPII
auth | 400 | InvalidApiKey incorrect_api_key api_key_missing api_key_expired ApiKeyNotValid
auth | 400 | invalid_token
auth | 200 | authentication_error Unauthorized UNAUTHENTICATED
no model | 503 | ModelNotFound ModelNotOpen invalid_model unknown_model
rejected | 500 | invalid_request InvalidParameter invalid_value INVALID_ARGUMENT invalid_image_file
rejected | 500 | invalid_type not_found_error missing_required_parameter unsupported_parameter
rejected | 500 | convert_request_failed bad_request_body validation_error unknown_parameter
rejected | 500 | model_price_error invalid_size invalid_url invalid_input
passes | 200 | server_error upstream_error InternalError api_error ServerOverloaded UNAVAILABLE
passes | 200 | timeout_error DEADLINE_EXCEEDED do_request_failed get_channel_failed
passes | 200 | bad_response_body empty_response provider_error
"""
# Sentences that do, with one code or none: the meaning | such a status | the sentences
SENTENCES = """
too fast | 200 | Too many requests, please slow down. / 请求过于频繁，请稍后再试
no credit | 429 | Your credits have been exhausted.
no credit | 400 | Insufficient Balance / Insufficient quota / Insufficient funds
no credit | 400 | Insufficient credits. Add more using https://openrouter.ai/settings/credits
no credit | 400 | This request requires more credits, or fewer max_tokens.
no credit | 403 | The balance is not enough. / The free quota has been used up.
no credit | 400 | Your credit balance is too low to access the Anthropic API.
no credit | 403 | Your team doesn't have any credits yet. / You are out of credits.
no credit | 400 | Credits exhausted / Credit depleted
no credit | 403 | 账户余额不足 / 您的账户已欠费
no credit | 401 | 该令牌额度已用尽 TokenStatusExhausted[sk-abc***xyz]
no credit | 403 | 预扣费额度失败, 用户剩余额度: ＄0.539534, 需要预扣费额度: ＄2.906176
refused | 400 | user sensitive words detected / The image is flagged.
refused | 403 | It requires moderation and your input was flagged for "x". No credits were charged.
refused | 403 | Your request was flagged by our content moderation system.
refused | 400 | Invalid prompt: your prompt was flagged as potentially violating our usage policy.
refused | 422 | It could not be processed: flagged by a content checker.
refused | 400 | Its content has been flagged. / There is material flagged in it.
refused | 403 | It contains prohibited words. / It contains unsafe words. / Blocked due to safety.
refused | 400 | The input text includes sensitive content. / It includes inappropriate content.
refused | 400 | Your prompt violates it. / The request may violate it. / The image might violate it
refused | 400 | The input violates it. / It violates our usage policy / It violates the usage policy
refused | 400 | The prompt was blocked. / The request has been blocked. / The image was blocked.
refused | 400 | The response was blocked. / Response blocked. / 内容违规 / 存在敏感内容 / 敏感信息
refused | 200 | 提示词包含敏感表述 / 图片含有违规元素 / 请求涉及不安全因素 / 检测到敏感词
auth | 400 | Incorrect API key provided: sk-abc***xyz. / 无效的令牌 / 该令牌状态不可用
auth | 400 | Authentication Error, Invalid proxy server token passed. / Invalid API-key provided.
no model | 400 | The model doesn't exist. / Model does not exist. Please check it carefully.
passes | 200 | Provider returned error / The model is overloaded. Please try again later.
passes | 200 | internal error / unknown error
"""
# Codes above the rows of MEANINGS without which their sentences would mean something else
DECISIVE = """
    billing_not_active sensitive_words_detected PUBLIC_ERROR_UNSAFE_GENERATION censorship_blocked
    IPInfringementSuspect no_db_connection AuthFailure.SignatureFailure model_not_found
"""
STATUSES = {
    "auth": "401 403",
    "no credit": "402",
    "too fast": "429",
    "rejected": "400 404 405 409 413 415 418 422 451",
    "passes": "103 408 424 425 500 501 502 503 504 520 521 522 523 524 529 599",
    "unusable": "200",
}
HINTS = {401: "--check", 403: "--check", 404: "/v1", 429: "again", 402: "top up", 500: "again"}


def meaning(error: ImageGenError) -> str | None:
    """A lasting lack of credit and of a model have hints of their own."""
    found = MEANINGS.get((error.kind, error.billed, error.retryable))
    assert ("Top up" in error.hint) == (found == "no credit")
    return "no model" if "which image models" in error.hint else found


def rows(text: str) -> list[list[str]]:
    return [line.replace("QUOTA", QUOTA).split(" | ") for line in text.strip().splitlines()]


def raised(status: int, body: Any, **headers: str) -> ImageGenError:
    with pytest.raises(ImageGenError) as caught:
        handle_http_error("openai", status, body, headers)
    return caught.value


@pytest.mark.parametrize(("expected", "status", "code", "sentence", "seen"), rows(REAL))
def test_words(expected: str, status: str, code: str, sentence: str, seen: str) -> None:
    """Status → error, error code → meaning; the gateway's words are quoted."""
    error = raised(int(status), canonical(sentence, code.strip("-"), None))
    assert (meaning(error), error.status) == (expected, int(status))
    assert status in error.message and sentence.rstrip(".") in error.message
    assert error.hint


@pytest.mark.parametrize(("expected", "status", "codes"), rows(CODES))
def test_codes(expected: str, status: str, codes: str) -> None:
    """Whatever the sentence and the status: each of these was seen in a gateway's answers."""
    for code in codes.split():
        assert (code, meaning(raised(int(status), canonical("No.", code, None)))) == (
            code,
            expected,
        )


@pytest.mark.parametrize(("expected", "status", "sentences"), rows(SENTENCES))
def test_sentences(expected: str, status: str, sentences: str) -> None:
    """Of gateways that send no code, or one that says nothing."""
    for sentence in sentences.split(" / "):
        for code in (None, "30001"):
            error = raised(int(status), canonical(sentence, code, None))
            assert (sentence, meaning(error)) == (sentence, expected)


def examples() -> Iterator[Any]:
    """What stands above the rows of MEANINGS: # 429 1102 (Kling): "Account balance not enough"."""
    source = Path(generate.__file__).read_text(encoding="utf-8")
    lines = source.partition("\nMEANINGS = (\n")[2].partition("\n)\n")[0]
    blocks = lines.replace("\n    #   ", " ").split("\n    Meaning(")
    line = r'# (\d+)(?: with base_resp)?(?: ([\w.]+))?[^"\n]* \([^)\n]+\): (".*)'
    for row, block in zip(generate.MEANINGS, blocks):
        for status, code, said in re.findall(line, block):
            for sentence in re.findall('"(.+?)"', said):
                yield status, code, sentence, row


@pytest.mark.parametrize(("status", "code", "sentence", "row"), [*examples()])
def test_real_message_above_each_row(status: str, code: str, sentence: str, row: Any) -> None:
    """A heuristic has an example, with its code and by the sentence alone, or the code alone."""
    expected = meaning(row.error("", row.hint, retryable=row.retryable))
    by_itself = ("No.", code) if code in DECISIVE.split() or sentence == QUOTA else (sentence, None)
    for said, named in ((sentence, code or None), by_itself):
        assert meaning(raised(int(status), canonical(said, named, None))) == expected


@pytest.mark.parametrize("body", [b"", page("example.com | A timeout  occurred", "x" * 9000)])
@pytest.mark.parametrize("expected", STATUSES)
def test_status_alone(expected: str, body: Any) -> None:
    """Of a proxy's page the title is quoted, on one short line without tags."""
    for status in map(int, STATUSES[expected].split()):
        error = raised(status, body)
        assert (meaning(error), error.status) == (expected, status)
        assert not body or "A timeout occurred" in error.message
        assert error.message.isprintable() and len(error.message) < 500 and "<" not in error.message
        assert HINTS.get(status, "") in error.hint.lower()


BAD = {"message": "Bad size"}
SHAPES = {  # all dialects in which a fault is told, and what must be heard
    "sentence-null": (canonical(None, "invalid_size"), "invalid_size"),
    "sentence-missing": ({"error": {"code": "invalid_size"}}, "invalid_size"),
    "all-null": (canonical(None, None, None), "400"),
    "error-in-a-list": ([{"error": BAD}], "Bad size"),
    "errors": ({"errors": [{"code": 7003, **BAD}]}, "Bad size"),
    "detail-list": ({"detail": [{"loc": ["body", "image"], "msg": "Bad size"}]}, "image: Bad size"),
    "message": (BAD, "Bad size"),
    "error-message": ({"error_message": "Bad size"}, "Bad size"),
    "msg": ({"error_code": 3, "error_msg": "Bad size"}, "Bad size"),
    "status-msg": ({"base_resp": {"status_code": 9, "status_msg": "Bad size"}}, "Bad size"),
    "description": ({"code": 24, "description": "Bad size"}, "Bad size"),
    "a-list-of-words": ({"errors": ["Bad size"]}, "Bad size"),
    "problem": ({"title": "Bad size", "status": 400, "type": "about:blank"}, "Bad size"),
    "two sentences": ({**BAD, "errors": [{"message": "Worse"}]}, "400: Bad size."),
    "a word for nothing": (canonical("Bad size", "None", "None", "None"), "400: Bad size."),
    "text": ("Bad size", "Bad size"),
    "comparison": ({"error": "width must be <4096 and >512"}, "width must be <4096 and >512"),
    "byte-order-mark": (b"\xef\xbb\xbf" + json.dumps(BAD).encode(), "Bad size"),
    "not-utf-8": (b'{"message": "Bad size \xf6"}', "Bad size"),
    "300-letters": ({"message": "x" * 300}, "400: " + "x" * 300 + "."),
    "301-letters": ({"message": "x" * 301}, "400: " + "x" * 299 + "…"),
}


@table("body, words", SHAPES)
def test_fault_in_every_dialect(body: Any, words: str) -> None:
    """The gateway's own words reach the user, whether the caller has parsed the body or not."""
    for form in (body, json.dumps(body) if isinstance(body, (dict, list)) else body):
        error = raised(400, form)
        assert meaning(error) == "rejected"
        assert words in error.message and error.message.isprintable()


def test_error_that_states_a_use_may_have_been_billed() -> None:
    """xAI charges for the picture that it then holds back."""
    body = {**canonical("Generated image rejected by content moderation."), "usage": {"ticks": 2}}
    assert (raised(400, body).kind, raised(400, body).billed) == ("refused", "maybe")
    unused = {**body, "usage": {"total_tokens": 0}}
    assert (raised(400, unused).kind, raised(400, unused).billed) == ("refused", "no")


def test_meaning_may_stand_deeper() -> None:
    """Google's details, Azure's inner error, and Google's list of one."""
    invalid = google(400, "INVALID_ARGUMENT", "No.", {"reason": "API_KEY_INVALID"})
    inner = {"error": {"code": "x", "inner_error": {"code": "ResponsibleAIPolicyViolation"}}}
    assert meaning(raised(400, invalid)) == "auth"
    assert meaning(raised(400, inner)) == "refused"
    assert meaning(raised(429, [google(429, "RESOURCE_EXHAUSTED", QUOTA)])) == "too fast"
    for key in ("code", "error_code", "errorCode", "reason", "type", "status", "error"):
        assert (key, meaning(raised(400, {key: "insufficient_quota"}))) == (key, "no credit")


CLASSIFIED = {  # answers of status 200 without a picture
    "404": ({"error": {"message": "Gone", "code": 404}}, "rejected", "Gone"),
    "a-status": ({"status": 402, "detail": "Nothing left"}, "no credit", "Nothing left"),
    "MiniMax": ({"error": {"http_code": 402, "message": "No"}}, "no credit", "No"),
    "DashScope": ({"output": {"task_status": "FAILED", "task_id": "7f"}}, "unusable", "FAILED"),
    "Baidu": ({"error_code": 17, "error_msg": "Day limit reached"}, "words", "Day limit"),
    "Google": (bodies.native(finishReason="NO_IMAGE", finishMessage="Unable."), "words", "Unable."),
    "BFL": ({"id": "a", "status": "Content Moderated", "result": None}, "refused", "Moderated"),
    "safe": ({"data": [{"is_image_safe": False}]}, "unusable", "data.is_image_safe: False"),
    "others-logs": ({"attempts": [{"log": {"code": 429}}]}, "unusable", "no image"),
    "524": ({"code": 524, "message": "Slow"}, "passes", "Slow"),
    "unknown-model": (canonical("No such model", "model_not_found"), "no model", "No such model"),
    "code-0": ({"code": 0, "message": "ok", "data": None}, "words", "ok"),
}


@table("body, expected, words", CLASSIFIED)
def test_status_200_is_not_success(body: Any, expected: str, words: str) -> None:
    """An error in the body means what it would mean as a status."""
    for form in (body, json.dumps(body).encode()):
        with pytest.raises(ImageGenError) as caught:
            classify_response_error("openai", form)
        assert meaning(caught.value) == expected
        assert words in caught.value.message and caught.value.hint


FACTS = "message hint status retryable billed image_urls saved_at draft_at possible_cost_cny"


def facts_of(error: Any) -> list[Any]:
    return [type(error), str(error), *(getattr(error, name) for name in FACTS.split())]


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
@pytest.mark.parametrize("kind", generate.ImageGenError.__subclasses__())
def test_errors_travel(kind: Any, way: Any) -> None:
    """A process pool pickles them; what cannot be read back hangs, or hides status and bill."""
    links = ["http://h/a.png", "http://h/b.png"]
    given = {"status": 418, "retryable": True, "image_urls": links, "saved_at": "/a.png"}
    error = kind("It failed.", "Do this.", billed="yes", **given)
    assert [getattr(error, name) for name in given] == list(given.values())
    assert error.image_url == links[0]
    error.draft_at, error.possible_cost_cny = "/draft.png", 0.7
    assert facts_of(way(error)) == facts_of(error)


# --- How often the program asks ---


class Asker:
    """ask(*references, **flags) is one call with --json and --quiet, in which waits end at once."""

    def __init__(self, run: Run, gateway: Gateway):
        self.run, self.gateway = run, gateway
        self.waited: list[float] = []  # seconds between attempts and between fetches

    def __call__(self, *references: Path, **flags: Any) -> Outcome:
        words = [f"--reference-image={path}" for path in references]
        words += [f"--{name}={value}" for name, value in flags.items()]
        return self.run("--json", "--quiet", "--prompt", "a cup", *words, "--output", "out.png")


@pytest.fixture
def ask(run: Run, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Asker:
    importlib.import_module("requests")  # so that no attempt's time goes into loading it
    asker = Asker(run, gateway)
    monkeypatch.setattr(generate.STOP, "wait", asker.waited.append)
    return asker


REPLIES = {
    "200-but-429": (Reply(body=canonical("Rate limit exceeded", 429)), "too fast"),
    "524": (Reply(524, body=page("524: A timeout occurred")), "passes"),
    "408": (Reply(408), "passes"),
    "reset": (Reply(drop="before"), "passes"),
    "silence": (Reply(hang="accept"), "passes"),
    "429-credit": (Reply(429, body=canonical(code="insufficient_quota")), "no credit"),
    "200-no-picture": (Reply(body={"choices": [], "data": []}), "unusable"),
}


@pytest.mark.parametrize("references", [0, 1], ids=["text-to-image", "image-to-image"])
@table("reply, expected", REPLIES)
def test_only_image_to_image_is_tried_again(
    ask: Asker, reference: Path, reply: Reply, expected: str, references: int
) -> None:
    """3 attempts in all, waits of 1 s then 4 s; never on what cannot pass; all are the same."""
    ask.gateway.answer_always(reply)
    error = ask(*[reference] * references, timeout=1 if reply.hang else 30).json["error"]
    assert MEANINGS[error["kind"], error["billed"], error["retryable"]] == expected
    attempts = 3 if references and expected in ("too fast", "passes") else 1
    assert (len(ask.gateway.calls), ask.waited) == (attempts, [1, 4][: attempts - 1])
    shrinks = reply.status == 524 or reply.hang
    assert shrinks or len({call.body for call in ask.gateway.calls}) == 1


@table(
    "replies, wanted, code, waits",
    {
        "lasting-fault": ([Reply(503), Reply(401)], 5, 4, [1]),
        "five-succeed": ([Reply(503)] * 4, 5, 0, [1, 4, 16, 16]),
        "five-fail": ([Reply(503)] * 5, 5, 6, [1, 4, 16, 16]),
    },
)
def test_attempts_sets_the_number(
    ask: Asker, reference: Path, replies: Any, wanted: int, code: int, waits: list[float]
) -> None:
    """16 s before a fourth; nothing is waited for after the last."""
    ask.gateway.answer(*replies)
    outcome = ask(reference, attempts=wanted)
    assert (outcome.code, ask.waited, len(ask.gateway.calls)) == (code, waits, len(waits) + 1)
    assert code or outcome.json["attempts"] == len(waits) + 1


def test_no_wait_after_the_last_fetch(ask: Asker) -> None:
    """A result URL is fetched in up to 3 tries."""
    ask.gateway.answer(Reply(body=bodies.linked("gemini", f"{ask.gateway.origin}/media/gone.png")))
    assert ask().json["error"]["billed"] == "yes"
    assert (len(ask.gateway.requests), [s for s in ask.waited if s]) == (1 + 3, [1, 4])


def test_no_wait_that_the_time_does_not_allow(ask: Asker, monkeypatch: Any) -> None:
    monkeypatch.setattr(generate, "FETCH_TIMEOUT_S", 0.9)
    ask.gateway.answer(Reply(body=bodies.linked("gemini", f"{ask.gateway.origin}/media/gone.png")))
    assert ask(timeout=0.9).json["error"]["billed"] == "yes"
    assert (len(ask.gateway.requests), ask.waited) == (2, [])


def test_interrupt_between_two_fetches(ask: Asker, monkeypatch: Any) -> None:
    """The picture is paid for: its link is told, and one that is there already is saved."""
    monkeypatch.setattr(generate.STOP, "wait", lambda seconds: True)
    gone = {"url": f"{ask.gateway.origin}/media/gone.png"}
    ask.gateway.answer(Reply(body={"data": [gone]}))
    error = ask(model="gpt-image-2").json["error"]
    assert (error["kind"], error["billed"]) == ("interrupted", "yes")
    assert error["image_urls"] == [gone["url"]]
    ask.gateway.answer(Reply(body={"data": [{"b64_json": bodies.b64(bodies.FINAL)}, gone]}))
    facts = ask(model="gpt-image-2", n=2).json
    assert facts["ok"] and gone["url"] in str(facts["warnings"])


@pytest.mark.parametrize("references", [[], ["none.png"]])
def test_nothing_begins_after_an_interrupt(
    gateway: Gateway, monkeypatch: Any, references: list[str]
) -> None:
    """Nor is any reference read."""
    monkeypatch.setattr(generate.STOP, "is_set", lambda: True)
    with pytest.raises(generate.Interrupted, match="Nothing was sent") as caught:
        generate.generate_gemini("a cup", ref_images=references)
    assert (caught.value.billed, gateway.requests) == ("no", [])


# --- How long the gateway asks to wait ---


def date_in(seconds: float, zone_h: float, form: str) -> str:
    zone = datetime.timezone(datetime.timedelta(hours=zone_h))
    return (datetime.datetime.now(zone) + datetime.timedelta(seconds=seconds)).strftime(form)


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-9")
        time.tzset()
        yield
    time.tzset()


DAY = "%a, %d %b %Y %H:%M:%S"
RETRY_AFTER = {  # header, the seconds waited when two are our own wish: at least, at most
    "decimals": ({"retry-after": " 2.5 "}, 2.5, 2.5),
    "shorter": ({"Retry-After": "1"}, 2, 2),
    "an-hour": ({"Retry-After": "3600"}, 60, 60),
    "for-ever": ({"Retry-After": "9" * 400}, 60, 60),
    "date": ({"Retry-After": (40, 0, f"{DAY} GMT")}, 20, 40),
    "zone-ahead": ({"Retry-After": (40, 8, f"{DAY} %z")}, 20, 40),
    "zone-behind": ({"Retry-After": (40, -3.5, f"{DAY} %z")}, 20, 40),
    "no-zone-is-gmt": ({"Retry-After": (40, 0, "%a %b %d %H:%M:%S %Y")}, 20, 40),
    "no-date": ({"Retry-After": "Mon, 99 Foo 99999 99:99:99 GMT"}, 2, 2),
    "not-a-number": ({"Retry-After": "nan"}, 2, 2),
    "empty": ({"Retry-After": "", "retry-after-ms": "2500"}, 2.5, 2.5),
    "milliseconds": ({"Retry-After-Ms": "2750.5"}, 2.7505, 2.7505),
}


@pytest.mark.usefixtures("far_from_greenwich")
@table("headers, least, most", RETRY_AFTER)
def test_retry_after_is_obeyed_when_longer(
    ask: Asker, reference: Path, monkeypatch: Any, headers: Any, least: float, most: float
) -> None:
    """Retry-After (seconds or date) is obeyed when longer, up to 60 s, after a 5xx, too."""
    monkeypatch.setattr(generate, "RETRY_WAITS_S", (2, 2, 99))
    sent = {name: date_in(*v) if isinstance(v, tuple) else v for name, v in headers.items()}
    ask.gateway.answer(Reply(429, sent), Reply(503, sent))
    assert ask(reference).code == 0
    assert len(ask.waited) == 2
    assert all(least - 1e-6 <= seconds <= most + 1e-6 for seconds in ask.waited)


def test_wait_that_stands_in_the_body() -> None:
    """Google sends no header, but RetryInfo among the details; Cloudflare's body has a number."""
    info = google(429, "RESOURCE_EXHAUSTED", QUOTA, {"retryDelay": "34.07s"})
    assert raised(429, info).retry_after_s == 34.07
    assert raised(429, {"retry_after": 30}).retry_after_s == 30
    assert raised(429, {"retry_after": 30}, **{"Retry-After": "5"}).retry_after_s == 5


# --- What the next attempt sends ---


def widths(received: Received) -> list[int]:
    return [Image.open(io.BytesIO(part.data)).width for part in received.files]


@table(
    "replies, edges",
    {
        "524": ([Reply(524)] * 4, [1024, 768, 512, 512, 512]),
        "read-timeout": ([Reply(hang="body"), Reply(hang="accept")], [1024, 768, 512]),
        "503-between": ([Reply(524), Reply(503), Reply(524)], [1024, 768, 768, 512]),
        "others": ([Reply(429), Reply(504), Reply(522), Reply(drop="before")], [1024] * 5),
    },
)
def test_references_shrink_after_a_timeout_only(
    ask: Asker, reference: Path, tmp_path: Path, replies: list[Reply], edges: list[int]
) -> None:
    """After a 524 or a read timeout the next attempt sends them at 768 px, then 512 px.

    A mask keeps step, and what is smaller stays as it is.
    """
    large, mask = tmp_path / "large.jpg", tmp_path / "mask.png"
    large.write_bytes(pictures.picture(1600, 800, fmt="JPEG"))
    mask.write_bytes(pictures.picture(1600, 800, "RGBA"))
    ask.gateway.answer(*replies)
    ask.gateway.answer_always(lambda received: bodies.answer_to(received, bodies.FINAL))
    patience = 1.5 if any(reply.hang for reply in replies) else 30
    flags = {"model": "gpt-image-2", "mask": mask, "attempts": len(edges), "timeout": patience}
    assert ask(large, reference, **flags).code == 0
    assert [widths(call) for call in ask.gateway.calls] == [[edge, 40, edge] for edge in edges]


# --- What is said of it ---


def test_each_retry_is_announced_even_with_quiet(ask: Asker, reference: Path) -> None:
    """Each retry is logged with its reason and that the failed attempt may have been billed."""
    overloaded = Reply(503, body=canonical("Overloaded", None, None))
    ask.gateway.answer(overloaded, Reply(429, {"Retry-After": "9"}), Reply(drop="before"))
    err = ask(reference, attempts=4).err
    first, second, third = re.findall("(?m)^.*attempt.* billed.*$", err)
    assert re.search(r"503.*Overloaded.*may have been billed.* 1 s", first)
    assert re.search(r"429.*not billed.* 9 s", second)
    assert re.search(r"may have been billed.* 16 s", third)
