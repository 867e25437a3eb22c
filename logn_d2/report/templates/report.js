"use strict";

const make = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

function makeSortable(table) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const key = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  const sort = (head, column) => {
    // Columns of numbers start with the largest value, columns of words with the first.
    const words = Number.isNaN(Number(key(table.tBodies[0].rows[0], column)));
    const before = head.getAttribute("aria-sort");
    const rising = before ? before === "descending" : words;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const [x, y] = [key(a, column), key(b, column)];
      // Empty cells stay last in both orders.
      if (x === "" || y === "") return (x === "") - (y === "");
      return rising ? compare(x, y) : compare(y, x);
    });
    table.tBodies[0].append(...rows);
  };
  heads.forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(head, column));
  });
}

function makeSearchable(table, box) {
  const rows = [...table.tBodies[0].rows];
  const groups = [...new Set(rows.map((row) => row.cells[1].textContent))];
  const search = make("input", { type: "search" });
  const group = make("select", {}, make("option", { value: "", textContent: "all" }),
    ...groups.map((name) => make("option", { value: name, textContent: name })));
  const found = make("output");
  const show = () => {
    const words = search.value.trim().toLowerCase();
    for (const row of rows) {
      const fits = row.cells[0].textContent.toLowerCase().includes(words);
      row.hidden = !fits || (group.value !== "" && row.cells[1].textContent !== group.value);
    }
    const shown = rows.filter((row) => !row.hidden).length;
    found.textContent = `${shown} of ${rows.length} classes`;
  };
  search.addEventListener("input", show);
  group.addEventListener("change", show);
  box.before(make("div", { className: "find" },
    make("label", {}, "Search class ", search), make("label", {}, "Group ", group), found));
  show();
}

function makeSlider(pair) {
  const [before, after] = [...pair.querySelectorAll("span")].map((name) => name.textContent);
  const input = make("input", { type: "range", min: 0, max: 100, value: 50 });
  const show = () => {
    pair.style.setProperty("--cut", input.value);
    input.setAttribute("aria-valuetext", `left ${input.value} % ${before}, otherwise ${after}`);
  };
  pair.classList.add("slider");
  pair.after(make("label", { className: "cut" }, make("span", {}, `◀ ${before}`),
    make("span", {}, `${after} ▶`), input));
  input.addEventListener("input", show);
  show();
}

for (const table of document.querySelectorAll("table.sortable")) {
  makeSortable(table);
  makeSearchable(table, table.closest(".tall") ?? table);
}
document.querySelectorAll(".pair").forEach(makeSlider);
