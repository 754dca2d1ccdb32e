/* Keys and live decisions. Owns two behaviours of pages that work without it: elements with data-key answer a
   key, and data-live appends what the server sends. It builds no markup: rows arrive escaped from the server. */
"use strict";

/* ---- keys: a click for buttons and links, focus for fields, opening for details */

const press = (element) => {
  if (element.tagName === "DETAILS") {
    for (const other of document.querySelectorAll("details[data-key][open]")) other.open = other === element;
    element.open = true;
    (element.querySelector("input:not([type=hidden]), button") || element).focus();
  } else if (element.tagName === "INPUT") {
    element.focus();
  } else {
    element.click();
  }
};

const digit = (key) => {
  const element = document.querySelector(`details[data-key][open] [data-digit="${key}"]`);
  if (!element) return false;
  element.click();
  if (element.type === "radio") element.form.querySelector("input:not([type=hidden]):not([type=radio])").focus();
  return true;
};

const move = (step) => {
  const links = [...document.querySelectorAll("table.list td.id a")];
  if (!links.length) return false;
  const here = links.indexOf(document.activeElement);
  links[Math.max(0, Math.min(links.length - 1, here + step))].focus();
  return true;
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest("input:not([type=radio]):not([type=checkbox]), textarea, select");
  if (event.key === "Escape") {
    for (const open of document.querySelectorAll("details[data-key][open]")) open.open = false;
    if (field) field.blur();
    return;
  }
  if (field) return;
  let done = false;
  if (/^[1-9]$/.test(event.key)) done = digit(event.key);
  else if (event.key === "j" || event.key === "k") done = move(event.key === "j" ? 1 : -1);
  if (!done) {
    const element = [...document.querySelectorAll("[data-key]")].find((other) => other.dataset.key === event.key);
    if (element && !(event.repeat && element.tagName === "BUTTON")) {
      press(element);
      done = true;
    }
  }
  if (done) event.preventDefault();
});

/* ---- live decisions: the browser connects again by itself and names the last seq that it has */

const MOST_ROWS = 200;

const follow = (state) => {
  const body = document.querySelector("#live tbody");
  const source = new EventSource(`${state.dataset.live}?after=${state.dataset.after}`);
  const say = (text, good) => {
    state.textContent = text;
    state.classList.toggle("good", good);
  };
  source.addEventListener("open", () => say("live", true));
  source.addEventListener("error", () => say(source.readyState === 2 ? "ended; load the page again" : "connecting", false));
  source.addEventListener("decision", (event) => {
    body.insertAdjacentHTML("afterbegin", event.data);
    while (body.rows.length > MOST_ROWS) body.deleteRow(-1);
    document.querySelector("#none").hidden = true;
  });
};

for (const state of document.querySelectorAll("[data-live]")) follow(state);

document.documentElement.dataset.keys = "ready";
