// What a page does beyond being read: light or dark, the search, its contents at the side, code to copy,
// and the keyboard where something scrolls.
const root = document.currentScript.dataset.root;
const page = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)").matches;
page.dataset.theme = localStorage.getItem("theme") ?? (prefersDark ? "dark" : "light");

// The index is a script, because a page opened as a file may not fetch others.
let index;
function load() {
  index ??= new Promise((done) => {
    const script = document.createElement("script");
    script.src = root + "search-index.js";
    script.onload = () => done(window.searchIndex);
    document.head.append(script);
  });
  return index;
}

// Every word has to occur; sections that have one in their heading come first.
async function search(input, count, list) {
  const words = input.value.toLowerCase().split(/\s+/).filter((word) => word);
  const sections = words.length ? await load() : [];
  const rank = ({ title }) => words.filter((word) => title.toLowerCase().includes(word)).length;
  const found = sections
    .filter(({ title, text }) => words.every((word) => (title + " " + text).toLowerCase().includes(word)))
    .sort((one, other) => rank(other) - rank(one));
  count.textContent = words.length ? `${found.length} found` : "";
  list.replaceChildren(...found.slice(0, 20).map((section) => entry(section, words[0])));
}

function entry({ url, page, title, text }, word) {
  const link = document.createElement("a");
  link.href = root + url;
  link.textContent = page === title ? title : `${page}: ${title}`;
  const at = Math.max(0, text.toLowerCase().indexOf(word) - 40);
  const item = document.createElement("li");
  item.append(link, " ", (at ? "…" : "") + text.slice(at, at + 120) + "…");
  return item;
}

addEventListener("DOMContentLoaded", () => {
  document.getElementById("theme").onclick = () => {
    page.dataset.theme = page.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("theme", page.dataset.theme);
  };
  const [input, count, list] = ["search", "count", "found"].map((id) => document.getElementById(id));
  input.oninput = () => search(input, count, list);
  addEventListener("keydown", ({ key }) => {
    if (key === "Escape") list.replaceChildren();
  });
  showContents(document.querySelector(".contents"));
  document.querySelectorAll("main :is(.highlight, .codehilite)").forEach(offerCopy);
  for (const part of document.querySelectorAll("main :is(.output, pre, table)")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
  }
});

// At the side the contents are open, and the section that is being read is marked.
function showContents(contents) {
  if (!contents) return;
  const wide = matchMedia("(min-width: 1100px)");
  const fit = () => (contents.open = wide.matches);
  wide.addEventListener("change", fit);
  fit();
  const links = [...contents.querySelectorAll("a")];
  const headings = links.map((link) => document.getElementById(decodeURIComponent(link.hash.slice(1))));
  const mark = () => {
    const read = headings.findLastIndex((heading) => heading.getBoundingClientRect().top < 120);
    links.forEach((link, at) => link.toggleAttribute("aria-current", at === read));
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
}

function offerCopy(block) {
  if (!block.querySelector("pre") || block.closest(".output, .signature")) return;
  const button = document.createElement("button");
  button.className = "copy";
  button.type = "button";
  button.textContent = "Copy";
  button.onclick = async () => {
    await navigator.clipboard.writeText(codeOf(block.querySelector("pre").textContent));
    button.textContent = "Copied";
    button.classList.add("done");
    setTimeout(() => {
      button.textContent = "Copy";
      button.classList.remove("done");
    }, 2000);
  };
  block.append(button);
}

// Of an example with its answers, as docstrings have it, the code alone.
function codeOf(text) {
  const lines = text.trimEnd().split("\n");
  const typed = lines.filter((line) => /^(>>>|\.\.\.)( |$)/.test(line));
  return typed.length ? typed.map((line) => line.slice(4)).join("\n") : lines.join("\n");
}
