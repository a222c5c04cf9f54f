"""Interrupts, kills, full disks and rivals at every moment of a run, with real processes.

The fears: half a file under the name that was asked for, a paid picture overwritten or lost, litter beside the output,
a traceback in place of a clean end.

Where a moment cannot be met by watching from outside, the process itself stops there: a `sitecustomize.py` on its
PYTHONPATH adds an audit hook (PEP 578) that pauses at one named event, or vetoes it, until the test lets it go on.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import pictures
import pytest
from conftest import SCRIPTS, table
from gateway import Gateway, Received, Reply
from PIL import Image

PICTURE = pictures.picture(120, 90, fmt="JPEG", noise=True)
OLD = pictures.picture(60, 80, fmt="JPEG", noise=True, seed=1)
SIGNALS = [signal.SIGINT, signal.SIGTERM]
MOMENTS = 30
AT_ONCE = 4  # runs in parallel where many are needed
PATIENCE_S = 30
SCRIPT = (SCRIPTS / "generate.py").read_text(encoding="utf-8")
HEAD_LINES = SCRIPT.count("\n", 0, SCRIPT.index("import argparse"))  # until then Python's own handlers are in place

both_signals = pytest.mark.parametrize("signum", SIGNALS, ids=[signum.name for signum in SIGNALS])


def reply_with(*data: bytes, **changes: Any) -> Reply:
    """A gemini answer with this picture; with several an openai one."""
    encoded = [base64.b64encode(each).decode() for each in data]
    if len(encoded) > 1:
        return Reply(body={"data": [{"b64_json": each} for each in encoded]}, **changes)
    content = f"![image](data:image/jpeg;base64,{encoded[0]})"
    return Reply(body={"choices": [{"message": {"content": content}}]}, **changes)


def prompt_of(received: Received) -> str:
    given = received.json
    return str(given.get("prompt") or given["messages"][0]["content"][0]["text"])


# --- A run that can be stopped where we like ---

HOOK = """
import atexit, os, sys

class Late:  # goes when the modules go, after Python has put the signals back to their defaults
    def __del__(self):
        self.pause()

def obey(order):
    verb, events, where, skip, said, go = order.split("|")
    left = [int(skip)]

    def pause(said=int(said), go=int(go), write=os.write, read=os.read):
        write(said, b"!")
        read(go, 1)

    def watch(event, args):
        if event in events.split(",") and where in str(args):
            left[0] -= 1
            if verb == "veto":
                raise PermissionError(1, "vetoed by the test")
            if left[0] == -1:
                pause()

    if events == "atexit":
        atexit.register(pause)
    elif events == "the end":
        sys.late = Late()
        sys.late.pause = pause
    else:
        sys.addaudithook(watch)

if os.environ.get("TEST_STAGE"):
    obey(os.environ["TEST_STAGE"])
"""


class Case:
    """A run of the program with folders of its own."""

    def __init__(
        self, start: Callable[..., Any], folder: Path, *words: object, name: str = "asked.jpeg", old: bytes = b""
    ):
        self.start, self.folder, self.words = start, folder, words
        self.out, self.tmp = folder / "out", folder / "tmp"
        self.asked = self.out / name
        self.old = old
        for path in (self.out, self.tmp):
            path.mkdir(parents=True)
        if old:
            self.asked.write_bytes(old)
        self.prompt = f"run {folder.name}"
        self.environment: dict[str, Any] = {"TMPDIR": str(self.tmp)}
        self.options: dict[str, Any] = {}
        self.process: Any = None

    def begin(self, *more: object) -> Case:
        words = ("--prompt", self.prompt, "--output", self.asked, *self.words, *more)
        self.process = self.start(*words, env=self.environment, cwd=self.folder, **self.options)
        return self

    def finish(self, timeout: float = PATIENCE_S) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def litter(self, told: str = "") -> list[str]:
        """All that lies about, apart from the asked file and from what was kept of the picture and told so."""
        found = [path for folder in (self.out, self.tmp) for path in folder.rglob("*") if path != self.asked]
        kept = [path for path in found if str(path) in told and path.parent == self.tmp]
        assert all(PICTURE.startswith(path.read_bytes()) for path in kept)
        return sorted(str(path.relative_to(self.folder)) for path in found if path not in kept)

    def sent(self, gateway: Gateway) -> bool:
        return any(prompt_of(call) == self.prompt for call in gateway.calls)

    def check(self, signum: int, gateway: Gateway) -> str:
        """What every interrupted run must hold to; returns how it ended."""
        code, out, err = self.finish()
        there = self.asked.read_bytes() if self.asked.exists() else b""
        story = f"exit {code}, {len(there)} bytes, litter {self.litter()}, stdout {out!r}, stderr {err!r}"
        assert there in (self.old, PICTURE), story
        assert not self.litter(err), story
        if died_before_the_script(code, signum, err) and not self.sent(gateway):
            return "early"
        assert not re.search("Traceback|Exception ignored|KeyboardInterrupt", err), story
        if code == 0:
            assert there == PICTURE and out == f"{self.asked}\n", story
            return "saved"
        assert code == 130, story
        return "interrupted"


def died_before_the_script(code: int, signum: int, err: str) -> bool:
    """In the first milliseconds Python itself starts and compiles the script, and its own ways to die are all there is.

    Then no line below the script's first ones has run: the signal killed it, or its traceback ends there.
    """
    lines = [int(line) for line in re.findall(r'generate\.py", line (\d+)', err)]
    by_python = code == -signum or "Fatal Python error" in err or err.strip() == "KeyboardInterrupt"
    return by_python and "[image-gen]" not in err and all(line <= HEAD_LINES for line in lines)


class Stage:
    """The moment at which a run stops: reached() waits for it, go_on() lets it pass."""

    def __init__(self, case: Case, hook: Path, events: str, where: str, skip: int = 0):
        self.said, said = os.pipe()
        go, self.go = os.pipe()
        os.set_inheritable(said, True)
        self.ends = (said, go)
        case.environment.update(PYTHONPATH=str(hook), TEST_STAGE=f"pause|{events}|{where}|{skip}|{said}|{go}")
        case.options["pass_fds"] = self.ends
        case.begin()
        for end in self.ends:
            os.close(end)

    def reached(self) -> bool:
        """False when the run ended without coming here."""
        ready, _, _ = select.select([self.said], [], [], PATIENCE_S)
        return bool(ready and os.read(self.said, 1))

    def go_on(self) -> None:
        with contextlib.suppress(OSError):  # the run may have ended
            os.write(self.go, b"!")

    def close(self) -> None:
        os.close(self.said)
        os.close(self.go)


ENDS = ("atexit", "the end")  # which a program may skip


@pytest.fixture
def hook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(HOOK)
    return folder


@pytest.fixture
def stage(hook: Path) -> Iterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def call(case: Case, events: str, where: str, skip: int = 0) -> Stage:
        stages.append(Stage(case, hook, events, where, skip))
        assert stages[-1].reached() or events in ENDS, "the run never came to this stage"
        return stages[-1]

    yield call
    for each in stages:
        each.close()


@pytest.fixture
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference whose preparation takes a while."""
    path = tmp_path_factory.mktemp("reference") / "large.jpg"
    path.write_bytes(pictures.picture(3000, 2000, fmt="JPEG"))
    return path


# --- Thirty moments across a run ---


@pytest.mark.slow
@both_signals
def test_thirty_moments(gateway: Gateway, start: Any, tmp_path: Path, large: Path, signum: int) -> None:
    """Spread evenly over start, preparation, waiting, reading and saving; every other run has an old file to keep."""
    gateway.answer_always(reply_with(PICTURE, delay=0.15, trickle=(4000, 0.02)))

    def new_case(name: str, old: bytes = b"") -> Case:
        case = Case(start, tmp_path / name, "--reference-image", large, old=old)
        # subtle: coverage, while it starts before the script does, swallows a KeyboardInterrupt and leaves half a module
        case.environment.update(COVERAGE_PROCESS_START=None, COVERAGE_PROCESS_CONFIG=None)
        return case

    def undisturbed(number: int) -> float:
        began = time.monotonic()
        case = new_case(f"whole-{number}").begin()
        code, _, err = case.finish()
        assert code == 0 and case.asked.read_bytes() == PICTURE, err
        return time.monotonic() - began

    def disturbed(number: int) -> str:
        case = new_case(f"moment-{number}-", OLD if number % 2 else b"")
        case.begin()
        with contextlib.suppress(subprocess.TimeoutExpired):
            case.process.wait(length_s * (number + 0.5) / MOMENTS)
        with contextlib.suppress(ProcessLookupError):
            case.process.send_signal(signum)
        return case.check(signum, gateway)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        length_s = max(pool.map(undisturbed, range(AT_ONCE)))
        endings = list(pool.map(disturbed, range(MOMENTS)))
    assert len(endings) == MOMENTS and endings.count("interrupted") >= MOMENTS // 3, endings


# --- Moments that are met exactly ---

STAGES = {  # (audit events, part of their arguments, how many to let pass)
    "loading": ("import", "logging", 0),
    "reading-a-key-file": ("open", ".product_shots_imagegen_api_key", 0),
    "proving-the-output": ("open", "/out/", 0),
    "tidying-the-proof": ("os.remove", "/out/", 0),
    "reading-a-reference": ("open", "large.jpg", 0),
    "connecting": ("socket.connect", "127.0.0.1", 0),
    "beginning-to-save": ("open", "/out/", 1),
    "renaming": ("os.rename,os.link", "/out/", 0),
    "tidying-up": ("os.remove", "/out/", 1),
    "writing-the-ledger": ("open", "ledger.jsonl", 0),
}
PAID = ("beginning-to-save", "renaming", "tidying-up", "writing-the-ledger")


def staged(start: Any, folder: Path, large: Path, old: bytes = b"") -> Case:
    case = Case(start, folder, "--reference-image", large, old=old)
    case.environment["PRODUCT_SHOTS_IMAGEGEN_LEDGER"] = str(folder / "ledger.jsonl")
    return case


@both_signals
@table("events, where, skip", STAGES)
def test_signal_at_a_stage(
    gateway: Gateway, start: Any, stage: Any, tmp_path: Path, large: Path, request: pytest.FixtureRequest,
    signum: int, events: str, where: str, skip: int,
) -> None:  # fmt: skip
    """The signal arrives while the program stands at the stage, and the program moves on a moment later."""
    gateway.answer_always(reply_with(PICTURE))
    case = staged(start, tmp_path / "case", large, OLD)
    moment = stage(case, events, where, skip)
    began = time.monotonic()
    case.process.send_signal(signum)
    with contextlib.suppress(subprocess.TimeoutExpired):
        case.process.wait(0.3)  # time for the signal to be handled while the stage lasts
    moment.go_on()
    ended = case.check(signum, gateway)
    assert time.monotonic() - began < 15
    if any(f"{name}-SIG" in request.node.name for name in PAID):
        assert ended == "saved" or case.asked.read_bytes() == PICTURE  # it was paid for and there: never thrown away
    else:
        assert ended == "interrupted"


@pytest.mark.slow
@both_signals
@pytest.mark.parametrize("end", ENDS)
def test_signal_after_the_work(gateway: Gateway, start: Any, stage: Any, tmp_path: Path, signum: int, end: str) -> None:
    """The picture is saved and its path is printed: it is too late to call this a failure."""
    gateway.answer_always(reply_with(PICTURE))
    case = Case(start, tmp_path / "case", old=OLD)
    moment = stage(case, end, "")
    with contextlib.suppress(ProcessLookupError):
        case.process.send_signal(signum)
    moment.go_on()
    assert case.check(signum, gateway) == "saved"


@pytest.mark.slow
@both_signals
def test_second_signal_does_not_disturb_the_tidying(
    gateway: Gateway, start: Any, stage: Any, tmp_path: Path, large: Path, signum: int
) -> None:
    """An impatient user presses Ctrl-C again and again."""
    gateway.answer_always(reply_with(PICTURE))
    case = staged(start, tmp_path / "case", large, OLD)
    moment = stage(case, *STAGES["renaming"])
    for number in (signum, signal.SIGINT, signal.SIGTERM, signum):
        with contextlib.suppress(ProcessLookupError):
            case.process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            case.process.wait(0.1)
    moment.go_on()
    case.check(signum, gateway)
    assert case.asked.read_bytes() == PICTURE


@pytest.mark.slow
@both_signals
def test_signal_amid_the_preparation_of_nine_references(
    gateway: Gateway, start: Any, stage: Any, tmp_path: Path, signum: int
) -> None:
    """Nine pictures of 96 megapixels take seconds to prepare; nothing is sent, and the end comes at once."""
    huge = tmp_path / "huge.jpg"
    huge.write_bytes(pictures.huge())
    case = Case(start, tmp_path / "case", "--json", *["--reference-image", huge] * 9)
    stage(case, "open", "huge.jpg", 1).go_on()
    case.process.send_signal(signum)
    began = time.monotonic()
    code, out, err = case.finish()
    assert (code, json.loads(out)["error"]["kind"]) == (130, "interrupted")
    assert time.monotonic() - began < 3
    assert "Traceback" not in err and not gateway.requests
    assert not case.litter() and not case.asked.exists()


SILENCES = {
    "before-the-answer": (Reply(hang="accept"),),
    "amid-headers": (reply_with(PICTURE, hang="headers"),),
    "amid-the-body": (reply_with(PICTURE, hang="body"),),
    "while-the-body-trickles": (reply_with(PICTURE, trickle=(400, 0.5)),),
}


@both_signals
@table("reply", SILENCES)
def test_signal_while_the_gateway_works(
    gateway: Gateway, start: Any, tmp_path: Path, signum: int, reply: Reply
) -> None:
    """The end comes at once, as one JSON object that says that the call may have cost money."""
    gateway.answer_always(reply)
    case = Case(start, tmp_path / "case", "--json", old=OLD).begin()
    gateway.wait_for(1)
    time.sleep(0.2)  # what the gateway has sent must have reached the program, and nothing tells us when
    began = time.monotonic()
    case.process.send_signal(signum)
    code, out, err = case.finish()
    error = json.loads(out)["error"]
    assert (code, error["kind"], error["billed"]) == (130, "interrupted", "maybe")
    assert time.monotonic() - began < 3
    assert "Traceback" not in err and not case.litter(err)
    assert case.asked.read_bytes() == OLD


@both_signals
def test_signal_between_two_attempts(gateway: Gateway, start: Any, tmp_path: Path, large: Path, signum: int) -> None:
    """No second request goes out once the user has said stop."""
    gateway.answer_always(Reply(503, {"Retry-After": "20"}))
    case = Case(start, tmp_path / "case", "--reference-image", large).begin()
    line = ""
    while "503" not in line:
        line = case.process.stderr.readline()
        assert line
    case.process.send_signal(signum)
    began = time.monotonic()
    assert case.check(signum, gateway) == "interrupted"
    assert time.monotonic() - began < 3 and len(gateway.calls) == 1


@pytest.mark.slow
@both_signals
@pytest.mark.parametrize("comes", [True, False], ids=["which-comes", "which-never-comes"])
def test_signal_while_the_result_is_fetched(
    gateway: Gateway, start: Any, tmp_path: Path, signum: int, comes: bool
) -> None:
    """The picture exists and is paid for: it is saved all the same, or its URL is what the user gets."""
    url = gateway.publish("x.jpg", PICTURE, "image/jpeg")
    gateway.answer(Reply(body={"choices": [{"message": {"content": f"![image]({url})"}}]}))
    gateway.answer_always(Reply(hang="accept") if not comes else Reply(body=PICTURE, delay=1), path="/media")
    case = Case(start, tmp_path / "case", "--json", "--quiet", old=OLD).begin()
    gateway.wait_for(2)
    case.process.send_signal(signum)
    code, out, err = case.finish()
    assert "Traceback" not in err and not case.litter()
    if code == 0:
        assert comes and json.loads(out)["ok"] and case.asked.read_bytes() == PICTURE
    else:
        error = json.loads(out)["error"]
        assert (code, error["kind"], error["image_url"]) == (130, "interrupted", url)
        assert error["billed"] in ("yes", "maybe") and case.asked.read_bytes() == OLD


# --- SIGKILL ---


def limit_files(case: Case, size: int) -> None:
    """No file of the run gets larger; coverage, whose own file would, is left out."""
    case.options["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    case.environment.update(COVERAGE_PROCESS_START=None, COVERAGE_PROCESS_CONFIG=None)


@pytest.mark.slow
@pytest.mark.parametrize("old", [b"", OLD], ids=["new-file", "old-file"])
@table("events, where, skip", {name: STAGES[name] for name in ("proving-the-output", "tidying-the-proof", *PAID[:3])})
def test_kill_at_a_stage(
    gateway: Gateway, start: Any, stage: Any, tmp_path: Path, large: Path,
    old: bytes, events: str, where: str, skip: int,
) -> None:  # fmt: skip
    """Nothing can be tidied after SIGKILL: one hidden file at most is left, and it is in nobody's way."""
    gateway.answer_always(reply_with(PICTURE))
    case = staged(start, tmp_path / "case", large, old)
    stage(case, events, where, skip)
    case.process.kill()
    assert case.finish()[0] == -signal.SIGKILL
    left = case.litter()
    assert len(left) <= 1 and all(Path(name).name.startswith(".") for name in left)
    assert (case.asked.read_bytes() if case.asked.exists() else b"") in (old, PICTURE)
    case.environment.pop("TEST_STAGE")
    case.options.pop("pass_fds")
    code, out, err = case.begin().finish()
    assert (code, out) == (0, f"{case.asked}\n"), err
    assert case.asked.read_bytes() == PICTURE and len(case.litter()) <= 1


def test_kill_amid_the_writing(gateway: Gateway, start: Any, stage: Any, tmp_path: Path) -> None:
    """Caught with half of the file written: a size limit stops the writing, and the kill comes before the tidying."""
    big = pictures.picture(1200, 900, fmt="PNG", noise=True)
    gateway.answer_always(reply_with(big))
    case = Case(start, tmp_path / "case", name="asked.png", old=OLD)
    limit_files(case, len(big) // 2)
    stage(case, *STAGES["tidying-up"])
    case.process.kill()
    assert case.finish()[0] == -signal.SIGKILL
    (half,) = case.out.glob(".*")
    assert half.stat().st_size == len(big) // 2
    assert case.asked.read_bytes() == OLD and case.litter() == [f"out/{half.name}"]


# --- Disks that are full, folders that go away ---


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A disk of that size; only root can make one."""
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False).returncode
    ):
        pytest.skip("a small disk needs root and the right to mount; the tests with a file size limit stand in")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fail_to_save(case: Case, data: bytes = PICTURE, where: Path | None = None) -> dict[str, Any]:
    """The run ends with exit 8; the picture lies elsewhere, whole, and the old one is as it was."""
    code, out, err = case.finish()
    assert code == 8, err
    error = json.loads(out)["error"]
    assert (error["kind"], error["billed"], error["retryable"]) == ("save", "yes", False)
    saved = Path(error["saved_at"])
    assert saved.read_bytes() == data and saved.parent == (where or case.tmp)
    assert str(saved) in err and "Traceback" not in err
    assert [name for name in case.litter() if not name.endswith(saved.name)] == []
    return error


BIG = pictures.picture(300, 300, fmt="JPEG", noise=True)  # some 200 KB


@pytest.mark.parametrize("old", [b"", OLD], ids=["new-file", "old-file"])
def test_disk_fills_up(gateway: Gateway, start: Any, tmp_path: Path, old: bytes) -> None:
    gateway.answer_always(reply_with(BIG))
    case = Case(start, tmp_path / "case", "--json")
    with mounted(case.out, "100k"):
        case.old = old
        if old:
            case.asked.write_bytes(old)
        fail_to_save(case.begin(), BIG)
        assert (case.asked.read_bytes() if old else b"") == old and case.asked.exists() == bool(old)
        assert len(list(case.out.iterdir())) == bool(old)


def test_disk_is_full_from_the_start(gateway: Gateway, start: Any, tmp_path: Path) -> None:
    """Known before any money is spent."""
    case = Case(start, tmp_path / "case", "--json")
    with mounted(case.out, "100k"):
        with contextlib.suppress(OSError), open(case.out / "full", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        code, out, _ = case.begin().finish()
        assert (code, json.loads(out)["error"]["kind"], len(gateway.requests)) == (2, "usage", 0)
        assert [path.name for path in case.out.iterdir()] == ["full"]


@pytest.mark.slow
def test_disk_fills_up_after_the_first_of_three(gateway: Gateway, start: Any, tmp_path: Path) -> None:
    """n = 3 and room for one: all three are on some disk, and the error names the places."""
    three = [pictures.picture(200, 150, fmt="JPEG", noise=True, seed=seed) for seed in range(3)]
    gateway.answer_always(reply_with(*three))
    case = Case(start, tmp_path / "case", "--json", "--model", "gpt-image-2", "--n", 3)
    with mounted(case.out, "120k"):
        code, out, err = case.begin().finish()
        assert (code, json.loads(out)["error"]["kind"]) == (8, "save")
        kept = sorted(case.tmp.iterdir())
        found = [path.read_bytes() for path in (case.asked, *kept)]
        assert sorted(found) == sorted(three)
        assert all(str(path) in err for path in (case.asked, *kept))


def test_disk_and_temporary_folder_are_full(gateway: Gateway, start: Any, tmp_path: Path) -> None:
    """The next place that takes it is good enough."""
    gateway.answer_always(reply_with(BIG))
    case = Case(start, tmp_path / "case", "--json")
    with mounted(case.out, "100k"), mounted(case.tmp, "100k"):
        code, out, _ = case.begin().finish()
        saved = Path(json.loads(out)["error"]["saved_at"])
        assert code == 8 and saved.read_bytes() == BIG
        assert case.out not in saved.parents and case.tmp not in saved.parents and not case.litter()


def test_file_size_limit_on_what_is_remade(gateway: Gateway, start: Any, tmp_path: Path) -> None:
    """The BMP that was asked for is too large, the JPEG that came is not: the JPEG is kept, byte for byte."""
    gateway.answer_always(reply_with(PICTURE))
    case = Case(start, tmp_path / "case", "--json", name="asked.bmp", old=OLD)
    limit_files(case, 30_000)
    fail_to_save(case.begin())
    assert case.asked.read_bytes() == OLD


@pytest.mark.parametrize("linked", [False, True], ids=["base64", "url"])
def test_file_size_limit_on_everything(gateway: Gateway, start: Any, tmp_path: Path, linked: bool) -> None:
    """No disk takes the picture: no half file anywhere, the old one whole, and the URL, if there is one, is told."""
    url = gateway.publish("x.jpg", PICTURE, "image/jpeg")
    link = Reply(body={"choices": [{"message": {"content": f"![image]({url})"}}]})
    gateway.answer_always(link if linked else reply_with(PICTURE))
    case = Case(start, tmp_path / "case", "--json", old=OLD)
    limit_files(case, 20_000)
    code, out, err = case.begin().finish()
    error = json.loads(out)["error"]
    assert (code, error["kind"], error["billed"]) == (8, "save", "yes")
    assert case.asked.read_bytes() == OLD and not case.litter() and "Traceback" not in err
    assert [path for path in Path.home().rglob("*") if path.is_file()] == []
    assert error.get("image_url") == (url if linked else None)


def removed(case: Case) -> None:
    shutil.rmtree(case.out)


def replaced_by_a_file(case: Case) -> None:
    removed(case)
    case.out.write_text("not a folder")


def asked_name_taken_by_a_folder(case: Case) -> None:
    case.asked.unlink(missing_ok=True)
    case.asked.mkdir()
    (case.asked / "precious.txt").write_text("precious")


def moved_away(case: Case) -> None:
    case.out.rename(case.out.with_name("moved"))


@table(
    "change, code",
    {
        "removed": (removed, (0, 8)),
        "moved-away": (moved_away, (0, 8)),
        "replaced-by-a-file": (replaced_by_a_file, (8,)),
        "name-taken-by-a-folder": (asked_name_taken_by_a_folder, (8,)),
    },
)
def test_output_folder_changes_during_the_call(
    gateway: Gateway, start: Any, tmp_path: Path, change: Callable[[Case], None], code: tuple[int, ...]
) -> None:
    """While the gateway worked somebody tidied up: the picture is where it was asked for, or kept elsewhere."""
    case = Case(start, tmp_path / "case", "--json")

    def busy(received: Received) -> Reply:
        change(case)
        return reply_with(PICTURE)

    gateway.answer(busy)
    ended, out, err = case.begin().finish()
    assert ended in code and "Traceback" not in err
    answer = json.loads(out)
    saved = Path(answer["path"] if ended == 0 else answer["error"]["saved_at"])
    assert saved.read_bytes() == PICTURE
    assert saved == case.asked if ended == 0 else saved.parent == case.tmp
    assert not list(case.folder.rglob(".*"))


def test_output_folder_becomes_read_only_during_the_call(gateway: Gateway, start: Any, tmp_path: Path) -> None:
    case = Case(start, tmp_path / "case", "--json")
    with contextlib.ExitStack() as stack:
        if os.geteuid() == 0:  # whom permissions do not stop
            stack.enter_context(mounted(case.out, "1m"))
        case.asked.write_bytes(OLD)
        case.old = OLD

        def busy(received: Received) -> Reply:
            if os.geteuid() == 0:
                subprocess.run(["mount", "-o", "remount,ro", str(case.out)], check=True)
            else:
                case.out.chmod(0o555)
                stack.callback(case.out.chmod, 0o755)
            return reply_with(PICTURE)

        gateway.answer(busy)
        fail_to_save(case.begin())
        assert case.asked.read_bytes() == OLD


def test_picture_that_is_kept_elsewhere_survives_a_signal(
    gateway: Gateway, start: Any, stage: Any, tmp_path: Path
) -> None:
    """Ctrl-C on top of a failed save: the paid picture still reaches the disk whole, or leaves nothing half."""
    case = Case(start, tmp_path / "case", "--json")

    def busy(received: Received) -> Reply:
        replaced_by_a_file(case)
        return reply_with(PICTURE)

    gateway.answer(busy)
    moment = stage(case, "open", "/case/tmp/", 0)
    case.process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        case.process.wait(0.3)
    moment.go_on()
    code, out, err = case.finish()
    kept = list(case.tmp.iterdir())
    assert code in (8, 130) and "Traceback" not in err
    assert [path.read_bytes() for path in kept] == [PICTURE]
    assert str(kept[0]) in err


def test_current_folder_goes_during_the_call(gateway: Gateway, start: Any, tmp_path: Path) -> None:
    """The output lay in the folder that is gone: the picture is in the temporary folder."""
    case = Case(start, tmp_path / "case")

    def busy(received: Received) -> Reply:
        replaced_by_a_file(case)
        return reply_with(PICTURE)

    gateway.answer(busy)
    case.process = start("--json", "--prompt", "x", "--output", "x.jpeg", env=case.environment, cwd=case.out)
    fail_to_save(case)


@table("words, code", {"relative": (("--output", "x.jpeg"), 2), "default": ((), 2)})
def test_current_folder_is_gone(gateway: Gateway, start: Any, tmp_path: Path, words: Sequence[str], code: int) -> None:
    """A relative name in a folder that was deleted is a usage error, before anything is sent."""
    gone = tmp_path / "gone"
    gone.mkdir()
    process = start("--prompt", "x", *words, cwd=gone, preexec_fn=gone.rmdir)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, len(gateway.requests)) == (code, 0)
    assert "Traceback" not in err and "[image-gen] error" in err


def test_current_folder_is_gone_but_not_needed(gateway: Gateway, start: Any, tmp_path: Path) -> None:
    gateway.answer(reply_with(PICTURE))
    gone = tmp_path / "gone"
    gone.mkdir()
    process = start("--prompt", "x", "--output", tmp_path / "x.jpeg", cwd=gone, preexec_fn=gone.rmdir)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert (tmp_path / "x.jpeg").read_bytes() == PICTURE


# --- Many at once ---


def numbered_pictures(count: int) -> list[bytes]:
    return [pictures.picture(100, 80, fmt="JPEG", noise=True, seed=seed) for seed in range(count)]


def together(gateway: Gateway, made: Sequence[bytes]) -> None:
    """Answer run number N with picture N, and none before all runs are waiting."""
    barrier = threading.Barrier(len(made))

    def reply(received: Received) -> Reply:
        barrier.wait(PATIENCE_S * 2)
        return reply_with(made[int(re.findall(r"\d+", prompt_of(received))[-1])])

    gateway.answer_always(reply)


@pytest.mark.slow
@pytest.mark.parametrize("old", [b"", OLD], ids=["new-file", "old-file"])
def test_two_runs_with_the_same_output(gateway: Gateway, start: Any, tmp_path: Path, old: bytes) -> None:
    """The file is one of the two pictures, whole; both runs end well, and nothing else lies there."""
    made = numbered_pictures(2)
    for attempt in range(3):
        together(gateway, made)
        case = Case(start, tmp_path / f"round {attempt}", old=old)
        processes = [
            start("--prompt", f"run {number}", "--output", case.asked, env=case.environment) for number in range(2)
        ]
        ends = [(process.communicate(timeout=PATIENCE_S), process.returncode) for process in processes]
        assert [code for _, code in ends] == [0, 0], ends
        assert case.asked.read_bytes() in made and not case.litter()
        gateway.reset()


# 50 processes for the start-up cost of one: everything is loaded, then the process multiplies.
FLOCK = """
import os, sys
sys.path.insert(0, sys.argv[1])
import generate, requests
from PIL import Image, JpegImagePlugin, PngImagePlugin
Image.init()
ready, go = os.pipe()
children = []
for number in range(int(sys.argv[2])):
    child = os.fork()
    if not child:
        os.close(go)
        os.read(ready, 1)
        code = 99
        try:
            code = generate.main(["--prompt", f"run {number}", *sys.argv[3:]])
        finally:
            sys.stdout.flush()
            os._exit(code)
    children.append(child)
os.close(go)
raise SystemExit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def flock(count: int, *words: object, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FLOCK, str(SCRIPTS), str(count), *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **changes}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the flock of processes is made by fork")
@table("veto", {"with-hard-links": ("",), "without-hard-links": ("veto|os.link||0|0|0",)})
def test_fifty_runs_with_the_default_name(gateway: Gateway, tmp_path: Path, hook: Path, veto: str) -> None:
    """Fifty runs start in the same second in the same folder: fifty names, fifty pictures, none of them twice.

    Some file systems have no hard links (FAT, some network shares): there the hook refuses them.
    """
    made = numbered_pictures(50)
    together(gateway, made)
    folder = tmp_path / "one folder"
    folder.mkdir()
    done = flock(50, "--quiet", cwd=folder, PYTHONPATH=str(hook), TEST_STAGE=veto)
    assert done.returncode == 0, done.stderr
    names = done.stdout.splitlines()
    assert len(set(names)) == 50
    assert sorted(Path(name).read_bytes() for name in names) == sorted(made)
    assert sorted(map(str, folder.iterdir())) == sorted(names)
    assert any(re.search(r"output-\d+-\d+\.jpeg$", name) for name in names), "no two runs met in one second"


def test_threads_with_the_default_name(gateway: Gateway, tmp_path: Path) -> None:
    """The same for a caller in Python with threads."""
    from generate import generate_image

    made = numbered_pictures(12)
    together(gateway, made)
    with ThreadPoolExecutor(12) as pool:
        paths = list(pool.map(lambda number: generate_image(f"run {number}"), range(12)))
    assert [path.read_bytes() for path in paths] == made
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_default_name_spares_what_is_there(gateway: Gateway, start: Any, tmp_path: Path) -> None:
    """Yesterday's pictures under the names of the coming minute stay what they are."""
    now = int(time.time())
    there = [tmp_path / f"output-{now + second}.jpeg" for second in range(60)]
    for path in there:
        path.write_bytes(OLD)
    gateway.answer(reply_with(PICTURE))
    process = start("--prompt", "x", cwd=tmp_path)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert Path(out.strip()).read_bytes() == PICTURE and Path(out.strip()) not in there
    assert {path.read_bytes() for path in there} == {OLD}


def test_reader_never_sees_half_a_file(gateway: Gateway, start: Any, tmp_path: Path) -> None:
    """Somebody who looks at the asked name all the time sees the old picture, then the new one."""
    gateway.answer(reply_with(PICTURE))
    case = Case(start, tmp_path / "case", old=OLD).begin()
    seen = set()
    while case.process.poll() is None:
        seen.add(case.asked.read_bytes())
    seen.add(case.asked.read_bytes())
    assert case.finish()[0] == 0 and seen == {OLD, PICTURE}
    assert Image.open(io.BytesIO(case.asked.read_bytes())).size == (120, 90)
