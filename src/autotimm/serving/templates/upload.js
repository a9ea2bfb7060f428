"use strict";
{
  const { classes, kind } = JSON.parse(document.getElementById("facts").textContent);
  const one = (id) => document.getElementById(id);
  const colors = new Map(classes.map((each) => [each.name, each.color]));
  const MOST_CLASSES = 8;
  const SVG = "http://www.w3.org/2000/svg";

  const make = (tag, className = "", text = "") => {
    const element = document.createElement(tag);
    element.className = className;
    element.textContent = text;
    return element;
  };
  const rgb = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));

  // COCO's compressed run lengths: columns from top to bottom, groups of 5 bits, differences to the run before the last.
  const runsOf = (text) => {
    const runs = [];
    for (let at = 0; at < text.length;) {
      let value = 0, shift = 0, more = true;
      while (more) {
        const bits = text.charCodeAt(at++) - 48;
        value |= (bits & 31) << (5 * shift++);
        more = (bits & 32) !== 0;
        if (!more && bits & 16) value |= -1 << (5 * shift);
      }
      runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
    }
    return runs;
  };

  const paint = (canvas, objects) => {
    const [height, width] = objects[0].mask.size;
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(width, height);
    for (const { mask, label } of [...objects].reverse()) {  // the surest on top
      const color = [...rgb(colors.get(label)), 255];
      let at = 0, inside = false;
      for (const run of runsOf(mask.counts)) {
        for (let end = at + run; inside && at < end; at++) pixels.data.set(color, 4 * ((at % height) * width + Math.floor(at / height)));
        if (!inside) at += run;
        inside = !inside;
      }
    }
    context.putImageData(pixels, 0, 0);
  };

  const paintClasses = async (canvas, png, shown) => {
    const picture = new Image();
    picture.src = `data:image/png;base64,${png}`;
    await picture.decode();
    canvas.width = picture.naturalWidth;
    canvas.height = picture.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    const palette = classes.map((each) => [...rgb(each.color), shown(each) ? 255 : 0]);
    for (let at = 0; at < pixels.data.length; at += 4) pixels.data.set(palette[pixels.data[at]] ?? [0, 0, 0, 0], at);
    context.putImageData(pixels, 0, 0);
  };

  // What was found, as a list beside the picture. Each object can be lit, by a click or from the keyboard.
  const row = (label, score, className = "") => {
    const item = make("li", className), line = make("div", "row"), meter = make("div", "meter");
    meter.style.setProperty("--share", `${100 * score}%`);
    line.append(make("span", "name", label), make("span", "score", score.toFixed(3)), meter);
    item.append(line);
    return item;
  };
  const choice = (label, text, light) => {
    const item = make("li"), button = make("button"), swatch = make("span", "swatch");
    swatch.style.setProperty("--color", colors.get(label));
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.append(swatch, make("span", "name", label), make("span", "score", text));
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const other of item.parentElement.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(on));
      light(on);
    });
    item.append(button);
    return item;
  };

  const showClasses = (found, list) => {
    const order = Object.entries(found.scores).sort((a, b) => b[1] - a[1]).slice(0, MOST_CLASSES);
    list.append(...order.map(([label, score]) => row(label, score, found.labels.includes(label) ? "best" : "")));
    if (!found.labels.length) list.before(make("p", "none", "No label reaches the threshold."));
  };

  const showObjects = (found, view, list) => {
    const canvas = make("canvas"), svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${found.width} ${found.height}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    view.append(canvas, svg);
    const none = make("p", "none");
    list.before(none);
    const draw = () => {
      const least = Number(one("least").value);
      const objects = found.objects.filter((each) => each.score >= least);
      const boxes = objects.map(({ box: [x1, y1, x2, y2], label }) => {
        const rect = document.createElementNS(SVG, "rect");
        for (const [name, value] of Object.entries({ x: x1, y: y1, width: x2 - x1, height: y2 - y1 })) rect.setAttribute(name, value);
        rect.style.setProperty("--color", colors.get(label));
        return rect;
      });
      const light = (at) => (on) => {
        boxes.forEach((rect, other) => { rect.classList.toggle("lit", on && other === at); rect.classList.toggle("dimmed", on && other !== at); });
        if (objects[at].mask) paint(canvas, on ? [objects[at]] : objects);
      };
      svg.replaceChildren(...boxes);
      list.replaceChildren(...objects.map((each, at) => choice(each.label, each.score.toFixed(3), light(at))));
      canvas.hidden = !objects.some((each) => each.mask);
      if (!canvas.hidden) paint(canvas, objects);
      none.textContent = objects.length ? "" : "Nothing was found.";
    };
    one("least").addEventListener("input", draw);
    draw();
  };

  const showPixels = async (found, view, list) => {
    const canvas = make("canvas");
    view.append(canvas);
    await paintClasses(canvas, found.png, (each) => each.painted);
    list.append(...found.labels.map((label) => choice(label, `${(100 * found.shares[label]).toFixed(1)} %`, (on) =>
      paintClasses(canvas, found.png, (each) => (on ? each.name === label : each.painted)))));
  };

  const ask = async (file) => {
    const answer = await fetch(`predict?name=${encodeURIComponent(file.name)}`, {
      method: "POST", body: file, headers: { "Content-Type": file.type.startsWith("image/") ? file.type : "application/octet-stream" },
    });
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.error);
    return content.images[0];
  };

  const show = async (file) => {
    const result = make("article", "result"), view = make("div", "view"), side = make("div"), list = make("ul", "found");
    side.append(make("h2", "", file.name), list);
    result.append(view, side);
    one("results").prepend(result);
    const picture = new Image();
    picture.alt = file.name;
    picture.src = URL.createObjectURL(file);
    view.append(picture);
    try {
      const [found] = await Promise.all([ask(file), picture.decode().catch(() => {})]);
      if (!picture.naturalWidth) {  // a format that the browser cannot show, such as TIFF
        const blank = make("canvas", "blank");
        [blank.width, blank.height] = [found.width ?? 320, found.height ?? 200];
        blank.style.position = "static";
        picture.replaceWith(blank);
      }
      if (found.scores) showClasses(found, list);
      else if (found.objects) showObjects(found, view, list);
      else await showPixels(found, view, list);
      return true;
    } catch (error) {
      result.replaceChildren(make("p", "error", `${file.name}: ${error.message}`));
      return false;
    } finally {
      URL.revokeObjectURL(picture.src);
    }
  };

  const take = async (files) => {
    one("bar").hidden = false;
    one("least-label").hidden = kind !== "boxes" && kind !== "instances";
    let done = 0, failed = 0;
    for (const file of files) {
      one("status").textContent = `Predicting ${file.name} …`;
      if (await show(file)) done += 1; else failed += 1;
    }
    one("status").textContent = `${done} image${done === 1 ? "" : "s"} predicted${failed ? `, ${failed} failed` : ""}.`;
  };

  const drop = one("drop"), files = one("files");
  files.addEventListener("change", () => { take([...files.files]); files.value = ""; });
  files.addEventListener("keydown", (event) => { if (event.key === "Enter") files.click(); });
  for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  document.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take([...event.dataTransfer.files]); });
  document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) take([...event.clipboardData.files]); });
  one("least").addEventListener("input", () => { one("least-value").textContent = Number(one("least").value).toFixed(2); });
  one("clear").addEventListener("click", () => { one("results").replaceChildren(); one("bar").hidden = true; one("status").textContent = ""; files.focus(); });
}
