"""The page of ``autotimm serve`` in a browser: an image is dropped, what is found is drawn, and the keyboard works."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from browser import in_a_browser, open_address
from server import Server, serving_run
from training import small_fit

# What a person does, after the script of the page: frames are forbidden, so that nothing around the page could do it.
DRIVER = """<pre id="seen"></pre><script>
(async () => {
  const seen = {}, one = (id) => document.getElementById(id);
  const done = (text) => new Promise((resolve) => {
    const look = () => (one("status").textContent.includes(text) ? resolve() : setTimeout(look, 20));
    look();
  });
  const named = async (path, name, type) => new File([await (await fetch(path)).blob()], name, {type});
  const drop = (...files) => {
    const data = new DataTransfer();
    files.forEach((file) => data.items.add(file));
    document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
  };
  one("files").focus();
  seen.focus = document.activeElement.id;
  let opened = 0;
  one("files").addEventListener("click", (event) => { opened += 1; event.preventDefault(); });
  one("files").dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
  seen.opened = opened;
  drop(await named("image.png", "photo <b>.png", "image/png"));
  await done("1 image predicted.");
  seen.names = [...document.querySelectorAll(".result h2")].map((each) => each.textContent);
  seen.rows = document.querySelectorAll(".found li").length;
  seen.boxes = document.querySelectorAll(".view rect").length;
  const canvas = document.querySelector(".view canvas");
  const painted = () => {
    if (!canvas || canvas.hidden) return 0;
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.filter((value, at) => at % 4 === 3 && value).length;
  };
  seen.painted = painted();
  const button = document.querySelector(".found button");
  if (button) { button.focus(); button.click(); await new Promise((resolve) => setTimeout(resolve, 300)); }
  seen.pressed = document.querySelectorAll(".found button[aria-pressed=true]").length;
  seen.lit = document.querySelectorAll("rect.lit").length;
  seen.slider = !one("least-label").hidden;
  one("least").value = "1"; one("least").dispatchEvent(new Event("input"));
  seen.left = document.querySelectorAll(".view rect").length;
  drop(new File(["Dear all"], "letter.png", {type: "image/png"}));
  await done("1 failed");
  seen.error = document.querySelector(".error").textContent;
  seen.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  one("clear").click();
  seen.after = [document.querySelectorAll(".result").length, document.activeElement.id];
  one("seen").textContent = JSON.stringify(seen);
})();
</script>"""


@contextmanager
def driven(server: Server, image: bytes) -> Iterator[str]:
    """The address of the server's page with the driver in it; everything else is passed on to the server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = server.ask("GET", "/").body.decode().replace("</body>", f"{DRIVER}</body>").encode()
            self.reply(200, image if self.path == "/image.png" else page, "text/html")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = server.ask("POST", self.path, body, {"Content-Type": self.headers["Content-Type"]})
            self.reply(answer.status, answer.body, answer.headers["content-type"])

        def reply(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}/"
        finally:
            proxy.shutdown()
            thread.join()


def trained(task: str, folder: Path) -> tuple[Path, bytes]:
    """A run of a task, and one of its images."""
    if task == "classification":
        write_toy_folder(folder / "toy", splits={"train": 9, "val": 6}, num_classes=3, seed=7)
        run = small_fit(folder / "toy", folder, val_split=None)
    else:
        write = write_toy_segmentation if task == "segmentation" else write_toy_objects
        write(folder / "toy", image_size=64, splits={"train": 6, "val": 4}, seed=3)
        run = small_fit(folder / "toy", folder, task=task, image_size=64, width=64, batch_size=2, val_split=None)
    image = next(path for path in sorted((folder / "toy").rglob("*.png")) if "mask" not in str(path))
    return run.path, image.read_bytes()


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("task", ["classification", "detection", "instance", "segmentation"])
def test_page_shows_what_is_found(task: str, tmp_path: Path) -> None:
    run, image = trained(task, tmp_path)
    threshold = ["--threshold", "0.001"] if task in ("detection", "instance") else []
    with serving_run(run, *threshold) as server:
        found = server.predict({"photo.png": image}).content["images"][0]
        _, console = open_address(server.url, tmp_path / "profile")
        assert console == [], "the page breaks its own content security policy"
        with driven(server, image) as url:
            shown, _ = open_address(url, tmp_path / "profile")
        seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', shown)[1].replace("&lt;", "<").replace("&gt;", ">"))
        assert server.stop() == 0
    assert (seen["focus"], seen["opened"], seen["names"]) == ("files", 1, ["photo <b>.png"])
    rows = found["objects"] if "objects" in found else found["scores"] if "scores" in found else found["labels"]
    assert seen["rows"] == len(rows) > 0
    assert seen["boxes"] == len(found.get("objects", []))
    assert (seen["painted"] > 0) == (task in ("instance", "segmentation"))
    assert seen["pressed"] == (task != "classification")
    assert seen["lit"] == (task in ("detection", "instance"))
    assert seen["slider"] == (task in ("detection", "instance"))
    assert seen["left"] == 0
    assert seen["error"] == "letter.png: letter.png cannot be read as an image: not an image."
    assert not seen["wide"]
    assert seen["after"] == [0, "files"]
