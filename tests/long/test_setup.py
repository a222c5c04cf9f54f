"""setup.sh on every machine a newcomer may sit at: it gets the program going, or says what to type.

Each test has a copy of the skill, and a PATH that holds nothing but a few system tools and the
stand-in programs that it asks for: no Python, no uv and no package manager of this machine.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import SCRIPTS, Outcome, surroundings, table
from gateway import Gateway

TOOLS = ("bash", "sh", "cat", "dirname", "env", "ln", "ls", "mkdir", "rm", "sed")
NOT_OURS = ("PYTHONPATH", "VIRTUAL_ENV", "COVERAGE_PROCESS_CONFIG")
MAKE = ("--prompt", "a red apple on wood", "--output", "apple.jpeg")
AGAIN = "bash scripts/setup.sh"
OFFLINE = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "UV_OFFLINE": "1"}
BASE = getattr(sys, "_base_executable", sys.executable)  # of this virtual environment
UV = str(Path(sys.executable).with_name("uv"))


def python(*unlike: str) -> str:
    """A Python without packages (-S leaves them out), but for what it does unlike others."""
    cases = "".join(f"    {case} ;;\n" for case in unlike)
    return f'case $1$2 in\n{cases} esac\nexec "{BASE}" -S "$@"'


# What the programs on the PATH may be
FULL = f'exec "{sys.executable}" "$@"'
REAL_UV = f'exec "{UV}" "$@"'
BARE = python()
NO_VENV = python("-c*ensurepip*) exit 1")
HALF_VENV = python("-c*ensurepip*) exit 0", '-mvenv) mkdir -p "$3/bin" && exit 1')
READY_VENV = python(
    "-c*ensurepip*) exit 0",
    '-mvenv) mkdir -p "$3/bin" && exec ln -s "${0%/*}/full" "$3/bin/python"',
)
OLD = f"""exec "{BASE}" -S -c "import sys; sys.version_info = (3, 8, 18, 'final', 0)\n$2" """
NEVER = 'echo "$0 must not be run" >&2; exit 99'
USER = {"id": "echo 1000", "apt-get": NEVER}
ROOT = {"id": "echo 0", "apt-get": NEVER}


class Machine:
    """A copy of the skill, and a PATH with these programs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, Path(os.environ["HOME"])
        self.skill, self.bin = folder / "Ana's shots" / "skill", folder / "bin"
        self.venv = self.skill / ".venv"
        self.python = self.venv / "bin" / "python"
        for name in ("scripts/setup.sh", "scripts/generate.py", "tests/gateway.py"):
            target = self.skill / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(SCRIPTS.parent / name, target)
        self.has(full=FULL)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))

    def has(self, **programs: str) -> Machine:
        """Put programs on the PATH: name -> the shell script that it is."""
        for name, content in programs.items():
            make_script(self.bin / name, content)
        return self

    def run(self, *command: str, path: str = "", env: Any = None, **options: Any) -> Outcome:
        changes = {**dict.fromkeys(NOT_OURS), "PATH": f"{path}{self.bin}", **(env or {})}
        options = {"cwd": self.skill, "stdin": subprocess.DEVNULL, "timeout": 240, **options}
        argv = [str(shutil.which(command[0], path=changes["PATH"])), *command[1:]]
        options.update(env=surroundings(changes), capture_output=True, encoding="utf-8")
        done = subprocess.run(argv, check=False, **options)
        return Outcome(done.returncode, done.stdout, done.stderr)

    def setup(self, **options: Any) -> Outcome:
        return self.run("bash", "scripts/setup.sh", **options)

    def follow(self, outcome: Outcome, **options: Any) -> Outcome:
        """Type what the last line says."""
        return self.run("bash", "-c", outcome.err.splitlines()[-1], **options)


@pytest.fixture
def machine(tmp_path: Path, clean_environment: None) -> Machine:
    return Machine(tmp_path)


def make_script(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # subtle: it may be a link to one of the machine's own programs
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)


def make_environment(folder: Path, *options: str) -> None:
    """As uv makes them: without pip, unless it is told --seed."""
    command = [UV, "venv", "--quiet", "--python", BASE, *options, str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def prepared(outcome: Outcome, use: Path, python: str = "python3", at: str = "") -> None:
    """All is well. Its last lines name the Python to import with and the next command to type."""
    assert (outcome.code, outcome.out) == (0, ""), outcome.err
    ready, to_import, *_, command = outcome.err.splitlines()[-5:]
    assert re.match(r"\[setup\] ready: Python 3\.\d+\.\d+ with requests [\d.]+ and Pillow ", ready)
    assert to_import.startswith("[setup] to import it in Python, use: ")
    assert shlex.split(to_import)[-1] == str(use)
    words = [python, f"{at}tests/gateway.py", "--", python, f"{at}scripts/generate.py", *MAKE]
    assert shlex.split(command) == words


def refused(outcome: Outcome, says: str, then: str = AGAIN) -> None:
    """The last two lines are what is wrong and the one command to type."""
    assert (outcome.code, outcome.out) == (1, "")
    error, command = outcome.err.splitlines()[-2:]
    assert error.startswith("[setup] error: ")
    assert says in error
    assert command == then


def snapshot(folder: Path) -> dict[str, int]:
    found = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {str(path): path.lstat().st_mtime_ns for path in found}


@table(
    "shell, folder, script",
    {
        "in the skill": ("bash", ".", "scripts/setup.sh"),
        "in the scripts": ("sh", "scripts", "setup.sh"),
        "elsewhere": ("sh", "..", "skill/scripts/setup.sh"),
        "through a link": ("sh", "../link", "scripts/setup.sh"),
    },
)
def test_ready_already(machine: Machine, shell: str, folder: str, script: str) -> None:
    """Both packages importable: says so and is done, without network, in under a second.

    What takes the time is Python, which is started twice: for the packages and for the key.
    """
    started = machine.folder / "started"
    machine.has(python3=f"echo >> {started}\n{FULL}", uv=NEVER, **ROOT)
    machine.skill.with_name("link").symlink_to(machine.skill)
    cwd = machine.skill / folder
    before = snapshot(machine.skill)
    outcome = machine.run(shell, script, cwd=cwd, env=OFFLINE)
    at = "" if cwd.resolve() == machine.skill else f"{machine.skill}/"
    prepared(outcome, machine.bin / "python3", at=at)
    assert snapshot(machine.skill) == before
    assert not list(machine.home.iterdir())
    assert started.read_text() == "\n\n"
    picture = machine.follow(outcome, cwd=cwd)
    assert (picture.code, picture.out) == (0, f"{cwd.resolve() / 'apple.jpeg'}\n")


def test_with_a_key_the_next_command_is_the_real_one(machine: Machine) -> None:
    assert 'export OMNIMAAS_API_KEY="sk-..."' in machine.has(python3=FULL).setup().err
    (machine.home / ".canvasflow_imagegen_api_key").write_text("sk-0123456789abcdef\n")
    outcome = machine.setup()
    assert shlex.split(outcome.err.splitlines()[-1]) == ["python3", "scripts/generate.py", *MAKE]
    assert "sk-0123" not in outcome.err


def test_a_python_by_another_name(machine: Machine) -> None:
    """A system whose python3 is too old, with a newer one beside it."""
    outcome = machine.has(python3=OLD, **{"python3.12": FULL}).setup()
    prepared(outcome, machine.bin / "python3.12", "python3.12")


NEED = "python3 with the venv module is missing"
SUDO = f"sudo apt-get update && sudo apt-get install -y python3-venv && {AGAIN}"


@table(
    "programs, says, then",
    {
        "no venv module": ({"python3": NO_VENV, **USER}, NEED, SUDO),
        "no venv module, no apt": ({"python3": NO_VENV}, "venv module", AGAIN),
        "no Python": (USER, NEED, SUDO),
        "no Python, no apt": ({}, "no Python 3.9 or newer", AGAIN),
        "an unusable shim": ({"python3": "exit 127"}, "no Python 3.9 or newer", AGAIN),
        "too old": ({"python3": OLD, **ROOT}, "found, python3 is Python 3.8.18.", AGAIN),
        "apt-get fails": ({"python3": NO_VENV, **ROOT}, "that failed, see above", AGAIN),
        "it is no help": ({"python3": NO_VENV, **ROOT, "apt-get": ":"}, "no Python 3.9", AGAIN),
        "venv fails half way": ({"python3": HALF_VENV}, "nothing of it is left", AGAIN),
    },
)
def test_one_command_to_type(machine: Machine, programs: Any, says: str, then: str) -> None:
    """In place of a riddle from pip or venv, and of half a .venv that breaks the next run."""
    refused(machine.has(**programs).setup(), says, then)
    assert not machine.venv.exists()


def lose_capabilities() -> None:
    """In the child between fork and exec: root may no longer write where others may not."""
    for capability in (1, 2) if os.geteuid() == 0 else ():  # DAC_OVERRIDE, DAC_READ_SEARCH
        assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0


def test_a_read_only_skill(machine: Machine) -> None:
    machine.skill.chmod(0o555)
    outcome = machine.has(python3=FULL).setup(preexec_fn=lose_capabilities)
    prepared(outcome, machine.bin / "python3")
    outcome = machine.has(python3=READY_VENV).setup(preexec_fn=lose_capabilities)
    elsewhere = "python3 -m venv ~/.product-shots-venv && . ~/.product-shots-venv/bin/activate"
    refused(outcome, f"{machine.skill} is read-only", f"{elsewhere} && {AGAIN}")


LOG = '>> "${0%/*}/../log"'
APT = f"""echo "$DEBIAN_FRONTEND $*" {LOG}
case $* in *install*) ln -sf ready "${{0%/*}}/python3" ;; esac"""
INSTALLING = f"{NEED}. Installing it: apt-get update && apt-get install -y python3-venv\n"
INSTALLED = "noninteractive -qq update\nnoninteractive -qq install -y python3-venv\n"
UV_ALONE = f'echo "$1 $2 $3 $4" {LOG}; [ "$1" = venv ] && exec ready -m venv "$5"'


@table(
    "programs, says, asked",
    {
        "no venv module": ({"python3": NO_VENV, "apt-get": APT}, INSTALLING, INSTALLED),
        "no Python": ({"apt-get": APT}, INSTALLING, INSTALLED),
        "uv": ({"uv": UV_ALONE}, "making ", "venv --quiet --python 3.13\n"),
    },
)
def test_without_the_venv_module(machine: Machine, programs: Any, says: str, asked: str) -> None:
    """`uv` if it is there, else as root on Debian `apt-get install python3-venv`, said before."""
    outcome = machine.has(**{**ROOT, "ready": READY_VENV, **programs}).setup()
    prepared(outcome, machine.python, str(machine.python) if "uv" in programs else "python3")
    assert outcome.err.startswith(f"[setup] {says}")
    assert (machine.folder / "log").read_text() == asked


@pytest.mark.long
@table("programs", {"venv": ({"python3": BARE},), "uv": ({"python3": NO_VENV, "uv": REAL_UV},)})
def test_from_nothing(machine: Machine, programs: dict[str, str]) -> None:
    """A newcomer's first minutes: without a network, with it, and, all being well, without."""
    first = machine.has(sudo=NEVER, **USER, **programs).setup(env=OFFLINE)
    refused(first, "Is there a network connection?")
    (machine.venv / "mine").touch()  # what is sound already is left as it is
    second = machine.follow(first)
    prepared(second, machine.python)
    assert (machine.venv / "mine").exists()
    picture = machine.follow(second)
    assert (picture.code, picture.out) == (0, f"{machine.skill / 'apple.jpeg'}\n")
    before = snapshot(machine.skill)
    prepared(machine.setup(env=OFFLINE), machine.python)
    assert snapshot(machine.skill) == before
    assert {path.name for path in machine.home.iterdir()} <= {".cache", ".local"}


@pytest.mark.parametrize("make", [Path.mkdir, make_environment, Path.touch])
def test_a_stale_environment_is_mended(machine: Machine, make: Any) -> None:
    """A skill that was copied from another machine, or left half installed."""
    make(machine.venv)
    prepared(machine.has(python3=READY_VENV).setup(), machine.python)


def test_half_of_it_does_nothing(machine: Machine) -> None:
    """`main "$@"` comes last: a download that breaks off in the middle does nothing."""
    ran = machine.folder / "ran"
    machine.has(**dict.fromkeys(("python3", "uv", "apt-get", "rm"), f": > {ran}"))
    script = machine.skill / "scripts" / "setup.sh"
    lines = script.read_text().splitlines(keepends=True)
    assert lines[-1] == 'main "$@" >&2\n'
    for count in range(1, len(lines)):
        script.write_text("".join(lines[:count]))
        machine.setup()
        assert not ran.exists(), lines[count - 1]


def test_it_goes_on_with_the_skills_own_python(machine: Machine, gateway: Gateway) -> None:
    """generate.py re-executes itself with that .venv when its own lacks the packages."""
    make_script(machine.python, FULL)
    prompt = """two words, a 'quote', a "double" one,\n a $HOME and 苹果"""
    command = ("python3", "scripts/generate.py", "--prompt", prompt, "--output", "a b.jpeg")
    outcome = machine.has(python3=BARE).run(*command)
    assert (outcome.code, outcome.out) == (0, f"{machine.skill / 'a b.jpeg'}\n")
    assert gateway.calls[0].json["messages"][0]["content"][0]["text"] == prompt
    assert machine.run(*command, "--n", "0").code == 2


@pytest.mark.parametrize("make", [Path.exists, Path.mkdir, make_environment])
def test_no_packages_names_the_installer(machine: Machine, gateway: Gateway, make: Any) -> None:
    """In place of a traceback, or of a program that starts itself over and over."""
    make(machine.venv)
    outcome = machine.has(python3=BARE).run("python3", "scripts/generate.py", *MAKE)
    assert (outcome.code, outcome.out, gateway.calls) == (3, "", [])
    command = shlex.join(["bash", str(machine.skill / "scripts" / "setup.sh")])
    assert f"Run this, and use the Python that it names: {command}\n" in outcome.err
    assert "Traceback" not in outcome.err
    assert machine.run("python3", "scripts/generate.py", "--list-models").code == 0


@pytest.mark.long
def test_uv_run_needs_no_set_up_at_all(machine: Machine, gateway: Gateway) -> None:
    """The PEP 723 block: `uv run scripts/generate.py` works with no set-up at all."""
    command = ("uv", "run", "--quiet", "--python", BASE, "scripts/generate.py", *MAKE)
    outcome = machine.has(uv=REAL_UV).run(*command)
    assert (outcome.code, outcome.out) == (0, f"{machine.skill / 'apple.jpeg'}\n"), outcome.err
