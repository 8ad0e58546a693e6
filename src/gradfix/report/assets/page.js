// Draws the figures, sorts the tables, copies the recipe, and keeps figures in step with light, dark and paper.
"use strict";
(() => {
  const dark = /*DARK*/{};
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const figures = [...document.querySelectorAll("script[data-figure]")].map((script) => ({
    place: document.getElementById(script.dataset.figure),
    made: JSON.parse(script.textContent),
  }));
  const config = { displayModeBar: false, responsive: true, showTips: false };

  // Colours stand under names that say so; text that looks like a colour is left alone.
  const coloured = (value, named) => {
    if (typeof value === "string") return (named && dark[value.toLowerCase()]) || value;
    if (Array.isArray(value)) return value.map((entry) => coloured(entry, named));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, entry]) => [key, coloured(entry, /color/i.test(key))]),
    );
  };

  const draw = (isDark) =>
    Promise.all(
      figures.map(({ place, made }) => {
        const { data, layout } = isDark ? coloured(made, false) : JSON.parse(JSON.stringify(made));
        const narrow = place.clientWidth < 480;
        if (narrow && layout.xaxis && layout.xaxis.tickfont) layout.xaxis.tickfont.size = 10;
        for (const trace of narrow ? data : []) {
          if (trace.type !== "heatmap") continue;
          trace.showscale = false;
          trace.textfont.size = 9;
          trace.x = trace.x.map((name) => name.replaceAll("/<br>", "/").replaceAll("<br>", " "));
          layout.xaxis.tickangle = -50;
        }
        if (narrow && layout.yaxis && layout.yaxis.type === "category") layout.yaxis.title = { text: "" };
        return Plotly.react(place, data, layout, config);
      }),
    );

  if (figures.length) {
    draw(scheme.matches).then(() => document.documentElement.setAttribute("data-drawn", figures.length));
    scheme.addEventListener("change", (event) => draw(event.matches));
    window.addEventListener("beforeprint", () => draw(false));
    window.addEventListener("afterprint", () => draw(scheme.matches));
  } else {
    document.documentElement.setAttribute("data-drawn", 0);
  }

  const value = (row, column) => {
    const cell = row.cells[column];
    return "order" in cell.dataset ? Number(cell.dataset.order) : cell.textContent.trim();
  };
  const compare = (one, other) => {
    if (typeof one === "number" && typeof other === "number") return one - other;
    if (typeof one === typeof other) return one.localeCompare(other);
    return typeof one === "number" ? -1 : 1;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      header.querySelector("button").addEventListener("click", () => {
        const rows = [...table.tBodies[0].rows];
        const numbers = rows.some((row) => "order" in row.cells[column].dataset);
        const was = header.getAttribute("aria-sort");
        // Numbers first show the largest, words the first letter.
        const now = was === "none" ? (numbers ? "descending" : "ascending") : was === "ascending" ? "descending" : "ascending";
        for (const each of headers) each.setAttribute("aria-sort", each === header ? now : "none");
        const filled = rows.filter((row) => row.cells[column].textContent.trim() !== "");
        const empty = rows.filter((row) => row.cells[column].textContent.trim() === "");
        filled.sort((a, b) => compare(value(a, column), value(b, column)) * (now === "ascending" ? 1 : -1));
        table.tBodies[0].append(...filled, ...empty);
      });
    });
  }

  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copies);
      try {
        await navigator.clipboard.writeText(source.textContent);
      } catch {
        // A page opened from a disk may not have the clipboard: select the text and ask the old way.
        const range = document.createRange();
        range.selectNodeContents(source);
        const selection = window.getSelection();
        selection.removeAllRanges();
        selection.addRange(range);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }
})();
