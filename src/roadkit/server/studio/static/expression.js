// Adapter expressions as terms and back: "pirate*0.7 + brief" ↔ [{name: "pirate", strength: 0.7}, …].
//
// The server's reading is the one that counts (roadkit/expression.py); this one only feeds the sliders, and returns
// null for what it does not understand.

const TERM = /^(-?)\s*(?:([\d.]+)\s*\*\s*)?([A-Za-z0-9_][\w.:/@-]*)\s*(?:\*\s*([\d.]+))?$/;

export function parse(text) {
  const pieces = text.trim().split(/ +([+-]) +/);
  if (pieces[0] === "") return [];
  const terms = [];
  for (let i = 0; i < pieces.length; i += 2) {
    const match = TERM.exec(pieces[i].trim());
    if (!match || (match[2] && match[4])) return null;
    const size = Number(match[2] ?? match[4] ?? 1);
    if (!Number.isFinite(size)) return null;
    const negative = (match[1] === "-") !== (pieces[i - 1] === "-");
    terms.push({ name: match[3], strength: negative ? -size : size });
  }
  return terms;
}

export function format(terms) {
  let text = "";
  for (const { name, strength } of terms) {
    const negative = strength < 0;
    text += text ? (negative ? " - " : " + ") : negative ? "-" : "";
    text += Math.abs(strength) === 1 ? name : `${name}*${Number(Math.abs(strength).toFixed(3))}`;
  }
  return text;
}
