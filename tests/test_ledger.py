"""Money: what each outcome costs, the ledger that remembers it, and the budget that holds."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import sqlite3
import stat
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import bodies
import generate
import pytest
from conftest import MODELS, Outcome, Run
from gateway import Gateway, Received, Reply

LEDGER = "PRODUCT_SHOTS_IMAGEGEN_LEDGER"
BUDGET = "PRODUCT_SHOTS_IMAGEGEN_BUDGET_CNY"
PRICES = "PRODUCT_SHOTS_IMAGEGEN_PRICES"
PERIODS = ("today", "seven_days", "month", "all")
SUMS = ("calls", "pictures", "cost_cny", "possible_cost_cny", "unpriced")


def picture(received: Received) -> Reply:
    """As many pictures as were asked for, without a word on tokens."""
    count = received.json["n"] if received.path.endswith("generations") else 1
    made = bodies.answer(bodies.family_of(received), *[bodies.FINAL] * count)
    return Reply(body={**made, "usage": {}})


class Shop:
    """The program before a gateway that makes pictures, and the ledger of what it buys there."""

    def __init__(self, gateway: Gateway, run: Run, reference: Path) -> None:
        self.gateway, self.run, self.reference = gateway, run, reference
        self.ledger = Path("~/.local/state/product-shots-image-gen/ledger.db").expanduser()
        gateway.answer_always(picture)

    def buy(self, *replies: Any, flags: str = "", references: int = 0) -> Outcome:
        """A cup; the gateway answers with these replies first."""
        self.gateway.answer(*replies)
        words = [*flags.split(), *["--reference-image", self.reference] * references]
        return self.run("--prompt", "a cup", "--output", "cup.png", "--json", *words)

    def buy_unnoted(self, warned: bool) -> None:
        """A picture is made, and one line tells of the ledger."""
        outcome = self.buy()
        told = [line for line in outcome.err.splitlines() if str(self.ledger) in line]
        assert (outcome.code, ["warning" in line for line in told]) == (0, [warned])

    def connect(self) -> Any:
        connection = sqlite3.connect(self.ledger, isolation_level=None, check_same_thread=False)
        return contextlib.closing(connection)

    def rows(self, names: str) -> list[list[Any]]:
        """These columns of all rows."""
        with self.connect() as ledger:
            rows = ledger.execute(f"SELECT {names.replace(' ', ', ')} FROM calls ORDER BY id")
            return [list(row) for row in rows]

    def costs(self) -> dict[str, list[Any]]:
        """The sums of each period."""
        told = self.run("--costs", "--json").json["periods"]
        return {period: [sums[name] for name in SUMS] for period, sums in told.items()}


@pytest.fixture
def shop(gateway: Gateway, run: Run, reference: Path, short_waits: None, monkeypatch: Any) -> Shop:
    monkeypatch.setattr(generate, "LEDGER_LOCK_S", 0.3)
    return Shop(gateway, run, reference)


@pytest.fixture
def clock() -> Iterator[Callable[..., None]]:
    """clock("2026-06-15 23:59", zone): what time it is from now on, and where."""
    date, moment = datetime.date, datetime.datetime

    def turn(text: str, zone: str = "CST-8") -> None:
        patch.setenv("TZ", zone)
        time.tzset()
        now = moment.fromisoformat(text).timestamp()
        today = {"today": classmethod(lambda cls: cls.fromtimestamp(now))}
        this = {"now": classmethod(lambda cls, tz=None: cls.fromtimestamp(now, tz))}
        patch.setattr(datetime, "date", type("date", (date,), today))
        patch.setattr(datetime, "datetime", type("datetime", (moment,), this))

    with pytest.MonkeyPatch.context() as patch:
        yield turn
    time.tzset()


# --- What each way to end costs ---


def blocked(received: Received) -> Reply:
    """A folder takes the place of the file while the picture is made."""
    Path("cup.png").mkdir()
    return picture(received)


def used(**tokens: int) -> list[Reply]:
    return [Reply(body={**bodies.answer("openai", bodies.FINAL), "usage": tokens})]


KEY, LATE, EMPTY = Reply(401), Reply(524), Reply(body={"choices": []})
WORDS = Reply(body=bodies.chat("I would rather talk about the weather."))
DRAFT = Reply(events=[bodies.delta(bodies.markdown(bodies.data_url(bodies.DRAFT)))], fault_after=1)
REFUSED = Reply(400, body=bodies.canonical(code="moderation_blocked"))
GPT, UNPRICED = "--model gpt-image-2", "--model seedream-4"
FREE, MAYBE = "] not billed", "] may have been billed: up to 1.00 CNY"
TOKENS = used(prompt_tokens=1000, completion_tokens=4000)
GOOGLES = used(promptTokenCount=1000, candidatesTokenCount=4000)
NO_INPUT = used(input_tokens=0, output_tokens=10**6)
SPOILT = {"data": [{"b64_json": bodies.b64(bodies.FINAL[:9000])}]}
DEAR = Reply(body={**SPOILT, "usage": {"input_tokens": 1000, "output_tokens": 4000}})
GONE = {"url": "http://127.0.0.1:1/gone.png"}
HALF = Reply(body=bodies.listing(GONE, {"b64_json": bodies.b64(bodies.FINAL)}, usage={}))
MISSING = "about 0.35 CNY, possibly 0.70 with the pictures that are missing"
ABSURD = used(total_tokens=10**20, input_tokens=10**400)
PARTLY = "about 1.00 CNY, possibly 2.00 with the attempt that failed"
ENDS = {
    # what: replies, flags, exit code, kind, billed, cost for certain and at most, what is said
    "saved": ([picture], "", 0, None, "yes", 1, 1, ", about 1.00 CNY\n"),
    "saved n=3": ([picture], f"{GPT} --n 3", 0, None, "yes", 1.05, 1.05, ", about 1.05 CNY\n"),
    "one of two": ([HALF], f"{GPT} --n 2", 0, None, "yes", 0.35, 0.7, f", {MISSING}\n"),
    "wrong key": ([KEY], "", 4, "auth", "no", 0, 0, FREE),
    "draft": ([DRAFT], "", 6, "unavailable", "maybe", 0, 1, MAYBE),
    "refused": ([REFUSED], "", 7, "refused", "no", 0, 0, FREE),
    "not stored": ([blocked], "", 8, "save", "yes", 1, 1, "] billed: about 1.00 CNY"),
    "empty": ([EMPTY], "", 9, "response", "yes", 1, 1, "] billed: about 1.00 CNY"),
    "words": ([WORDS], "", 9, "response", "maybe", 0, 1, MAYBE),
    "no price": ([picture], UNPRICED, 0, None, "yes", None, None, ", price unknown\n"),
    "no price, key": ([KEY], UNPRICED, 4, "auth", "no", 0, 0, FREE),
    "no price, lost": ([EMPTY], UNPRICED, 9, "response", "yes", None, None, "price unknown"),
    "no price, late": ([LATE], UNPRICED, 6, "unavailable", "maybe", None, None, "price unknown"),
    # with a reference, so that there are three attempts
    "R late, saved": ([LATE, picture], "", 0, None, "yes", 1, 2, f", {PARTLY}\n"),
    "R free": ([Reply(429)] * 3, "", 5, "quota", "no", 0, 0, FREE),
    "R free, key": ([Reply(429), KEY], "", 4, "auth", "no", 0, 0, FREE),
    "R late, key": ([LATE, KEY], "", 4, "auth", "maybe", 0, 1, MAYBE),
    "R late": ([LATE] * 3, "", 6, "unavailable", "maybe", 0, 3, "billed: up to 3.00 CNY"),
    "R all": ([Reply(429), LATE, EMPTY], "", 9, "response", "yes", 1, 2, f"] billed: {PARTLY}"),
    "R later": ([LATE, LATE, picture], "", 0, None, "yes", 1, 3, "with the 2 attempts that failed"),
    # where the tokens come to more than the price
    "tokens": (TOKENS, GPT, 0, None, "yes", 0.35, 0.8179, ", possibly 0.82 by the tokens used\n"),
    "tokens, lost": ([DEAR], GPT, 9, "response", "yes", 0.35, 0.8179, "0.82 by the tokens used"),
    "Google's": (GOOGLES, GPT, 0, None, "yes", 0.35, 0.8179, "possibly 0.82 by the tokens used\n"),
    "absurd": (ABSURD, GPT, 0, None, "yes", 0.35, 0.35, ", about 0.35 CNY\n"),
    "zero": (NO_INPUT, GPT, 0, None, "yes", 0.35, 0.35, ", about 0.35 CNY\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_every_end_says_what_it_cost(shop: Shop, name: str) -> None:
    """In the exit code, the JSON, the last line on stderr, the ledger and --costs."""
    replies, flags, code, kind, billed, certain, possible, said = ENDS[name]
    outcome = shop.buy(*replies, flags=flags, references=name.startswith("R"))
    told = outcome.json if code == 0 else outcome.json["error"]
    assert (outcome.code, told["possible_cost_cny"]) == (code, possible)
    if code == 0:
        assert told["estimated_cost_cny"] == certain and said in outcome.err
    else:
        assert (told["kind"], told["billed"]) == (kind, billed)
        assert outcome.err.splitlines()[-1].endswith(said)
    assert outcome.err.count("CNY") <= 1  # one total
    assert "saved_at" not in told or shop.rows("paths") == [[json.dumps([told["saved_at"]])]]
    noted = shop.rows("kind billed cost_cny possible_cost_cny attempts")
    assert noted == [[kind, billed, certain, possible, len(replies)]]
    pictures = shop.rows("pictures")[0][0]
    assert bool(pictures) == (code in (0, 8))
    sums = [1, pictures, certain or 0, possible or 0, int(possible is None)]
    assert shop.costs() == dict.fromkeys(PERIODS, sums)


@pytest.mark.parametrize("name, texts", [
    (PRICES, "0.2|x|=1|a=|a=b|a=-1|a=nan|a=1,5|a=1;b=2|a=1 b=2|x/=1"),
    (BUDGET, "x|-1|nan|inf|1e3|50 CNY|5,0|٣|1_0"),
])  # fmt: skip
def test_malformed_sums(shop: Shop, monkeypatch: Any, name: str, texts: str) -> None:
    for text in texts.split("|"):
        monkeypatch.setenv(name, text)
        error = shop.buy().json["error"]
        assert (text, error["kind"], error["billed"]) == (text, "config", "no")
        assert name in error["message"] and error["hint"]
    assert shop.buy(flags="--dry-run").code == 3
    assert shop.gateway.requests == []


def test_own_prices(shop: Shop, monkeypatch: Any) -> None:
    """By plain name, whatever blanks are around; they win over the catalogue and over tokens."""
    monkeypatch.setenv(PRICES, " GPT-image-2 = 0.002 ,, google/seedream-4=.5 ,")
    outcome = shop.buy(*TOKENS, flags=GPT)
    assert (outcome.json["estimated_cost_cny"], outcome.json["possible_cost_cny"]) == (0.002, 0.002)
    assert ", less than 0.01 CNY\n" in outcome.err
    assert shop.buy(flags=UNPRICED).json["estimated_cost_cny"] == 0.5
    models = {row["name"]: row for row in shop.run("--list-models", "--json").json["models"]}
    prices = [models[name]["price_cny"] for name in ("gpt-image-2", "gpt-image-1")]
    assert prices == [0.002, 0.5]


# --- The ledger ---


def test_row_of_a_saved_picture(shop: Shop) -> None:
    """Every column; what is not given is null, and lists are JSON."""
    link = shop.gateway.publish("cup.png", bodies.FINAL)
    reply = Reply(body={**bodies.linked("openai", link), "usage": {"total_tokens": 7}})
    elapsed_s = shop.buy(reply, flags=f"--fit 64x64 {GPT}", references=1).json["elapsed_s"]
    with shop.connect() as ledger:
        assert ledger.execute("PRAGMA user_version").fetchone() == (1,)
    assert stat.S_IMODE(shop.ledger.stat().st_mode) == 0o600
    [[began, ended, seconds]] = shop.rows("started ended elapsed_s")
    times = [datetime.datetime.fromisoformat(text) for text in (began, ended)]
    assert began.endswith("+00:00") and ended.endswith("+00:00")
    assert times[0] < times[1] and round(seconds, 2) == elapsed_s
    asked = [1, began, ended, "gpt-image-2", "openai", 1, "a cup", None, f'["{shop.reference}"]']
    outcome = ["cup.png", shop.gateway.url, 1, None, "yes", 200, 7, seconds, 1, 0.35, 0.35]
    paths = (f'["{os.path.abspath(name)}"]' for name in ("cup.png", "cup-original.png"))
    assert shop.rows("*") == [[*asked, *outcome, *paths, f'["{link}"]']]


def test_row_is_there_before_the_first_byte_is_sent(shop: Shop) -> None:
    """Of each attempt; while a call runs it may have been billed."""
    seen = []

    def look(received: Received) -> Reply:
        seen.extend(shop.rows("kind ended billed attempts cost_cny possible_cost_cny pictures"))
        return LATE if len(seen) == 1 else picture(received)

    shop.buy(look, look, references=1)
    assert seen == [["running", None, "maybe", number, 0, number, 0] for number in (1, 2)]


def test_key_is_in_no_column(shop: Shop, monkeypatch: Any) -> None:
    """Whatever the gateway says, or the user types by mistake."""
    monkeypatch.setattr("generate.log.propagate", False)  # pytest-xdist cannot send odd names
    key = shop.gateway.key
    link = shop.gateway.publish(f"{key}.png", bodies.FINAL)
    reference = shop.reference.rename(shop.reference.with_name(f"{key}.png"))
    flags = [
        "--reference-image",
        reference,
        "--negative-prompt",
        key,
        "--model",
        f"{key}/flux{'x' * 5000}",
    ]
    refusal = Reply(400, body=bodies.canonical(key, key))
    shop.gateway.answer(Reply(body=bodies.linked("openai", link)), refusal)
    for output in (f"{key}.png", f"{key}/", os.fsdecode(b"caf\xe9.png")):  # a name may be any bytes
        shop.run("--prompt", f"a cup, {key}", "--output", output, *flags)
    assert shop.rows("length(model)") == [[4000]] * 3
    assert b"standin-0123" not in shop.ledger.read_bytes()


def database(path: Path, version: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE calls (id)")
        connection.execute(f"PRAGMA user_version = {version}")


HINDRANCES: dict[str, Callable[[Path], Any]] = {
    "old ledger": lambda path: path.write_text('{"cost": 1}\n' * 99),
    "one byte": lambda path: path.write_text("x"),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "another's": lambda path: database(path, 0),
    "locked": lambda path: database(path, 1),
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", HINDRANCES)
def test_ledger_that_cannot_be_used(shop: Shop, monkeypatch: Any, kind: str, named: bool) -> None:
    """The call goes on, with one line; the file is untouched; --costs ends with exit code 3."""
    shop.ledger.parent.mkdir(parents=True)
    HINDRANCES[kind](shop.ledger)
    monkeypatch.setenv(LEDGER, str(shop.ledger) if named else "")
    before = shop.ledger.read_bytes() if shop.ledger.is_file() else b""
    with contextlib.ExitStack() as stack:
        if kind == "locked":
            stack.enter_context(shop.connect()).execute("BEGIN EXCLUSIVE")
        shop.buy_unnoted(warned=named)
        assert shop.run("--costs").code == 3
        monkeypatch.setenv(BUDGET, "50")
        assert (shop.buy().code, len(shop.gateway.calls)) == (10, 1)
        told = shop.run("--check", "--json").json
    assert told["budget_left_cny"] is None
    assert "what is left of the budget" in told["warnings"][0]
    assert not before or shop.ledger.read_bytes() == before


XDG, NAME = "XDG_STATE_HOME", "product-shots-image-gen/ledger.db"


@pytest.mark.parametrize("name, value, place", [
    (XDG, "{here}/state", "{here}/state/{name}"),
    (XDG, "relative", "{home}/.local/state/{name}"),
    (LEDGER, "~/mine.db", "{home}/mine.db"),
    (LEDGER, "mine.db", "{here}/mine.db"),
])  # fmt: skip
def test_place_of_the_ledger(
    shop: Shop, monkeypatch: Any, name: str, value: str, place: str
) -> None:
    names = {"home": Path.home(), "here": Path.cwd(), "name": NAME}
    monkeypatch.setenv(name, value.format(**names))
    shop.buy()
    told = shop.run("--costs", "--json").json["ledger"]
    assert Path(told) == Path(place.format(**names))


def test_ledger_that_is_lost(shop: Shop, monkeypatch: Any) -> None:
    """During a call, or with the module that reads it: the picture is made, and the user told."""

    def lose(received: Received) -> Reply:
        shop.ledger.rename("elsewhere")
        shop.ledger.mkdir()
        return picture(received)

    outcome = shop.buy(lose)
    assert (outcome.code, "outcome of the call could not be" in outcome.err) == (0, True)
    monkeypatch.setenv(LEDGER, "x" * 300)
    assert (shop.buy().code, shop.run("--costs").code) == (0, 3)
    monkeypatch.setenv(LEDGER, "mine.db")
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    outcome = shop.buy()
    assert (outcome.code, "this Python has no sqlite3" in outcome.err) == (0, True)


# --- What was spent ---

CHINA, BERLIN = "CST-8", "CET-1CEST,M3.5.0,M10.5.0/3"


@pytest.mark.parametrize("zone, moments, counts", [
    (CHINA, "06-14 23:59, 06-15 00:00, 06-15 12:00", [2, 3, 3, 3]),
    (CHINA, "06-08 23:59, 06-09 00:00, 06-15 00:00", [1, 2, 3, 3]),
    (CHINA, "05-31 23:59, 06-01 00:00, 06-30 23:59", [1, 1, 2, 3]),
    (CHINA, "05-31 23:59, 06-01 00:00", [1, 2, 1, 2]),
    (CHINA, "07-01 12:00, 06-15 12:00", [1, 1, 1, 2]),  # the clock goes back
    (BERLIN, "03-28 23:59, 03-29 00:00, 03-29 23:59", [2, 3, 3, 3]),  # summer time begins
    (BERLIN, "10-24 23:59, 10-25 00:00, 10-25 23:59", [2, 3, 3, 3]),  # and ends
    (BERLIN, "03-23 23:59, 03-24 00:00, 03-30 12:00", [1, 2, 3, 3]),
])  # fmt: skip
def test_periods(shop: Shop, clock: Any, zone: str, moments: str, counts: list[int]) -> None:
    """A local day, the seven to today, the calendar's month; the last call is now."""
    for moment in moments.split(", "):
        clock(f"2026-{moment}", zone)
        shop.buy()
    assert [sums[0] for sums in shop.costs().values()] == counts


def test_costs(shop: Shop, monkeypatch: Any) -> None:
    """Exactly these keys, newest first; as a text with the totals last; without a key."""
    for flags in (UNPRICED, f"{GPT} --n 3", *[""] * 9):
        shop.buy(flags=flags)
    monkeypatch.delenv("OMNIMAAS_API_KEY")
    told = shop.run("--costs", "--json").json
    assert [*told] == ["ok", "ledger", "periods", "models", "calls", "warnings"]
    assert told["periods"] == dict.fromkeys(PERIODS, dict(zip(SUMS, (11, 13, 10.05, 10.05, 1))))
    models = [(MODELS["gemini"], 9, 9, 9, 9), ("gpt-image-2", 1, 3, 1.05, 1.05)]
    rows = [dict(zip(("model", *SUMS), row)) for row in (*models, ("seedream-4", 1, 1, 0, 0))]
    assert told["models"] == rows
    assert [call["id"] for call in told["calls"]] == [*range(11, 1, -1)]
    assert told["calls"][0]["paths"] == [os.path.abspath("cup.png")]
    *lines, _, unpriced = shop.run("--costs").out.splitlines()
    assert [line.split()[-4:] for line in lines[-4:]] == [["11", "13", "10.05", "10.05"]] * 4
    assert len({len(line) for line in lines[-8:]}) == 1 and unpriced.endswith(": 1.")
    assert [line.split()[3] for line in lines[4:14]] == ["saved"] * 10


def test_costs_tell_local_time(shop: Shop, clock: Any) -> None:
    clock("2026-06-15 00:30", CHINA)
    shop.buy()
    assert "\n2026-06-15 00:30:00  gemini" in shop.run("--costs").out


def test_ledger_in_a_folder_that_is_there(shop: Shop) -> None:
    """As after somebody has removed the file."""
    shop.ledger.parent.mkdir(parents=True)
    shop.buy()
    assert len(shop.rows("id")) == 1


@pytest.mark.parametrize("ledger", ["", "off", "empty.db"])
def test_costs_of_nothing(shop: Shop, monkeypatch: Any, ledger: str) -> None:
    """Without a ledger there are zeros."""
    Path("empty.db").touch()
    monkeypatch.setenv(LEDGER, ledger)
    told = shop.run("--costs", "--json").json
    assert (told["models"], told["calls"]) == ([], [])
    assert (told["ledger"] is None) == (ledger == "off")
    assert told["periods"] == dict.fromkeys(PERIODS, dict.fromkeys(SUMS, 0))
    place = "off" if ledger == "off" else told["ledger"]
    assert shop.run("--costs").out.splitlines()[0] == f"ledger: {place}"


# --- The budget ---

BUDGETS: dict[str, tuple[Any, ...]] = {
    # what: budget, other settings, flags, replies to each call, exit codes
    "fits": ("3", {}, "", [[picture]] * 4, [0, 0, 0, 10]),
    "cents": ("1.05", {}, GPT, [[picture]] * 4, [0, 0, 0, 10]),
    "free again": ("1", {}, "", [[KEY], [REFUSED], [picture], [picture]], [4, 7, 0, 10]),
    "perhaps spent": ("1", {}, "", [[LATE], [picture]], [6, 10]),
    "attempt by attempt": ("2.5", {}, "", [[LATE, LATE]], [6]),
    "nothing": ("0", {}, "", [[picture]], [10]),
    "nothing for nothing": ("0", {PRICES: "gpt-image-2=0"}, GPT, [[picture]], [0]),
    "blank": (" ", {}, "", [[picture]], [0]),
    "no price": ("50", {}, UNPRICED, [[picture]], [10]),
    "no ledger": ("50", {LEDGER: "off"}, "", [[picture]], [10]),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_budget(shop: Shop, monkeypatch: Any, name: str) -> None:
    budget, settings, flags, calls, codes = BUDGETS[name]
    for variable, value in {BUDGET: budget, **settings}.items():
        monkeypatch.setenv(variable, value)
    for replies, code in zip(calls, codes):
        sent = len(shop.gateway.calls)
        outcome = shop.buy(*replies, flags=flags, references=len(replies) - 1)
        assert (outcome.code, len(shop.gateway.calls) - sent) == (code, len(replies) * (code != 10))
    if codes[-1] == 10:
        error = outcome.json["error"]
        assert (error["kind"], error["billed"], error["retryable"]) == ("budget", "no", False)
        assert error["possible_cost_cny"] == 0 and error["hint"]


@pytest.mark.parametrize("status, billed, possible", [(429, "no", 0), (503, "maybe", 1)])
def test_interrupt_before_the_next_attempt(
    shop: Shop, monkeypatch: Any, status: int, billed: str, possible: int
) -> None:
    """It counts what was sent, and is not taken for a budget without room for another one."""
    monkeypatch.setenv(BUDGET, "1.5")
    monkeypatch.setattr(generate.STOP, "wait", lambda seconds: True)
    outcome = shop.buy(Reply(status), references=1)
    assert (outcome.code, outcome.json["error"]["billed"]) == (130, billed)
    assert "Nothing was sent" not in outcome.err
    assert shop.rows("attempts possible_cost_cny") == [[1, possible]]


def test_message_of_the_budget_counts_the_call_s_own_attempts(shop: Shop, monkeypatch: Any) -> None:
    monkeypatch.setenv(BUDGET, "2.5")
    told = shop.buy(LATE, LATE, references=1).err
    assert "2.50 CNY a day" in told and "up to 1.00 CNY: up to 2.00 CNY is already spent." in told


@pytest.mark.parametrize("budget, is_enough", [("1.5", False), ("2", True)])
def test_a_dry_run_knows_the_budget(
    shop: Shop, monkeypatch: Any, budget: str, is_enough: bool
) -> None:
    """It validates everything, what is left of the day included."""
    monkeypatch.setenv(BUDGET, budget)
    shop.buy()
    warnings = shop.run("--prompt", "a cup", "--dry-run", "--json").json["warnings"]
    assert is_enough == (warnings == [])
    assert is_enough or "it leaves 0.50 CNY" in warnings[0]
    for setting, flags in ((LEDGER, GPT), (PRICES, UNPRICED)):  # what no budget can do without
        monkeypatch.setenv(setting, "off" if setting == LEDGER else "")
        assert shop.run("--prompt", "a cup", "--dry-run", *flags.split()).code == 10


def test_ledger_is_nowhere_without_a_home(shop: Shop, monkeypatch: Any) -> None:
    """A folder named ~ is no place for it."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert shop.buy().code == 0
    assert shop.run("--costs", "--json").json["ledger"] is None
    assert not Path("~").exists()


def test_row_belongs_to_its_call_alone(shop: Shop, monkeypatch: Any) -> None:
    """A commit that fails leaves no number behind, which the next call's row would have."""
    prepare = generate.prepare_ledger
    monkeypatch.setattr(generate, "LEDGER_LOCK_S", 0.1)
    shop.buy()
    reader = sqlite3.connect(shop.ledger, isolation_level=None, check_same_thread=False)

    def lock(connection: Any) -> None:
        prepare(connection)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM calls").fetchone()

    monkeypatch.setattr(generate, "prepare_ledger", lock)

    def late(received: Received) -> Reply:
        monkeypatch.setattr(generate, "prepare_ledger", prepare)
        reader.rollback()
        reader.execute("INSERT INTO calls (kind) VALUES ('another call')")
        return picture(received)

    shop.buy(late)
    reader.close()
    assert shop.rows("kind") == [[None], ["another call"]]


def test_message_of_the_budget(shop: Shop, monkeypatch: Any, start: Any) -> None:
    """What is spent, how much of it hangs on killed runs, this attempt's cost, the day's end."""
    shop.gateway.answer(Reply(hang="accept"))
    process = start("--prompt", "a cup")
    shop.gateway.wait_for(1)
    process.kill()
    process.wait()
    assert shop.rows("kind ended billed possible_cost_cny") == [["running", None, "maybe", 1]]
    monkeypatch.setenv(BUDGET, "2.5")
    shop.buy(flags=f"{GPT} --n 3")
    error = shop.buy(flags="--model gpt-image-1").json["error"]
    assert {*re.findall(r"\d+\.\d\d", error["message"])} == {"2.50", "2.05", "1.00", "0.50"}
    assert f"{datetime.date.today() + datetime.timedelta(1)} 00:00" in error["hint"]
    names = ["gpt-image-2", "gpt-5", "google/gemini-3-pro-image", "seedream-4"]
    models = Reply(body={"models": [*({"name": name} for name in names[:3]), names[3]]})
    shop.gateway.answer_always(models, path="/models")
    told = shop.run("--check", "--json").json
    assert (told["models"], told["budget_cny"], told["budget_left_cny"]) == (4, 2.5, 0.45)
    prices = [("gpt-image-2", 0.35), ("google/gemini-3-pro-image", 1), ("seedream-4", None)]
    assert told["image_models"] == [{"name": name, "price_cny": price} for name, price in prices]
    monkeypatch.setenv(BUDGET, "2")
    text = shop.run("--check").out
    assert re.search(r"\ngpt-image-2 +0.35 CNY\n(.*\n)+seedream-4 +price unknown\n", text)
    assert re.search(r"\nbudget.left\D* 0\.0+( CNY)?\n", text)


# --- Many at once ---


def in_thread(_: int) -> int:
    try:
        generate.generate_gemini("a cup")
    except generate.ImageGenError as error:
        return error.exit_code
    return 0


def check_many(shop: Shop, call: Callable[[int], int], count: int, made: int) -> None:
    """Every call has its row, and no budget is overshot."""
    with ThreadPoolExecutor(count) as pool:
        codes = sorted(pool.map(call, range(count)))
    assert codes == [0] * made + [10] * (count - made)
    assert shop.rows("kind pictures") == [[None, 1]] * made
    assert len(shop.gateway.calls) == made


@pytest.mark.parametrize("budget, count, made", [("", 50, 50), ("3", 8, 3)])
def test_threads(shop: Shop, monkeypatch: Any, budget: str, count: int, made: int) -> None:
    monkeypatch.setattr(generate, "LEDGER_LOCK_S", 60)
    monkeypatch.setenv(BUDGET, budget)
    check_many(shop, in_thread, count, made)
