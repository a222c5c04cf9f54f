"""The ledger with processes in place of threads, and when it has grown."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import generate
import pytest
from test_ledger import BUDGET, Shop, check_many, shop

pytestmark = pytest.mark.long
__all__ = ["shop"]  # the fixture


def in_process(number: int) -> int:
    argv = [sys.executable, generate.__file__, "--quiet", "--prompt", "a cup", "--output"]
    return subprocess.run([*argv, f"{number}.png"], check=False, capture_output=True).returncode


@pytest.mark.parametrize("budget, count, made", [("", 50, 50), ("3", 8, 3)])
def test_processes(shop: Shop, monkeypatch: Any, budget: str, count: int, made: int) -> None:
    monkeypatch.setenv(BUDGET, budget)
    check_many(shop, in_process, count, made)


def test_big_ledger_answers_soon(shop: Shop) -> None:
    """100,000 rows within a second, of the processor's time."""
    shop.buy()
    names = ", ".join([*generate.COLUMNS][1:])
    with shop.connect() as ledger:
        for _ in range(17):
            ledger.execute(f"INSERT INTO calls ({names}) SELECT {names} FROM calls")
    began = time.process_time()
    assert shop.costs()["today"][0] == 2**17
    assert time.process_time() - began < 1
