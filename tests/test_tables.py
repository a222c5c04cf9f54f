"""The tables of the program say what the design says, row by row, and hold together."""

from __future__ import annotations

import logging
import re
from math import gcd
from typing import Any

import generate
import pytest
from gateway import IMAGE_MODELS, Gateway, free_size

GPT_1 = {"square": "1024x1024", "landscape": "1536x1024", "portrait": "1024x1536"}
DALL_E = {"square": "1024x1024", "landscape": "1792x1024", "portrait": "1024x1792"}
EXACT = {
    "1:1": "1024x1024",
    "3:2": "1536x1024",
    "2:3": "1024x1536",
    "4:3": "1536x1152",
    "3:4": "1152x1536",
    "16:9": "1536x864",
    "9:16": "864x1536",
    "4:5": "1024x1280",
    "5:4": "1280x1024",
    "21:9": "1568x672",
}
NEAREST = {
    "1:1": "square",
    **dict.fromkeys(("3:2", "4:3", "16:9", "5:4", "21:9"), "landscape"),
    **dict.fromkeys(("2:3", "3:4", "9:16", "4:5"), "portrait"),
}
CATALOGUE = {  # model: family, ¥ an image, most references
    "gemini-3-pro-image-preview": ("gemini", 1.00, 9),
    "gemini-3.1-flash-image-preview": ("gemini", 0.20, 9),
    "gemini-2.5-flash-image": ("gemini", 0.15, 9),
    "gemini-2.5-flash-image-preview": ("gemini", 0.15, 9),
    "gpt-image-2": ("openai", 0.35, 16),
    "gpt-image-1": ("openai", 0.50, 16),
    "dall-e-3": ("openai", 0.26, 0),
}
EXIT_CODES = [  # code, kind, billed; only the kind "unavailable" can be both "maybe" and "no"
    (1, "internal", "maybe"),
    (2, "usage", "no"),
    (3, "config", "no"),
    (4, "auth", "no"),
    (5, "quota", "no"),
    (6, "unavailable", "maybe"),
    (7, "refused", "no"),
    (7, "rejected", "no"),
    (7, "response", "yes"),
    (8, "save", "yes"),
    (130, "interrupted", "maybe"),
]
ERRORS = {
    "internal": generate.InternalError,
    "usage": generate.UsageError,
    "config": generate.ConfigError,
    "auth": generate.AuthError,
    "quota": generate.QuotaError,
    "unavailable": generate.UnavailableError,
    "refused": generate.RefusedError,
    "rejected": generate.RejectedError,
    "response": generate.ResponseError,
    "save": generate.SaveError,
    "interrupted": generate.Interrupted,
}


def validated(**changes: Any) -> generate.Args:
    return generate.validate_args(generate.Args(**{"prompt": "a cup", **changes}))


# --- Models ---


def test_the_catalogue_has_these_rows_and_no_others() -> None:
    """A model that is priced or placed wrongly costs its user money."""
    rows = {row.name: (row.family, row.price_cny, row.max_references) for row in generate.CATALOGUE}
    assert rows == CATALOGUE
    assert len(generate.CATALOGUE) == len(CATALOGUE)


def test_the_default_model_is_the_one_of_the_specification() -> None:
    assert generate.DEFAULT_MODEL == "gemini-3-pro-image-preview" == validated().model


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_catalogued_model_is_taken_without_a_word(name: str, caplog: pytest.LogCaptureFixture) -> None:
    args = validated(model=name)
    assert (args.family, generate.model_family(name)) == (CATALOGUE[name][0],) * 2
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param("gpt-image-3", "openai", id="a later gpt-image"),
        pytest.param("gpt-image-1-mini", "openai", id="a smaller gpt-image"),
        pytest.param("chatgpt-image-latest", "openai", id="chatgpt-image"),
        pytest.param("dall-e-2", "openai", id="an older dall-e"),
        pytest.param("openai/gpt-image-1.5", "openai", id="openai with vendor"),
        pytest.param("openai/gpt-image-2", "openai", id="catalogued openai with vendor"),
        pytest.param("gemini-9-ultra-image", "gemini", id="a later gemini"),
        pytest.param("gemini-2.0-flash-exp-image-generation", "gemini", id="image amid the name"),
        pytest.param("google/gemini-3-pro-image-preview", "gemini", id="catalogued gemini with vendor"),
    ],
)
def test_names_outside_the_catalogue_are_placed_by_pattern(
    name: str, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A new model works on the day it appears, and nobody is told a made-up price."""
    with caplog.at_level(logging.WARNING, "image-gen"):
        args = validated(model=name)
    assert (args.model, args.family, generate.model_family(name)) == (name, family, family)
    assert generate.find_model(name).price_cny is None
    assert [name in record.getMessage() and "catalogue" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    "name",
    ["gpt-5", "gpt-4o", "gemini-2.5-pro", "gemini-3-pro", "imagen-4", "flux-pro", "image", "xgpt-image-2"]
    + ["my-gemini-image", "sdxl", "dall-e", "gpt-image-", "", " ", "google/", "gpt-image-2\n"],
)
def test_any_other_name_is_refused_with_the_list(name: str) -> None:
    """A text model would answer with words and send a bill."""
    with pytest.raises(generate.UsageError) as caught:
        generate.model_family(name)
    assert repr(name) in caught.value.message
    assert all(known in str(caught.value) for known in CATALOGUE)


@pytest.mark.parametrize("family", ["openai", "gemini"])
def test_a_family_places_a_name_that_nothing_else_places(family: str, caplog: pytest.LogCaptureFixture) -> None:
    args = validated(model="flux-pro", family=family)
    assert (args.model, args.family) == ("flux-pro", family)
    assert generate.find_model("flux-pro", family).price_cny is None
    assert "flux-pro" in caplog.text


@pytest.mark.parametrize(
    ("model", "family"), [("gpt-image-2", "gemini"), ("gemini-3-pro-image-preview", "openai"), ("dall-e-3", "gemini")]
)
def test_a_family_that_contradicts_the_catalogue_is_refused(model: str, family: str) -> None:
    with pytest.raises(generate.UsageError) as caught:
        validated(model=model, family=family)
    assert family in str(caught.value)
    assert model in str(caught.value)


# --- Sizes ---


def test_sizes_by_ratio_are_the_design_s() -> None:
    assert generate.OPENAI_SIZE_BY_RATIO == EXACT


@pytest.mark.parametrize("ratio", EXACT)
def test_a_size_has_exactly_the_shape_of_its_ratio_and_gpt_image_2_makes_it(ratio: str) -> None:
    width, height = map(int, generate.OPENAI_SIZE_BY_RATIO[ratio].split("x"))
    shape = gcd(width, height)
    asked = [int(part) for part in ratio.split(":")]
    assert [width // shape, height // shape] == [part // gcd(*asked) for part in asked]
    assert free_size(f"{width}x{height}")


@pytest.mark.parametrize("ratio", EXACT)
@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        pytest.param("gpt-image-2", EXACT, id="gpt-image-2"),
        pytest.param("gpt-image-1", GPT_1, id="gpt-image-1"),
        pytest.param("dall-e-3", DALL_E, id="dall-e-3"),
        pytest.param("gpt-image-9", GPT_1, id="uncatalogued gpt-image"),
        pytest.param("chatgpt-image-latest", GPT_1, id="uncatalogued chatgpt-image"),
        pytest.param("dall-e-9", DALL_E, id="uncatalogued dall-e"),
    ],
)
def test_each_ratio_becomes_a_size_that_the_model_makes(model: str, sizes: dict[str, str], ratio: str) -> None:
    """A size that the model refuses, or a portrait for a landscape, wastes the call."""
    expected = sizes.get(ratio) or sizes[NEAREST[ratio]]
    assert validated(model=model, aspect_ratio=ratio).size == expected
    assert generate.choose_size(generate.find_model(model), ratio, None) == expected
    if model in IMAGE_MODELS:
        IMAGE_MODELS[model].rules["size"].check("size", expected)  # the stand-in refuses by raising


@pytest.mark.parametrize("model", ["gpt-image-2", "gpt-image-1", "dall-e-3", "gpt-image-9"])
def test_without_ratio_and_size_the_picture_is_square(model: str) -> None:
    assert validated(model=model).size == "1024x1024"


@pytest.mark.parametrize(
    ("model", "size"),
    [
        *[("gpt-image-2", size) for size in EXACT.values()],
        *[("gpt-image-2", size) for size in ("auto", "3840x2160", "2160x3840", "1280x512", "1440x480", "816x816")],
        *[("gpt-image-1", size) for size in ("auto", "1024x1024", "1536x1024", "1024x1536")],
        *[("dall-e-3", size) for size in DALL_E.values()],
        *[("gpt-image-9", size) for size in ("2048x2048", "1000x1000", "auto")],
    ],
)
def test_a_size_within_the_model_s_rules_goes_through(model: str, size: str) -> None:
    """What the model takes, or may take when nobody knows its rules, is not for this program to forbid."""
    if model == "gpt-image-2":
        assert free_size(size) or size == "1280x512"  # 655,360 px exactly: the stand-in agrees
    assert validated(model=model, size=size).size == size


@pytest.mark.parametrize(
    ("model", "size", "right"),
    [
        pytest.param("gpt-image-2", "1000x1000", "16", id="no multiples of 16"),
        pytest.param("gpt-image-2", "1024x1000", "16", id="height no multiple of 16"),
        pytest.param("gpt-image-2", "1600x512", "1:3", id="wider than 3:1"),
        pytest.param("gpt-image-2", "512x1600", "1:3", id="taller than 1:3"),
        pytest.param("gpt-image-2", "800x800", "655,360", id="too few pixels"),
        pytest.param("gpt-image-2", "3840x2176", "8,294,400", id="too many pixels"),
        pytest.param("gpt-image-2", "3856x2048", "3840", id="edge too long"),
        pytest.param("gpt-image-1", "1000x1000", "1536x1024", id="not of gpt-image-1"),
        pytest.param("gpt-image-1", "1536x864", "1536x1024", id="gpt-image-2's own"),
        pytest.param("gpt-image-1", "1792x1024", "1024x1536", id="dall-e's own"),
        pytest.param("dall-e-3", "1536x1024", "1792x1024", id="gpt-image's own"),
        pytest.param("dall-e-3", "auto", "1024x1792", id="auto with dall-e-3"),
        *[
            pytest.param("gpt-image-2", size, "x", id=f"malformed {size!a}")
            for size in ("1024×1024", "1024", "x", "1024x", "1024 x 1024", "1024X1024", "-16x16", "0x0", "AUTO")
            + ("1024x1024x1024", "01024x1024", "１０２４x１０２４", "1e3x1e3", "", "1:1", "1024x1024\n")
        ],
    ],
)
def test_a_size_that_the_model_is_known_to_refuse_is_a_usage_error(model: str, size: str, right: str) -> None:
    with pytest.raises(generate.UsageError) as caught:
        validated(model=model, size=size)
    assert repr(size) in caught.value.message
    assert right in str(caught.value)
    assert model in str(caught.value)


def test_an_explicit_size_wins_over_the_ratio_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert validated(model="gpt-image-2", size="1024x1024", aspect_ratio="16:9").size == "1024x1024"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "1024x1024" in caplog.text
    assert "16:9" in caplog.text


@pytest.mark.parametrize("model", [name for name, row in CATALOGUE.items() if row[0] == "gemini"])
def test_gemini_warns_of_what_it_ignores(model: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asks for four pictures must hear that one is coming."""
    args = validated(model=model, n=4, size="1024x1024")
    assert args.n == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(re.search(r"\bn\b", text) for text in warnings)
    assert any("size" in text for text in warnings)


# --- Prompts ---


@pytest.mark.parametrize(
    ("family", "negative", "ratio", "composed"),
    [
        pytest.param("gemini", None, None, "a cup", id="gemini, bare"),
        pytest.param("gemini", None, "16:9", "a cup (aspect ratio: 16:9)", id="gemini, ratio"),
        pytest.param("gemini", "text, hands", None, "a cup Avoid: text, hands", id="gemini, negative"),
        pytest.param("gemini", "text", "4:5", "a cup (aspect ratio: 4:5) Avoid: text", id="gemini, both"),
        pytest.param("openai", None, None, "a cup", id="openai, bare"),
        pytest.param("openai", None, "16:9", "a cup", id="openai, ratio"),
        pytest.param("openai", "text", None, "a cup Avoid: text", id="openai, negative"),
        pytest.param("openai", "text", "4:5", "a cup Avoid: text", id="openai, both"),
    ],
)
def test_composed_prompts(family: str, negative: str | None, ratio: str | None, composed: str) -> None:
    assert generate.compose_prompt("a cup", negative, ratio, family) == composed


def test_a_prompt_keeps_its_own_lines_and_letters() -> None:
    prompt = "一杯茶\n\t« tea » 🍵  two  blanks"
    assert generate.compose_prompt(prompt, None, None, "gemini") == prompt


# --- Configuration, exit codes, limits ---


def test_configuration_is_looked_up_in_this_order() -> None:
    prefixes = ("OMNIMAAS", "PRODUCT_SHOTS_IMAGEGEN", "RENDER", "CANVASFLOW_IMAGEGEN")
    assert [tuple(row[:2]) for row in generate.CONFIG_ROWS] == [(f"{p}_API_KEY", f"{p}_BASE_URL") for p in prefixes]
    names = ["product_shots_imagegen", "product_shots_render", "canvasflow_imagegen"]
    assert list(generate.KEY_FILES) == [f"~/.{name}_api_key" for name in names]
    assert generate.DEFAULT_BASE_URL == "https://api.omnimaas.com/v1"


def test_endpoints_are_the_specification_s_three() -> None:
    assert sorted(generate.ENDPOINTS.values()) == ["/chat/completions", "/images/edits", "/images/generations"]


def test_exit_codes_are_the_design_s() -> None:
    assert [(code, kind, billed) for code, kind, billed, *_ in generate.EXIT_CODES if code] == EXIT_CODES


@pytest.mark.parametrize(("code", "kind", "billed"), EXIT_CODES, ids=[kind for _, kind, _ in EXIT_CODES])
def test_every_error_class_is_its_row(code: int, kind: str, billed: str) -> None:
    error = ERRORS[kind]("No.", "Do this.")
    assert isinstance(error, generate.ImageGenError)
    assert (error.exit_code, error.kind, error.billed, error.status) == (code, kind, billed, None)
    assert (error.message, error.hint) == ("No.", "Do this.")
    assert isinstance(error.retryable, bool)


def test_help_shows_every_exit_code(run: Any) -> None:
    """A caller's script branches on them: the program itself is where to look them up."""
    text = run("--help").out
    for code, kind, billed in EXIT_CODES:
        assert re.search(rf"^ *{code} +{kind} .*\b{billed}\b", text, re.MULTILINE), kind
    assert re.search(r"^ *0 +(ok|saved)\b", text, re.MULTILINE)


def test_limits_and_waits_are_the_design_s() -> None:
    assert generate.RETRY_WAITS_S == (1.0, 4.0, 16.0)
    assert generate.MAX_RETRY_AFTER_S == 60
    assert generate.CONNECT_TIMEOUT_S == 30
    assert generate.REFERENCE_EDGES_PX == (1024, 768, 512)
    assert (generate.Args("x").timeout, generate.Args("x").attempts, generate.Args("x").n) == (300, 3, 1)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_stand_in_serves_every_catalogued_model(gateway: Gateway, run: Any, name: str) -> None:
    """Each row of the catalogue is a request that a strict gateway takes."""
    outcome = run("--prompt", "a cup", "--model", name, "--json")
    assert outcome.code == 0
    family, price, _ = CATALOGUE[name]
    assert (outcome.json["family"], outcome.json["estimated_cost_cny"]) == (family, price)
    assert gateway.calls[0].json["model"] == name
