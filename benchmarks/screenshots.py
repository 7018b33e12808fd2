"""Screenshots of a search in Chromium: MLflow's compare page, the search's run in MLflow, and the Ray dashboard.

    python -m dcml_tune.search emoji --name demo &
    python benchmarks/screenshots.py demo --output-dir runs --dashboard http://127.0.0.1:8265
    python benchmarks/screenshots.py demo --output-dir runs      # after the end of the search: MLflow only

Needs chromium and its driver (Debian: chromium, chromium-driver) and the package selenium. Writes docs/images/*.png.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

IMAGES = Path(__file__).parent.parent / "docs" / "images"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1600,1000",
)
HIDE_PATH = """
for (const each of document.querySelectorAll('div, span'))
    if (each.textContent.startsWith('Path: ') && each.textContent.length < 300) each.style.visibility = 'hidden'
"""
PORT = 5055
BASE = f"http://127.0.0.1:{PORT}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="name of the search")
    parser.add_argument("--output-dir", default="runs")
    parser.add_argument("--dashboard", help="address of the Ray dashboard, while the search runs")
    given = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    store = f"sqlite:///{Path(given.output_dir).resolve() / 'mlflow.db'}"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(PORT), "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with tempfile.TemporaryDirectory() as profile:
            browser = open_browser(profile)
            if given.dashboard:
                ray_pages(browser, given.dashboard)
            compare_page(browser, given.name)
            run_page(browser, given.name)
            browser.quit()
    finally:
        server.terminate()
        server.wait()


def open_browser(profile: str) -> webdriver.Chrome:
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))


def ray_pages(browser: webdriver.Chrome, dashboard: str) -> None:
    """The overview, and the actors with data set and searched settings; logged in by the token's cookie."""
    token = subprocess.run(
        [Path(sys.executable).parent / "ray", "get-auth-token"], capture_output=True, text=True, check=True
    )
    browser.get(dashboard)
    browser.add_cookie({"name": "ray-authentication-token", "value": token.stdout.strip().split()[-1]})
    for page, name in (("overview", "ray-overview"), ("actors", "ray-actors")):
        browser.get(f"{dashboard}/#/{page}")
        browser.refresh()
        picture(browser, name, seconds=12)


def compare_page(browser: webdriver.Chrome, search: str) -> None:
    """All trials of the search, side by side."""
    experiment, runs = of_search(search, "trial")
    lists = [quote(json.dumps(each), safe="") for each in (runs, [experiment])]
    browser.get(f"{BASE}/#/compare-runs?runs={lists[0]}&experiments={lists[1]}")
    close_assistant(browser)
    picture(browser, "mlflow-compare", seconds=20)


def run_page(browser: webdriver.Chrome, search: str) -> None:
    """The search's own run: verdict and best so far; its artifacts: the report."""
    experiment, [run] = of_search(search, "search")
    browser.get(f"{BASE}/#/experiments/{experiment}/runs/{run}/artifacts/report/index.html")
    close_assistant(browser)
    time.sleep(12)
    browser.execute_script(HIDE_PATH)
    picture(browser, "mlflow-report", seconds=1)


def of_search(search: str, role: str) -> tuple[str, list[str]]:
    """MLflow's ids of the experiment, and of the search's runs of a role."""
    wait_for(BASE)
    found = ask(BASE, "experiments/get-by-name?experiment_name=dcml_tune", None)["experiment"]["experiment_id"]
    wanted = {"experiment_ids": [found], "filter": f"tags.`dcml.search` = '{search}' AND tags.`dcml.role` = '{role}'"}
    return found, [run["info"]["run_id"] for run in ask(BASE, "runs/search", wanted)["runs"]]


def close_assistant(browser: webdriver.Chrome) -> None:
    """MLflow opens a panel of its own beside the page."""
    time.sleep(8)
    for button in browser.find_elements("css selector", "button[aria-label*='lose'], button[aria-label*='Close']"):
        with contextlib.suppress(WebDriverException):
            button.click()


def ask(base: str, call: str, body: dict | None) -> dict:
    request = urllib.request.Request(
        f"{base}/api/2.0/mlflow/{call}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def wait_for(base: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{base}/health", timeout=5).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def picture(browser: webdriver.Chrome, name: str, *, seconds: float) -> None:
    """Save the page once it has had time to draw its charts."""
    time.sleep(seconds)
    browser.save_screenshot(str(IMAGES / f"{name}.png"))
    print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
