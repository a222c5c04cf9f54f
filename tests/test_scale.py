"""Many pictures at once: the engines of parameter-spec.md, section "Many pictures", as that section shows them.

200 jobs each, against a gateway that takes eight calls at a time and no more. A picture counts as paid once the gateway
has begun to make it, whatever becomes of the caller.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import copy
import csv
import json
import multiprocessing
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import generate
import psutil
import pytest
from gateway import Gateway, Received, Reply, draw
from generate import ImageGenError, generate_gemini, generate_image

ROOT = Path(__file__).resolve().parent.parent
SPEC = (ROOT / "references" / "parameter-spec.md").read_text(encoding="utf-8")
JOBS, AT_ONCE = 200, 8
PRICE_CNY = 1.0
HELD_S = 120.0  # how long an answer is held back unless it is released
AWKWARD = (
    "a cup, 50 % off",
    'it\'s a "new" cup',
    "$HOME `id` \\n {} {1}",
    "红苹果 · pomme — 🍎",
    "*.jpeg ; & | > cup",
    "-n --json ~ #",
)


def example(name: str) -> str:
    """The file of that name as the paper shows it."""
    found = re.search(rf"^```\w+\n(# {re.escape(name)}\n.*?)^```$", SPEC, re.DOTALL | re.MULTILINE)
    assert found, f"parameter-spec.md does not show {name}"
    return found[1]


def command(program: str) -> str:
    """The one line that the paper types to start that program."""
    [line] = set(re.findall(rf"^\$ ({re.escape(program)}.*)$", SPEC, re.MULTILINE))
    return str(line)


class Till:
    """What the gateway answers, and whom it bills: the default model's answer with one prepared picture."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway, self.seconds = gateway, 0.0
        self.paid: collections.Counter[str] = collections.Counter()
        self.picture = draw("one of many", (512, 512), fmt="JPEG")
        url = f"data:image/jpeg;base64,{base64.b64encode(self.picture).decode()}"
        message = {"role": "assistant", "content": f"![image]({url})"}
        self.body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"total_tokens": 1124}}
        self.lock = threading.Lock()

    def __call__(self, received: Received) -> Reply:
        assert received.headers["Authorization"] == f"Bearer {self.gateway.key}"
        assert (received.path, received.json["model"]) == ("/v1/chat/completions", generate.DEFAULT_MODEL)
        with self.lock:
            self.paid[prompt_of(received)] += 1
        return Reply(body=self.body, delay=self.seconds)


def prompt_of(received: Received) -> str:
    return str(received.json["messages"][0]["content"][0]["text"])


@pytest.fixture
def till(gateway: Gateway) -> Till:
    """The gateway's; no more than eight at a time, else 429 with Retry-After."""
    gateway.limit = AT_ONCE
    till = Till(gateway)
    gateway.answer_always(till)
    return till


class Shop:
    """The folder of someone who follows the section "Many pictures", with a list of their own."""

    def __init__(self, home: Path, till: Till, jobs: int) -> None:
        self.till, self.folder, self.ledger = till, home / "shop", home / "ledger.jsonl"
        self.folder.mkdir(parents=True)
        (home / "product-shots-image-gen").symlink_to(ROOT)
        (home / "bin").mkdir()
        (home / "bin" / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        (home / "bin" / "python3").chmod(0o755)
        self.shots = {f"shot {n:03}": f"{n}: {AWKWARD[n % len(AWKWARD)]}" for n in range(1, jobs + 1)}
        rows = "".join(f"{name}\t{prompt}\n" for name, prompt in self.shots.items())
        (self.folder / "shots.tsv").write_text(rows, encoding="utf-8")
        for name in ("shot.sh", "shots.py", "cluster.py"):
            (self.folder / name).write_text(example(name), encoding="utf-8")
        # What is measured elsewhere need not be measured 200 times more.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
        path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
        more = {"HOME": str(home), "PATH": path, "PRODUCT_SHOTS_IMAGEGEN_LEDGER": str(self.ledger), "LC_ALL": "C.UTF-8"}
        self.environment = {**kept, **more}
        self.running: list[subprocess.Popen[str]] = []

    def begin(self, line: str) -> subprocess.Popen[str]:
        """A line of the paper as a process; what it says goes to a file, which no orphan can block."""
        with open(self.folder / "said", "w", encoding="utf-8") as said:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def run(self, line: str, code: int = 0) -> list[str]:
        """The lines that it said, sorted."""
        assert (self.begin(line).wait(), self.said()) == (code, self.said())
        return sorted(self.said().splitlines())

    def said(self) -> str:
        return (self.folder / "said").read_text(encoding="utf-8")

    def path(self, name: str) -> str:
        return str((self.folder / "shots" / f"{name}.jpeg").resolve())

    def log(self) -> dict[int, int]:
        """GNU parallel's job log: the last exit code of each job."""
        with open(self.folder / "shots.log", encoding="utf-8") as log:
            return {int(row["Seq"]): int(row["Exitval"]) for row in csv.DictReader(log, delimiter="\t")}

    def spent(self) -> float:
        """What the ledger adds up to."""
        entries = [json.loads(line) for line in self.ledger.read_text(encoding="utf-8").splitlines()]
        assert all(entry["ok"] == (entry["billed"] == "yes") for entry in entries)
        return sum(entry["estimated_cost_cny"] for entry in entries)

    def check_pictures(self) -> None:
        """Every picture is there, whole, and nothing else."""
        found = {path.stem: path.read_bytes() for path in (self.folder / "shots").iterdir()}
        assert set(found) == set(self.shots)
        assert set(found.values()) == {self.till.picture}

    def check_paid_once(self) -> None:
        assert self.till.paid == dict.fromkeys(self.shots.values(), 1)

    def stop(self) -> None:
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def open_shop(till: Till, tmp_path: Path) -> Any:
    """open_shop(jobs=200): a new shop; none of its processes outlives the test."""
    shops: list[Shop] = []

    def call(jobs: int = JOBS) -> Shop:
        shops.append(Shop(tmp_path / "mia", till, jobs))
        return shops[-1]

    yield call
    for shop in shops:
        shop.stop()


def need(*programs: str) -> None:
    """The papers promise it, so a machine without it cannot tell whether they are right."""
    missing = [program for program in programs if not shutil.which(program)]
    assert not missing, f"not installed: {', '.join(missing)} (Debian: apt-get install parallel util-linux)"
    version = subprocess.run(["parallel", "--version"], capture_output=True, text=True, check=False).stdout
    assert version.startswith("GNU parallel"), "this parallel is another program: apt-get install parallel"


# --- GNU parallel ---


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_parallel_resumes_after_being_killed(open_shop: Callable[..., Shop], till: Till) -> None:
    """The machine dies amid a big order: the same line again makes the rest, and pays for nothing twice."""
    need("parallel", "flock")
    shop, line, till.seconds = open_shop(), command("parallel "), 1.0

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
    assert len(halfway) < JOBS
    assert set(halfway.values()) == {0}

    made = len(halfway)
    assert shop.run(line) == sorted(map(shop.path, list(shop.shots)[made:]))
    assert shop.log() == dict.fromkeys(range(1, JOBS + 1), 0)
    shop.check_pictures()
    shop.check_paid_once()
    assert till.gateway.peak <= AT_ONCE  # orphans included
    assert shop.spent() == JOBS * PRICE_CNY

    assert shop.run(line) == []
    assert len(till.gateway.calls) == JOBS


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_parallel_runs_again_what_was_one_too_many(open_shop: Callable[..., Shop], till: Till) -> None:
    """Sixteen at a time where eight are allowed: half of them are sent away unpaid, and the log knows which."""
    need("parallel", "flock")
    shop, line, till.seconds = open_shop(16), command("parallel "), HELD_S

    engine = shop.begin(line.replace("--jobs 8", "--jobs 16"))
    till.gateway.wait_for(16, timeout=120)
    till.gateway.release()
    assert engine.wait() == 8  # GNU parallel counts the jobs that failed
    assert collections.Counter(shop.log().values()) == {0: 8, generate.QuotaError.exit_code: 8}
    assert "429" in shop.said()
    assert (sum(till.paid.values()), shop.spent()) == (8, 8 * PRICE_CNY)

    till.seconds = 0.0
    assert len(shop.run(line)) == 8
    assert set(shop.log().values()) == {0}
    shop.check_pictures()
    shop.check_paid_once()
    assert shop.spent() == 16 * PRICE_CNY


# --- Threads ---


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_threads(open_shop: Callable[..., Shop], till: Till) -> None:
    """Pictures, answers or errors mixed up between threads; a second run that pays again."""
    shop, line, till.seconds = open_shop(), command("python3 shots.py"), 0.3
    assert shop.run(line) == sorted(map(shop.path, shop.shots))
    shop.check_pictures()
    shop.check_paid_once()
    assert till.gateway.peak == AT_ONCE
    assert shop.spent() == JOBS * PRICE_CNY
    assert shop.run(line) == sorted(f"{shop.path(name)} was there" for name in shop.shots)
    assert len(till.gateway.calls) == JOBS


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_threads_that_are_killed(open_shop: Callable[..., Shop], till: Till) -> None:
    """No half a picture that the next run takes for a whole one; paid twice are at most those that were in work."""
    shop, line, till.seconds = open_shop(), command("python3 shots.py"), 0.3
    engine = shop.begin(line)
    till.gateway.wait_for(70, timeout=120)
    engine.kill()
    engine.wait()
    till.gateway.wait_until_idle()  # it works on for those who are gone, and they count among the eight
    for part in (shop.folder / "shots").glob(".image-gen-*.part"):
        part.unlink()  # what a killed run may leave behind, once
    saved = {path.stem for path in (shop.folder / "shots").iterdir()}
    assert 0 < len(saved) < JOBS
    said = shop.run(line)
    assert said == sorted(shop.path(name) + " was there" * (name in saved) for name in shop.shots)
    shop.check_pictures()
    twice = {prompt for prompt, times in till.paid.items() if times == 2}
    assert len(twice) <= AT_ONCE
    assert till.paid == {prompt: 1 + (prompt in twice) for prompt in shop.shots.values()}


# --- Dask ---


def workers(engine: subprocess.Popen[str]) -> list[psutil.Process]:
    """Dask's worker processes."""
    children = psutil.Process(engine.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dask(open_shop: Callable[..., Shop], till: Till) -> None:
    """What works in threads and breaks when arguments, results and errors have to travel between processes."""
    shop, line, till.seconds = open_shop(), command("python3 cluster.py"), 0.3
    engine = shop.begin(line)
    till.gateway.wait_for(JOBS // 2, timeout=120)
    assert len(workers(engine)) == 2
    assert (engine.wait(), shop.said()) == (0, shop.said())
    assert sorted(shop.said().splitlines()) == sorted(map(shop.path, shop.shots))
    shop.check_pictures()
    shop.check_paid_once()
    assert till.gateway.peak == AT_ONCE
    assert shop.spent() == JOBS * PRICE_CNY


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dask_does_not_repeat_what_a_dead_worker_was_paid_for(open_shop: Callable[..., Shop], till: Till) -> None:
    """A cluster that heals itself at the customer's expense: jobs of a dead worker are reported, not run again."""
    shop, line, till.seconds = open_shop(), command("python3 cluster.py"), 0.3
    engine = shop.begin(line)
    till.gateway.wait_for(60, timeout=120)
    workers(engine)[0].kill()
    assert engine.wait() != 0
    assert "KilledWorker" in shop.said()
    assert max(till.paid.values()) == 1

    shop.run(line)
    for part in (shop.folder / "shots").glob(".image-gen-*.part"):
        part.unlink()
    shop.check_pictures()
    assert set(till.paid) == set(shop.shots.values())
    assert max(till.paid.values()) <= 2
    assert sum(till.paid.values()) <= JOBS + AT_ONCE  # those that were in work


# --- More than the gateway takes ---


def all_at_once(count: int, job: Callable[[str], Any]) -> dict[str, Future[Any]]:
    """The same job for so many prompts, each in a thread of its own; waits for their ends."""
    with ThreadPoolExecutor(count) as pool:
        return {prompt: pool.submit(job, prompt) for prompt in (f"cup {n}" for n in range(count))}


def release_once(gateway: Gateway, till: Till, count: int) -> threading.Thread:
    """Hold every answer back until so many requests are there; later ones are answered at once."""

    def wait() -> None:
        gateway.wait_for(count, timeout=60)
        till.seconds = 0.0
        gateway.release()

    till.seconds = HELD_S
    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_text_to_image_is_not_tried_again(till: Till, tmp_path: Path) -> None:
    """A crowd of retries that nobody asked for: what is one too many fails at once, unpaid, and can be sent later."""
    releasing = release_once(till.gateway, till, 16)
    futures = all_at_once(16, lambda prompt: generate_image(prompt, output_path=tmp_path / f"{prompt}.jpeg"))
    releasing.join()
    assert len(till.gateway.calls) == 16
    failed = {prompt: future.exception() for prompt, future in futures.items() if future.exception()}
    assert len(failed) == 8
    for error in failed.values():
        assert isinstance(error, generate.QuotaError)
        assert (error.status, error.retryable, error.billed) == (429, True, "no")
    for prompt in failed:
        generate_image(prompt, output_path=tmp_path / f"{prompt}.jpeg")
    assert till.paid == dict.fromkeys(futures, 1)
    assert {path.stem for path in tmp_path.glob("*.jpeg")} == set(futures)


def test_image_to_image_waits_as_long_as_retry_after_says(till: Till, tmp_path: Path, short_waits: None) -> None:
    """Retries that storm a gateway which has just said how long to stay away."""
    reference = tmp_path / "reference.jpeg"
    reference.write_bytes(draw("the reference", (512, 512), fmt="JPEG"))  # another one: an echo is no result
    releasing = release_once(till.gateway, till, 16)
    futures = all_at_once(16, lambda prompt: generate_gemini(prompt, ref_images=[reference]))
    releasing.join()
    attempts = {prompt: future.result().attempts for prompt, future in futures.items()}
    assert collections.Counter(attempts.values()) == {1: 8, 2: 8}
    assert till.paid == dict.fromkeys(futures, 1)
    times: dict[str, list[float]] = {prompt: [] for prompt in futures}
    for received in till.gateway.calls:
        times[prompt_of(received)].append(received.at)
    waits = [second - first for first, second in (each for each in times.values() if len(each) > 1)]
    assert len(waits) == 8
    assert min(waits) >= 1.0  # what the stand-in's Retry-After says


# --- Processes ---


def every_error() -> list[ImageGenError]:
    facts = {"status": 503, "image_url": "https://example.com/a.png", "saved_at": "/tmp/a.png", "billed": "yes"}
    return [kind(f"What {kind.__name__} says.", "And what to do.", **facts) for kind in ImageGenError.__subclasses__()]


@pytest.mark.parametrize("through", [lambda it: pickle.loads(pickle.dumps(it)), copy.deepcopy], ids=["pickle", "copy"])
@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.kind)
def test_errors_can_travel(error: ImageGenError, through: Callable[[Any], Any]) -> None:
    """A worker that dies of its own error message, or a message that arrives without status and bill."""
    arrived = through(error)
    assert type(arrived) is type(error)
    assert arrived.as_json() == error.as_json()
    assert (str(arrived), arrived.args, arrived.exit_code) == (str(error), error.args, error.exit_code)


FAILURES = {  # what goes wrong: (kind, the gateway's answer, arguments)
    "crowd": ("quota", Reply(429), {}),
    "no credit": ("quota", Reply(402, body={"error": {"message": "Top up.", "code": "insufficient_quota"}}), {}),
    "wrong key": ("auth", Reply(401), {}),
    "outage": ("unavailable", Reply(503), {}),
    "moderation": ("refused", Reply(400, body={"error": {"message": "No.", "code": "moderation_blocked"}}), {}),
    "bad request": ("rejected", Reply(400), {}),
    "no picture": ("response", Reply(body={"choices": [{"message": {"content": "Which apple?"}}]}), {}),
    "half a picture": ("unavailable", Reply(truncate=9000), {}),
    "bad ratio": ("usage", Reply(), {"aspect_ratio": "5:7"}),
    "no reference": ("usage", Reply(), {"reference_images": ["none.png"]}),
    "bad URL": ("config", Reply(), {"base_url": "example.com"}),
}


def test_errors_come_out_of_a_process_pool_as_they_went_in(gateway: Gateway, tmp_path: Path) -> None:
    """A pool that answers "cannot pickle", hangs, or loses what a caller needs to decide about another try."""
    gateway.answer_always(lambda received: FAILURES[prompt_of(received)][1])

    def here(name: str, arguments: dict[str, Any]) -> ImageGenError:
        with pytest.raises(ImageGenError) as caught:
            generate_image(name, output_path=tmp_path / "never.jpeg", **arguments)
        return caught.value

    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        futures = {
            name: pool.submit(generate_image, name, output_path=tmp_path / "never.jpeg", **arguments)
            for name, (_, _, arguments) in FAILURES.items()
        }
        for name, (kind, _, arguments) in FAILURES.items():
            there, expected = futures[name].exception(), here(name, arguments)
            assert isinstance(there, ImageGenError), f"{name}: {there!r}"
            assert type(there) is type(expected)
            assert there.kind == kind
            assert same_but_kept_place(there) == same_but_kept_place(expected)
    assert not (tmp_path / "never.jpeg").exists()


def same_but_kept_place(error: ImageGenError) -> dict[str, Any]:
    """An error's facts; what arrived of a picture is kept under another name each time."""
    return {name: re.sub(r"\S*image-gen-kept-\S*", "KEPT", str(value)) for name, value in error.as_json().items()}


def test_results_come_out_of_a_process_pool(till: Till, tmp_path: Path) -> None:
    """A picture that was made and paid for in another process, and cannot get back."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        saving = pool.submit(generate_image, "a cup", output_path=tmp_path / "cup.jpeg")
        making = pool.submit(generate_gemini, "a bowl")
        path, (image, usage) = saving.result(), making.result()
    assert path == tmp_path / "cup.jpeg"
    assert path.read_bytes() == image == till.picture
    assert usage == {"total_tokens": 1124}
    assert making.result().images == [image]
