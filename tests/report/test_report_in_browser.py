"""The report in a browser: no error, tables are sorted, images filtered, and a cell opens its images."""

import json
import re

import pytest

from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from browser import in_a_browser, visit
from training import small_fit

# A page around the report acts on it: the report itself runs no script but its own.
AROUND = """<!doctype html><link rel="icon" href="data:,"><iframe src="report.html" width="1000" height="800"></iframe>
<pre id="seen"></pre><script>
document.querySelector("iframe").addEventListener("load", (event) => {
  const page = event.target.contentDocument, seen = {};
  const all = (selector) => [...page.querySelectorAll(selector)];
  const names = () => all("#classes tbody th").map((cell) => cell.textContent);
  const shown = () => all("#cards .card").filter((card) => !card.hidden);
  const column = () => all("#classes tbody tr").map((row) => row.children[1].dataset.value);
  seen.names = names();
  const heading = all("#classes .sort")[0];
  heading.click(); seen.up = names(); heading.click(); seen.down = names();
  all("#classes .sort")[1].click(); seen.numbers = column().map(Number);
  seen.all = shown().length;
  const filter = page.getElementById("filter");
  filter.value = shown()[0].dataset.id; filter.dispatchEvent(new Event("input", {bubbles: true}));
  seen.filtered = shown().length; filter.value = "no such image"; filter.dispatchEvent(new Event("input"));
  seen.none = shown().length; filter.value = ""; filter.dispatchEvent(new Event("input"));
  const counted = (button) => all(`#cards .card[data-tokens~="${button.dataset.cell}"]`).length;
  const cell = all("#confusion [data-cell]").find(counted);
  cell.click();
  const dialog = page.getElementById("cell");
  seen.open = dialog.open; seen.inside = dialog.querySelectorAll(".card").length;
  dialog.querySelector(".close").click(); seen.closed = !dialog.open;
  seen.wide = page.documentElement.scrollWidth > page.documentElement.clientWidth;
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
</script>"""
SPLITS = {"train": 6, "val": 4}
WRITERS = {"detection": write_toy_objects, "instance": write_toy_objects, "segmentation": write_toy_segmentation}


def trained(task, folder):
    if task == "classification":
        write_toy_folder(folder / "toy", splits={"train": 9, "val": 6}, num_classes=3, seed=7)
        return small_fit(folder / "toy", folder, val_split=None)
    WRITERS[task](folder / "toy", image_size=64, splits=SPLITS, seed=3)
    return small_fit(folder / "toy", folder, task=task, image_size=64, width=64, batch_size=2, val_split=None)


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("task", ["classification", "detection", "instance", "segmentation"])
def test_a_report_works(task, tmp_path):
    run = trained(task, tmp_path)
    (run.path / "around.html").write_text(AROUND)
    shown, faults = visit(run.path, "around.html", tmp_path / "profile")
    assert faults == []
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', shown)[1])
    assert seen["up"] == sorted(seen["names"])
    assert seen["down"] == sorted(seen["names"], reverse=True)
    assert seen["numbers"] == sorted(seen["numbers"], reverse=True)
    assert (seen["all"], seen["filtered"], seen["none"]) == (len(run.evidence()), 1, 0)
    assert seen["open"]
    assert seen["closed"]
    assert seen["inside"] >= 1
    assert not seen["wide"]
