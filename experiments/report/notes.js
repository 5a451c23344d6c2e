"use strict";
// What a cell of a table or a mark of a chart says, where it is pointed at or has the focus. Without script these are the browser's own titles.
//
// A table's box or a chart's is one stop of Tab, and arrow keys lead from there to what is in it; Escape leads back. A note that ends in
// "Protocol 3, ..." has the text of that protocol from the list of its section.
{
  const NOTED = "td[title], td[data-note], th[title], th[data-note], .mark";
  const BOX = ".scroll, .charts, svg[tabindex]";
  const tip = document.body.appendChild(document.createElement("div"));
  Object.assign(tip, { className: "tip", hidden: true });
  tip.setAttribute("role", "status");

  // the browser's own title would show beside ours
  const note = (element) => {
    if (!element.dataset.note) {
      const title = element.querySelector(":scope > title");
      element.dataset.note = element.getAttribute("title") ?? title?.textContent ?? "";
      element.removeAttribute("title");
      if (!title) return element.dataset.note;
      title.remove();
      element.setAttribute("role", "img");
      element.setAttribute("aria-label", element.dataset.note);
      element.closest("svg").setAttribute("role", "group"); // what is in an image is told to nobody
    }
    return element.dataset.note;
  };

  const whole = (element) => {
    const list = element.closest("section, .section")?.querySelector(".protocols ol");
    return note(element).replace(/Protocol (\d+)(?=, cell \w+\.$)/, (words, number) => `${words}: ${list?.children[number - 1]?.textContent ?? ""}`);
  };

  const show = (element, text = whole(element)) => {
    if (!text) return;
    tip.textContent = text;
    tip.hidden = false;
    const [of, own] = [element.getBoundingClientRect(), tip.getBoundingClientRect()];
    const below = of.bottom + 6 + own.height < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(of.left, innerWidth - own.width - 8))}px`;
    tip.style.top = `${below ? of.bottom + 6 : Math.max(8, of.top - own.height - 6)}px`;
  };
  const hide = () => (tip.hidden = true);

  document.addEventListener("pointerover", (event) => {
    const element = event.target.closest?.(NOTED);
    if (element) show(element);
    else hide();
  });
  const follow = () => (document.activeElement.matches(NOTED) ? show(document.activeElement) : hide());
  document.addEventListener("scroll", follow, true); // a cell that gets the focus is scrolled to

  const boxOf = (element) => element.closest(BOX);
  document.addEventListener("focusin", ({ target }) => {
    if (target.matches(NOTED)) show(target);
    else if (target.matches(BOX) && target.matches(":focus-visible") && target.querySelector(NOTED)) {
      show(target, "Arrow keys lead from number to number, Escape leads back.");
    } else hide();
  });
  document.addEventListener("focusout", hide);

  const focus = (element) => {
    element.setAttribute("tabindex", "-1");
    note(element);
    element.focus();
  };

  document.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Escape: [0, 0] }[event.key];
    const from = event.target;
    const box = step && from.closest && boxOf(from);
    if (!box || (from !== box && !from.matches(NOTED))) return;
    if (event.key === "Escape") {
      hide();
      if (from !== box) box.focus();
      return;
    }
    const all = [...box.querySelectorAll(NOTED)].filter((element) => element.getClientRects().length);
    if (!all.length) return;
    event.preventDefault();
    if (from === box) focus(all[0]);
    else if (from.matches("td, th")) {
      let [row, column] = [from.parentElement, from.cellIndex];
      do {
        row = step[0] ? row[step[0] < 0 ? "previousElementSibling" : "nextElementSibling"] : row;
        column += step[1];
      } while (row?.cells[column] && !row.cells[column].matches(NOTED));
      if (row?.cells[column]) focus(row.cells[column]);
    } else {
      const next = all[all.indexOf(from) + step[0] + step[1]];
      if (next) focus(next);
    }
  });
}
