"""Bad input: one clear sentence, the right exit code, nothing sent, nothing overwritten, never a traceback."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import stat
from pathlib import Path
from typing import Any, Callable

import pictures
import pytest
from gateway import Gateway

GEMINI, GPT_2, GPT_1, DALL_E = "gemini-3-pro-image-preview", "gpt-image-2", "gpt-image-1", "dall-e-3"
LIBC = ctypes.CDLL(None, use_errno=True)
OLD = b"what was there before"
MODELS = [GEMINI, "gemini-3.1-flash-image-preview", "gemini-2.5-flash-image", GPT_2, GPT_1, DALL_E]
RATIOS = ["1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "4:5", "5:4", "21:9"]


class Bad:
    """A command line at fault and what its error must name: the thing, the value, what would be right."""

    def __init__(self, *argv: str, says: list[str], prompt: bool = True) -> None:
        self.argv = ["--prompt", "a cup", *argv] if prompt else list(argv)
        self.says = says


def references(count: int) -> list[str]:
    return [word for number in range(count) for word in ("--reference-image", f"good-{number}.png")]


BAD = {
    # prompt
    "no prompt": Bad(says=["prompt", "--prompt"], prompt=False),
    "empty prompt": Bad("--prompt", "", says=["prompt", "blank"], prompt=False),
    "blank prompt": Bad("--prompt", " \t\n ", says=["prompt", "blank"], prompt=False),
    "blank of another kind": Bad("--prompt", "\u3000\u00a0", says=["prompt", "blank"], prompt=False),
    "4001 characters": Bad("--prompt", "x" * 4001, says=["prompt", "4001", "4000"], prompt=False),
    "4001 Chinese characters": Bad("--prompt", "茶" * 4001, says=["prompt", "4001", "4000"], prompt=False),
    "prompt twice over": Bad("--prompt-file", "good.txt", says=["--prompt", "--prompt-file"]),
    "missing prompt file": Bad("--prompt-file", "none.txt", says=["prompt file", "none.txt"], prompt=False),
    "a folder as prompt file": Bad("--prompt-file", "folder", says=["prompt file", "folder"], prompt=False),
    "prompt file not UTF-8": Bad("--prompt-file", "latin-1.txt", says=["latin-1.txt", "UTF-8"], prompt=False),
    "empty prompt file": Bad("--prompt-file", "empty.txt", says=["prompt", "blank"], prompt=False),
    "endless prompt file": Bad("--prompt-file", "long.txt", says=["prompt", "4000"], prompt=False),
    "a picture as prompt file": Bad("--prompt-file", "good-0.png", says=["good-0.png", "UTF-8"], prompt=False),
    "negative prompt too long": Bad("--negative-prompt", "x" * 4001, says=["negative prompt", "4001", "4000"]),
    # model
    "unknown model": Bad("--model", "midjourney-7", says=["model", "midjourney-7", *MODELS]),
    "text model of openai": Bad("--model", "gpt-5", says=["model", "gpt-5", *MODELS]),
    "text model of gemini": Bad("--model", "gemini-2.5-pro", says=["model", "gemini-2.5-pro", *MODELS]),
    "empty model": Bad("--model", "", says=["model", *MODELS]),
    "model in one word with its flag": Bad("--model=nano banana", says=["model", "nano banana", *MODELS]),
    "unknown family": Bad("--family", "stability", says=["--family", "stability", "openai", "gemini"]),
    "family against its model": Bad("--model", GPT_2, "--family", "gemini", says=[GPT_2, "gemini", "openai"]),
    # ratio and size
    "ratio 5:7": Bad("--aspect-ratio", "5:7", says=["ratio", "5:7", *RATIOS]),
    "ratio with an x": Bad("--aspect-ratio", "16x9", says=["ratio", "16x9", *RATIOS]),
    "ratio with a wide colon": Bad("--aspect-ratio", "16：9", says=["ratio", "16：9", *RATIOS]),
    "empty ratio": Bad("--aspect-ratio", "", says=["ratio", *RATIOS]),
    "ratio for openai": Bad("--model", GPT_2, "--aspect-ratio", "7:5", says=["ratio", "7:5", *RATIOS]),
    "1000x1000 of gpt-image-1": Bad("--model", GPT_1, "--size", "1000x1000", says=["size", "1000x1000", "1536"]),
    "1000x1000 of gpt-image-2": Bad("--model", GPT_2, "--size", "1000x1000", says=["size", "1000x1000", "16"]),
    "1000x1000 of dall-e-3": Bad("--model", DALL_E, "--size", "1000x1000", says=["size", "1000x1000", "1792x1024"]),
    "size with a times sign": Bad("--model", GPT_2, "--size", "1024×1024", says=["size", "1024×1024", "W.*x.*H"]),
    "auto with dall-e-3": Bad("--model", DALL_E, "--size", "auto", says=["size", "auto", "1792x1024"]),
    "empty size": Bad("--model", GPT_2, "--size", "", says=["size", "W.*x.*H"]),
    # n, attempts, timeout
    **{
        f"n {value}": Bad("--model", GPT_2, "--n", value, says=[r"\bn\b", value, "1", "10"])
        for value in ("0", "11", "two", "-1", "1.5", "1e1", "0x2", "nan", "1000000000000000000000")
    },
    "n 11 for gemini": Bad("--n", "11", says=[r"\bn\b", "11", "10"]),
    "n 2 with dall-e-3": Bad("--model", DALL_E, "--n", "2", says=[r"\bn\b", "2", DALL_E, "one"]),
    "empty n": Bad("--model", GPT_2, "--n", "", says=[r"\bn\b", "10"]),
    **{
        f"attempts {value}": Bad("--attempts", value, says=["attempts", value, "5"])
        for value in ("0", "6", "many", "2.5")
    },
    **{
        f"timeout {value}": Bad("--timeout", value, says=["timeout", value, "seconds"])
        for value in ("0", "-5", "soon", "nan", "inf", "86401")
    },
    # references and masks
    "references with dall-e-3": Bad("--model", DALL_E, *references(1), says=["reference", DALL_E, "none"]),
    "ten references for gemini": Bad(*references(10), says=["reference", "10", "9", GEMINI]),
    "seventeen references for openai": Bad("--model", GPT_2, *references(17), says=["reference", "17", "16", GPT_2]),
    "missing reference": Bad("--reference-image", "none.png", says=["none.png", "[Nn]o such file"]),
    "missing reference among good ones": Bad(*references(2), "--reference-image", "none.png", says=["none.png"]),
    "a folder as reference": Bad("--reference-image", "folder", says=["folder", "file"]),
    "a pipe as reference": Bad("--reference-image", "pipe", says=["pipe", "file"]),
    "a device as reference": Bad("--reference-image", "/dev/zero", says=["/dev/zero", "file"]),
    "empty name as reference": Bad("--reference-image", "", says=["reference|''"]),
    "a web page as reference": Bad("--reference-image", "page.png", says=["page.png", "PNG or JPEG"]),
    "a URL as reference": Bad("--reference-image", "https://shop.example/a.png", says=["https://shop.example/a.png"]),
    "mask without reference": Bad("--model", GPT_2, "--mask", "mask.png", says=["mask", "mask.png", "reference"]),
    "missing mask": Bad("--model", GPT_2, *references(1), "--mask", "none.png", says=["none.png"]),
    "mask without alpha": Bad("--model", GPT_2, *references(1), "--mask", "good-1.png", says=["good-1.png", "transp"]),
    "mask that is no PNG": Bad("--model", GPT_2, *references(1), "--mask", "mask.webp", says=["mask.webp", "PNG"]),
    "mask of another size": Bad("--model", GPT_2, *references(1), "--mask", "small.png", says=["small.png", "400x300"]),
    "mask that is no picture": Bad("--model", GPT_2, *references(1), "--mask", "page.png", says=["page.png"]),
    # extra fields
    "param without a value": Bad("--param", "quality", says=["quality", "KEY=VALUE|quality=high"]),
    "param without a name": Bad("--param", "=high", says=["=high", "KEY=VALUE|quality=high"]),
    "empty param": Bad("--param", "", says=["param", "KEY=VALUE|quality=high"]),
    **{
        f"param {name}": Bad("--model", GPT_2, "--param", f"{name}=1", says=[re.escape(name), "flag"])
        for name in ("model", "prompt", "n", "size", "mask", "image", "image[]", "messages")
    },
    # output
    "a file as the output's folder": Bad("--output", "old.png/out.png", says=["old.png/out.png"]),
    "a file as a folder": Bad("--output", "old.png/", says=["old.png"]),
    "a file further up": Bad("--output", "old.png/deep/er/out.png", says=["old.png/deep/er/out.png"]),
    "unknown extension": Bad("--output", "out.xyz", says=["xyz", "png", "jpeg"]),
    "a text's extension": Bad("--output", "out.txt", says=["txt", "png", "jpeg"]),
    "an extension that Pillow only reads": Bad("--output", "out.psd", says=["psd", "png", "jpeg"]),
    "a device as output": Bad("--output", "/dev/full", says=["/dev/full"]),
    "a pipe as output": Bad("--output", "pipe", says=["pipe"]),
    "blank output": Bad("--output", " ", says=["output"]),
    "empty output": Bad("--output", "", says=["output"]),
    "output name too long": Bad("--output", "x" * 300 + ".png", says=["xxx.png"]),
    "output in the kernel's own folder": Bad("--output", "/proc/out.png", says=["/proc/out.png"]),
    # the command line itself
    "unknown flag": Bad("--colour", "red", says=["--colour"]),
    "abbreviated flag": Bad("--promp", "a cup", says=["--promp"], prompt=False),
    "word without a flag": Bad("and a saucer", says=["and a saucer"]),
    "flag without its value": Bad("--output", says=["--output"]),
    "proxy without a scheme": Bad("--proxy", "127.0.0.1:7890", says=["[Pp]roxy", "http://"]),
    "proxy of another kind": Bad("--proxy", "ftp://127.0.0.1:7890", says=["[Pp]roxy", "http://"]),
    "empty proxy": Bad("--proxy", "", says=["[Pp]roxy", "http://"]),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The current folder, with everything that the command lines name."""
    for number in range(17):
        (tmp_path / f"good-{number}.png").write_bytes(pictures.picture())
    for name, data in {
        "old.png": OLD,
        "good.txt": b"a cup",
        "empty.txt": b"",
        "long.txt": b"x" * 100_000,
        "latin-1.txt": "déjà vu".encode("latin-1"),
        "mask.png": pictures.picture(mode="RGBA"),
        "mask.webp": pictures.picture(mode="RGBA", fmt="WEBP"),
        "small.png": pictures.picture(200, 150, mode="RGBA"),
        "page.png": pictures.HTML.encode(),
    }.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def tree(folder: Path) -> dict[str, Any]:
    """Everything in a folder: what a file holds, what a thing is."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        kind = stat.S_IFMT(path.lstat().st_mode)
        found[str(path.relative_to(folder))] = path.read_bytes() if stat.S_ISREG(kind) else kind
    return found


def is_one_sentence(message: str) -> bool:
    return message.endswith(".") and "\n" not in message and not re.search(r"[.!?] +[A-Z]", message)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_argument_is_a_usage_error(gateway: Gateway, run: Callable[..., Any], folder: Path, bad: Bad) -> None:
    """What costs money must not happen by mistake, and the user must see at once what to correct."""
    argv = bad.argv if "--output" in bad.argv else [*bad.argv, "--output", "old.png"]
    before = tree(folder)
    outcome = run(*argv)
    assert (outcome.code, outcome.out) == (2, "")
    assert gateway.requests == []
    assert tree(folder) == before
    assert "Traceback" not in outcome.err
    assert all(line.startswith("[image-gen] ") for line in outcome.err.splitlines())
    for wanted in bad.says:
        assert re.search(wanted, outcome.err), wanted
    message, *hints = [line for line in outcome.err.splitlines() if "warning:" not in line]
    assert is_one_sentence(message), message
    assert len(hints) <= 1
    told = run(*argv, "--json").json["error"]
    assert (told["kind"], told["billed"], told["retryable"], told["status"]) == ("usage", "no", False, None)
    assert told["hint"]


@pytest.mark.parametrize("flag", ["--dry-run"])
@pytest.mark.parametrize("name", ["ratio 5:7", "missing reference", "unknown extension", "mask of another size", "n 0"])
def test_a_dry_run_validates_everything(
    gateway: Gateway, run: Callable[..., Any], folder: Path, flag: str, name: str
) -> None:
    outcome = run(*BAD[name].argv, flag)
    assert (outcome.code, outcome.out) == (2, "")
    assert gateway.requests == []


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        pytest.param(["--prompt", "x" * 4000], "prompt", id="4000 characters"),
        pytest.param(["--prompt", "茶" * 4000], "prompt", id="4000 Chinese characters"),
        pytest.param(["--n", "10", "--model", GPT_2], "n", id="n 10"),
        pytest.param(["--timeout", "0.5e2"], "timeout", id="timeout as a decimal"),
        pytest.param(["--attempts", "5"], "attempts", id="five attempts"),
        pytest.param(["--model", GEMINI, *references(9)], "references", id="nine references for gemini"),
        pytest.param(["--model", GPT_2, *references(16)], "references", id="sixteen references for openai"),
        pytest.param(["--param", "quality="], "param", id="param with an empty value"),
    ],
)
def test_the_last_value_that_is_allowed_is_allowed(
    gateway: Gateway, run: Callable[..., Any], folder: Path, argv: list[str], what: str
) -> None:
    prompt = [] if "--prompt" in argv else ["--prompt", "a cup"]
    outcome = run(*prompt, *argv, "--dry-run")
    assert outcome.code == 0, what
    assert gateway.requests == []


def test_the_message_names_what_is_wrong_before_the_file_system_is_asked(
    gateway: Gateway, run: Callable[..., Any], folder: Path
) -> None:
    """A wrong ratio is told even when the references are wrong as well: cheap checks come first."""
    outcome = run("--prompt", "a cup", "--aspect-ratio", "5:7", "--reference-image", "none.png")
    assert outcome.code == 2
    assert "5:7" in outcome.err


# --- Places that cannot be written ---


def without_privileges() -> None:
    """What file modes forbid is forbidden, even to root: its two capabilities to override them are given up."""
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            if LIBC.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
                raise OSError(ctypes.get_errno(), "a capability cannot be given up")


def small_files_only() -> None:
    """As on a disk that is all but full: no file can grow beyond 4096 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.parametrize(
    ("output", "mode", "restrict"),
    [
        pytest.param("locked/out.png", 0o555, without_privileges, id="a folder without write permission"),
        pytest.param("locked/new/out.png", 0o555, without_privileges, id="a new folder in it"),
        pytest.param("locked/", 0o555, without_privileges, id="the default name in it"),
        pytest.param("locked/out.png", 0o666, without_privileges, id="a folder without search permission"),
        pytest.param("kept.png", None, without_privileges, id="a write-protected file"),
        pytest.param("out.png", None, small_files_only, id="a full disk"),
        pytest.param("old.png", None, small_files_only, id="a full disk and an old file"),
    ],
)
def test_a_place_that_cannot_be_written_is_found_out_before_anything_is_sent(
    gateway: Gateway, start: Callable[..., Any], folder: Path, output: str, mode: int | None, restrict: Any
) -> None:
    """Nobody pays for a picture that cannot be kept."""
    locked = folder / "locked"
    locked.mkdir()
    (folder / "kept.png").write_bytes(OLD)
    (folder / "kept.png").chmod(0o444)
    if mode is not None:
        locked.chmod(mode)
    measure = dict.fromkeys(("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"))  # it writes files of its own
    process = start("--prompt", "a cup", "--output", output, env=measure, preexec_fn=restrict)
    out, err = process.communicate(timeout=30)
    locked.chmod(0o755)
    assert (process.returncode, out) == (2, "")
    assert gateway.requests == []
    assert output.rstrip("/") in err
    assert "Traceback" not in err
    assert is_one_sentence(err.splitlines()[0])
    assert (folder / "old.png").read_bytes() == (folder / "kept.png").read_bytes() == OLD
    assert not [*locked.iterdir(), *folder.glob("out*"), *folder.glob(".*")]


@pytest.mark.parametrize("name", ["good-0.png", "good.txt"])
def test_a_file_that_may_not_be_read_is_a_usage_error(
    gateway: Gateway, start: Callable[..., Any], folder: Path, name: str
) -> None:
    (folder / name).chmod(0)
    flags = ["--prompt-file", name] if name == "good.txt" else ["--prompt", "a cup", "--reference-image", name]
    process = start(*flags, preexec_fn=without_privileges)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert name in err
    assert "Permission denied" in err
    assert gateway.requests == []


def test_a_key_file_that_may_not_be_read_is_a_configuration_error(gateway: Gateway, start: Callable[..., Any]) -> None:
    path = Path.home() / ".product_shots_imagegen_api_key"
    path.write_text(gateway.key)
    path.chmod(0)
    process = start("--prompt", "a cup", env={"OMNIMAAS_API_KEY": None}, preexec_fn=without_privileges)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (3, "")
    assert "~/.product_shots_imagegen_api_key" in err
    assert "Permission denied" in err
    assert gateway.requests == []
