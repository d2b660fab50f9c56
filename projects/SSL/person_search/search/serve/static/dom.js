// Small helpers for elements. Text is always set as text: names of files and cameras are anybody's.

export const byId = (id) => document.getElementById(id);

export function make(tag, settings = {}, ...children) {
  const element = document.createElement(tag);
  apply(element, settings);
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function makeSvg(tag, settings = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  apply(element, settings);
  element.append(...children);
  return element;
}

function apply(element, settings) {
  for (const [name, value] of Object.entries(settings)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
}

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return parts.map((part) => String(part).padStart(2, "0")).join(":");
}

export function moment(text) {
  return text ? new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }) : "";
}

export function span(start, end, startOffset, endOffset) {
  if (!start) return endOffset > startOffset ? `${clock(startOffset)} – ${clock(endOffset)}` : clock(startOffset);
  const [from, to] = [new Date(start), new Date(end || start)];
  if (to - from < 1000) return moment(start);
  const sameDay = from.toDateString() === to.toDateString();
  return `${moment(start)} – ${sameDay ? to.toLocaleTimeString(undefined, { timeStyle: "medium" }) : moment(end)}`;
}

export function percent(share) {
  if (share === null) return "an unknown share";
  const value = 100 * share;
  if (value < 0.01) return "less than 0.01 %";
  return `${value >= 10 ? value.toFixed(0) : Number(value.toPrecision(2))} %`;
}

export function several(count, noun) {
  return `${count.toLocaleString()} ${noun}${count === 1 ? "" : "s"}`;
}
