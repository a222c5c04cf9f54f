"""Interrupts, kills, full disks and rivals at the moments of a run that differ.

To be met there, the process waits at an event that an audit hook (PEP 578) sees.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import bodies
import pictures
import pytest
from conftest import Run, table
from gateway import Gateway, Reply

PICTURE = pictures.picture(120, 90, fmt="JPEG", noise=True)
OLD = pictures.picture(60, 80, fmt="JPEG", noise=True, seed=1)
WORDS = ["--json", "--prompt", "x", "--model", "gpt-image-2"]
PATIENCE_S = 60


def answer(*images: bytes) -> Reply:
    return Reply(body=bodies.made(*images))


HOOK = """
import os, sys

def watch(event, args):
    global skip
    if event == name and where in str(args):
        skip -= 1
        if skip == -1:
            os.write(int(said), b"!")
            os.read(int(go), 1)

if os.environ.get("TEST_STAGE"):
    name, where, skip, said, go = os.environ["TEST_STAGE"].split("|")
    skip = int(skip)
    sys.addaudithook(watch)
"""


class Case:
    """A run of the program with folders of its own; it stops at a stage, if it is given one."""

    def __init__(self, start: Callable[..., Any], folder: Path) -> None:
        self.start = start
        self.out, self.tmp, self.hook = (folder / name for name in ("out", "tmp", "hook"))
        for path in (self.out, self.tmp, self.hook):
            path.mkdir()
        self.asked = self.out / "asked.jpeg"
        self.asked.write_bytes(OLD)
        (self.hook / "sitecustomize.py").write_text(HOOK)

    def begin(self, *words: object, stage: str = "", **options: Any) -> Case:
        self.said, said = os.pipe()
        go, self.go = os.pipe()
        stage = stage and f"{stage}|{said}|{go}"
        env = {"TMPDIR": str(self.tmp), "PYTHONPATH": str(self.hook), "TEST_STAGE": stage}
        given = [*WORDS, "--output", self.asked, *words]
        self.process = self.start(*given, env=env, pass_fds=(said, go), **options)
        os.close(said)
        self.ends = (self.said, go, self.go)
        if stage:
            ready, _, _ = select.select([self.said], [], [], PATIENCE_S)
            assert ready and os.read(self.said, 1), "the run never came to this stage"
        return self

    def finish(self, signum: int | None = None) -> tuple[int, Any, str]:
        """Go on from the stage, with this signal; returns exit code, the JSON and stderr."""
        if signum:
            self.process.send_signal(signum)
        os.write(self.go, b"!")
        out, err = self.process.communicate(timeout=PATIENCE_S)
        for end in self.ends:
            os.close(end)
        assert not re.search("Traceback|Exception ignored|KeyboardInterrupt", err), err
        return self.process.returncode, json.loads(out or "null"), err

    def left(self) -> list[bytes | str]:
        """What the asked file holds, and the names of all else that lies about."""
        found = [*self.out.iterdir(), *self.tmp.iterdir()]
        return [self.asked.read_bytes(), *(path.name for path in found if path != self.asked)]


@pytest.fixture
def case(start: Any, tmp_path: Path) -> Case:
    return Case(start, tmp_path)


HANG = Reply(hang="accept")
both_signals = pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])


@pytest.mark.long
@both_signals
@table(
    "stage, reply",
    {
        "proving the output": ("open|/out/|0", HANG),
        "reading a reference": ("open|reference.png|0", HANG),
        "connecting": ("socket.connect|127.0.0.1|0", HANG),
        "amid the headers": ("", Reply(hang="headers")),
        "amid the body": ("", Reply(hang="body")),
    },
)
def test_signal_before_there_is_a_picture(
    gateway: Gateway, case: Case, reference: Path, stage: str, reply: Reply, signum: int
) -> None:
    """The end comes at once, nothing half-written is left; what was sent may have cost money."""
    gateway.answer_always(reply)
    case.begin("--reference-image", reference, stage=stage)
    if not stage:
        gateway.wait_for(1)
    code, facts, _ = case.finish(signum)
    assert (code, facts["error"]["kind"]) == (130, "interrupted")
    assert stage or facts["error"]["billed"] == "maybe"
    assert case.left() == [OLD]


@pytest.mark.long
@both_signals
def test_signal_while_the_result_is_fetched(gateway: Gateway, case: Case, signum: int) -> None:
    """The picture is paid for: where it cannot be had any more, its URL is what the user gets."""
    url = gateway.publish("x.jpg", PICTURE, "image/jpeg")
    gateway.answer(Reply(body={"data": [{"url": url}]}))
    gateway.answer_always(HANG, path="/media")
    case.begin()
    gateway.wait_for(2)
    code, facts, _ = case.finish(signum)
    assert (code, facts["error"]["image_url"], case.left()) == (130, url, [OLD])


SAVING = {
    "beginning to save": ("open|/out/|2",),
    "renaming": ("os.rename|/out/|0",),
    "tidying up": ("os.remove|/out/|1",),
}


@pytest.mark.long
@both_signals
@table("stage", SAVING)
def test_signal_while_saving(gateway: Gateway, case: Case, stage: str, signum: int) -> None:
    """It was paid for and there: never thrown away, however often the user presses Ctrl-C."""
    gateway.answer(answer(PICTURE))
    case.begin(stage=stage)
    case.process.send_signal(signal.SIGINT)
    assert (case.finish(signum)[0], case.left()) == (0, [PICTURE])


@pytest.mark.long
@table("stage", {"proving the output": ("open|/out/|0",), **SAVING})
def test_kill(gateway: Gateway, case: Case, stage: str) -> None:
    """One hidden file at most is left, and it is in nobody's way: the next run is a good one."""
    gateway.answer_always(answer(PICTURE))
    assert case.begin(stage=stage).finish(signal.SIGKILL)[0] == -signal.SIGKILL
    asked, *litter = case.left()
    assert asked in (OLD, PICTURE)
    assert [name[0] for name in litter] in ([], ["."])
    assert case.begin().finish()[0] == 0
    assert case.left() == [PICTURE, *litter]


@pytest.fixture
def disk_for() -> Iterator[Callable[[int], None]]:
    """disk_for(size): no file of this process gets larger, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save(run: Run, *words: object) -> Any:
    return run(*WORDS, "--output", "out/asked.bmp", *words)


def is_kept(outcome: Any, kept: Path, data: bytes) -> None:
    """The original bytes go to the system's temporary folder and the path is in the error."""
    error = outcome.json["error"]
    assert (outcome.code, error["kind"], error["billed"]) == (8, "save", "yes")
    (path,) = kept.iterdir()
    assert (error["saved_at"], path.read_bytes()) == (str(path), data)
    assert str(path) in outcome.err and "Traceback" not in outcome.err


def test_disk_that_fills_up(gateway: Gateway, run: Run, kept: Path, disk_for: Any) -> None:
    """The BMP that was asked for is too large, the JPEG that came is not: that one is kept."""
    Path("out").mkdir()
    Path("out/asked.bmp").write_bytes(OLD)
    gateway.answer(answer(PICTURE))
    disk_for(30_000)
    is_kept(save(run), kept, PICTURE)
    assert [path.read_bytes() for path in Path("out").iterdir()] == [OLD]


def test_no_disk_takes_it(gateway: Gateway, run: Run, kept: Path, disk_for: Any) -> None:
    """No half file anywhere, and the URL is told."""
    url = gateway.publish("x.jpg", PICTURE, "image/jpeg")
    gateway.answer(Reply(body={"data": [{"url": url}]}))
    disk_for(20_000)
    outcome = save(run)
    assert (outcome.code, outcome.json["error"]["image_url"]) == (8, url)
    assert [*kept.iterdir(), *Path("out").iterdir()] == []
    assert os.listdir(Path.home()) == [".local"]  # of the ledger


@table(
    "change, code",
    {
        "removed": (lambda: Path("out").rmdir(), 0),
        "taken by a file": (lambda: Path("out").rmdir() or Path("out").touch(), 8),
        "name taken by a folder": (lambda: Path("out/asked.bmp").mkdir(), 8),
    },
)
def test_folder_that_changes_during_the_call(
    gateway: Gateway, run: Run, kept: Path, change: Callable[[], None], code: int
) -> None:
    """While the gateway worked somebody tidied up: the folder is made again, or all is kept."""
    Path("out").mkdir()
    gateway.answer(lambda _: change() or answer(PICTURE))
    outcome = save(run)
    if code:
        is_kept(outcome, kept, PICTURE)
    else:
        assert Path("out/asked.bmp").is_file()


def test_of_several_pictures_every_one_is_saved_or_kept(
    gateway: Gateway, run: Run, kept: Path
) -> None:
    """The second name turns out to be a folder: none is lost, and every path is told."""
    images = [pictures.picture(200, 90, fmt="BMP", noise=True, seed=seed) for seed in range(3)]
    Path("out/asked-2.bmp").mkdir(parents=True)
    gateway.answer(answer(*images))
    outcome = save(run, "--n", "3")
    places = [Path("out/asked.bmp"), *kept.iterdir(), Path("out/asked-3.bmp")]
    assert [path.read_bytes() for path in places] == images
    assert all(str(path.absolute()) in outcome.err for path in places)
