"""Many pictures at once: the engines of parameter-spec.md, section "Many pictures", as shown there.

200 jobs each, against a gateway that takes eight calls at a time and no more. A picture counts as
paid once the gateway has begun to make it, whatever becomes of the caller.
"""

from __future__ import annotations

import base64
import collections
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from gateway import Gateway, Received, Reply, draw
from test_papers import ROOT, SPEC, blocks, read

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

JOBS, AT_ONCE = 200, 8
AWKWARD = (
    "a cup, 50 % off",
    'it\'s a "new" cup',
    "$HOME `id` \\n {} {1}",
    "红苹果 · pomme — 🍎",
    "-n --json ~ #",
)


def command(program: str) -> str:
    """The one line that the paper types to start that program."""
    [line] = set(re.findall(rf"^\$ ({re.escape(program)}.*)$", read(SPEC), re.MULTILINE))
    return str(line)


class Till:
    """What the gateway answers, always with one picture, and whom it bills."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway, self.seconds = gateway, 0.3
        self.paid: collections.Counter[str] = collections.Counter()
        self.picture = draw("one of many", (512, 512), fmt="JPEG")
        self.lock = threading.Lock()

    def __call__(self, received: Received) -> Reply:
        with self.lock:
            self.paid[received.json["messages"][0]["content"][0]["text"]] += 1
        url = f"data:image/jpeg;base64,{base64.b64encode(self.picture).decode()}"
        message = {"role": "assistant", "content": f"![image]({url})"}
        return Reply(body={"choices": [{"message": message}]}, delay=self.seconds)


@pytest.fixture
def till(gateway: Gateway) -> Till:
    """The gateway's; no more than eight at a time, else 429 with Retry-After."""
    till, gateway.limit = Till(gateway), AT_ONCE
    gateway.answer_always(till)
    return till


class Shop:
    """The folder of someone who follows the section, with a list of their own."""

    def __init__(self, home: Path, till: Till) -> None:
        self.till, self.folder = till, home / "shop"
        for folder in (self.folder, home / "bin"):
            folder.mkdir(parents=True)
        (home / "product-shots-image-gen").symlink_to(ROOT)
        (home / "bin" / "python3").write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'
        )
        (home / "bin" / "python3").chmod(0o755)
        self.order(JOBS)
        for name in ("shot.sh", "shots.py", "cluster.py"):
            [text] = [it.text for it in blocks(SPEC) if it.text.startswith(f"# {name}\n")]
            (self.folder / name).write_text(text, encoding="utf-8")
        path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "HOME": str(home), "PATH": path, "LC_ALL": "C.UTF-8"}
        program = home / "product-shots-image-gen" / "scripts" / "generate.py"
        self.environment["GENERATE"] = str(program)  # as the papers export it
        self.running: list[subprocess.Popen[str]] = []

    def order(self, jobs: int) -> None:
        numbers = range(1, jobs + 1)
        self.shots = {f"shot {n:03}": f"{n}: {AWKWARD[n % len(AWKWARD)]}" for n in numbers}
        rows = "".join(f"{name}\t{prompt}\n" for name, prompt in self.shots.items())
        (self.folder / "shots.tsv").write_text(rows, encoding="utf-8")

    def begin(self, line: str) -> subprocess.Popen[str]:
        """A line of the paper as a process; what it says goes to a file, which no orphan blocks."""
        with open(self.folder / "said", "w", encoding="utf-8") as said:
            pipes: dict[str, Any] = {"stdout": said, "stderr": said, "stdin": subprocess.DEVNULL}
            pipes.update(cwd=self.folder, env=self.environment, start_new_session=True)
            self.running.append(subprocess.Popen(["bash", "-c", f"exec {line}"], **pipes))
        return self.running[-1]

    def run(self, line: str) -> list[str]:
        """The lines that it said, sorted."""
        assert self.begin(line).wait() == 0, self.said()
        return sorted(self.said().splitlines())

    def said(self) -> str:
        return (self.folder / "said").read_text(encoding="utf-8")

    def path(self, name: str) -> str:
        return str((self.folder / "shots" / f"{name}.jpeg").resolve())

    def log(self) -> dict[int, int]:
        rows = [line.split("\t") for line in (self.folder / "shots.log").read_text().splitlines()]
        return {int(row[0]): int(row[6]) for row in rows[1:]}

    def pictures(self) -> dict[str, bytes]:
        found = (self.folder / "shots").iterdir()
        return {path.stem: path.read_bytes() for path in found if path.suffix == ".jpeg"}

    def check(self) -> None:
        """Every picture is there, whole, and was paid once."""
        assert self.pictures() == dict.fromkeys(self.shots, self.till.picture)
        assert self.till.paid == dict.fromkeys(self.shots.values(), 1)
        assert self.till.gateway.peak <= AT_ONCE


@pytest.fixture
def shop(till: Till, tmp_path: Path) -> Iterator[Shop]:
    """A new shop; none of its processes outlives the test."""
    shop = Shop(tmp_path / "mia", till)
    yield shop
    for process in shop.running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


parallel = pytest.mark.skipif(
    not shutil.which("parallel"), reason="GNU parallel is missing: apt-get install parallel"
)


@parallel
def test_parallel_resumes_after_being_killed(shop: Shop, till: Till) -> None:
    """The machine dies amid a big order: the same line makes the rest, and pays nothing twice."""
    line, till.seconds = command("parallel "), 1.0
    engine = shop.begin(line)
    till.gateway.wait_for(60, timeout=300)
    engine.kill()  # and its jobs, orphans now, go on
    engine.wait()
    assert len(shop.log()) < JOBS

    engine = shop.begin(line)
    till.gateway.wait_for(120, timeout=300)
    engine.send_signal(signal.SIGHUP)  # the gentle way
    engine.wait()
    halfway = shop.log()
    assert (len(halfway) < JOBS, {*halfway.values()}) == (True, {0})

    rest = list(shop.shots)[len(halfway) :]
    assert shop.run(line) == sorted(map(shop.path, rest))
    assert shop.log() == dict.fromkeys(range(1, JOBS + 1), 0)
    shop.check()
    assert shop.run(line) == []
    assert len(till.gateway.calls) == JOBS


def test_threads(shop: Shop, till: Till) -> None:
    """Pictures mixed up between threads; a second run that pays again."""
    line = command("python3 shots.py")
    assert shop.run(line) == sorted(map(shop.path, shop.shots))
    assert shop.run(line) == sorted(f"{shop.path(name)} was there" for name in shop.shots)
    shop.check()


def test_threads_that_are_killed(shop: Shop, till: Till) -> None:
    """No half a picture that counts as a whole one; paid twice are at most those in work."""
    line = command("python3 shots.py")
    engine = shop.begin(line)
    till.gateway.wait_for(70, timeout=120)
    engine.kill()
    engine.wait()
    till.gateway.wait_until_idle()  # it works on for those who are gone
    saved = shop.pictures().keys()
    assert 0 < len(saved) < JOBS
    notes = {name: " was there" * (name in saved) for name in shop.shots}
    assert shop.run(line) == sorted(shop.path(name) + note for name, note in notes.items())
    assert shop.pictures() == dict.fromkeys(shop.shots, till.picture)
    assert JOBS <= sum(till.paid.values()) <= JOBS + AT_ONCE


def test_dask(shop: Shop, till: Till) -> None:
    """A dead worker's jobs are reported, not run and paid again; another run makes the rest."""
    line = command("python3 cluster.py")
    engine = shop.begin(line)
    till.gateway.wait_for(60, timeout=120)
    children = psutil.Process(engine.pid).children(recursive=True)
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    assert engine.wait() != 0
    assert "KilledWorker" in shop.said()
    assert max(till.paid.values()) == 1
    till.gateway.wait_until_idle()
    assert len(shop.run(line)) == JOBS
    assert shop.pictures() == dict.fromkeys(shop.shots, till.picture)
    assert JOBS <= sum(till.paid.values()) <= JOBS + AT_ONCE
