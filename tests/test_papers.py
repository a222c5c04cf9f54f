"""The papers say what the program does: every flag, table row, key, link, file and example is held against it."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple
from urllib.parse import unquote

import generate
import pytest
from gateway import Gateway, Reply
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("README.md", "SKILL.md") + tuple(
    f"references/{name}.md"
    for name in ("model-selection", "parameter-spec", "reference-image-handling", "error-handling")
)
each_paper = pytest.mark.parametrize("name", NAMES)


# --- Reading markdown ---


class Block(NamedTuple):
    """A fenced piece of a paper and the slug of the heading that it stands under."""

    paper: str
    section: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.paper}:{self.line}"


@functools.cache
def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def slug(heading: str) -> str:
    """The anchor of a heading: API Key + Base URL Resolution -> api-key--base-url-resolution."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@functools.cache
def parsed(name: str) -> tuple[dict[str, list[str]], list[Block]]:
    """A paper's prose lines by section, quotes included, and its fenced blocks."""
    sections: dict[str, list[str]] = {"": []}
    blocks, section, fence = [], "", None
    for number, line in enumerate(read(name).splitlines(), 1):
        if fence is None and line.startswith("```"):
            fence = (number, line[3:].strip(), [])
        elif fence is not None and line == "```":
            blocks.append(Block(name, section, fence[0], fence[1], "".join(text + "\n" for text in fence[2])))
            fence = None
        elif fence is not None:
            fence[2].append(line)
        elif heading := re.match(r"#{1,6} (.+)", line):
            section = slug(heading[1])
            assert section not in sections, f"{name}: two headings {heading[1]!r}"
            sections[section] = []
        else:
            sections[section].append(line)
    assert fence is None, f"{name}: a block without an end"
    return sections, blocks


def all_blocks(*languages: str) -> list[Block]:
    return [block for name in NAMES for block in parsed(name)[1] if block.language in languages]


def prose(name: str, section: str) -> str:
    return "\n".join(parsed(name)[0][section])


def cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def tables(name: str, section: str) -> list[list[dict[str, str]]]:
    """The tables of a section, each a list of rows by column title."""
    found = []
    for is_table, lines in itertools.groupby(parsed(name)[0][section], lambda line: line.startswith("|")):
        if is_table:
            titles, rule, *rows = map(cells, lines)
            assert all(re.fullmatch("-+", cell) for cell in rule)
            assert all(len(row) == len(titles) for row in rows), f"{name} {section}: a row with too many or few cells"
            found.append([dict(zip(titles, row)) for row in rows])
    return found


def code(cell: str) -> str:
    """What stands between the back quotes of a cell that is nothing else."""
    match = re.fullmatch(r"`([^`]+)`", cell)
    assert match, f"{cell!r} is not code"
    return match[1]


# --- Tables ---

SPEC, MODELS, ERRORS = "references/parameter-spec.md", "references/model-selection.md", "references/error-handling.md"
FLAGS = {code(row["flag"]).split()[0]: row for row in tables(SPEC, "cli-flags")[0]}
ACTIONS = {action.option_strings[-1]: action for action in generate.build_parser()._actions}
WORDED = {  # defaults that no parser knows: they are found out during the run
    "--prompt": "required",
    "--family": "from the model's name",
    "--size": f"from the ratio, else {generate.choose_size(generate.find_model('gpt-image-2'))}",
    "--output": "`./output-TIME.png` or `.jpeg`",
}


def test_flag_table_is_complete() -> None:
    """A flag that is nowhere explained, or explained and gone."""
    assert sorted(FLAGS) == sorted(ACTIONS)


@pytest.mark.parametrize("flag", ACTIONS)
def test_flag_row(flag: str) -> None:
    """A default or a value's shape that the program does not share."""
    action, row = ACTIONS[flag], FLAGS[flag]
    values = "|".join(action.choices) if action.choices else action.metavar
    takes_value = action.nargs != 0
    assert code(row["flag"]) == (f"{flag} {values}" if takes_value else flag)
    default = row["default"].strip("`") if flag not in WORDED else row["default"]
    if flag in WORDED:
        assert action.default is None and default == WORDED[flag]
    elif not takes_value:
        assert default == "off" and not getattr(generate.build_parser().parse_args([]), action.dest, False)
    else:
        assert default == (
            "none" if action.default in (None, []) else f"{action.default:g}" if action.type else action.default
        )


@pytest.mark.parametrize("family", ["openai", "gemini"])
def test_flag_family(family: str, run: Callable[..., Any], gateway: Gateway) -> None:
    """A flag listed for a family that warns and leaves it out, or the other way round."""
    model = {"openai": "gpt-image-2", "gemini": "gemini-3-pro-image-preview"}[family]
    for flag, value in (("--n", "2"), ("--size", "1024x1024"), ("--negative-prompt", "x"), ("--aspect-ratio", "1:1")):
        outcome = run("--prompt", "x", "--model", model, flag, value, "--dry-run")
        ignored = "left out" in outcome.err
        assert outcome.code == 0 and ignored == (FLAGS[flag]["family"] not in ("both", family)), flag


def test_flag_table_names_the_library_arguments() -> None:
    """A keyword that the table promises and Python refuses."""
    own = set(inspect.signature(generate.generate_image).parameters)
    named = {code(row["in Python"]) for row in FLAGS.values() if row["in Python"]}
    assert named <= own | set(generate.Args._fields)
    assert own - {"options", "api_key", "base_url"} <= named
    assert named >= set(generate.Args._fields) - {"output"}, "an argument of the program is missing in the table"
    for argument in ("ref_images", "api_key", "base_url"):
        assert f"`{argument}`" in prose(SPEC, "cli-flags")
        for function in (generate.generate_openai, generate.generate_gemini):
            assert argument in inspect.signature(function).parameters


LIMITS = [  # words in the row of a flag, and arguments that they allow (exit code 0) or forbid (2)
    ("--n", "1 to 10", [(["--n", 1], 0), (["--n", 10], 0), (["--n", 0], 2), (["--n", 11], 2)]),
    ("--attempts", "1 to 5", [(["--attempts", n], 0 if 1 <= n <= 5 else 2) for n in (0, 1, 5, 6)]),
    ("--size", "`auto`", [(["--size", "auto"], 0), (["--size", "auto", "--model", "dall-e-3"], 2)]),
    ("--prompt", "not blank", [(["--prompt", " "], 2)]),
    ("--proxy", "`http://`", [(["--proxy", "http://127.0.0.1:7890"], 0), (["--proxy", "ftp://127.0.0.1"], 2)]),
    (
        "--proxy",
        "`socks5h://`",
        [(["--proxy", f"{name}://127.0.0.1:1080"], 0) for name in ("https", "socks5", "socks5h")],
    ),
    (
        "--param",
        "read as JSON",
        [(["--param", "quality=high"], 0), (["--param", "quality"], 2), (["--param", "n=2"], 2)],
    ),
    (
        "--family",
        "cannot be placed",
        [(["--model", "seedream-4"], 2), (["--model", "seedream-4", "--family", "openai"], 0)],
    ),
    ("--output", "missing folders", [(["--output", "new/folder/cup.png"], 0), (["--output", "cup.xyz"], 2)]),
]


@pytest.mark.parametrize("flag, words, cases", LIMITS, ids=lambda value: value if isinstance(value, str) else "")
def test_flag_limit(flag: str, words: str, cases: list[tuple[list[Any], int]], run: Any, gateway: Gateway) -> None:
    """A range in the table that the program does not keep to."""
    assert words in FLAGS[flag]["meaning"]
    for argv, expected in cases:
        outcome = run("--prompt", "a cup", "--model", "gpt-image-2", *argv, "--dry-run")
        assert outcome.code == expected, (argv, outcome.err)


def test_names_of_several_pictures(run: Callable[..., Any], gateway: Gateway, tmp_path: Path) -> None:
    """The three names that the paper promises for one."""
    names = ["cup.png", "cup-2.png", "cup-3.png"]
    assert ", ".join(f"`{name}`" for name in names[:2]) + f" and `{names[2]}`" in prose(SPEC, "cli-flags")
    assert run("--prompt", "a cup", "--model", "gpt-image-2", "--n", 3, "--output", "cup.png").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


FOREIGN = {  # flags of other programs in the papers
    "parallel": {"--jobs", "--joblog", "--resume", "--resume-failed", "--colsep"},
    "tests/gateway.py": {"--port"},
    "dask worker": {"--nthreads"},
}


@each_paper
def test_no_unknown_flag(name: str) -> None:
    """A flag in an example or a sentence that does not exist."""
    known = set(ACTIONS).union(*FOREIGN.values())
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]|(?<![\w-])--n\b", read(name))) <= known


def test_flags_of_the_stand_in() -> None:
    """The stand-in's own flags that the papers use."""
    text = subprocess.run([sys.executable, ROOT / "tests/gateway.py", "--help"], capture_output=True, text=True).stdout
    assert all(flag in text for flag in FOREIGN["tests/gateway.py"])


def shown_sizes(model: generate.Model) -> str:
    return ", ".join(model.sizes.split())


@pytest.mark.parametrize("model", generate.CATALOGUE, ids=lambda model: model.name)
def test_catalogue_row(model: generate.Model) -> None:
    """A price, limit or size in the papers that is not the program's."""
    row = tables(MODELS, "model-catalogue")[0][generate.CATALOGUE.index(model)]
    assert list(row.values()) == [
        f"`{model.name}`",
        model.family,
        f"{model.price_cny:.2f}",
        str(model.max_references),
        str(model.max_n),
        model.typical,
        shown_sizes(model),
    ]


def test_catalogue_is_complete() -> None:
    """A model in the papers that the program has forgotten."""
    assert len(tables(MODELS, "model-catalogue")[0]) == len(generate.CATALOGUE)


def test_free_sizes(run: Callable[..., Any], gateway: Gateway) -> None:
    """The limits of a free size, each met and each missed by the least step."""
    limits = prose(MODELS, "model-catalogue")
    for words in ("multiples of 16", "1:3 to 3:1".replace(" to ", " and "), "655,360 to 8,294,400", "over 3840"):
        assert words in limits
    for size, good in (
        ("1600x1200", True), ("1024x640", True), ("1024x624", False), ("3840x2160", True), ("3856x2144", False),
        ("1632x544", True), ("1648x544", False), ("1608x1200", False),
    ):  # fmt: skip
        outcome = run("--prompt", "x", "--model", "gpt-image-2", "--size", size, "--dry-run")
        assert outcome.code == (0 if good else 2), size


def test_models_that_are_recommended_exist() -> None:
    """A decision tree that leads to a model nobody has."""
    names = {model.name for model in generate.CATALOGUE}
    taken = [code(row["take"]) for row in tables(MODELS, "decision-tree")[0]]
    assert set(taken) <= names and taken[-1] == generate.DEFAULT_MODEL


@pytest.mark.parametrize("row", tables(MODELS, "family-routing")[0], ids=lambda row: row["family"] + row["references"])
def test_endpoint_row(row: dict[str, str], run: Callable[..., Any], gateway: Gateway, photo: Path) -> None:
    """Requests that go elsewhere than the papers say, or hold other fields."""
    model = next(model.name for model in generate.CATALOGUE if model.family == row["family"])
    for given in {"no": [[]], "yes": [["--reference-image", photo]], "either": [[], ["--reference-image", photo]]}[
        row["references"]
    ]:
        assert run("--prompt", "x", "--model", model, *given).code == 0
        call = gateway.calls[-1]
        assert call.path == "/v1" + code(row["endpoint"])
        fields = set(call.json) if "JSON" in row["the request"] else set(call.fields)
        if row["family"] == "gemini":
            assert fields == {"model", "messages"} and len(call.json["messages"]) == 1
        else:
            assert fields == {"model", "prompt", "n", "size"}
            assert [part.name for part in call.files] == ["image[]"] if given else "JSON" in row["the request"]


@pytest.mark.parametrize("ratio", [None, *generate.OPENAI_SIZE_BY_RATIO], ids=str)
def test_ratio_row(ratio: str | None) -> None:
    """A pixel size in the papers that the program does not ask for."""
    rows = {row.pop("ratio"): row for row in tables(SPEC, "aspect-ratio--openai-size-mapping")[0]}
    assert list(rows) == ["none", *generate.OPENAI_SIZE_BY_RATIO]
    row = rows[ratio or "none"]
    assert {code(title) for title in row} == {model.name for model in generate.CATALOGUE if model.family == "openai"}
    for title, size in row.items():
        assert size == generate.choose_size(generate.find_model(code(title)), ratio), title


@pytest.mark.parametrize(
    "name, like", [("dall-e-4", "dall-e-3"), ("gpt-image-9", "gpt-image-1"), ("chatgpt-image-latest", "gpt-image-1")]
)
def test_sizes_outside_the_catalogue(name: str, like: str) -> None:
    """What is said of openai models that have no column of their own."""
    for ratio in generate.OPENAI_SIZE_BY_RATIO:
        expected = generate.choose_size(generate.find_model(like), ratio)
        assert generate.choose_size(generate.find_model(name), ratio) == expected


def test_exit_codes() -> None:
    """A code, kind or bill in the papers, in the program's table and in --help that differ."""
    rows = [
        (int(row["code"]), row["kind"].strip("`"), row["billed"]) for row in tables(ERRORS, "common-failure-modes")[0]
    ]
    assert rows[0] == (0, "", "yes")
    assert sorted(rows[1:]) == sorted(row[:3] for row in generate.EXIT_CODES if row[0])
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    text = generate.build_parser().format_help()
    for number, kind, billed in rows[1:]:
        assert re.search(rf"^ +{number} +{kind} +{billed} ", text, re.M), f"--help lacks {number} {kind} {billed}"


def test_troubleshooting_has_every_code() -> None:
    """A reader with an exit code that the README does not know."""
    codes = [int(row["code"]) for row in tables("README.md", "when-it-fails")[0]]
    assert codes == sorted({row[0] for row in generate.EXIT_CODES if row[0]})


def test_error_classes() -> None:
    """An except clause, copied from the papers, that catches nothing."""
    named = set(re.findall(r"`(\w+Error|Interrupted)`", prose(ERRORS, "common-failure-modes")))
    classes = {error.__name__ for error in generate.ImageGenError.__subclasses__()}
    assert named == classes | {"ImageGenError"}


ANSWERS: dict[str, tuple[Reply, str]] = {
    "401, 403": (Reply(401, body={"error": {"message": "no", "code": None}}), "auth"),
    "403": (Reply(403, body=""), "auth"),
    "429": (Reply(429), "quota"),
    "RESOURCE_EXHAUSTED": (Reply(429, body={"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}), "quota"),
    "402": (Reply(402), "quota"),
    "500 that speaks of credit": (Reply(500, body={"error": {"code": "insufficient_user_quota"}}), "quota"),
    "502": (Reply(502), "unavailable"),
    "524": (Reply(524, body="<html>timeout</html>"), "unavailable"),
    "a reset connection": (Reply(drop="before"), "unavailable"),
    "moderation": (Reply(400, body={"error": {"code": "moderation_blocked"}}), "refused"),
    "a word filter": (Reply(500, body={"error": {"code": "sensitive_words_detected"}}), "refused"),
    "a model that says no": (Reply(body={"choices": [{"finish_reason": "content_filter"}]}), "refused"),
    "400": (Reply(400, body={"error": {"message": "bad field"}}), "rejected"),
    "404": (Reply(404), "rejected"),
    "422": (Reply(422), "rejected"),
    "an unknown model": (Reply(503, body={"error": {"code": "model_not_found"}}), "rejected"),
    "200 with text": (Reply(body={"choices": [{"message": {"content": "Which cup?"}}]}), "response"),
    "200 with a web page": (Reply(body="<html><title>Welcome</title></html>"), "response"),
    "200 with a task number": (Reply(body={"task_id": "t-1", "status": "queued"}), "response"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_failure_row(case: str, run: Callable[..., Any], gateway: Gateway) -> None:
    """What gateways do, and a kind that is not the one in the papers."""
    reply, kind = ANSWERS[case]
    rows = [row for row in tables(ERRORS, "common-failure-modes")[1] if case.replace("`", "") in spoken(row)]
    assert kind in {row["kind"].split("`")[1] for row in rows}, "the papers do not have this case"
    gateway.answer(reply)
    outcome = run("--prompt", "a cup", "--json")
    assert outcome.json["error"]["kind"] == kind
    if rows[0]["kind"].endswith("`retryable`"):
        assert outcome.json["error"]["retryable"]


def spoken(row: dict[str, str]) -> str:
    """The case of a row in plain words, ranges of statuses spelled out."""
    words = row["the gateway"].replace("`", "")
    for low, high in re.findall(r"(\d{3}) to (\d{3})", words):
        words += "".join(f", {status}" for status in range(int(low), int(high) + 1))
    return words


def test_every_failure_row_is_tried() -> None:
    """A row that nobody has ever seen happen."""
    elsewhere = ("a host that cannot be reached", "a link that cannot be fetched")
    for row in tables(ERRORS, "common-failure-modes")[1]:
        assert spoken(row) in elsewhere or any(case in spoken(row) for case in ANSWERS), row


def test_unreachable_costs_nothing(run: Callable[..., Any], gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row about a host that cannot be reached, and the sentence about its bill."""
    monkeypatch.setenv("OMNIMAAS_BASE_URL", "http://127.0.0.1:9/v1")
    error = run("--prompt", "a cup", "--json").json["error"]
    assert (error["kind"], error["billed"]) == ("unavailable", "no")


def test_retry_waits() -> None:
    """Waits and reference sizes that the program does not use."""
    rows = tables(ERRORS, "retry-patterns")[1]
    waits, edges = generate.RETRY_WAITS_S, generate.REFERENCE_EDGES_PX
    for row in rows:
        attempt = int(row["before attempt"])
        wait = 0 if attempt == 1 else waits[min(attempt - 2, len(waits) - 1)]
        assert row["wait at least"] == f"{wait:g} s"
        assert row["references at most"].startswith(f"{edges[min(attempt - 1, len(edges) - 1)]} px")
    assert f"up to {generate.MAX_RETRY_AFTER_S:g} s" in prose(ERRORS, "retry-patterns")
    assert len(rows) == 5 and f"{generate.Args('x').attempts} attempts in all" in prose(ERRORS, "retry-patterns")


HARD = Reply(500, body={"error": {"code": "insufficient_user_quota", "message": "no credit"}})
RETRIES: dict[str, list[tuple[bool, Reply, int]]] = {  # with a reference or not, what the gateway says, calls made
    "image-to-image": [(True, Reply(503), 3)],
    "text-to-image": [(False, Reply(503), 1), (False, Reply(429), 1)],
    "429, 5xx, 524, connection errors, timeouts": [
        (True, Reply(429), 3),
        (True, Reply(500), 3),
        (True, Reply(524), 3),
        (True, Reply(drop="before"), 3),
    ],
    "401, 403 and other 4xx": [(True, Reply(status), 1) for status in (400, 401, 403, 404, 422)],
    "any status whose body speaks": [(True, HARD, 1)],
}


@pytest.mark.parametrize("start", RETRIES)
def test_retry_row(start: str, run: Callable[..., Any], gateway: Gateway, photo: Path, short_waits: None) -> None:
    """A second bill that the papers rule out, or a retry that they promise."""
    [row] = [row for row in tables(ERRORS, "retry-patterns")[0] if row[""].startswith(start)]
    for reference, reply, calls in RETRIES[start]:
        gateway.reset()
        gateway.answer_always(reply)
        before = len(gateway.calls)
        assert run("--prompt", "a cup", *(["--reference-image", photo] if reference else [])).code != 0
        assert len(gateway.calls) - before == calls
        assert row["tried again"].startswith("yes" if calls > 1 else "no")


def test_links_are_fetched_again(run: Callable[..., Any], gateway: Gateway, short_waits: None) -> None:
    """The last row: three tries for a link, and the link in the error."""
    assert tables(ERRORS, "retry-patterns")[0][-1]["tried again"].startswith(f"up to {generate.FETCH_TRIES} times")
    gateway.answer_always(Reply(503), path="/media/")
    gateway.answer(Reply(body={"data": [{"url": f"{gateway.origin}/media/gone.png"}]}))
    outcome = run("--prompt", "a cup", "--model", "gpt-image-2", "--json")
    assert outcome.json["error"]["image_url"] == f"{gateway.origin}/media/gone.png"
    assert sum(received.path.startswith("/media/") for received in gateway.requests) == generate.FETCH_TRIES


def test_caller_contract() -> None:
    """A field that callers are told to pass and that nothing takes."""
    fields = [code(row["you pass"]) for row in tables("SKILL.md", "caller-contract")[0]]
    taken = inspect.signature(generate.generate_image).parameters
    assert {"output_path" if field == "output" else field for field in fields} <= set(taken)
    required = {code(row["you pass"]) for row in tables("SKILL.md", "caller-contract")[0] if row["required"] == "yes"}
    assert required == {name for name, argument in taken.items() if argument.default is argument.empty} - {"options"}


def test_precedence() -> None:
    """A variable or file in another order than the program's."""
    rows = tables(SPEC, "api-key--base-url-resolution")[0]
    assert [row["order"] for row in rows] == [str(number) for number in range(1, 8)]
    assert [code(row["key"]) for row in rows] == [key for key, _ in generate.CONFIG_ROWS] + list(generate.KEY_FILES)
    assert [code(row["base URL"]) for row in rows[:4]] == [url for _, url in generate.CONFIG_ROWS]
    assert re.findall("`([^`]+)`", rows[4]["base URL"]) == [
        generate.DEFAULT_BASE_URL,
        generate.CONFIG_ROWS[0][0],
        generate.KEY_FILES[0],
    ]
    assert not any(row["base URL"] for row in rows[5:])
    listed = re.findall(r"^\d\. .*`(.+)`$", prose("SKILL.md", "onboarding"), re.M)
    assert listed == [code(row["key"]) for row in rows]


# --- JSON ---

SAVED, FAILED, ERROR, OTHERS = tables(SPEC, "json-output")
JSON_TYPES = {"boolean": bool, "string": str, "list": list, "object": dict, "number": (int, float), "null": type(None)}


def assert_keys(rows: list[dict[str, str]], column: str, facts: dict[str, Any]) -> None:
    documented = {code(row[column]): row["type"] for row in rows}
    assert set(facts) <= set(documented)
    assert {key for key, kind in documented.items() if "often absent" not in kind} <= set(facts)
    for key, value in facts.items():
        types = [JSON_TYPES[word] for word in documented[key].split(",")[0].split(" or ")]
        assert any(isinstance(value, kind) for kind in types), f"{key}: {value!r} is no {documented[key]}"


@pytest.mark.parametrize("model", ["gpt-image-2", "gemini-3-pro-image-preview", "gpt-image-9"])
def test_json_of_a_success(model: str, run: Callable[..., Any], gateway: Gateway) -> None:
    """A key that a caller reads and the program never writes."""
    if model == "gpt-image-9":
        picture = gateway_picture()
        gateway.answer(lambda received: Reply(body=picture, headers={"Content-Type": "image/png"}))
    outcome = run("--prompt", "a cup", "--model", model, "--json")
    assert outcome.code == 0
    assert_keys(SAVED, "key", outcome.json)
    assert list(outcome.json) == [code(row["key"]) for row in SAVED]


def gateway_picture() -> bytes:
    """A plain picture, big enough to be believed, from a gateway that reports no usage."""
    stream = io.BytesIO()
    Image.effect_noise((256, 256), 80).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "argv, reply, present",
    [
        pytest.param(["--prompt", " "], None, set(), id="usage"),
        pytest.param(["--prompt", "x"], Reply(429), set(), id="quota"),
        pytest.param(["--prompt", "x"], "link", {"image_url"}, id="dead link"),
        pytest.param(["--prompt", "x"], "small", {"saved_at"}, id="too small"),
        pytest.param(["--no-such-flag"], None, set(), id="unknown flag"),
    ],
)
def test_json_of_a_failure(
    argv: list[str], reply: Any, present: set[str], run: Callable[..., Any], gateway: Gateway, short_waits: None
) -> None:
    """The same for the failures, with the two keys that come and go."""
    if reply == "link":
        gateway.answer_always(Reply(404), path="/media/gone.png")
        reply = Reply(body={"choices": [{"message": {"content": f"![image]({gateway.origin}/media/gone.png)"}}]})
    elif reply == "small":
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, "PNG")
        reply = Reply(body=stream.getvalue())
    if reply:
        gateway.answer(reply)
    outcome = run(*argv, "--json")
    assert outcome.code == next(row[0] for row in generate.EXIT_CODES if row[1] == outcome.json["error"]["kind"])
    assert_keys(FAILED, "key", outcome.json)
    assert_keys(ERROR, "key of `error`", outcome.json["error"])
    assert present == {"image_url", "saved_at"} & set(outcome.json["error"])


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: row["action"].strip("`"))
def test_json_of_the_other_actions(row: dict[str, str], run: Callable[..., Any], gateway: Gateway, photo: Path) -> None:
    """--dry-run, --check and --list-models with keys of their own."""
    named = set(re.findall("`([a-z_]+)`", row["keys"]))
    flag, keys = code(row["action"]), set()
    for given in ([], ["--model", "gpt-image-2", "--reference-image", photo]) if flag == "--dry-run" else ([],):
        outcome = run(flag, *(["--prompt", "x", *given] if flag == "--dry-run" else given), "--json")
        assert outcome.json["ok"] is True and outcome.json["warnings"] == []
        keys |= set(outcome.json) - {"ok", "warnings"}
    if flag == "--list-models":
        keys |= set(outcome.json["models"][0])
    assert keys == named


# --- Links, files, words ---

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose_of(name: str) -> str:
    return "\n".join(line for lines in parsed(name)[0].values() for line in lines)


@pytest.mark.parametrize(
    "name, link", [(name, link) for name in NAMES for link in LINK.findall(prose_of(name)) if ":" not in link]
)
def test_link(name: str, link: str) -> None:
    """A link to a file or a section that is not there."""
    path, _, anchor = unquote(link).partition("#")
    target = (ROOT / name).parent / path if path else ROOT / name
    assert target.exists(), link
    if anchor:
        assert anchor in parsed(target.resolve().relative_to(ROOT).as_posix())[0]


@each_paper
def test_links_stay_in_the_folder(name: str) -> None:
    """Links that break when the skill is installed alone; and the papers' only outside addresses."""
    hosts = set(re.findall(r"https?://([\w.-]+)", read(name)))
    assert hosts <= {"docs.cloubic.com", "docs.astral.sh", "api.omnimaas.com", "images.example.com", "127.0.0.1"}


@each_paper
def test_named_files_exist(name: str) -> None:
    """A file that a reader is sent to and cannot find."""
    named = re.findall(r"(?<![\w/~.])((?:scripts|tests|references)/[\w.-]+\.\w+)", read(name))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_paper_is_reachable() -> None:
    """A paper that no index leads to."""
    index = prose("SKILL.md", "section-index")
    assert all(f"({path})" in index for path in NAMES[2:])
    assert sorted(path.name for path in (ROOT / "references").glob("*.md")) == sorted(Path(n).name for n in NAMES[2:])
    for name in NAMES[2:]:
        for section in list(parsed(name)[0])[2:]:
            level = next(
                line for line in read(name).splitlines() if re.match("#+ ", line) and slug(line.lstrip("# ")) == section
            )
            if level.startswith("## "):
                assert f"({name}#{section})" in index, f"{name}#{section}"


SECTION_INDEX = {
    "SKILL.md": (
        "How long to wait", "Onboarding", "Security", "Local-proxy bypass", "Engagement Principles",
        "Execution Procedure", "Caller Contract", "Tooling", "Section Index",
    ),
    MODELS: ("Family Routing", "Model Catalogue", "Decision Tree"),
    SPEC: (
        "CLI Flags", "Aspect Ratio → OpenAI Size Mapping", "API Key + Base URL Resolution", "JSON Output",
        "Many pictures",
    ),
    "references/reference-image-handling.md": ("The 524 Finding", "Auto-Resize Rule", "Multi-Reference Constraints"),
    ERRORS: ("Common Failure Modes", "Retry Patterns"),
}  # fmt: skip


@pytest.mark.parametrize("name", SECTION_INDEX)
def test_sections(name: str) -> None:
    """The sections that other skills link to."""
    outside = re.sub(r"^```.*?^```$", "", read(name), flags=re.M | re.S)
    assert tuple(re.findall(r"^## (.+)$", outside, re.M)) == SECTION_INDEX[name]


def test_procedure_names_functions() -> None:
    """A step that points at a function which is gone."""
    for row in tables("SKILL.md", "execution-procedure")[0]:
        for name in re.findall("`([^`]+)`", row["function"]):
            assert callable(getattr(generate, name)), name


def test_time_to_allow() -> None:
    """An agent that stops its shell before the picture is there, and pays for nothing."""
    text, defaults = prose("SKILL.md", "how-long-to-wait"), generate.Args("x")
    for model in (generate.DEFAULT_MODEL, "gpt-image-2"):
        assert generate.find_model(model).typical in text
    assert f"{defaults.timeout:g} s unless" in text and f"up to {defaults.attempts} attempts" in text
    longest = defaults.attempts * defaults.timeout + (defaults.attempts - 1) * generate.MAX_RETRY_AFTER_S
    assert longest <= int(re.search(r"allow (\d+) s", text)[1]) <= longest + 120


def test_limits_in_words() -> None:
    """Numbers in the sentences: pixels, bytes, prompt, connecting."""
    rule = prose("references/reference-image-handling.md", "auto-resize-rule")
    assert f"at most {generate.REFERENCE_EDGES_PX[0]} pixels" in rule and "at most 1 MiB" in rule
    assert inspect.signature(generate.maybe_resize).parameters["max_bytes"].default == 2**20
    assert f"connecting gets {generate.CONNECT_TIMEOUT_S:g} of them" in FLAGS["--timeout"]["meaning"]
    for prompt, good in (("x" * 4000, True), ("x" * 4001, False)):
        try:
            assert generate.validate_args(generate.Args(prompt)) and good
        except generate.UsageError:
            assert not good
    assert "at most 4000 characters" in FLAGS["--prompt"]["meaning"]


def sentences(name: str) -> Iterator[str]:
    """The sentences of a paper's prose and cells, the quoted onboarding message left out."""
    for line in prose_of(name).splitlines():
        for sentence in re.split(r"(?<=[.:!?。]) |\|", "" if line.startswith(">") else line):
            words = re.sub(r"\s+", " ", LINK.sub("", sentence)).strip(" -*`")
            if len(words) >= 40:
                yield words


def test_nothing_is_said_twice() -> None:
    """The same sentence in two papers, of which one will be forgotten at the next change."""
    seen: dict[str, str] = {}
    twice = [
        (words, name, seen[words])
        for name in NAMES
        for words in sentences(name)
        if seen.setdefault(words, name) != name
    ]
    assert twice == []


# --- The skill's front matter ---

TRIGGERS = (
    "generate an image", "make a picture", "create a visual", "render this", "edit this image",
    "做一张图", "生成图片", "改这张图",
)  # fmt: skip
CALLERS = ("main-image", "detail-page", "ad-creative", "social-post", "multi-angle")


@functools.cache
def front_matter() -> dict[str, Any]:
    """The front matter, read as the small part of YAML that it may use: plain, quoted, and one level of nesting."""
    _, head, _ = re.split(r"^---$\n?", read("SKILL.md"), maxsplit=2, flags=re.M)
    top: dict[str, Any] = {}
    for line in head.splitlines():
        key, value = re.fullmatch(r"( *[a-z_]+):(?: (.+))?", line).groups()
        if value and value[0] in "'\"":
            assert value[-1] == value[0] and value[0] not in value[1:-1], f"{key} needs escapes: avoid them"
            value = value[1:-1]
        elif value:
            assert not re.search(r": | #|^[\d&*!|>%@\[{]", value), f"{key} needs quotes"
        if key.startswith("  "):
            top["metadata"][key.strip()] = value
        else:
            top[key] = value or {}
    return top


def test_front_matter_keys() -> None:
    """A front matter that a host refuses."""
    facts = front_matter()
    assert read("SKILL.md").startswith("---\n")
    assert list(facts) == ["name", "description", "license", "metadata"]
    assert facts["name"] == "product-shots-image-gen" and facts["license"] == "MIT"
    assert facts["metadata"] and all(isinstance(value, str) for value in facts["metadata"].values())
    assert facts["metadata"]["version"] == generate.VERSION


def test_description() -> None:
    """A description that is cut off, or that no request brings up."""
    text = front_matter()["description"]
    assert 200 < len(text) <= 1024 and not re.search("[<>]", text)
    for phrase in TRIGGERS:
        assert f'"{phrase}"' in text
    for caller in CALLERS:
        assert caller in text


def test_skill_is_short() -> None:
    """An agent's patience, and its context."""
    assert len(read("SKILL.md").splitlines()) < 300


def test_onboarding_message(cli: Callable[..., Any]) -> None:
    """The one text that must be word for word the same in the skill and in the program."""
    quoted = re.findall(r"^> ?(.*)$", read("SKILL.md"), re.M)
    assert "\n".join(quoted) == generate.ONBOARDING
    outcome = cli("--prompt", "a cup")
    assert (outcome.code, outcome.out, outcome.err) == (3, "", generate.ONBOARDING + "\n")


def test_licence() -> None:
    """The licence that the front matter and the README name."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License\n") and "product-shots-image-gen contributors" in text


def test_picture() -> None:
    """The README's picture: there, small, whole, described."""
    alt, path = re.search(r"!\[([^\]]+)\]\(([^)]+)\)", read("README.md")).groups()
    assert len(alt) > 20 and os.path.getsize(ROOT / path) < 60_000
    with Image.open(ROOT / path) as image:
        image.load()
        assert (image.format, image.size) == ("JPEG", (480, 480))


# --- Code ---


@pytest.mark.parametrize("block", all_blocks("python"), ids=str)
def test_python_parses(block: Block) -> None:
    """An example that ends in a SyntaxError."""
    ast.parse(block.text)


@pytest.mark.parametrize("block", all_blocks("bash", "console"), ids=str)
def test_shell_parses(block: Block) -> None:
    """An example that ends in a syntax error of the shell."""
    text = block.text if block.language == "bash" else "\n".join(command for command, _ in dialogue(block.text))
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_block_is_one_that_is_checked() -> None:
    """A language, or none at all, that no test looks at."""
    languages = {block.language for name in NAMES for block in parsed(name)[1]}
    assert languages == {"bash", "console", "python", "text"}


# --- Examples: run, and compared with what the papers show ---

READER = "/home/mia"  # whose home the examples were run in
SHOTS = "cup-front\ta white cup, front view\ncup-side\ta white cup, from the side\ncup-top\ta white cup, from above\n"
REPLIES = {  # examples that need a gateway with a bad day, by a word of theirs
    "--reference-image ~/shop/shoe.jpeg --output ~/shop/marble.jpeg": [
        Reply(524, body="<title>A timeout occurred</title>")
    ]
}
CHANGING = re.compile(
    r"(?P<bytes>\b\d+ bytes\b)|(?P<seconds>\b\d+\.\d+ s\b)|(?P<port>127\.0\.0\.1:\d+)"
    r"|(?P<json>\"(?:bytes|elapsed_s)\": [\d.]+)|(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)|(?P<log>\t\s*\d+\.\d+\t)"
    r"|(?P<version>(?:python|requests|[Pp]illow) +[\d.]+)"
)


def dialogue(text: str) -> list[tuple[str, str]]:
    """A console block as (command, output) pairs; a command goes on after a backslash at the end of its line."""
    pairs: list[list[str]] = []
    for line in text.splitlines(keepends=True):
        if line.startswith("$ "):
            pairs.append([line[2:], ""])
        else:
            pairs[-1][not pairs[-1][0].endswith("\\\n")] += line
    return [(command, output) for command, output in pairs]


def levelled(text: str) -> str:
    """Output without what differs from run to run: bytes, seconds, ports, times and versions."""
    return CHANGING.sub(lambda match: f"<{match.lastgroup}>", text)


class Reader:
    """Someone who has this folder in their home and types what the papers show, with a stand-in serving."""

    def __init__(self, home: Path) -> None:
        self.home, self.skill, self.shop = home, home / "product-shots-image-gen", home / "shop"
        self.skill.mkdir(parents=True)
        self.shop.mkdir()
        for name in ("scripts", "tests", "references"):
            (self.skill / name).symlink_to(ROOT / name)
        shims = home / ".bin"
        shims.mkdir()
        (shims / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        (shims / "python3").chmod(0o755)
        self.environment = {**os.environ, "HOME": str(home), "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}"}
        self.environment["PYTHONDONTWRITEBYTECODE"] = "1"
        (self.shop / "shots.tsv").write_text(SHOTS, encoding="utf-8")
        (self.shop / "notes.png").write_text("<html>not a picture</html>")
        draw_props(self.shop)

    def type(self, commands: list[str], *replies: Reply, cwd: Path | None = None) -> list[str]:
        """The output of each command, typed one after another into one shell."""
        end = "\x1e"
        script = "".join(f"{command}\nprintf '{end}'\n" for command in commands)
        with Gateway() as gateway:
            gateway.answer(*replies)
            given = {"OMNIMAAS_API_KEY": gateway.key, "OMNIMAAS_BASE_URL": gateway.url, **self.environment}
            options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "timeout": 120}
            done = subprocess.run(
                ["bash", "-c", script],
                cwd=cwd or self.skill,
                env=given,
                stdin=subprocess.DEVNULL,
                check=False,
                **options,
            )
        output = (
            done.stdout.decode("utf-8").replace(os.path.realpath(self.home), READER).replace(str(self.home), READER)
        )
        return output.split(end)[:-1]


def draw_props(shop: Path) -> None:
    """What the examples photograph: a scene, its mask, and a shoe straight from a camera."""
    scene = Image.linear_gradient("L").resize((1024, 768)).convert("RGB")
    scene.save(shop / "scene.png")
    hole = scene.convert("RGBA")
    ImageDraw.Draw(hole).rectangle((0, 0, 1024, 300), fill=(0, 0, 0, 0))
    hole.save(shop / "mask.png")
    Image.effect_noise((1000, 750), 60).resize((4000, 3000)).convert("RGB").save(shop / "shoe.jpeg", quality=90)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpeg"
    Image.effect_noise((320, 240), 60).save(path)
    return path


@pytest.fixture
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("reader") / "mia")


def lay_out_files(block: Block, folder: Path) -> None:
    """The blocks of the same paper that begin with a file's name, as these files."""
    for other in parsed(block.paper)[1]:
        if named := re.match(r"# ([\w.]+)\n", other.text):
            (folder / named[1]).write_text(other.text, encoding="utf-8")


def in_any_order(text: str) -> str:
    """The lines sorted: eight pictures at a time are done in any order."""
    return "".join(sorted(text.splitlines(keepends=True)))


def replay(block: Block, reader: Reader) -> str:
    """A console block with the output that its commands give now."""
    lay_out_files(block, reader.shop)
    replies = next((replies for words, replies in REPLIES.items() if words in block.text), [])
    commands = [command for command, _ in dialogue(block.text)]
    outputs = reader.type(commands, *replies)
    assert len(outputs) == len(commands)
    return "".join(f"$ {command}{output}" for command, output in zip(commands, outputs))


@pytest.mark.slow
@pytest.mark.parametrize("block", all_blocks("console"), ids=str)
def test_console_example(block: Block, reader: Reader) -> None:
    """Output in the papers that nobody ever saw."""
    for tool in ("parallel", "flock"):
        if "parallel" in block.text and not shutil.which(tool):
            pytest.skip(f"{tool} is not installed here")
    shown, real = block.text, replay(block, reader)
    if "parallel" in block.text:
        shown, real = in_any_order(shown), in_any_order(real)
    assert levelled(real) == levelled(shown)


def python_examples() -> list[tuple[Block, Block]]:
    """Python blocks and the text block that shows what they print."""
    pairs = []
    for name in NAMES:
        blocks = parsed(name)[1]
        pairs += [
            pair for pair in zip(blocks, blocks[1:]) if (pair[0].language, pair[1].language) == ("python", "text")
        ]
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("block, shown", python_examples(), ids=str)
def test_python_example(block: Block, shown: Block, reader: Reader) -> None:
    """A snippet that does not do what it says."""
    (reader.shop / "example.py").write_text(block.text, encoding="utf-8")
    [output] = reader.type(["python3 example.py"], cwd=reader.shop)
    assert levelled(output) == levelled(shown.text)


def test_every_python_block_is_run() -> None:
    """A snippet that slipped through: it prints what the next block shows, or is a file that a console block runs."""
    shown = {block for block, _ in python_examples()}
    for block in all_blocks("python"):
        named = re.match(r"# ([\w.]+)\n", block.text)
        assert block in shown or any(f"python3 {named[1]}" in other.text for other in all_blocks("console"))


def test_list_of_many_pictures() -> None:
    """The list that the engines share is the one that was run."""
    assert SHOTS in [block.text for block in parsed(SPEC)[1] if block.language == "text"]


TWO_COMMANDS = [
    "bash scripts/setup.sh && python3 tests/gateway.py -- "
    'python3 scripts/generate.py --prompt "a red apple on wood" --output apple.jpeg',
    "bash tests/run.sh",
]


def test_first_command(reader: Reader) -> None:
    """The first thing that a newcomer types, set-up aside: it works and shows what the README shows."""
    blocks = parsed("README.md")[1]
    assert blocks[0].text.splitlines() == TWO_COMMANDS
    [output] = reader.type([TWO_COMMANDS[0].split(" && ")[1]])
    assert levelled(output) == levelled(blocks[1].text)
    with Image.open(reader.skill / "apple.jpeg") as image:
        image.load()
        assert image.format == "JPEG"


@pytest.mark.slow
def test_chinese_quick_start(reader: Reader) -> None:
    """The same for readers of Chinese: every picture that their section makes."""
    first, second = (block for block in parsed("README.md")[1] if block.section == "中文快速上手")
    commands = [line for line in first.text.splitlines() if "setup.sh" not in line]
    commands += [line for line in second.text.splitlines() if not line.startswith("export OMNIMAAS_API_KEY")]
    outputs = reader.type([f"{command} > /dev/null && echo made" for command in commands])
    assert [output.splitlines()[-1] for output in outputs] == ["made"] * 5
    assert {path.name for path in reader.skill.glob("*.*eg")} | {path.name for path in reader.skill.glob("*.png")} == {
        "apple.jpeg", "marble.jpeg", "poster.png",
    }  # fmt: skip


def test_json_example_is_json() -> None:
    """Pasted JSON that was shortened by hand."""
    [block] = [block for block in all_blocks("console") if block.section == "json-output"]
    for _, output in dialogue(block.text):
        assert isinstance(json.loads(output), dict)
