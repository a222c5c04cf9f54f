#!/bin/sh
# Prepares Python 3.9 or newer, with requests and Pillow, for generate.py. You can run it as often
# as you like:
#
#     bash scripts/setup.sh
#
# What already works is kept, and no network is used then. Otherwise pip installs into the
# active virtual environment, or into .venv in the skill's folder, where generate.py finds it by
# itself. The system's Python is not touched; only where Debian's python3-venv is missing, and only
# as root, apt-get installs that. It never uses sudo and edits no profile. All output goes to
# standard error; the last lines name the Python to import with and the next command to type.

set -eu

NAMES="python3 python python3.14 python3.13 python3.12 python3.11 python3.10 python3.9"
ABOUT='
import sys
state = "bare" if sys.prefix == getattr(sys, "base_prefix", sys.prefix) else "venv"
about = "Python %d.%d.%d" % sys.version_info[:3]
try:
    import requests, PIL.Image
    versions = (about, requests.__version__, PIL.__version__)
    state, about = "ready", "%s with requests %s and Pillow %s" % versions
except Exception:
    pass
print((state if sys.version_info >= (3, 9) else "old") + " " + about)'

say() { printf '[setup] %s\n' "$*"; }
has() { command -v "$1" >/dev/null; }
quiet() { "$@" >/dev/null 2>&1 </dev/null; }
quoted() { printf '%s\n' "$1" | sed "/[^A-Za-z0-9_.\/-]/ { s/'/'\\\\''/g; s/^/'/; s/\$/'/; }"; }
can_venv() { [ "$python" ] && quiet "$python" -c 'import ensurepip, venv'; }
fail() { say "error: $1"; printf '%s\n' "$2"; exit 1; } # what is wrong, and the command to type

look_at() { # the interpreter $1: $state is absent, old, bare, venv or ready, $about says more
    line=$("$1" -c "$ABOUT" 2>/dev/null </dev/null) || line=absent
    state=${line%% *} about=${line#* }
}

find_python() { # $python: the first that is new enough, if any; $too_old: those that are not
    too_old=
    for python in $NAMES; do
        look_at "$python"
        case $state in
            ready | venv | bare) return ;;
            old) too_old="$too_old, $python is ${about%% with *}" ;;
        esac
    done
    python=
}

look_at_own() { # the interpreter of $venv
    if [ -d "$venv/Scripts" ]; then own=$venv/Scripts/python.exe; else own=$venv/bin/python; fi
    look_at "$own"
}

get_venv_module() { # on Debian and its derivatives, which package it separately
    missing="${python:-python3} with the venv module is missing"
    [ "$(id -u)" = 0 ] || fail "$missing. To install it and come back here:" \
        "sudo apt-get update && sudo apt-get install -y python3-venv && $again"
    say "$missing. Installing it: apt-get update && apt-get install -y python3-venv"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get -qq update && apt-get -qq install -y python3-venv; } </dev/null >/dev/null ||
        fail "that failed, see above. To try again:" "$again"
    find_python
}

make_venv() {
    if ! can_venv && ! has uv && has apt-get && { [ "$python" ] || [ -z "$too_old" ]; }; then
        get_venv_module
    fi
    if can_venv; then
        set -- "$python" -m venv
    elif has uv; then
        set -- uv venv --quiet --python "${python:-3.13}"
    else
        missing="no Python 3.9 or newer with the venv module was found$too_old"
        fail "$missing. Install one, or uv, and come back here:" "$again"
    fi
    [ -w "$skill" ] || fail "$skill is read-only. To use a virtual environment elsewhere:" \
        "$* ~/.product-shots-venv && . ~/.product-shots-venv/bin/activate && $again"
    say "making $venv"
    rm -rf "$venv" # a stale one, whose Python or pip is gone
    "$@" "$venv" || {
        rm -rf "$venv"
        fail "that failed, see above; nothing of it is left. To try again:" "$again"
    }
    look_at_own
}

main() {
    folder=$(pwd -P)
    cd -P -- "$(dirname -- "$0")" # Python looks here first, as it does for generate.py
    skill=$(dirname -- "$(pwd -P)") venv=$skill/.venv
    if [ "$folder" = "$skill" ]; then at=; else at=$skill/; fi
    again="bash $(quoted "${at}scripts/setup.sh")"

    find_python
    own=$python
    case $state in ready | venv) ;; *) look_at_own ;; esac
    if [ "$state" != ready ]; then
        { [ "$state" = venv ] && { has uv || quiet "$own" -m pip --version; }; } || make_venv
        say "installing requests and Pillow for $own"
        set -- "$own" -m pip --disable-pip-version-check install --no-user
        quiet "$own" -m pip --version || set -- uv pip install --python "$own"
        { "$@" --quiet requests Pillow && look_at "$own" && [ "$state" = ready ]; } ||
            fail "that failed, see above. Is there a network connection? To try again:" "$again"
    fi
    say "ready: $about"
    say "to import it in Python, use: $(quoted "$(command -v "$own")")"

    python=$(quoted "${python:-$own}")
    command="$python $(quoted "${at}scripts/generate.py")"
    command="$command --prompt \"a red apple on wood\" --output apple.jpeg"
    if ! quiet "$own" -Bc 'import generate; generate.load_api_key()'; then
        say 'no key is set yet. When you have one: export OMNIMAAS_API_KEY="sk-..."'
        say 'to try it without a key, with a stand-in gateway:'
        command="$python $(quoted "${at}tests/gateway.py") -- $command"
    fi
    printf '%s\n' "$command"
}

main "$@" >&2
