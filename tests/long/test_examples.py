"""The papers' examples: typed into a shell, and compared with the output that the papers show."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gateway import Gateway, Received, Reply
from generate import ONBOARDING, BudgetError, ConfigError, QuotaError, UnavailableError
from PIL import Image, ImageDraw
from test_papers import ERRORS, NAMES, ROOT, SPEC, Block, blocks, examples, failed

pytestmark = pytest.mark.long

LISTS = [block.text for block in blocks(SPEC) if "\t" in block.text and block.language == "text"]
READER = "/home/mia"  # whose home the examples were run in
CHANGING = re.compile(
    r"\b\d+ bytes\b|\b\d+\.\d+ s\b|127\.0\.0\.1:\d+|\"(?:bytes|elapsed_s)\": [\d.]+|\t\s*\d+\.\d+\t"
    r"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|(?:python|requests|[Pp]illow) +[\d.]+"
)
TROUBLES = {  # what happens to prompts with these words in the examples
    "in a storm": [Reply(524, body="<title>A timeout occurred</title>")],
    "with words": [Reply(body={"choices": [{"message": {"content": "What shape of cup?"}}]})],
    "on a city street": [Reply(524, body="<title>A timeout occurred</title>")],
    "in light rain": [failed(400, code="moderation_blocked", message="Rejected by our filter.")],
    "on marble": [Reply(524, body="<title>A timeout occurred</title>")],
}


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
        for name, text in zip(("modules.tsv", "shots.tsv"), LISTS):
            (self.shop / name).write_text(text, encoding="utf-8")
        (self.shop / "notes.png").write_text("<html>not a picture</html>")
        scene = Image.linear_gradient("L").resize((1024, 768)).convert("RGB")
        scene.save(self.shop / "scene.png")
        scene.save(self.shop / "main.jpeg")
        hole = scene.convert("RGBA")
        ImageDraw.Draw(hole).rectangle((0, 0, 1024, 300), fill=(0, 0, 0, 0))
        hole.save(self.shop / "mask.png")
        shoe = Image.effect_noise((1000, 750), 60).resize((4000, 3000)).convert("RGB")
        shoe.save(self.shop / "shoe.jpeg", quality=90)

    def type(self, commands: list[str], troubles: bool = False) -> list[str]:
        """The output of each command, typed one after another into one shell."""
        script = "".join(f"{command}\nprintf '\x1e'\n" for command in commands)
        path = f"{self.home / '.bin'}{os.pathsep}{os.environ['PATH']}"
        with Gateway() as gateway:
            if troubles:
                gateway.answer_always(troubled())
            own = {"OMNIMAAS_API_KEY": gateway.key, "OMNIMAAS_BASE_URL": gateway.url}
            own.update(HOME=str(self.home), PATH=path, PYTHONDONTWRITEBYTECODE="1")
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            pipes.update(stdin=subprocess.DEVNULL, env={**os.environ, **own}, timeout=120)
            argv = ["bash", "-c", script]
            done = subprocess.run(argv, cwd=self.skill, check=False, **pipes)
        output = done.stdout.decode().replace(os.path.realpath(self.home), READER)
        return output.replace(str(self.home), READER).split("\x1e")[:-1]


def troubled() -> Any:
    """What a gateway answers in papers about troubles: each of TROUBLES in turn, then as usual."""
    left = {words: list(replies) for words, replies in TROUBLES.items()}

    def answer(received: Received) -> Reply:
        due = [replies for words, replies in left.items() if words.encode() in received.body]
        return due[0].pop(0) if due and due[0] else Reply()

    return answer


@pytest.fixture
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("reader") / "mia")


def put_scripts(paper: str, reader: Reader) -> None:
    """The scripts of a paper, under the names in their first lines."""
    for block in blocks(paper):
        named = re.match(r"# (\w+\.\w+)\n", block.text)
        if named:
            (reader.shop / named[1]).write_text(block.text, encoding="utf-8")


def rehearse(block: Block, pairs: list[tuple[str, str]], reader: Reader) -> list[str]:
    """What an example really prints, command by command."""
    put_scripts(block.paper, reader)
    (reader.shop / "example.py").write_text(block.text, encoding="utf-8")
    is_trouble = block.paper == ERRORS or re.search(r"series\.sh|in a storm", block.text)
    return reader.type([command for command, _ in pairs], bool(is_trouble))


@pytest.mark.parametrize("block, pairs", [*examples()], ids=lambda it: str(it)[:60])
def test_example(block: Block, pairs: list[tuple[str, str]], reader: Reader) -> None:
    """Output in the papers that nobody ever saw."""
    engine = "parallel " in block.text
    if engine and not (shutil.which("parallel") and shutil.which("flock")):
        pytest.skip("GNU parallel and flock are missing: apt-get install parallel util-linux")
    outputs = rehearse(block, pairs, reader)
    for (_, shown), real in zip(pairs, outputs):
        lines = [CHANGING.sub("#", text).splitlines() for text in (real, shown)]
        if block.language == "bash":  # only the end is shown
            lines[0] = lines[0][-len(lines[1]) :]
        ordered = [sorted(each) if engine else each for each in lines]
        assert ordered[0] == ordered[1]
    assert len(outputs) == len(pairs)


def test_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that mypy --strict rejects, though the papers call the library fully typed."""
    api = pytest.importorskip("mypy.api")
    samples = [block for name in NAMES for block in blocks(name) if block.language == "python"]
    for number, block in enumerate(samples):
        named = re.match(r"# (\w+\.py)\n", block.text)
        path = tmp_path / (named[1] if named else f"sample_{number}.py")
        path.write_text(block.text, encoding="utf-8")
    folders = os.pathsep.join([str(ROOT / "scripts"), str(tmp_path)])
    monkeypatch.setenv("MYPYPATH", folders)
    options = ["--strict", "--follow-imports=silent", "--untyped-calls-exclude=distributed"]
    files = map(str, tmp_path.glob("*.py"))
    told, faults, code = api.run([*options, f"--cache-dir={tmp_path / 'cache'}", *files])
    assert (code, faults) == (0, ""), told


LEFT_BEHIND = {  # by an earlier series: an error, and how the verdict on it begins
    "billed": (UnavailableError("Silence."), "unavailable, ask the user first"),
    "keyless": (ConfigError("No key.", ONBOARDING), "config, settle this"),
    "poor": (BudgetError("Too little."), "budget, settle this"),
    "busy": (QuotaError("Too many.", retryable=True), "quota, run series.sh again"),
    "killed": (None, "running or killed"),
}


def test_series_repeats_only_what_is_free(reader: Reader) -> None:
    """A second bill, a last line that is lost, a verdict that dies on a killed run."""
    put_scripts(SPEC, reader)
    folder = reader.shop / "series"
    folder.mkdir()
    for name, (error, _) in LEFT_BEHIND.items():
        text = json.dumps({"ok": False, "error": error.as_json()}) if error else ""
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    names = [*LEFT_BEHIND, "untried"]
    lines = "\n".join(f"{name}\ta shoe" for name in names)
    (reader.shop / "modules.tsv").write_text(lines, encoding="utf-8")
    generate = shlex.quote(f"{ROOT}/scripts/generate.py")
    again = f"GENERATE={generate} bash series.sh && python3 verdict.py"
    outputs = reader.type(["cd ~/shop && python3 verdict.py", again])
    made = {path.stem for path in folder.glob("*.jpeg")}
    assert made == {"keyless", "poor", "busy", "untried"}
    before, after = (
        dict(line.split(": ", 1) for line in output.splitlines()) for output in outputs
    )
    for name, (_, verdict) in LEFT_BEHIND.items():
        assert before[name].startswith(verdict)
        assert after[name] == ("saved, 1.0 CNY" if name in made else before[name])
    assert after["untried"] == "saved, 1.0 CNY"


def test_chinese_quick_start(reader: Reader) -> None:
    """Every command of the section for readers of Chinese ends well."""
    texts = "".join(each.text for each in blocks("README.md") if each.section == "中文快速上手")
    commands = re.findall(r"^python3 .*", texts, re.M)
    outputs = reader.type([f"{command} > /dev/null && echo made" for command in commands])
    assert [output.splitlines()[-1] for output in outputs] == ["made"] * 6
