#!/usr/bin/env python3
"""How fast generate.py is, beside the plainest programs that do the same.

Run it by hand; nothing here passes or fails.

    tests/.venv/bin/python tests/benchmark.py                          # all, in about half an hour
    tests/.venv/bin/python tests/benchmark.py start latency --runs 3   # some of it, roughly

It prints one markdown table: medians of paired runs, and the median of the pairs' ratios. The two
sides take turns, so that whatever else the machine does meets both; the first turn, which warms
caches, is not counted.

start        until --help, a usage error and the onboarding message are there; against
             `import requests`
latency      what the whole command adds to a gateway that takes one second; against a bare script
             and OpenAI's client
ledger       what noting a call in the ledger adds to the whole command
references   nine pictures of 24 megapixels made ready; against vipsthumbnail (libvips-tools)
quality      how near a reference comes to a slow, full LANCZOS; against vipsthumbnail
answers      most memory while 30 MB of base64 arrive; against the bare script
many         1,000 pictures of 200 KB from one process with 32 threads; against what the gateway
             could do at most
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import concurrent.futures
import contextlib
import datetime
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
PYTHON, GENERATE = sys.executable, str(SCRIPTS / "generate.py")
KEY = "sk-benchmark-0123456789"
GATEWAY_S = 1.0
PICTURES, THREADS, FLAT_FROM = 1000, 32, 200
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in one of getrusage's units
FRESH = multiprocessing.get_context("spawn")  # a process without this one's memory

BARE = """
import base64, os, sys, requests

path, fields, key = sys.argv[1:]
answer = requests.post(os.environ["OMNIMAAS_BASE_URL"] + path, data=fields, timeout=300, headers={
    "Authorization": "Bearer " + os.environ["OMNIMAAS_API_KEY"],
    "Content-Type": "application/json"})
answer.raise_for_status()
with open("bare.out", "wb") as file:
    for step in key.split():
        answer = answer.json() if step == "json" else answer[int(step) if step.isdigit() else step]
    file.write(base64.b64decode(answer.rpartition("base64,")[2].rstrip(")")))
"""
CLIENT = """
import base64, os
from openai import OpenAI

client = OpenAI(base_url=os.environ["OMNIMAAS_BASE_URL"], api_key=os.environ["OMNIMAAS_API_KEY"])
answer = client.images.generate(model="gpt-image-2", prompt="a red apple on wood", size="1024x1024")
with open("client.out", "wb") as file:
    file.write(base64.b64decode(answer.data[0].b64_json))
"""
IMAGE_ROUTE = (
    "/images/generations",
    json.dumps(
        {"model": "gpt-image-2", "prompt": "a red apple on wood", "n": 1, "size": "1024x1024"}
    ),
    "json data 0 b64_json",
)
CHAT_ROUTE = (
    "/chat/completions",
    json.dumps(
        {
            "model": "gemini-3-pro-image-preview",
            "messages": [{"role": "user", "content": "a red apple"}],
        }
    ),
    "json choices 0 message content",
)
VIPS_OPTIONS = ("--size", "1024x1024", "--export-profile", "srgb")
PROMPT = ("--prompt", "a red apple on wood")
GPT = (*PROMPT, "--model", "gpt-image-2", "--output", "ours.png")
GEMINI = (*PROMPT, "--output", "ours.jpeg")


class Line(NamedTuple):
    """A row of the table."""

    case: str
    ours: str
    theirs: str
    ratio: str
    goal: str


class Cost(NamedTuple):
    seconds: float
    peak_mb: float


# --- Pictures ---


def photograph(width: int, height: int) -> Any:
    """Soft shapes in colour with a little grain: it compresses as a camera's pictures do."""
    from PIL import Image, ImageChops

    def channel() -> Any:
        soft = Image.effect_noise((width // 24, height // 24), 110).resize(
            (width, height), Image.BICUBIC
        )
        return ImageChops.add(soft, Image.effect_noise((width, height), 7), 1, -128)

    return Image.merge("RGB", [channel() for _ in range(3)])


def draw(kind: str, path: str) -> None:
    """A picture for one of the cases.

    It runs in a process of its own: the memory that it takes must not show in others'.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    if kind == "answer":  # noise does not compress: 22.5 MB in a PNG, 30 MB in base64
        noise = random.Random(0).randbytes(3840 * 1950 * 3)
        image = Image.frombytes("RGB", (3840, 2160), noise.ljust(3840 * 2160 * 3, b"\x80"))
        image.save(path, "PNG", compress_level=1)
    elif kind == "many":
        photograph(1024, 1024).save(path, "JPEG", quality=81)
    elif kind in ("png", "jpeg"):
        photograph(1024, 1024).save(path, kind, **({"quality": 90} if kind == "jpeg" else {}))
    else:
        photograph(6000, 4000).save(
            path, "PNG" if path.endswith("png") else "JPEG", quality=92, compress_level=6
        )


def picture(kind: str, name: str) -> str:
    """The path of a new picture in the current folder."""
    drawing = FRESH.Process(target=draw, args=(kind, os.path.abspath(name)))
    drawing.start()
    drawing.join()
    return os.path.abspath(name)


# --- Gateway ---


def serve(path: str, delay_s: float, port: Any) -> None:
    """Answer every POST with one prepared picture, that long after the last byte of the request."""
    encoded = base64.b64encode(Path(path).read_bytes()).decode()
    message = {"role": "assistant", "content": f"![image](data:image/jpeg;base64,{encoded})"}
    answers = {
        IMAGE_ROUTE[0]: {
            "created": 1,
            "data": [{"b64_json": encoded}],
            "usage": {"total_tokens": 4212},
        },
        CHAT_ROUTE[0]: {
            "choices": [{"message": message, "finish_reason": "stop"}],
            "usage": {"total_tokens": 1124},
        },
    }
    raw = {}
    for route, answer in answers.items():
        body = json.dumps(answer).encode()
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        raw[route] = head.encode() + body

    class Exchange(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport, self.received = transport, b""

        def data_received(self, data: bytes) -> None:
            self.received += data
            head, end, body = self.received.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
            if end and length and len(body) >= int(length[1]):
                self.received = b""
                answer = raw[head.split(b" ")[1].decode().partition("/v1")[2]]
                asyncio.get_running_loop().call_later(delay_s, self.transport.write, answer)

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(
            Exchange, "127.0.0.1", 0, backlog=256
        )
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@contextlib.contextmanager
def gateway(path: str, delay_s: float = GATEWAY_S) -> Iterator[dict[str, str]]:
    """A gateway in a process of its own; gives the environment that leads to it."""
    here, there = FRESH.Pipe()
    server = FRESH.Process(target=serve, args=(path, delay_s, there), daemon=True)
    server.start()
    try:
        yield surroundings(
            OMNIMAAS_API_KEY=KEY, OMNIMAAS_BASE_URL=f"http://127.0.0.1:{here.recv()}/v1"
        )
    finally:
        server.terminate()
        server.join()


# --- Measuring ---


def surroundings(**settings: str) -> dict[str, str]:
    """An environment without anything of the caller's that could make a difference."""
    kept = ("PATH", "LANG", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {
        "HOME": os.getcwd(),
        **{name: os.environ[name] for name in kept if name in os.environ},
        **settings,
    }


def run(command: list[str], environment: dict[str, str], code: int = 0) -> Cost:
    """What a command cost; it has to end with that exit code, or the numbers would mean nothing."""
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != code:
            output.seek(0)
            raise SystemExit(
                f"{command} ended with {process.returncode}, not {code}:\n{output.read().decode()}"
            )
    return Cost(seconds, usage.ru_maxrss * RSS_UNIT / 1e6)


def in_turns(runs: int, *tasks: Callable[[], Any]) -> list[list[Any]]:
    """What each task gave, task by task; they take turns."""
    turns = [[task() for task in tasks] for _ in range(runs + 1)][1:]
    return [list(column) for column in zip(*turns)]


def ratio(ours: list[float], theirs: list[float]) -> str:
    """The median of the ratios, each of two neighbours in time."""
    return f"{statistics.median(a / b for a, b in zip(ours, theirs)):.2f}"


def in_seconds(values: list[float]) -> str:
    value = statistics.median(values)
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def in_mb(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} MB"


# --- Rows ---


def start(runs: int) -> Iterator[Line]:
    """Neither requests nor Pillow is needed to say that something is wrong."""
    home, keyed = surroundings(), surroundings(OMNIMAAS_API_KEY=KEY)
    cases = (
        ("`--help`", ["--help"], keyed, 0),
        ("a usage error", [*PROMPT, "--aspect-ratio", "5:7"], keyed, 2),
        ("the onboarding message", [*PROMPT], home, 3),
    )
    for name, arguments, environment, code in cases:
        ours, theirs = in_turns(
            runs,
            lambda argv=arguments, env=environment, code=code: (
                run([PYTHON, GENERATE, *argv], env, code).seconds
            ),
            lambda: run([PYTHON, "-c", "import requests"], home).seconds,
        )
        yield Line(
            f"start: {name}",
            in_seconds(ours),
            f'{in_seconds(theirs)}, `python3 -c "import requests"`',
            ratio(ours, theirs),
            "≤ 0.55",
        )


def latency(runs: int) -> Iterator[Line]:
    """The whole command, less the second that the gateway takes."""
    for kind, arguments, route in (("png", GPT, IMAGE_ROUTE), ("jpeg", GEMINI, CHAT_ROUTE)):
        path = picture(kind, f"latency.{kind}")
        commands = [[PYTHON, GENERATE, *arguments], [PYTHON, "-c", BARE, *route]]
        if kind == "png" and importlib.util.find_spec("openai"):
            commands.append([PYTHON, "-c", CLIENT])
        with gateway(path) as env:
            ours, bare, *client = in_turns(
                runs, *(lambda argv=argv: run(argv, env).seconds - GATEWAY_S for argv in commands)
            )
        case = (
            f"added latency: `{route[0]}`, {kind.upper()} of {os.path.getsize(path) / 1e6:.1f} MB"
        )
        script = "a bare `requests` script"
        yield Line(
            case, in_seconds(ours), f"{in_seconds(bare)}, {script}", ratio(ours, bare), "≤ 1.35"
        )
        if client:
            theirs = f"{in_seconds(client[0])}, the `openai` client"
            yield Line("the same", in_seconds(ours), theirs, ratio(ours, client[0]), "≤ 0.30")
        elif kind == "png":
            yield Line("the same", in_seconds(ours), "`openai` is not installed", "", "≤ 0.30")


def references(runs: int) -> Iterator[Line]:
    """The whole command with nine of them, nothing sent; vipsthumbnail makes as many one by one."""
    for extension in ("jpeg", "png"):
        first = picture("reference", f"reference-1.{extension}")
        paths = [f"reference-{number}.{extension}" for number in range(1, 10)]
        for path in paths[1:]:
            os.link(first, path)
        flags = [word for path in paths for word in ("--reference-image", path)]
        ours_argv = [PYTHON, GENERATE, *PROMPT, "--dry-run", *flags]
        options = [*VIPS_OPTIONS, "--output", "small-%s.jpg[Q=88,strip]"]
        keyed = surroundings(OMNIMAAS_API_KEY=KEY)
        tasks = [lambda argv=ours_argv, env=keyed: run(argv, env)]
        if found := shutil.which("vipsthumbnail"):
            tasks.append(lambda argv=(found, *options, *paths), env=keyed: run([*argv], env))
        ours, *theirs = in_turns(runs, *tasks)
        size_mb = os.path.getsize(first) / 1e6
        case = f"references: nine {extension.upper()}s of 24 megapixels, {size_mb:.0f} MB each"
        seconds, peaks = [cost.seconds for cost in ours], [cost.peak_mb for cost in ours]
        if theirs:
            vips = [cost.seconds for cost in theirs[0]]
            compared = f"{in_seconds(vips)}, `vipsthumbnail`"
            yield Line(case, in_seconds(seconds), compared, ratio(seconds, vips), "≤ 0.60")
            memory = f"{in_mb([cost.peak_mb for cost in theirs[0]])}, `vipsthumbnail`"
        else:
            yield Line(case, in_seconds(seconds), "`vipsthumbnail` is not installed", "", "≤ 0.60")
            memory = ""
        yield Line("peak memory of that", in_mb(peaks), memory, "", "≤ 400 MB")


def decibels(path: str, small: str) -> float:
    """How near a small picture comes to the large one, scaled down slowly; infinite when equal."""
    from PIL import Image, ImageChops, ImageStat

    with Image.open(path) as large, Image.open(small) as image:
        exact = large.convert("RGB").resize(image.size, Image.LANCZOS)
        squares = ImageStat.Stat(ImageChops.difference(exact, image.convert("RGB"))).sum2
        mean = sum(squares) / (3 * image.width * image.height)
    return 10 * math.log10(255**2 / mean) if mean else math.inf


def fresh(function: Callable[..., Any], *arguments: str) -> Any:
    """Its result, from a process of its own: the peak of this one counts as its children's, too."""
    with concurrent.futures.ProcessPoolExecutor(1, FRESH) as pool:
        return pool.submit(function, *map(os.path.abspath, arguments)).result()


def make_small(path: str, small: str) -> None:
    sys.path.insert(0, str(SCRIPTS))
    from generate import maybe_resize

    Path(small).write_bytes(maybe_resize(path).data)


def quality(runs: int) -> Iterator[Line]:
    """Speed must not be paid for with pixels; nothing is timed, so one run is enough."""
    for extension in ("jpeg", "png"):
        path = picture("reference", f"quality.{extension}")
        fresh(make_small, path, "ours.small")
        if not (found := shutil.which("vipsthumbnail")):
            theirs, compared = "", "`vipsthumbnail` is not installed"
        else:
            command = [found, *VIPS_OPTIONS, "--output", os.path.abspath("theirs.jpg[Q=88,strip]")]
            run([*command, path], surroundings())
            theirs = f"{fresh(decibels, path, 'theirs.jpg'):.1f} dB"
            compared = f"{theirs}, `vipsthumbnail`"
        case = f"quality: {extension.upper()} of 24 megapixels"
        yield Line(
            case, f"{fresh(decibels, path, 'ours.small'):.1f} dB", compared, "", "≥ the same"
        )


def ledger(runs: int) -> Iterator[Line]:
    """A call is noted before it is sent, and again when it ends."""
    path = picture("jpeg", "ledger.jpeg")
    with gateway(path, delay_s=0) as env:
        without = {**env, "PRODUCT_SHOTS_IMAGEGEN_LEDGER": "off"}
        noted, bare = in_turns(
            runs,
            lambda: run([PYTHON, GENERATE, *GEMINI], env).seconds,
            lambda: run([PYTHON, GENERATE, *GEMINI], without).seconds,
        )
    added_ms = 1000 * statistics.median(a - b for a, b in zip(noted, bare))
    compared = f"{in_seconds(bare)}, without it"
    yield Line("ledger: time added", f"{added_ms:.0f} ms", compared, "", "≤ 30 ms")


def answers(runs: int) -> Iterator[Line]:
    """Memory only: copies of a large answer are what costs."""
    path = picture("answer", "answer.png")
    with gateway(path, delay_s=0) as env:
        ours, bare = in_turns(
            runs,
            lambda: run([PYTHON, GENERATE, *GPT], env).peak_mb,
            lambda: run([PYTHON, "-c", BARE, *IMAGE_ROUTE], env).peak_mb,
        )
    case = f"answers: peak memory, {os.path.getsize(path) * 4 / 3e6:.0f} MB of base64"
    yield Line(
        case, in_mb(ours), f"{in_mb(bare)}, a bare `requests` script", ratio(ours, bare), "≤ 1.3"
    )


def make_many(environment: dict[str, str]) -> tuple[float, float, float]:
    """Pictures a second, and the most memory until the 200th and until the last."""
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, str(SCRIPTS))
    from generate import generate_image

    def peak_mb() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT / 1e6

    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(THREADS) as pool,
    ):
        started = time.perf_counter()
        jobs = [
            pool.submit(generate_image, "a red apple", output_path=f"{folder}/{number}.jpeg")
            for number in range(PICTURES)
        ]
        for number, job in enumerate(concurrent.futures.as_completed(jobs), 1):
            job.result()
            if number == FLAT_FROM:
                early_mb = peak_mb()
        return PICTURES / (time.perf_counter() - started), early_mb, peak_mb()


def many(runs: int) -> Iterator[Line]:
    path = picture("many", "many.jpeg")

    def once() -> tuple[float, float, float]:
        with concurrent.futures.ProcessPoolExecutor(1, FRESH) as pool:
            return pool.submit(make_many, env).result()

    with gateway(path) as env:
        [outcomes] = in_turns(runs, once)
    rates, early, late = map(list, zip(*outcomes))
    size = f"{os.path.getsize(path) / 1e3:.0f} KB"
    ideal = THREADS / GATEWAY_S
    case = f"many: {PICTURES:,} pictures of {size}, {THREADS} threads"
    yield Line(
        case,
        f"{statistics.median(rates):.1f}/s",
        f"{ideal:g}/s, the ideal",
        ratio(rates, [ideal] * runs),
        "≥ 0.80",
    )
    yield Line(
        "peak memory of that",
        in_mb(late),
        f"{in_mb(early)}, until the {FLAT_FROM}th",
        ratio(late, early),
        "1.0",
    )


ROWS = {
    "start": start,
    "latency": latency,
    "ledger": ledger,
    "references": references,
    "quality": quality,
    "answers": answers,
    "many": many,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", metavar="ROW", nargs="*", help=f"{', '.join(ROWS)}; default: all")
    parser.add_argument(
        "--runs", type=int, default=9, help="paired runs of each case; default: %(default)s"
    )
    options = parser.parse_args()
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"there is no row {unknown[0]!r}; choose from {', '.join(ROWS)}")
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    print(
        "| case | generate.py | compared with | ratio | goal |\n|---|---|---|---|---|", flush=True
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in options.rows or ROWS:
            for line in ROWS[name](options.runs):
                print(f"| {' | '.join(line)} |", flush=True)
        os.chdir("/")
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}"
    print(f"\nMedians of {options.runs} paired runs, {datetime.date.today()}, {machine}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
