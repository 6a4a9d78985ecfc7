/* What the pages do beyond showing: tables of numbers, figures in the theme's colours, thumbnails of samples. */

/* Tables of numbers: a search field above, and columns that sort on a click; without this script they are plain tables. */

const value = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
};

function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
        return down ? -order : order;
      });
      body.append(...rows);
    });
  });
}

function searchable(box) {
  const rows = [...box.querySelectorAll("tbody tr")];
  const label = document.createElement("label");
  const field = document.createElement("input");
  const count = document.createElement("output");
  field.type = "search";
  const search = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const row of rows) {
      row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
      found += !row.hidden;
    }
    count.textContent = `${found} of ${rows.length}`;
  };
  field.addEventListener("input", search);
  label.className = "zsr-search";
  label.append("Search ", field, " ", count);
  box.before(label);
  search();
}

for (const box of document.querySelectorAll(".zsr-numbers:not(.zsr-card)")) {
  sortable(box.querySelector("table"));
  searchable(box);
}

// the theme leaves the name of the book outside of all landmarks
const side = document.getElementById("pst-primary-sidebar");
side?.setAttribute("role", "complementary");
side?.setAttribute("aria-label", "Book");

// docutils gives references a role that ARIA has dropped, inside a list of other things
for (const part of document.querySelectorAll(".citation-list, .citation")) part.removeAttribute("role");

/* On a dark page the figures take the dark partners of their colours, which every figure carries with it. */

const faint = /^rgba\((\d+),\s*(\d+),\s*(\d+),\s*([\d.]+)\)$/;
const channels = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
const hex = (numbers) => `#${numbers.map((n) => Number(n).toString(16).padStart(2, "0")).join("")}`;

function partner(color, dark) {
  if (Array.isArray(color)) return color.map((c) => partner(c, dark));
  if (typeof color !== "string") return color;
  const parts = faint.exec(color);
  if (!parts) return dark[color.toLowerCase()] ?? color;
  const found = dark[hex(parts.slice(1, 4))];
  return found ? `rgba(${channels(found).join(",")},${parts[4]})` : color;
}

function darkened(part, dark) {
  if (part === null || typeof part !== "object" || ArrayBuffer.isView(part)) return part;
  if (Array.isArray(part)) return part.map((p) => darkened(p, dark));
  const entries = Object.entries(part).map(([key, v]) => [key, /color(scale)?$/.test(key) ? partner(v, dark) : darkened(v, dark)]);
  return Object.fromEntries(entries);
}

function inTheme(figure) {
  const dark = figure.layout?.template?.layout?.meta?.dark;
  if (!dark) return;
  const wanted = document.documentElement.dataset.theme === "dark";
  if (wanted === (figure.dark ?? false)) return;
  figure.dark = wanted;
  figure.asWritten ??= structuredClone({ data: figure.data, layout: figure.layout });
  const { data, layout } = structuredClone(figure.asWritten);
  if (wanted) Plotly.react(figure, darkened(data, dark), darkened(layout, dark));
  else Plotly.react(figure, data, layout);
}

/* A point that stands for a sample shows a small picture of it beside the pointer. */

function withThumbnails(figure) {
  const all = figure.layout?.meta?.thumbnails;
  if (!all) return;
  const places = new Map(all.ids.map((id, k) => [id, k]));
  const box = document.createElement("div");
  box.className = "zsr-thumbnail";
  box.hidden = true;
  box.style.backgroundImage = `url(${all.sprite})`;
  box.style.backgroundSize = `${100 * all.columns}% auto`;
  document.body.append(box);
  figure.on("plotly_hover", ({ points, event }) => {
    const place = places.get(points[0].text);
    box.hidden = place === undefined;
    if (box.hidden) return;
    const side = box.clientWidth;
    box.style.backgroundPosition = `${-side * (place % all.columns)}px ${-side * Math.floor(place / all.columns)}px`;
    box.style.left = `${Math.min(event.clientX + 16, innerWidth - side - 8)}px`;
    box.style.top = `${Math.max(event.clientY - side - 16, 8)}px`;
  });
  figure.on("plotly_unhover", () => {
    box.hidden = true;
  });
}

const figures = [...document.querySelectorAll(".zsr-figure .plotly-graph-div")].filter((figure) => figure.layout);
figures.forEach(inTheme);
figures.forEach(withThumbnails);
new MutationObserver(() => figures.forEach(inTheme)).observe(document.documentElement, {
  attributeFilter: ["data-theme"],
});
