"""The papers say what the program does: each flag, row, key, link, file and example is tried.

'sqlite-utils: docs tested against the program (every flag documented, every table row true).'
"""

from __future__ import annotations

import base64
import functools
import inspect
import itertools
import json
import os
import re
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import generate
import pytest
from conftest import MODELS, Run
from gateway import Gateway, Reply
from pictures import picture
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
REFERENCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("references/*.md"))
NAMES = ("README.md", "SKILL.md", *REFERENCES)
SPEC = "references/parameter-spec.md"
CATALOGUE = "references/model-selection.md"
ERRORS = "references/error-handling.md"
IMAGES = "references/reference-image-handling.md"
each_paper = pytest.mark.parametrize("name", NAMES)


# --- Reading markdown ---


class Block(NamedTuple):
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


FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.M)
HEADING = re.compile(r"^#{1,6} (.+)$", re.M)


def outside(text: str) -> str:
    """A paper, or its beginning, without the fenced blocks."""
    return FENCE.sub("", text)


@functools.cache
def sections(name: str) -> dict[str, str]:
    """A paper's prose by its headings' slugs."""
    _, *pieces = HEADING.split(outside(read(name)))
    slugs = [slug(heading) for heading in pieces[::2]]
    assert len(slugs) == len({*slugs}), f"{name}: two headings of one name"
    return dict(zip(slugs, pieces[1::2]))


@functools.cache
def blocks(name: str) -> list[Block]:
    found = []
    for match in FENCE.finditer(read(name)):
        above = read(name)[: match.start()]
        section = slug(HEADING.findall(outside(above))[-1])  # that it stands under
        found.append(Block(name, section, above.count("\n") + 1, match[1], match[2]))
    return found


def cells(line: str) -> list[str]:
    found = re.split(r"(?<!\\)\|", line.strip())[1:-1]
    return [cell.strip().replace("\\|", "|") for cell in found]


def tables(name: str, section: str) -> list[list[dict[str, str]]]:
    """The tables of a section, each a list of rows by column title."""
    found = []
    lines = sections(name)[section].splitlines()
    for is_table, group in itertools.groupby(lines, lambda line: line.startswith("|")):
        if is_table:
            titles, _, *rows = map(cells, group)
            assert all(len(row) == len(titles) for row in rows), f"{name} {section}: a ragged row"
            found.append([dict(zip(titles, row)) for row in rows])
    return found


def first(row: dict[str, str]) -> str:
    return next(iter(row.values()))


def code(cell: str) -> str:
    """What stands between the back quotes of a cell that is nothing else."""
    match = re.fullmatch(r"`([^`]+)`", cell)
    assert match, f"{cell!r} is not code"
    return match[1]


def codes(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


def each_row(name: str, section: str, number: int = 0) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", tables(name, section)[number], ids=first)


def dry_run(run: Run, *argv: object) -> Any:
    return run("--prompt", "x", *argv, "--dry-run", "--json").json


# --- Flags, arguments and variables ---

FLAGS = {code(row["flag"]).split()[0]: row for row in tables(SPEC, "cli-flags")[0]}
DEFAULTS = {"--model": generate.DEFAULT_MODEL, "--timeout": f"{generate.TIMEOUT_S:g}", "--n": "1"}
FOREIGN = {  # flags of other programs in the papers
    *("--jobs", "--joblog", "--resume", "--resume-failed", "--colsep"),  # GNU parallel
    *("--nthreads", "--all"),  # dask worker, tests/run.sh
}


def test_flag_table(run: Run) -> None:
    """A flag that is nowhere explained, explained and gone, or takes another value."""
    shown = re.findall(r"^  (?:-h, )?(--[a-z][a-z-]*)(?: (\S+))?", run("--help").out, re.M)
    forms = {flag: re.sub(r"[{}]", "", value).replace(",", "|") for flag, value in shown}
    written = {flag: code(row["flag"])[len(flag) + 1 :] for flag, row in FLAGS.items()}
    assert written == forms
    for flag, value in forms.items():
        default = FLAGS[flag]["default"].strip("`")
        assert default == DEFAULTS.get(flag, default if value else "off"), flag


def test_flags_in_python() -> None:
    """A keyword that the table promises and Python refuses, or takes and the table hides."""
    names = {code(row["in Python"]) for row in FLAGS.values() if row["in Python"]}
    for function in (generate.generate, generate.generate_image):
        assert names == {*inspect.signature(function).parameters} - {"api_key", "base_url"}


def test_generation_table(gateway: Gateway) -> None:
    """An attribute of a result that is not there, or of another type."""
    made = generate.generate("a cup")
    rows = {code(row["`Generation`"]): row["type"] for row in tables(SPEC, "python")[0]}
    for name, words in rows.items():
        assert type(getattr(made, name)).__name__ in words.split(" or "), name
    told = set(re.findall(r"^(\w+)  +", inspect.getdoc(generate.Generation) or "", re.M))
    assert rows.keys() == told


@each_paper
def test_mentions(name: str) -> None:
    """A flag that does not exist, a file that a reader cannot find, a link out of the folder."""
    text = read(name)
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]|(?<![\w-])--n\b", text))
    assert flags <= FLAGS.keys() | FOREIGN
    files = re.findall(r"(?<![\w/~.])((?:scripts|tests|references)/[\w.-]+\.\w+)", text)
    assert [path for path in files if not (ROOT / path).exists()] == []
    hosts = {"docs.cloubic.com", "api.omnimaas.com", "images.example.com", "127.0.0.1"}
    assert set(re.findall(r"https?://([\w.-]+)", text)) <= hosts


def test_variables() -> None:
    """A variable that the program does not read, or reads and nobody is told of."""
    source = (ROOT / "scripts" / "generate.py").read_text(encoding="utf-8")
    named = {name for row in tables(SPEC, "other-variables")[0] for name in codes(first(row))}
    assert [name for name in named if f'"{name}"' not in source] == []
    assert named >= {*re.findall(r'^\w+_VARIABLE = "(\w+)"', source, re.M)}


def test_precedence() -> None:
    """A variable or file in another order than the program's."""
    rows = tables(SPEC, "api-key--base-url-resolution")[0]
    keys = [code(row["key"]) for row in rows]
    urls = [codes(row["base URL"])[:1] for row in rows]
    variables = generate.URL_VARIABLES
    assert keys == [*variables, *generate.KEY_FILES]
    assert urls == [*([url] for url in variables.values()), [generate.DEFAULT_BASE_URL], [], []]
    listed = re.findall(r"^\d\. .*`(.+)`$", sections("SKILL.md")["onboarding"], re.M)
    assert listed == keys


# --- Models, sizes and requests ---


def test_catalogue(run: Run) -> None:
    """A model, price, limit or size in the papers that is not the program's."""
    models = run("--list-models", "--json").json["models"]
    rows = tables(CATALOGUE, "model-catalogue")[0]
    for row, model in zip(rows, models):
        tokens = " / ".join(f"{price:.4f}" for price in model["token_prices_cny"] or ())
        wanted = [f"`{model['name']}`", model["family"], f"{model['price_cny']:.2f}", tokens]
        wanted += [str(model["max_references"]), str(model["max_n"]), model["typical"]]
        assert list(row.values()) == [*wanted, ", ".join(model["sizes"])]
    assert len(rows) == len(models) == len(generate.CATALOGUE)
    prices = {model["name"]: f"{model['price_cny']:.2f}" for model in models}
    chosen = [code(row["choose"]) for row in tables(CATALOGUE, "decision-tree")[0]]
    assert {*chosen} <= prices.keys() and chosen[-1] == generate.DEFAULT_MODEL
    money = sections("SKILL.md")["money"]
    told = re.findall(r"(g\w+-[\w.-]+\w) (?:costs about )?(\d\.\d\d)\b", money)
    assert len(told) == 3 and {*told} <= {*prices.items()}
    cost = 2 * float(prices[generate.DEFAULT_MODEL]) + 2 * float(prices["gpt-image-2"])
    assert f"about {cost:.2f} CNY" in sections("README.md")["with-a-real-key"]


RATIOS = tables(SPEC, "aspect-ratio--openai-size-mapping")[0]
SIZES = tables(SPEC, "platform-sizes")[0]
PATTERNS = tables(CATALOGUE, "family-routing")[1]
USE_CASES = tables(CATALOGUE, "use-cases")[0]
PLATFORMS = """2388x1024 1536x1024 1024x1024 1080x1350 1080x1920 1080x1080 1080x566 1440x2560
    1440x1800 1200x628 1200x627 1200x630 1200x1200 960x1200 1000x1500 1000x1000 900x383 1200x675
    1280x720 320x320"""


def test_tables_are_complete() -> None:
    """A ratio, a use case, or a size that callers need, and no row for it."""
    assert [first(row) for row in RATIOS] == ["none", *generate.OPENAI_SIZE_BY_RATIO]
    openai = [model.name for model in generate.CATALOGUE if model.family == "openai"]
    assert [code(title) for title in list(RATIOS[0])[1:]] == openai
    assert [code(row["`--fit`"]) for row in SIZES] == PLATFORMS.split()
    assert [code(first(row)) for row in USE_CASES] == list(generate.MODEL_BY_USE_CASE)


def shown_requests() -> Iterator[tuple[list[str], str, Any]]:
    """Arguments, a field of the request, and the value that the papers show for it."""
    for row in RATIOS:
        given = ["--aspect-ratio", row["ratio"]] if row["ratio"] != "none" else []
        for model, size in list(row.items())[1:]:
            yield ["--model", code(model), *given], "size", size
    for row in SIZES:
        fit = ["--fit", code(row["`--fit`"])]
        yield [*fit, "--model", "gpt-image-2"], "size", row["gpt-image-2 is asked for"]
        yield fit, "text", f"x (aspect ratio: {row['gemini is asked for']})"
    for row in USE_CASES:
        yield ["--use-case", code(row["use case"])], "model", code(row["model"])
    for row in tables(SPEC, "ratio-and-resolution-with-gemini")[0]:
        argv = shlex.split(code(row["add"]))
        name, _, value = argv[1].partition("=")
        yield argv, name, json.loads(value)


@pytest.mark.parametrize("argv, field, value", [*shown_requests()], ids=str)
def test_shown_request(argv: list[str], field: str, value: Any, run: Run, gateway: Gateway) -> None:
    """A size, ratio, model or field in the papers that the program does not ask for."""
    request = dry_run(run, *argv)["json"]
    if field == "text":
        request.update(request["messages"][0]["content"][0])
    assert request[field] == value


@pytest.mark.parametrize("row", PATTERNS, ids=first)
def test_pattern_row(row: dict[str, str], run: Run, gateway: Gateway) -> None:
    """A name that is not placed as the papers say, or takes other sizes or references."""
    like = dry_run(run, "--model", code(row["treated like"]), "--aspect-ratio", "16:9")
    for pattern in codes(row["names"]):
        argv = ("--model", pattern.replace("…", "x7"), "--aspect-ratio", "16:9")
        facts = dry_run(run, *argv)
        assert facts["url"].endswith(generate.ENDPOINTS[row["family"]])
        assert facts["json"].get("size") == like["json"].get("size")
        assert facts["estimated_cost_cny"] is None
        for more in (0, 1):  # one too many, and none is even looked at
            references = ["--reference-image", "nowhere.png"] * (int(row["references"]) + more)
            done = run("--prompt", "x", *argv, *references)
            assert (done.code, "nowhere.png" in done.err) == (2, not more)


@each_row(CATALOGUE, "family-routing")
def test_endpoint_row(row: dict[str, str], run: Run, gateway: Gateway, reference: Path) -> None:
    """Requests that go elsewhere than the papers say."""
    for given in {"no": [0], "yes": [1], "either": [0, 1]}[row["references"]]:
        references = ("--reference-image", reference)[: 2 * given]
        facts = dry_run(run, "--model", MODELS[row["family"]], *references)
        assert facts["url"].endswith("/v1" + code(row["endpoint"]))
        assert ("json" in facts) == ("JSON" in row["the request"])


# --- Errors ---


def test_exit_codes(run: Run) -> None:
    """A code, kind, bill or class in the papers, in the program and in --help that differ."""
    listed = tables(ERRORS, "common-failure-modes")[0]
    rows = [(int(row["code"]), row["kind"].strip("`"), row["billed"]) for row in listed]
    assert rows == sorted(rows, key=lambda row: row[0])
    assert sorted(rows[1:]) == sorted(row[:3] for row in generate.EXIT_CODES if row[0])
    helped = run("--help").out
    for number, kind, billed in rows[1:]:
        assert re.search(rf"^ +{number} +{kind} +{billed} ", helped, re.M), kind
    named = set(re.findall(r"`(\w+Error|Interrupted)`", outside(read(ERRORS))))
    classes = {error.__name__ for error in generate.ImageGenError.__subclasses__()}
    assert named == classes | {"ImageGenError"}
    explained = [int(row["code"]) for row in tables("README.md", "when-it-fails")[0]]
    assert explained == sorted({row[0] for row in rows[1:]})
    fails = [(int(row["code"]), row["billed"]) for row in tables("SKILL.md", "when-it-fails")[0]]
    assert fails == sorted({(row[0], row[2]) for row in rows[1:]})


def failed(answered: int, **facts: Any) -> Reply:
    return Reply(answered, body={"error": facts})


def says(words: str) -> Reply:
    return Reply(body={"choices": [{"message": {"content": words}}]})


GONE = Reply(body={"data": [{"url": "http://127.0.0.1:9/gone.png"}]})
DRAFT = {"type": "image_generation.partial_image", "partial_image_index": 0}
WORDS = {  # a word in the row of a failure, and what a gateway then answers
    "the key": failed(400, code="invalid_api_key"),
    "RESOURCE_EXHAUSTED": failed(429, status="RESOURCE_EXHAUSTED"),
    "credit": failed(500, code="insufficient_user_quota"),
    "reset": Reply(drop="before"),
    "stream": Reply(events=[DRAFT]),
    "moderation": failed(400, code="moderation_blocked"),
    "word filter": failed(500, code="sensitive_words_detected"),
    "refusal": Reply(body={"choices": [{"message": {"refusal": "I will not draw that."}}]}),
    "content_filter": Reply(body={"choices": [{"finish_reason": "content_filter"}]}),
    "unknown model": failed(503, code="model_not_found"),
    "redirect": Reply(307, {"Location": "https://images.example.com/v1"}),
    "with words": says("Which cup?"),
    "I'm sorry": says("I'm sorry, but I can't create that."),
    "web page": Reply(body="<html><title>Welcome</title></html>"),
    "task": Reply(body={"task_id": "t-1", "status": "queued"}),
    "nothing": Reply(body={"choices": []}),
    "a link": GONE,
    "be reached": None,
}


def answers_of(text: str) -> list[Reply | None]:
    """What the words and statuses of a row stand for."""
    text = text.replace("`", "")
    replies = [reply for word, reply in WORDS.items() if word in text]
    return [*replies, *(Reply(int(status)) for status in re.findall(r"\b[345]\d\d\b", text))]


@each_row(ERRORS, "common-failure-modes", 1)
def test_failure_row(
    row: Any, run: Run, gateway: Gateway, monkeypatch: Any, short_waits: None
) -> None:
    """What gateways do, and a kind or a bill that is not the one in the papers."""
    assert answers_of(row["the gateway"]), "nobody has ever seen this happen"
    for reply in answers_of(row["the gateway"]):
        if reply is None:
            monkeypatch.setenv("OMNIMAAS_BASE_URL", "http://127.0.0.1:9/v1")
        else:
            gateway.answer(reply)
        done = run("--prompt", "a cup", "--json")
        error = done.json["error"]
        assert [error["kind"], error["billed"]] == [codes(row["kind"])[0], row["billed"]]
        assert error["retryable"] == ("retryable" in row["kind"])
        lines = {"no": "not billed", "maybe": "may have been billed: up", "yes": "billed: about"}
        assert done.err.splitlines()[-1].startswith(f"[image-gen] {lines[row['billed']]}")


@pytest.mark.parametrize("row", tables(ERRORS, "retry-patterns")[0][:-1], ids=first)
def test_retry_row(
    row: Any, run: Run, gateway: Gateway, reference: Path, short_waits: None
) -> None:
    """A second bill that the papers rule out, or a retry that they promise."""
    given = () if row[""] == "text-to-image" else ("--reference-image", reference)
    for reply in answers_of(row[""]) or [Reply(503)]:
        gateway.requests.clear()
        gateway.reset()
        gateway.answer_always(reply)
        assert run("--prompt", "a cup", *given).code != 0
        assert len(gateway.calls) == (3 if row["tried again"].startswith("yes") else 1)


# --- Numbers, contracts and indexes ---


def test_caller_contract() -> None:
    """A field that nothing takes, a step of the procedure whose function is gone."""
    rows = tables("SKILL.md", "caller-contract")[0]
    taken = inspect.signature(generate.generate_image).parameters
    fields = {code(row["you pass"]).replace("output", "output_path"): row for row in rows}
    assert fields.keys() <= taken.keys() and "n" in fields
    assert [name for name, row in fields.items() if row["required"] == "yes"] == ["prompt"]
    for row in tables("SKILL.md", "execution-procedure")[0]:
        for name in codes(row["function"]):
            assert callable(getattr(generate, name)), name


def test_numbers() -> None:
    """A time limit with which an agent stops its shell too soon, and other numbers in words."""
    waits = [0, *generate.RETRY_WAITS_S, generate.RETRY_WAITS_S[-1]]
    rows = tables(ERRORS, "retry-patterns")[1]
    assert [row["waits at least"] for row in rows] == [f"{wait:g} s" for wait in waits]
    text = sections("SKILL.md")["how-long-to-wait"]
    longest = 3 * generate.TIMEOUT_S + 2 * generate.MAX_RETRY_AFTER_S
    assert longest <= int(re.findall(r"allow (\d+) s", text)[0]) <= longest + 120
    assert int(re.findall(r"limit to (\d+) s", text)[0]) > generate.TIMEOUT_S
    assert all(model.typical in text for model in generate.CATALOGUE)
    assert f"{generate.CONNECT_TIMEOUT_S:g} of them" in FLAGS["--timeout"]["meaning"]
    limits = inspect.signature(generate.maybe_resize).parameters
    rule = sections(IMAGES)["auto-resize-rule"]
    assert f"at most {limits['max_dim'].default} pixels" in rule and "at most 1 MiB" in rule
    links = sections(IMAGES)["links"]
    assert f"within {generate.FETCH_TIMEOUT_S:g} seconds" in links
    assert f"up to {generate.MAX_LINKED_REFERENCE_BYTES // 10**6} MB" in links


def test_layout() -> None:
    """A part of the program that README leaves out, or that is not where it says."""
    source = (ROOT / "scripts" / "generate.py").read_text(encoding="utf-8")
    parts = re.findall(r"^# --- ([\w ]+?)(?::.*)? ---$", source, re.M)
    assert [row["part"] for row in tables("README.md", "development")[0]] == parts


def test_index_is_complete() -> None:
    """A paper or a section of it that the index does not lead to."""
    index, contents = (
        sections("SKILL.md")[name] for name in ("section-index", "toc-of-module-files")
    )
    for name in REFERENCES:
        assert f"({name})" in index and f"({name})" in contents
        for heading in re.findall(r"^## (.+)$", outside(read(name)), re.M):
            assert f"[{heading}]({name}#{slug(heading)})" in index


def test_skill(run: Run) -> None:
    """A front matter that a host refuses, a description without triggers."""
    head = read("SKILL.md").split("---\n")[1]
    facts = dict(re.findall(r"""^ *(\w+): ['"]?(.*?)['"]?$""", head, re.M))
    assert (facts["name"], facts["license"]) == ("product-shots-image-gen", "MIT")
    assert run("--version").out.split()[-1] == facts["version"]
    text = facts["description"]
    assert 200 < len(text) <= 1024 and not re.search("[<>']", text)
    phrases = (
        "generate an image|make a picture|create a visual|render this|edit this image|做一张图"
    )
    assert all(f'"{phrase}"' in text for phrase in f"{phrases}|生成图片|改这张图".split("|"))
    callers = ("main-image", "detail-page", "ad-creative", "social-post", "multi-angle")
    assert all(caller in text for caller in callers)
    assert len(read("SKILL.md").splitlines()) < 300, "an agent's patience, and its context"


@each_paper
def test_links(name: str) -> None:
    """A link to a file or a section that is not there."""
    for link in re.findall(r"\[[^\]]*\]\(([^)\s:]+)\)", outside(read(name))):
        path, _, anchor = unquote(link).partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists()
        if anchor:
            assert anchor in sections(target.resolve().relative_to(ROOT).as_posix()), link


# --- JSON and the ledger ---

SAVED, FAILED, ERROR, OTHERS = tables(SPEC, "json-output")
TYPES = {"boolean": bool, "string": str, "list": list, "object": dict, "null": type(None)}


def check_keys(rows: list[dict[str, str]], column: str, facts: dict[str, Any]) -> None:
    """Every key is in the table, every key of the table is there, each of a type that it names."""
    documented = {code(row[column]): row["type"] for row in rows}
    always = {key for key, kind in documented.items() if "often absent" not in kind}
    assert always <= facts.keys() <= documented.keys()
    for key, value in facts.items():
        words = documented[key].split(",")[0].split(" or ")
        assert isinstance(value, tuple(TYPES.get(word, (int, float)) for word in words)), key


@pytest.mark.parametrize("model", [*MODELS.values(), "gpt-image-9"])
def test_json_of_a_success(model: str, run: Run, gateway: Gateway) -> None:
    """A key that a caller reads and the program never writes."""
    if model == "gpt-image-9":  # neither price nor usage is known
        gateway.answer(Reply(body=picture(80, 60, noise=True)))
    done = run("--prompt", "a cup", "--model", model, "--json")
    assert done.code == 0
    check_keys(SAVED, "key", done.json)


CUT = Reply(events=[{**DRAFT, "b64_json": base64.b64encode(picture()).decode()}])
ENDS = {"image_urls": GONE, "saved_at": Reply(body=picture(8, 8)), "draft_at": CUT}


@pytest.mark.parametrize("present", ENDS)
def test_json_of_a_failure(run: Run, gateway: Gateway, short_waits: None, present: str) -> None:
    """A key of an error that the papers lack or call by another name."""
    gateway.answer(ENDS[present])
    for argv in (("--prompt", "a cup"), ("--bad",)):
        facts = run(*argv, "--json").json
        check_keys(FAILED, "key", facts)
        check_keys(ERROR, "key of `error`", facts["error"])
        assert (present in facts["error"]) == (argv[0] == "--prompt")


@pytest.mark.parametrize("row", OTHERS, ids=first)
def test_json_of_other_actions(row: Any, run: Run, gateway: Gateway, reference: Path) -> None:
    """A key of --dry-run, --check, --list-models or --costs that the papers lack or make up."""
    assert run("--prompt", "x").code == 0
    argv = ["--prompt", "x", "--model", "gpt-image-2", code(row["action"]), "--json"]
    outputs = [run(*argv, *given).out for given in ((), ("--reference-image", reference))]
    documented = {*codes(row["keys"])} - generate.ENDPOINTS.keys()
    assert {key for output in outputs for key in json.loads(output)} <= documented | {
        "ok",
        "warnings",
    }
    assert [key for key in documented if f'"{key}":' not in "".join(outputs)] == []


def test_ledger(run: Run, gateway: Gateway, monkeypatch: Any) -> None:
    """A column that is not as the papers say, a query that finds nothing in a ledger."""
    assert run("--prompt", "a cup", "--output", "cup.jpeg").code == 0
    gateway.answer(Reply(524))
    assert run("--prompt", "a cup").code == 6
    path = run("--costs", "--json").json["ledger"]
    shown = re.findall(r"~/\S+\.db", sections(SPEC)["ledger"])
    assert {os.path.expanduser(name) for name in shown} == {path}
    with sqlite3.connect(path) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(calls)")]
        assert [code(row["column"]) for row in tables(SPEC, "ledger")[0]] == columns
        (queries,) = [block.text for block in blocks(SPEC) if block.language == "sql"]
        found = [connection.execute(query).fetchall() for query in queries.split(";")[:-1]]
    connection.close()
    assert [len(rows) for rows in found] == [1, 1, 1]


# --- Examples: parsed, run, and compared with what the papers show ---


def dialogue(text: str) -> list[tuple[str, str]]:
    """A console block as (command, output) pairs; a backslash at its end continues a command."""
    pairs: list[list[str]] = []
    for line in text.splitlines(keepends=True):
        if line.startswith("$ "):
            pairs.append([line[2:], ""])
        else:
            pairs[-1][not pairs[-1][0].endswith("\\\n")] += line
    return [(command, output) for command, output in pairs]


def examples() -> Iterator[tuple[Block, list[tuple[str, str]]]]:
    """Blocks whose output is shown: commands, and what they print."""
    for name in NAMES:
        for block, following in zip(blocks(name), [*blocks(name)[1:], None]):
            shown = following.text if following and following.language == "text" else None
            if block.language == "console":
                yield block, dialogue(block.text)
            elif block.language == "python" and shown is not None:
                yield block, [("cd ~/shop && python3 example.py", shown)]
            elif block.language == "bash" and shown is not None:
                yield block, [(block.text.splitlines()[0].split(" && ")[-1], shown)]


@pytest.mark.parametrize("block", [b for name in NAMES for b in blocks(name)], ids=str)
def test_block(block: Block) -> None:
    """Python that is neither run nor shown with its output."""
    assert block.language in ("bash", "console", "python", "sql", "text")
    if block.language == "python":
        file = re.match(r"# ([\w.]+)\n", block.text)
        is_run_elsewhere = file and f"$ python3 {file[1]}\n" in read(block.paper)
        assert block in dict(examples()) or is_run_elsewhere


KEYS = "prompt size aspect format reference_image image_url_list use_case n output"
BRIEFS = {  # what the examples of briefs save, and its pixels; None: whatever the model makes
    "main.jpeg": (1024, 1024),
    "main-callouts.jpeg": (1024, 1024),
    "banner.png": (2388, 1024),
    "ad-1200x628.png": (1200, 628),
    "ad-1080x1350.png": (1080, 1350),
    "ad-1080x1920.png": (1080, 1920),
}


def test_briefs(run: Run, gateway: Gateway, tmp_path: Path) -> None:
    """A brief's key without a flag, an example that does not make what the brief wants."""
    rows = tables("SKILL.md", "briefs-from-calling-skills")[0]
    assert [code(row["key"]) for row in rows] == KEYS.split()
    assert {code(row["flag"]) for row in rows} <= FLAGS.keys()
    (tmp_path / "shoe.jpeg").write_bytes(picture(400, 300))
    shown = [block for block in blocks("SKILL.md") if block.section == "briefs-from-calling-skills"]
    for command, output in (pair for block in shown for pair in dialogue(block.text)):
        program, _, *argv = shlex.split(
            command.replace("\\\n", "").replace("~/shop", str(tmp_path))
        )
        if program == "python3":
            done = run(*argv)
            told = done.out.replace(str(tmp_path), "/home/mia/shop")
            assert (done.code, told, done.err) == (0, output, "")
    assert {name: Image.open(tmp_path / name).size for name in BRIEFS} == BRIEFS
