"""The stylesheet of a report: light and dark, from 400 to 1,400 pixels, without a font or a file from elsewhere."""

CSS = """
:root { --sans: "Helvetica Neue", Arial, "Liberation Sans", "DejaVu Sans", sans-serif;
  color-scheme: light dark; --ink: #1d2126; --soft: #5b6470; --rule: #d9dde3; --paper: #fdfdfc; --card: #f4f5f6;
  --good: #00795a; --bad: #b84a00; --unknown: #5b6470; --plot: #ffffff; --link: #005f96; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --soft: #a3adb9; --rule: #3a4149; --paper: #16191d;
  --card: #1f2429; --good: #4cc9a0; --bad: #ff9d5c; --unknown: #a3adb9; --plot: #f6f6f4; --link: #7cc0f0; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.55 Charter, "Bitstream Charter", Cambria, Georgia, "DejaVu Serif", serif; }
header, main, footer { max-width: 1280px; margin: 0 auto; padding: 0 clamp(16px, 3vw, 40px); }
header { padding-top: 2.2rem; }
h1, h2, h3, h4 { line-height: 1.25; font-weight: 600; overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; margin: 0 0 .3rem; }
h2 { font-size: 1.4rem; margin: 3rem 0 .8rem; padding-top: .7rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, ul { max-width: 48rem; margin: .5rem 0; overflow-wrap: anywhere; }
a { color: var(--link); }
.soft, footer { color: var(--soft); font-size: .9rem; }
footer { margin-top: 3rem; padding-bottom: 2rem; }
.verdict { border-left: 5px solid var(--unknown); background: var(--card); padding: .8rem 1.1rem; margin: .8rem 0; }
.verdict.good { border-color: var(--good); } .verdict.bad { border-color: var(--bad); }
.verdict > p:first-child { font-size: 1.2rem; font-weight: 600; margin-top: 0; }
.good > p:first-child, td.good { color: var(--good); } .bad > p:first-child, td.bad { color: var(--bad); }
.runs { list-style: none; padding: 0; } .runs li { margin: .25rem 0; }
pre, code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .85rem; }
code { overflow-wrap: anywhere; } td code, th code { white-space: nowrap; }
pre { background: var(--card); padding: .7rem .9rem; margin: .6rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
pre.raw { max-height: 24rem; overflow: auto; font-size: .75rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 270px), 1fr)); gap: 1rem;
  margin: .8rem 0; align-items: start; }
.wide.grid { grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); }
figure { margin: 0; min-width: 0; background: var(--plot); color: #1d2126; border: 1px solid var(--rule);
  border-radius: 4px; padding: .6rem .6rem .4rem; }
figcaption { font: 600 .84rem/1.35 var(--sans); min-height: 2.7em;
  overflow-wrap: anywhere; margin-bottom: .2rem; }
figcaption span { font-weight: 400; color: #59626d; }
figure > svg { display: block; width: 100%; height: auto; max-width: 100%; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: var(--sans) !important; }
.legend { font: .8rem/1.5 var(--sans); margin: .1rem 0;
  max-width: none; }
.legend span { display: inline-block; margin-right: .9rem; overflow-wrap: anywhere; }
.legend svg { width: 30px; height: 10px; margin-right: .3rem; padding: 1px 2px; background: var(--plot);
  border-radius: 2px; }
.key { display: flex; align-items: center; gap: .5rem; max-width: 30rem; margin: .4rem 0 .8rem;
  font: .8rem var(--sans); }
.key i { flex: 1; height: 12px; }
.box { overflow-x: auto; margin: .6rem 0; max-width: 100%; }
table { border-collapse: collapse; font: .84rem/1.4 var(--sans);
  font-variant-numeric: tabular-nums; border-top: 1.5px solid; border-bottom: 1.5px solid; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; max-width: 26rem;
  overflow-wrap: break-word; }
thead th { border-bottom: 1px solid; }
td.number, th.number { text-align: right; padding-left: .6rem; white-space: nowrap; }
tbody th { font-weight: 400; }
.compare tbody th, .compare thead th:first-child { position: sticky; left: 0;
  background: var(--paper); background-clip: padding-box; min-width: 9rem;
  max-width: 40vw; }
summary { cursor: pointer; }
.wide figcaption { min-height: 0; }
@media (max-width: 620px) { figcaption { min-height: 0; } }
@media print { figure { break-inside: avoid; } .box { overflow: visible; } }
"""
