// Figures that can be turned and filtered start as pictures; plotly is loaded when a reader asks for it.
let plotly = null;

function load() {
  plotly ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL("plotly.min.js", document.querySelector("script[src*='book.js']").src);
    script.onload = () => resolve(window.Plotly);
    script.onerror = reject;
    document.head.append(script);
  });
  return plotly;
}

function offer(place) {
  const button = document.createElement("button");
  button.className = "turn";
  button.textContent = "Open the figure to hover, turn and filter";
  button.addEventListener("click", async () => {
    const figure = JSON.parse(place.querySelector("script").textContent);
    const library = await load();
    place.hidden = false;
    button.remove();
    library.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false });
  });
  place.before(button);
}

// What scrolls sideways can be reached with the keyboard.
function reach() {
  for (const box of document.querySelectorAll("div.math, pre, .table-wrapper, .cell_output")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

window.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".interactive").forEach(offer);
  reach();
});
window.addEventListener("load", () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(reach));
window.addEventListener("resize", reach);
