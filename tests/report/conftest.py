"""One Chromium and one page of everything for all tests here."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.beside import sections
from tests.report import beside
from tests.report.advised import memory_model
from tests.report.made import everything, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def made_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("everything")
    beside.everything(folder / "results")
    model = memory_model([item.record for item in everything(folder / "same")])  # the records that report makes
    return report(folder, [model, *sections([folder / "results"], folder / "out", set())[0]])


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: install it to test the page in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()
