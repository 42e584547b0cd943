"""The interactive page: its data is what gradtx computes, and a browser draws what the data says."""

import base64
import json
import math
import re
import runpy
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "interactive"
ALL = ["sgd", "momentum", "adam", "adamp", "adam_atan2", "adabelief", "lion", "adan", "adagrad", "rmsprop"]
ALL += ["adahessian", "sophia", "prodigy", "alig", "schedule_free", "sam"]
FEW = 4  # steps that are computed again, for all
SWITCHES = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
SWITCHES += "--disable-component-update --disable-sync"


@pytest.fixture(scope="module")
def maker():
    return runpy.run_path(str(DOCS / "interactive.py"))


@pytest.fixture(scope="module")
def data():
    script = (PAGE / "data.js").read_text(encoding="utf-8")
    return json.loads(script.partition("const DATA = ")[2].removesuffix(";\n"))


@pytest.fixture(scope="module")
def points(data):
    """(surface, optimizer, index of the rate) -> the points of data.js, in float64, with the start."""

    def decoded(surface, optimizer, rate):
        numbers = np.frombuffer(base64.b64decode(data["paths"][surface][optimizer][rate]), "<f4").astype(float)
        return np.vstack([data["surfaces"][surface]["start"], numbers.reshape(-1, 2)])

    return decoded


# The data.


def test_the_data_has_what_the_script_says_about_surfaces_optimizers_and_rates(maker, data):
    expected = json.loads(json.dumps(maker["head"]()))
    assert {name: data[name] for name in expected} == expected, "run `make docs-tables`"
    assert [one["name"] for one in data["optimizers"]] == ALL
    assert all(list(lines) == ALL for lines in data["paths"].values())
    assert (PAGE / "data.js").stat().st_size <= 1_000_000


@pytest.mark.parametrize("optimizer", ALL)
def test_the_first_steps_of_all_paths_are_what_gradtx_computes_today(maker, data, points, optimizer):
    for surface in data["surfaces"]:
        for rate, path in enumerate(maker["paths"](surface, optimizer, FEW)):
            # float32 in the file; nothing has had the time to amplify the rounding of another machine.
            np.testing.assert_allclose(
                points(surface, optimizer, rate)[1 : FEW + 1], path, rtol=1e-5, atol=1e-6, err_msg="`make docs-tables`"
            )


@pytest.mark.parametrize(("surface", "optimizer"), [("rosenbrock", "adam"), ("noisy", "schedule_free")])
def test_a_whole_path_is_what_gradtx_computes_today(maker, points, surface, optimizer):
    for rate, path in enumerate(maker["paths"](surface, optimizer)):
        # 1e-3: an orbit at a large rate amplifies the rounding of another machine.
        np.testing.assert_allclose(points(surface, optimizer, rate)[1:], path, rtol=1e-3, atol=1e-3)


def test_adam_on_himmelblaus_surface_is_a_plain_loop(data, points):
    for rate, lr in enumerate(data["rates"][:7]):
        (x, y), m, v = data["surfaces"]["himmelblau"]["start"], [0.0, 0.0], [0.0, 0.0]
        for t in range(1, data["steps"] + 1):
            a, b = x * x + y - 11, x + y * y - 7
            g = (4 * x * a + 2 * b, 2 * a + 4 * y * b)
            m = [0.9 * m[i] + 0.1 * g[i] for i in (0, 1)]
            v = [0.999 * v[i] + 0.001 * g[i] ** 2 for i in (0, 1)]
            x, y = (
                p - lr * m[i] / (1 - 0.9**t) / (math.sqrt(v[i] / (1 - 0.999**t)) + 1e-8) for i, p in enumerate((x, y))
            )
            np.testing.assert_allclose(points("himmelblau", "adam", rate)[t], (x, y), rtol=1e-5, atol=1e-5)


def test_a_path_that_ends_early_leaves_the_square_with_its_next_step(maker, data, points):
    # On the quadratic SGD multiplies what is across the valley by 1 - 50 lr, and what is along it by 1 - lr.
    x, y = data["surfaces"]["quadratic"]["start"]
    u, v = 0.8 * x + 0.6 * y, 0.8 * y - 0.6 * x
    for rate, lr in enumerate(data["rates"]):
        last = len(points("quadratic", "sgd", rate)) - 1
        for step in {last, min(last + 1, data["steps"])}:
            along, across = u * (1 - lr) ** step, v * (1 - 50 * lr) ** step
            far = max(abs(0.8 * along - 0.6 * across), abs(0.6 * along + 0.8 * across)) >= maker["FAR"]
            assert far == (step > last)


def test_best_is_the_rate_that_ends_lowest(maker, data, points):
    for surface, lines in data["best"].items():
        loss = maker["SURFACES"][surface].loss
        for optimizer, best in lines.items():
            paths = [points(surface, optimizer, rate) for rate in range(len(data["rates"]))]
            ends = [loss(*torch.tensor(p[-10:]).T).mean() for p in paths if len(p) > data["steps"]]
            length, end = len(paths[best]), loss(*torch.tensor(paths[best][-10:]).T).mean()
            assert length == data["steps"] + 1
            assert end <= min(ends) + 1e-12


def test_minima_have_a_loss_of_0_and_no_point_nearby_has_less(maker):
    for surface in maker["SURFACES"].values():
        for x, y in surface.minima:
            around = torch.tensor([(x + dx, y + dy) for dx in (-1e-2, 0, 1e-2) for dy in (-1e-2, 0, 1e-2)]).double().T
            assert surface.loss(*around).min() > -1e-15
            assert surface.loss(*torch.tensor([x, y]).double()) < 1e-10


def test_on_the_scale_invariant_loss_adamp_ends_closer_to_the_origin_than_adam(data, points):
    for rate in range(3, len(data["rates"])):
        adam, adamp = (np.hypot(*points("direction", name, rate)[-1]) for name in ("adam", "adamp"))
        assert adamp < adam


def test_steps_have_the_lengths_that_the_text_tells_of(data, points):
    lion, sgd, prodigy = (
        np.hypot(*np.diff(points("quadratic", name, data["rates"].index(rate)), axis=0).T)
        for name, rate in (("lion", 0.03), ("sgd", 0.03), ("prodigy", 1.0))
    )
    np.testing.assert_allclose(lion, 0.03 * math.sqrt(2), rtol=1e-4)
    assert (np.diff(sgd) < 0).all()
    assert prodigy[0] < 1e-4 < 0.1 < prodigy.max()


# The page.


def lab(rgb):
    """Linear RGB in CIELAB, white at D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ rgb.clip(0, 1) / (0.9505, 1, 1.089), 1e-6))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_of_families_differ_for_the_colour_blind_too():
    views = [  # Machado, Oliveira and Fernandes 2009: all cones; protanopia, deuteranopia, tritanopia
        np.eye(3),
        np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
        np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
        np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
    ]
    colours = re.findall(r"--c\d: #(\w{6});", (PAGE / "style.css").read_text(encoding="utf-8"))
    assert len(colours) == 16  # eight for light pages, eight for dark ones
    for theme in (colours[:8], colours[8:]):
        linear = [((np.array([*bytes.fromhex(one)]) / 255 + 0.055) / 1.055) ** 2.4 for one in theme]
        for view in views:
            for a, b in combinations([lab(view @ one) for one in linear], 2):
                assert np.linalg.norm(a - b) > 28


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in [
        *SWITCHES.split(),
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
        "--window-size=1280,1000",
    ]:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser):
    """Opens the page at an address; in the end there must be nothing in the console."""

    def opened(address=""):
        browser.get("about:blank")  # another hash alone would not load the page anew
        browser.get((PAGE / "index.html").as_uri() + address)
        return browser

    yield opened
    assert browser.get_log("browser") == []


def put(browser, name, value):
    """Moves a slider, or chooses from a list, as a reader's hand would."""
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, { bubbles: true }));",
        name,
        value,
    )


def drawn(browser, plot="map"):
    """What a plot shows: optimizer -> (attributes, pixels), and its rectangle (left, top, width, height)."""
    found, frame = browser.execute_script(
        "const svg = document.getElementById(arguments[0]);"
        "const lines = [...svg.querySelectorAll('.path')].map((path) =>"
        " [{ ...path.dataset }, path.querySelector('.line').getAttribute('points')]);"
        "return [lines, ['x', 'y', 'width', 'height'].map((name) => svg.querySelector('.frame').getAttribute(name))]",
        plot,
    )
    lines = {
        values.pop("optimizer"): (
            {name: float(value) for name, value in values.items()},
            [tuple(map(float, pair.split(","))) for pair in pixels.split()],
        )
        for values, pixels in found
    }
    return lines, [float(one) for one in frame]


def check(browser, maker, data, points, surface, rate, step, names):
    """All plots show these optimizers, with the numbers of the data, at the right pixels."""
    about = data["surfaces"][surface]
    x0, x1, y0, y1 = about["window"]
    plots = [drawn(browser, plot) for plot in ("map", "losses", "norms")]
    assert all(list(lines) == names for lines, _ in plots)
    (on_map, map_frame), (by_loss, loss_frame), (by_norm, norm_frame) = plots
    for name in names:
        index = data["best"][surface][name] if rate == "best" else data["rates"].index(rate)
        path = points(surface, name, index)[: step + 1]
        losses = maker["SURFACES"][surface].loss(*torch.tensor(path).T).numpy()
        norms = np.hypot(*np.diff(path, axis=0).T)
        expected = {"rate": data["rates"][index], "step": len(path) - 1, "x": path[-1][0], "y": path[-1][1]}
        expected |= {"loss": losses[-1], "norm": norms[-1] if len(norms) else 0.0}
        for lines, _ in plots:
            # 1e-13: the browser's squares and roots round in another way.
            assert lines[name][0] == pytest.approx(expected, rel=1e-9, abs=1e-13)

        left, top, width, height = map_frame
        pixels = np.stack([(path[:, 0] - x0) / (x1 - x0), (y1 - path[:, 1]) / (y1 - y0)], 1) * (width, height)
        np.testing.assert_allclose(on_map[name][1], np.add(pixels, (left, top)), rtol=1e-6, atol=0.06)
        check_chart(by_loss[name][1], loss_frame, data["steps"], np.arange(len(losses)), losses)
        check_chart(by_norm[name][1], norm_frame, data["steps"], np.arange(1, len(path)), norms)


def check_chart(pixels, frame, steps, at, values):
    """Steps are linear in x, and logarithms of the values, where they are not too small for the axis, in -y."""
    x, y = np.array(pixels).reshape(-1, 2).T
    np.testing.assert_allclose(x, frame[0] + at / steps * frame[2], atol=0.06)
    inside = values > 1e-7
    if inside.sum() > 1 and np.ptp(logs := np.log10(values[inside])) > 0.1:
        slope, offset = np.polyfit(logs, y[inside], 1)
        assert slope < 0
        np.testing.assert_allclose(offset + slope * logs, y[inside], atol=0.2)


def test_the_page_draws_the_paths_of_the_data_as_surface_rate_step_and_optimizers_change(page, maker, data, points):
    browser = page()
    names = ["momentum", "adam", "lion", "adahessian"]
    check(browser, maker, data, points, "rosenbrock", "best", 100, names)
    for surface in data["surfaces"]:
        put(browser, "surface", surface)
        check(browser, maker, data, points, surface, "best", 100, names)
    put(browser, "surface", "quadratic")
    for rate in (0, 4, 8):
        put(browser, "rate", rate)
        check(browser, maker, data, points, "quadratic", data["rates"][rate], 100, names)
    for step in (0, 1, 37):
        put(browser, "step", step)
        check(browser, maker, data, points, "quadratic", 10.0, step, names)
    browser.find_element("css selector", "[data-optimizer=adam] input").click()
    browser.find_element("css selector", "[data-optimizer=sgd] input").click()
    check(browser, maker, data, points, "quadratic", 10.0, 37, ["sgd", "momentum", "lion", "adahessian"])
    browser.find_element("id", "best").click()
    browser.find_element("id", "all").click()
    check(browser, maker, data, points, "quadratic", "best", 37, ALL)
    browser.find_element("id", "none").click()
    check(browser, maker, data, points, "quadratic", "best", 37, [])


def test_the_table_has_the_values_of_the_step_and_says_who_is_gone(page):
    browser = page("#surface=quadratic&rate=0.1&optimizers=sgd,adam&step=1")
    cells = {
        row.get_attribute("data-optimizer"): [cell.text for cell in row.find_elements("css selector", "td")]
        for row in browser.find_elements("css selector", "tr[data-optimizer]")
    }
    # By hand: u = -3.8, v = 1.6; SGD multiplies them by 1 - lr and 1 - 50 lr, Adam's first step is lr (1, 1).
    assert cells["sgd"] == ["0.1", f"{(3.42**2 + 50 * 6.4**2) / 2:.0f}", f"{math.hypot(0.38, 8):.2f}"]
    assert cells["adam"][2] == "0.141"
    assert cells["lion"] == ["", "", ""]
    put(browser, "step", 100)
    assert "gone at 5" in browser.find_element("css selector", "tr[data-optimizer=sgd]").text


def test_an_address_gives_back_the_choice_and_a_wrong_one_the_start(page, maker, data, points):
    from selenium.webdriver.support.ui import WebDriverWait

    browser = page("#surface=saddle&rate=0.3&optimizers=sgd,sam&step=12")
    check(browser, maker, data, points, "saddle", 0.3, 12, ["sgd", "sam"])
    put(browser, "step", 60)
    browser.find_element("id", "best").click()
    wanted = "#surface=saddle&rate=best&optimizers=sgd,sam&step=60"
    WebDriverWait(browser, 5).until(lambda browser: browser.current_url.endswith(wanted))
    browser.execute_script("location.hash = '#surface=moon&rate=7&optimizers=nobody&step=-3'")
    WebDriverWait(browser, 5).until(lambda browser: drawn(browser)[0] == {})
    assert browser.find_element("id", "surface").get_attribute("value") == "rosenbrock"
    assert browser.find_element("id", "step").get_attribute("value") == "100"
    assert browser.find_element("id", "best").is_selected()


def test_keys_alone_play_and_move_the_step_and_pointing_shows_values(page, points):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    browser = page("#surface=saddle&rate=0.1&optimizers=sgd&step=2")
    step = browser.find_element("id", "step")
    step.send_keys(Keys.ARROW_RIGHT)
    assert drawn(browser)[0]["sgd"][0]["step"] == 3
    button = browser.find_element("id", "play")
    button.send_keys(Keys.SPACE)
    WebDriverWait(browser, 5).until(lambda browser: drawn(browser)[0]["sgd"][0]["step"] > 6)
    button.send_keys(Keys.SPACE)
    assert button.text == "Play"
    put(browser, "step", 3)

    x, y = drawn(browser)[0]["sgd"][1][1]
    area = browser.find_element("id", "map")
    right, down = x - area.size["width"] / 2, y - area.size["height"] / 2
    ActionChains(browser).move_to_element_with_offset(area, round(right), round(down)).perform()
    at = points("saddle", "sgd", 4)[1]
    assert browser.find_element("id", "tip").text.startswith(f"sgd, rate 0.1, step 1\nat ({at[0]:.3f}, ")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_has_nothing_outside_its_width_and_the_contours_follow_the_theme(page, tmp_path, theme):
    browser = page()
    feature = {"name": "prefers-color-scheme", "value": theme}
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        page("#surface=quadratic&rate=3&optimizers=" + ",".join(ALL))
        assert browser.execute_script("return document.documentElement.scrollWidth") == 360
        pixel = "return [...document.getElementById('contours').getContext('2d').getImageData(9, 9, 1, 1).data]"
        *colour, opacity = browser.execute_script(pixel)
        assert opacity == 255
        assert (min(colour) > 128) == (theme == "light")
        assert browser.save_screenshot(str(tmp_path / "phone.png"))
        assert (tmp_path / "phone.png").stat().st_size > 10_000
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_about_it_shows_its_picture():
    text = (DOCS / "interactive.md").read_text(encoding="utf-8")
    assert "](interactive.png)" in text
    assert "interactive/index.html" in text
    assert (DOCS / "interactive.png").stat().st_size <= 150_000
