"""Bad input: one clear sentence, exit code 2, nothing sent, nothing overwritten, no traceback."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pictures
import pytest
from conftest import table
from gateway import Gateway

OLD = b"what was there before"
RATIOS = "1:1 16:9 9:16 4:3 3:4 3:2 2:3 4:5 5:4 21:9 1.91:1 2.35:1"
MODELS = "gemini-3-pro-image-preview gemini-3.1-flash-image-preview gpt-image-2 dall-e-3"
FLAG_OF_PARAM = {
    "model": "--model",
    "prompt": "--prompt",
    "messages": "--prompt",
    "n": "--n",
    "size": "--size",
    "mask": "--mask",
    "image": "--reference-image",
    "image[]": "--reference-image",
    "aspect_ratio": "--aspect-ratio",
    "negative_prompt": "--negative-prompt",
    "stream": "--stream",
}
PIXELS = "WxH 16 1:3 3:1 655,360 8,294,400 3840"
GPT = "--model gpt-image-2"
EDIT = f"{GPT} --reference-image good-0.png --mask"


def references(count: int) -> str:
    return " ".join(f"--reference-image good-{number}.png" for number in range(count))


VALUES = [  # flag, what would be right, values that are not
    ("--prompt-file", "", "none.txt latin-1.txt folder"),
    ("--model", MODELS, "midjourney-7 gpt-5 ''"),
    ("--family", "openai gemini", "stability gemini"),
    ("--aspect-ratio", RATIOS, "5:7 ''"),
    ("--aspect-ratio", "Did you mean 16:9? Use one of 1:1", "16x9 16×9 16/9 16：9"),
    ("--size", PIXELS, "1024x1000 1600x512 512x1600 800x816 3840x2176 3856x2048 WxH 1024"),
    (
        "--size",
        PIXELS,
        "1024×1024 1024X1024 -16x16 0x0 01024x1024 １０２４x１０２４ '1024x1024\n' ''",
    ),
    ("--n", "1 10", "0 11 two a.b -1 1.5 ''"),
    ("--attempts", "1 5", "0 6 many 2.5"),
    ("--timeout", "seconds", "0 -5 soon nan inf 86401"),
    ("--reference-image", "", "page.png"),
    ("--reference-image", "check the path", "none.png folder pipe /dev/zero circle.png old.png/x"),
    ("--param", "KEY=VALUE", "quality =high"),
    *(("--param", flag, f"{name}=1") for name, flag in FLAG_OF_PARAM.items()),
    ("--output", "", "old.png/ old.png/deep/out.png /dev/full /proc/out.png pipe ' ' ''"),
    ("--output", "", "circle.png"),
]
BAD = {
    f"{flag} {value}": (
        f"{GPT} {flag}={shlex.quote(value)}",
        f"{flag.split('-')[-1]} {value} {right}",
    )
    for flag, right, values in VALUES
    for value in shlex.split(values)
}
OTHERS = {  # flags, and what the error must name: the thing, the value, what would be right
    "blank prompt": ("--prompt ' \t\n \u3000\u00a0'", "prompt blank"),
    "prompt in Latin-1": ("--prompt 'caf\udce9'", "prompt UTF-8"),
    "blank negative prompt": ("--negative-prompt ' '", "negative blank"),
    "prompt without quotes": ("--prompt red cup", "cup quotes"),
    "dry run of a bad output": ("--dry-run --output pipe", "pipe"),
    "4001 characters": (f"--prompt {'茶' * 4001}", "prompt 4001 4000"),
    "prompt twice over": ("--prompt cup --prompt-file good.txt", "--prompt together --prompt-file"),
    "endless prompt file": ("--prompt-file /dev/zero", "prompt 4000"),
    "negative prompt too long": (f"--negative-prompt {'x' * 4001}", "negative 4001 4000"),
    "not of gpt-image-1": ("--model gpt-image-1 --size 1536x864", "1536x864 1536x1024"),
    "not of dall-e-3": ("--model dall-e-3 --size auto", "auto 1792x1024"),
    "n 11 for gemini": ("--n 11", "n 11 10"),
    "n 2 in a stream": (f"{GPT} --stream --n 2", "--stream --n 1 2"),
    "a check in no time": ("--check --timeout 0", "timeout 0 seconds"),
    "n 2 with dall-e-3": ("--model dall-e-3 --n 2", "n 2 dall-e-3 one"),
    "references of dall-e-3": ("--model dall-e-3 " + references(1), "dall-e-3 no reference images"),
    **{name: (f"--output cup{name}", f"extension {name} .webp") for name in (".ico", ".pdf")},
    "ten references": (references(10), "reference 10 9 gemini-3-pro-image-preview"),
    "seventeen references": (f"{GPT} {references(17)}", "reference 17 16 gpt-image-2"),
    "mask of gemini": (f"{references(1)} --mask mask.png", "--mask gpt-image-2"),
    "mask of dall-e-3": ("--model dall-e-3 --mask mask.png", "--mask gpt-image-2"),
    "mask without reference": (f"{GPT} --mask mask.png", "mask.png reference"),
    "mask without alpha": (f"{EDIT} good-1.png", "good-1.png transparen"),
    "mask that is no PNG": (f"{EDIT} mask.webp", "mask.webp PNG"),
    "mask of another size": (f"{EDIT} small.png", "small.png 200x150 400x300"),
    "cheap checks first": ("--aspect-ratio=5:7 --reference-image=none.png --dry-run", "5:7"),
    "unknown extension": ("--output out.xyz", "xyz png jpeg"),
    "an extension that is only read": ("--output out.psd", "psd png jpeg"),
    "output of no name": ("--output 'a\0b.png'", "output x00"),
    "output name too long": (f"--output {'x' * 300}", "xxx"),
    "abbreviated flag": ("--promp cup", "--promp did you mean --prompt?"),
    "start of a flag": ("--ref good-0.png", "did you mean --reference-image?"),
    "start of another": ("--neg text", "did you mean --negative-prompt?"),
    "a word of a flag": ("--image good-0.png", "did you mean --reference-image?"),
    "mistyped word": ("--aspct 1:1", "did you mean --aspect-ratio?"),
    "mistyped flag": ("--aspectratio 1:1", "did you mean --aspect-ratio?"),
    "flag like no other": ("--zzz", "--zzz --help"),
    "parameter in Latin-1": ("--param 'style=caf\udce9'", "parameter JSON"),
    "parameter beyond JSON": ("--param seed=1e999", "parameter JSON"),
    "proxy without a scheme": ("--check --proxy 127.0.0.1:7890", "proxy http://"),
}
FILES = {
    **dict.fromkeys((f"good-{number}.png" for number in range(17)), pictures.picture()),
    "old.png": OLD,
    "good.txt": b"a cup",
    "latin-1.txt": "déjà vu".encode("latin-1"),
    "mask.png": pictures.picture(mode="RGBA"),
    "mask.webp": pictures.picture(mode="RGBA", fmt="WEBP"),
    "small.png": pictures.picture(200, 150, mode="RGBA"),
    "page.png": pictures.HTML.encode(),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The current folder, with everything that the command lines name."""
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle.png").symlink_to("circle.png")
    return tmp_path


@table("words, says", {**BAD, **OTHERS})
def test_bad_arguments(gateway: Gateway, run: Any, folder: Path, words: str, says: str) -> None:
    """Bad argument, unreadable reference, unwritable destination: nothing was sent, exit code 2."""
    prompt = [] if "--prompt" in words else ["--prompt=cup"]
    output = [] if "--output" in words else ["--output=old.png"]
    before = sorted(folder.rglob("*"))
    outcome = run("--json", *prompt, *output, *shlex.split(words))
    assert (outcome.code, gateway.requests) == (2, [])
    assert (sorted(folder.rglob("*")), Path("old.png").read_bytes()) == (before, OLD)
    error = outcome.json["error"]
    said = f"{error['message']} {error['hint']}".lower()
    assert [word for word in says.lower().replace("=1", "").split() if word not in said] == []
    assert re.fullmatch(r"((?![.!?] +[A-Z]).)+\.", error["message"]), "one sentence"
    assert "--params" not in said, "the flag is --param"
    assert error["hint"] and "numeral" not in said and "billed" not in outcome.err
    assert f"[image-gen] error: {error['message']}" in outcome.err.splitlines()


def test_without_any_prompt_both_flags_are_named(run: Any, gateway: Gateway) -> None:
    """`--prompt TEXT`: required, or `--prompt-file`."""
    outcome = run("--quiet")
    assert (outcome.code, "--prompt or --prompt-file" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    "words",
    [
        f"--prompt {'茶' * 4000} --timeout 0.5e2 --attempts 5 --param quality= {references(9)}",
        f"{GPT} --n 10 --size 1280x512 --timeout 86400 --attempts 1 {references(16)}",
        f"{GPT} --size 3840x2160 --output new/folder/out.WEBP",
        f"{GPT} --size 480x1440",
        "--model gpt-image-1 --size auto --proxy socks5h://127.0.0.1:1",
        "--model gpt-image-9 --size 1000x1000",
    ],
    ids=len,
)
def test_the_last_good_values(gateway: Gateway, run: Any, folder: Path, words: str) -> None:
    """≤ 4000 characters, n 1–10, attempts 1–5, gemini ≤ 9 references, openai ≤ 16, and sizes."""
    prompt = [] if "--prompt" in words else ["--prompt=cup"]
    assert run(*prompt, *shlex.split(words), "--dry-run").code == 0
    assert gateway.requests == []


@table(
    "words, named",
    {
        "size and ratio": (
            f"{GPT} --size 1024x1024 --aspect-ratio 16:9",
            "--size 1024x1024 --aspect-ratio 16:9",
        ),
        "n of gemini": ("--n 4", "--n one"),
        "size of gemini": ("--size auto", "--size --aspect-ratio"),
    },
)
def test_what_is_ignored(gateway: Gateway, run: Any, folder: Path, words: str, named: str) -> None:
    """Explicit size wins over the ratio, gemini ignores --n and --size: with a warning."""
    (warning,) = run("--prompt=cup", "--json", "--dry-run", *shlex.split(words)).json["warnings"]
    assert all(re.search(rf"(?<!\S){word}\b", warning) for word in named.split())


def give_up_privileges() -> None:
    """From now on file modes bind root, too, in this thread and in those that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, the calling thread
    held = (ctypes.c_uint32 * 6)()  # effective, permitted …
    assert libc.capget(header, held) == 0
    held[0] = held[1] = held[1] & ~0b110  # DAC_OVERRIDE, DAC_READ_SEARCH
    assert libc.capset(header, held) == 0


@pytest.fixture
def run_unprivileged(run: Any) -> Iterator[Any]:
    with ThreadPoolExecutor(1, initializer=give_up_privileges) as pool:
        yield lambda *words: pool.submit(run, *words).result()


@pytest.fixture
def full_disk() -> Iterator[None]:
    """As on a disk that is all but full, no file grows beyond 4096 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("full_disk")
@table(
    "output, mode, why",
    {
        "a folder without write permission": ("locked/out.png", 0o555, "Permission denied"),
        "a new folder in it": ("locked/new/", 0o555, "Permission denied"),
        "a folder without search permission": ("locked/out.png", 0o666, "Permission denied"),
        "a write-protected file": ("kept.png", 0o755, "write-protected"),
        "a full disk": ("out.png", 0o755, "File too large"),
        "a full disk and an old file": ("good.txt", 0o755, "File too large"),
    },
)
def test_a_place_that_cannot_be_written_is_a_usage_error(
    gateway: Gateway, folder: Path, run_unprivileged: Any, output: str, mode: int, why: str
) -> None:
    """The destination is proven writable before anything is sent."""
    (folder / "kept.png").touch(0o444)
    (folder / "locked").mkdir()
    (folder / "locked").chmod(mode)
    outcome = run_unprivileged("--prompt=cup", "--output", output)
    (folder / "locked").chmod(0o755)
    assert (outcome.code, outcome.out, gateway.requests) == (2, "", [])
    assert output.rstrip("/") in outcome.err and why in outcome.err
    assert Path("good.txt").read_bytes() == b"a cup"
    assert not [*(folder / "locked").iterdir(), *folder.glob(".*"), *folder.glob("out*")]
