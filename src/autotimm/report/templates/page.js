"use strict";
{
  const FIRST = 24;
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);

  // Tables are sorted by what a cell stands for, not by how it is written; what is undefined comes last.
  const sort = (heading) => {
    const table = heading.closest("table"), body = table.tBodies[0];
    const column = [...heading.parentElement.children].indexOf(heading);
    const down = heading.getAttribute("aria-sort") !== "descending" && (column > 0 || heading.hasAttribute("aria-sort"));
    all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.children[column].dataset.value;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const numbers = x !== "" && y !== "" && !Number.isNaN(+x) && !Number.isNaN(+y);
      const sign = numbers ? x - y : x.localeCompare(y);
      return down ? -sign : sign;
    };
    body.append(...[...body.rows].sort(order));
  };
  all(".sort").forEach((button) => button.addEventListener("click", () => sort(button.closest("th"))));

  // A cell opens the images that it counts.
  const dialog = one("cell");
  const open = (button) => {
    const token = button.dataset.cell;
    const cards = all("#cards .card").filter((card) => card.dataset.tokens.split(" ").includes(token));
    const copies = cards.slice(0, 120).map((card) => card.cloneNode(true));
    copies.forEach((copy) => { copy.hidden = false; });
    one("cell-title").textContent = button.dataset.title;
    one("cell-text").textContent = cards.length ? "" : "The page has no pictures of these.";
    one("cell-cards").className = one("cards") ? one("cards").className : "cards";
    one("cell-cards").replaceChildren(...copies);
    dialog.showModal();
  };
  all("[data-cell]").forEach((button) => button.addEventListener("click", () => open(button)));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  // Images: the worst first, filtered by what their captions say.
  const cards = all("#cards .card");
  if (cards.length) {
    let room = FIRST;
    const text = new Map(cards.map((card) => [card, `${card.dataset.id} ${card.textContent}`.toLowerCase()]));
    const update = () => {
      const words = one("filter").value.toLowerCase().trim(), mistakes = one("mistakes").checked;
      const fit = cards.filter((card) => text.get(card).includes(words) && (!mistakes || card.classList.contains("wrong")));
      const shown = new Set(fit.slice(0, room));
      cards.forEach((card) => { card.hidden = !shown.has(card); });
      one("shown").textContent = `${shown.size} of ${fit.length} shown`;
      one("more").hidden = shown.size === fit.length;
    };
    one("filter").addEventListener("input", () => { room = FIRST; update(); });
    one("mistakes").addEventListener("change", () => { room = FIRST; update(); });
    one("more").addEventListener("click", () => { room += 4 * FIRST; update(); });
    window.addEventListener("beforeprint", () => { room = Math.max(room, FIRST); update(); });
    update();
  }
}
