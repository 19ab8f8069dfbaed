"use strict";
// Charts are drawn when they come near the window, in the colours of the page's theme.
const charts = [...document.querySelectorAll(".chart")];
const coarse = matchMedia("(pointer: coarse)").matches;

function themed(layout) {
  const style = getComputedStyle(charts[0]);
  const [ink, card, edge] = [style.color, style.backgroundColor, style.borderTopColor];
  const result = structuredClone(layout);
  Object.assign(result, { paper_bgcolor: card, plot_bgcolor: card, font: { color: ink, family: style.fontFamily } });
  result.hoverlabel = { bgcolor: card, bordercolor: edge, font: { color: ink } };
  result.dragmode = coarse ? false : "zoom"; // a finger scrolls the page
  for (const [name, part] of Object.entries(result)) {
    if (/^[xy]axis/.test(name)) Object.assign(part, { gridcolor: edge, zerolinecolor: edge, linecolor: edge });
    if (/^coloraxis/.test(name)) part.colorscale = [[0, "#2f7fc1"], [0.5, card], [1, "#e06c1f"]];
  }
  return result;
}

function draw(chart) {
  chart.figure ??= JSON.parse(chart.querySelector("script").textContent);
  const { data, layout } = chart.figure;
  Plotly.react(chart, data, themed(layout), { responsive: true, displayModeBar: false });
}

function redraw() {
  charts.filter((chart) => chart.figure).forEach(draw);
}

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((entry) => entry.isIntersecting)) {
    observer.unobserve(entry.target);
    draw(entry.target);
  }
}, { rootMargin: "600px" });
charts.forEach((chart) => observer.observe(chart));
addEventListener("beforeprint", () => charts.forEach(draw));

const preference = matchMedia("(prefers-color-scheme: dark)");
preference.addEventListener("change", redraw);
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement.style;
  const dark = root.colorScheme ? root.colorScheme === "dark" : preference.matches;
  root.colorScheme = dark ? "light" : "dark";
  redraw();
});
if (matchMedia("(max-width: 60rem)").matches) document.querySelector("nav details").open = false;
