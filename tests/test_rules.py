"""Every table, limit and exit code of the design, once, and what they amount to."""

from __future__ import annotations

from typing import Any

import generate
import pytest
from conftest import table
from gateway import Gateway, Reply, free_size

CATALOGUE = {  # model: family, CNY a picture, most references, most pictures a call
    "gemini-3-pro-image-preview": ("gemini", 1.00, 9, 1),
    "gemini-3-pro-image": ("gemini", 1.00, 9, 1),
    "gemini-3.1-flash-image-preview": ("gemini", 0.20, 9, 1),
    "gemini-3.1-flash-image": ("gemini", 0.20, 9, 1),
    "gemini-2.5-flash-image": ("gemini", 0.15, 9, 1),
    "gemini-2.5-flash-image-preview": ("gemini", 0.15, 9, 1),
    "gpt-image-2": ("openai", 0.35, 16, 10),
    "gpt-image-1": ("openai", 0.50, 16, 10),
    "dall-e-3": ("openai", 0.26, 0, 1),
}
ERRORS = {  # exit code, kind, billed
    generate.InternalError: (1, "internal", "maybe"),
    generate.UsageError: (2, "usage", "no"),
    generate.ConfigError: (3, "config", "no"),
    generate.AuthError: (4, "auth", "no"),
    generate.QuotaError: (5, "quota", "no"),
    generate.UnavailableError: (6, "unavailable", "maybe"),
    generate.RefusedError: (7, "refused", "no"),
    generate.RejectedError: (7, "rejected", "no"),
    generate.SaveError: (8, "save", "yes"),
    generate.ResponseError: (9, "response", "yes"),
    generate.BudgetError: (10, "budget", "no"),
    generate.Interrupted: (130, "interrupted", "maybe"),
}


# --- Models ---


def test_list_models_shows_the_catalogue(run: Any) -> None:
    """`--list-models`: the catalogue with family and price, for people."""
    outcome = run("--list-models")
    assert (outcome.code, outcome.err) == (0, "")
    lines = [line.split()[:5] for line in outcome.out.splitlines()[1:]]
    assert lines == [
        [name, family, f"{price:.2f}", str(references), str(count)]
        for name, (family, price, references, count) in CATALOGUE.items()
    ]


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_model_makes_a_picture_at_its_price(gateway: Gateway, run: Any, name: str) -> None:
    """Each row of the catalogue is a request that a strict gateway takes, without a warning."""
    outcome = run("--prompt", "a cup", "--model", name, "--json")
    family, price, _, _ = CATALOGUE[name]
    facts = outcome.json
    assert (outcome.code, facts["family"], facts["estimated_cost_cny"]) == (0, family, price)
    assert (gateway.calls[0].json["model"], facts["warnings"]) == (name, [])


ANY_SIZE, THREE_SIZES = "1536x864", "1536x1024"  # for 16:9
OTHER_NAMES = {  # endpoint, size for 16:9, names outside the catalogue that behave so
    "later versions": (
        ("generations", ANY_SIZE),
        "gpt-image-2-2026-04-21 gpt-image-2.5-x gpt-image-2.6-sunburst gpt-image-9 GPT-Image-10",
    ),
    "gpt-image-1's kin": (
        ("generations", THREE_SIZES),
        "gpt-image-1.5 openai/gpt-image-1-mini chatgpt-image-latest",
    ),
    "dall-e": (("generations", "1792x1024"), "dall-e-2"),
    "other vendors": (
        ("generations", THREE_SIZES),
        "imagen-4.0 seedream-4.0 doubao-seedream-5-0 qwen/Qwen-Image-2 flux-2-pro"
        " x-ai/grok-imagine-1 hunyuan-image",
    ),
    "gemini": (
        ("completions", None),
        "gemini-9-ultra-image google/gemini-2.0-flash-exp-image-generation"
        " gemini-3.1-flash-lite-image nano-banana-2 gemini-nano-banana-2.1 Nano-Banana-Pro",
    ),
}


@table("expected, names", OTHER_NAMES)
def test_a_name_outside_the_catalogue_is_placed_by_pattern(
    gateway: Gateway, run: Any, expected: Any, names: str
) -> None:
    """Later versions inherit sizes, never prices: null, never 0, and a warning says so."""
    for name in names.split():
        dry = run("--prompt=cup", "--model", name, "--aspect-ratio=16:9", "--dry-run", "--json")
        facts = dry.json
        endpoint = facts["url"].rpartition("/")[2]
        assert (endpoint, facts["json"].get("size")) == expected, name
        assert facts["json"]["model"] == name
        assert facts["estimated_cost_cny"] is facts["possible_cost_cny"] is None
        (warning,) = facts["warnings"]
        assert name in warning and "catalogue" in warning


@pytest.mark.parametrize("prefix", ["", "openai/", "OpenRouter/openai/"])
@pytest.mark.parametrize("name", ["gpt-image-2", "GPT-Image-2"])
def test_vendor_and_upper_case_change_nothing(
    gateway: Gateway, run: Any, prefix: str, name: str
) -> None:
    """`openai/gpt-image-2` and `GPT-Image-2` are that row; the name is sent as given."""
    words = ("--model", prefix + name, "--size=3840x2160", "--n=2", "--output=cup.png", "--json")
    facts = run("--prompt=cup", *words).json
    assert (facts["estimated_cost_cny"], facts["model"]) == (0.70, prefix + name)
    assert facts["warnings"] == []
    assert gateway.calls[0].json["model"] == prefix + name


@table(
    "typed, meant",
    {
        "a letter less": ("gpt-imge-2", "gpt-image-2"),
        "another dash": ("gemini_3_pro_image_preview", "gemini-3-pro-image-preview"),
        "a vendor": ("openai/dalle3", "dall-e-3"),
    },
)
def test_the_nearest_name_is_proposed(run: Any, gateway: Gateway, typed: str, meant: str) -> None:
    """Anything else: usage error with the supported list and the nearest name."""
    outcome = run("--prompt=cup", "--model", typed)
    assert (outcome.code, f"Did you mean {meant}?" in outcome.err) == (2, True)


@pytest.mark.parametrize("family", ["openai", "gemini"])
def test_a_name_that_nothing_places_takes_the_family_given(
    gateway: Gateway, run: Any, family: str
) -> None:
    """`--family`: only for a model name that the script cannot place; the user is warned."""
    words = ["--prompt", "a cup", "--model", "my-model", "--family", family]
    facts = run(*words, "--dry-run", "--json").json
    assert facts["json"]["model"] == "my-model"
    assert ("messages" in facts["json"]) == (family == "gemini")
    (warning,) = facts["warnings"]
    assert "my-model" in warning and "catalogue" in warning


OTHERS = ["gpt-5", "gemini-3-pro", "xgpt-image-2", "dall-e", "", " ", "google/", "gpt-image-2\n"]


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_name_is_a_usage_error_with_the_list(name: str) -> None:
    """Unknown → exit with the supported model list: a text model would send words and a bill."""
    with pytest.raises(generate.UsageError) as caught:
        generate.model_family(name)
    assert repr(name) in caught.value.message
    assert all(known in str(caught.value) for known in CATALOGUE)


# --- Sizes ---


def test_sizes_by_ratio_are_exact_and_gpt_image_2_makes_them() -> None:
    """`OPENAI_SIZE_BY_RATIO` gives the exact ratio where the model can make it."""
    for ratio, size in generate.OPENAI_SIZE_BY_RATIO.items():
        width, height = map(int, size.split("x"))
        across, down = map(float, ratio.split(":"))
        off = abs(width * down / (height * across) - 1)
        assert free_size(size) and off < (0.001 if "." in ratio else 1e-9), ratio


# --- Exit codes ---


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_class_is_its_row(kind: Any) -> None:
    """`ImageGenError` subclasses, one per kind; only what may pass by itself is retryable."""
    error = kind("No.", "Do this.")
    assert isinstance(error, generate.ImageGenError)
    assert (error.exit_code, error.kind, error.billed) == ERRORS[kind]
    assert (error.message, error.hint, error.status, error.attempts) == ("No.", "Do this.", None, 0)
    assert error.retryable is (kind is generate.UnavailableError)


def test_hint_of_a_stand_in_that_is_gone(gateway: Gateway, run: Any) -> None:
    """Its variables may be left over where a key is refused, but not where a call breaks off."""
    gateway.answer(Reply(401), Reply(drop="before"))
    told = [run("--json", "--prompt", "a cup").json for _ in range(2)]
    assert [facts["ok"] for facts in told] == [False, False]
    hints = [facts["error"]["hint"] for facts in told]
    assert ["stand-in gateway that is no longer running" in hint for hint in hints] == [True, False]
