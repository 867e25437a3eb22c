"""Style of the report; it lives in the page, which loads nothing."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
:root { color-scheme: light dark; --page: #fff; --panel: #f6f7f9; --ink: #1b1f24;
  --soft: #59626d; --line: #d5dae0; --accent: #005d92; --best: #e3f1fa; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #15181c; --panel: #1d2126; --ink: #e4e7eb; --soft: #a3adb8;
    --line: #343b43; --accent: #7cc4ef; --best: #1d3a4d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main, header, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p, li { max-width: 44rem; }
a { color: var(--accent); }
nav ul { list-style: none; margin: 1rem 0 0; padding: 0; max-width: none; display: flex;
  flex-wrap: wrap; gap: .25rem 1.1rem; }
.soft, figcaption, caption { color: var(--soft); font-size: .92rem; }
.lead { font-size: 1.2rem; line-height: 1.45; margin: 1.2rem 0 .8rem; padding-left: 1rem;
  border-left: .3rem solid var(--accent); }
figure { margin: 1.2rem 0; }
figcaption { max-width: 44rem; margin-top: .3rem; }
img { display: block; max-width: 100%; height: auto; }
.wide img { width: 100%; min-width: 40rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; margin: .8rem 0;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5rem; }
caption span { position: sticky; left: 0; display: inline-block;
  max-width: min(44rem, calc(100vw - 2.5rem)); }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--soft); vertical-align: bottom; }
tr:first-child > th:first-child, tbody th { text-align: left; }
tbody th { font-weight: 500; white-space: nowrap; }
.sortable tbody th { white-space: normal; min-width: 9rem; }
td { white-space: nowrap; }
td small { display: block; color: var(--soft); line-height: 1.2; }
td.best { background: var(--best); font-weight: 700; }
td.best small { font-weight: 400; }
.tall .scroll { max-height: max(30rem, 80vh); overflow: auto; border: 1px solid var(--line);
  border-radius: .4rem; }
.tall table { margin: 0; border-collapse: separate; border-spacing: 0; }
.tall caption { padding: .5rem .6rem; }
.tall thead th { position: sticky; top: 0; z-index: 1; background: var(--page); min-width: 5.2rem; }
.tall tbody th, .tall thead th:first-child { position: sticky; left: 0; background: var(--page); }
.tall thead th:first-child { z-index: 2; }
th button { all: unset; cursor: pointer; text-decoration: underline dotted; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr));
  gap: 1.5rem; }
.gallery figure { margin: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; }
.pair img { width: 100%; border-radius: .25rem; }
.pair span { font-size: .85rem; color: var(--soft); }
@media screen {
  .pair.slider { display: block; position: relative; overflow: hidden; border-radius: .25rem; }
  .pair.slider .after { position: absolute; inset: 0;
    clip-path: inset(0 0 0 calc(var(--cut) * 1%)); }
  .pair.slider::after { content: ""; position: absolute; top: 0; bottom: 0; width: 3px;
    left: calc(var(--cut) * 1% - 1.5px); background: #fff; box-shadow: 0 0 0 1px #000; }
  .pair.slider span { display: none; } }
.cut { display: flex; flex-wrap: wrap; justify-content: space-between; font-size: .85rem; }
.cut input { width: 100%; margin: .3rem 0 0; accent-color: var(--accent); }
.find { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; align-items: baseline;
  margin: .8rem 0 .5rem; }
.find input, .find select { font: inherit; color: inherit; background: var(--page);
  border: 1px solid var(--soft); border-radius: .3rem; padding: .2rem .5rem; max-width: 100%; }
input:focus-visible, select:focus-visible, a:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px; }
.swatch { display: inline-block; width: 1.9em; height: 1.2em; vertical-align: -.2em;
  background: #555; margin-right: .4em; outline: 2px solid; outline-offset: -3px; }
.key { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; }
pre { background: var(--panel); padding: .8rem 1rem; overflow-x: auto; border-radius: .4rem; }
code { font-size: .92em; }
.facts th { font-weight: 500; color: var(--soft); vertical-align: top; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
footer { padding-bottom: 3rem; }
@media (max-width: 40rem) { body { font-size: .95rem; } header { padding-top: 1.25rem; }
  main, header, footer { padding-left: .9rem; padding-right: .9rem; }
  th, td { padding: .3rem .4rem; } .lead { font-size: 1.08rem; }
  .stuck tbody th, .stuck thead tr:first-child th:first-child { position: sticky; left: 0;
    background: var(--page); white-space: normal; min-width: 7rem; } }
@media print { nav, .cut, .find, th button::after { display: none; }
  .scroll, .tall .scroll { overflow: visible; max-height: none; } .wide img { min-width: 0; }
  figure, tr { break-inside: avoid; }
  body { font-size: 10pt; } h2 { break-after: avoid; } .tall th { position: static !important; }
  .gallery { grid-template-columns: 1fr 1fr; } .swatch, td.best { print-color-adjust: exact; } }
"""
