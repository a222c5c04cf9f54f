"""The papers say what the program does: each flag, row, key, link, file and example is tried.

'sqlite-utils: docs tested against the program (every flag documented, every table row true).'
"""

from __future__ import annotations

import ast
import functools
import inspect
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
from typing import Any, NamedTuple
from urllib.parse import unquote

import generate
import pytest
from conftest import MODELS, Run, table
from gateway import Gateway, Reply
from pictures import picture
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
REFERENCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("references/*.md"))
NAMES = ("README.md", "SKILL.md", *REFERENCES)
SPEC, CATALOGUE = "references/parameter-spec.md", "references/model-selection.md"
ERRORS, IMAGES = "references/error-handling.md", "references/reference-image-handling.md"
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


FLAGS = {code(row["flag"]).split()[0]: row for row in tables(SPEC, "cli-flags")[0]}
DEFAULTS = {"--model": generate.DEFAULT_MODEL, "--timeout": f"{generate.TIMEOUT_S:g}", "--n": "1"}
FOREIGN = {  # flags of other programs in the papers
    *("--jobs", "--joblog", "--resume", "--resume-failed", "--colsep"),  # GNU parallel
    *("--port", "--nthreads", "--all"),  # tests/gateway.py, dask worker, tests/run.sh
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


def test_flags_in_python(clean_environment: None) -> None:
    """A keyword that the table promises and Python refuses, with the key in place of a picture."""
    names = {code(row["in Python"]) for row in FLAGS.values() if row["in Python"]}
    parameters = set(inspect.signature(generate.generate_image).parameters)
    assert names >= parameters - {"options", "api_key", "base_url", "reference_images"}
    for name in names - {"prompt"}:
        with pytest.raises(generate.ImageGenError):
            generate.generate_image(" ", **{name: None})


@each_paper
def test_no_unknown_flag(name: str) -> None:
    """A flag in an example or a sentence that does not exist."""
    found = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]|(?<![\w-])--n\b", read(name)))
    assert found <= FLAGS.keys() | FOREIGN


def test_catalogue(run: Run) -> None:
    """A model, price, limit or size in the papers that is not the program's."""
    models = run("--list-models", "--json").json["models"]
    rows = tables(CATALOGUE, "model-catalogue")[0]
    for row, model in zip(rows, models):
        numbers = [str(model["max_references"]), str(model["max_n"])]
        wanted = [f"`{model['name']}`", model["family"], f"{model['price_cny']:.2f}", *numbers]
        assert list(row.values()) == [*wanted, model["typical"], ", ".join(model["sizes"])]
    assert len(rows) == len(models) == len(generate.CATALOGUE)
    taken = [code(row["take"]) for row in tables(CATALOGUE, "decision-tree")[0]]
    assert {*taken} <= {model["name"] for model in models}
    assert taken[-1] == generate.DEFAULT_MODEL


@pytest.mark.parametrize("row", tables(CATALOGUE, "family-routing")[0], ids=first)
def test_endpoint_row(row: dict[str, str], run: Run, gateway: Gateway, reference: Path) -> None:
    """Requests that go elsewhere than the papers say, or hold other fields."""
    for given in {"no": [0], "yes": [1], "either": [0, 1]}[row["references"]]:
        argv = ("--prompt", "x", "--model", MODELS[row["family"]], "--dry-run")
        facts = json.loads(run(*argv, *("--reference-image", reference)[: 2 * given]).out)
        assert facts["url"].endswith("/v1" + code(row["endpoint"]))
        fields = facts["json" if "JSON" in row["the request"] else "fields"]
        openai = {"model", "prompt", "n", "size"}
        assert fields.keys() == (openai if row["family"] == "openai" else {"model", "messages"})
        assert [part["name"] for part in facts.get("files", ())] == ["image[]"] * ("files" in facts)


RATIOS = {row["ratio"]: row for row in tables(SPEC, "aspect-ratio--openai-size-mapping")[0]}


@pytest.mark.parametrize("ratio", RATIOS)
def test_ratio_row(ratio: str, run: Run, gateway: Gateway) -> None:
    """A pixel size in the papers that the program does not ask for."""
    assert list(RATIOS) == ["none", *generate.OPENAI_SIZE_BY_RATIO]
    given = () if ratio == "none" else ("--aspect-ratio", ratio)
    sizes = {code(title): size for title, size in RATIOS[ratio].items() if title != "ratio"}
    openai = {model.name for model in generate.CATALOGUE if model.family == "openai"}
    assert sizes.keys() == openai
    for model, size in sizes.items():
        facts = json.loads(run("--prompt", "x", "--model", model, *given, "--dry-run").out)
        assert facts["json"]["size"] == size, model


# --- Errors ---


def test_exit_codes(run: Run) -> None:
    """A code, kind, bill or class in the papers, in the program and in --help that differ."""
    table = tables(ERRORS, "common-failure-modes")[0]
    rows = [(int(row["code"]), row["kind"].strip("`"), row["billed"]) for row in table]
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


def failed(answered: int, **facts: Any) -> Reply:
    return Reply(answered, body={"error": facts})


GONE = Reply(body={"data": [{"url": "http://127.0.0.1:9/gone.png"}]})
WORDS = {  # a word in the row of a failure, and what a gateway then answers
    "the key": failed(400, code="invalid_api_key"),
    "RESOURCE_EXHAUSTED": failed(429, status="RESOURCE_EXHAUSTED"),
    "credit": failed(500, code="insufficient_user_quota"),
    "reset": Reply(drop="before"),
    "moderation": failed(400, code="moderation_blocked"),
    "word filter": failed(500, code="sensitive_words_detected"),
    "says no": Reply(body={"choices": [{"finish_reason": "content_filter"}]}),
    "unknown model": failed(503, code="model_not_found"),
    "with text": Reply(body={"choices": [{"message": {"content": "Which cup?"}}]}),
    "web page": Reply(body="<html><title>Welcome</title></html>"),
    "task": Reply(body={"task_id": "t-1", "status": "queued"}),
    "link": GONE,
    "be reached": None,
}


def answers_of(text: str) -> list[Reply | None]:
    """What the words and statuses of a row stand for."""
    text = text.replace("`", "")
    replies = [reply for word, reply in WORDS.items() if word in text]
    statuses = [] if "credit" in text else re.findall(r"\b[345]\d\d\b", text)
    return [*replies, *(Reply(int(status)) for status in statuses)]


@pytest.mark.parametrize("row", tables(ERRORS, "common-failure-modes")[1], ids=first)
def test_failure_row(
    row: Any, run: Run, gateway: Gateway, monkeypatch: Any, short_waits: None
) -> None:
    """What gateways do, and a kind that is not the one in the papers."""
    assert answers_of(row["the gateway"]), "nobody has ever seen this happen"
    for reply in answers_of(row["the gateway"]):
        if reply is None:
            monkeypatch.setenv("OMNIMAAS_BASE_URL", "http://127.0.0.1:9/v1")
        else:
            gateway.answer(reply)
        error = run("--prompt", "a cup", "--json").json["error"]
        assert error["kind"] == re.findall("`([a-z]+)`", row["kind"])[0]
        assert error["retryable"] or "retryable" not in row["kind"]


def test_retry_waits() -> None:
    """Waits and tries that the program does not use."""
    text, rows = sections(ERRORS)["retry-patterns"], tables(ERRORS, "retry-patterns")[1]
    waits = [0, *generate.RETRY_WAITS_S, generate.RETRY_WAITS_S[-1]]
    assert [row["wait at least"] for row in rows] == [f"{wait:g} s" for wait in waits]
    assert f"up to {generate.MAX_RETRY_AFTER_S:g} s" in text
    link = tables(ERRORS, "retry-patterns")[0][-1]
    assert link["tried again"].startswith(f"up to {generate.FETCH_TRIES} times")


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


def test_precedence() -> None:
    """A variable or file in another order than the program's."""
    rows = tables(SPEC, "api-key--base-url-resolution")[0]
    keys = [code(row["key"]) for row in rows]
    urls = [re.findall("`([^`]+)`", row["base URL"])[:1] for row in rows]
    variables = dict(generate.CONFIG_ROWS)
    assert keys == [*variables, *generate.KEY_FILES]
    assert urls == [*([url] for url in variables.values()), [generate.DEFAULT_BASE_URL], [], []]
    listed = re.findall(r"^\d\. .*`(.+)`$", sections("SKILL.md")["onboarding"], re.M)
    assert listed == keys


def test_caller_contract() -> None:
    """A field that nothing takes, a step of the procedure whose function is gone."""
    rows = tables("SKILL.md", "caller-contract")[0]
    taken = inspect.signature(generate.generate_image).parameters
    fields = {code(row["you pass"]).replace("output", "output_path"): row for row in rows}
    assert fields.keys() <= taken.keys()
    assert [name for name, row in fields.items() if row["required"] == "yes"] == ["prompt"]
    for row in tables("SKILL.md", "execution-procedure")[0]:
        for name in re.findall("`([^`]+)`", row["function"]):
            assert callable(getattr(generate, name)), name


def test_numbers() -> None:
    """A time limit with which an agent stops its shell too soon, and other numbers in words."""
    text = sections("SKILL.md")["how-long-to-wait"]
    longest = 3 * generate.TIMEOUT_S + 2 * generate.MAX_RETRY_AFTER_S
    assert longest <= int(re.findall(r"allow (\d+) s", text)[0]) <= longest + 120
    assert all(model.typical in text for model in generate.CATALOGUE)
    assert f"{generate.CONNECT_TIMEOUT_S:g} of them" in FLAGS["--timeout"]["meaning"]
    limits = inspect.signature(generate.maybe_resize).parameters
    rule = sections(IMAGES)["auto-resize-rule"]
    assert f"at most {limits['max_dim'].default} pixels" in rule and "at most 1 MiB" in rule


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


FAILURES = {  # flags, what the gateway answers, the key that comes and goes
    "usage": ("--bad", None, []),
    "dead link": ("--quiet", GONE, ["image_url"]),
    "too small": ("--quiet", Reply(body=picture(8, 8)), ["saved_at"]),
}


@table("flag, reply, present", FAILURES)
def test_json_of_a_failure(
    run: Run, gateway: Gateway, short_waits: None, flag: str, reply: Any, present: list[str]
) -> None:
    gateway.answer(reply or Reply())
    facts = run("--prompt", "a cup", flag, "--json").json
    check_keys(FAILED, "key", facts)
    check_keys(ERROR, "key of `error`", facts["error"])
    assert [key for key in ("image_url", "saved_at") if key in facts["error"]] == present


@pytest.mark.parametrize("row", OTHERS, ids=first)
def test_json_of_other_actions(row: Any, run: Run, gateway: Gateway, reference: Path) -> None:
    """Actions with keys of their own: --dry-run, --check, --list-models."""
    given: list[Any] = ["--prompt", "x", "--model", "gpt-image-2", code(row["action"]), "--json"]
    keys: set[str] = set()
    for argv in (given, [*given, "--reference-image", reference]):
        facts = run(*argv).json
        assert facts["ok"] is True
        keys |= {*facts, *(facts["models"][0] if isinstance(facts.get("models"), list) else ())}
    assert keys - {"ok", "warnings"} == set(re.findall("`([a-z_]+)`", row["keys"]))


LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
LINKS = [
    (name, link) for name in NAMES for link in LINK.findall(outside(read(name))) if ":" not in link
]


@pytest.mark.parametrize("name, link", LINKS)
def test_link(name: str, link: str) -> None:
    """A link to a file or a section that is not there."""
    path, _, anchor = unquote(link).partition("#")
    target = (ROOT / name).parent / path if path else ROOT / name
    assert target.exists()
    if anchor:
        assert anchor in sections(target.resolve().relative_to(ROOT).as_posix())


@each_paper
def test_files_and_hosts(name: str) -> None:
    """A file that a reader cannot find, a link out of the folder."""
    files = r"(?<![\w/~.])((?:scripts|tests|references)/[\w.-]+\.\w+)"
    assert [path for path in re.findall(files, read(name)) if not (ROOT / path).exists()] == []
    hosts = "docs.cloubic.com docs.astral.sh api.omnimaas.com images.example.com 127.0.0.1"
    assert set(re.findall(r"https?://([\w.-]+)", read(name))) <= {*hosts.split()}


def test_index_is_complete() -> None:
    """A paper or a section of it that the index does not lead to."""
    index = sections("SKILL.md")["section-index"]
    for name in REFERENCES:
        assert f"({name})" in index
        for heading in re.findall(r"^## (.+)$", outside(read(name)), re.M):
            assert f"[{heading}]({name}#{slug(heading)})" in index


def test_skill(run: Run) -> None:
    """A front matter that a host refuses, a description without triggers, another onboarding."""
    head = read("SKILL.md").split("---\n")[1]
    facts = dict(re.findall(r"""^ *(\w+): ['"]?(.*?)['"]?$""", head, re.M))
    assert (facts["name"], facts["license"]) == ("product-shots-image-gen", "MIT")
    assert run("--version").out.split()[-1] == facts["version"]
    text = facts["description"]
    assert 200 < len(text) <= 1024 and not re.search("[<>']", text)
    triggers = "generate an image|make a picture|create a visual|render this|edit this image"
    for phrase in f"{triggers}|做一张图|生成图片|改这张图".split("|"):
        assert f'"{phrase}"' in text
    for caller in ("main-image", "detail-page", "ad-creative", "social-post", "multi-angle"):
        assert caller in text
    assert len(read("SKILL.md").splitlines()) < 300, "an agent's patience, and its context"
    quoted = re.findall(r"^> ?(.*)$", read("SKILL.md"), re.M)
    done = run("--prompt", "a cup")  # 'the spec's onboarding message, word for word'
    assert (done.code, done.out, done.err) == (3, "", "\n".join(quoted) + "\n")


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


@pytest.mark.parametrize("block", [b for name in NAMES for b in blocks(name)], ids=str)
def test_block(block: Block) -> None:
    """An example with a syntax error, or Python that is neither run nor shown with its output."""
    assert block.language in ("bash", "console", "python", "text")
    if block.language == "python":
        ast.parse(block.text)
        file = re.match(r"# ([\w.]+)\n", block.text)
        run_elsewhere = file and f"$ python3 {file[1]}\n" in read(block.paper)
        assert block in dict(examples()) or run_elsewhere
    elif block.language != "text":
        lines = [command for command, _ in dialogue(block.text)] if "$ " in block.text else []
        text = "".join(lines) or block.text
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


SHOTS = next(block.text for block in blocks(SPEC) if block.language == "text")
READER = "/home/mia"  # whose home the examples were run in
CHANGING = re.compile(
    r"\b\d+ bytes\b|\b\d+\.\d+ s\b|127\.0\.0\.1:\d+|\"(?:bytes|elapsed_s)\": [\d.]+|\t\s*\d+\.\d+\t"
    r"|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ|(?:python|requests|[Pp]illow) +[\d.]+"
)


class Reader:
    """Someone with this folder in their home who types what the papers show to a stand-in."""

    def __init__(self, home: Path) -> None:
        self.home, self.skill, self.shop = home, home / "product-shots-image-gen", home / "shop"
        for folder in (self.skill, self.shop, home / ".bin"):
            folder.mkdir(parents=True)
        for name in ("scripts", "tests", "references"):
            (self.skill / name).symlink_to(ROOT / name)
        python = home / ".bin" / "python3"
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)
        (self.shop / "shots.tsv").write_text(SHOTS, encoding="utf-8")
        (self.shop / "notes.png").write_text("<html>not a picture</html>")
        scene = Image.linear_gradient("L").resize((1024, 768)).convert("RGB")
        scene.save(self.shop / "scene.png")
        hole = scene.convert("RGBA")
        ImageDraw.Draw(hole).rectangle((0, 0, 1024, 300), fill=(0, 0, 0, 0))
        hole.save(self.shop / "mask.png")
        shoe = Image.effect_noise((1000, 750), 60).resize((4000, 3000)).convert("RGB")
        shoe.save(self.shop / "shoe.jpeg", quality=90)

    def type(self, commands: list[str], *replies: Reply) -> list[str]:
        """The output of each command, typed one after another into one shell."""
        script = "".join(f"{command}\nprintf '\x1e'\n" for command in commands)
        path = f"{self.home / '.bin'}{os.pathsep}{os.environ['PATH']}"
        with Gateway() as gateway:
            gateway.answer(*replies)
            own = {"OMNIMAAS_API_KEY": gateway.key, "OMNIMAAS_BASE_URL": gateway.url}
            own.update(HOME=str(self.home), PATH=path, PYTHONDONTWRITEBYTECODE="1")
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            pipes.update(stdin=subprocess.DEVNULL, env={**os.environ, **own}, timeout=120)
            argv = ["bash", "-c", script]
            done = subprocess.run(argv, cwd=self.skill, check=False, **pipes)
        output = done.stdout.decode().replace(os.path.realpath(self.home), READER)
        return output.replace(str(self.home), READER).split("\x1e")[:-1]


@pytest.fixture
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("reader") / "mia")


def examples() -> Iterator[tuple[Block, list[tuple[str, str]]]]:
    """Blocks whose output is shown: commands, and what they print."""
    for name in NAMES:
        for block, following in zip(blocks(name), [*blocks(name)[1:], None]):
            if block.language == "console":
                yield block, dialogue(block.text)
            elif following and following.language == "text" and block.language == "python":
                yield block, [("cd ~/shop && python3 example.py", following.text)]
            elif following and following.language == "text":
                yield block, [(block.text.splitlines()[0].split(" && ")[-1], following.text)]


@pytest.mark.long
@pytest.mark.parametrize("block, pairs", [*examples()], ids=lambda it: str(it)[:60])
def test_example(block: Block, pairs: list[tuple[str, str]], reader: Reader) -> None:
    """Output in the papers that nobody ever saw."""
    engine = "parallel " in block.text
    if engine and not (shutil.which("parallel") and shutil.which("flock")):
        pytest.skip("GNU parallel and flock are missing: apt-get install parallel util-linux")
    for other in blocks(block.paper):
        named = re.match(r"# (\w+\.\w+)\n", other.text)
        name = "example.py" if other == block else named and named[1]
        (reader.shop / (name or "none")).write_text(other.text, encoding="utf-8")
    replies = [Reply(524, body="<title>A timeout occurred</title>")] * ("524" in block.text)
    outputs = reader.type([command for command, _ in pairs], *replies)
    for (_, shown), real in zip(pairs, outputs):
        lines = [CHANGING.sub("#", text).splitlines() for text in (real, shown)]
        ordered = [sorted(each) if engine else each for each in lines]
        assert ordered[0] == ordered[1]
    assert len(outputs) == len(pairs)


@pytest.mark.long
def test_chinese_quick_start(reader: Reader) -> None:
    """Every command of the section for readers of Chinese ends well."""
    texts = [each.text for each in blocks("README.md") if each.section == "中文快速上手"]
    lines = [line for text in texts for line in text.splitlines()]
    commands = [line for line in lines if not re.search("setup.sh|export", line)]
    outputs = reader.type([f"{command} > /dev/null && echo made" for command in commands])
    assert [output.splitlines()[-1] for output in outputs] == ["made"] * len(commands) != []
