"""The page in a browser, where there is one: it is clicked through, fits its window, and runs nobody's code."""

import shutil

import pytest
from test_page import STRANGE, strange_items

from flip_ctr.serve.page import build_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium or Chrome, and chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
WAIT = 30  # seconds


@pytest.fixture(scope="module")
def driver():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield running
    running.quit()


@pytest.fixture(scope="module")
def address(tokenizer, text_config):
    ranker, users, _ = strange_items(tokenizer, text_config)
    page = build_page(ranker, users, STRANGE)
    yield page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")[1]
    page.close()


def test_the_page_is_clicked_through(driver, address):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(driver, WAIT)

    def find(name: str, within: str = ""):
        return wait.until(lambda _: driver.find_element(By.CSS_SELECTOR, f"#flip-{name} {within}"))

    def says(name: str, text: str) -> None:
        wait.until(lambda _: text in find(name).text, f"#flip-{name} does not say {text!r}")

    def write(name: str, text: str) -> None:
        find(name, ":is(input, textarea)").send_keys(Keys.CONTROL, "a")
        find(name, ":is(input, textarea)").send_keys(text)

    def has(name: str, value: str) -> None:
        wait.until(lambda _: find(name, ":is(input, textarea)").get_attribute("value") == value, f"{name}: {value}")

    def opened(width: int, theme: str) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(f"{address}?__theme={theme}")
        says("ranking", "The best 9 of 9 items.")  # of the first user
        says("ranking", STRANGE)

    def is_whole(width: int) -> None:
        assert not driver.find_elements(By.CSS_SELECTOR, "img[onerror]")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width

    opened(1280, "light")
    is_whole(1280)
    opened(400, "dark")
    assert STRANGE in find("sample", "input").get_attribute("value")
    write("find-history", "film 5")
    has("item-history", "Film 5 · 105")
    find("add").click()
    says("history", "Film 5 · 105")
    find("rank").click()
    says("ranking", "clicked before")
    find("rank-change").click()
    says("change-answer", "Find an item first")
    write("find-change", "film 2")
    has("change-title", "Film 2")
    write("change-title", STRANGE)
    find("rank-change").click()
    says("change-answer", "lack this title")
    says("change-answer", STRANGE)
    driver.find_elements(By.CSS_SELECTOR, "button[role=tab]")[1].click()
    wait.until(lambda _: find("rank-new").is_displayed())
    find("rank-new").click()
    says("new-answer", "Write at least the new item's title")
    write("new-title", STRANGE)
    find("rank-new").click()
    says("new-answer", "of 10.")
    driver.find_elements(By.CSS_SELECTOR, "button[role=tab]")[2].click()
    wait.until(lambda _: find("why").is_displayed())
    write("find-why", "film 2")
    has("item-why", "Film 2 · 102")
    find("why").click()
    says("why-answer", "by the ids alone")
    is_whole(400)
    # (fonts that a version of Gradio looks for on the network are none of these)
    assert [entry for entry in driver.get_log("browser") if entry["source"] == "javascript"] == []
