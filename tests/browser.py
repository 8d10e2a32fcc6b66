"""A real browser without a window: Chromium of the system, driven by selenium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WIDTHS = (1280, 390)
"""A desk and a phone, CSS pixels."""
SCREEN = 900
"""Height of the window."""
SCHEMES = ("light", "dark")


@contextmanager
def open_browser() -> Iterator:
    """Yield a selenium driver; skip where there is no browser to drive."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: make install")
    places = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if not all(places.values()):
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = places["chromium"]
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(places["chromedriver"]))
    try:
        yield driver
    finally:
        driver.quit()


def show(driver, page: Path, width: int = 1280, scheme: str = "light") -> None:
    """Open a file at a width and in a colour scheme."""
    size = {"width": width, "height": SCREEN, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(page.resolve().as_uri())


def read_console(driver) -> list[str]:
    """Take what the console said since it was last read."""
    return [entry["message"] for entry in driver.get_log("browser")]


def find_overflow(driver) -> list[str]:
    """Name what is wider than the page, but for what scrolls inside its own container."""
    return driver.execute_script(
        """
        const wide = document.documentElement.scrollWidth > innerWidth ? ["the page itself"] : [];
        for (const e of document.querySelectorAll("main *")) {
          const box = e.getBoundingClientRect();
          if (e.parentElement.closest(".scroll, pre, .skip") || !box.width) continue;
          if (box.right > innerWidth + 1 || box.left < -1) wide.push(e.outerHTML.slice(0, 120));
        }
        return wide;
        """
    )


def find_overlaps(driver) -> list[str]:
    """Name neighbours that cover each other: blocks of a section, controls, cells of a row."""
    return driver.execute_script(
        """
        const found = [];
        const parents = "main, section, figure, .filters, tr, .guard, nav ul";
        const name = (e) => e.outerHTML.slice(0, 80);
        for (const parent of document.querySelectorAll(parents)) {
          const boxes = [...parent.children].filter((e) => getComputedStyle(e).position !== "absolute")
            .map((e) => [e, e.getBoundingClientRect()]).filter(([, box]) => box.width && box.height);
          boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
            const across = Math.min(p.right, q.right) - Math.max(p.left, q.left);
            const down = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
            if (across > 1 && down > 1) found.push(`${name(a)} and ${name(b)}`);
          }));
        }
        return found;
        """
    )


def find_pale_text(driver, least: float = 4.5) -> list[str]:
    """Name text whose contrast with its background is below `least` (WCAG 2.1, AA for body text)."""
    return driver.execute_script(
        """
        const parse = (color) => color.match(/[\\d.]+/g).map(Number);
        const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
          .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
          .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const background = (e) => {
          for (; e; e = e.parentElement) {
            const color = parse(getComputedStyle(e).backgroundColor);
            if (color.length < 4 || color[3] > 0) return color;
          }
          return [255, 255, 255];
        };
        const pale = [];
        for (const e of document.querySelectorAll("main *")) {
          const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
          if (!own || !e.getClientRects().length) continue;
          const [a, b] = [luminance(parse(getComputedStyle(e).color)), luminance(background(e))];
          const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          if (ratio < arguments[0]) pale.push(`${ratio.toFixed(2)}: ${e.outerHTML.slice(0, 120)}`);
        }
        return pale;
        """,
        least,
    )
