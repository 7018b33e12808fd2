"""Pictures of a search while it runs: MLflow's compare page and Ray's dashboard, in a real Chromium.

    python -m dcml_tune.search emoji --name demo &
    python benchmarks/screenshots.py demo --output-dir runs --dashboard http://127.0.0.1:8265

Needs chromium and its driver (Debian: chromium, chromium-driver) and the package selenium. Writes docs/images/*.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

from selenium import webdriver
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
PORT = 5055


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the search")
    parser.add_argument("--output-dir", default="runs")
    parser.add_argument("--dashboard", default="http://127.0.0.1:8265")
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
            ray_pages(browser, given.dashboard)
            compare_page(browser, given.name)
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
    base = f"http://127.0.0.1:{PORT}"
    wait_for(base)
    found = ask(base, "experiments/get-by-name?experiment_name=dcml_tune", None)["experiment"]["experiment_id"]
    wanted = {"experiment_ids": [found], "filter": f"tags.`dcml.search` = '{search}' AND tags.`dcml.role` = 'trial'"}
    runs = [run["info"]["run_id"] for run in ask(base, "runs/search", wanted)["runs"]]
    lists = [quote(json.dumps(each), safe="") for each in (runs, [found])]
    browser.get(f"{base}/#/compare-runs?runs={lists[0]}&experiments={lists[1]}")
    picture(browser, "mlflow-compare", seconds=20)


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
